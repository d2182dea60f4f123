//! Goroutines over time: births, deaths and who stays, by creator and by what they do.
//!
//! Fed with every change that a snapshot finds. A row (goroutines of one stack, creator and status) tells where they are stuck; the
//! creator's account tells whether there are ever more of them: a goroutine that ticks leaves its row and comes back, and yet never
//! ends. Time in a row is sampled: a goroutine seen there stands for the time between two snapshots.

use rustc_hash::FxHashMap;

use super::ages::Ages;
use super::series::{Series, Timeline};
use super::verdict::{self, Evidence, MIN_GROWTH};
use crate::go::snapshot::{Goroutine, NO_GROUP};
use crate::report::model::{Step, Verdict};

/// Rows, and creators, with an account.
const MAX_ACCOUNTS: usize = 8192;
/// Parts of the window by which it is told how sure a sampled sum is.
const BLOCKS: usize = 32;
/// With fewer there is no interval.
const MIN_BLOCKS: usize = 6;
/// Standard errors on either side that make 95 % with so few parts (Student's t for 5 to 31 degrees of freedom is 2.57 to 2.04).
const ERRORS: f64 = 2.3;
/// Share of a row's growth by which its creator's number must have grown.
const OWN_GROWTH: u64 = 2;

/// What is known of one row, or of one creator.
#[derive(Clone, Debug, Default)]
struct Account {
    series: Series,
    /// Of those alive at the start and gone since, how long after it.
    before: Ages,
    /// Of the others that are gone, their ages.
    deaths: Ages,
    /// Sampled time, in parts of the window.
    blocks: Vec<u64>,
    samples: u64,
}

/// What a series of goroutines means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// Began since the start.
    pub opened: u64,
    /// Ended since.
    pub closed: u64,
    /// Now.
    pub live: u64,
    /// At the start.
    pub at_start: u64,
    /// Verdict and confidence, 0 to 1.
    pub verdict: Option<(Verdict, f64)>,
    /// How many stay per second, or the slope of the number.
    pub growth_per_s: f64,
    /// Its 95 % interval.
    pub growth_interval_per_s: Option<[f64; 2]>,
    /// Of a leak: share of those begun that stay.
    pub stays: Option<f64>,
    /// Of what leaks: its staircases.
    pub steps: Vec<Step>,
}

/// Time that goroutines spent in a row, by samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Goroutines seen there, in all snapshots together.
    pub samples: u64,
    /// Time, of all of them together.
    pub total_ns: u64,
    /// 95 % confidence interval of it; None with too few snapshots.
    pub interval_ns: Option<(u64, u64)>,
}

/// Ages of those alive, for a verdict.
#[derive(Clone, Debug, Default)]
pub struct Survivors {
    /// When those began that were not there at the start.
    births: Vec<u64>,
}

/// The goroutines of one process.
#[derive(Debug)]
pub struct Goroutines {
    timeline: Timeline,
    /// The first snapshot.
    start_ns: Option<u64>,
    last_ns: u64,
    by_creator: FxHashMap<u64, Account>,
    by_group: FxHashMap<u32, Account>,
    /// Changes without an account.
    folded: u64,
    /// Time in each part of the window, and snapshots in the one that is being filled.
    blocks: Vec<u64>,
    per_block: u32,
    in_block: u32,
    snapshots: u64,
}

impl Default for Goroutines {
    fn default() -> Self {
        Self {
            timeline: Timeline::new(),
            start_ns: None,
            last_ns: 0,
            by_creator: FxHashMap::default(),
            by_group: FxHashMap::default(),
            folded: 0,
            blocks: Vec::new(),
            per_block: 1,
            in_block: 0,
            snapshots: 0,
        }
    }
}

impl Goroutines {
    /// A goroutine is not what it was when last seen; number 0 is none.
    pub fn changed(&mut self, before: &Goroutine, after: &Goroutine, now_ns: u64) {
        let other = before.goid != after.goid;
        if other {
            self.left(Key::Creator(before.creator), before.goid, before.born_ns, now_ns);
            self.came(Key::Creator(after.creator), after.goid);
        }
        if other || before.group != after.group {
            self.left(Key::Group(before.group), before.goid, before.joined_ns, now_ns);
            self.came(Key::Group(after.group), after.goid);
        }
    }

