//! Goroutines that the collector proved to be leaked.

use serde_json::json;

use super::{SUBJECT, evidence, function};
use crate::{
    analyse::names::Names,
    report::{
        frames::{cut, without_path},
        model::{Finding, Go, GoProved, Severity},
        units::count,
    },
};

/// Adds the proof to leaks that are findings already, and makes others of what does not grow.
pub(super) fn leaks(go: &Go, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    let Some(proof) = &go.proof else { return };
    let mut told: Vec<&Option<String>> = Vec::new();
    for row in &proof.by_stack {
        if told.contains(&&row.created_at) {
            continue;
        }
        told.push(&row.created_at);
        let same = proof
            .by_stack
            .iter()
            .filter(|other| other.created_at == row.created_at);
        let proved: u64 = same.map(|row| row.count).sum();
        let known = found.iter_mut().find(|finding| {
            finding.id == "go.leak" && finding.evidence.get("created_at") == Some(&json!(row.created_at))
        });
        match known {
            Some(finding) => {
                finding.confidence = 1.0;
                finding.severity = finding.severity.max(Severity::High);
                finding.detail = format!(
                    "{} of them proved by the collector; {}",
                    count(proved),
                    finding.detail
                );
                finding.evidence.insert("proved".to_owned(), json!(proved));
            }
            None => found.push(finding(row, proved, names)),
        }
    }
}

fn finding(row: &GoProved, proved: u64, names: &mut Names<'_>) -> Finding {
    let creator = row.created_by.clone().unwrap_or_else(|| "the runtime".into());
    let stuck = function(names, row.stack.as_ref());
    let doing = row.wait_reason.as_deref().unwrap_or("waiting");
    Finding {
        id: "go.leak".into(),
        severity: Severity::Medium,
        confidence: 1.0,
        title: format!(
            "{} leaked goroutines: {} stuck in {} ({doing}), proved by the collector",
            cut(without_path(&creator), SUBJECT),
            count(proved),
            cut(without_path(&stuck), SUBJECT),
        ),
        detail: format!(
            "created at {}; nothing that runs can reach what they wait for, so none of them ever ends; they did not become more while ctrace traced",
            row.created_at.as_deref().unwrap_or("an unknown place"),
        ),
        evidence: evidence(&[
            ("created_by", json!(row.created_by)),
            ("created_at", json!(row.created_at)),
            ("count", json!(proved)),
            ("proved", json!(proved)),
            ("wait_reason", json!(row.wait_reason)),
            ("goids", json!(row.examples)),
        ]),
        remedy: format!(
            "Give what {creator} starts an end on every path, such as a context that is cancelled, or room in the channel for all results."
        ),
        stack: row.stack.clone(),
        lock: None,
    }
}
