//! How a process's own memory grows: a line of readings, and what it says.
//!
//! The window is cut into equal parts, and of each the least reading counts, so that what a garbage collector gives back is not taken for
//! memory that the program keeps. Where the memory grows, the steps from part to part are above 0 on average (Student's t, one-sided)
//! and those of the last third, and the last two, are not much smaller than the others: what fills up and stays so is no growth.

use crate::diff::stats::{t_quantile, t_two_sided};

/// Readings kept; beyond, every other one is forgotten.
const READINGS_MAX: usize = 1024;
/// Parts of the window: at most, and at least for anything to be said.
const PARTS: usize = 12;
const PARTS_MIN: usize = 8;
/// Readings in each.
const IN_PART: usize = 2;
/// Probability of such steps where there is no growth, below which it is told.
const ALPHA: f64 = 0.005;
/// Growth worth a word: bytes, and part of what there was.
const LEAST: f64 = 2e6;
const LEAST_PART: f64 = 0.01;
/// The last third, and the last two parts of it, have grown by so much of an equal share.
const STILL: f64 = 0.5;

/// Readings of one process's own memory.
#[derive(Clone, Debug, Default)]
pub struct Line {
    readings: Vec<(u64, u64)>,
    /// One reading in so many is kept.
    every: u64,
    seen: u64,
    last: Option<(u64, u64)>,
}

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// Bytes a second.
    pub per_s: f64,
    /// 95 % interval.
    pub interval: (f64, f64),
    /// Probability of such steps without growth.
    pub p_value: f64,
    /// It grows, all the time, and by something.
    pub grows: bool,
    /// From the first reading to the last.
    pub span_ns: u64,
}

impl Line {
    /// So many bytes at this time.
    pub fn on_reading(&mut self, at_ns: u64, bytes: u64) {
        self.last = Some((at_ns, bytes));
        let every = self.every.max(1);
        self.seen += 1;
        if !(self.seen - 1).is_multiple_of(every) {
            return;
        }
        self.readings.push((at_ns, bytes));
        if self.readings.len() >= READINGS_MAX {
            let mut keep = false;
            self.readings.retain(|_| {
                keep = !keep;
                keep
            });
            self.every = every * 2;
        }
    }

    /// The first reading and the last one.
    #[must_use]
    pub fn ends(&self) -> Option<(u64, u64)> {
        Some((self.readings.first()?.1, self.last?.1))
    }

    /// Begins a new window, at the last reading.
    pub fn reset(&mut self) {
        let last = self.last;
        *self = Self::default();
        if let Some((at_ns, bytes)) = last {
            self.on_reading(at_ns, bytes);
        }
    }

    /// What they say; `None` when they are too few.
    #[must_use]
    pub fn slope(&self) -> Option<Slope> {
        let (from, to) = (self.readings.first()?.0, self.readings.last()?.0);
        let parts = (self.readings.len() / IN_PART).min(PARTS);
        if parts < PARTS_MIN || to <= from {
            return None;
        }
        let mut least: Vec<Option<u64>> = vec![None; parts];
        for &(at_ns, bytes) in &self.readings {
            let part = u128::from(at_ns - from) * parts as u128 / u128::from(to - from + 1);
            let part = &mut least[part as usize];
            *part = Some(part.map_or(bytes, |known| known.min(bytes)));
        }
        // A part without a reading: the readings came in heaps.
        let least: Vec<f64> = least
            .into_iter()
            .map(|bytes| bytes.map(|bytes| bytes as f64))
            .collect::<Option<_>>()?;
        let part_s = (to - from) as f64 / 1e9 / parts as f64;
        Some(Slope {
            span_ns: to - from,
            ..of_parts(&least, part_s)
        })
    }
}