    fn account(&mut self, key: Key) -> Option<&mut Account> {
        let len = self.timeline.len();
        let new = || Account {
            series: Series::new(len),
            ..Account::default()
        };
        let found = match key {
            Key::Group(NO_GROUP) => return None,
            Key::Group(group) if self.by_group.len() < MAX_ACCOUNTS || self.by_group.contains_key(&group) => {
                Some(self.by_group.entry(group).or_insert_with(new))
            }
            Key::Creator(creator)
                if self.by_creator.len() < MAX_ACCOUNTS || self.by_creator.contains_key(&creator) =>
            {
                Some(self.by_creator.entry(creator).or_insert_with(new))
            }
            _ => None,
        };
        if found.is_none() {
            self.folded += 1;
        }
        found
    }

    fn came(&mut self, key: Key, goid: u64) {
        let first = self.start_ns.is_none();
        if goid != 0
            && let Some(account) = self.account(key)
        {
            if first {
                account.series.seeded();
            } else {
                account.series.born();
            }
        }
    }

    fn left(&mut self, key: Key, goid: u64, since_ns: u64, now_ns: u64) {
        let start_ns = self.start_ns;
        if goid != 0
            && let Some(account) = self.account(key)
        {
            account.series.died();
            if let Some(start) = start_ns.filter(|&start| since_ns <= start) {
                account.before.add(now_ns.saturating_sub(start));
            } else {
                account.deaths.add(now_ns.saturating_sub(since_ns));
            }
        }
    }

