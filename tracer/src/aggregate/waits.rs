//! Sleeps: joins going to sleep, being woken and running again, and keeps a histogram for each place and object.

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::{
    rules::{self, FutexWait, Waker},
    wire::{SwitchIn, SwitchOut, Wake, switch_in},
};

use super::{hist::Histogram, reason::INTERRUPTIBLE};
use crate::{
    report::model::{Outcomes, Reason},
    stacks::StackId,
};

/// Rows; further ones are folded into one row for each process and reason, counted.
const ROWS_MAX: usize = 32_768;
/// Wakers and waiting threads remembered for each row.
const SIDES_MAX: usize = 256;
/// A wake-up may be announced this long before the switch-out that it belongs to (as in the probe).
const EARLY_NS: u64 = 50_000;
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
    /// (stack, process) of who ended them, and how often.
    pub wakers: FxHashMap<(StackId, u32), u64>,
    /// Threads that slept here.
    pub tids: FxHashSet<u32>,
    /// Threads that ended sleeps here.
    pub waker_tids: FxHashSet<u32>,
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

    /// Adds another row's sleeps.
    pub fn merge(&mut self, other: &Self) {
        self.wait.merge(&other.wait);
        self.run_queue.merge(&other.run_queue);
        self.inside_ns += other.inside_ns;
        self.handed_over += other.handed_over;
        self.timed_out += other.timed_out;
        self.interrupted += other.interrupted;
        self.unknown += other.unknown;
        for (&waker, &wakes) in &other.wakers {
            *self.wakers.entry(waker).or_default() += wakes;
        }
        self.tids.extend(&other.tids);
        self.waker_tids.extend(&other.waker_tids);
    }
}

/// A thread that has gone to sleep and has not run since.
#[derive(Clone, Copy, Debug)]
pub struct Asleep {
    /// Its process.
    pub tgid: u32,
    /// Number of the sleep.
    pub seq: u64,
    /// Since when.
    pub since_ns: u64,
    /// Why.
    pub reason: Reason,
    /// The futex, for futex waits.
    pub futex: Option<FutexWait>,
    /// The time-out of the call as the caller gave it.
    pub timeout_ns: u64,
    /// Where.
    pub stack: StackId,
    /// Kernel stack, −1 without.
    pub kstack: i32,
}

#[derive(Clone, Copy, Debug)]
struct Woken {
    ts_ns: u64,
    tgid: u32,
    tid: u32,
    stack: StackId,
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
#[derive(Clone, Debug, Default)]
pub struct Waits {
    rows: FxHashMap<Key, Row>,
    asleep: FxHashMap<u32, Asleep>,
    woken: FxHashMap<u32, Woken>,
    min_wait_ns: u64,
    window_start_ns: u64,
    /// Ends without a beginning.
    unmatched: u64,
    folded: u64,
}

impl Waits {
    /// Sleeps shorter than `min_wait_ns` are not kept.
    #[must_use]
    pub fn new(min_wait_ns: u64) -> Self {
        Self {
            min_wait_ns,
            ..Self::default()
        }
    }

    /// A thread goes to sleep.
    pub fn on_switch_out(&mut self, record: &SwitchOut, reason: Reason, stack: StackId) {
        let futex = (record.state & INTERRUPTIBLE != 0)
            .then(|| rules::futex_wait(record.nr, &record.args))
            .flatten();
        // A wake-up that came before this belongs to it only when it came just before.
        if self
            .woken
            .get(&record.header.tid)
            .is_some_and(|w| w.ts_ns + EARLY_NS < record.header.ts_ns)
        {
            self.woken.remove(&record.header.tid);
        }
        self.asleep.insert(
            record.header.tid,
            Asleep {
                tgid: record.header.tgid,
                seq: record.seq,
                since_ns: record.header.ts_ns,
                reason,
                futex,
                timeout_ns: record.timeout_ns,
                stack,
                kstack: record.kstack,
            },
        );
    }

    /// Somebody's call ended a sleep.
    pub fn on_wake(&mut self, record: &Wake, stack: StackId) {
        let woken = Woken {
            ts_ns: record.header.ts_ns,
            tgid: record.waker_tgid,
            tid: record.waker_tid,
            stack,
        };
        self.woken.insert(record.header.tid, woken);
    }

