//! How many of the ticks that find a target running get a record, and of the page faults that are looked at: enough for shares, and no more
//! than can be unwound at small cost, on however many CPUs the target runs and however much memory it touches.

/// Records a second above which fewer ticks get one; fewer than a part of them, and more ticks do again.
const MOST: f64 = 400.0;
/// The same of page faults.
const MOST_FAULTS: f64 = 60.0;
/// Of those one in so many at first: a program that is starting touches much.
const FAULTS_AT_FIRST: u64 = 4;
const FEW: f64 = 0.4;
/// The same for each percent of a CPU that is to be spent at most (`--budget`): a record takes 30 us.
const FOR_A_PERCENT: f64 = 100.0;
/// A rate is taken over so long at least.
const PERIOD_NS: u64 = 200_000_000;
/// One in so many at least.
const RAREST: u64 = 1 << 16;

/// One in so many.
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
        let mut sampling = Self {
            one_in: 1,
            most: within(budget_percent, MOST),
            from_ns: now_ns,
            records: 0,
        };
        sampling.one_in = sampling.holding(ticks_per_s as f64);
        sampling
    }

    /// The same of page faults.
    #[must_use]
    pub fn of_faults(now_ns: u64, budget_percent: Option<f64>) -> Self {
        Self {
            one_in: FAULTS_AT_FIRST,
            most: within(budget_percent, MOST_FAULTS),
            from_ns: now_ns,
            records: 0,
        }
    }

    /// One in so many that of so many a second there are no more records than there are to be.
    fn holding(&self, per_s: f64) -> u64 {
        ((per_s / self.most).ceil() as u64)
            .clamp(1, RAREST)
            .next_power_of_two()
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
            self.one_in = self.holding(rate * self.one_in as f64);
        } else if rate < FEW * self.most && self.one_in > 1 {
            self.one_in /= 2;
        }
        self.one_in != before
    }

    /// As the probes are told (`Control::ticks_mask`).
    #[must_use]
    pub const fn mask(&self) -> u64 {
        self.one_in - 1
    }
}

fn within(budget_percent: Option<f64>, most: f64) -> f64 {
    budget_percent.map_or(most, |percent| (percent * FOR_A_PERCENT).clamp(1.0, most))
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
        assert_eq!((sampling.one_in, told), (32, 1));
    }

    #[test]
    fn a_storm_of_faults_is_thinned_at_once() {
        let mut sampling = Sampling::of_faults(0, None);
        assert!(sampling.counted(2000, SECOND / 4));
        assert_eq!(sampling.one_in, 1024);
        assert_eq!(sampling.mask(), 1023);
    }

    #[test]
    fn a_budget_has_fewer_recorded() {
        assert_eq!(Sampling::new(0, 2 * 49, None).one_in, 1);
        assert_eq!(Sampling::new(0, 2 * 49, Some(0.25)).one_in, 4);
    }

    #[test]
    fn all_are_recorded_again_when_they_become_few() {
        let mut sampling = Sampling::new(0, 49, None);
        assert!(sampling.counted(500, SECOND));
        // A moment says nothing.
        assert!(!sampling.counted(0, SECOND + 1000));
        assert!(sampling.counted(10, 2 * SECOND));
        assert!(!sampling.counted(10, 3 * SECOND));
        assert_eq!(sampling.one_in, 1);
    }
}
