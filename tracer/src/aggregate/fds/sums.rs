//! All askers of one stack together: what is too slow for a verdict in each of them may be a leak in the sum.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::report::{ReportInput, Survivors};
use super::{FdTable, RowKey};
use crate::aggregate::ages::Ages;
use crate::aggregate::series::Series;
use crate::aggregate::verdict::{self, Evidence, LEAK_CONFIDENCE};
use crate::report::model::{FdKind, FdShared, FdStack, Verdict};
use crate::stacks::StackId;

/// From so many open a row that is a pool by itself takes no part in a sum: with fewer, chance makes one of a slow leak.
const POOL: u64 = 20;

/// All rows of one stack.
#[derive(Clone, Debug)]
pub(super) struct Sum {
    pub(super) series: Series,
    pub(super) deaths: Ages,
}

/// Which stacks have rows, and the sums of those that have several: at most one for two rows.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) all: Vec<Sum>,
    /// A stack's first row.
    first: FxHashMap<StackId, u32>,
}

impl Sums {
    /// Whether a stack has a row.
    pub(super) fn has(&self, stack: StackId) -> bool {
        self.first.contains_key(&stack)
    }
}

impl FdTable {
    /// A row that has just been made becomes a part of its stack's sum; the second one makes it, from the first.
    pub(super) fn join_sum(&mut self, row: u32) {
        let (RowKey::Stack(stack, _) | RowKey::Others(stack)) = self.rows[row as usize].key else {
            return;
        };
        let first = *self.sums.first.entry(stack).or_insert(row);
        if first == row {
            return;
        }
        let sum = self.rows[first as usize].sum.unwrap_or_else(|| {
            let first = &mut self.rows[first as usize];
            let sum = self.sums.all.len() as u32;
            self.sums.all.push(Sum {
                series: first.series.clone(),
                deaths: first.deaths.clone(),
            });
            first.sum = Some(sum);
            sum
        });
        self.rows[row as usize].sum = Some(sum);
    }

    /// Sums that leak or grow, without the parts that have a verdict of their own. `rows` and `survivors` are those of the
    /// table's rows, in their order.
    pub(super) fn shared(
        &self,
        rows: &[FdStack],
        survivors: &[Survivors],
        input: &ReportInput<'_>,
    ) -> Vec<FdShared> {
        let mut parts: Vec<Vec<usize>> = self.sums.all.iter().map(|_| Vec::new()).collect();
        for (at, row) in self.rows.iter().enumerate() {
            if let Some(parts) = row.sum.and_then(|sum| parts.get_mut(sum as usize)) {
                parts.push(at);
            }
        }
        let sums = self.sums.all.iter().zip(parts);
        let mut shared: Vec<FdShared> = sums
            .filter_map(|(sum, parts)| self.one_shared(sum.clone(), &parts, rows, survivors, input))
            .collect();
        shared.sort_by_key(|sum| std::cmp::Reverse(sum.live));
        shared
    }

    fn one_shared(
        &self,
        mut rest: Sum,
        parts: &[usize],
        rows: &[FdStack],
        survivors: &[Survivors],
        input: &ReportInput<'_>,
    ) -> Option<FdShared> {
        let (own, parts): (Vec<usize>, Vec<usize>) =
            parts.iter().partition(|&&at| is_judged_alone(&rows[at]));
        for row in own.into_iter().map(|at| &self.rows[at]) {
            rest.series.without(&row.series);
            rest.deaths.without(&row.deaths);
        }
        let &[first, _, ..] = &parts[..] else { return None };
        let mut births: Vec<u64> = Vec::new();
        let mut kinds: BTreeSet<FdKind> = BTreeSet::new();
        for &at in &parts {
            births.extend_from_slice(&survivors[at].births);
            kinds.extend(self.rows[at].kinds.keys());
        }
        births.sort_unstable();
        let judged = verdict::judge(&Evidence {
            complete: self.incomplete.is_empty(),
            mixed: rows[first].stack.is_none(),
            series: &rest.series,
            line: &self.timeline,
            now_ns: input.now_ns,
            births: &births,
            deaths: &rest.deaths,
            before: &self.before_closed(kinds.iter()),
            older_ns: input.older_ns,
            resolution_ns: 0,
            visitors: parts.iter().any(|&at| self.rows[at].is_accepted()),
        });
        matches!(judged.verdict, Verdict::Leaking | Verdict::Growing).then(|| FdShared {
            pid: self.tgid,
            stack: rows[first].stack.clone(),
            askers: parts.len() as u64,
            opened: rest.series.opened,
            closed: rest.series.closed,
            live: rest.series.live(),
            verdict: judged.verdict,
            confidence: judged.confidence,
            growth_per_s: judged.growth_per_s,
        })
    }
}

/// Whether a row is told by itself, or is known to be no part of a leak.
pub(crate) fn is_judged_alone(row: &FdStack) -> bool {
    match row.verdict {
        Verdict::Leaking => row.confidence >= LEAK_CONFIDENCE,
        Verdict::Pool => row.live >= POOL,
        _ => false,
    }
}
