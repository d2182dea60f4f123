//! What was typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::fail_on::{On, help};

/// Says why a running process is slow at the tail and what it leaks, without a restart or a code change.
#[derive(Debug, Parser)]
#[command(
    name = "ctrace",
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    max_term_width = 100
)]
#[command(after_help = "EXAMPLES:
  sudo ctrace --pid 1234                 trace until Ctrl-C, then report
  sudo ctrace -p 1234 -d 30s -j out.json 30 seconds, the whole report as JSON
  sudo ctrace --only locks,sched -p 1234 no cost on other processes' system calls
  sudo ctrace -- ./server --port 8080    start a command and trace it from its first instruction
  ctrace report out.json                 the text report of a saved JSON
  ctrace diff before.json after.json     what changed, and whether that is significant

OVERHEAD: each sleep of a thread of the target costs a few microseconds (its stack is copied), each descriptor opened
about one. With descriptors on, every system call of every process on the host pays some nanoseconds; leave them out
with --only where that matters. Every report shows what ctrace itself cost.")]
pub struct Args {
    /// What to do instead of tracing.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to trace.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// How to trace.
#[derive(Debug, clap::Args)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "switches of the command line, each independent of the others"
)]
pub struct TraceArgs {
    /// Process to trace (repeatable)
    #[arg(short, long = "pid", value_name = "N", allow_negative_numbers = true)]
    pub pid: Vec<String>,
    /// Stop after this time: 5, 5s, 2m, 1h
    #[arg(short, long, value_name = "D")]
    pub duration: Option<String>,
    /// A report (with --json a line) every D, each of its own window
    #[arg(short, long, value_name = "D")]
    pub interval: Option<String>,
    /// JSON to FILE, or to standard output with `-` or nothing
    #[arg(short, long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
    /// Collectors: any of locks, fds, sched, io, go, memory [default: all]
    #[arg(long, value_name = "LIST")]
    pub only: Option<String>,
    /// Ignore sleeps shorter than this
    #[arg(short, long, value_name = "D", default_value = "1us")]
    pub min_wait: String,
    /// Rows per table
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    pub top: u32,
    /// Only descriptors older than this count as leak suspects
    #[arg(long, value_name = "D")]
    pub older: Option<String>,
    /// Follow children
    #[arg(short, long)]
    pub follow: bool,
    /// Hold ctrace's own cost under P percent of one CPU: first short sleeps are left out, then only a part of the sleeps is
    /// recorded, unbiased; the report says which
    #[arg(long, value_name = "P%")]
    pub budget: Option<String>,
    /// Time everything that goroutines wait for, exactly: channels, selects, sleeps, the network. Every wait costs the program
    /// about 3 us, so the probes come and go to stay under 2 % of one CPU, or 35 % of --budget
    #[arg(long, conflicts_with = "no_uprobes")]
    pub go_waits: bool,
    /// Put no probe into any program: without them Go's own locks are not timed, and who asked for a dial is not told. With them those
    /// are for as much of the time as fits 0.15 % of one CPU, or more with --budget
    #[arg(long)]
    pub no_uprobes: bool,
    /// Write into the memory of the Go programs traced, which is put back at the end, however ctrace ends: `profile` switches on the
    /// runtime's own profiler of blocking, `leaks` has the collector look for leaked goroutines (Go 1.26 and newer)
    #[arg(long, value_name = "LIST", num_args = 0..=1, require_equals = true, default_missing_value = "profile,leaks")]
    pub go_write: Option<String>,
    /// With --go-write, one event is recorded for so much time blocked; 1ns: every one
    #[arg(long, value_name = "D", default_value = "10us")]
    pub go_write_rate: String,
    /// With --go-write, look for leaks also when more than 10,000 goroutines are blocked, which stops the program for long
    #[arg(long)]
    pub go_write_force: bool,
    /// In Go programs, tell who made each goroutine, at every `go` statement (else only where a dial begins): 5 us each, for as
    /// much of the time as fits 2 % of one CPU, or a fifth of --budget
    #[arg(long)]
    pub go_creators: bool,
    /// Exit with status 1 when this holds, such as lock.p99>5ms, fd.leaks>0 or finding>=high (repeatable, or joined by commas: one is
    /// enough); with -i, of any interval. `ctrace report --help` lists what can be asked for
    #[arg(long, value_name = "EXPR")]
    pub fail_on: Vec<String>,
    /// Plain output, no live screen (there is none yet: accepted for scripts)
    #[arg(long)]
    pub no_tui: bool,
    /// Colour the text report
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Color::Auto)]
    pub color: Color,
    /// Say more: probes and remedies in the report; twice: what ctrace does
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing on stderr but errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Command to start and trace
    #[arg(last = true, value_name = "COMMAND")]
    pub exec: Vec<std::ffi::OsString>,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do instead of tracing.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the report of a saved JSON report again, as text or JSON
    #[command(after_help = metrics(On::Report))]
    Report(ReportArgs),
    /// Compare two saved JSON reports: what changed, and is it significant
    #[command(after_help = metrics(On::Diff))]
    Diff(DiffArgs),
    /// Print the JSON Schema of the report
    Schema {
        /// That of `ctrace diff --json`
        #[arg(long)]
        diff: bool,
    },
    /// Puts back what --go-write wrote; ctrace starts it
    #[command(hide = true)]
    GoWriteWatchdog {
        /// The process written to, for those who look at lists of processes
        pid: u32,
    },
}

