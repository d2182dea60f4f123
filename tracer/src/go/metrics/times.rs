//! The runtime's histograms of times (`runtime.timeHistogram`), in the two forms that it has had.

use crate::{aggregate::hist::Histogram, stacks::elf::u64_at};

/// How the buckets divide time. Told by the code that counts in them, see `find`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Until Go 1.20: 45 octaves in 16 parts from 1 ns on; what is longer counts in the last one.
    Sixteenths,
    /// Since: 40 octaves in 4 parts from 128 ns on, and a counter of what is longer.
    Quarters,
}

impl Form {
    /// Buckets.
    #[must_use]
    pub const fn buckets(self) -> usize {
        match self {
            Self::Sixteenths => 45 << 4,
            Self::Quarters => 40 << 2,
        }
    }

    /// Bytes, with the counters of times below zero and of those that are too long.
    pub(crate) const fn size(self) -> u64 {
        let others = match self {
            Self::Sixteenths => 1,
            Self::Quarters => 2,
        };
        8 * (self.buckets() as u64 + others)
    }

    /// Nanoseconds at which a bucket begins; that of the first one that there is not, too.
    fn start(self, bucket: usize) -> u64 {
        // The lowest bits that tell buckets apart, and what the first octave's are divided by.
        let (part_bits, unit) = match self {
            Self::Sixteenths => (4, 0),
            Self::Quarters => (2, 6),
        };
        let (octave, part) = (bucket >> part_bits, (bucket & ((1 << part_bits) - 1)) as u64);
        match octave.checked_sub(1) {
            None => part << unit,
            Some(above) => ((1 << part_bits) + part) << (unit + above),
        }
    }
}

/// A histogram as it was in memory: counts since the program began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// What the buckets are.
    pub form: Form,
    /// Those below zero, which clocks that jump make.
    pub below: u64,
    /// By bucket.
    pub counts: Vec<u64>,
    /// Those longer than a day.
    pub above: u64,
}

impl Times {
    pub(crate) fn parse(form: Form, bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| u64_at(bytes, 8 * at);
        Some(Self {
            form,
            below: word(form.buckets())?,
            counts: (0..form.buckets()).map(word).collect::<Option<_>>()?,
            above: match form {
                Form::Sixteenths => 0,
                Form::Quarters => word(form.buckets() + 1)?,
            },
        })
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        let inner = self.counts.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        inner.saturating_add(self.below).saturating_add(self.above)
    }

    /// What came since an earlier one.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let earlier = before.counts.iter().copied().chain(std::iter::repeat(0));
        Self {
            form: self.form,
            below: self.below.saturating_sub(before.below),
            counts: self
                .counts
                .iter()
                .zip(earlier)
                .map(|(now, before)| now.saturating_sub(before))
                .collect(),
            above: self.above.saturating_sub(before.above),
        }
    }

    /// As times in the middle of their buckets: within 13 % of what they were (3 % in sixteenths), from half a microsecond on.
    #[must_use]
    pub fn histogram(&self) -> Histogram {
        let mut histogram = Histogram::new();
        for (bucket, &count) in self.counts.iter().enumerate() {
            let (start, end) = (self.form.start(bucket), self.form.start(bucket + 1));
            histogram.record_each(start + (end - start) / 2, count);
        }
        histogram.record_each(0, self.below);
        histogram.record_each(self.form.start(self.form.buckets()), self.above);
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the runtime finds the bucket of a time.
    fn bucket(form: Form, ns: u64) -> usize {
        let bits = 64 - ns.leading_zeros() as usize;
        match form {
            Form::Sixteenths if ns < 16 => ns as usize,
            Form::Sixteenths => {
                let octave = bits - 4;
                (octave << 4) + (ns >> (octave - 1)) as usize % 16
            }
            Form::Quarters => {
                let (bit, octave) = if bits < 9 { (9, 0) } else { (bits, bits - 8) };
                (octave << 2) + (ns >> (bit - 3)) as usize % 4
            }
        }
    }

    #[test]
    fn buckets_begin_where_the_runtime_counts_in_them() {
        for form in [Form::Sixteenths, Form::Quarters] {
            for at in 0..form.buckets() {
                let (start, end) = (form.start(at), form.start(at + 1));
                assert!(start < end, "{form:?} {at}");
                assert_eq!(bucket(form, start), at, "{form:?} {start}");
                assert_eq!(bucket(form, end - 1), at, "{form:?} {end}");
            }
        }
        assert_eq!(Form::Quarters.size(), 1296);
        assert_eq!(Form::Quarters.start(160), 1 << 47);
        assert_eq!(Form::Sixteenths.start(720), 1 << 48);
    }

    #[test]
    fn a_histogram_has_every_count() {
        let mut counts = vec![0; 160];
        (counts[1], counts[159]) = (23, 97);
        let times = Times {
            form: Form::Quarters,
            below: 2,
            counts,
            above: 3,
        };
        let histogram = times.histogram();
        assert_eq!(
            (times.count(), histogram.count(), histogram.effective()),
            (125, 125, 125)
        );
        assert_eq!((histogram.min(), histogram.max()), (0, 1 << 47));
        assert_eq!(times.since(&times).count(), 0);
    }
}
