//! Live descriptors over time, bounded: at most [`MAX_SAMPLES`] samples, halved in resolution when full.
//!
//! A sample keeps the lowest and highest number since the sample before it, so a dip between two samples is never
//! lost, however coarse the series has become: what was drained once cannot look like growth.

use super::stats::{self, Trend};

/// Most samples kept.
pub(crate) const MAX_SAMPLES: usize = 240;
/// With more series than this, half as many: 8 MB in all either way.
const MANY: usize = 2048;
/// Most points that a slope is taken over: its cost is quadratic.
const SLOPE_POINTS: usize = 48;

/// When the samples of all series of one table were taken.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    times: Vec<u64>,
    start_ns: Option<u64>,
    /// One of so many snapshots is kept.
    stride: u32,
    skipped: u32,
}

/// What a snapshot asks of every series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Nothing: between two samples.
    Skip,
    /// Add a sample.
    Sample,
    /// Halve, then add a sample.
    Halve,
}

impl Timeline {
    pub(crate) const fn new() -> Self {
        Self {
            times: Vec::new(),
            start_ns: None,
            stride: 1,
            skipped: 0,
        }
    }

    /// Notes that something happened at `ns`; the first call sets the start.
    pub(crate) fn begin(&mut self, ns: u64) {
        self.start_ns.get_or_insert(ns);
    }

    pub(crate) const fn start_ns(&self) -> Option<u64> {
        self.start_ns
    }

    pub(crate) const fn len(&self) -> usize {
        self.times.len()
    }

    /// What to do now with each of so many series.
    pub(crate) fn take(&mut self, now_ns: u64, series: usize) -> Take {
        let max = if series > MANY {
            MAX_SAMPLES / 2
        } else {
            MAX_SAMPLES
        };
        self.begin(now_ns);
        if self.times.last().is_some_and(|&last| now_ns <= last) {
            return Take::Skip;
        }
        self.skipped += 1;
        if self.skipped < self.stride {
            return Take::Skip;
        }
        self.skipped = 0;
        // Pairs become one: an odd one out would be lost, and a dip with it.
        let take = if self.times.len() >= max && self.times.len().is_multiple_of(2) {
            keep_odd(&mut self.times);
            self.stride = self.stride.saturating_mul(2);
            Take::Halve
        } else {
            Take::Sample
        };
        self.times.push(now_ns);
        take
    }
}

/// Keeps the later one of each pair.
fn keep_odd<T>(list: &mut Vec<T>) {
    let mut at = 0;
    list.retain(|_| {
        at += 1;
        at % 2 == 0
    });
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sample {
    live: u32,
    low: u32,
    high: u32,
    /// Births since the start.
    opened: u32,
}

/// One series: descriptors of one stack, or of the whole table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    /// Births since the start.
    pub(crate) opened: u64,
    /// Deaths since the start.
    pub(crate) closed: u64,
    /// Open at the start.
    pub(crate) at_start: u64,
    low: u64,
    high: u64,
    samples: Vec<Sample>,
}

impl Series {
    /// A series without descriptors until now, on a timeline that already has `len` samples.
    pub(crate) fn new(len: usize) -> Self {
        Self {
            samples: vec![Sample::default(); len],
            ..Self::default()
        }
    }

    pub(crate) const fn live(&self) -> u64 {
        (self.at_start + self.opened).saturating_sub(self.closed)
    }

    pub(crate) fn born(&mut self) {
        self.opened += 1;
        self.high = self.high.max(self.live());
    }

    pub(crate) fn died(&mut self) {
        self.closed += 1;
        self.low = self.low.min(self.live());
    }

    /// One that was open at the start.
    pub(crate) fn seeded(&mut self) {
        self.at_start += 1;
        (self.low, self.high) = (self.live(), self.live());
    }

    /// One thought open at the start was born after it.
    pub(crate) fn unseeded(&mut self) {
        self.at_start = self.at_start.saturating_sub(1);
        self.low = self.low.min(self.live());
    }

