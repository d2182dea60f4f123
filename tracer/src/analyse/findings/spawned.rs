//! Threads that never end.

use serde_json::json;

use super::{Facts, LEAK_CONFIDENCE, SUBJECT, SURE, called_by, evidence, function, growth, word};
use crate::{
    analyse::names::Names,
    report::{
        frames::{cut, without_path},
        model::{Finding, Severity, SpawnSleep, SpawnStack, Spawns, Verdict},
        units::{count, duration},
    },
};

/// Of the threads that stay, so many must wait each for something of its own, for ever: what waits for work shares it, and what serves a
/// client ends with it.
const ALONE: f64 = 0.6;

/// Runtimes in which each thread has a word of its own to wait on, also in an idle pool that is still being filled.
const PARKS: [&str; 3] = ["jvm", "python", "node"];

/// One finding for each function that makes threads which stay. A Go program's threads are its runtime's: its goroutines are told instead.
pub(super) fn leaks(threads: &Spawns, facts: &Facts<'_>, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    let leaks = |row: &&SpawnStack| {
        row.verdict == Verdict::Leaking
            && row.confidence >= LEAK_CONFIDENCE
            && row.alone as f64 >= row.live as f64 * ALONE
    };
    let mut told: Vec<(u32, String)> = Vec::new();
    for row in threads.by_stack.iter().filter(leaks) {
        let maker = function(names, row.stack.as_ref());
        let runtime = (facts.runtime)(row.pid);
        if runtime.starts_with("go") || told.contains(&(row.pid, maker.clone())) {
            continue;
        }
        // It may do so in several lines.
        let same: Vec<&SpawnStack> = threads
            .by_stack
            .iter()
            .filter(|other| leaks(other) && other.pid == row.pid)
            .filter(|other| function(names, other.stack.as_ref()) == maker)
            .collect();
        let sum = |of: fn(&SpawnStack) -> u64| same.iter().map(|row| of(row)).sum::<u64>();
        let (created, ended, live) = (sum(|row| row.created), sum(|row| row.ended), sum(|row| row.live));
        let growth_per_s: f64 = same.iter().map(|row| row.growth_per_s).sum();
        let oldest_ns = same.iter().filter_map(|row| row.oldest_ns).max();
        let interval = row.growth_interval_per_s.filter(|_| same.len() == 1);
        told.push((row.pid, maker.clone()));
        let way = called_by(&maker, row.stack.as_ref(), names);
        let most = row.asleep_in.first();
        let stuck = most.map(|sleep| place(sleep, names));
        let said = stuck.as_ref().map_or_else(String::new, |(stuck, reason)| {
            format!(
                "; {} of them sleep in {stuck} ({reason})",
                count(most.map_or(0, |sleep| sleep.count))
            )
        });
        let steps = if row.steps.is_empty() {
            String::new()
        } else {
            format!(", {}", growth::how(&row.steps))
        };
        found.push(Finding {
            id: "thread.leak".into(),
            severity: if row.confidence >= SURE && !PARKS.contains(&runtime) {
                Severity::High
            } else {
                Severity::Medium
            },
            confidence: row.confidence,
            title: format!(
                "{} makes threads that stay: {} of {} still live, {:+.1}/s",
                cut(without_path(&maker), SUBJECT),
                count(live),
                count(created),
                growth_per_s
            ),
            detail: format!(
                "{} ended{steps}, the oldest has lived for {}{said}{way}",
                count(ended),
                oldest_ns.map_or_else(|| "an unknown time".into(), duration)
            ),
            evidence: evidence(&[
                ("created", json!(created)),
                ("ended", json!(ended)),
                ("live", json!(live)),
                ("growth_per_s", json!(growth_per_s)),
                ("growth_interval_per_s", json!(interval)),
                ("stays", json!(row.stays)),
                ("steps", json!(row.steps)),
                ("asleep_in", json!(row.asleep_in)),
            ]),
            remedy: "See what they wait for, and whether anybody can still end it: give waits a time-out or a way to be cancelled, and bound how many threads there may be.".into(),
            stack: most
                .and_then(|sleep| sleep.stack.clone())
                .or_else(|| row.stack.clone()),
            lock: None,
        });
    }
}

/// Where, and why.
fn place(sleep: &SpawnSleep, names: &mut Names<'_>) -> (String, String) {
    let function = function(names, sleep.stack.as_ref());
    (cut(without_path(&function), SUBJECT), word(sleep.reason))
}
