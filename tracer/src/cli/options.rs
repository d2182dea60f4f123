//! What was typed, validated. Each error says what was wrong and how to say it right.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail, ensure};

use super::{args::TraceArgs, go_write::GoWrite};
use crate::{
    capture::plan::Collectors,
    fail_on::{self, Condition},
};

/// Where JSON goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonTo {
    /// Standard output, which then carries nothing else.
    Stdout,
    /// A file.
    File(PathBuf),
}

/// How to trace.
#[derive(Clone, Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "switches of the command line, each independent of the others"
)]
pub struct Options {
    /// Stop after.
    pub duration: Option<Duration>,
    /// Report every.
    pub interval: Option<Duration>,
    /// JSON.
    pub json: Option<JsonTo>,
    /// What to collect.
    pub collectors: Collectors,
    /// Sleeps shorter than this are not kept.
    pub min_wait: Duration,
    /// Rows per table.
    pub top: u32,
    /// Age of a leak suspect.
    pub older: Option<Duration>,
    /// Probes in programs may be used.
    pub uprobes: bool,
    /// What may be written into Go programs; None: nothing.
    pub go_write: Option<GoWrite>,
    /// Who makes goroutines is told at every `go` statement.
    pub go_creators: bool,
    /// Everything that goroutines wait for is timed.
    pub go_waits: bool,
    /// Follow children.
    pub follow: bool,
    /// Report probes and remedies too.
    pub verbose: bool,
    /// Nothing on stderr.
    pub quiet: bool,
    /// Size of the ring between the probes and us.
    pub ring_bytes: u32,
    /// One in so many recognised stacks is copied too and compared; 0: none is recognised.
    pub shadow: u32,
    /// Own cost to be held under, in percent of one CPU.
    pub budget: Option<f64>,
    /// One sleep in so many is recorded, whatever the cost.
    pub sample: u32,
    /// Conditions that make the exit status 1.
    pub fail_on: Vec<Condition>,
}

/// Longest time that may be asked for: ten years.
const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);
const RING_BYTES: u32 = 16 << 20;
/// One in so many is a few ns for each stack.
const SHADOW: u32 = 1024;
const ONE_IN_MAX: u32 = 65_536;

impl Options {
    /// Validates.
    pub fn new(args: &TraceArgs) -> Result<Self> {
        let positive = |name: &str, text: &Option<String>| -> Result<Option<Duration>> {
            let Some(text) = text else { return Ok(None) };
            let time = duration(name, text)?;
            ensure!(!time.is_zero(), "--{name} must be more than nothing, such as 5s");
            Ok(Some(time))
        };
        let collectors = args.only.as_deref().map_or(Ok(Collectors::ALL), collectors)?;
        ensure!(
            collectors.go || !args.go_waits,
            "--go-waits needs the collector go: name it in --only"
        );
        Ok(Self {
            duration: positive("duration", &args.duration)?,
            interval: positive("interval", &args.interval)?,
            json: args.json.as_ref().map(|path| {
                if path.as_os_str() == "-" {
                    JsonTo::Stdout
                } else {
                    JsonTo::File(path.clone())
                }
            }),
            collectors,
            min_wait: duration("min-wait", &args.min_wait)?,
            top: args.top.max(1),
            older: positive("older", &args.older)?,
            uprobes: !args.no_uprobes,
            go_write: go_write(args)?,
            go_creators: args.go_creators,
            go_waits: args.go_waits,
            follow: args.follow,
            verbose: args.verbose > 0,
            quiet: args.quiet,
            ring_bytes: ring_bytes(std::env::var("CTRACE_RING_BYTES").ok().as_deref())?,
            shadow: one_in("CTRACE_SHADOW", SHADOW)?,
            budget: args.budget.as_deref().map(budget).transpose()?,
            sample: one_in("CTRACE_SAMPLE", 1)?.max(1),
            fail_on: fail_on::parse(&args.fail_on, fail_on::On::Report)?,
        })
    }
}

fn go_write(args: &TraceArgs) -> Result<Option<GoWrite>> {
    let Some(list) = &args.go_write else {
        ensure!(!args.go_write_force, "--go-write-force says how: add --go-write");
        return Ok(None);
    };
    let reads = args.only.as_deref().map_or(Ok(Collectors::ALL), collectors)?.go;
    ensure!(
        reads,
        "--go-write needs what --only leaves out: add go to its list"
    );
    let rate = duration("go-write-rate", &args.go_write_rate)?;
    GoWrite::parse(list, rate, args.go_write_force).map(Some)
}

