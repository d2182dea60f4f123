//! Go toolchains that tests build with: `cargo xtask test` puts them there.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

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
