//! `--budget`: holds ctrace's own cost under a part of one CPU.
//!
//! ```text
//! cost of the last moments ──> level ──> shortest sleep that gets a record: ×4, four times   (what is left out is counted)
//!   probes + own CPU time        │   └─> then one sleep in 2, 4, … 1,024, drawn when it begins (each stands for the others)
//!                                └────── up at once while over the budget, down when long well below
//! ```
//! Descriptors are never sampled: one birth or death that is missed spoils the table. When they alone cost more than the
//! budget, the report says that it was not held.

use tracer_ebpf::wire::Control;

use crate::report::model;

/// Levels that raise the shortest sleep, each to four times the one before.
const RAISES: u32 = 4;
/// Levels after those, each halving the part of sleeps that gets a record.
const HALVINGS: u32 = 10;
/// Shortest sleep that raising starts from when the command line asks for less.
const RAISE_FROM_NS: u64 = 1_000;
/// Under this part of the budget a lower level may fit.
const WELL_BELOW: f64 = 0.5;
/// So many measurements well below come before a level is given back, at first: each time it proves wrong, twice as many.
const PATIENCE: u32 = 4;
/// At most.
const PATIENCE_MAX: u32 = 256;

/// What the probes leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Sleeps shorter than this get no record.
    pub min_wait_ns: u64,
    /// One sleep in so many gets one.
    pub one_in: u32,
}

impl Setting {
    /// For the probes.
    #[must_use]
    pub fn control(self, shadow_mask: u64, window_ns: u64) -> Control {
        Control {
            armed: 1,
            min_wait_ns: self.min_wait_ns,
            shadow_mask,
            sample_mask: u64::from(self.one_in.max(1) - 1),
            window_ns,
            go_locks_ns: u64::MAX,
            go_parks_ns: u64::MAX,
            ticks_mask: 0,
            faults_mask: 0,
        }
    }
}

/// The level, and why.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Of one CPU; `None`: the setting stays what it is.
    percent: Option<f64>,
    base: Setting,
    level: u32,
    /// Measurements well below in a row, and how many are asked for.
    calm: u32,
    patience: u32,
    /// Measurements since the level last fell; none after it proved right.
    on_trial: Option<u32>,
    /// What was measured at this level: sum and count.
    measured: (f64, u32),
    /// The last level's mean, for a window that ends before this one was measured.
    before: Option<f64>,
    /// The highest level of the window.
    highest: u32,
    /// What the probes cost is not known.
    blind: bool,
}

impl Budget {
    /// With the setting that the command line asks for.
    #[must_use]
    pub const fn new(percent: Option<f64>, base: Setting) -> Self {
        Self {
            percent,
            base,
            level: 0,
            calm: 0,
            patience: PATIENCE,
            on_trial: None,
            measured: (0.0, 0),
            before: None,
            highest: 0,
            blind: false,
        }
    }

