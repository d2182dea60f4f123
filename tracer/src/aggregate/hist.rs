//! A sparse histogram with three significant digits.
//!
//! A dense three-digit `hdrhistogram` takes over 100 KB, and there is one histogram per lock and stack; so samples
//! are kept as a short list of (bucket, count), in the same buckets, and become an `hdrhistogram` to be merged or printed.

/// Times in nanoseconds, in log-linear buckets of three significant digits; count, sum, minimum and maximum are exact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// (bucket index, count), by index.
    buckets: Vec<(u32, u32)>,
    count: u64,
    /// Sum of the squares of the samples' weights.
    squares: u64,
    total: u64,
    min: u64,
    max: u64,
}

/// Sub-buckets per octave: 2048 keeps 3 digits as `hdrhistogram` does (half of them are used above the first).
const SUB_BITS: u32 = 11;

impl Histogram {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            buckets: Vec::new(),
            count: 0,
            squares: 0,
            total: 0,
            min: 0,
            max: 0,
        }
    }

    /// Adds one sample.
    pub fn record(&mut self, ns: u64) {
        self.record_n(ns, 1);
    }

    /// Adds a sample that stands for `weight`.
    pub fn record_n(&mut self, ns: u64, weight: u32) {
        let index = Self::index(ns);
        match self.buckets.binary_search_by_key(&index, |&(i, _)| i) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(weight),
            Err(at) => self.buckets.insert(at, (index, weight)),
        }
        self.min = if self.count == 0 { ns } else { self.min.min(ns) };
        self.max = self.max.max(ns);
        self.count += u64::from(weight);
        self.squares += u64::from(weight) * u64::from(weight);
        self.total = self.total.saturating_add(ns.saturating_mul(u64::from(weight)));
    }

    /// Adds all samples of `other`.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        let mut merged = Vec::with_capacity(self.buckets.len() + other.buckets.len());
        let (mut mine, mut theirs) = (
            self.buckets.iter().copied().peekable(),
            other.buckets.iter().copied().peekable(),
        );
        loop {
            match (mine.peek().copied(), theirs.peek().copied()) {
                (Some(a), Some(b)) if a.0 == b.0 => {
                    merged.push((a.0, a.1.saturating_add(b.1)));
                    mine.next();
                    theirs.next();
                }
                (Some(a), Some(b)) if a.0 < b.0 => {
                    merged.push(a);
                    mine.next();
                }
                (_, Some(b)) => {
                    merged.push(b);
                    theirs.next();
                }
                (Some(a), None) => {
                    merged.push(a);
                    mine.next();
                }
                (None, None) => break,
            }
        }
        self.buckets = merged;
        self.min = if self.count == 0 {
            other.min
        } else {
            self.min.min(other.min)
        };
        self.max = self.max.max(other.max);
        self.count += other.count;
        self.squares += other.squares;
        self.total = self.total.saturating_add(other.total);
    }

    /// How many, those included that samples stand for.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// As many samples of equal weight would tell as much (Kish's effective sample size): all of them when each stands for itself.
    #[must_use]
    pub fn effective(&self) -> u64 {
        let squares = u128::from(self.squares.max(1));
        (u128::from(self.count) * u128::from(self.count) / squares) as u64
    }

    /// Exact sum.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Shortest, 0 when empty.
    #[must_use]
    pub const fn min(&self) -> u64 {
        self.min
    }

    /// Longest, 0 when empty.
    #[must_use]
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// Upper bound (inclusive) and count of each bucket in use, in order.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets
            .iter()
            .map(|&(index, count)| (Self::upper(index), u64::from(count)))
    }

    fn index(ns: u64) -> u32 {
        let shift = (64 - SUB_BITS).saturating_sub(ns.leading_zeros());
        (shift << SUB_BITS) + (ns >> shift) as u32
    }

    fn upper(index: u32) -> u64 {
        let (shift, sub) = (index >> SUB_BITS, u64::from(index & ((1 << SUB_BITS) - 1)));
        ((sub + 1) << shift).wrapping_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_keep_three_digits() {
        for ns in [
            0,
            1,
            999,
            2047,
            2048,
            1_000_000,
            123_456_789,
            u64::from(u32::MAX),
            u64::MAX / 3,
            u64::MAX,
        ] {
            let upper = Histogram::upper(Histogram::index(ns));
            assert!(upper >= ns, "{ns} -> {upper}");
            assert!((upper - ns) as f64 <= ns as f64 / 1000.0, "{ns} -> {upper}");
        }
    }

    #[test]
    fn a_sample_stands_for_others() {
        let (mut sampled, mut all) = (Histogram::new(), Histogram::new());
        for ns in [3_000, 70_000, 70_000] {
            sampled.record_n(ns, 4);
            (0..4).for_each(|_| all.record(ns));
        }
        assert_eq!((sampled.effective(), all.effective()), (3, 12));
        sampled.squares = all.squares;
        assert_eq!(sampled, all);
    }

    #[test]
    fn merging_equals_recording() {
        let (mut a, mut b, mut all) = (Histogram::new(), Histogram::new(), Histogram::new());
        for ns in (0..5000).map(|i: u64| i * i * 31 % 1_000_003) {
            if ns % 3 == 0 {
                a.record(ns);
            } else {
                b.record(ns);
            }
            all.record(ns);
        }
        a.merge(&b);
        assert_eq!(a, all);
    }
}
