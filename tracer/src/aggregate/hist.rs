//! A histogram with three significant digits, or with fewer when there are so many that they would take too much memory.
//!
//! A dense three-digit `hdrhistogram` takes over 100 KB, and there are two for each lock and stack. So a few samples are kept as a
//! list of (bucket, count), and many as counters of the octaves in use, where a sample costs an addition. What all histograms of one
//! owner may take together is its [`Room`]: when that is used up, the largest lose every other bucket.

/// Sub-buckets per octave: 1024 keep 3 digits as `hdrhistogram` does.
const OCTAVE_BITS: u32 = 10;
/// Buckets kept as a list.
const LISTED_MAX: usize = 128;
/// Bytes of the counters of a histogram in three digits at most.
const BYTES_MAX: usize = (56 << OCTAVE_BITS) * size_of::<u32>();
/// Bytes that each histogram may have whatever the room: a counter for each octave.
const BYTES_MIN: usize = 64 * size_of::<u32>();

/// Times in nanoseconds, in log-linear buckets; count, sum, minimum and maximum are exact.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: Buckets,
    /// A bucket is 2 to the power of this as wide as three digits ask for.
    coarse: u8,
    count: u64,
    /// Sum of the squares of the samples' weights.
    squares: u64,
    total: u64,
    min: u64,
    max: u64,
}

#[derive(Clone, Debug)]
enum Buckets {
    /// (bucket, count), by bucket.
    Listed(Vec<(u32, u32)>),
    /// The counters of whole octaves, and the bucket of the first.
    Counted(u32, Counters),
}

impl Default for Buckets {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

/// Counters, narrow ones as long as they hold: where memory is short, narrow ones are twice as many.
#[derive(Clone, Debug)]
enum Counters {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl Counters {
    const fn len(&self) -> usize {
        match self {
            Self::Narrow(counters) => counters.len(),
            Self::Wide(counters) => counters.len(),
        }
    }

    const fn width(&self) -> usize {
        match self {
            Self::Narrow(_) => size_of::<u16>(),
            Self::Wide(_) => size_of::<u32>(),
        }
    }

    const fn bytes(&self) -> usize {
        match self {
            Self::Narrow(counters) => counters.capacity() * size_of::<u16>(),
            Self::Wide(counters) => counters.capacity() * size_of::<u32>(),
        }
    }

    fn get(&self, at: usize) -> u32 {
        match self {
            Self::Narrow(counters) => counters.get(at).copied().map_or(0, u32::from),
            Self::Wide(counters) => counters.get(at).copied().unwrap_or(0),
        }
    }

    /// Adds to one that there is.
    fn add(&mut self, at: usize, n: u32) {
        if let Self::Narrow(counters) = self
            && let Some(counter) = counters.get_mut(at)
        {
            if let Some(sum) = u16::try_from(n).ok().and_then(|n| counter.checked_add(n)) {
                *counter = sum;
                return;
            }
            *self = Self::Wide(counters.iter().copied().map(u32::from).collect());
        }
        if let Self::Wide(counters) = self
            && let Some(counter) = counters.get_mut(at)
        {
            *counter = counter.saturating_add(n);
        }
    }

    /// So many more below and above.
    fn grow(&mut self, below: usize, len: usize) {
        fn grow<T: Copy + Default>(counters: &mut Vec<T>, below: usize, len: usize) {
            counters.reserve_exact(len.saturating_sub(counters.len()));
            counters.resize(len, T::default());
            counters.rotate_right(below);
        }
        match self {
            Self::Narrow(counters) => grow(counters, below, len),
            Self::Wide(counters) => grow(counters, below, len),
        }
    }

    /// Makes two one.
    fn halve(&mut self) {
        for at in 0..self.len() / 2 {
            let (one, two) = (self.get(2 * at), self.get(2 * at + 1));
            match self {
                Self::Narrow(counters) => counters[at] = 0,
                Self::Wide(counters) => counters[at] = 0,
            }
            self.add(at, one.saturating_add(two));
        }
        match self {
            Self::Narrow(counters) => {
                counters.truncate(counters.len() / 2);
                counters.shrink_to_fit();
            }
            Self::Wide(counters) => {
                counters.truncate(counters.len() / 2);
                counters.shrink_to_fit();
            }
        }
    }
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            buckets: Buckets::Listed(Vec::new()),
            coarse: 0,
            count: 0,
            squares: 0,
            total: 0,
            min: 0,
            max: 0,
        }
    }

