//! Stacks and frames.

use super::View;
use super::escape::{clean, cut, name};
use crate::report::frames::{app_index, basename, is_app, without_path};
use crate::report::model::{StackFrame, StackKey};
use crate::report::units::counted;

/// Frames of one stack, at most.
const FRAMES: usize = 30;
/// Columns of a function's name in a sentence or a table.
const NAME: usize = 40;

/// The name of a frame: the function, else its place in the file, else the address.
pub(super) fn function(frame: &StackFrame) -> String {
    let module = frame.module.as_deref().map_or("?", basename);
    match (&frame.function, frame.offset) {
        (Some(function), _) => clean(function),
        (None, Some(offset)) => format!("{}+{offset:#x}", clean(module)),
        (None, None) => format!("{} at {}", clean(module), clean(&frame.address)),
    }
}

/// Where a frame is: the source line, else the file of the mapping.
fn place(frame: &StackFrame) -> String {
    let inlined = if frame.inlined { "  (inlined)" } else { "" };
    let place = match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{}:{line}", name(&tidy(file), NAME)),
        (Some(file), None) => name(&tidy(file), NAME),
        (None, _) if frame.function.is_none() => String::new(),
        (None, _) => frame
            .module
            .as_deref()
            .map_or(String::new(), |module| name(basename(module), NAME)),
    };
    format!("{place}{inlined}")
}

/// `./nptl/../sysdeps/futex.h` as `sysdeps/futex.h`: by the text alone, as the file need not be here.
fn tidy(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match (part, parts.last()) {
            (".", _) | ("", Some(_)) => {}
            ("..", Some(&last)) if !["", ".."].contains(&last) => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// The frames that tell where in the program it was: from the function of a library that the application called to
/// the application's outermost. All, when none is the application's.
fn told(frames: &[StackFrame]) -> &[StackFrame] {
    match frames.iter().rposition(is_app) {
        Some(last) => &frames[app_index(frames).saturating_sub(1)..=last],
        None => frames,
    }
}

impl View<'_> {
    /// The application's function of a stack, in a few words.
    pub(super) fn app(&self, key: Option<&StackKey>) -> String {
        self.stack(key).map_or_else(
            || "(no stack)".to_owned(),
            |frames| cut(without_path(&function(&frames[app_index(frames)])), NAME),
        )
    }

    /// The application's function and those that called it: `dial ← connect ← handle`.
    pub(super) fn chain(&self, key: Option<&StackKey>) -> String {
        let Some(frames) = self.stack(key) else {
            return "(no stack)".to_owned();
        };
        let first = app_index(frames);
        let callers = frames[first + 1..].iter().filter(|frame| is_app(frame)).take(2);
        let mut names: Vec<String> = std::iter::once(&frames[first])
            .chain(callers)
            .map(|frame| cut(without_path(&function(frame)), NAME))
            .collect();
        names.dedup();
        names.join(" ← ")
    }

    /// The frames, leaf first: all when verbose, else those that are [`told`].
    pub(super) fn frames(&self, indent: usize, key: Option<&StackKey>) -> Vec<String> {
        let Some(frames) = self.stack(key) else {
            return vec![self.page.line(indent, "(no stack)")];
        };
        let frames = if self.options.verbose {
            frames
        } else {
            told(frames)
        };
        let room = self.page.width - indent;
        let show = |frame: &StackFrame| {
            let place = place(frame);
            let left = room.saturating_sub(place.chars().count() + 2).max(16);
            self.page.line(
                indent,
                format!("{}  {place}", cut(&function(frame), left)).trim_end(),
            )
        };
        let mut lines: Vec<String> = frames.iter().take(FRAMES).map(show).collect();
        if frames.len() > FRAMES {
            lines.push(self.page.line(
                indent,
                &format!("… {}", counted((frames.len() - FRAMES) as u64, "more frame")),
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_short_by_their_text() {
        let paths = [
            (
                "./nptl/../sysdeps/nptl/futex-internal.h",
                "sysdeps/nptl/futex-internal.h",
            ),
            ("/build/./src//a/../../b.c", "/build/b.c"),
            ("../include/x.h", "../include/x.h"),
            ("a/../../b.c", "../b.c"),
            ("/../b.c", "/../b.c"),
            ("src/db.cc", "src/db.cc"),
        ];
        for (path, short) in paths {
            assert_eq!(tidy(path), short);
        }
    }
}
