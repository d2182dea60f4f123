//! Which thing of one run is which of the other: by kind and code, the most alike first.

use std::cmp::Ordering;

use super::item::{Item, likeness, stands_in};
use crate::report::diff::Matched;

/// Less alike than this is not the same thing.
const LIKE: f64 = 0.3;
/// As alike as this, they are the same.
const SAME: f64 = 0.8;
/// Another kind of lock must be in code this much the same.
const REPLACED: f64 = 0.5;
/// A second candidate this close makes it ambiguous.
const CLOSE: f64 = 0.05;
/// Candidates of a thing that are looked at: the most alike.
const CANDIDATES_MAX: usize = 8;

/// Two things that are one, or one without a counterpart: indices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// In the first run.
    pub before: Option<usize>,
    /// In the second run.
    pub after: Option<usize>,
    /// How it was found.
    pub matched: Matched,
    /// How alike they are.
    pub likeness: f64,
    /// Another was as likely.
    pub ambiguous: bool,
}

/// Pairs all things, each once.
#[must_use]
pub fn pairs(before: &[Item], after: &[Item]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut free = (vec![true; before.len()], vec![true; after.len()]);
    greedy(before, after, &mut free, &mut pairs, false);
    greedy(before, after, &mut free, &mut pairs, true);
    let alone = |before, after, matched| Pair {
        before,
        after,
        matched,
        likeness: 0.0,
        ambiguous: false,
    };
    let left = |free: Vec<bool>| {
        free.into_iter()
            .enumerate()
            .filter(|(_, free)| *free)
            .map(|(at, _)| at)
    };
    pairs.extend(left(free.0).map(|at| alone(Some(at), None, Matched::OnlyBefore)));
    pairs.extend(left(free.1).map(|at| alone(None, Some(at), Matched::OnlyAfter)));
    pairs
}

/// How alike, and indices.
type Candidate = (f64, usize, usize);

/// Equally alike: the larger first, which come first in a report.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2)))
}

/// Keeps the best few, in order.
fn keep(best: Option<&mut Vec<Candidate>>, candidate: Candidate) {
    let Some(best) = best else { return };
    let at = best.partition_point(|known| order(known, &candidate).is_lt());
    if at < CANDIDATES_MAX {
        best.insert(at, candidate);
        best.truncate(CANDIDATES_MAX);
    }
}

/// The most alike first; of `replaced` ones, another kind of lock in the same code.
fn greedy(
    before: &[Item],
    after: &[Item],
    free: &mut (Vec<bool>, Vec<bool>),
    pairs: &mut Vec<Pair>,
    replaced: bool,
) {
    let mut of_before: Vec<Vec<Candidate>> = vec![Vec::new(); before.len()];
    let mut of_after: Vec<Vec<Candidate>> = vec![Vec::new(); after.len()];
    for (at, one) in before.iter().enumerate().filter(|(at, _)| free.0[*at]) {
        for (other_at, other) in after.iter().enumerate().filter(|(at, _)| free.1[*at]) {
            let fits = one.class == other.class
                && if replaced {
                    one.kind != other.kind && one.excludes && other.excludes
                } else {
                    one.kind == other.kind
                };
            if !fits {
                continue;
            }
            let alike = if replaced {
                stands_in(one, other)
            } else {
                likeness(one, other)
            };
            if alike >= if replaced { REPLACED } else { LIKE } {
                for best in [of_before.get_mut(at), of_after.get_mut(other_at)] {
                    keep(best, (alike, at, other_at));
                }
            }
        }
    }
    let mut candidates: Vec<Candidate> = of_before.into_iter().chain(of_after).flatten().collect();
    candidates.sort_by(order);
    candidates.dedup();
    for &(alike, at, other_at) in &candidates {
        if !free.0[at] || !free.1[other_at] {
            continue;
        }
        // Those that found a more alike one are no rivals.
        let rival = |&&(rival, one, other): &&Candidate| {
            ((one == at) != (other == other_at)) && free.0[one] && free.1[other] && alike - rival < CLOSE
        };
        let ambiguous = candidates.iter().find(rival).is_some();
        free.0[at] = false;
        free.1[other_at] = false;
        pairs.push(Pair {
            before: Some(at),
            after: Some(other_at),
            matched: match () {
                () if replaced => Matched::Replaced,
                () if alike >= SAME => Matched::Same,
                () => Matched::Similar,
            },
            likeness: alike.min(1.0),
            ambiguous,
        });
    }
}

#[cfg(test)]
#[path = "matching_tests.rs"]
mod tests;
