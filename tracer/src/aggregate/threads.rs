//! Where each thread's time went, and how long it stood in the run queue.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use tracer_ebpf::wire::{Exit, SwitchIn, switch_in};

use super::hist::Histogram;
use crate::report::model::Reason;

/// Threads that have a row of their own; more are folded into one, counted.
const THREADS_MAX: usize = 8192;

/// One thread in one window.
#[derive(Clone, Debug, Default)]
pub struct Thread {
    /// Its process.
    pub tgid: u32,
    /// Threads folded into this row.
    pub threads: u32,
    /// Asleep, by reason.
    pub blocked: BTreeMap<Reason, u64>,
    /// Run-queue delays.
    pub delays: Histogram,
    /// Delays that began with losing the CPU.
    pub preempted: u64,
    /// Delays that began with a wake-up.
    pub woken: u64,
    /// The kernel side's sums since attach, as of the last record.
    pub run_queue_total_ns: u64,
    /// As above.
    pub running_total_ns: u64,
    /// Sum of [`Thread::running_total_ns`] at the window's start.
    pub running_before_ns: u64,
    /// It ended in this window.
    pub exited: bool,
}

impl Thread {
    /// Time on a CPU in this window, as far as records tell: until it last left one.
    #[must_use]
    pub const fn running_ns(&self) -> u64 {
        self.running_total_ns.saturating_sub(self.running_before_ns)
    }

    fn fold(&mut self, other: &Self) {
        self.tgid = other.tgid;
        self.threads += other.threads.max(1);
        for (&reason, &ns) in &other.blocked {
            *self.blocked.entry(reason).or_default() += ns;
        }
        self.delays.merge(&other.delays);
        self.preempted += other.preempted;
        self.woken += other.woken;
        self.running_total_ns += other.running_ns();
    }
}

/// All threads of the targets.
#[derive(Clone, Debug, Default)]
pub struct Threads {
    live: FxHashMap<u32, Thread>,
    /// Threads that ended, folded together so that thread storms stay bounded.
    ended: FxHashMap<u32, Thread>,
    folded: u64,
}

impl Threads {
    /// A thread got a CPU.
    pub fn on_switch_in(&mut self, record: &SwitchIn) {
        let Some(thread) = self.thread(record.header.tgid, record.header.tid) else {
            return;
        };
        thread.run_queue_total_ns = record.run_queue_total_ns;
        thread.running_total_ns = record.running_total_ns;
        let known = record.flags & (switch_in::WOKEN | switch_in::PREEMPTED) != 0;
        if known {
            thread
                .delays
                .record(record.header.ts_ns.saturating_sub(record.wake_ns));
        }
        if record.flags & switch_in::PREEMPTED != 0 {
            thread.preempted += 1;
        } else if known {
            thread.woken += 1;
        }
    }

    /// A thread slept for `ns`.
    pub fn on_blocked(&mut self, tgid: u32, tid: u32, reason: Reason, ns: u64) {
        if let Some(thread) = self.thread(tgid, tid) {
            *thread.blocked.entry(reason).or_default() += ns;
        }
    }

    /// A thread ended: its row joins those of its process's ended threads.
    pub fn on_exit(&mut self, record: &Exit) {
        let mut thread = self.live.remove(&record.header.tid).unwrap_or_default();
        thread.tgid = record.header.tgid;
        thread.running_total_ns = record.running_total_ns;
        thread.exited = true;
        self.ended.entry(record.header.tgid).or_default().fold(&thread);
    }

    /// A thread took over another's id (exec by a thread that is not the leader).
    pub fn on_rename(&mut self, old: u32, new: u32) {
        if old != new
            && let Some(thread) = self.live.remove(&old)
        {
            self.live.insert(new, thread);
        }
    }

    /// The row of a thread, made when there is room.
    fn thread(&mut self, tgid: u32, tid: u32) -> Option<&mut Thread> {
        if self.live.len() >= THREADS_MAX && !self.live.contains_key(&tid) {
            self.folded += 1;
            return None;
        }
        let thread = self.live.entry(tid).or_default();
        thread.tgid = tgid;
        thread.threads = 1;
        Some(thread)
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
    pub fn reset(&mut self) {
        self.ended.clear();
        for thread in self.live.values_mut() {
            *thread = Thread {
                tgid: thread.tgid,
                threads: 1,
                running_total_ns: thread.running_total_ns,
                running_before_ns: thread.running_total_ns,
                run_queue_total_ns: thread.run_queue_total_ns,
                ..Thread::default()
            };
        }
    }
}
