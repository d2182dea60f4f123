//! How long locks were held, what their holders did meanwhile, and how much of the time somebody waited: from waits alone.
//!
//! Taking a free lock makes no system call, so most holds cannot be seen. Those between two wake-ups can:
//! ```text
//! X sleeps for L ──woken──┐ runs               ┌─ R wakes Y, which sleeps for L since that time at the latest
//!                         └─ from ── R holds L ─┘
//! ```
//! With Y asleep every release wakes somebody, and none did in between: so R held the lock for all of it. R is X, or X found the lock
//! taken by R when it ran. What R slept for in that time it slept for under the lock.
//!
//! While somebody sleeps for a lock it is taken, but for the time from a wake-up until the one that was woken runs: the union of all sleeps
//! less that of these is a lower bound of the time it was busy.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::hist::{Histogram, Room};
use crate::{report::model::Reason, stacks::StackId};

/// Holders whose sleeps are remembered; all are forgotten when there are more.
const HOLDERS_MAX: usize = 4096;
/// The latest sleeps of one of them.
const SLEEPS_MAX: usize = 16;
/// Locks with an account.
const LOCKS_MAX: usize = 4096;
/// Places of one lock's holders.
const PLACES_MAX: usize = 64;
/// Pieces of the union that may still grow to the left.
const PIECES_MAX: usize = 32;
/// A wait is heard of when the waiter runs: so many that were woken later may be heard of before it.
const EARLIER_MAX: usize = 6;
/// Memory for the histograms of all locks.
const HISTOGRAMS_BYTES: usize = 4 << 20;
/// Share of a hold that its beginning may be uncertain by.
const UNCERTAIN: f64 = 0.1;

/// A lock: process and word.
pub type LockWord = (u32, u64);

/// A thread that holds locks.
pub type Holder = u32;

/// What a holder did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Doing {
    /// On a CPU, or wanting one without a sleep before.
    Running,
    /// Woken, and waiting for a CPU.
    Runnable,
    /// Asleep, for this.
    Blocked(Reason),
}

/// A holder's latest sleeps.
#[derive(Clone, Debug, Default)]
struct Sleeps {
    latest: VecDeque<Sleep>,
    /// Some that began before this may be missing.
    from_ns: u64,
}

/// A wait for a lock that another holder ended.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// Which lock.
    pub lock: LockWord,
    /// When it began.
    pub from_ns: u64,
    /// When it ended.
    pub woken_ns: u64,
    /// When the waiter went on.
    pub on_ns: u64,
    /// Who released the lock, and where, when that is known.
    pub released_by: Option<(Holder, StackId)>,
}

/// A wait that ended, and what is known of who ended it.
#[derive(Clone, Debug)]
struct Ended {
    wait: Wait,
    /// Its sleeps before that, and since when these are all.
    sleeps: Vec<Sleep>,
    known_ns: u64,
}

/// A sleep of somebody who may hold locks.
#[derive(Clone, Copy, Debug)]
pub struct Sleep {
    /// Why.
    pub reason: Reason,
    /// Where.
    pub stack: StackId,
    /// When it began.
    pub from_ns: u64,
    /// When it ended.
    pub woken_ns: u64,
    /// When the sleeper went on.
    pub on_ns: u64,
}

/// What is known of one lock.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Whole holds.
    pub hold: Histogram,
    /// Time held by what was done and where; whose number did so last.
    pub places: FxHashMap<(Doing, StackId), (u64, Holder)>,
    busy: Union,
    /// From wake-ups until the woken ran.
    handing: Union,
    /// Waits that ended last, by the time at which they did.
    latest: VecDeque<Ended>,
    /// The one before them: when it was woken, and when it went on.
    before: Option<(u64, u64)>,
}

impl Account {
    /// Time in which it was taken, at least.
    #[must_use]
    pub fn taken_ns(&self) -> u64 {
        self.busy.length().saturating_sub(self.handing.length())
    }

