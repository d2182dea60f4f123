//! Staircases: growth in steps that come at a period, and which periods there are.
//!
//! What is looked at are the times at which those still alive were born: births close to each other are one step. A
//! period is a chain of steps: from one step the next is expected a period later, within a tolerance; found or not,
//! the search goes on from there, so that neither a jitter of each step nor one that adds up breaks it. A job leaves a
//! step at (nearly) every expected time, and that is what chance does not: were the steps spread at random with the
//! density that they have around each expected time (so a load that changes counts for nothing), a time would be
//! met with a known probability; the chance that as many are met is the tail of a sum of such trials. It is multiplied
//! by the number of all chains tried (Bonferroni), and a period is told below [`ALPHA`]. The steps of a period that is
//! found are taken out, and the rest is searched for another.

use super::stats;
use crate::report::model;

/// Chance of a period where there is none, over all that is tried for one series.
const ALPHA: f64 = 3e-5;
/// Steps looked at: the latest.
const MAX_STEPS: usize = 160;
/// Periods told of one series.
const MAX_PERIODS: usize = 4;
/// Fewer steps of a period say nothing.
const MIN_HITS: usize = 5;
/// Share of the expected times that are met.
const MET: f64 = 0.8;
/// Deviations of a step from the expected time, as shares of the period.
const TOLERANCES: [f64; 4] = [0.02, 0.05, 0.1, 0.15];
/// How far the next expected time follows a step that strays: half way suits steps that stray each by itself, and those
/// whose deviations add up.
const FOLLOWS: f64 = 0.5;
/// Periods (or multiples) nearer than this are one.
const SAME: f64 = 0.05;
/// Of all that grew, the steps of one period hold this share at least.
const SHARE: f64 = 0.02;
/// A shorter one is no staircase but a slope.
const SHORTEST_S: f64 = 0.5;

/// A job that leaves some behind each time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Period {
    /// From step to step.
    pub(crate) every_ns: u64,
    /// How many more after one step: the median.
    pub(crate) step: u64,
    /// Chance of it among steps at random times, all tries counted.
    pub(crate) p: f64,
}

