//! Metrics of a comparison.

use super::{Measured, Metric, Source, Unit};
use crate::report::diff::{Change, Diff};

/// All of them.
pub(super) const METRICS: &[Metric] = &[
    metric("worse", "things that got worse", |diff| of(diff, Change::Worse)),
    metric("improved", "things that improved", |diff| {
        of(diff, Change::Improved)
    }),
    metric(
        "differs",
        "things that changed, neither for good nor bad",
        |diff| of(diff, Change::Differs),
    ),
    metric("unchanged", "things without a change", |diff| {
        of(diff, Change::Unchanged)
    }),
    metric(
        "not_enough_data",
        "things that there is too little of to tell",
        |diff| of(diff, Change::NotEnoughData),
    ),
];

const fn metric(name: &'static str, help: &'static str, measure: fn(&Diff) -> Measured) -> Metric {
    Metric {
        name,
        unit: Unit::Number,
        help,
        source: Source::Diff(measure),
    }
}

fn of(diff: &Diff, change: Change) -> Measured {
    let counts = &diff.counts;
    let count = match change {
        Change::Worse => counts.worse,
        Change::Improved => counts.improved,
        Change::Differs => counts.differs,
        Change::Unchanged => counts.unchanged,
        Change::NotEnoughData => counts.not_enough_data,
    };
    let first = diff.things.iter().find(|thing| thing.verdict == change);
    let of = first.map(|thing| {
        format!(
            "the first is {} {}",
            thing.kind.escape_debug(),
            thing.name.escape_debug()
        )
    });
    Measured::Known(count as f64, of.unwrap_or_default())
}