    /// Adds another word of the same lock. The times in which it was waited for may be the same ones: the longer counts.
    pub fn merge(&mut self, other: &Self) {
        self.hold.merge(&other.hold);
        for (&place, &(ns, holder)) in &other.places {
            add(&mut self.places, place, ns, holder);
        }
        if other.taken_ns() > self.taken_ns() {
            self.busy = other.busy.clone();
            self.handing = other.handing.clone();
        }
    }
}

fn add(
    places: &mut FxHashMap<(Doing, StackId), (u64, Holder)>,
    place: (Doing, StackId),
    ns: u64,
    holder: Holder,
) {
    if ns == 0 || (places.len() >= PLACES_MAX && !places.contains_key(&place)) {
        return;
    }
    let known = places.entry(place).or_insert((0, holder));
    known.0 = known.0.saturating_add(ns);
    known.1 = holder;
}

/// All locks that holds were seen of.
#[derive(Clone, Debug)]
pub struct Holds {
    sleeps: FxHashMap<Holder, Sleeps>,
    /// All sleeps before this were forgotten.
    forgotten_ns: u64,
    locks: FxHashMap<LockWord, Account>,
    room: Room,
    /// Lists to be used again: an event takes no memory.
    spare: Vec<Vec<Sleep>>,
    window_ns: u64,
    spoilt: bool,
}

impl Default for Holds {
    fn default() -> Self {
        Self {
            sleeps: FxHashMap::default(),
            forgotten_ns: 0,
            locks: FxHashMap::default(),
            room: Room::new(HISTOGRAMS_BYTES),
            spare: Vec::new(),
            window_ns: 0,
            spoilt: false,
        }
    }
}

impl Holds {
    /// Somebody who may hold locks slept, for whatever reason.
    pub fn on_sleep(&mut self, sleeper: Holder, sleep: Sleep) {
        if self.spoilt {
            return;
        }
        if self.sleeps.len() >= HOLDERS_MAX && !self.sleeps.contains_key(&sleeper) {
            self.sleeps.clear();
            self.forgotten_ns = sleep.on_ns;
        }
        let sleeps = self.sleeps.entry(sleeper).or_default();
        if sleeps.latest.len() >= SLEEPS_MAX
            && let Some(oldest) = sleeps.latest.pop_front()
        {
            sleeps.from_ns = oldest.on_ns;
        }
        sleeps.latest.push_back(sleep);
    }

    /// A wait for a lock ended.
    pub fn on_wait(&mut self, wait: Wait) {
        if self.spoilt || (!self.locks.contains_key(&wait.lock) && self.locks.len() >= LOCKS_MAX) {
            return;
        }
        let account = self.locks.entry(wait.lock).or_default();
        account.busy.add(wait.from_ns.max(self.window_ns), wait.woken_ns);
        account.handing.add(wait.woken_ns.max(self.window_ns), wait.on_ns);
        // All that it slept before it released the lock is known by now: it ran.
        let (mut sleeps, mut known_ns) = (self.spare.pop().unwrap_or_default(), self.forgotten_ns);
        if let Some(known) = wait.released_by.and_then(|(holder, _)| self.sleeps.get(&holder)) {
            known_ns = known_ns.max(known.from_ns);
            let before = |sleep: &&Sleep| sleep.from_ns < wait.woken_ns;
            sleeps.extend(known.latest.iter().filter(before));
        }
        let at = account
            .latest
            .partition_point(|other| other.wait.woken_ns <= wait.woken_ns);
        account.latest.insert(
            at,
            Ended {
                wait,
                sleeps,
                known_ns,
            },
        );
        if account.latest.len() > EARLIER_MAX
            && let Some(mut sleeps) = account.settle(&mut self.room)
        {
            sleeps.clear();
            self.spare.push(sleeps);
            while self.room.is_full() {
                let histograms = self.locks.values_mut().map(|account| &mut account.hold);
                self.room.shrink(histograms);
            }
        }
    }

    /// Somebody ended: its number may be another one's soon.
    pub fn forget(&mut self, holder: Holder) {
        self.sleeps.remove(&holder);
    }

