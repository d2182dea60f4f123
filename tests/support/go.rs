//! Go toolchains that tests build with: `cargo xtask test` puts them there.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use tracer::report::model::Report;

use super::workload::Truth;
use super::{Ctrace, Workload, require};

/// Versions fetched besides the distribution's: one of each layout of the runtime's tables that can be had, and the newest.
pub(crate) const VERSIONS: [&str; 4] = ["1.21.13", "1.23.9", "1.25.5", "1.27.3"];

/// Where things are kept that all checkouts share, as xtask has it.
pub(crate) fn cache() -> Option<PathBuf> {
    let var = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    var("CTRACE_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("ctrace")))
        .or_else(|| Some(var("HOME")?.join(".cache/ctrace")))
}

/// The `go` of a fetched version, or of the distribution (`system`).
pub(crate) fn toolchain(version: &str) -> Option<PathBuf> {
    let path = if version == "system" {
        "/usr/bin/go".into()
    } else {
        cache()?.join(format!("go-{version}/go/bin/go"))
    };
    path.is_file().then_some(path)
}

/// `go build ARGS -o OUTPUT SOURCE` with that toolchain and no module, network or setting of the caller's. `SOURCE` is a
/// file or a folder; its C parts are built if linked externally or told to with `-tags=cgo`.
pub(crate) fn build(go: &Path, args: &[&str], output: &Path, source: &Path) -> Result<(), String> {
    let cache = cache().ok_or("no folder to keep things in")?;
    let mut command = Command::new(go);
    command.arg("build").args(args).arg("-o").arg(output);
    // A folder outside of GOPATH has no import path but `.`.
    if source.is_dir() {
        command.current_dir(source).arg(".");
    } else {
        command.arg(source);
    }
    command
        .env_remove("GOROOT")
        .env_remove("GOFLAGS")
        .env("GOCACHE", cache.join("go-build"))
        .env("GOTOOLCHAIN", "local")
        .env("GO111MODULE", "off")
        .env(
            "CGO_ENABLED",
            if args
                .iter()
                .any(|arg| arg.contains("external") || *arg == "-tags=cgo")
            {
                "1"
            } else {
                "0"
            },
        );
    let result = command
        .output()
        .map_err(|error| format!("{}: {error}", go.display()))?;
    if result.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&result.stderr).into_owned())
}

/// `tests/workloads/NAME.go` built into a folder; `None` (said aloud) where this Go is missing.
pub(crate) fn built(name: &str, version: &str, args: &[&str], folder: &Path) -> Option<PathBuf> {
    let toolchain = toolchain(version);
    let why = format!("no Go {version}: cargo xtask test fetches it");
    if !require(toolchain.is_some(), &why) {
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/workloads/{name}.go"));
    let program = folder.join(name);
    build(&toolchain?, args, &program, &source).unwrap_or_else(|why| panic!("Go {version} {args:?}:\n{why}"));
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
    let mut workload = started(program, args);
    let pid = workload.pid.to_string();
    let ctrace = Ctrace::start(&[&["--pid", &pid], options].concat());
    let truth = workload.go();
    let report = ctrace.interrupted();
    workload.quit();
    (report, truth)
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