    /// Adds one sample, in three digits.
    pub fn record(&mut self, ns: u64) {
        self.record_n(ns, 1);
    }

    /// Adds a sample that stands for `n`, in three digits.
    pub fn record_n(&mut self, ns: u64, n: u64) {
        self.record_within(ns, n, BYTES_MAX);
    }

    /// Adds `n` samples of one bucket of somebody else's histogram: each stands for itself.
    pub fn record_each(&mut self, ns: u64, n: u64) {
        let squares = self.squares;
        self.record_n(ns, n);
        self.squares = squares.saturating_add(n);
    }

    /// Adds a sample that stands for `n`; it may take so many bytes.
    fn record_within(&mut self, ns: u64, n: u64, limit: usize) {
        if n == 0 {
            return;
        }
        self.add(index(ns), u32::try_from(n).unwrap_or(u32::MAX), limit);
        self.min = if self.count == 0 { ns } else { self.min.min(ns) };
        self.max = self.max.max(ns);
        self.count = self.count.saturating_add(n);
        self.squares = self.squares.saturating_add(n.saturating_mul(n));
        self.total = self.total.saturating_add(ns.saturating_mul(n));
    }

    /// Counts a bucket of three digits.
    fn add(&mut self, index: u32, n: u32, limit: usize) {
        loop {
            let bucket = index >> self.coarse;
            match &mut self.buckets {
                Buckets::Counted(first, counters) => {
                    let at = bucket.wrapping_sub(*first) as usize;
                    if at < counters.len() {
                        let before = counters.width();
                        counters.add(at, n);
                        if counters.width() != before {
                            self.shrink(limit);
                        }
                        return;
                    }
                }
                Buckets::Listed(list) => match list.binary_search_by_key(&bucket, |&(bucket, _)| bucket) {
                    Ok(at) => {
                        list[at].1 = list[at].1.saturating_add(n);
                        return;
                    }
                    Err(at) if list.len() < listed_max(limit) => {
                        list.insert(at, (bucket, n));
                        return;
                    }
                    Err(_) => {}
                },
            }
            self.cover(bucket, limit);
        }
    }

    /// Makes counters of the list, or more counters, so that there is one for the bucket; or makes the buckets wider.
    fn cover(&mut self, bucket: u32, limit: usize) {
        let octave_bits = OCTAVE_BITS - u32::from(self.coarse);
        let (ends, width) = match &self.buckets {
            Buckets::Listed(list) => (
                list.first().zip(list.last()).map(|(a, b)| (a.0, b.0)),
                size_of::<u16>(),
            ),
            Buckets::Counted(first, counters) => (
                Some((*first, first + counters.len() as u32 - 1)),
                counters.width(),
            ),
        };
        let (low, high) = ends.map_or((bucket, bucket), |(low, high)| {
            (low.min(bucket), high.max(bucket))
        });
        let first = low >> octave_bits << octave_bits;
        let len = ((((high >> octave_bits) + 1) << octave_bits) - first) as usize;
        if len * width > limit && octave_bits > 0 {
            self.widen();
            return;
        }
        match &mut self.buckets {
            Buckets::Listed(list) => {
                let mut counters = Counters::Narrow(vec![0; len]);
                for &(bucket, count) in list.iter() {
                    counters.add((bucket - first) as usize, count);
                }
                self.buckets = Buckets::Counted(first, counters);
            }
            Buckets::Counted(start, counters) => {
                counters.grow((*start - first) as usize, len);
                *start = first;
            }
        }
    }

    /// Makes two buckets one.
    fn widen(&mut self) {
        self.coarse += 1;
        match &mut self.buckets {
            Buckets::Listed(list) => {
                for entry in list.iter_mut() {
                    entry.0 >>= 1;
                }
                list.dedup_by(|next, kept| {
                    let same = next.0 == kept.0;
                    if same {
                        kept.1 = kept.1.saturating_add(next.1);
                    }
                    same
                });
            }
            // They begin at an octave, so that pairs do not straddle their ends.
            Buckets::Counted(first, counters) => {
                *first >>= 1;
                counters.halve();
            }
        }
    }

    /// Makes it fit.
    fn shrink(&mut self, limit: usize) {
        loop {
            let fits = match &self.buckets {
                Buckets::Listed(list) => list.len() <= listed_max(limit),
                Buckets::Counted(_, counters) => counters.len() * counters.width() <= limit,
            };
            if fits || u32::from(self.coarse) >= OCTAVE_BITS {
                break;
            }
            self.widen();
        }
        if let Buckets::Listed(list) = &mut self.buckets {
            list.shrink_to(listed_max(limit));
        }
    }

