//! Go workloads of one file: built, started and traced.

use std::path::{Path, PathBuf};
use std::process::Command;

use tracer::report::model::Report;

use super::workload::Truth;
use super::{Workload, go, require};

/// `tests/workloads/NAME.go` built into a folder; `None` (said aloud) where this Go is missing.
pub(crate) fn built(name: &str, version: &str, args: &[&str], folder: &Path) -> Option<PathBuf> {
    let toolchain = go::toolchain(version);
    let why = format!("no Go {version}: cargo xtask test fetches it");
    if !require(toolchain.is_some(), &why) {
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/workloads/{name}.go"));
    let program = folder.join(name);
    go::build(&toolchain?, args, &program, &source)
        .unwrap_or_else(|why| panic!("Go {version} {args:?}:\n{why}"));
    Some(program)
}

/// A workload that was built, with these arguments.
pub(crate) fn started(program: &Path, args: &[&str]) -> Workload {
    let mut command = Command::new(program);
    command.args(args);
    Workload::started(command)
}

/// Traces one run, from before `go` until after `done`.
pub(crate) fn traced(program: &Path, args: &[&str], options: &[&str]) -> (Report, Truth) {
    started(program, args).traced(options)
}

/// Names of a stack's functions, leaf first.
pub(crate) fn functions<'a>(report: &'a Report, stack: Option<&str>) -> Vec<&'a str> {
    let frames = stack.and_then(|stack| report.stacks.get(stack));
    frames
        .into_iter()
        .flatten()
        .map(|frame| frame.function.as_deref().unwrap_or("?"))
        .collect()
}