fn of_parts(least: &[f64], part_s: f64) -> Slope {
    let steps: Vec<f64> = least.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let n = steps.len() as f64;
    let mean = steps.iter().sum::<f64>() / n;
    let variance = steps.iter().map(|step| (step - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let error = (variance / n).sqrt();
    let t = if error > 0.0 { mean / error } else { 1e9 };
    let p_value = if mean > 0.0 {
        t_two_sided(t, n - 1.0) / 2.0
    } else {
        1.0
    };
    let all = mean * n;
    let third = steps.len() / 3;
    let late: f64 = steps[steps.len() - third..].iter().sum();
    let last: f64 = steps[steps.len() - 2..].iter().sum();
    let still = late >= STILL * mean * third as f64 && last >= STILL * mean * 2.0;
    let worth = all >= LEAST && all >= LEAST_PART * least[0];
    let either = t_quantile(n - 1.0) * error;
    Slope {
        per_s: mean / part_s,
        interval: ((mean - either) / part_s, (mean + either) / part_s),
        p_value,
        grows: worth && still && p_value < ALPHA,
        span_ns: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e6;
    const QUARTER_S: u64 = 250_000_000;

    /// A minute, four readings a second.
    fn line(bytes: impl Fn(f64) -> f64) -> Line {
        let mut line = Line::default();
        for at in 0..240 {
            line.on_reading(at * QUARTER_S, bytes(at as f64 / 4.0) as u64);
        }
        line
    }

    fn slope(bytes: impl Fn(f64) -> f64) -> Slope {
        line(bytes).slope().unwrap()
    }

    #[test]
    fn steady_growth_is_told_with_its_rate() {
        let found = slope(|s| 100.0 * MB + 1.5 * MB * s);
        assert!(found.grows, "{found:?}");
        assert!((found.per_s / MB - 1.5).abs() < 0.05, "{found:?}");
        assert!(found.interval.0 <= found.per_s && found.per_s <= found.interval.1);
    }

    #[test]
    fn what_a_collector_gives_back_is_no_growth_and_what_it_leaves_is() {
        let teeth = |s: f64| 60.0 * MB * (s / 3.7).fract();
        assert!(!slope(|s| 100.0 * MB + teeth(s)).grows);
        let found = slope(|s| 100.0 * MB + teeth(s) + 2.0 * MB * s);
        assert!(found.grows && (found.per_s / MB - 2.0).abs() < 0.6, "{found:?}");
    }

    #[test]
    fn steps_of_a_job_are_growth() {
        let found = slope(|s| 50.0 * MB + 8.0 * MB * (s / 7.1).floor());
        assert!(found.grows, "{found:?}");
    }

    #[test]
    fn what_fills_up_and_stays_so_is_none() {
        for tau in [1.0, 5.0, 15.0] {
            let found = slope(|s| 20.0 * MB + 200.0 * MB * (1.0 - (-s / tau).exp()));
            assert!(!found.grows, "{tau}: {found:?}");
        }
        for end in [25.0, 48.0] {
            assert!(!slope(|s| 20.0 * MB + 3.0 * MB * s.min(end)).grows, "{end}");
        }
        // All at once.
        assert!(!slope(|s| if s < 30.0 { 20.0 * MB } else { 90.0 * MB }).grows);
    }

    #[test]
    fn what_shrinks_or_stays_or_is_little_is_none() {
        assert!(!slope(|s| 100.0 * MB - MB * s).grows);
        let same = slope(|_| 100.0 * MB);
        assert!(!same.grows && same.per_s.abs() < 1e-9, "{same:?}");
        assert!(!slope(|s| 100.0 * MB + 0.02 * MB * s).grows);
        assert!(!slope(|s| 4000.0 * MB + 0.5 * MB * s).grows);
    }

    #[test]
    fn a_short_look_says_nothing_and_a_long_one_takes_no_more_memory() {
        let mut line = Line::default();
        for at in 0..15 {
            line.on_reading(at * QUARTER_S, at * 10_000_000);
        }
        assert_eq!(line.slope(), None);
        for at in 15..20_000 {
            line.on_reading(at * QUARTER_S, at * 10_000_000);
        }
        assert!(line.readings.len() < READINGS_MAX && line.slope().unwrap().grows);
        assert_eq!(line.ends(), Some((0, 19_999 * 10_000_000)));
        line.reset();
        assert_eq!(line.ends(), Some((19_999 * 10_000_000, 19_999 * 10_000_000)));
        assert_eq!(line.slope(), None);
    }
}
