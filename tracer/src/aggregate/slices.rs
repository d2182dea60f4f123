//! When in the window waits ended: their number and time by slice.
//!
//! Waits come in bursts. How much sums differ between slices says how much two runs of one program may differ.

use crate::report::model;

/// Slices, at most; more than half of them are in use once the window is longer than so many of the shortest.
pub const SLICES: usize = 32;
/// log2 of the shortest slice, in ns: 16.8 ms.
const SHORTEST: u32 = 24;

/// Count and time of one slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slice {
    count: u32,
    total_ns: u64,
}

impl Slice {
    const fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
    }
}

/// Sums by slice. A slice gets twice as long whenever the window outgrows all of them, so that memory does not grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slices {
    /// log2 of a slice's length, less [`SHORTEST`].
    doubled: u32,
    sums: Option<Box<[Slice; SLICES]>>,
    /// There was no room for some waits.
    missing: bool,
}

impl Slices {
    /// Whether they take memory.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.sums.is_some()
    }

    /// There is no room for these.
    pub const fn give_up(&mut self) {
        self.missing = true;
    }

    /// `times` waits of `ns` each ended `at_ns` after the window's start.
    pub fn record(&mut self, at_ns: u64, ns: u64, times: u64) {
        self.add(at_ns, times, ns.saturating_mul(times));
    }

    /// So many waits, of this sum, ended `at_ns` after the window's start.
    pub fn add(&mut self, at_ns: u64, count: u64, total_ns: u64) {
        let slice = Slice {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            total_ns,
        };
        let mut at = at_ns >> SHORTEST.saturating_add(self.doubled).min(63);
        while at >= SLICES as u64 {
            self.double();
            at >>= 1;
        }
        let sums = self.sums.get_or_insert_default();
        if let Some(sum) = sums.get_mut(at as usize) {
            sum.add(slice);
        }
    }

    fn double(&mut self) {
        self.doubled += 1;
        let Some(sums) = &mut self.sums else { return };
        let mut longer = [Slice::default(); SLICES];
        for (at, slice) in sums.iter().enumerate() {
            if let Some(sum) = longer.get_mut(at / 2) {
                sum.add(*slice);
            }
        }
        **sums = longer;
    }

    /// Adds those of the same window.
    pub fn merge(&mut self, other: &Self) {
        self.missing |= other.missing;
        let Some(theirs) = &other.sums else { return };
        while self.doubled < other.doubled {
            self.double();
        }
        let shift = self.doubled - other.doubled;
        let sums = self.sums.get_or_insert_default();
        for (at, slice) in theirs.iter().enumerate() {
            if let Some(sum) = sums.get_mut(at >> shift.min(63)) {
                sum.add(*slice);
            }
        }
    }

    /// As the report has them, for a window of this length; None when there was no room for all waits.
    #[must_use]
    pub fn report(&self, window_ns: u64) -> Option<model::Slices> {
        if self.missing {
            return None;
        }
        // What did not wait late in the window has short ones still.
        let mut whole = self.clone();
        let number = |doubled: u32| window_ns.div_ceil(1_u64 << SHORTEST.saturating_add(doubled).min(63));
        while number(whole.doubled) > SLICES as u64 {
            whole.double();
        }
        let used = number(whole.doubled) as usize;
        let mut slices = model::Slices {
            slice_ns: 1_u64 << SHORTEST.saturating_add(whole.doubled).min(63),
            counts: vec![0; used],
            totals_ns: vec![0; used],
        };
        for (at, slice) in whole.sums.iter().flat_map(|sums| sums.iter()).enumerate() {
            // What ended while the window was being closed counts for its last slice.
            let at = at.min(used.saturating_sub(1));
            if let (Some(count), Some(total)) = (slices.counts.get_mut(at), slices.totals_ns.get_mut(at)) {
                *count += u64::from(slice.count);
                *total = total.saturating_add(slice.total_ns);
            }
        }
        Some(slices)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_window_has_more_than_half_of_the_slices() {
        for seconds in [1, 2, 3, 10, 97, 3600] {
            let window = seconds * SECOND;
            let mut slices = Slices::default();
            for at in 0..1000 {
                slices.record(window / 1000 * at, 5, 1);
            }
            let told = slices.report(window).unwrap();
            assert!((17..=32).contains(&told.counts.len()), "{seconds} s: {told:?}");
            assert!(told.counts.iter().all(|&count| count > 0));
        }
    }

    #[test]
    fn one_early_wait_has_a_slice_of_the_window() {
        let mut slices = Slices::default();
        slices.record(0, 7, 3);
        let told = slices.report(100 * SECOND).unwrap();
        assert_eq!((told.counts[0], told.totals_ns[0]), (3, 21));
        assert!(told.counts.len() > 16 && told.slice_ns * told.counts.len() as u64 >= 100 * SECOND);
        slices.give_up();
        assert_eq!(slices.report(SECOND), None);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_whatever_the_order(
            waits in prop::collection::vec((any::<u64>(), 0_u64..1 << 40, 1_u64..100, any::<bool>()), 0..200),
            window in 1_u64..u64::MAX,
        ) {
            let (mut one, mut two, mut all) = (Slices::default(), Slices::default(), Slices::default());
            for &(at, ns, times, first) in &waits {
                if first { &mut one } else { &mut two }.record(at >> 8, ns, times);
                all.record(at >> 8, ns, times);
            }
            one.merge(&two);
            prop_assert_eq!(&one.report(window), &all.report(window));
            let told = one.report(window).unwrap();
            prop_assert!(told.counts.len() <= SLICES);
            prop_assert_eq!(told.counts.iter().sum::<u64>(), waits.iter().map(|w| w.2).sum::<u64>());
            prop_assert_eq!(told.totals_ns.iter().sum::<u64>(), waits.iter().map(|w| w.1 * w.2).sum::<u64>());
        }
    }
}
