//! Where each thread's time went, and how long it stood in the run queue.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::{
    delay,
    wire::{Delays, Exit, TaskSnapshot, Wait, wait},
};

use super::{
    hist::{Histogram, Room},
    slices::Slices,
};
use crate::report::model::Reason;

/// Threads that have a row of their own; more are folded into one, counted.
const THREADS_MAX: usize = 8192;
/// Memory for the histograms of all live threads.
const HISTOGRAMS_BYTES: usize = 4 << 20;

/// One thread in one window.
#[derive(Clone, Debug, Default)]
pub struct Thread {
    /// Its process.
    pub tgid: u32,
    /// Threads folded into this row.
    pub threads: u32,
    /// Asleep, by reason, as far as records tell.
    told: BTreeMap<Reason, u64>,
    /// Of the sleeps without a record because they were not chosen: what those with one say about their reasons, and the exact
    /// length of all together.
    untold: BTreeMap<Reason, u64>,
    /// As above.
    untold_ns: u64,
    /// Run-queue delays.
    pub delays: Histogram,
    /// Delays that began with losing the CPU.
    pub preempted: u64,
    /// Delays that began with a wake-up.
    pub woken: u64,
    /// The kernel side's sum since attach, as of the last record.
    pub running_total_ns: u64,
    /// Sum of [`Thread::running_total_ns`] at the window's start.
    pub running_before_ns: u64,
    /// Delays outside of waits taken so far since attach, so that none counts twice.
    delays_taken: u64,
    /// Sleeps too short for records: their length together since attach.
    short_ns: u64,
    /// Sleeps that were not chosen: their length together since attach.
    skipped_ns: u64,
    /// It ended in this window.
    pub exited: bool,
}

impl Thread {
    /// Time on a CPU in this window, as far as records tell: until it last left one.
    #[must_use]
    pub const fn running_ns(&self) -> u64 {
        self.running_total_ns.saturating_sub(self.running_before_ns)
    }

    /// Asleep, by reason. When sleeps were sampled the sum is exact and the reasons of those without a record are shared out as those
    /// with one have them.
    #[must_use]
    pub fn blocked(&self) -> BTreeMap<Reason, u64> {
        let mut blocked = self.told.clone();
        if self.untold_ns == 0 {
            return blocked;
        }
        let all: u128 = self.untold.values().map(|&ns| u128::from(ns)).sum();
        let mut left = self.untold_ns;
        for (&reason, &ns) in &self.untold {
            let part = u128::from(self.untold_ns) * u128::from(ns);
            let share = part.checked_div(all).unwrap_or(0) as u64;
            *blocked.entry(reason).or_default() += share;
            left -= share;
        }
        if left > 0 {
            let main = self.untold.iter().max_by_key(|(_, ns)| **ns);
            *blocked
                .entry(main.map_or(Reason::Other, |(&reason, _)| reason))
                .or_default() += left;
        }
        blocked
    }

    /// Takes the delays after those taken before; their number and sum.
    fn take(&mut self, first: u64, len: u32, delays: &[u32], room: &mut Room) -> (u64, u64) {
        let (mut count, mut total_ns) = (0, 0_u64);
        let skip = self.delays_taken.saturating_sub(first);
        let fresh = delays
            .iter()
            .take(len as usize)
            .skip(usize::try_from(skip).unwrap_or(usize::MAX));
        for &delay in fresh {
            let (ns, woken) = delay::decode(delay);
            room.record_n(&mut self.delays, ns, 1);
            count += 1;
            total_ns = total_ns.saturating_add(ns);
            if woken {
                self.woken += 1;
            } else {
                self.preempted += 1;
            }
        }
        self.delays_taken = self.delays_taken.max(first + u64::from(len));
        (count, total_ns)
    }

    /// Sleeps without a record: short ones, whose reason nobody noted, and those not chosen. Sums since attach.
    fn unrecorded(&mut self, short_ns: u64, skipped_ns: u64) {
        let more = short_ns.saturating_sub(self.short_ns);
        if more > 0 {
            *self.told.entry(Reason::Other).or_default() += more;
            self.short_ns = short_ns;
        }
        self.untold_ns += skipped_ns.saturating_sub(self.skipped_ns);
        self.skipped_ns = self.skipped_ns.max(skipped_ns);
    }

