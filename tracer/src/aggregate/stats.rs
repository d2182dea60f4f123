//! The tests that verdicts rest on. All are deterministic, and none supposes a distribution of the counts.

/// Probability of at most `hits` of `trials`, each with probability `p`.
pub(crate) fn binomial_below(hits: u64, trials: u64, p: f64) -> f64 {
    if hits >= trials || p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    let (n, odds) = (trials as f64, (p / (1.0 - p)).ln());
    let mut log = n * (1.0 - p).ln();
    let mut sum = log.exp();
    for at in 0..hits {
        let done = at as f64;
        log += ((n - done) / (done + 1.0)).ln() + odds;
        sum += log.exp();
    }
    sum.min(1.0)
}

/// Probability of at least `hits` of trials that each have a probability of their own.
pub(crate) fn at_least(hits: usize, chances: &[f64]) -> f64 {
    let mut mass = vec![0.0; chances.len() + 1];
    if let Some(none) = mass.first_mut() {
        *none = 1.0;
    }
    for (done, &p) in chances.iter().enumerate() {
        for at in (0..=done + 1).rev() {
            let below = if at > 0 {
                mass.get(at - 1).copied().unwrap_or(0.0)
            } else {
                0.0
            };
            if let Some(here) = mass.get_mut(at) {
                *here = *here * (1.0 - p) + below * p;
            }
        }
    }
    mass.iter().skip(hits).sum::<f64>().min(1.0)
}

/// A trend by ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Trend {
    /// Theil–Sen: the median of the slopes between all pairs, per second.
    pub(crate) slope: f64,
    /// Its 95 % interval (Sen 1968), with the variance of the test.
    pub(crate) interval: (f64, f64),
    /// Mann–Kendall, two-sided, the variance corrected for autocorrelation (Hamed and Rao 1998).
    pub(crate) p: f64,
    /// Kendall's S is above 0.
    pub(crate) rises: bool,
}

/// Of values over seconds, in the order of time; None with fewer than four. The cost is quadratic.
pub(crate) fn trend(points: &[(f64, f64)]) -> Option<Trend> {
    if points.len() < 4 {
        return None;
    }
    let n = points.len() as f64;
    let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
    let mut score = 0.0_f64;
    for (at, later) in points.iter().enumerate() {
        for earlier in points.get(..at).unwrap_or_default() {
            let (run, rise) = (later.0 - earlier.0, later.1 - earlier.1);
            if run > 0.0 {
                slopes.push(rise / run);
                score += if rise > 0.0 { 1.0 } else { 0.0 } - if rise < 0.0 { 1.0 } else { 0.0 };
            }
        }
    }
    slopes.sort_by(f64::total_cmp);
    let slope = *slopes.get(slopes.len() / 2)?;
    let values: Vec<f64> = points.iter().map(|point| point.1).collect();
    let rest: Vec<f64> = points.iter().map(|point| point.1 - slope * point.0).collect();
    let variance =
        ((n * (n - 1.0) * (2.0 * n + 5.0) - ties(&values)) / 18.0 * inflation(&ranks(&rest))).max(1.0);
    let deviation = variance.sqrt();
    let z = (score.abs() - 1.0).max(0.0) / deviation;
    let reach = 1.96 * deviation;
    let rank = |rank: f64| {
        let at = rank.round().clamp(0.0, slopes.len() as f64 - 1.0) as usize;
        slopes.get(at).copied().unwrap_or(slope)
    };
    let count = slopes.len() as f64;
    Some(Trend {
        slope,
        interval: (
            rank((count - reach) / 2.0 - 1.0),
            rank(f64::midpoint(count, reach)),
        ),
        p: 2.0 * upper_normal(z),
        rises: score > 0.0,
    })
}

/// What tied values take off the variance, times 18.
fn ties(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .chunk_by(|a, b| a.total_cmp(b).is_eq())
        .map(|same| same.len() as f64)
        .map(|t| t * (t - 1.0) * (2.0 * t + 5.0))
        .sum()
}