/// `5` (seconds), `5s`, `250ms`, `2m`, `1h`.
fn duration(name: &str, text: &str) -> Result<Duration> {
    let parsed = if let Ok(seconds) = text.parse::<f64>() {
        Duration::try_from_secs_f64(seconds).ok()
    } else {
        humantime::parse_duration(text).ok()
    };
    match parsed {
        Some(time) if time <= LONGEST => Ok(time),
        Some(_) => bail!("--{name} {text} is longer than ten years: use a shorter time, such as 1h"),
        None => bail!(
            "--{name} wants a time such as 5, 250ms, 5s, 2m or 1h, not `{}`",
            text.escape_debug()
        ),
    }
}

pub(super) fn collectors(list: &str) -> Result<Collectors> {
    let mut chosen = Collectors {
        locks: false,
        fds: false,
        sched: false,
        io: false,
        go: false,
        memory: false,
    };
    for name in list.split(',').map(str::trim) {
        match name {
            "locks" => chosen.locks = true,
            "fds" => chosen.fds = true,
            "sched" => chosen.sched = true,
            "io" => chosen.io = true,
            "go" => chosen.go = true,
            "memory" => chosen.memory = true,
            _ => bail!(
                "--only wants a list of locks, fds, sched, io, go, memory, not `{}`",
                name.escape_debug()
            ),
        }
    }
    Ok(chosen)
}

/// The environment's `CTRACE_RING_BYTES`, for hosts where the default is too much or too little.
fn ring_bytes(text: Option<&str>) -> Result<u32> {
    let Some(text) = text else { return Ok(RING_BYTES) };
    match text.parse::<u32>() {
        Ok(bytes) if bytes.is_power_of_two() && (4096..=1 << 30).contains(&bytes) => Ok(bytes),
        _ => bail!(
            "CTRACE_RING_BYTES must be a power of two from 4096 to 1073741824, not `{}`",
            text.escape_debug()
        ),
    }
}

/// A setting of the environment for tests and the suspicious. `CTRACE_SHADOW`: one recognised stack in so many is compared, 0:
/// none is recognised. `CTRACE_SAMPLE`: one sleep in so many is recorded.
fn one_in(name: &str, default: u32) -> Result<u32> {
    let Ok(text) = std::env::var(name) else {
        return Ok(default);
    };
    power_of_two(name, &text)
}

fn power_of_two(name: &str, text: &str) -> Result<u32> {
    match text.parse::<u32>() {
        Ok(0) => Ok(0),
        Ok(one_in) if one_in.is_power_of_two() && one_in <= ONE_IN_MAX => Ok(one_in),
        _ => bail!(
            "{name} must be 0 or a power of two up to {ONE_IN_MAX}, not `{}`",
            text.escape_debug()
        ),
    }
}

/// `1%` or `1`.
fn budget(text: &str) -> Result<f64> {
    let number = text.trim().trim_end_matches('%').trim_end();
    match number.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100_000.0 => Ok(percent),
        _ => bail!(
            "--budget wants a part of one CPU such as 1% or 0.5%, not `{}`",
            text.escape_debug()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let read = |text| duration("duration", text).unwrap();
        assert_eq!(read("5"), Duration::from_secs(5));
        assert_eq!(read("0.5"), Duration::from_millis(500));
        assert_eq!(read("250ms"), Duration::from_millis(250));
        assert_eq!(read("2m"), Duration::from_mins(2));
        for wrong in ["", "x", "-1", "5 parsecs", "NaN", "inf", "1e300", "99999999h"] {
            assert!(duration("duration", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn collectors_are_a_list() {
        let chosen = collectors("locks, sched").unwrap();
        assert!(chosen.locks && chosen.sched && !chosen.fds && !chosen.io);
        assert!(collectors("lock").is_err());
        assert!(collectors("").is_err());
    }

    #[test]
    fn a_budget_is_a_part_of_a_cpu() {
        assert!((budget("1%").unwrap() - 1.0).abs() < 1e-9);
        assert!((budget("0.25").unwrap() - 0.25).abs() < 1e-9);
        for wrong in ["", "%", "0", "-1%", "x", "NaN", "inf", "1e9%"] {
            assert!(budget(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_in_so_many_is_a_power_of_two() {
        assert_eq!(power_of_two("X", "16").unwrap(), 16);
        assert_eq!(power_of_two("X", "0").unwrap(), 0);
        for wrong in ["3", "-1", "", "131072"] {
            assert!(power_of_two("X", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_ring_is_a_power_of_two() {
        assert_eq!(ring_bytes(Some("65536")).unwrap(), 65_536);
        for wrong in ["0", "65535", "1024", "-4096", "x"] {
            assert!(ring_bytes(Some(wrong)).is_err());
        }
    }
}
