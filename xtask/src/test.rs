//! `test`: every test that can run here, and a count that says which did not.
//!
//! ```text
//! install what tests need ─> unit, property, snapshot and doc tests ─> tests on the real kernel, one at a time
//!                                                                       (as root, each with probes attached)
//! ```
//! The last line is `N passed, N failed, N skipped`. A skip is never silent: it was printed with its reason, and with
//! `CTRACE_TEST_NO_SKIP=1` it is a failure.

use std::{
    env,
    io::{self, BufRead as _, BufReader, Read, Write},
    process::{Command, ExitCode, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    apt, go,
    libtest::{Outcome, Reader},
    shell,
};

/// Test targets that load probes: they need root, and they measure, so they run alone. All others run in parallel.
const KERNEL: &[&str] = &["kernel"];

/// Run the tests, those on the real kernel included
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this
    #[arg(long)]
    filter: Option<String>,
    /// Only name missing packages, do not install them
    #[arg(long)]
    no_install: bool,
}

/// Runs the verb; the count is the last line whatever happens.
pub(crate) fn main(args: &Args) -> ExitCode {
    let mut outcome = Outcome::default();
    if let Err(error) = all(args, &mut outcome) {
        eprintln!("xtask: {error:#}");
        outcome.tally.failed += 1;
    }
    // What broke stands beside the count: the output before it is thousands of lines.
    for failure in &outcome.failures {
        println!("FAILED {}", failure.trim_end());
    }
    let tally = outcome.tally;
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed, tally.failed, tally.skipped
    );
    if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn all(args: &Args, outcome: &mut Outcome) -> Result<()> {
    packages(args);
    go::fetch(!args.no_install);

    let targets = test_targets()?;
    let mut here = cargo_test();
    here.args(["--workspace", "--lib", "--bins", "--examples"]);
    for target in targets.iter().filter(|target| !KERNEL.contains(&target.as_str())) {
        here.args(["--test", target]);
    }
    *outcome += count(here.arg("--").args(filter(args)))?;
    *outcome += count(
        cargo_test()
            .args(["--workspace", "--doc", "--"])
            .args(filter(args)),
    )?;

    for target in KERNEL {
        ensure!(
            targets.iter().any(|name| name == target),
            "no test target `{target}` in the workspace"
        );
        let mut kernel = cargo_test();
        kernel
            .args(["--package", "tracer", "--test", target, "--", "--test-threads=1"])
            .args(filter(args));
        if !shell::is_root() {
            // cargo builds as the user and runs the binary behind sudo; root's environment would lack cargo's.
            let runner = format!(
                "CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER",
                env::consts::ARCH.to_uppercase()
            );
            kernel.env(runner, "sudo --preserve-env");
        }
        *outcome += count(&mut kernel)?;
    }
    Ok(())
}

/// Installs what tests use, or says what they will skip for want of.
fn packages(args: &Args) {
    let missing = apt::missing(apt::TESTS);
    if missing.is_empty() {
        return;
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let installed = if args.no_install {
        Err(anyhow::anyhow!("not installing; run: {}", apt::command(&names)))
    } else {
        apt::install(&names)
    };
    if let Err(error) = installed {
        eprintln!("xtask: {error:#}");
        // One name that this release does not have must not cost the others.
        if !args.no_install && shell::is_root() {
            names
                .iter()
                .filter(|_| names.len() > 1)
                .for_each(|name| drop(apt::install(&[name])));
        }
        for package in apt::missing(apt::TESTS) {
            eprintln!(
                "xtask: without {} ({}), tests that use it skip",
                package.name, package.purpose
            );
        }
    }
}

/// `cargo test` up to its targets: every binary runs, whatever the one before it did.
fn cargo_test() -> Command {
    let mut command = shell::cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    command
}

/// Arguments for libtest. The output of passing tests is where skips are told.
fn filter(args: &Args) -> impl Iterator<Item = &str> {
    ["--show-output"].into_iter().chain(args.filter.as_deref())
}

/// Names of the workspace's `[[test]]` targets.
fn test_targets() -> Result<Vec<String>> {
    let text = shell::output(shell::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))
        .context("cargo metadata failed")?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let tests = targets.filter(|target| target["kind"][0] == "test");
    Ok(tests
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}

/// Runs the command, passes its output through and counts.
fn count(command: &mut Command) -> Result<Outcome> {
    eprintln!("$ {}", shell::words(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reader = Mutex::new(Reader::default());
    thread::scope(|scope| {
        // A skip may be told on either; the lock keeps whole lines whole.
        scope.spawn(|| pass(stderr, &mut io::stderr(), &reader));
        pass(stdout, &mut io::stdout(), &reader);
    });
    let status = child.wait().context("cargo test")?;
    Ok(reader
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .finish(status.success()))
}

fn pass(from: Option<impl Read>, to: &mut dyn Write, reader: &Mutex<Reader>) {
    let Some(from) = from else { return };
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    // Bytes, not lines of UTF-8: a test may print anything.
    while from.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
        let line = String::from_utf8_lossy(&bytes);
        reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .line(line.trim_end());
        // Nobody is left to tell when our own output is closed; the count goes on.
        let _ = to.write_all(&bytes).and_then(|()| to.flush());
        bytes.clear();
    }
}