/// By how much neighbours that are alike increase the variance of Kendall's S; never less than 1.
fn inflation(ranks: &[f64]) -> f64 {
    let n = ranks.len() as f64;
    let mean = ranks.iter().sum::<f64>() / n;
    let around: Vec<f64> = ranks.iter().map(|rank| rank - mean).collect();
    let variance: f64 = around.iter().map(|x| x * x).sum();
    if variance <= 0.0 {
        return 1.0;
    }
    let mut sum = 0.0;
    for lag in 1..ranks.len().saturating_sub(2) {
        let products = around.iter().zip(around.iter().skip(lag)).map(|(a, b)| a * b);
        let correlation = products.sum::<f64>() / variance;
        let k = lag as f64;
        if correlation.abs() > 1.96 / n.sqrt() {
            sum += (n - k) * (n - k - 1.0) * (n - k - 2.0) * correlation;
        }
    }
    (1.0 + 2.0 / (n * (n - 1.0) * (n - 2.0)) * sum).max(1.0)
}

/// From 1; those that are equal share a mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let value = |at: usize| values.get(at).copied().unwrap_or_default();
    order.sort_by(|&a, &b| value(a).total_cmp(&value(b)));
    let mut ranks = vec![0.0; values.len()];
    let mut done = 0;
    for same in order.chunk_by(|&a, &b| value(a).total_cmp(&value(b)).is_eq()) {
        let shared = done as f64 + f64::midpoint(same.len() as f64, 1.0);
        for &at in same {
            if let Some(rank) = ranks.get_mut(at) {
                *rank = shared;
            }
        }
        done += same.len();
    }
    ranks
}

/// Probability that a standard normal exceeds z ≥ 0 (Abramowitz and Stegun 26.2.17: 7.5e-8).
pub(crate) fn upper_normal(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let terms = [
        0.319_381_530,
        -0.356_563_782,
        1.781_477_937,
        -1.821_255_978,
        1.330_274_429,
    ];
    let sum = terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t);
    sum * (-0.5 * z * z).exp() / std::f64::consts::TAU.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_of_the_binomial() {
        // Exact: (1 + 10 + 45) / 1024, and 0.7^12.
        assert!((binomial_below(2, 10, 0.5) - 56.0 / 1024.0).abs() < 1e-12);
        assert!((binomial_below(0, 12, 0.3) - 0.7_f64.powi(12)).abs() < 1e-12);
        assert!((at_least(8, &[0.5; 10]) - 56.0 / 1024.0).abs() < 1e-12);
        assert!(
            (at_least(2, &[0.1, 0.2, 0.3]) - (0.006 + 0.1 * 0.2 * 0.7 + 0.1 * 0.8 * 0.3 + 0.9 * 0.06)).abs()
                < 1e-12
        );
        assert!((at_least(0, &[]) - 1.0).abs() < 1e-12 && at_least(1, &[]) == 0.0);
        assert!((upper_normal(1.959_964) - 0.025).abs() < 1e-6);
    }

    #[test]
    fn trends() {
        let line: Vec<_> = (0..30)
            .map(|at| (f64::from(at), 3.0 * f64::from(at) + 7.0))
            .collect();
        let found = trend(&line).unwrap();
        assert!(
            found.rises && found.p < 1e-9 && (found.slope - 3.0).abs() < 1e-9,
            "{found:?}"
        );
        let flat: Vec<_> = (0..30).map(|at| (f64::from(at), 4.0)).collect();
        assert!(trend(&flat).unwrap().p > 0.9);
        assert_eq!(trend(&flat[..3]), None);
        // A slow wave is no trend, although its neighbours are alike.
        let wave: Vec<_> = (0..48)
            .map(|at| (f64::from(at), (f64::from(at) / 48.0 * 12.0).cos()))
            .collect();
        assert!(trend(&wave).unwrap().p > 0.05, "{:?}", trend(&wave));
    }
}
