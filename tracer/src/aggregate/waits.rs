//! Sleeps: a histogram for each place and object.

use rustc_hash::FxHashMap;
use tracer_ebpf::{
    rules::{self, FutexWait, Waker},
    wire::{Wait, wait},
};

use super::{
    hist::{Histogram, Room},
    reason::INTERRUPTIBLE,
    slices::Slices,
    tids::Tids,
};
use crate::{
    report::model::{Outcomes, Reason},
    stacks::StackId,
};

/// Rows; further ones are folded into one row for each process and reason, counted.
const ROWS_MAX: usize = 32_768;
/// Wakers and waiting threads remembered for each row.
pub(super) const SIDES_MAX: usize = 256;
/// Memory for the histograms of all rows: with 10,000 rows of all lengths it leaves them buckets of 6 %.
const HISTOGRAMS_BYTES: usize = 20 << 20;
/// Rows that are told by slice; where there are more, a lock may not be.
pub(super) const SLICED_MAX: usize = 4096;
/// A time-out is measured from the call's entry, which lies a little before the switch-out.
const DEADLINE_SLACK_NS: u64 = 1_000_000;

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Process.
    pub tgid: u32,
    /// Why.
    pub reason: Reason,
    /// Futex word, 0 for other reasons.
    pub uaddr: u64,
    /// Priority-inheriting futex.
    pub pi: bool,
    /// Sleeper's stack.
    pub stack: StackId,
    /// Kernel stack, −1 without.
    pub kstack: i32,
}

/// Sleeps of one [`Key`].
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Time blocked.
    pub wait: Histogram,
    /// Time from being woken to running.
    pub run_queue: Histogram,
    /// How they ended.
    pub handed_over: u64,
    /// As above.
    pub timed_out: u64,
    /// As above.
    pub interrupted: u64,
    /// As above.
    pub unknown: u64,
    /// Time blocked inside the window.
    pub inside_ns: u64,
    /// Sums of `wait` by the time of their end.
    pub slices: Slices,
    /// (stack, process) of who ended them, and how often.
    pub wakers: FxHashMap<(StackId, u32), u64>,
    /// Threads that slept here.
    pub tids: Tids,
    /// Threads that ended sleeps here.
    pub waker_tids: Tids,
}

impl Row {
    /// The outcomes as the report has them.
    #[must_use]
    pub const fn outcomes(&self) -> Outcomes {
        Outcomes {
            handed_over: self.handed_over,
            timed_out: self.timed_out,
            interrupted: self.interrupted,
            unknown: self.unknown,
        }
    }

    /// Waits ended so long after the window's start; `sliced` rows are told by slice.
    pub(super) fn slice(&mut self, at_ns: u64, ns: u64, times: u64, sliced: &mut usize) {
        if !self.slices.is_kept() {
            if *sliced >= SLICED_MAX {
                self.slices.give_up();
                return;
            }
            *sliced += 1;
        }
        self.slices.record(at_ns, ns, times);
    }

    /// Adds another row's sleeps.
    pub fn merge(&mut self, other: &Self) {
        self.wait.merge(&other.wait);
        self.run_queue.merge(&other.run_queue);
        self.inside_ns += other.inside_ns;
        self.slices.merge(&other.slices);
        self.handed_over += other.handed_over;
        self.timed_out += other.timed_out;
        self.interrupted += other.interrupted;
        self.unknown += other.unknown;
        for (&waker, &wakes) in &other.wakers {
            *self.wakers.entry(waker).or_default() += wakes;
        }
        self.tids.merge(&other.tids);
        self.waker_tids.merge(&other.waker_tids);
    }
}

/// A sleep that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why it was.
    pub reason: Reason,
    /// How long.
    pub blocked_ns: u64,
}

/// All sleeps of the targets.
#[derive(Clone, Debug)]
pub struct Waits {
    rows: FxHashMap<Key, Row>,
    room: Room,
    min_wait_ns: u64,
    window_start_ns: u64,
    /// Rows told by slice.
    sliced: usize,
    folded: u64,
}

impl Waits {
    /// Sleeps shorter than `min_wait_ns` are not kept.
    #[must_use]
    pub fn new(min_wait_ns: u64) -> Self {
        Self {
            rows: FxHashMap::default(),
            room: Room::new(HISTOGRAMS_BYTES),
            min_wait_ns,
            window_start_ns: 0,
            sliced: 0,
            folded: 0,
        }
    }