    /// Memory that it takes beside its own size.
    fn bytes(&self) -> usize {
        match &self.buckets {
            Buckets::Listed(list) => list.capacity() * size_of::<(u32, u32)>(),
            Buckets::Counted(_, counters) => counters.bytes(),
        }
    }

    /// Adds all samples of `other`.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        while self.coarse < other.coarse {
            self.widen();
        }
        for (bucket, count) in other.counts() {
            self.add(bucket << other.coarse, count, BYTES_MAX);
        }
        self.min = if self.count == 0 {
            other.min
        } else {
            self.min.min(other.min)
        };
        self.max = self.max.max(other.max);
        self.count = self.count.saturating_add(other.count);
        self.squares = self.squares.saturating_add(other.squares);
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

    /// How much too long a bucket's upper bound may be, at most: 0.001 in three digits.
    #[must_use]
    pub fn error(&self) -> f64 {
        f64::from(1u32 << self.coarse) / f64::from(1u32 << OCTAVE_BITS)
    }

    /// Upper bound (inclusive) and count of each bucket in use, in order.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts()
            .map(|(bucket, count)| (upper(((bucket + 1) << self.coarse) - 1), u64::from(count)))
    }

    /// The buckets in use, as they are kept.
    fn counts(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let (listed, counted) = match &self.buckets {
            Buckets::Listed(list) => (&list[..], None),
            Buckets::Counted(first, counters) => (&[][..], Some((*first, counters))),
        };
        let counted = counted.into_iter().flat_map(|(first, counters)| {
            (0..counters.len()).map(move |at| (first + at as u32, counters.get(at)))
        });
        (listed.iter().copied())
            .chain(counted)
            .filter(|&(_, count)| count > 0)
    }
}

impl PartialEq for Histogram {
    /// The same times in the same buckets, however they are kept and whatever they were told by.
    fn eq(&self, other: &Self) -> bool {
        (self.count, self.total, self.min, self.max) == (other.count, other.total, other.min, other.max)
            && self.buckets().eq(other.buckets())
    }
}

impl Eq for Histogram {}

/// Entries of a list in so many bytes.
const fn listed_max(limit: usize) -> usize {
    let max = limit / size_of::<(u32, u32)>();
    if max < LISTED_MAX { max } else { LISTED_MAX }
}

/// The bucket of three digits.
const fn index(ns: u64) -> u32 {
    let shift = (u64::BITS - OCTAVE_BITS - 1).saturating_sub(ns.leading_zeros());
    (shift << OCTAVE_BITS) + (ns >> shift) as u32
}

/// The longest time in a bucket of three digits.
const fn upper(index: u32) -> u64 {
    let shift = (index >> OCTAVE_BITS).saturating_sub(1);
    let sub = (index - (shift << OCTAVE_BITS)) as u64;
    ((sub + 1) << shift).wrapping_sub(1)
}

/// Memory that many histograms share.
#[derive(Clone, Debug)]
pub struct Room {
    /// Bytes that one may have.
    limit: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Room {
    /// Histograms may take so much together; or, when there are so many, 256 bytes each.
    #[must_use]
    pub const fn new(bytes_max: usize) -> Self {
        Self {
            limit: BYTES_MAX,
            bytes: 0,
            bytes_max,
        }
    }

    /// Adds a sample that stands for `n` to one that shares the room. [`Room::is_full`] is to be asked afterwards.
    pub fn record_n(&mut self, to: &mut Histogram, ns: u64, n: u64) {
        let before = to.bytes();
        to.record_within(ns, n, self.limit);
        self.bytes = (self.bytes + to.bytes()).saturating_sub(before);
    }

    /// [`Room::shrink`] is to be called.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.bytes > self.bytes_max && self.limit > BYTES_MIN
    }

