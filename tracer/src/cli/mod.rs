//! The command line: what was typed ([`args`]), what it means ([`options`], [`targets`]), and how it ends.

pub mod args;
pub mod go_write;
pub mod options;
pub mod saved;
pub mod targets;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser as _;

use self::args::{Args, Command};
use crate::report::{
    schema::{diff_schema, schema},
    write::ignore_broken_pipe,
};

/// Usage and environment errors.
const FAILED: u8 = 2;

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            // --help and --version.
            return match ignore_broken_pipe(error.print()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(FAILED),
            };
        }
        Err(error) => {
            complain(&usage(&error));
            return ExitCode::from(FAILED);
        }
    };
    log_to_stderr(args.trace.verbose);
    let result = match &args.command {
        None => crate::session::run(&args.trace),
        Some(Command::Report(args)) => saved::report(args),
        Some(Command::Diff(args)) => saved::diff(args),
        Some(Command::GoWriteWatchdog { .. }) => return crate::session::watchdog::main(),
        Some(Command::Schema { diff: true }) => print(&diff_schema()).map(|()| ExitCode::SUCCESS),
        Some(Command::Schema { diff: false }) => print(&schema()).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        ExitCode::from(FAILED)
    })
}

/// One line on stderr: control characters, also those of a verifier's log, do not make it two.
fn complain(what: &str) {
    let line = what
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take(12)
        .collect::<Vec<_>>()
        .join(" ");
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(io::stderr(), "ctrace: {line}");
}

/// The first line of clap's message, which says what is wrong.
fn usage(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    format!(
        "{}; see `ctrace --help`",
        first.strip_prefix("error: ").unwrap_or(first)
    )
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => log::LevelFilter::Error,
        1 => log::LevelFilter::Warn,
        2 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter_module("tracer", level)
        .filter_module("aya_log", level)
        .init();
}

fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    ignore_broken_pipe(writeln!(stdout, "{text}").and_then(|()| stdout.flush()))
        .context("cannot write to standard output")
}
