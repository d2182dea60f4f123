//! How many of the ticks that find a target running get a record: enough for shares, and no more than can be unwound at small cost,
//! on however many CPUs the target runs.

use tracer_ebpf::wire::Control;

/// Records a second above which fewer ticks get one; fewer than a part of them, and more ticks do again.
const MOST: f64 = 400.0;
const FEW: f64 = 0.4;
/// The same for each percent of a CPU that is to be spent at most (`--budget`): a record takes 30 us.
const FOR_A_PERCENT: f64 = 100.0;
/// A rate is taken over so long at least.
const PERIOD_NS: u64 = 200_000_000;
/// One in so many at least.
const RAREST: u64 = 1 << 16;

/// One tick in so many.
#[derive(Clone, Debug)]
pub struct Sampling {
    one_in: u64,
    most: f64,
    /// When records were last counted, and how many since.
    from_ns: u64,
    records: u64,
}

impl Sampling {
    /// So many ticks at first that all CPUs together make no more records than there are to be.
    #[must_use]
    pub fn new(now_ns: u64, ticks_per_s: u64, budget_percent: Option<f64>) -> Self {
        let most = budget_percent.map_or(MOST, |percent| (percent * FOR_A_PERCENT).clamp(1.0, MOST));
        let one_in = (ticks_per_s as f64 / most).ceil() as u64;
        Self {
            one_in: one_in.clamp(1, RAREST).next_power_of_two(),
            most,
            from_ns: now_ns,
            records: 0,
        }
    }

    /// So many records came since the last time; whether the probes are to be told.
    pub fn counted(&mut self, records: u64, now_ns: u64) -> bool {
        self.records += records;
        let elapsed_ns = now_ns.saturating_sub(self.from_ns);
        if elapsed_ns < PERIOD_NS {
            return false;
        }
        self.from_ns = now_ns;
        let rate = std::mem::take(&mut self.records) as f64 * 1e9 / elapsed_ns as f64;
        let before = self.one_in;
        if rate > self.most {
            self.one_in = (self.one_in * 2).min(RAREST);
        } else if rate < FEW * self.most && self.one_in > 1 {
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
        let mut sampling = Sampling::new(0, 64 * 49, None);
        assert_eq!(sampling.one_in, 8);
        // CPUs were added.
        let mut told = 0;
        for second in 1..=20 {
            let records = 256 * 49 / sampling.one_in;
            told += u32::from(sampling.counted(records, second * SECOND));
        }
        assert_eq!((sampling.one_in, told), (32, 2));
    }

    #[test]
    fn a_budget_has_fewer_recorded() {
        assert_eq!(Sampling::new(0, 2 * 49, None).one_in, 1);
        assert_eq!(Sampling::new(0, 2 * 49, Some(0.25)).one_in, 4);
    }

    #[test]
    fn all_are_recorded_again_when_they_become_few() {
        let mut sampling = Sampling::new(0, 49, None);
        assert!(sampling.counted(1000, SECOND));
        // A moment says nothing.
        assert!(!sampling.counted(0, SECOND + 1000));
        assert!(sampling.counted(10, 2 * SECOND));
        assert!(!sampling.counted(10, 3 * SECOND));
        assert_eq!(sampling.one_in, 1);
    }
}
