//! How many of the ticks that find a target running get a record: enough for shares, and no more than can be unwound at small cost,
//! on however many CPUs the target runs.

use tracer_ebpf::wire::Control;

/// Records a second above which fewer ticks get one, and below which more do again.
const MOST: f64 = 400.0;
const FEW: f64 = 150.0;
/// One in so many at least.
const RAREST: u64 = 1 << 16;

/// One tick in so many.
#[derive(Clone, Debug)]
pub struct Sampling {
    one_in: u64,
    /// When records were last counted.
    from_ns: u64,
}

impl Sampling {
    /// Every tick at first.
    #[must_use]
    pub const fn new(now_ns: u64) -> Self {
        Self {
            one_in: 1,
            from_ns: now_ns,
        }
    }

    /// So many records came since the last time; whether the probes are to be told.
    pub fn counted(&mut self, records: u64, now_ns: u64) -> bool {
        let seconds = now_ns.saturating_sub(self.from_ns) as f64 / 1e9;
        self.from_ns = now_ns;
        let rate = records as f64 / seconds.max(1e-3);
        let before = self.one_in;
        if rate > MOST {
            self.one_in = (self.one_in * 2).min(RAREST);
        } else if rate < FEW && self.one_in > 1 {
            self.one_in /= 2;
        }
        self.one_in != before
    }

    /// Tells the probes.
    #[must_use]
    pub const fn mark(&self, control: Control) -> Control {
        Control {
            ticks_mask: self.one_in - 1,
            ..control
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// 64 CPUs that are never idle.
    #[test]
    fn the_records_of_many_cpus_are_thinned_until_they_are_few() {
        let (mut sampling, mut told) = (Sampling::new(0), 0);
        for second in 1..=20 {
            let records = 64 * 49 / sampling.one_in;
            told += u32::from(sampling.counted(records, second * SECOND));
        }
        assert_eq!((sampling.one_in, told), (8, 3));
    }

    #[test]
    fn all_are_recorded_again_when_they_become_few() {
        let mut sampling = Sampling::new(0);
        assert!(sampling.counted(1000, SECOND));
        assert!(sampling.counted(10, 2 * SECOND));
        assert!(!sampling.counted(10, 3 * SECOND));
        assert_eq!(sampling.one_in, 1);
    }
}
