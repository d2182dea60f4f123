//! Who asked for what a goroutine does: makers' stacks in words, and the application's function among them.

use rustc_hash::FxHashSet;

use super::names::Names;
use crate::{
    aggregate::go_starts::{Asker, GoStarts},
    report::{
        frames::{is_app, without_path},
        model::{AskedBy, FdStack, Fds, Go, StackFrame, StackKey, Verdict},
    },
    stacks::StackId,
};

/// The makers, nearest first.
pub fn steps(asker: &Asker, names: &mut Names<'_>) -> Vec<AskedBy> {
    let mut steps: Vec<AskedBy> = asker.stacks().map(|stack| step(stack, names)).collect();
    if steps.is_empty() && asker.creator != StackId::NONE {
        let frames = names.frames(asker.creator);
        let (created_by, created_at) = place(frames.first(), frames.last());
        // It is how the first goroutine is made: Go does not say it either.
        if created_by
            .as_deref()
            .is_some_and(|name| name != "runtime.newproc")
        {
            steps.push(AskedBy {
                stack: None,
                created_by,
                created_at,
            });
        }
    }
    steps
}

fn step(stack: StackId, names: &mut Names<'_>) -> AskedBy {
    let frames = names.frames(stack);
    // Where every `go` statement leads to.
    let own = frames
        .iter()
        .find(|frame| frame.function.as_deref() != Some("runtime.newproc"));
    let (created_by, created_at) = place(own, own);
    AskedBy {
        stack: names.key(stack),
        created_by,
        created_at,
    }
}

/// Go names the function that was compiled, and the line of what was inlined into it.
fn place(first: Option<&StackFrame>, last: Option<&StackFrame>) -> (Option<String>, Option<String>) {
    let function = last.and_then(|frame| frame.function.clone());
    let place = first.and_then(|frame| Some(format!("{}:{}", frame.file.as_deref()?, frame.line?)));
    (function, place)
}

/// The application's function that is to answer for what goroutines do: in their own stack, else in that of the nearest maker that has
/// one; and the stack that it is in. One that is in the way of others too, which do nothing wrong, is passed over for its caller.
pub(super) fn answerable(
    stack: Option<&StackKey>,
    asked_by: &[AskedBy],
    others: &FxHashSet<String>,
    names: &mut Names<'_>,
) -> Option<(String, Option<StackKey>)> {
    let makers = asked_by.iter().filter_map(|by| by.stack.as_ref());
    let mut nearest = None;
    for key in stack.into_iter().chain(makers) {
        let Some(id) = names.id(key) else { continue };
        for function in app_functions(names.frames(id)) {
            let found = || Some((function.to_owned(), Some(key.clone())));
            if !others.contains(function) {
                return found();
            }
            nearest = nearest.or_else(found);
        }
    }
    nearest
}

fn app_functions(frames: &[StackFrame]) -> impl Iterator<Item = &str> {
    let app = frames.iter().filter(|frame| is_app(frame));
    app.filter_map(|frame| frame.function.as_deref())
}

/// The application's functions on the way to calls that those who asked for them close again, though the call is the same as this
/// row's.
pub(super) fn innocent(row: &FdStack, fds: &Fds, names: &mut Names<'_>) -> FxHashSet<String> {
    if row.asked_by.is_empty() {
        return FxHashSet::default();
    }
    let closing = fds.by_stack.iter().filter(|other| {
        let grows = matches!(other.verdict, Verdict::Leaking | Verdict::Growing);
        other.pid == row.pid && other.stack == row.stack && !grows && other.closed > other.live
    });
    on_the_way(&closing.collect::<Vec<_>>(), names)
}

/// The application's functions in the stacks of those who asked for these.
pub(super) fn on_the_way(rows: &[&FdStack], names: &mut Names<'_>) -> FxHashSet<String> {
    let mut functions = FxHashSet::default();
    for by in rows.iter().flat_map(|row| &row.asked_by) {
        if let Some(id) = by.stack.as_ref().and_then(|key| names.id(key)) {
            functions.extend(app_functions(names.frames(id)).map(str::to_owned));
        }
    }
    functions
}

/// The functions by whose `go` statements it came from there to its call, the first one first.
pub(super) fn by_way_of(asked_by: &[AskedBy]) -> Option<String> {
    let ways: Vec<&str> = asked_by
        .iter()
        .rev()
        .filter_map(|by| by.created_by.as_deref())
        .map(without_path)
        .collect();
    (!ways.is_empty()).then(|| ways.join(" ⇒ "))
}

/// Adds to rows of goroutines who made them, where all examples whose making was seen were made by the same way.
pub fn complete(all: &mut [Go], starts: &GoStarts, names: &mut Names<'_>) {
    if starts.seen() == 0 {
        return;
    }
    for go in all {
        for row in &mut go.by_stack {
            let mut paths: Vec<Asker> = row
                .examples
                .iter()
                .map(|example| starts.path(go.pid, example.goid))
                .filter(|path| path.stacks().next().is_some())
                .collect();
            paths.dedup();
            if let [path] = &paths[..] {
                row.asked_by = steps(path, names);
            }
        }
    }
}
