//! What looks like a change and may be none: another load, or another name.

use super::{
    item::{Class, Item},
    judge::direction,
    matching::Pair,
    run::Run,
};
use crate::report::diff::{Basis, Matched, Thing};

/// Changes that differ by less than this factor are one change.
const AS_MUCH: f64 = 1.2;
/// Part of the other run's CPU time, with which a program would have come to the same waits.
const AS_BUSY: f64 = 0.5;
/// Times within this factor may be of one thing.
const RENAMED: f64 = 3.0;

/// How much the program did, by its own CPU time.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// CPU time of the second run to that of the first, per second each; None: not known.
    cpu: Option<f64>,
    /// Rates are per second, whatever was done in it.
    per_second: bool,
}

impl Work {
    /// Of two runs.
    #[must_use]
    pub fn of(runs: &[Run<'_>; 2], basis: &Basis) -> Self {
        let cpu = runs[0].running().zip(runs[1].running());
        Self {
            cpu: cpu
                .map(|(one, two)| two / one)
                .filter(|ratio| ratio.is_finite() && *ratio > 0.0),
            per_second: basis.unit == "second",
        }
    }

    /// Why a change of the time waited is none: nothing waits longer, and the program did as much less, or more.
    pub(super) fn explains(&self, thing: &Thing) -> Option<&'static str> {
        let of = |name: &str| thing.metrics.iter().find(|metric| metric.name == name);
        if !self.per_second || direction(of("p50")) != 0 || direction(of("p99")) != 0 {
            return None;
        }
        let time = of("time_per_s").or_else(|| of("growth_per_s"));
        let Some(ratio) = time.filter(|time| time.changed)?.ratio else {
            // Where it did not wait, the program must have done something.
            let other = self.cpu.map(|cpu| match thing.matched {
                Matched::OnlyBefore => cpu,
                _ => 1.0 / cpu,
            });
            return other
                .is_none_or(|other| other < AS_BUSY)
                .then_some("the program did much less in the run without it: --load says how much");
        };
        let (time, cpu) = (ratio.ln(), self.cpu?.ln());
        let same = time * cpu > 0.0 && (time - cpu).abs() <= AS_MUCH.ln();
        same.then_some(if cpu < 0.0 {
            "the program did less in the second run: --load says how much"
        } else {
            "the program did more in the second run: --load says how much"
        })
    }
}

/// Things without a counterpart: of each run, what they are and their time per second.
pub(super) type Alone<'a> = [Vec<(Class, &'a str, f64)>; 2];

fn per_s(item: &Item, run: &Run<'_>) -> f64 {
    item.sample.total_ns / run.duration_ns.max(1.0)
}

pub(super) fn alone<'a>(runs: &'a [Run<'_>; 2], pairs: &[Pair]) -> Alone<'a> {
    let of = |run: &'a Run<'_>, at: fn(&Pair) -> Option<usize>, matched: Matched| {
        pairs
            .iter()
            .filter(|pair| pair.matched == matched)
            .filter_map(|pair| run.items.get(at(pair)?))
            .map(|item| (item.class, item.kind.as_str(), per_s(item, run)))
            .collect()
    };
    [
        of(&runs[0], |pair| pair.before, Matched::OnlyBefore),
        of(&runs[1], |pair| pair.after, Matched::OnlyAfter),
    ]
}

/// The other run has something of the kind, with as much time, that this run has not.
pub(super) fn renamed(
    runs: &[Run<'_>; 2],
    (one, two): (Option<&Item>, Option<&Item>),
    alone: &Alone<'_>,
) -> bool {
    let (item, run, others) = match (one, two) {
        (Some(item), None) => (item, &runs[0], &alone[1]),
        (None, Some(item)) => (item, &runs[1], &alone[0]),
        _ => return false,
    };
    let own = per_s(item, run);
    others.iter().any(|&(class, kind, other)| {
        class == item.class && kind == item.kind && own <= RENAMED * other && other <= RENAMED * own
    })
}
