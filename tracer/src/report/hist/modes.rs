//! Populations of a distribution, by the valleys of its smoothed density over log2. The rules are in
//! [`super::hist`]'s documentation.

use std::ops::Range;

use crate::report::model::Mode;

/// Bins per octave of the density: 4.4 % each.
const BINS: f64 = 16.0;
/// Standard deviation of the smoothing, in bins: a quarter octave.
const SIGMA: f64 = 4.0;
/// Half the width, in bins, over which samples are counted at a peak or in a valley. Two windows do not overlap
/// when peak and valley are half of `log2(2.5)` octaves apart.
const WINDOW: usize = 5;

/// A valley's density over its lower peak's, at most.
const VALLEY: f64 = 0.2;
/// Standard deviations between the counts at the lower peak and in the valley, at least.
const SIGNIFICANCE: f64 = 4.0;
/// Samples of a population, at least, as a number and as a share.
const MIN_SAMPLES: f64 = 20.0;
const MIN_SHARE: f64 = 0.02;
/// Between the medians of neighbours, at least.
const APART: f64 = 2.5;

/// One population: its bins, and the bin of its highest density.
#[derive(Clone)]
struct Hill {
    bins: Range<usize>,
    peak: usize,
}

/// The populations, or nothing when there is only one.
pub(super) fn modes(buckets: &[(u64, u64)]) -> Vec<Mode> {
    let total: u64 = buckets.iter().map(|&(_, count)| count).sum();
    if (total as f64) < 2.0 * MIN_SAMPLES {
        return Vec::new();
    }
    let landscape = Landscape::new(buckets);
    let mut hills = landscape.hills();
    while hills.len() > 1 {
        let Some(doubtful) = landscape.most_doubtful(&hills, total as f64) else {
            break;
        };
        landscape.join(&mut hills, doubtful);
    }
    if hills.len() < 2 {
        return Vec::new();
    }
    hills
        .iter()
        .map(|hill| Mode {
            center_ns: landscape.median(hill),
            share: landscape.count(&hill.bins) / total as f64,
        })
        .collect()
}

struct Landscape<'a> {
    buckets: &'a [(u64, u64)],
    counts: Vec<f64>,
    density: Vec<f64>,
}

fn bin(ns: u64) -> usize {
    ((ns.max(1) as f64).log2() * BINS) as usize
}

impl<'a> Landscape<'a> {
    fn new(buckets: &'a [(u64, u64)]) -> Self {
        let mut counts = vec![0.0; bin(u64::MAX) + 1];
        for &(upper, count) in buckets {
            counts[bin(upper)] += count as f64;
        }
        let reach = (4.0 * SIGMA) as usize;
        let kernel: Vec<f64> = (0..=reach)
            .map(|distance| (-0.5 * (distance as f64 / SIGMA).powi(2)).exp())
            .collect();
        let mut density = vec![0.0; counts.len()];
        for (at, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0.0) {
            let around = at.saturating_sub(reach)..(at + reach + 1).min(density.len());
            for (other, value) in density[around.clone()].iter_mut().enumerate() {
                *value += count * kernel[(around.start + other).abs_diff(at)];
            }
        }
        Self {
            buckets,
            counts,
            density,
        }
    }

    /// Every local maximum with the bins down to the valleys beside it.
    fn hills(&self) -> Vec<Hill> {
        let mut hills: Vec<Hill> = Vec::new();
        let (mut rising, mut valley) = (true, 0);
        for at in 1..=self.density.len() {
            let (before, now) = (
                self.density[at - 1],
                self.density.get(at).copied().unwrap_or(-1.0),
            );
            if rising && now < before {
                let start = hills.last().map_or(0, |_| valley);
                if let Some(last) = hills.last_mut() {
                    last.bins.end = start;
                }
                hills.push(Hill {
                    bins: start..self.density.len(),
                    peak: at - 1,
                });
                (rising, valley) = (false, at);
            } else if !rising {
                if now < self.density[valley] && at < self.density.len() {
                    valley = at;
                }
                rising = now > before;
            }
        }
        hills
    }

    /// The border (index of the hill at its left) that fails the rules most plainly.
    fn most_doubtful(&self, hills: &[Hill], total: f64) -> Option<usize> {
        let doubt = |left: usize| {
            let ratio = self.valley_ratio(&hills[left], &hills[left + 1]);
            self.fails(&hills[left], &hills[left + 1], ratio, total)
                .then_some((left, ratio))
        };
        (0..hills.len() - 1)
            .filter_map(doubt)
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(left, _)| left)
    }

    fn valley_ratio(&self, left: &Hill, right: &Hill) -> f64 {
        let lower = self.density[left.peak].min(self.density[right.peak]);
        self.density[right.bins.start] / lower
    }

    fn fails(&self, left: &Hill, right: &Hill, ratio: f64, total: f64) -> bool {
        let least = MIN_SAMPLES.max(MIN_SHARE * total);
        let lower = if self.density[left.peak] < self.density[right.peak] {
            left
        } else {
            right
        };
        let (top, bottom) = (self.around(lower.peak), self.around(right.bins.start));
        ratio > VALLEY
            || self.count(&left.bins) < least
            || self.count(&right.bins) < least
            || (top - bottom) < SIGNIFICANCE * (top + bottom).sqrt()
            || (self.median(right) as f64) < APART * self.median(left) as f64
    }

    fn join(&self, hills: &mut Vec<Hill>, left: usize) {
        let right = hills.remove(left + 1);
        let hill = &mut hills[left];
        hill.bins.end = right.bins.end;
        if self.density[right.peak] > self.density[hill.peak] {
            hill.peak = right.peak;
        }
    }

    fn around(&self, at: usize) -> f64 {
        self.count(&(at.saturating_sub(WINDOW)..(at + WINDOW + 1).min(self.counts.len())))
    }

    fn count(&self, bins: &Range<usize>) -> f64 {
        self.counts[bins.clone()].iter().sum()
    }

    fn median(&self, hill: &Hill) -> u64 {
        let half = self.count(&hill.bins) / 2.0;
        let mut seen = 0.0;
        self.buckets
            .iter()
            .filter(|&&(upper, _)| hill.bins.contains(&bin(upper)))
            .find_map(|&(upper, count)| {
                seen += count as f64;
                (seen >= half).then_some(upper)
            })
            .unwrap_or(0)
    }
}