    /// Whether there is one.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        self.percent.is_some()
    }

    /// Whether sleeps that the command line asked for had no record in this window.
    #[must_use]
    pub fn leaves_short_out(&self) -> bool {
        self.at(self.highest).min_wait_ns > self.base.min_wait_ns
    }

    /// What holds at present.
    #[must_use]
    pub fn setting(&self) -> Setting {
        self.at(self.level)
    }

    fn at(&self, level: u32) -> Setting {
        if level == 0 {
            return self.base;
        }
        let raised = self
            .base
            .min_wait_ns
            .max(RAISE_FROM_NS)
            .saturating_mul(1 << (2 * level.min(RAISES)));
        Setting {
            min_wait_ns: raised,
            one_in: self.base.one_in << level.saturating_sub(RAISES),
        }
    }

    /// Takes a measurement of user space alone, as the kernel does not say what the probes cost: the least that can be done.
    pub fn measured_in_part(&mut self, cost: f64) -> Option<Setting> {
        self.blind = true;
        self.measured(cost)
    }

    /// Takes a measurement, in percent of one CPU; returns the new setting when it changes.
    pub fn measured(&mut self, cost: f64) -> Option<Setting> {
        let percent = self.percent?;
        self.measured.0 += cost;
        self.measured.1 += 1;
        if let Some(trial) = &mut self.on_trial {
            *trial += 1;
            if *trial > self.patience {
                self.on_trial = None;
                self.patience = PATIENCE;
            }
        }
        if cost > percent {
            self.calm = 0;
            // Too early down: wait longer the next time.
            if self.on_trial.take().is_some() {
                self.patience = (self.patience * 2).min(PATIENCE_MAX);
            }
            let steps = if cost > 4.0 * percent {
                3
            } else if cost > 2.0 * percent {
                2
            } else {
                1
            };
            return self.go((self.level + steps).min(RAISES + HALVINGS));
        }
        self.calm = if cost < WELL_BELOW * percent {
            self.calm + 1
        } else {
            0
        };
        if self.calm < self.patience || self.level == 0 {
            return None;
        }
        self.calm = 0;
        self.on_trial = Some(0);
        self.go(self.level - 1)
    }

    fn go(&mut self, level: u32) -> Option<Setting> {
        if level == self.level {
            return None;
        }
        self.before = self.mean();
        self.measured = (0.0, 0);
        self.level = level;
        self.highest = self.highest.max(level);
        Some(self.setting())
    }

    fn mean(&self) -> Option<f64> {
        let (sum, count) = self.measured;
        if count > 0 {
            Some(sum / f64::from(count))
        } else {
            self.before
        }
    }

    /// For the report of the window that ends; `None` when nothing was left out and no budget was set.
    #[must_use]
    pub fn report(&self) -> Option<model::Budget> {
        if self.percent.is_none() && self.base.one_in <= 1 {
            return None;
        }
        let highest = self.at(self.highest);
        let cpu_percent = self.mean().filter(|_| !self.blind);
        Some(model::Budget {
            percent: self.percent,
            cpu_percent,
            held: self
                .percent
                .zip(cpu_percent)
                .map(|(percent, cost)| cost <= percent),
            min_wait_ns: highest.min_wait_ns,
            one_in: highest.one_in,
        })
    }

    /// Begins a new window.
    pub const fn reset(&mut self) {
        self.highest = self.level;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Setting = Setting {
        min_wait_ns: 1_000,
        one_in: 1,
    };

    /// Waits of every length from 1 us to 16 ms, as many of each octave; each record costs the same, and the rest is fixed.
    fn cost(setting: Setting, fixed: f64, of_records: f64) -> f64 {
        let octaves = (setting.min_wait_ns.max(1) as f64 / 1_000.0).log2();
        fixed + of_records * (14.0 - octaves).max(0.0) / 14.0 / f64::from(setting.one_in)
    }

    #[test]
    fn waits_are_raised_first_then_sampled() {
        let budget = Budget::new(Some(1.0), BASE);
        let settings: Vec<(u64, u32)> = (0..=RAISES + HALVINGS)
            .map(|level| budget.at(level))
            .map(|setting| (setting.min_wait_ns, setting.one_in))
            .collect();
        assert_eq!(
            settings[..7],
            [
                (1_000, 1),
                (4_000, 1),
                (16_000, 1),
                (64_000, 1),
                (256_000, 1),
                (256_000, 2),
                (256_000, 4)
            ]
        );
        assert_eq!(settings.last(), Some(&(256_000, 1024)));
        assert_eq!(budget.at(3).control(7, 0).sample_mask, 0);
        assert_eq!(budget.at(6).control(7, 0).sample_mask, 3);
    }

    #[test]
    fn a_cost_that_can_be_held_is_held_and_stays() {
        for of_records in [0.1, 0.9, 3.0, 12.0, 40.0, 200.0] {
            let mut budget = Budget::new(Some(1.0), BASE);
            let costs: Vec<f64> = (0..2_000)
                .map(|_| {
                    let cost = cost(budget.setting(), 0.2, of_records);
                    budget.measured(cost);
                    cost
                })
                .collect();
            let settled = costs.iter().position(|&cost| cost <= 1.0).unwrap();
            assert!(settled <= 8, "{of_records}: {settled} measurements");
            // A lower level is tried ever more rarely when it never fits.
            let over = costs[settled..].iter().filter(|&&cost| cost > 1.0).count();
            assert!(over <= 12, "{of_records}: {over} of 2,000 over");
        }
    }

    #[test]
    fn when_the_load_goes_everything_is_kept_again() {
        let mut budget = Budget::new(Some(1.0), BASE);
        for _ in 0..100 {
            let cost = cost(budget.setting(), 0.1, 30.0);
            budget.measured(cost);
        }
        assert_ne!(budget.setting(), BASE);
        let busy = budget.report().unwrap();
        assert_eq!(busy.held, Some(true));
        assert!(busy.one_in > 1 || busy.min_wait_ns > 1_000, "{busy:?}");
        for _ in 0..2_000 {
            budget.measured(0.01);
        }
        assert_eq!(budget.setting(), BASE);
        budget.reset();
        assert_eq!(budget.report().unwrap().one_in, 1);
    }

    #[test]
    fn a_cost_that_cannot_be_held_is_said() {
        let mut budget = Budget::new(Some(1.0), BASE);
        for _ in 0..100 {
            budget.measured(2.5);
        }
        let report = budget.report().unwrap();
        assert_eq!((report.held, report.one_in), (Some(false), 1024));
        assert_eq!(report.cpu_percent, Some(2.5));
        budget.measured_in_part(0.1);
        let report = budget.report().unwrap();
        assert_eq!((report.held, report.cpu_percent), (None, None));
    }

    #[test]
    fn without_a_budget_nothing_changes() {
        let mut budget = Budget::new(None, BASE);
        assert_eq!(budget.measured(99.0), None);
        assert_eq!(budget.report(), None);
        let sampled = Budget::new(None, Setting { one_in: 8, ..BASE });
        assert_eq!(sampled.report().unwrap().one_in, 8);
    }
}
