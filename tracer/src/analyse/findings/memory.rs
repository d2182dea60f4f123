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
/// And within an hour, it is when the memory was seen to grow for so long.
const LONG_NS: u64 = 20_000_000_000;
/// What was touched is told where it rests on so many samples, and is about as much as the memory grew by.
const SAMPLES: u64 = 12;
const EXPLAINS: std::ops::Range<f64> = 0.5..2.0;
/// A function is named that touched so much of it.
const MOST: f64 = 0.5;
/// Others, with so much of it, so many in all.
const WORTH: f64 = 0.05;
const NAMED: usize = 3;
/// No more than this is claimed: growth is proved, not that it never ends.
const SUREST: f64 = 0.9;
/// Runtimes that touch their heap for the first time for as long as no collection is due, whatever the program keeps.
const FILL_UP: [&str; 2] = ["jvm", "node"];

fn size(number: f64) -> String {
    plain(&bytes(number))
}

fn short(function: &str) -> String {
    cut(without_path(function), SUBJECT)
}

/// One finding for each process whose own memory grows.
pub(super) fn growth(memory: &Memory, facts: &Facts<'_>, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    for process in &memory.by_process {
        if process.verdict == Verdict::Growing {
            found.extend(of_process(process, memory, facts, names));
        }
    }
}

fn of_process(
    process: &MemoryProcess,
    memory: &Memory,
    facts: &Facts<'_>,
    names: &mut Names<'_>,
) -> Option<Finding> {
    let (per_s, p_value) = process.growth_bytes_per_s.zip(process.p_value)?;
    let fills_up = FILL_UP.contains(&(facts.runtime)(process.pid));
    let left = process.time_to_limit_ns;
    let within = |ns| left.is_some_and(|left| left < ns);
    let severity = if fills_up {
        Severity::Info
    } else if within(HOUR_NS) && facts.window_ns >= LONG_NS {
        Severity::High
    } else if within(DAY_NS) {
        Severity::Medium
    } else {
        Severity::Low
    };
    let told = told(process, memory, names);
    let first = told.first();
    let title_end = first.map_or_else(String::new, |first| {
        format!(
            ", {} of it first touched in {}",
            portion(first.share),
            first.function
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
        format!("; no memory is left in {}", duration(ns))
    });
    let heap = if fills_up {
        "; a runtime's heap fills up to its limit before it is collected: a leak only if it grows beyond that"
    } else {
        ""
    };
    Some(Finding {
        id: "memory.growth".into(),
        severity,
        confidence: (1.0 - p_value).min(SUREST),
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
            ("touched_bytes", json!(memory.touched_bytes)),
            ("samples", json!(memory.samples)),
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
    let touched: u64 = rows.iter().map(|row| row.bytes).sum();
    let samples: u64 = rows.iter().map(|row| row.samples).sum();
    let grown = process.own_end.saturating_sub(process.own_start) as f64;
    if samples < SAMPLES || !EXPLAINS.contains(&(touched as f64 / grown.max(1.0))) {
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
        told.share = told.bytes as f64 / touched as f64;
    }
    if told.first().is_none_or(|first| first.share < MOST) {
        return Vec::new();
    }
    told.retain(|told| told.share >= WORTH);
    told.truncate(NAMED);
    told
}
