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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        report::{model::GoProof, sample},
        stacks::{KernelSymbols, Stacks, Symbolizer},
    };

    fn told(found: &mut Vec<Finding>, by_stack: Vec<GoProved>) {
        let mut go = sample::contended().go.unwrap();
        go.proof = Some(GoProof {
            searches: 1,
            blocked: 900,
            goroutines: by_stack.iter().map(|row| row.count).sum(),
            by_stack,
        });
        let (mut stacks, mut symbolizer, mut kernel) =
            (Stacks::new(), Symbolizer::new(), KernelSymbols::new());
        leaks(
            &go,
            &mut Names::new(&mut stacks, &mut symbolizer, &mut kernel),
            found,
        );
    }

    fn row(place: &str, reason: &str, count: u64) -> GoProved {
        GoProved {
            stack: None,
            created_by: Some("main.fanOut".to_owned()),
            created_at: Some(place.to_owned()),
            wait_reason: Some(reason.to_owned()),
            count,
            examples: vec![23],
        }
    }

    #[test]
    fn each_go_statement_is_one_finding_and_a_known_one_gets_sure() {
        let rows = || {
            vec![
                row("a.go:1", "chan send", 97),
                row("b.go:2", "select", 23),
                row("a.go:1", "select", 5),
            ]
        };
        let mut found = Vec::new();
        told(&mut found, rows());
        let titles: Vec<&str> = found.iter().map(|finding| &*finding.title).collect();
        assert_eq!(
            titles,
            [
                "main.fanOut leaked goroutines: 102 stuck in code whose stack was not taken (chan send), proved by the collector",
                "main.fanOut leaked goroutines: 23 stuck in code whose stack was not taken (select), proved by the collector",
            ]
        );
        assert!(
            found
                .iter()
                .all(|finding| (finding.severity, finding.confidence) == (Severity::Medium, 1.0))
        );
        // The same once more: what is told already is not told again.
        found.truncate(1);
        found[0].confidence = 0.3;
        told(&mut found, rows());
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].severity, found[0].confidence), (Severity::High, 1.0));
        assert!(
            found[0]
                .detail
                .starts_with("102 of them proved by the collector; "),
            "{}",
            found[0].detail
        );
    }

    #[test]
    fn a_search_that_found_none_says_nothing() {
        let mut found = Vec::new();
        told(&mut found, Vec::new());
        assert!(found.is_empty());
    }
}
