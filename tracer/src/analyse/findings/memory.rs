//! Memory that grows.

use serde_json::json;

use super::{Facts, HOUR_NS, SUBJECT, called_by, evidence, function};
use crate::{
    analyse::names::Names,
    report::{
        frames::{cut, without_path},
        model::{Finding, Memory, MemoryProcess, MemoryStack, Severity, StackKey, Verdict},
        units::{bytes, duration, plain, portion},
    },
};

/// When the limit is reached within this, it is worth a look today.
const DAY_NS: u64 = 24 * HOUR_NS;
/// What is starting up grows, too: so long it must have been read for anybody to be called, and so long where only the rate says when the memory
/// is used up. Until then, no more than so many times as long may be left.
const LONG_NS: u64 = 20_000_000_000;
const LONGER_NS: u64 = 60_000_000_000;
const AHEAD: u64 = 10;
/// Of what is left, so much was taken within the window.
const TAKEN: f64 = 0.1;
/// Probability of such steps without growth above which nobody is called.
const CALLS: f64 = 0.001;
/// What was touched is told where it rests on so many samples, and is about as much as the memory grew by.
const SAMPLES: u64 = 12;
const EXPLAINS: std::ops::Range<f64> = 0.7..1.4;
/// A function is named that touched so much of it.
const MOST: f64 = 0.5;
/// Others, with so much of it, so many in all.
const WORTH: f64 = 0.05;
const NAMED: usize = 3;
/// Findings.
const FINDINGS_MAX: usize = 3;
/// Runtimes that touch their heap for the first time for as long as no collection is due, whatever the program keeps.
const FILL_UP: [&str; 5] = ["jvm", "node", "dotnet", "beam", "ruby"];
/// A Go program's does so until it has been collected so often in the window.
const COLLECTIONS: u64 = 3;

fn fills_up(pid: u32, facts: &Facts<'_>) -> bool {
    let runtime = (facts.runtime)(pid);
    let go = || facts.go.iter().find(|go| go.pid == pid);
    let collections = || go().and_then(|go| go.gc.as_ref()).map_or(0, |gc| gc.cycles);
    FILL_UP.contains(&runtime) || (runtime.starts_with("go") && collections() < COLLECTIONS)
}

/// How bad it is, which a rate alone does not tell: most of what grows has an end.
fn severity(process: &MemoryProcess, p_value: f64) -> Severity {
    let Some(left) = process.time_to_limit_ns.filter(|_| p_value < CALLS) else {
        return Severity::Low;
    };
    let read = process.read_ns;
    let grown = process.own_end.saturating_sub(process.own_start) as f64;
    let taken = process
        .room_bytes
        .is_some_and(|room| grown >= TAKEN * room as f64);
    if read >= LONG_NS && left <= read.saturating_mul(AHEAD) {
        Severity::High
    } else if read >= LONG_NS && left < DAY_NS && (read >= LONGER_NS || taken) {
        Severity::Medium
    } else {
        Severity::Low
    }
}

fn size(number: f64) -> String {
    plain(&bytes(number))
}

fn short(function: &str) -> String {
    cut(without_path(function), SUBJECT)
}

/// One finding for each process whose own memory grows.
pub(super) fn growth(memory: &Memory, facts: &Facts<'_>, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    let growing = |process: &&MemoryProcess| process.verdict == Verdict::Growing;
    for process in memory.by_process.iter().filter(growing).take(FINDINGS_MAX) {
        found.extend(of_process(process, memory, facts, names));
    }
}

