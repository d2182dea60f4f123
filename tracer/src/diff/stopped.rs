//! Deadlocks that one run has and the other has not.

use super::{
    WINDOW_MIN_NS,
    judge::{Draft, Rule},
    run::Run,
};
use crate::report::diff::{Change, Matched, Thing};

/// None without any, and where one run cannot tell whether it has some.
#[must_use]
pub fn deadlocks(runs: &[Run<'_>; 2]) -> Option<Draft> {
    let number = |run: &Run<'_>| run.reports.last().map_or(0, |report| report.deadlocks.len());
    let (verdict, why, matched) = match runs.each_ref().map(number) {
        [0, 0] => return None,
        _ if !runs.iter().all(looked) => return None,
        _ if !runs
            .iter()
            .all(|run| run.complete && run.duration_ns >= WINDOW_MIN_NS) =>
        {
            (
                Change::NotEnoughData,
                "threads wait for each other in one run; a run has losses, or is shorter than a second",
                Matched::Same,
            )
        }
        [0, _] => (
            Change::Worse,
            "threads wait for each other now",
            Matched::OnlyAfter,
        ),
        [_, 0] => (
            Change::Improved,
            "no threads wait for each other any more",
            Matched::OnlyBefore,
        ),
        _ => (
            Change::Unchanged,
            "threads wait for each other in both runs",
            Matched::Same,
        ),
    };
    Some(Draft {
        thing: Thing {
            class: "deadlock".to_owned(),
            kind: "deadlock".to_owned(),
            was: None,
            name: "deadlock".to_owned(),
            functions: Vec::new(),
            verdict,
            why: why.to_owned(),
            matched,
            similarity: None,
            ambiguous: false,
            rows: [1, 1],
            lost_ns_per_s: [None, None],
            metrics: Vec::new(),
        },
        too_small: false,
        rule: Rule::Decided,
    })
}

/// Deadlocks are looked for among locks.
fn looked(run: &Run<'_>) -> bool {
    let of = |only: &str| only == "locks";
    let last = run.reports.last();
    last.is_some_and(|report| report.locks.is_some() && report.options.only.iter().any(|only| of(only)))
}
