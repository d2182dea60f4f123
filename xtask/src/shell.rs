//! Running other programs, and where things are.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The workspace.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    // Relative to the caller's folder, as cargo reads it.
    env::var_os("CARGO_TARGET_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(
            || root().join("target"),
            |dir| env::current_dir().unwrap_or_default().join(dir),
        )
}

/// What is installed once for all checkouts: `$CTRACE_CACHE`, else the user's cache folder.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let var = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    var("CTRACE_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("ctrace")))
        .or_else(|| Some(var("HOME")?.join(".cache/ctrace")))
        .context(
            "neither CTRACE_CACHE, XDG_CACHE_HOME nor HOME is set: set CTRACE_CACHE to a writable folder",
        )
}

/// The cargo that runs this chore, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Says the command, runs it, and fails when it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", words(command));
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} ended with {status}", words(command));
    }
    Ok(())
}

/// What the command prints on stdout, trimmed; `None` when it cannot start or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as one would type it.
pub(crate) fn words(command: &Command) -> String {
    // `cargo`, not the path of the toolchain that it stands for.
    let program = Path::new(command.get_program());
    let program = if program.ends_with("cargo") {
        OsStr::new("cargo")
    } else {
        program.as_os_str()
    };
    let words = [program].into_iter().chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().replace('\x1f', " "))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The program `name` on PATH or in the folders that hold daemons, which PATH often leaves out.
pub(crate) fn which(name: impl AsRef<Path>) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let daemons = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(daemons)
        .map(|dir| dir.join(&name))
        .find(|path| path.is_file())
}

/// PATH with `dir` in front.
pub(crate) fn path_with(dir: &Path) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let all = [dir.to_owned()].into_iter().chain(env::split_paths(&path));
    env::join_paths(all).context("PATH")
}

/// Whether this process may install packages and load probes.
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_some_and(|uid| uid == "0")
}

/// `program` as root: itself, or behind sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if which("sudo").is_none() {
        bail!("root is needed and there is no sudo: run this chore as root");
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}