    /// A thread runs again. `realtime_offset_ns` is `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`. Returns the sleep that ended.
    pub fn on_switch_in(&mut self, record: &SwitchIn, realtime_offset_ns: i64) -> Option<Ended> {
        let tid = record.header.tid;
        let woken = self.woken.remove(&tid);
        if record.flags & switch_in::SLEPT == 0 || record.flags & switch_in::BEFORE != 0 {
            self.asleep.remove(&tid);
            return None;
        }
        let Some(asleep) = self.asleep.remove(&tid).filter(|asleep| asleep.seq == record.seq) else {
            self.unmatched += 1;
            return None;
        };
        let has_wake = record.flags & switch_in::WOKEN != 0;
        let end = if has_wake {
            record.wake_ns
        } else {
            record.header.ts_ns
        };
        let blocked_ns = end.saturating_sub(asleep.since_ns);
        let ended = Ended {
            reason: asleep.reason,
            blocked_ns,
        };
        if blocked_ns < self.min_wait_ns {
            return Some(ended);
        }
        let handed_over = matches!(
            Waker::from_wire(record.waker_kind),
            Some(Waker::HandOver | Waker::Exit)
        );
        let inside_ns = blocked_ns.min(end.saturating_sub(self.window_start_ns));
        let row = self.row(&asleep);
        row.inside_ns += inside_ns;
        row.wait.record(blocked_ns);
        if has_wake {
            row.run_queue
                .record(record.header.ts_ns.saturating_sub(record.wake_ns));
        }
        if row.tids.len() < SIDES_MAX {
            row.tids.insert(tid);
        }
        if handed_over {
            row.handed_over += 1;
            let stack = woken
                .filter(|woken| woken.tid == record.waker_tid && woken.tgid == record.waker_tgid)
                .map_or(StackId::NONE, |woken| woken.stack);
            if row.wakers.len() < SIDES_MAX || row.wakers.contains_key(&(stack, record.waker_tgid)) {
                *row.wakers.entry((stack, record.waker_tgid)).or_default() += 1;
            }
            if row.waker_tids.len() < SIDES_MAX {
                row.waker_tids.insert(record.waker_tid);
            }
        } else if record.flags & switch_in::SIGNAL != 0 {
            row.interrupted += 1;
        } else if has_wake && timed_out(&asleep, record.wake_ns, realtime_offset_ns) {
            row.timed_out += 1;
        } else {
            row.unknown += 1;
        }
        Some(ended)
    }

    /// A thread ended or took another id: it sleeps no more.
    pub fn on_exit(&mut self, tid: u32) {
        self.asleep.remove(&tid);
        self.woken.remove(&tid);
    }