fn of_process(
    process: &MemoryProcess,
    memory: &Memory,
    facts: &Facts<'_>,
    names: &mut Names<'_>,
) -> Option<Finding> {
    let (per_s, p_value) = process.growth_bytes_per_s.zip(process.p_value)?;
    let fills_up = fills_up(process.pid, facts);
    let left = process.time_to_limit_ns;
    let severity = if fills_up {
        Severity::Info
    } else {
        severity(process, p_value)
    };
    let told = told(process, memory, names);
    let first = told.first();
    let title_end = first.map_or_else(String::new, |first| {
        format!(
            ", {} of it first touched in {}",
            portion(first.share),
            short(&first.function)
        )
    });
    let said = match first {
        None => "; who touches it is not known well enough".to_owned(),
        Some(first) => {
            let others: Vec<String> = told[1..]
                .iter()
                .map(|told| format!("{} in {}", portion(told.share), short(&told.function)))
                .collect();
            let others = if others.is_empty() {
                String::new()
            } else {
                format!("; {}", others.join(", "))
            };
            others + &called_by(&first.function, first.stack.as_ref(), names)
        }
    };
    let limit = left.map_or_else(String::new, |ns| {
        format!("; at this rate no memory is left in {}", duration(ns))
    });
    let heap = if fills_up {
        "; a runtime's heap fills up to its limit before it is collected: a leak only if it grows beyond that"
    } else {
        ""
    };
    Some(Finding {
        id: "memory.growth".into(),
        severity,
        confidence: match process.read_ns {
            LONGER_NS.. => 0.9,
            LONG_NS.. => 0.8,
            _ => 0.6,
        },
        title: format!("memory grows by {}/s{title_end}", size(per_s)),
        detail: format!(
            "{} → {} of its own{limit}{said}{heap}",
            size(process.own_start as f64),
            size(process.own_end as f64)
        ),
        evidence: evidence(&[
            ("pid", json!(process.pid)),
            ("growth_bytes_per_s", json!(per_s)),
            (
                "growth_interval_bytes_per_s",
                json!(process.growth_interval_bytes_per_s),
            ),
            ("p_value", json!(p_value)),
            ("own_start", json!(process.own_start)),
            ("own_end", json!(process.own_end)),
            ("room_bytes", json!(process.room_bytes)),
            ("time_to_limit_ns", json!(left)),
            ("touched_bytes", json!(process.touched_bytes)),
            ("samples", json!(process.samples)),
            ("read_ns", json!(process.read_ns)),
        ]),
        remedy: first.map_or_else(
            || "Take a heap profile, and bound what is kept: caches by size or age, sessions by a time-out.".into(),
            |first| {
                format!(
                    "See what {} allocates and who keeps it: bound caches by size or age, end sessions. Who touches memory first need not be who keeps it: a heap profile tells.",
                    short(&first.function)
                )
            },
        ),
        stack: first.and_then(|first| first.stack.clone()),
        lock: None,
    })
}

/// A function, and its part of what was touched.
struct Told {
    function: String,
    stack: Option<StackKey>,
    bytes: u64,
    share: f64,
}

/// The functions that touched most of what a process grew by, when that is known and the first of them touched at least half.
fn told(process: &MemoryProcess, memory: &Memory, names: &mut Names<'_>) -> Vec<Told> {
    let own = |row: &&MemoryStack| row.pid == process.pid;
    let rows: Vec<&MemoryStack> = memory.by_stack.iter().filter(own).collect();
    let touched = process.touched_bytes.unwrap_or(0);
    let grown = process.own_end.saturating_sub(process.own_start) as f64;
    if process.samples < SAMPLES || !EXPLAINS.contains(&(touched as f64 / grown.max(1.0))) {
        return Vec::new();
    }
    // Each may touch memory in several places.
    let mut told: Vec<Told> = Vec::new();
    for row in rows.into_iter().filter(|row| row.stack.is_some()) {
        let function = function(names, row.stack.as_ref());
        match told.iter_mut().find(|known| known.function == function) {
            Some(known) => known.bytes += row.bytes,
            None => told.push(Told {
                function,
                stack: row.stack.clone(),
                bytes: row.bytes,
                share: 0.0,
            }),
        }
    }
    told.sort_by_key(|told| std::cmp::Reverse(told.bytes));
    for told in &mut told {
        told.share = told.bytes as f64 / grown.max(touched as f64);
    }
    if told.first().is_none_or(|first| first.share < MOST) {
        return Vec::new();
    }
    told.retain(|told| told.share >= WORTH);
    told.truncate(NAMED);
    told
}