impl From<&Period> for model::Step {
    fn from(period: &Period) -> Self {
        Self {
            period_ns: period.every_ns,
            size: period.step,
            p_value: period.p,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Step {
    at: f64,
    size: u64,
}

struct Chain {
    period: f64,
    hits: Vec<usize>,
    p: f64,
}

/// The periods in births (sorted, in ns) seen from `from_ns` to `to_ns`, the surest first. Times are known to
/// `resolution_ns`.
pub(crate) fn find(births: &[u64], from_ns: u64, to_ns: u64, resolution_ns: u64) -> Vec<Period> {
    let Some(&first) = births.first() else {
        return Vec::new();
    };
    let range = to_ns.saturating_sub(first.max(from_ns));
    let mut lists: Vec<(u64, Vec<Step>)> = Vec::new();
    let mut gap = range / 125;
    for _ in 0..6 {
        let closer = gap.max(resolution_ns);
        let found = steps(births, closer, from_ns, to_ns);
        match lists.last_mut() {
            Some((gap, last)) if last.len() == found.len() => *gap = closer,
            _ => lists.push((closer, found)),
        }
        gap /= 4;
    }
    let to = seconds(to_ns, from_ns);
    let mut searches = Vec::new();
    for (gap, list) in lists {
        let mut sizes: Vec<u64> = list.iter().map(|step| step.size).collect();
        sizes.sort_unstable();
        let large = sizes.get(sizes.len() * 9 / 10).map_or(1, |&size| size / 3);
        searches.push((gap, latest(list.clone())));
        if large > 1 && sizes.first().is_some_and(|&least| least < large) {
            searches.push((
                gap,
                latest(list.into_iter().filter(|step| step.size >= large).collect()),
            ));
        }
    }
    let grew = births.len() as u64;
    searches
        .iter()
        .map(|(gap, list)| {
            in_list(
                list,
                to,
                *gap as f64 / 1e9,
                resolution_ns as f64 / 1e9,
                searches.len(),
                grew,
            )
        })
        .max_by(|a, b| {
            let surest = |found: &[Period]| found.iter().map(|period| period.p).fold(1.0, f64::min);
            a.len().cmp(&b.len()).then(surest(b).total_cmp(&surest(a)))
        })
        .unwrap_or_default()
}

fn seconds(ns: u64, from_ns: u64) -> f64 {
    ns.saturating_sub(from_ns) as f64 / 1e9
}

/// Births closer than `gap` to the one before belong to its step.
fn steps(births: &[u64], gap: u64, from_ns: u64, to_ns: u64) -> Vec<Step> {
    births
        .chunk_by(|a, b| b.saturating_sub(*a) < gap.max(1))
        .filter_map(|step| {
            let first = *step.first().filter(|&&at| at <= to_ns)?;
            Some(Step {
                at: seconds(first, from_ns),
                size: step.len() as u64,
            })
        })
        .collect()
}

fn latest(mut list: Vec<Step>) -> Vec<Step> {
    list.drain(..list.len().saturating_sub(MAX_STEPS));
    list
}

/// One period after the other, as long as there are any.
fn in_list(list: &[Step], to: f64, gap: f64, resolution: f64, searches: usize, grew: u64) -> Vec<Period> {
    let mut found: Vec<Period> = Vec::new();
    let (mut rest, mut gone): (Vec<Step>, Vec<f64>) = (list.to_vec(), Vec::new());
    while found.len() < MAX_PERIODS {
        let Some(chain) = best(&rest, &gone, to, gap, resolution) else {
            break;
        };
        let p = chain.p * searches as f64;
        if p > ALPHA {
            break;
        }
        let mut sizes: Vec<u64> = chain
            .hits
            .iter()
            .filter_map(|&at| rest.get(at))
            .map(|step| step.size)
            .collect();
        let sum: u64 = sizes.iter().sum();
        sizes.sort_unstable();
        let same = |other: &Period| {
            let ratio = chain.period * 1e9 / other.every_ns as f64;
            let ratio = if ratio < 1.0 { 1.0 / ratio } else { ratio };
            (ratio - ratio.round()).abs() < SAME * ratio
        };
        if sum as f64 >= SHARE * grew as f64 && !found.iter().any(same) {
            found.push(Period {
                every_ns: (chain.period * 1e9) as u64,
                step: sizes.get(sizes.len() / 2).copied().unwrap_or_default(),
                p,
            });
        }
        let mut at = 0;
        rest.retain(|step| {
            let hit = chain.hits.contains(&at);
            at += 1;
            if hit {
                gone.push(step.at);
            }
            !hit
        });
    }
    found
}

/// The chain that chance explains least; its `p` counts the tries.
fn best(list: &[Step], gone: &[f64], to: f64, gap: f64, resolution: f64) -> Option<Chain> {
    let first = list.first()?.at;
    let range = to - first;
    let longest = range / 4.5;
    let shortest = (gap * 10.0)
        .max(range / 200.0)
        .max(SHORTEST_S)
        .max(resolution * 5.0);
    let mut tries = 0_u32;
    let mut best: Option<Chain> = None;
    for (at, start) in list
        .iter()
        .enumerate()
        .take_while(|(_, step)| step.at <= first + longest)
    {
        for next in list
            .iter()
            .skip(at + 1)
            .take_while(|step| step.at - start.at <= longest)
        {
            if next.at - start.at < shortest {
                continue;
            }
            for tolerance in TOLERANCES {
                tries += 2;
                let look = Look {
                    list,
                    gone,
                    first,
                    to,
                    tolerance,
                    resolution,
                };
                let Some(rough) = look.chain(at, next.at - start.at) else {
                    continue;
                };
                let exact = look.chain(at, rough.period);
                for chain in [Some(rough), exact].into_iter().flatten() {
                    if best.as_ref().is_none_or(|best| chain.p < best.p) {
                        best = Some(chain);
                    }
                }
            }
        }
    }
    let mut best = best?;
    best.p *= f64::from(tries);
    Some(best)
}

struct Look<'a> {
    list: &'a [Step],
    /// Where steps of other periods were: nobody knows whether there was one of this too.
    gone: &'a [f64],
    first: f64,
    to: f64,
    tolerance: f64,
    resolution: f64,
}

impl Look<'_> {
    /// Follows a period from one step to both ends; None when too many times are not met.
    fn chain(&self, start: usize, period: f64) -> Option<Chain> {
        let reach = (self.tolerance * period).max(self.resolution);
        let origin = self.list.get(start)?.at;
        let allowed = ((self.to - self.first) / period * (1.0 - MET)) as usize + 1;
        let (mut hits, mut missed, mut chances) = (vec![start], 0_usize, Vec::new());
        for way in [-1.0, 1.0] {
            let mut last = origin;
            loop {
                let expected = last + way * period;
                if expected < self.first - reach || expected + reach > self.to {
                    break;
                }
                last = expected;
                if let Some(at) = self.nearest(expected, reach) {
                    last += FOLLOWS * (self.list.get(at)?.at - expected);
                    hits.push(at);
                } else if self.gone.iter().any(|&at| (at - expected).abs() <= reach) {
                    continue;
                } else {
                    missed += 1;
                    if missed > allowed {
                        return None;
                    }
                }
                chances.push(self.chance(expected, period, reach));
            }
        }
        hits.sort_unstable();
        hits.dedup();
        let expected = chances.len() + 1;
        if hits.len() < MIN_HITS || (hits.len() as f64) < MET * expected as f64 {
            return None;
        }
        // One time was met by the choice of the period; the likeliest one, to be sure.
        chances.sort_by(f64::total_cmp);
        chances.pop();
        Some(Chain {
            period: self.fitted(&hits, period),
            p: stats::at_least(hits.len().saturating_sub(2), &chances),
            hits,
        })
    }

    fn nearest(&self, expected: f64, reach: f64) -> Option<usize> {
        let from = self.list.partition_point(|step| step.at < expected - reach);
        let distance = |at: usize| self.list.get(at).map(|step| (step.at - expected).abs());
        (from..self.list.len())
            .take_while(|&at| distance(at).is_some_and(|distance| distance <= reach))
            .min_by(|&a, &b| {
                distance(a)
                    .partial_cmp(&distance(b))
                    .unwrap_or(std::cmp::Ordering::Equal)
            })
    }

    /// Of meeting an expected time by chance, with as many steps around it as there are.
    fn chance(&self, expected: f64, period: f64, reach: f64) -> f64 {
        let (from, to) = (
            (expected - 2.0 * period).max(self.first),
            (expected + 2.0 * period).min(self.to),
        );
        let before = |at: f64| self.list.partition_point(|step| step.at < at);
        let density = before(to).saturating_sub(before(from)) as f64 / (to - from).max(period);
        1.0 - (-density * (2.0 * reach + self.resolution)).exp()
    }

    /// The period by a line through the steps met: least squares over their number.
    fn fitted(&self, hits: &[usize], period: f64) -> f64 {
        let at = |hit: &usize| self.list.get(*hit).map_or(0.0, |step| step.at);
        let first = hits.first().map_or(0.0, at);
        let mut number = 0.0;
        let mut last = first;
        let points: Vec<(f64, f64)> = hits
            .iter()
            .map(|hit| {
                number += ((at(hit) - last) / period).round();
                last = at(hit);
                (number, last - first)
            })
            .collect();
        let n = points.len() as f64;
        let mean = points.iter().fold((0.0, 0.0), |sum, point| {
            (sum.0 + point.0 / n, sum.1 + point.1 / n)
        });
        let over: f64 = points
            .iter()
            .map(|point| (point.0 - mean.0) * (point.1 - mean.1))
            .sum();
        let under: f64 = points.iter().map(|point| (point.0 - mean.0).powi(2)).sum();
        if under > 0.0 { over / under } else { period }
    }
}
