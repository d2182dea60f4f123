//! When probes in programs are there: always, unless they alone would cost more than they may.
//!
//! A uprobe's trap costs the program even when the probe does nothing, so sampling alone cannot hold a cost: the probes are taken
//! away for a while.
//!
//! ```text
//! credit  + what they may cost, all the time      − hits × (trap + probe) − own CPU time for their records
//!           used up, or going fast: away ──────> some of it is there again: so are they, in a new part
//! ```
//! A load that would use all of the credit at once has it in several parts, so that what is seen is not of one moment.
//! Nothing is scaled: the report has what was seen in the parts, and how long they were.

use tracer_ebpf::wire::Control;

use crate::capture::{
    PROBE_NS,
    uprobes::{GROUPS, Group},
};

/// What a trap costs the program, by measurement of one that does little else (`docs/probes.md`); the kernel does not tell.
const TRAP_NS: f64 = 1_000.0;

/// What a group of probes may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Percent of one CPU.
    pub percent: f64,
    /// What that comes to in this time is there from the start, and saved up at most: a short trace is whole.
    pub saved_ns: f64,
    /// They stay for so long at least: what is longer than a part cannot be seen in it.
    pub part_ns: u64,
}

/// So many times faster than it comes in, credit is not to be used up in one part.
const FAST: f64 = 20.0;
/// But in so many.
const PARTS: f64 = 4.0;
/// Between two parts, at least, half or one and a half times of it by chance.
const PAUSE_NS: f64 = 0.5e9;

