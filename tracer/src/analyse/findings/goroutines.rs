//! Goroutines that never end.

use rustc_hash::FxHashSet;
use serde_json::json;

use super::{LEAK_CONFIDENCE, SUBJECT, SURE, evidence, function, growth};
use crate::{
    analyse::{
        asked,
        go_shapes::{self, Shape},
        names::Names,
    },
    report::{
        frames::{cut, without_path},
        model::{Finding, Go, GoStack, Severity, Verdict},
        units::{count, duration},
    },
};

/// Goroutines of one creator that grow without end: one finding, of the place where most of them are stuck.
pub(super) fn leaks(go: &Go, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    let mut told: Vec<&Option<String>> = Vec::new();
    for row in &go.by_stack {
        if row.verdict != Verdict::Leaking
            || row.confidence < LEAK_CONFIDENCE
            || told.contains(&&row.created_at)
        {
            continue;
        }
        let ticks = row.waits_on.as_ref().is_some_and(|on| on.ticks);
        let known = row
            .stack
            .as_ref()
            .and_then(|key| names.id(key))
            .and_then(|id| go_shapes::of(names.frames(id), row.wait_reason.as_deref(), ticks));
        if known.is_some_and(Shape::never_leaks) {
            continue;
        }
        told.push(&row.created_at);
        let creator = row.created_by.clone().unwrap_or_else(|| "the runtime".into());
        let same = |other: &&GoStack| other.created_at == row.created_at && other.verdict == Verdict::Leaking;
        let (mut count_, mut growth) = (0, 0.0);
        for other in go.by_stack.iter().filter(same) {
            count_ += other.count;
            growth += other.growth_per_s;
        }
        let stuck = function(names, row.stack.as_ref());
        let doing = row.wait_reason.clone().unwrap_or_else(|| row.status.clone());
        let asked = asked::answerable(None, &row.asked_by, &FxHashSet::default(), names)
            .map_or_else(String::new, |(function, _)| format!("asked for in {function}; "));
        found.push(Finding {
            id: "go.leak".into(),
            severity: if row.confidence >= SURE {
                Severity::High
            } else {
                Severity::Medium
            },
            confidence: row.confidence,
            title: format!(
                "{} leaks goroutines: {} stuck in {} ({doing}), {growth:+.1}/s",
                cut(without_path(&creator), SUBJECT),
                count(count_),
                cut(without_path(&stuck), SUBJECT),
            ),
            detail: format!(
                "{}{}{asked}created at {}; {} began, {} ended{}, the longest has been there for {}",
                known.map_or_else(String::new, |shape| format!("they {}; ", shape.sentence())),
                to(row),
                row.created_at.as_deref().unwrap_or("an unknown place"),
                count(row.opened),
                count(row.closed),
                if row.steps.is_empty() {
                    String::new()
                } else {
                    format!(", {}", growth::how(&row.steps))
                },
                duration(row.wait_ns.max_ns)
            ),
            evidence: evidence(&[
                ("created_by", json!(row.created_by)),
                ("created_at", json!(row.created_at)),
                ("count", json!(count_)),
                ("opened", json!(row.opened)),
                ("closed", json!(row.closed)),
                ("growth_per_s", json!(growth)),
                ("growth_interval_per_s", json!(row.growth_interval_per_s)),
                ("stays", json!(row.stays)),
                ("steps", json!(row.steps)),
                ("wait_reason", json!(row.wait_reason)),
                ("oldest_ns", json!(row.wait_ns.max_ns)),
                ("waits_on", json!(row.waits_on)),
                ("peers", json!(row.peers)),
            ]),
            remedy: match known.and_then(Shape::remedy) {
                Some(remedy) => sentence(remedy),
                None => remedy(row.wait_reason.as_deref(), &creator),
            },
            stack: row.stack.clone(),
            lock: None,
        });
    }
}

/// Hosts that their connections go to.
fn to(row: &GoStack) -> String {
    let asked = row.peers_asked;
    let Some(most) = row.peers.first() else {
        return String::new();
    };
    let host = format!("{}://{}", most.scheme, most.host);
    if most.connections == asked {
        format!("all {} asked to {host}; ", count(asked))
    } else {
        format!(
            "{} of {} asked to {host}; ",
            count(most.connections),
            count(asked)
        )
    }
}

/// With a capital and a full stop.
fn sentence(words: &str) -> String {
    let mut rest = words.chars();
    let first = rest.next().map(|c| c.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), rest.as_str())
}

/// What ends a goroutine that is stuck so.
fn remedy(reason: Option<&str>, creator: &str) -> String {
    match reason {
        Some(reason) if reason.starts_with("chan send") => format!(
            "Nobody receives what they send: give {creator}'s channel room for all results, or send in a select with ctx.Done()."
        ),
        Some(reason) if reason.starts_with("chan receive") => format!(
            "Nobody sends to, or closes, the channel that they receive from: close it on every path out of {creator}."
        ),
        Some(reason) if reason.starts_with("select") => {
            format!(
                "No case of their select ever ends them: give what {creator} starts a context or a done channel, and end it."
            )
        }
        _ => format!("Give what {creator} starts an end on every path, such as a context that is cancelled."),
    }
}