    /// Halves how much one may have; called for as long as the room is full, with all that share it.
    pub fn shrink<'a>(&mut self, all: impl Iterator<Item = &'a mut Histogram>) {
        self.limit = (self.limit / 2).max(BYTES_MIN);
        self.bytes = 0;
        for one in all {
            one.shrink(self.limit);
            self.bytes += one.bytes();
        }
    }

    /// One is gone.
    pub fn leave(&mut self, one: &Histogram) {
        self.bytes = self.bytes.saturating_sub(one.bytes());
    }

    /// All are gone.
    pub const fn clear(&mut self) {
        self.limit = BYTES_MAX;
        self.bytes = 0;
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
            let upper = upper(index(ns));
            assert!(upper >= ns, "{ns} -> {upper}");
            assert!((upper - ns) as f64 <= ns as f64 / 1000.0, "{ns} -> {upper}");
        }
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

    #[test]
    fn a_weight_is_so_many_samples() {
        let (mut one, mut many) = (Histogram::new(), Histogram::new());
        one.record_n(1_234_567, 97);
        (0..97).for_each(|_| many.record(1_234_567));
        one.record_n(5, 0);
        assert_eq!(one, many);
        assert_eq!((one.effective(), many.effective()), (1, 97));
        // One of four and another of four tell as much as two.
        one = Histogram::new();
        one.record_n(3_000, 4);
        one.record_n(70_000, 4);
        assert_eq!((one.count(), one.effective()), (8, 2));
    }

    #[test]
    fn counters_hold_what_does_not_fit_a_narrow_one() {
        let (mut one, mut parts) = (Histogram::new(), Histogram::new());
        for ns in spread(5).take(1000) {
            one.record_n(ns, 65_535);
            one.record_n(ns, 2);
            for _ in 0..65_537 / 97 {
                parts.record_n(ns, 97);
            }
            parts.record_n(ns, 65_537 % 97);
        }
        assert_eq!(one, parts);
        assert_eq!(one.buckets().map(|(_, count)| count).sum::<u64>(), 65_537_000);
    }

    fn spread(seed: u64) -> impl Iterator<Item = u64> {
        let mut state = seed;
        std::iter::from_fn(move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            Some(1 + (state >> 20 & 0xffff) * (state >> 36 & 0xffff) / 16)
        })
    }

    #[test]
    fn a_full_room_makes_the_widest_coarser_and_keeps_the_rest() {
        let mut room = Room::new(64 << 10);
        let mut all = vec![Histogram::new(); 23];
        let mut samples = vec![Vec::new(); 23];
        for (at, ns) in (0..97_000).zip(spread(7)) {
            // The last few have few samples.
            let which = at % 19;
            let which = if which == 18 && at % 97 == 0 {
                18 + at % 5
            } else {
                which.min(17)
            };
            room.record_n(&mut all[which], ns, 1);
            samples[which].push(ns);
            while room.is_full() {
                room.shrink(all.iter_mut());
            }
            assert!(room.bytes <= room.bytes_max);
        }
        assert_eq!(room.bytes, all.iter().map(Histogram::bytes).sum::<usize>());
        for (one, samples) in all.iter().zip(&mut samples) {
            samples.sort_unstable();
            assert_eq!(one.count(), samples.len() as u64);
            assert_eq!(one.total(), samples.iter().sum::<u64>());
            // Each rank's bucket holds its sample.
            let mut rank = 0;
            for (upper, count) in one.buckets() {
                let here = &samples[rank..rank + count as usize];
                assert!(here.iter().all(|&ns| ns <= upper
                    && (upper - ns) as f64 <= ns as f64 * one.error() + 1024.0 * one.error()));
                rank += count as usize;
            }
            assert_eq!(rank, samples.len());
        }
        assert!(
            all[0].error() > 0.01 && all[0].error() < 0.1,
            "{}",
            all[0].error()
        );
        assert!(all[20].error() < 0.001, "{}", all[20].error());
        // Merging keeps all samples, in the coarser buckets.
        let mut sum = all[20].clone();
        sum.merge(&all[0]);
        assert!((sum.error() - all[0].error()).abs() < f64::EPSILON);
        let mut other = all[0].clone();
        other.merge(&all[20]);
        assert_eq!(sum, other);
    }

    #[test]
    fn however_small_the_room_a_histogram_holds_everything() {
        let mut room = Room::new(0);
        let mut one = Histogram::new();
        for ns in (0..64)
            .map(|bit| 1u64 << bit)
            .chain([0, u64::MAX])
            .chain(spread(3).take(10_000))
        {
            room.record_n(&mut one, ns, 1);
            while room.is_full() {
                room.shrink(std::iter::once(&mut one));
            }
        }
        assert!(one.bytes() <= BYTES_MIN);
        assert_eq!(one.buckets().map(|(_, count)| count).sum::<u64>(), 10_066);
        assert_eq!((one.min(), one.max()), (0, u64::MAX));
    }
}