impl Bound {
    /// Credit at most.
    fn most_ns(&self) -> f64 {
        self.percent / 100.0 * self.saved_ns
    }
}

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
    bound: Bound,
    /// Since when they are there.
    since_ns: Option<u64>,
    /// They were taken away.
    away: bool,
    /// What they may still cost; below 0 when it was too much.
    credit_ns: f64,
    /// What they cost in this part.
    part_ns: f64,
    /// They come back with so much credit, and not before this time.
    back_at: (f64, u64),
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
    pub fn new(bound: Bound, now_ns: u64) -> Self {
        Self {
            bound,
            since_ns: None,
            away: false,
            credit_ns: bound.most_ns(),
            part_ns: 0.0,
            back_at: (0.0, 0),
            last_ns: now_ns,
            random: now_ns,
            window_ns: now_ns,
            covered_ns: 0,
            parts: 0,
            spent_ns: 0.0,
        }
    }

    /// They have been put there.
    pub const fn begin(&mut self, now_ns: u64) {
        if self.since_ns.is_none() {
            self.since_ns = Some(now_ns);
            self.part_ns = 0.0;
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

    /// Takes what they cost since the last time.
    pub fn turn(&mut self, now_ns: u64, cost: &Cost) -> Turn {
        let spent = cost.ns();
        let rate = self.bound.percent / 100.0;
        let earned = now_ns.saturating_sub(self.last_ns) as f64 * rate;
        let most_ns = self.bound.most_ns();
        self.last_ns = now_ns;
        self.spent_ns += spent;
        self.part_ns += spent;
        self.credit_ns = (self.credit_ns + earned - spent).min(most_ns);
        let Some(since) = self.since_ns else {
            let (credit_ns, at_ns) = self.back_at;
            let back = self.away && self.credit_ns >= credit_ns && now_ns >= at_ns;
            return if back { Turn::Return } else { Turn::Stay };
        };
        let part = now_ns.saturating_sub(since);
        let fast = self.part_ns > part as f64 * rate * FAST && self.part_ns > most_ns / PARTS;
        if part < self.bound.part_ns || (self.credit_ns >= 0.0 && !fast) {
            return Turn::Stay;
        }
        self.since_ns = None;
        self.away = true;
        self.covered_ns += now_ns.saturating_sub(since.max(self.window_ns));
        // By chance, so that nothing that the program does regularly keeps step.
        let (credit, pause) = (self.chance(), self.chance());
        self.back_at = (most_ns / PARTS * credit, now_ns + (PAUSE_NS * pause) as u64);
        Turn::Leave
    }

    /// From a half to one and a half.
    fn chance(&mut self) -> f64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        0.5 + (self.random >> 40) as f64 / (1u64 << 24) as f64
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
    pub const fn percent(&self) -> f64 {
        self.bound.percent
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

/// Which probes in Go programs are asked for, and what all of ctrace may cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// `--budget`, in percent of one CPU.
    pub budget: Option<f64>,
    /// `--go-waits`.
    pub parks: bool,
    /// `--go-creators`.
    pub creators: bool,
}

/// The probes in Go programs, in groups that come and go apart.
#[derive(Clone, Debug)]
pub struct Duties {
    /// On locks.
    pub locks: Duty,
    /// On all waits, when they are asked for.
    pub parks: Option<Duty>,
    /// On `go` statements.
    pub starts: Duty,
}

/// What probes on locks may cost by default, in percent of one CPU. With the snapshots' 0.25 and [`DIALS_PERCENT`] it is 0.4 in the long
/// run, and stays below 0.5 in half a minute with what is spent at once, too.
pub const LOCKS_PERCENT: f64 = 0.12;
/// The same of `go` statements that begin a dial.
pub const DIALS_PERCENT: f64 = 0.03;
/// What a group that was asked for may cost when nothing else was said.
pub const ASKED_PERCENT: f64 = 2.0;
/// The part of `--budget` that each group may have alone: locks, all waits, `go` statements. The rest is for everything else.
const SHARES: [f64; 3] = [0.35, 0.35, 0.2];

const SECOND_NS: f64 = 1e9;

impl Bound {
    /// Probes on locks by default.
    const LOCKS: Self = Self {
        percent: LOCKS_PERCENT,
        saved_ns: 6.0 * SECOND_NS,
        part_ns: 20_000_000,
    };

    /// Those at dials: dear, and few, but for a burst when a program begins or a server comes back.
    const DIALS: Self = Self {
        percent: DIALS_PERCENT,
        saved_ns: 30.0 * SECOND_NS,
        part_ns: 20_000_000,
    };

    /// For what was asked for.
    const fn asked(percent: f64) -> Self {
        Self {
            percent,
            saved_ns: 4.0 * SECOND_NS,
            part_ns: 50_000_000,
        }
    }
}

impl Duties {
    /// As asked for.
    #[must_use]
    pub fn new(wanted: Wanted, now_ns: u64) -> Self {
        let duty = |group: Group, asked: bool, default: Bound| {
            let bound = match wanted.budget {
                Some(budget) => Bound::asked(budget * SHARES[group as usize]),
                None if asked => Bound::asked(ASKED_PERCENT),
                None => default,
            };
            Duty::new(bound, now_ns)
        };
        let asked = Bound::asked(ASKED_PERCENT);
        Self {
            // Who asks for every wait asks for those for locks.
            locks: duty(Group::Locks, wanted.parks, Bound::LOCKS),
            parks: wanted.parks.then(|| duty(Group::Parks, true, asked)),
            starts: duty(Group::Starts, wanted.creators, Bound::DIALS),
        }
    }

    /// Probes that are hit whether or not anybody waits are worth their price: more is to be spent than by default.
    #[must_use]
    pub fn is_all_wanted(&self) -> bool {
        self.locks.percent() > LOCKS_PERCENT
    }

    /// Of a group; `None` when it is not asked for.
    #[must_use]
    pub const fn get(&self, group: Group) -> Option<&Duty> {
        match group {
            Group::Locks => Some(&self.locks),
            Group::Parks => self.parks.as_ref(),
            Group::Starts => Some(&self.starts),
        }
    }

    /// The same, to be changed.
    pub const fn of(&mut self, group: Group) -> Option<&mut Duty> {
        match group {
            Group::Locks => Some(&mut self.locks),
            Group::Parks => self.parks.as_mut(),
            Group::Starts => Some(&mut self.starts),
        }
    }

    /// Begins a new window.
    pub fn reset(&mut self, now_ns: u64) {
        for group in GROUPS {
            if let Some(duty) = self.of(group) {
                duty.reset(now_ns);
            }
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

    fn begun(bound: Bound) -> Duty {
        let mut duty = Duty::new(bound, 5 * SECOND);
        duty.begin(5 * SECOND);
        duty
    }

    #[test]
    fn what_costs_little_stays() {
        let mut duty = begun(Bound::asked(2.0));
        let (covered_ns, parts, percent) = run(&mut duty, 5 * SECOND, 60, 19_000);
        assert_eq!((covered_ns, parts), (60 * SECOND, 1));
        assert!((percent - 1.9).abs() < 0.01, "{percent}");
    }

    #[test]
    fn what_costs_too_much_goes_and_comes_back() {
        for hits_per_s in [25_000, 100_000, 1_500_000] {
            let mut duty = begun(Bound::asked(2.0));
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

    /// What probes on locks cost by default in traces of every length, whatever the load.
    #[test]
    fn the_default_is_held_soon() {
        for hits_per_s in [1_000, 2_000, 10_000, 100_000, 300_000] {
            let mut duty = begun(Bound::LOCKS);
            for second in 0..600 {
                let from = (5 + second) * SECOND;
                let (covered_ns, _, percent) = run(&mut duty, from, 1, hits_per_s);
                let most = if second < 29 { 0.25 } else { 0.18 };
                assert!(
                    second < 9 || percent < most,
                    "{hits_per_s}/s, {second} s: {percent} %"
                );
                assert!(covered_ns >= 20 * MS);
            }
        }
    }

    /// A crowd when they come is not all that is seen.
    #[test]
    fn a_moment_is_not_all_that_is_seen() {
        let mut duty = begun(Bound::LOCKS);
        run(&mut duty, 5 * SECOND, 1, 50_000);
        let (_, parts, _) = run(&mut duty, 6 * SECOND, 3, 50_000);
        assert!(parts >= 2, "{parts}");
        let mut duty = begun(Bound::LOCKS);
        let (first_ns, ..) = run(&mut duty, 5 * SECOND, 1, 50_000);
        let (covered_ns, ..) = run(&mut duty, 6 * SECOND, 10, 0);
        assert!(
            covered_ns > 5 * SECOND && first_ns < SECOND / 2,
            "{first_ns} {covered_ns}"
        );
    }

    #[test]
    fn light_contention_and_short_traces_are_whole() {
        let mut duty = begun(Bound::LOCKS);
        let (covered_ns, parts, _) = run(&mut duty, 5 * SECOND, 600, 1_100);
        assert_eq!((covered_ns, parts), (600 * SECOND, 1));
        let mut duty = begun(Bound::LOCKS);
        let (covered_ns, parts, _) = run(&mut duty, 5 * SECOND, 5, 2_500);
        assert_eq!((covered_ns, parts), (5 * SECOND, 1));
    }

    #[test]
    fn a_window_counts_what_lies_in_it() {
        let mut duty = begun(Bound::asked(2.0));
        run(&mut duty, 5 * SECOND, 3, 10_000);
        duty.reset(8 * SECOND);
        let (covered_ns, parts, _) = run(&mut duty, 8 * SECOND, 2, 10_000);
        assert_eq!((covered_ns, parts), (2 * SECOND, 1));
    }

    #[test]
    fn the_probes_are_told_since_when() {
        let wanted = Wanted {
            budget: Some(10.0),
            parks: true,
            creators: true,
        };
        let mut duties = Duties::new(wanted, 7);
        duties.locks.begin(9);
        let control = duties.mark(Control {
            armed: 1,
            min_wait_ns: 0,
            shadow_mask: 0,
            sample_mask: 0,
            window_ns: 0,
            go_locks_ns: 0,
            go_parks_ns: 0,
            ticks_mask: 0,
            faults_mask: 0,
        });
        assert_eq!((control.go_locks_ns, control.go_parks_ns), (9, u64::MAX));
    }

    #[test]
    fn what_is_asked_for_may_cost_more() {
        let percents = |wanted| {
            let duties = Duties::new(wanted, 7);
            GROUPS.map(|group| duties.get(group).map(Duty::percent))
        };
        let default = Wanted::default();
        assert_eq!(
            percents(default),
            [Some(LOCKS_PERCENT), None, Some(DIALS_PERCENT)]
        );
        let parks = Wanted {
            parks: true,
            ..default
        };
        assert_eq!(percents(parks), [Some(2.0), Some(2.0), Some(DIALS_PERCENT)]);
        let creators = Wanted {
            creators: true,
            ..default
        };
        assert_eq!(percents(creators), [Some(LOCKS_PERCENT), None, Some(2.0)]);
        let budget = Wanted {
            budget: Some(10.0),
            parks: true,
            creators: true,
        };
        assert_eq!(percents(budget), [Some(3.5), Some(3.5), Some(2.0)]);
    }
}