    /// Takes a part out of a sum. Between two samples it is not known which came first: the lowest numbers become too low, the
    /// highest too high, by no more than what the part moved there.
    pub(crate) fn without(&mut self, part: &Self) {
        self.opened = self.opened.saturating_sub(part.opened);
        self.closed = self.closed.saturating_sub(part.closed);
        self.at_start = self.at_start.saturating_sub(part.at_start);
        (self.low, self.high) = (
            self.low.saturating_sub(part.high),
            self.high.saturating_sub(part.low),
        );
        for (own, part) in self.samples.iter_mut().zip(&part.samples) {
            own.live = own.live.saturating_sub(part.live);
            own.opened = own.opened.saturating_sub(part.opened);
            (own.low, own.high) = (
                own.low.saturating_sub(part.high),
                own.high.saturating_sub(part.low),
            );
        }
    }

    pub(crate) fn sample(&mut self, take: Take) {
        if take == Take::Skip {
            return;
        }
        if take == Take::Halve {
            for pair in self.samples.chunks_exact_mut(2) {
                pair[1].low = pair[1].low.min(pair[0].low);
                pair[1].high = pair[1].high.max(pair[0].high);
            }
            keep_odd(&mut self.samples);
        }
        self.samples.push(self.now());
        (self.low, self.high) = (self.live(), self.live());
    }

    fn now(&self) -> Sample {
        let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Sample {
            live: short(self.live()),
            low: short(self.low),
            high: short(self.high),
            opened: short(self.opened),
        }
    }

    /// The samples before `now_ns`, and one of now.
    fn points(&self, line: &Timeline, now_ns: u64) -> Vec<(u64, Sample)> {
        let mut points: Vec<(u64, Sample)> = line
            .times
            .iter()
            .copied()
            .zip(self.samples.iter().copied())
            .filter(|&(ns, _)| ns < now_ns)
            .collect();
        points.push((now_ns, self.now()));
        points
    }

    /// The trend of the lowest numbers, which bursts do not move.
    pub(crate) fn trend(&self, line: &Timeline, now_ns: u64) -> Option<Trend> {
        let points = self.points(line, now_ns);
        let step = points.len().div_ceil(SLOPE_POINTS).max(1);
        // The lowest of all that is left out counts too.
        let chosen: Vec<(f64, f64)> = points
            .rchunks(step)
            .rev()
            .filter_map(|some| {
                let low = some.iter().map(|point| point.1.low).min()?;
                let at = some.last()?.0;
                Some((
                    at.saturating_sub(line.start_ns.unwrap_or(0)) as f64 / 1e9,
                    low.into(),
                ))
            })
            .collect();
        stats::trend(&chosen)
    }

    /// Births by so many ns, in a straight line from sample to sample.
    pub(crate) fn births_at(&self, line: &Timeline, now_ns: u64) -> impl Fn(u64) -> f64 + use<> {
        let mut known = vec![(line.start_ns.unwrap_or(0), 0)];
        known.extend(
            self.points(line, now_ns)
                .into_iter()
                .map(|(ns, sample)| (ns, sample.opened)),
        );
        move |ns| {
            let at = known.partition_point(|point| point.0 < ns);
            let (Some(&after), Some(&before)) = (known.get(at), known.get(at.saturating_sub(1))) else {
                return known.last().map_or(0.0, |last| last.1.into());
            };
            let part = ns.saturating_sub(before.0) as f64 / after.0.saturating_sub(before.0).max(1) as f64;
            f64::from(before.1) + part * (f64::from(after.1) - f64::from(before.1))
        }
    }