    /// A snapshot ends: all changes of it have been told.
    pub fn snapshot(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.last_ns);
        let first = self.start_ns.is_none();
        self.start_ns.get_or_insert(now_ns);
        self.last_ns = now_ns;
        self.snapshots += 1;
        let accounts = self.by_group.len() + self.by_creator.len();
        let take = self.timeline.take(now_ns, accounts);
        let block = (!first).then(|| self.block(passed));
        for account in self.by_group.values_mut() {
            account.series.sample(take);
            let live = account.series.live();
            let Some(block) = block.filter(|_| live > 0) else {
                continue;
            };
            if account.blocks.len() <= block {
                account.blocks.resize(block + 1, 0);
            }
            account.samples += live;
            if let Some(sum) = account.blocks.get_mut(block) {
                *sum = sum.saturating_add(live.saturating_mul(passed));
            }
        }
        for account in self.by_creator.values_mut() {
            account.series.sample(take);
        }
    }

    /// The part of the window that a snapshot belongs to; when there are too many, two become one.
    fn block(&mut self, passed: u64) -> usize {
        if self.in_block == 0 || self.in_block >= self.per_block {
            if self.blocks.len() >= BLOCKS {
                halve(&mut self.blocks);
                for account in self.by_group.values_mut() {
                    halve(&mut account.blocks);
                }
                self.per_block *= 2;
            }
            self.blocks.push(0);
            self.in_block = 0;
        }
        self.in_block += 1;
        let at = self.blocks.len().saturating_sub(1);
        if let Some(time) = self.blocks.get_mut(at) {
            *time += passed;
        }
        at
    }

    /// Snapshots so far.
    pub const fn snapshots(&self) -> u64 {
        self.snapshots
    }

    /// From the first to the last one.
    pub fn window_ns(&self) -> u64 {
        self.last_ns.saturating_sub(self.start_ns.unwrap_or(self.last_ns))
    }

    /// When the first was taken.
    pub const fn start_ns(&self) -> Option<u64> {
        self.start_ns
    }

    /// Changes that were not kept, as there were too many different stacks or creators.
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    /// Creators with an account.
    pub fn creators(&self) -> impl Iterator<Item = u64> {
        self.by_creator.keys().copied()
    }

    /// What the number of a creator's goroutines means.
    pub fn creator(&self, creator: u64, survivors: Survivors, older_ns: Option<u64>) -> Judged {
        self.judge(self.by_creator.get(&creator), survivors, older_ns)
    }

    /// What the number of goroutines in a row means, that of its creator's considered.
    pub fn row(
        &self,
        group: u32,
        survivors: Survivors,
        of_creator: &Judged,
        older_ns: Option<u64>,
    ) -> Judged {
        let mut own = self.judge(self.by_group.get(&group), survivors, older_ns);
        let all = of_creator;
        let grew = |judged: &Judged| judged.live.saturating_sub(judged.at_start);
        own.verdict = match (own.verdict, all.verdict) {
            // They come and go from this place, but never end.
            (_, Some((Verdict::Leaking, sure)))
                if grew(&own) >= MIN_GROWTH && grew(&own) * OWN_GROWTH >= grew(all) =>
            {
                if own.steps.is_empty() {
                    own.steps.clone_from(&all.steps);
                }
                Some((Verdict::Leaking, sure))
            }
            // They are not more than before, only elsewhere.
            (Some((Verdict::Leaking | Verdict::Growing, _)), _) if grew(all) * OWN_GROWTH < grew(&own) => {
                Some((Verdict::Churn, 0.0))
            }
            (own, _) => own,
        };
        own
    }

    fn judge(&self, account: Option<&Account>, survivors: Survivors, older_ns: Option<u64>) -> Judged {
        let Some(account) = account else {
            return Judged::default();
        };
        let series = &account.series;
        let mut births = survivors.births;
        births.sort_unstable();
        let judged = verdict::judge(&Evidence {
            complete: self.folded == 0,
            mixed: false,
            series,
            line: &self.timeline,
            now_ns: self.last_ns,
            births: &births,
            deaths: &account.deaths,
            before: &account.before,
            older_ns,
            // A goroutine is seen by the first snapshot after it began.
            resolution_ns: self.window_ns() / self.snapshots.saturating_sub(1).max(1),
            visitors: false,
        });
        Judged {
            opened: series.opened,
            closed: series.closed,
            live: series.live(),
            at_start: series.at_start,
            verdict: Some((judged.verdict, judged.confidence)),
            growth_per_s: judged.growth_per_s,
            growth_interval_per_s: judged.interval.map(|(low, high)| [low, high]),
            // Of those that live for less than the time between two snapshots most are never seen.
            stays: None,
            steps: judged.periods.iter().map(Step::from).collect(),
        }
    }

    /// Adds one that is alive to those of its row or creator.
    pub fn survives(&self, survivors: &mut Survivors, since_ns: u64) {
        if self.start_ns.is_some_and(|start| since_ns > start) {
            survivors.births.push(since_ns);
        }
    }

    /// Rows in which time was spent.
    pub fn sampled(&self) -> impl Iterator<Item = (u32, Sampled)> {
        self.by_group
            .iter()
            .filter(|(_, account)| account.samples > 0)
            .map(|(&group, account)| (group, self.sum(account)))
    }

    fn sum(&self, account: &Account) -> Sampled {
        let total_ns = account
            .blocks
            .iter()
            .fold(0u64, |sum, &block| sum.saturating_add(block));
        // How many there are on average, in each part.
        let rates: Vec<f64> = self
            .blocks
            .iter()
            .enumerate()
            .filter(|&(_, &time)| time > 0)
            .map(|(at, &time)| account.blocks.get(at).copied().unwrap_or(0) as f64 / time as f64)
            .collect();
        let window: u64 = self.blocks.iter().sum();
        let interval_ns = (rates.len() >= MIN_BLOCKS).then(|| {
            let count = rates.len() as f64;
            let mean = rates.iter().sum::<f64>() / count;
            let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / (count - 1.0);
            let error = ERRORS * (variance / count).sqrt() * window as f64;
            let middle = total_ns as f64;
            ((middle - error).max(0.0) as u64, (middle + error) as u64)
        });
        Sampled {
            samples: account.samples,
            total_ns,
            interval_ns,
        }
    }
}

#[derive(Clone, Copy)]
enum Key {
    Creator(u64),
    Group(u32),
}

