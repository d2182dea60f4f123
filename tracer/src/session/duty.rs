//! When probes in programs are there: always, unless they alone would cost more than they may.
//!
//! A uprobe's trap costs the program even when the probe does nothing, so sampling alone cannot hold a cost: the probes are taken
//! away for a while.
//!
//! ```text
//! debt   + hits × (trap + probe) + own CPU time for their records      − what they may cost, all the time
//!          over the limit: away ──────> back to nothing: there again, in a new part
//! ```
//! Nothing is scaled: the report has what was seen in the parts, and how long they were.

use tracer_ebpf::wire::Control;

use crate::capture::uprobes::Group;

/// What a trap costs the program, by measurement of one that does little else (`docs/probes.md`); the kernel does not tell.
const TRAP_NS: f64 = 1_000.0;
/// What a hit costs in the probe until the kernel has told.
const PROBE_NS: f64 = 1_200.0;
/// The debt at which they go is what they may cost in so long a time, half or one and a half times of it by chance, so that nothing
/// that the program does regularly keeps step.
const LIMIT: f64 = 2e9;
/// They stay for so long at least: what is longer than a part cannot be seen in it.
const PART_NS: u64 = 50_000_000;

/// What is to be done with the probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    Stay,
    /// Take them away.
    Leave,
    /// Put them there again.
    Return,
}

/// What probes did and cost since a turn before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Hits.
    pub hits: u64,
    /// Time in a probe for each hit; `None` while the kernel has not told.
    pub probe_ns: Option<f64>,
    /// CPU time in user space.
    pub user_ns: f64,
}

impl Cost {
    /// All of it, in CPU time.
    #[must_use]
    pub fn ns(&self) -> f64 {
        self.hits as f64 * (TRAP_NS + self.probe_ns.unwrap_or(PROBE_NS)) + self.user_ns
    }
}

/// One group of probes.
#[derive(Clone, Debug)]
pub struct Duty {
    /// What they may cost, in percent of one CPU; `None`: whatever they do.
    percent: Option<f64>,
    /// Since when they are there.
    since_ns: Option<u64>,
    /// They were taken away.
    away: bool,
    debt_ns: f64,
    limit_ns: f64,
    last_ns: u64,
    random: u64,
    /// When the window began, and how long they were there in it until the last part's end, in how many parts.
    window_ns: u64,
    covered_ns: u64,
    parts: u32,
    /// Sum of their cost since the window began.
    spent_ns: f64,
}

impl Duty {
    /// They are not there yet.
    #[must_use]
    pub fn new(percent: Option<f64>, now_ns: u64) -> Self {
        let mut duty = Self {
            percent,
            since_ns: None,
            away: false,
            debt_ns: 0.0,
            limit_ns: 0.0,
            last_ns: now_ns,
            random: now_ns,
            window_ns: now_ns,
            covered_ns: 0,
            parts: 0,
            spent_ns: 0.0,
        };
        duty.limit_ns = duty.limit();
        duty
    }

    /// They have been put there.
    pub const fn begin(&mut self, now_ns: u64) {
        if self.since_ns.is_none() {
            self.since_ns = Some(now_ns);
            self.parts += 1;
            self.away = false;
        }
    }

    /// Whether they were taken away, and are not to be put anywhere now.
    #[must_use]
    pub const fn is_away(&self) -> bool {
        self.away
    }

    /// Whether they are there.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.since_ns.is_some()
    }

    /// Whether they can go at all.
    #[must_use]
    pub const fn is_bounded(&self) -> bool {
        self.percent.is_some()
    }

    /// Takes what they cost since the last time.
    pub fn turn(&mut self, now_ns: u64, cost: &Cost) -> Turn {
        let Some(percent) = self.percent else {
            return Turn::Stay;
        };
        let spent = cost.ns();
        let elapsed = now_ns.saturating_sub(self.last_ns) as f64;
        self.last_ns = now_ns;
        self.spent_ns += spent;
        // What was not used is no credit: a sudden load would have too much of it.
        self.debt_ns = (self.debt_ns + spent - elapsed * percent / 100.0).max(0.0);
        match self.since_ns {
            Some(since) if self.debt_ns > self.limit_ns && now_ns.saturating_sub(since) >= PART_NS => {
                self.since_ns = None;
                self.away = true;
                self.covered_ns += now_ns.saturating_sub(since.max(self.window_ns));
                Turn::Leave
            }
            None if self.away && self.debt_ns <= 0.0 => {
                self.limit_ns = self.limit();
                Turn::Return
            }
            _ => Turn::Stay,
        }
    }

    fn limit(&mut self) -> f64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let chance = 0.5 + (self.random >> 40) as f64 / (1u64 << 24) as f64;
        self.percent.unwrap_or_default() / 100.0 * LIMIT * chance
    }

    /// How long they were there in the window that ends now, in how many parts, and what they cost, in percent of one CPU.
    #[must_use]
    pub fn covered(&self, now_ns: u64) -> (u64, u32, f64) {
        let now_on = self
            .since_ns
            .map_or(0, |since| now_ns.saturating_sub(since.max(self.window_ns)));
        let window = now_ns.saturating_sub(self.window_ns).max(1) as f64;
        (
            self.covered_ns + now_on,
            self.parts,
            self.spent_ns * 100.0 / window,
        )
    }

    /// Begins a new window.
    pub fn reset(&mut self, now_ns: u64) {
        self.window_ns = now_ns;
        self.covered_ns = 0;
        self.parts = u32::from(self.is_on());
        self.spent_ns = 0.0;
    }

    /// What they may cost, in percent of one CPU.
    #[must_use]
    pub const fn percent(&self) -> Option<f64> {
        self.percent
    }

    /// Since when what they record is valid, for the probes.
    #[must_use]
    pub const fn since(&self) -> u64 {
        match self.since_ns {
            Some(since) => since,
            None => u64::MAX,
        }
    }
}