    /// The shape of the series from the timeline's start to `now_ns`.
    pub(crate) fn shape(&self, line: &Timeline, now_ns: u64) -> Shape {
        let start_ns = line.start_ns.unwrap_or(now_ns);
        let window_ns = now_ns.saturating_sub(start_ns);
        let points = self.points(line, now_ns);
        let mut shape = Shape {
            window_ns,
            floors: [u64::MAX; 4],
            ..Shape::default()
        };
        let mut seen = [0_usize; 4];
        for &(ns, sample) in &points {
            let into = u128::from(ns.saturating_sub(start_ns));
            // An interval that straddles two quarters counts for the later one: there its low is a stricter floor.
            let quarter = (into.saturating_sub(1) * 4 / u128::from(window_ns.max(1))).min(3) as usize;
            seen[quarter] += 1;
            shape.floors[quarter] = shape.floors[quarter].min(sample.low.into());
            shape.ends[quarter] = sample.live.into();
            shape.peaks[quarter] = shape.peaks[quarter].max(sample.high.into());
        }
        shape.enough = seen.iter().all(|&number| number >= 2);
        shape
    }
}

/// What a series looked like in each quarter of its window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    /// Length of the window.
    pub(crate) window_ns: u64,
    /// Lowest number in each quarter.
    pub(crate) floors: [u64; 4],
    /// Highest number in each quarter.
    pub(crate) peaks: [u64; 4],
    /// Number at the end of each quarter.
    pub(crate) ends: [u64; 4],
    /// Each quarter has samples enough to speak of.
    pub(crate) enough: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn halving_keeps_dips_and_bounds() {
        let (mut line, mut series) = (Timeline::new(), Series::new(0));
        line.begin(1);
        for _ in 0..10 {
            series.born();
        }
        for at in 1..=10_000_u64 {
            if at == 4_000 {
                for _ in 0..10 {
                    series.died();
                }
                for _ in 0..10 {
                    series.born();
                }
            }
            series.sample(line.take(at * SECOND, 1));
            assert!(line.len() <= MAX_SAMPLES && series.samples.len() == line.len());
        }
        let shape = series.shape(&line, 10_000 * SECOND + 1);
        assert!(shape.enough);
        assert_eq!(shape.floors, [0, 0, 10, 10]);
        assert_eq!(shape.ends, [10; 4]);
    }

    #[test]
    fn many_series_keep_fewer_samples_and_every_dip() {
        let (mut line, mut series) = (Timeline::new(), Series::new(0));
        line.begin(0);
        (0..97).for_each(|_| series.seeded());
        for at in 1..=1000_u64 {
            if at == 239 {
                // Everything is closed for a moment.
                (0..97).for_each(|_| series.died());
                (0..97).for_each(|_| series.born());
            }
            // The others come when this one has its most.
            let many = if at > 239 { MANY + 1 } else { MANY };
            series.sample(line.take(at * SECOND, many));
            assert!(line.len() <= MAX_SAMPLES && series.samples.len() == line.len());
            assert!(
                at < 241 || line.len() <= MAX_SAMPLES / 2 + 2,
                "{at}: {}",
                line.len()
            );
        }
        let shape = series.shape(&line, 1000 * SECOND + 1);
        assert!(shape.enough);
        assert_eq!(shape.floors, [0, 97, 97, 97]);
    }

    #[test]
    fn the_slope_withstands_outliers() {
        let (mut line, mut series) = (Timeline::new(), Series::new(0));
        line.begin(0);
        for at in 1..=100_u64 {
            series.born();
            series.born();
            if at % 10 == 0 {
                // A burst that is gone by the next sample.
                series.opened += 1000;
            }
            series.sample(line.take(at * SECOND, 1));
            if at % 10 == 0 {
                series.opened -= 1000;
            }
        }
        let slope = series.trend(&line, 100 * SECOND).unwrap().slope;
        assert!((slope - 2.0).abs() < 0.2, "{slope}");
    }

    #[test]
    fn a_clock_that_stands_still_adds_nothing() {
        let mut line = Timeline::new();
        assert_eq!(line.take(5, 1), Take::Sample);
        assert_eq!(line.take(5, 1), Take::Skip);
        assert_eq!(line.take(4, 1), Take::Skip);
    }
}