    /// A sleep ended, and what its stack and its waker's are. `realtime_offset_ns` is `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`.
    pub fn on_wait(
        &mut self,
        record: &Wait,
        reason: Reason,
        (stack, waker_stack): (StackId, StackId),
        realtime_offset_ns: i64,
    ) -> Ended {
        let tid = record.header.tid;
        let has_wake = record.flags & wait::WOKEN != 0;
        let blocked_ns = record.wake_ns.saturating_sub(record.out_ns);
        let ended = Ended { reason, blocked_ns };
        if blocked_ns < self.min_wait_ns {
            return ended;
        }
        let futex = (record.state & INTERRUPTIBLE != 0)
            .then(|| rules::futex_wait(record.nr, &record.args))
            .flatten();
        let handed_over = matches!(
            Waker::from_wire(record.waker_kind),
            Some(Waker::HandOver | Waker::Exit)
        );
        let inside_ns = blocked_ns.min(record.wake_ns.saturating_sub(self.window_start_ns));
        let at_ns = record.wake_ns.saturating_sub(self.window_start_ns);
        let (row, room, sliced) = self.row(record, reason, futex, stack);
        let times = u64::from(record.weight.max(1));
        row.inside_ns = row.inside_ns.saturating_add(inside_ns.saturating_mul(times));
        room.record_n(&mut row.wait, blocked_ns, times);
        row.slice(at_ns, blocked_ns, times, sliced);
        if has_wake {
            let queued_ns = record.header.ts_ns.saturating_sub(record.wake_ns);
            room.record_n(&mut row.run_queue, queued_ns, times);
        }
        row.tids.insert(tid, SIDES_MAX);
        if handed_over {
            row.handed_over += times;
            let waker = (waker_stack, record.waker_tgid);
            if row.wakers.len() < SIDES_MAX || row.wakers.contains_key(&waker) {
                *row.wakers.entry(waker).or_default() += times;
            }
            row.waker_tids.insert(record.waker_tid, SIDES_MAX);
        } else if record.flags & wait::SIGNAL != 0 {
            row.interrupted += times;
        } else if has_wake && futex.is_some_and(|futex| timed_out(record, futex, realtime_offset_ns)) {
            row.timed_out += times;
        } else {
            row.unknown += times;
        }
        while self.room.is_full() {
            let rows = self.rows.values_mut();
            self.room
                .shrink(rows.flat_map(|row| [&mut row.wait, &mut row.run_queue]));
        }
        ended
    }

    fn row(
        &mut self,
        record: &Wait,
        reason: Reason,
        futex: Option<FutexWait>,
        stack: StackId,
    ) -> (&mut Row, &mut Room, &mut usize) {
        let mut key = Key {
            tgid: record.header.tgid,
            reason,
            uaddr: futex.map_or(0, |futex| futex.uaddr),
            pi: futex.is_some_and(|futex| {
                use tracer_ebpf::nr::futex::{LOCK_PI, LOCK_PI2};
                matches!(futex.op, LOCK_PI | LOCK_PI2)
            }),
            stack,
            kstack: record.kstack,
        };
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key) {
            self.folded += 1;
            key = Key {
                uaddr: 0,
                pi: false,
                stack: StackId::NONE,
                kstack: -1,
                ..key
            };
        }
        (
            self.rows.entry(key).or_default(),
            &mut self.room,
            &mut self.sliced,
        )
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = (&Key, &Row)> {
        self.rows.iter()
    }

    /// Sleeps that went to a folded row.
    #[must_use]
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    /// Begins a new window.
    pub fn reset(&mut self, now_ns: u64) {
        self.window_start_ns = now_ns;
        self.sliced = 0;
        self.rows.clear();
        self.room.clear();
    }
}