/// The probes in Go programs: those on locks, and those on all waits.
#[derive(Clone, Debug)]
pub struct Duties {
    /// On locks.
    pub locks: Duty,
    /// On all waits, when they are asked for.
    pub parks: Option<Duty>,
}

/// What the probes on all waits may cost when nothing else was said, in percent of one CPU.
pub const PARKS_PERCENT: f64 = 2.0;
/// The part of `--budget` that each group may have alone.
const SHARE: f64 = 0.5;

impl Duties {
    /// Under a budget for all that ctrace does.
    #[must_use]
    pub fn new(budget: Option<f64>, parks: bool, now_ns: u64) -> Self {
        let percent = budget.map(|budget| budget * SHARE);
        Self {
            locks: Duty::new(percent, now_ns),
            parks: parks.then(|| Duty::new(Some(percent.unwrap_or(PARKS_PERCENT)), now_ns)),
        }
    }

    /// Of a group; `None` when it is not asked for.
    pub const fn of(&mut self, group: Group) -> Option<&mut Duty> {
        match group {
            Group::Locks => Some(&mut self.locks),
            Group::Parks => self.parks.as_mut(),
        }
    }

    /// Tells the probes.
    #[must_use]
    pub fn mark(&self, control: Control) -> Control {
        Control {
            go_locks_ns: self.locks.since(),
            go_parks_ns: self.parks.as_ref().map_or(u64::MAX, Duty::since),
            ..control
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1_000 * MS;

    /// A load of so many hits a second for so long, looked at every 10 ms: the time covered, the parts and the cost.
    fn run(duty: &mut Duty, from_ns: u64, seconds: u64, hits_per_s: u64) -> (u64, u32, f64) {
        let mut now = from_ns;
        while now < from_ns + seconds * SECOND {
            now += 10 * MS;
            let hits = if duty.is_on() { hits_per_s / 100 } else { 0 };
            let cost = Cost {
                hits,
                probe_ns: Some(0.0),
                user_ns: 0.0,
            };
            match duty.turn(now, &cost) {
                Turn::Stay | Turn::Leave => {}
                Turn::Return => duty.begin(now),
            }
        }
        duty.covered(now)
    }

    fn begun(percent: Option<f64>) -> Duty {
        let mut duty = Duty::new(percent, 5 * SECOND);
        duty.begin(5 * SECOND);
        duty
    }

    #[test]
    fn what_costs_little_stays() {
        let mut duty = begun(Some(2.0));
        let (covered_ns, parts, percent) = run(&mut duty, 5 * SECOND, 60, 19_000);
        assert_eq!((covered_ns, parts), (60 * SECOND, 1));
        assert!((percent - 1.9).abs() < 0.01, "{percent}");
    }

    #[test]
    fn what_costs_too_much_goes_and_comes_back() {
        for hits_per_s in [25_000, 100_000, 1_500_000] {
            let mut duty = begun(Some(2.0));
            let (covered_ns, parts, percent) = run(&mut duty, 5 * SECOND, 600, hits_per_s);
            let expected = 600.0 * 20_000.0 / hits_per_s as f64;
            let covered = covered_ns as f64 / 1e9;
            assert!(percent < 2.3, "{hits_per_s}: {percent} %");
            assert!(
                (0.8..1.5).contains(&(covered / expected)),
                "{hits_per_s}: {covered} s"
            );
            assert!(parts > 20, "{hits_per_s}: {parts}");
        }
    }

    #[test]
    fn without_a_budget_they_stay_whatever_they_cost() {
        let mut duty = begun(None);
        let (covered_ns, parts, _) = run(&mut duty, 5 * SECOND, 10, 3_000_000);
        assert_eq!((covered_ns, parts), (10 * SECOND, 1));
        assert_eq!(duty.since(), 5 * SECOND);
    }

    #[test]
    fn a_window_counts_what_lies_in_it() {
        let mut duty = begun(Some(2.0));
        run(&mut duty, 5 * SECOND, 3, 10_000);
        duty.reset(8 * SECOND);
        let (covered_ns, parts, _) = run(&mut duty, 8 * SECOND, 2, 10_000);
        assert_eq!((covered_ns, parts), (2 * SECOND, 1));
    }

    #[test]
    fn the_probes_are_told_since_when() {
        let mut duties = Duties::new(Some(3.0), true, 7);
        duties.locks.begin(9);
        let control = duties.mark(Control {
            armed: 1,
            min_wait_ns: 0,
            shadow_mask: 0,
            sample_mask: 0,
            window_ns: 0,
            go_locks_ns: 0,
            go_parks_ns: 0,
        });
        assert_eq!((control.go_locks_ns, control.go_parks_ns), (9, u64::MAX));
        let parks = duties.parks.as_ref().and_then(Duty::percent);
        assert_eq!((duties.locks.percent(), parks), (Some(1.5), Some(1.5)));
        let alone = Duties::new(None, true, 7);
        assert_eq!(alone.locks.percent(), None);
        assert_eq!(alone.parks.unwrap().percent(), Some(PARKS_PERCENT));
    }
}