    fn fold(&mut self, other: &Self) {
        self.tgid = other.tgid;
        self.threads += other.threads.max(1);
        for (reason, ns) in other.blocked() {
            *self.told.entry(reason).or_default() += ns;
        }
        self.delays.merge(&other.delays);
        self.preempted += other.preempted;
        self.woken += other.woken;
        self.running_total_ns += other.running_ns();
    }
}

/// All threads of the targets.
#[derive(Clone, Debug)]
pub struct Threads {
    live: FxHashMap<u32, Thread>,
    /// For the live ones' histograms.
    room: Room,
    /// All delays, by the time that they were told.
    slices: Slices,
    window_start_ns: u64,
    /// Threads that ended, folded together so that thread storms stay bounded.
    ended: FxHashMap<u32, Thread>,
    folded: u64,
    /// Threads that ended since [`Threads::note_ends`].
    ends: Option<FxHashSet<u32>>,
}

impl Default for Threads {
    fn default() -> Self {
        Self {
            live: FxHashMap::default(),
            room: Room::new(HISTOGRAMS_BYTES),
            slices: Slices::default(),
            window_start_ns: 0,
            ended: FxHashMap::default(),
            folded: 0,
            ends: None,
        }
    }
}

impl Threads {
    /// From now until the next snapshots were taken in, remembers who ends: a snapshot taken before that is old then.
    pub fn note_ends(&mut self) {
        self.ends = Some(FxHashSet::default());
    }

    /// All snapshots were taken in.
    pub fn forget_ends(&mut self) {
        self.ends = None;
    }

    /// A thread's sleep is over, and its stay in the run queue.
    pub fn on_wait(&mut self, record: &Wait) {
        let Some((thread, room)) = self.thread(record.header.tgid, record.header.tid) else {
            return;
        };
        thread.running_total_ns = record.running_total_ns;
        thread.unrecorded(record.short_ns, record.skipped_ns);
        if record.flags & wait::WOKEN != 0 {
            let queued_ns = record.header.ts_ns.saturating_sub(record.wake_ns);
            room.record_n(&mut thread.delays, queued_ns, 1);
            thread.woken += 1;
            self.slice(record.header.ts_ns, 1, queued_ns);
        }
        self.keep_in_room();
    }

    /// Delays that ended no wait of a record.
    pub fn on_delays(&mut self, record: &Delays) {
        if let Some((thread, room)) = self.thread(record.header.tgid, record.header.tid) {
            let (count, total_ns) = thread.take(record.first, record.len, &record.delays, room);
            self.slice(record.header.ts_ns, count, total_ns);
        }
        self.keep_in_room();
    }

    /// What the probes have not sent of a thread.
    pub fn on_snapshot(&mut self, snapshot: &TaskSnapshot) {
        if self
            .ends
            .as_ref()
            .is_some_and(|ends| ends.contains(&snapshot.tid))
        {
            return;
        }
        let Some((thread, room)) = self.thread(snapshot.tgid, snapshot.tid) else {
            return;
        };
        thread.unrecorded(snapshot.short_ns, snapshot.skipped_ns);
        // Otherwise they are in a record by now.
        if snapshot.delays_first == snapshot.delays_first_again {
            let (first, len) = (snapshot.delays_first, snapshot.delays_len);
            let (count, total_ns) = thread.take(first, len, &snapshot.delays, room);
            self.slice(snapshot.ts_ns, count, total_ns);
        }
        self.keep_in_room();
    }

    /// A thread slept for `ns`; it stands for `weight` sleeps.
    pub fn on_blocked(&mut self, tgid: u32, tid: u32, reason: Reason, ns: u64, weight: u32) {
        if let Some((thread, _)) = self.thread(tgid, tid) {
            *thread.told.entry(reason).or_default() += ns;
            if weight > 1 {
                *thread.untold.entry(reason).or_default() += ns.saturating_mul(u64::from(weight - 1));
            }
        }
    }

    /// A thread ended: its row joins those of its process's ended threads.
    pub fn on_exit(&mut self, record: &Exit) {
        if let Some(ends) = &mut self.ends {
            ends.insert(record.header.tid);
        }
        let mut thread = self.live.remove(&record.header.tid).unwrap_or_default();
        self.room.leave(&thread.delays);
        thread.tgid = record.header.tgid;
        thread.running_total_ns = record.running_total_ns;
        thread.unrecorded(record.short_ns, record.skipped_ns);
        thread.exited = true;
        self.ended.entry(record.header.tgid).or_default().fold(&thread);
    }

