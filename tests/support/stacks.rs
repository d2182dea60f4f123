//! Questions about stacks of a report.

use tracer::report::model::{FdStack, Lock, Report, StackFrame};

/// Functions in which a thread begins.
const ROOTS: [&str; 7] = [
    "_start",
    "_dl_start_user",
    "clone3",
    "clone",
    "thread_start",
    "__libc_start_main",
    "start_thread",
];

/// Whether `function`, as shown with its namespace and arguments, is `name`, leading underscores aside. With glibc's debug
/// symbols installed its functions have their internal names (`__GI___pthread_mutex_unlock_usercnt`,
/// `__pthread_mutex_clocklock_common`): for them the beginning decides, and a timed lock may be either of its two calls.
fn is_function(function: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let bare = |part: &str| {
        part.trim_start_matches('_')
            .trim_start_matches("GI_")
            .trim_start_matches('_')
            .to_owned()
    };
    let names = [bare(name), bare(name).replace("timedlock", "clocklock")];
    function.split(|c| !word(c)).map(bare).any(|part| {
        names
            .iter()
            .any(|name| part == *name || name.starts_with("pthread_") && part.starts_with(name.as_str()))
    })
}

fn frames<'a>(report: &'a Report, id: Option<&str>) -> &'a [StackFrame] {
    let Some(id) = id else { return &[] };
    report
        .stacks
        .get(id)
        .unwrap_or_else(|| panic!("stack {id} is not in the report"))
}

/// Whether the stack has these functions in this order from the leaf, others between them or not.
pub(crate) fn stack_contains(report: &Report, id: Option<&str>, functions: &[&str]) -> bool {
    let mut wanted = functions.iter().peekable();
    for frame in frames(report, id) {
        if wanted
            .next_if(|name| frame.function.as_deref().is_some_and(|f| is_function(f, name)))
            .is_some()
            && wanted.peek().is_none()
        {
            return true;
        }
    }
    functions.is_empty()
}

/// Whether the stack reaches the function in which its thread began. A stripped libc has no name for `clone3`:
/// a nameless outermost frame in libc, called into by nobody, is it.
pub(crate) fn stack_complete(report: &Report, id: Option<&str>) -> bool {
    frames(report, id)
        .last()
        .is_some_and(|frame| match frame.function.as_deref() {
            Some(function) => ROOTS.iter().any(|root| is_function(function, root)),
            None => frame
                .module
                .as_deref()
                .is_some_and(|module| module.contains("libc.so")),
        })
}

/// The stack as text, for messages.
pub(crate) fn show(report: &Report, id: Option<&str>) -> String {
    let names = frames(report, id).iter().map(|frame| {
        let place = || format!("{}@{}", frame.address, frame.module.as_deref().unwrap_or("?"));
        frame.function.clone().unwrap_or_else(place)
    });
    names.collect::<Vec<_>>().join(" <- ")
}

/// Locks that some waiter waits for in these functions.
pub(crate) fn locks_awaited_in<'a>(report: &'a Report, functions: &[&str]) -> Vec<&'a Lock> {
    let waits_there = |lock: &&Lock| {
        lock.waiters
            .iter()
            .any(|waiter| stack_contains(report, waiter.stack.as_deref(), functions))
    };
    report.locks.iter().flatten().filter(waits_there).collect()
}

/// Descriptor rows made in these functions.
pub(crate) fn fds_made_in<'a>(report: &'a Report, functions: &[&str]) -> Vec<&'a FdStack> {
    let rows = report.fds.iter().flat_map(|fds| &fds.by_stack);
    rows.filter(|row| stack_contains(report, row.stack.as_deref(), functions))
        .collect()
}