/// How to show a saved report.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// A JSON report, or lines of them (the last one is shown)
    pub file: PathBuf,
    /// The JSON again instead of text, to FILE, or to standard output with `-` or nothing
    #[arg(short, long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
    /// Rows per table [default: as when it was traced]
    #[arg(short = 'n', long, value_name = "N")]
    pub top: Option<u32>,
    /// Exit with status 1 when this holds, such as lock.p99>5ms (repeatable, or joined by commas); of several reports in the file,
    /// for any
    #[arg(long, value_name = "EXPR")]
    pub fail_on: Vec<String>,
    /// Colour the text
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Color::Auto)]
    pub color: Color,
    /// Whole stacks, all rows, and the probes
    #[arg(short, long)]
    pub verbose: bool,
}

/// How to compare.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// The first run: a JSON report, or lines of them (-i)
    pub before: PathBuf,
    /// The second run
    pub after: PathBuf,
    /// JSON to FILE, or to standard output with `-` or nothing
    #[arg(short, long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
    /// Compare only these: any of locks, fds, sched, io, go [default: all that both runs have]
    #[arg(long, value_name = "LIST")]
    pub only: Option<String>,
    /// Rows per table
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    pub top: u32,
    /// Work done in either run, such as requests: rates are then compared per unit of it, not per second
    #[arg(long, value_name = "BEFORE,AFTER")]
    pub load: Option<String>,
    /// Smaller changes are none, however certain
    #[arg(long, value_name = "P%", default_value = "20%")]
    pub margin: String,
    /// By how much runs of one program are taken to differ (standard deviation), beside what each run shows
    #[arg(long, value_name = "P%", default_value = "10%")]
    pub noise: String,
    /// Exit with status 1 when this holds, such as worse>0 (repeatable, or joined by commas)
    #[arg(long, value_name = "EXPR")]
    pub fail_on: Vec<String>,
    /// Colour the text
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Color::Auto)]
    pub color: Color,
    /// What is unchanged or cannot be told, too
    #[arg(short, long)]
    pub verbose: bool,
}

fn metrics(on: On) -> String {
    format!(
        "--fail-on EXPR is METRIC OPERATOR VALUE with an operator of > >= < <= = !=, and a METRIC of\n{}\n\nTimes have a unit (5ms), parts are \
         percents (3%). What is not known makes no condition true, and is said.",
        help(on)
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn help_is_reviewed() {
        insta::assert_snapshot!(Args::command().render_long_help().to_string());
        for name in ["report", "diff"] {
            let mut command = Args::command();
            let command = command.find_subcommand_mut(name).unwrap();
            insta::assert_snapshot!(format!("help_{name}"), command.render_help().to_string());
        }
    }
}