    /// Of one lock something was not seen: what is before it and after it has nothing to do with each other.
    pub fn gap(&mut self, lock: LockWord) {
        if let Some(account) = self.locks.get_mut(&lock) {
            account.settle_all(&mut self.room);
            account.before = None;
        }
    }

    /// What is seen from now on is a part of all: nothing follows from it, until the next window.
    pub fn spoil(&mut self) {
        if !self.spoilt {
            *self = Self {
                spoilt: true,
                ..Self::default()
            };
        }
    }

    /// What is known of a lock.
    #[must_use]
    pub fn of(&self, lock: LockWord) -> Option<Account> {
        let mut account = self.locks.get(&lock)?.clone();
        account.settle_all(&mut self.room.clone());
        Some(account)
    }

    /// Begins a new window.
    pub fn reset(&mut self, now_ns: u64) {
        self.window_ns = now_ns;
        self.locks.clear();
        self.room.clear();
        if self.spoilt {
            self.spoilt = false;
            self.forgotten_ns = now_ns;
        }
    }
}

impl Account {
    /// Takes the earliest of the waits that ended; the list of sleeps that it had.
    fn settle(&mut self, room: &mut Room) -> Option<Vec<Sleep>> {
        let Ended {
            wait,
            sleeps,
            known_ns,
        } = self.latest.pop_front()?;
        if let Some((from_ns, holder, released_in)) = self.held(&wait) {
            room.record_n(&mut self.hold, wait.woken_ns - from_ns, 1);
            // Else what was done in it is not known any more.
            if known_ns <= from_ns {
                self.on_hold((from_ns, wait.woken_ns), &sleeps, holder, released_in);
            }
        }
        Some(sleeps)
    }

    fn settle_all(&mut self, room: &mut Room) {
        while self.settle(room).is_some() {}
    }

    /// Since when the lock was held that this wait's end released, by whom, and where it was released.
    fn held(&mut self, wait: &Wait) -> Option<(u64, Holder, StackId)> {
        let before = self.before.take();
        // Not ended by a release, or heard of too late: of the holds around it nothing is known.
        let (holder, released_in) = wait.released_by?;
        if before.is_some_and(|(woken_ns, _)| woken_ns > wait.woken_ns) {
            return None;
        }
        self.before = Some((wait.woken_ns, wait.on_ns));
        let (_, from_ns) = before?;
        let whole = wait.woken_ns.checked_sub(from_ns)?;
        let late = wait.from_ns.saturating_sub(from_ns);
        (late as f64 <= whole as f64 * UNCERTAIN).then_some((from_ns, holder, released_in))
    }

    fn on_hold(
        &mut self,
        (from_ns, until_ns): (u64, u64),
        sleeps: &[Sleep],
        holder: Holder,
        released_in: StackId,
    ) {
        let mut left = until_ns - from_ns;
        let mut part = |place: (Doing, StackId), from: u64, to: u64| {
            let ns = to.min(until_ns).saturating_sub(from.max(from_ns)).min(left);
            left -= ns;
            add(&mut self.places, place, ns, holder);
        };
        for sleep in sleeps {
            let blocked = (Doing::Blocked(sleep.reason), sleep.stack);
            part(blocked, sleep.from_ns, sleep.woken_ns);
            part((Doing::Runnable, sleep.stack), sleep.woken_ns, sleep.on_ns);
        }
        add(&mut self.places, (Doing::Running, released_in), left, holder);
    }
}

/// A union of intervals that come about in the order of their ends.
#[derive(Clone, Debug, Default)]
struct Union {
    /// Apart from each other, in order.
    pieces: Vec<(u64, u64)>,
    /// Length of those that are settled: nothing before the last one's end counts any more.
    settled_ns: u64,
    until_ns: u64,
}