    fn row(&mut self, asleep: &Asleep) -> &mut Row {
        let mut key = Key {
            tgid: asleep.tgid,
            reason: asleep.reason,
            uaddr: asleep.futex.map_or(0, |futex| futex.uaddr),
            pi: asleep.futex.is_some_and(|futex| {
                use tracer_ebpf::nr::futex::{LOCK_PI, LOCK_PI2};
                matches!(futex.op, LOCK_PI | LOCK_PI2)
            }),
            stack: asleep.stack,
            kstack: asleep.kstack,
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
        self.rows.entry(key).or_default()
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = (&Key, &Row)> {
        self.rows.iter()
    }

    /// Threads asleep now, by tid.
    pub fn asleep(&self) -> impl Iterator<Item = (u32, &Asleep)> {
        self.asleep.iter().map(|(&tid, asleep)| (tid, asleep))
    }

    /// Ends of sleeps whose beginning was lost.
    #[must_use]
    pub const fn unmatched(&self) -> u64 {
        self.unmatched
    }

    /// Sleeps that went to a folded row.
    #[must_use]
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    /// Begins a new window; threads asleep stay so.
    pub fn reset(&mut self, now_ns: u64) {
        self.window_start_ns = now_ns;
        self.rows.clear();
    }
}

/// Whether the call's time-out had come when it was woken.
fn timed_out(asleep: &Asleep, wake_ns: u64, realtime_offset_ns: i64) -> bool {
    let Some(futex) = asleep.futex else { return false };
    if asleep.timeout_ns == u64::MAX {
        return false;
    }
    let deadline = if !futex.absolute {
        asleep.since_ns.saturating_add(asleep.timeout_ns)
    } else if futex.realtime {
        asleep
            .timeout_ns
            .saturating_add_signed(realtime_offset_ns.saturating_neg())
    } else {
        asleep.timeout_ns
    };
    wake_ns.saturating_add(DEADLINE_SLACK_NS) >= deadline
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::{
        nr::{self, futex},
        wire::{Header, kind},
    };

    use super::*;

    const WORD: u64 = 0x1000;

    fn header(kind: u16, ts_ns: u64) -> Header {
        Header {
            kind,
            class: 0,
            tgid: 10,
            tid: 11,
            cpu: 0,
            ts_ns,
        }
    }

    fn out(seq: u64, ts_ns: u64, timeout_ns: u64) -> SwitchOut {
        SwitchOut {
            header: header(kind::SWITCH_OUT, ts_ns),
            seq,
            state: 1,
            kstack: -1,
            nr: nr::FUTEX,
            args: [WORD, u64::from(futex::WAIT | futex::PRIVATE), 2, 0, 0, 0],
            timeout_ns,
        }
    }

    fn into(seq: u64, out_ns: u64, wake_ns: u64, ts_ns: u64, flags: u32, waker: Waker) -> SwitchIn {
        SwitchIn {
            header: header(kind::SWITCH_IN, ts_ns),
            seq,
            out_ns,
            wake_ns,
            nr: nr::FUTEX,
            arg0: WORD,
            flags,
            waker_kind: waker as u32,
            waker_tgid: 10,
            waker_tid: 12,
            run_queue_total_ns: 0,
            running_total_ns: 0,
            count: 1,
        }
    }

    const SLEPT: u32 = switch_in::SLEPT | switch_in::WOKEN;

    fn one(waits: &Waits) -> &Row {
        assert_eq!(waits.rows.len(), 1);
        waits.rows.values().next().unwrap()
    }

    #[test]
    fn blocked_and_run_queue_are_apart() {
        let mut waits = Waits::new(0);
        waits.on_switch_out(&out(1, 1_000, u64::MAX), Reason::Futex, StackId(3));
        let ended = waits.on_switch_in(&into(1, 1_000, 21_000, 24_000, SLEPT, Waker::HandOver), 0);
        assert_eq!(
            ended,
            Some(Ended {
                reason: Reason::Futex,
                blocked_ns: 20_000
            })
        );
        let row = one(&waits);
        assert_eq!(
            (row.wait.total(), row.run_queue.total(), row.handed_over),
            (20_000, 3_000, 1)
        );
    }

    #[test]
    fn an_end_without_its_beginning_is_counted_and_not_guessed() {
        let mut waits = Waits::new(0);
        waits.on_switch_out(&out(1, 1_000, u64::MAX), Reason::Futex, StackId(3));
        assert_eq!(
            waits.on_switch_in(&into(2, 5_000, 6_000, 7_000, SLEPT, Waker::HandOver), 0),
            None
        );
        assert_eq!(waits.unmatched(), 1);
        assert_eq!(waits.rows().count(), 0);
    }

    #[test]
    fn the_time_out_is_told_from_a_signal_and_from_the_unknown() {
        let mut waits = Waits::new(0);
        let day = 86_400_000_000_000;
        for (seq, timeout, flags) in [
            (1, 20_000_000, SLEPT),
            (2, 20_000_000, SLEPT | switch_in::SIGNAL),
            (3, day, SLEPT),
        ] {
            waits.on_switch_out(&out(seq, 1_000, timeout), Reason::Futex, StackId(3));
            waits.on_switch_in(
                &into(seq, 1_000, 20_050_000, 20_060_000, flags, Waker::Interrupt),
                0,
            );
        }
        let row = one(&waits);
        assert_eq!(
            (row.timed_out, row.interrupted, row.unknown, row.handed_over),
            (1, 1, 1, 0)
        );
    }

    #[test]
    fn a_realtime_deadline_is_moved_to_the_monotonic_clock() {
        let asleep = Asleep {
            tgid: 1,
            seq: 1,
            since_ns: 1_000,
            reason: Reason::Futex,
            futex: Some(FutexWait {
                uaddr: WORD,
                op: futex::WAIT_BITSET,
                private: true,
                absolute: true,
                realtime: true,
            }),
            timeout_ns: 1_000_000_000_000 + 50_000_000,
            stack: StackId::NONE,
            kstack: -1,
        };
        assert!(timed_out(&asleep, 50_000_000, 1_000_000_000_000));
        assert!(!timed_out(&asleep, 40_000_000, 1_000_000_000_000));
    }

    #[test]
    fn a_stale_wake_is_never_carried_to_the_next_sleep() {
        let mut waits = Waits::new(0);
        let wake = Wake {
            header: header(kind::WAKE, 1_000),
            seq: 1,
            waker_tgid: 10,
            waker_tid: 12,
            nr: nr::FUTEX,
            uaddr: WORD,
            comm: [0; 16],
        };
        waits.on_wake(&wake, StackId(9));
        waits.on_switch_out(&out(1, 1_000 + EARLY_NS + 1, u64::MAX), Reason::Futex, StackId(3));
        waits.on_switch_in(&into(1, 0, 90_000, 91_000, SLEPT, Waker::HandOver), 0);
        assert_eq!(
            one(&waits).wakers.keys().copied().collect::<Vec<_>>(),
            [(StackId::NONE, 10)]
        );
    }

    #[test]
    fn short_sleeps_are_left_out_but_reported_to_the_caller() {
        let mut waits = Waits::new(1_000_000);
        waits.on_switch_out(&out(1, 1_000, u64::MAX), Reason::Futex, StackId(3));
        assert!(
            waits
                .on_switch_in(&into(1, 1_000, 2_000, 3_000, SLEPT, Waker::HandOver), 0)
                .is_some()
        );
        assert_eq!(waits.rows().count(), 0);
    }
}