/// Whether the call's time-out had come when it was woken.
fn timed_out(record: &Wait, futex: FutexWait, realtime_offset_ns: i64) -> bool {
    if record.timeout_ns == u64::MAX {
        return false;
    }
    let deadline = if !futex.absolute {
        record.out_ns.saturating_add(record.timeout_ns)
    } else if futex.realtime {
        record
            .timeout_ns
            .saturating_add_signed(realtime_offset_ns.saturating_neg())
    } else {
        record.timeout_ns
    };
    record.wake_ns.saturating_add(DEADLINE_SLACK_NS) >= deadline
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::{
        nr::{self, futex},
        wire::{Header, kind},
    };

    use super::*;

    const WORD: u64 = 0x1000;

    fn record(out_ns: u64, wake_ns: u64, ts_ns: u64, flags: u32, waker: Waker) -> Wait {
        Wait {
            header: Header {
                kind: kind::WAIT,
                class: 0,
                tgid: 10,
                tid: 11,
                cpu: 0,
                ts_ns,
            },
            seq: 1,
            out_ns,
            wake_ns,
            nr: nr::FUTEX,
            args: [WORD, u64::from(futex::WAIT | futex::PRIVATE), 2, 0, 0, 0],
            timeout_ns: u64::MAX,
            stack: 0,
            waker_stack: 0,
            state: 1,
            kstack: -1,
            flags: flags | wait::WOKEN,
            waker_kind: waker as u32,
            waker_tgid: 10,
            waker_tid: 12,
            running_total_ns: 0,
            short_count: 0,
            weight: 1,
            short_ns: 0,
            skipped_ns: 0,
        }
    }

    const STACKS: (StackId, StackId) = (StackId(3), StackId(9));

    fn one(waits: &Waits) -> &Row {
        assert_eq!(waits.rows.len(), 1);
        waits.rows.values().next().unwrap()
    }

    #[test]
    fn blocked_and_run_queue_are_apart() {
        let mut waits = Waits::new(0);
        let record = record(1_000, 21_000, 24_000, 0, Waker::HandOver);
        let ended = waits.on_wait(&record, Reason::Futex, STACKS, 0);
        assert_eq!(
            ended,
            Ended {
                reason: Reason::Futex,
                blocked_ns: 20_000
            }
        );
        let row = one(&waits);
        assert_eq!(
            (row.wait.total(), row.run_queue.total(), row.handed_over),
            (20_000, 3_000, 1)
        );
        assert_eq!(row.wakers.keys().copied().collect::<Vec<_>>(), [(StackId(9), 10)]);
    }

    #[test]
    fn the_time_out_is_told_from_a_signal_and_from_the_unknown() {
        let mut waits = Waits::new(0);
        let day = 86_400_000_000_000;
        for (timeout_ns, flags) in [(20_000_000, 0), (20_000_000, wait::SIGNAL), (day, 0)] {
            let record = Wait {
                timeout_ns,
                ..record(1_000, 20_050_000, 20_060_000, flags, Waker::Interrupt)
            };
            waits.on_wait(&record, Reason::Futex, STACKS, 0);
        }
        let row = one(&waits);
        assert_eq!(
            (row.timed_out, row.interrupted, row.unknown, row.handed_over),
            (1, 1, 1, 0)
        );
    }

    #[test]
    fn a_realtime_deadline_is_moved_to_the_monotonic_clock() {
        let futex = FutexWait {
            uaddr: WORD,
            op: futex::WAIT_BITSET,
            private: true,
            absolute: true,
            realtime: true,
        };
        let waited = |wake_ns| Wait {
            timeout_ns: 1_000_000_000_000 + 50_000_000,
            ..record(1_000, wake_ns, wake_ns, 0, Waker::Interrupt)
        };
        assert!(timed_out(&waited(50_000_000), futex, 1_000_000_000_000));
        assert!(!timed_out(&waited(40_000_000), futex, 1_000_000_000_000));
    }

    #[test]
    fn a_sleep_that_was_chosen_stands_for_the_others() {
        let mut waits = Waits::new(0);
        let record = Wait {
            weight: 8,
            ..record(1_000, 21_000, 24_000, 0, Waker::HandOver)
        };
        waits.on_wait(&record, Reason::Futex, STACKS, 0);
        let row = one(&waits);
        assert_eq!(
            (row.wait.count(), row.wait.total(), row.wait.effective()),
            (8, 160_000, 1)
        );
        assert_eq!((row.handed_over, row.inside_ns), (8, 160_000));
        assert_eq!(row.wakers.values().copied().collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn short_sleeps_are_left_out_but_reported_to_the_caller() {
        let mut waits = Waits::new(1_000_000);
        let record = record(1_000, 2_000, 3_000, 0, Waker::HandOver);
        assert_eq!(waits.on_wait(&record, Reason::Futex, STACKS, 0).blocked_ns, 1_000);
        assert_eq!(waits.rows().count(), 0);
    }
}