impl Union {
    fn add(&mut self, from: u64, to: u64) {
        let (mut from, mut to) = (from.max(self.until_ns), to);
        if from >= to {
            return;
        }
        let first = self.pieces.partition_point(|piece| piece.1 < from);
        let after = self.pieces.partition_point(|piece| piece.0 <= to);
        if let (Some(left), Some(right)) = (
            self.pieces.get(first),
            after.checked_sub(1).and_then(|at| self.pieces.get(at)),
        ) && first < after
        {
            from = from.min(left.0);
            to = to.max(right.1);
        }
        self.pieces.splice(first..after.max(first), [(from, to)]);
        if self.pieces.len() > PIECES_MAX {
            let (from, to) = self.pieces.remove(0);
            self.settled_ns += to - from;
            self.until_ns = to;
        }
    }

    fn length(&self) -> u64 {
        self.settled_ns + self.pieces.iter().map(|(from, to)| to - from).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: LockWord = (1, 0x1000);
    const RELEASE: StackId = StackId(7);

    fn wait(from_ns: u64, woken_ns: u64, by: Holder) -> Wait {
        Wait {
            lock: LOCK,
            from_ns,
            woken_ns,
            on_ns: woken_ns + 5,
            released_by: Some((by, RELEASE)),
        }
    }

    fn held(holds: &Holds) -> Vec<(u64, u64)> {
        let account = holds.of(LOCK).unwrap();
        account.hold.buckets().collect()
    }

    #[test]
    fn a_hold_lasts_from_the_end_of_a_wait_to_the_next_wake_up() {
        let mut seen = Holds::default();
        seen.on_wait(wait(100, 200, 1));
        // 3 slept already when 2 came, at 205.
        seen.on_wait(wait(150, 305, 2));
        assert_eq!(held(&seen), [(100, 1)]);
        let account = seen.of(LOCK).unwrap();
        assert_eq!(account.places[&(Doing::Running, RELEASE)], (100, 2));
        assert_eq!(account.taken_ns(), 195);
    }

    #[test]
    fn with_nobody_asleep_a_release_may_have_gone_unseen() {
        let mut seen = Holds::default();
        seen.on_wait(wait(100, 200, 1));
        seen.on_wait(wait(250, 305, 2));
        assert_eq!(seen.of(LOCK).unwrap().hold.count(), 0);
    }

    #[test]
    fn who_lost_the_race_found_it_held_by_who_woke_the_next() {
        let mut seen = Holds::default();
        seen.on_wait(wait(100, 200, 1));
        // 1 took it again at once: 2 ran at 205, found it taken, and slept on.
        seen.on_wait(wait(207, 1205, 1));
        assert_eq!(held(&seen), [(1000, 1)]);
        assert_eq!(
            seen.of(LOCK).unwrap().places[&(Doing::Running, RELEASE)],
            (1000, 1)
        );
    }

    #[test]
    fn waits_are_taken_in_the_order_of_their_ends() {
        let mut seen = Holds::default();
        for wait in [
            wait(100, 200, 1),
            wait(150, 405, 3),
            Wait {
                // Woken before the one above, but without a CPU for long.
                on_ns: 420,
                ..wait(150, 305, 2)
            },
        ] {
            seen.on_wait(wait);
        }
        // The one between 305 and 405 began when nobody knows: its holder ran at 420 at the earliest.
        assert_eq!(held(&seen), [(100, 1)]);
    }

    #[test]
    fn what_the_holder_slept_for_is_told_apart() {
        let mut seen = Holds::default();
        seen.on_wait(wait(100, 200, 1));
        let sleep = |from_ns, woken_ns, on_ns| Sleep {
            reason: Reason::FileIo,
            stack: StackId(8),
            from_ns,
            woken_ns,
            on_ns,
        };
        seen.on_sleep(2, sleep(190, 195, 199));
        seen.on_sleep(2, sleep(300, 900, 950));
        // After the release, but heard of before the one who was woken by it.
        seen.on_sleep(2, sleep(1100, 1200, 1250));
        seen.on_wait(wait(150, 1005, 2));
        let places = seen.of(LOCK).unwrap().places;
        assert_eq!(places[&(Doing::Blocked(Reason::FileIo), StackId(8))].0, 600);
        assert_eq!(places[&(Doing::Runnable, StackId(8))].0, 50);
        assert_eq!(places[&(Doing::Running, RELEASE)].0, 150);
        assert_eq!(places.len(), 3);
    }

    #[test]
    fn nothing_is_known_of_a_hold_that_nobody_is_known_to_have_ended() {
        let mut seen = Holds::default();
        seen.on_wait(wait(100, 200, 1));
        seen.on_wait(Wait {
            released_by: None,
            ..wait(150, 305, 2)
        });
        assert_eq!(seen.of(LOCK).unwrap().hold.count(), 0);
        assert_eq!(seen.of(LOCK).unwrap().taken_ns(), 195);
    }

    #[test]
    fn nothing_spans_a_gap() {
        let mut seen = Holds::default();
        seen.on_wait(wait(100, 200, 1));
        seen.gap(LOCK);
        seen.on_wait(wait(150, 305, 2));
        assert_eq!(seen.of(LOCK).unwrap().hold.count(), 0);
    }

    #[test]
    fn what_was_done_in_a_hold_of_many_sleeps_is_not_told() {
        let mut seen = Holds::default();
        seen.on_wait(wait(100, 200, 1));
        for at in 0..=SLEEPS_MAX as u64 {
            let from_ns = 300 + at * 20;
            seen.on_sleep(
                2,
                Sleep {
                    reason: Reason::SocketRead,
                    stack: StackId(8),
                    from_ns,
                    woken_ns: from_ns + 10,
                    on_ns: from_ns + 11,
                },
            );
        }
        seen.on_wait(wait(150, 1005, 2));
        let account = seen.of(LOCK).unwrap();
        assert_eq!((account.hold.count(), account.places.len()), (1, 0));
    }

    /// On busy CPUs a lock is free for long before the one that was woken runs.
    #[test]
    fn a_lock_that_is_handed_over_is_not_taken() {
        let mut seen = Holds::default();
        for at in 1..=10 {
            seen.on_wait(Wait {
                on_ns: at * 1000 + 950,
                ..wait(1000, at * 1000, 9 + u32::try_from(at).unwrap())
            });
        }
        let taken = seen.of(LOCK).unwrap().taken_ns();
        assert!(taken <= 450, "{taken}");
    }

    #[test]
    fn of_a_sample_nothing_follows() {
        let mut seen = Holds::default();
        seen.on_wait(wait(100, 200, 1));
        seen.spoil();
        seen.on_wait(wait(150, 305, 2));
        assert!(seen.of(LOCK).is_none());
        seen.reset(400);
        seen.on_wait(wait(450, 505, 2));
        assert!(seen.of(LOCK).is_some());
    }

    #[test]
    fn a_window_has_its_own_holds() {
        let mut seen = Holds::default();
        seen.on_wait(wait(100, 200, 1));
        seen.reset(250);
        assert!(seen.of(LOCK).is_none());
        seen.on_wait(wait(150, 305, 2));
        let account = seen.of(LOCK).unwrap();
        assert_eq!((account.hold.count(), account.taken_ns()), (0, 50));
    }

    #[test]
    fn the_union_is_that_of_all_intervals() {
        use proptest::prelude::*;
        proptest!(|(mut intervals in prop::collection::vec((0u64..2000, 1u64..60), 0..200))| {
            intervals.sort_by_key(|(from, length)| from + length);
            let mut union = Union::default();
            let mut covered = vec![false; 2100];
            for &(from, length) in &intervals {
                union.add(from, from + length);
                covered[from as usize..(from + length) as usize].fill(true);
            }
            let truth = covered.iter().filter(|&&covered| covered).count() as u64;
            // Settled pieces do not grow: with more gaps than are remembered a little may be missed, never added.
            prop_assert!(union.length() <= truth);
            if union.settled_ns == 0 {
                prop_assert_eq!(union.length(), truth);
            }
        });
    }
}
