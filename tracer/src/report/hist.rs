//! From a histogram as it is collected to one as it is reported.

mod modes;

use hdrhistogram::Histogram as Hdr;

use super::model::Hist;
use crate::aggregate::hist::Histogram;

/// Significant decimal digits of a reported percentile.
const DIGITS: u8 = 3;

/// Above this many samples the binomial bounds come from the normal approximation: 500 samples lie above the
/// 99th percentile then, and the two differ by less than one rank.
const EXACT_BINOMIAL: u64 = 50_000;

/// The reported form of `from`.
///
/// Count, minimum, maximum, mean and total are exact; percentiles have three significant digits.
///
/// `p99_ci_ns` is the 95 % interval of the 99th percentile by binomial order statistics: it supposes nothing about
/// the distribution. Under 368 samples no order statistic bounds the percentile from above; the upper end is then
/// the longest sample seen, and the truth may lie beyond it.
///
/// When samples stand for others (`--budget`), counts and totals are estimates; `samples` then says how many samples of equal
/// weight tell as much, and the interval and the modes claim no more than those support.
///
/// `modes` lists populations only when there are clearly two or more: the density over log2 of the time is smoothed
/// with a Gaussian of a quarter octave; between two peaks there must be a valley of at most 20 % of the lower one,
/// so deep that chance does not explain it (4 standard deviations of the counts), and each population must hold
/// 2 % of all samples and at least 20, with medians at least 2.5 times apart. A heavy tail has no valley, so it is
/// one population, and the list stays empty. The centre of a population is its median.
#[must_use]
pub fn hist(from: &Histogram) -> Hist {
    let buckets: Vec<(u64, u64)> = from.buckets().collect();
    let (min, max) = (from.min(), from.max());
    let mut reported = Hist {
        count: from.count(),
        min_ns: min,
        max_ns: max,
        mean_ns: from.total().checked_div(from.count()).unwrap_or(0),
        total_ns: from.total(),
        p50_ns: 0,
        p90_ns: 0,
        p99_ns: 0,
        p999_ns: 0,
        p99_ci_ns: None,
        modes: Vec::new(),
        buckets,
        samples: (from.effective() < from.count()).then(|| from.effective()),
    };
    let Some(hdr) = dense(&reported.buckets, max) else {
        return reported;
    };
    let at = |quantile: f64| hdr.value_at_quantile(quantile).clamp(min, max);
    reported.p50_ns = at(0.5);
    reported.p90_ns = at(0.9);
    reported.p99_ns = at(0.99);
    reported.p999_ns = at(0.999);
    let (count, effective) = (u128::from(from.count()), u128::from(from.effective().max(1)));
    let (lower, upper) = p99_ranks(effective as u64);
    let value = |rank: u64| {
        let rank = (u128::from(rank) * count / effective) as u64;
        nth(&reported.buckets, rank).unwrap_or(max).clamp(min, max)
    };
    reported.p99_ci_ns = Some([value(lower), upper.map_or(max, value)]);
    reported.modes = if effective == count {
        modes::modes(&reported.buckets)
    } else {
        let seen: Vec<(u64, u64)> = reported
            .buckets
            .iter()
            .map(|&(upper, n)| (upper, (u128::from(n) * effective / count) as u64))
            .filter(|&(_, n)| n > 0)
            .collect();
        modes::modes(&seen)
    };
    reported
}

/// `None` when there are no samples.
fn dense(buckets: &[(u64, u64)], max: u64) -> Option<Hdr<u64>> {
    if buckets.is_empty() {
        return None;
    }
    let mut hdr = Hdr::new_with_bounds(1, max.max(2), DIGITS).ok()?;
    for &(upper, count) in buckets {
        hdr.saturating_record_n(upper, count);
    }
    Some(hdr)
}

/// The `rank`th shortest sample, counted from 1.
fn nth(buckets: &[(u64, u64)], rank: u64) -> Option<u64> {
    let mut seen = 0;
    buckets.iter().find_map(|&(upper, count)| {
        seen += count;
        (seen >= rank).then_some(upper)
    })
}

/// Ranks whose samples enclose the 99th percentile of the population with 95 % confidence; no upper rank when
/// there are too few samples for one.
///
/// The number of samples above the percentile is binomial (n, 0.01): with `low` the largest number that is
/// undercut or reached with at most 2.5 % probability, and `high` the smallest reached with 97.5 %, the percentile
/// lies between the samples of rank n − high and n − low.
fn p99_ranks(n: u64) -> (u64, Option<u64>) {
    let (low, high) = if n > EXACT_BINOMIAL {
        normal_bounds(n)
    } else {
        exact_bounds(n)
    };
    (n.saturating_sub(high).max(1), low.map(|low| n - low))
}

fn exact_bounds(n: u64) -> (Option<u64>, u64) {
    let trials = n as f64;
    let mut probability = 0.99_f64.powf(trials);
    let mut cumulated = probability;
    let mut low = None;
    let mut above = 0_u64;
    while cumulated < 0.975 && above < n {
        if cumulated <= 0.025 {
            low = Some(above);
        }
        let done = above as f64;
        probability *= (trials - done) / (done + 1.0) * (0.01 / 0.99);
        cumulated += probability;
        above += 1;
    }
    (low, above)
}

fn normal_bounds(n: u64) -> (Option<u64>, u64) {
    let mean = n as f64 * 0.01;
    let reach = 1.96 * (mean * 0.99).sqrt();
    (
        Some((mean - reach - 0.5).floor() as u64),
        (mean + reach - 0.5).ceil() as u64,
    )
}

#[cfg(test)]
mod tests;