    /// A thread took over another's id (exec by a thread that is not the leader).
    pub fn on_rename(&mut self, old: u32, new: u32) {
        if old != new
            && let Some(thread) = self.live.remove(&old)
            && let Some(replaced) = self.live.insert(new, thread)
        {
            self.room.leave(&replaced.delays);
        }
    }

    /// The row of a thread, made when there is room.
    fn thread(&mut self, tgid: u32, tid: u32) -> Option<(&mut Thread, &mut Room)> {
        if self.live.len() >= THREADS_MAX && !self.live.contains_key(&tid) {
            self.folded += 1;
            return None;
        }
        let thread = self.live.entry(tid).or_default();
        thread.tgid = tgid;
        thread.threads = 1;
        Some((thread, &mut self.room))
    }

    fn slice(&mut self, now_ns: u64, count: u64, total_ns: u64) {
        let at_ns = now_ns.saturating_sub(self.window_start_ns);
        self.slices.add(at_ns, count, total_ns);
    }

    /// All delays by slice.
    #[must_use]
    pub const fn slices(&self) -> &Slices {
        &self.slices
    }

    fn keep_in_room(&mut self) {
        while self.room.is_full() {
            let live = self.live.values_mut();
            self.room.shrink(live.map(|thread| &mut thread.delays));
        }
    }

    /// Live threads by tid.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Thread)> {
        self.live.iter().map(|(&tid, thread)| (tid, thread))
    }

    /// A live thread's row.
    #[must_use]
    pub fn get(&self, tid: u32) -> Option<&Thread> {
        self.live.get(&tid)
    }

    /// Ended threads, one row for each process.
    pub fn ended(&self) -> impl Iterator<Item = &Thread> {
        self.ended.values()
    }

    /// Records that found no room for their thread's row.
    #[must_use]
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    /// Begins a new window.
    pub fn reset(&mut self, now_ns: u64) {
        self.window_start_ns = now_ns;
        self.slices = Slices::default();
        self.ended.clear();
        self.room.clear();
        for thread in self.live.values_mut() {
            *thread = Thread {
                tgid: thread.tgid,
                threads: 1,
                running_total_ns: thread.running_total_ns,
                running_before_ns: thread.running_total_ns,
                delays_taken: thread.delays_taken,
                short_ns: thread.short_ns,
                skipped_ns: thread.skipped_ns,
                ..Thread::default()
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::wire::{DELAYS, Header, kind};

    use super::*;

    #[test]
    fn sleeps_that_were_not_chosen_are_shared_out() {
        let mut threads = Threads::default();
        // Of eight sleeps two were chosen: 10 and 30 ns; the six others took 100 ns.
        threads.on_blocked(1, 2, Reason::Futex, 30, 4);
        threads.on_blocked(1, 2, Reason::Sleep, 10, 4);
        threads.thread(1, 2).unwrap().0.unrecorded(5, 100);
        let blocked = threads.get(2).unwrap().blocked();
        let expected = [(Reason::Futex, 105), (Reason::Sleep, 35), (Reason::Other, 5)];
        assert_eq!(blocked, expected.into_iter().collect());
        // In the next window none was chosen.
        threads.reset(0);
        threads.thread(1, 2).unwrap().0.unrecorded(5, 107);
        assert_eq!(
            threads.get(2).unwrap().blocked(),
            [(Reason::Other, 7)].into_iter().collect()
        );
    }

    #[test]
    fn no_delay_counts_twice() {
        let mut threads = Threads::default();
        let mut delays = [0; DELAYS];
        for (at, slot) in delays.iter_mut().enumerate() {
            *slot = delay::encode(1000 + at as u64, at % 4 == 0);
        }
        // A snapshot saw the first ten, the record brings them all, and the next snapshot has none.
        let (thread, room) = threads.thread(1, 2).unwrap();
        thread.take(0, 10, &delays, room);
        threads.on_delays(&Delays {
            header: Header {
                kind: kind::DELAYS,
                class: 0,
                tgid: 1,
                tid: 2,
                cpu: 0,
                ts_ns: 5,
            },
            first: 0,
            len: DELAYS as u32,
            reserved: 0,
            delays,
        });
        let thread = threads.get(2).unwrap();
        assert_eq!(thread.delays.count(), DELAYS as u64);
        assert_eq!((thread.woken, thread.preempted), (16, 48));
        threads.reset(0);
        let (thread, room) = threads.thread(1, 2).unwrap();
        thread.take(64, 1, &delays, room);
        assert_eq!(threads.get(2).unwrap().delays.count(), 1);
    }
}