/// Adds pairs of neighbours.
fn halve(blocks: &mut Vec<u64>) {
    *blocks = blocks.chunks(2).map(|pair| pair.iter().sum()).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::snapshot::Status;

    const SECOND: u64 = 1_000_000_000;

    fn goroutine(goid: u64, group: u32, at: u64) -> Goroutine {
        Goroutine {
            goid,
            group,
            creator: 0x1000,
            born_ns: at,
            joined_ns: at,
            status: Status::Waiting(3),
            ..Goroutine::NOBODY
        }
    }

    /// A run of 20 seconds; what `each` says happens every 100 ms. What the creator and row 0 look like at its end.
    fn run(mut each: impl FnMut(u64, &mut Vec<Goroutine>)) -> (Judged, Judged, Sampled) {
        let mut goroutines = Goroutines::default();
        let mut alive: Vec<Goroutine> = Vec::new();
        for step in 0..200 {
            let now = SECOND + step * SECOND / 10;
            let before = alive.clone();
            each(step, &mut alive);
            for old in &before {
                let new = alive.iter().find(|g| g.goid == old.goid).copied();
                goroutines.changed(old, &new.unwrap_or(Goroutine::NOBODY), now);
            }
            for new in &mut alive {
                if !before.iter().any(|g| g.goid == new.goid) {
                    (new.born_ns, new.joined_ns) = (now, now);
                    goroutines.changed(&Goroutine::NOBODY, new, now);
                }
            }
            goroutines.snapshot(now);
        }
        let (mut row, mut creator) = (Survivors::default(), Survivors::default());
        for goroutine in &alive {
            goroutines.survives(&mut creator, goroutine.born_ns);
            if goroutine.group == 0 {
                goroutines.survives(&mut row, goroutine.joined_ns);
            }
        }
        let sampled = goroutines.sampled().find(|(group, _)| *group == 0).unwrap().1;
        let creator = goroutines.creator(0x1000, creator, None);
        let row = goroutines.row(0, row, &creator, None);
        (creator, row, sampled)
    }

    fn verdict(judged: &Judged) -> Verdict {
        judged.verdict.unwrap().0
    }

    #[test]
    fn those_that_stay_for_ever_leak() {
        let (creator, row, sampled) = run(|step, alive| {
            if step % 2 == 1 {
                alive.push(goroutine(100 + step, 0, 0));
            }
        });
        assert_eq!(
            (verdict(&creator), verdict(&row)),
            (Verdict::Leaking, Verdict::Leaking)
        );
        assert_eq!((row.opened, row.closed, row.live), (100, 0, 100));
        assert!((row.growth_per_s - 5.0).abs() < 0.2, "{}", row.growth_per_s);
        // 5/s for 19.9 s: their ages' sum.
        let ages: f64 = (0..100).map(|n| 19.9 - 0.1 * f64::from(2 * n + 1) + 0.1).sum();
        assert!(
            (sampled.total_ns as f64 / 1e9 - ages).abs() < 1.0,
            "{sampled:?} {ages}"
        );
    }

    #[test]
    fn those_that_tick_leave_their_place_and_leak_all_the_same() {
        let (creator, row, _) = run(|step, alive| {
            if step % 2 == 1 {
                alive.push(goroutine(100 + step, 0, 0));
            }
            for (at, goroutine) in alive.iter_mut().enumerate() {
                goroutine.group = u32::from((step + at as u64).is_multiple_of(10));
            }
        });
        assert_eq!(
            (verdict(&creator), verdict(&row)),
            (Verdict::Leaking, Verdict::Leaking)
        );
    }

    #[test]
    fn a_pool_that_works_is_silent() {
        let (creator, row, sampled) = run(|step, alive| {
            if step == 0 {
                alive.extend((0..500).map(|n| goroutine(n + 1, 0, 0)));
            }
            for (at, goroutine) in alive.iter_mut().enumerate() {
                goroutine.group = u32::from((step * 7 + at as u64).is_multiple_of(5));
            }
        });
        assert!(![verdict(&creator), verdict(&row)].contains(&Verdict::Leaking));
        let (low, high) = sampled.interval_ns.unwrap();
        let truth = 400 * 199 * SECOND / 10;
        assert!(low <= truth && truth <= high, "{sampled:?}");
    }

    #[test]
    fn short_lived_ones_and_those_that_move_are_silent() {
        let (creator, row, _) = run(|step, alive| {
            alive.retain(|goroutine| goroutine.goid + 12 > step);
            alive.push(goroutine(step + 1, 0, 0));
        });
        // As many as begin in 12 steps, and no more.
        assert_eq!((verdict(&creator), verdict(&row)), (Verdict::Pool, Verdict::Pool));
        // A fixed number, of which more and more are in one place.
        let (_, row, _) = run(|step, alive| {
            if step == 0 {
                alive.extend((0..300).map(|n| goroutine(n + 1, 1, 0)));
            }
            if let Some(goroutine) = alive.get_mut(step as usize) {
                goroutine.group = 0;
            }
        });
        assert!(verdict(&row) != Verdict::Leaking, "{row:?}");
    }
}
