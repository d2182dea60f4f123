//! The C program that is measured, one process per load.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::stats::Window;
use crate::shell;

/// Compiles it as the tests do: optimised, without frame pointers, as distributions do.
pub(crate) fn compile(name: &str, folder: &Path, flags: &[&str]) -> Result<PathBuf> {
    let source = shell::root().join(format!("tests/workloads/{name}.c"));
    let program = folder.join(name);
    shell::run(
        Command::new("gcc")
            .args([
                "-O2",
                "-g",
                "-pthread",
                "-Wall",
                "-Wextra",
                "-fno-optimize-sibling-calls",
                "-std=gnu11",
            ])
            .args(flags)
            .arg("-o")
            .args([&program, &source]),
    )?;
    Ok(program)
}

/// A load that waits for its next window; it ends with its owner.
pub(super) struct Workload {
    child: Child,
    stdout: BufReader<ChildStdout>,
    name: &'static str,
}

impl Workload {
    pub(super) fn start(program: &Path, name: &'static str, seconds: f64) -> Result<Self> {
        let mut child = Command::new(program)
            .args([name, &seconds.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = child.stdout.take().context("no stdout")?;
        let mut workload = Self {
            child,
            stdout: BufReader::new(stdout),
            name,
        };
        let line = workload.line()?;
        ensure!(line.starts_with("ready "), "{name}: expected ready, got {line}");
        Ok(workload)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("the load {} ended", self.name);
        }
        Ok(line.trim_end().to_owned())
    }

    /// Runs one window.
    pub(super) fn window(&mut self) -> Result<Window> {
        let stdin = self.child.stdin.as_mut().context("no stdin")?;
        stdin
            .write_all(b"go\n")
            .with_context(|| format!("the load {} ended", self.name))?;
        let mut window = Window::new();
        loop {
            let line = self.line()?;
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["truth", key, value] => drop(window.insert(key.to_owned(), value.parse()?)),
                ["done"] => return Ok(window),
                _ => bail!("the load {} said {line:?}", self.name),
            }
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
