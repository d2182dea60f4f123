//! Who asked for what a goroutine does: makers' stacks in words, and the application's function among them.

use super::names::Names;
use crate::{
    aggregate::go_starts::{Asker, GoStarts},
    report::{
        frames::{app_function, is_app, without_path},
        model::{AskedBy, Go, StackFrame, StackKey},
    },
    stacks::StackId,
};

/// The makers, nearest first.
pub fn steps(asker: &Asker, pid: u32, names: &mut Names<'_>) -> Vec<AskedBy> {
    let mut steps: Vec<AskedBy> = asker.stacks().map(|stack| step(stack, names)).collect();
    if steps.is_empty() && asker.creator != 0 {
        let at = names
            .stacks_mut()
            .intern_code(pid, &[(asker.creator, true)], false);
        let frames = names.frames(at);
        let (created_by, created_at) = place(frames.first(), frames.last());
        // It is how the first goroutine is made: Go does not say it either.
        if created_by.as_deref().is_some_and(|name| name != "runtime.newproc") {
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
/// one; and the stack that it is in.
pub fn answerable(
    stack: Option<&StackKey>,
    asked_by: &[AskedBy],
    names: &mut Names<'_>,
) -> Option<(String, Option<StackKey>)> {
    let makers = asked_by.iter().filter_map(|by| by.stack.as_ref());
    for key in stack.into_iter().chain(makers) {
        let Some(id) = names.id(key) else { continue };
        let app = app_function(names.frames(id)).filter(|frame| is_app(frame));
        if let Some(function) = app.and_then(|frame| frame.function.clone()) {
            return Some((function, Some(key.clone())));
        }
    }
    None
}

/// The functions by whose `go` statements it came from there to its call, the first one first.
pub fn by_way_of(asked_by: &[AskedBy]) -> Option<String> {
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
                row.asked_by = steps(path, go.pid, names);
            }
        }
    }
}
