//! Where the time went, thread by thread.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::Window;
use crate::{
    aggregate::{
        hist::Histogram,
        threads::{Thread, Threads},
    },
    proc::sched::{SchedStat, Throttling},
    report::{
        hist::hist,
        model::{Reason, RunQueue, RunQueueThread, ThreadTime, Time},
    },
};

/// Threads with a row of their own in the report.
const ROWS_MAX: usize = 64;

/// What is known of one thread that lives at the window's end, besides its records.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Process.
    pub pid: u32,
    /// Name.
    pub comm: String,
    /// The scheduler's account at the window's start; `None` when it is younger.
    pub before: Option<SchedStat>,
    /// The same at its end.
    pub after: SchedStat,
    /// Asleep now: why, and since when (no earlier than the window's start counts).
    pub asleep: Option<(Reason, u64)>,
}

/// Threads that live at the window's end, by tid.
pub type LiveThreads = FxHashMap<u32, Live>;

/// Sums up the threads' time. `live` is keyed by tid.
#[must_use]
pub fn time(threads: &Threads, live: &LiveThreads, window: &Window, steal_ns: Option<u64>) -> Time {
    let mut rows: Vec<ThreadTime> = live
        .iter()
        .map(|(&tid, now)| {
            let seen = threads.get(tid);
            let before = now.before.unwrap_or_default();
            let mut blocked = seen.map(Thread::blocked).unwrap_or_default();
            if let Some((reason, since)) = now.asleep {
                *blocked.entry(reason).or_default() +=
                    window.end_ns.saturating_sub(since.max(window.start_ns));
            }
            ThreadTime {
                pid: now.pid,
                tid: Some(tid),
                comm: now.comm.clone(),
                threads: 1,
                running_ns: now.after.running_ns.saturating_sub(before.running_ns),
                runnable_ns: now.after.runnable_ns.saturating_sub(before.runnable_ns),
                blocked_ns: blocked,
            }
        })
        .collect();
    rows.extend(threads.ended().map(|thread| ThreadTime {
        pid: thread.tgid,
        tid: None,
        comm: "(ended)".into(),
        threads: thread.threads,
        running_ns: thread.running_ns(),
        runnable_ns: thread.delays.total(),
        blocked_ns: thread.blocked(),
    }));
    let mut sum = ThreadTime {
        pid: 0,
        tid: None,
        comm: "(others)".into(),
        threads: 0,
        running_ns: 0,
        runnable_ns: 0,
        blocked_ns: BTreeMap::new(),
    };
    for row in &rows {
        add(&mut sum, row);
    }
    rows.sort_by_key(|row| (std::cmp::Reverse(row.running_ns + row.runnable_ns), row.tid));
    if rows.len() > ROWS_MAX {
        let mut others = ThreadTime {
            pid: rows[0].pid,
            ..empty(&sum)
        };
        for row in rows.drain(ROWS_MAX..) {
            add(&mut others, &row);
        }
        rows.push(others);
    }
    Time {
        running_ns: sum.running_ns,
        runnable_ns: sum.runnable_ns,
        blocked_ns: sum.blocked_ns,
        steal_ns,
        by_thread: rows,
    }
}

fn empty(like: &ThreadTime) -> ThreadTime {
    ThreadTime {
        threads: 0,
        running_ns: 0,
        runnable_ns: 0,
        blocked_ns: BTreeMap::new(),
        ..like.clone()
    }
}

fn add(sum: &mut ThreadTime, row: &ThreadTime) {
    sum.threads += row.threads;
    sum.running_ns += row.running_ns;
    sum.runnable_ns += row.runnable_ns;
    for (&reason, &ns) in &row.blocked_ns {
        *sum.blocked_ns.entry(reason).or_default() += ns;
    }
}

/// Run-queue delays of all threads, ended ones included.
#[must_use]
pub fn run_queue(
    threads: &Threads,
    live: &LiveThreads,
    throttled: Option<Throttling>,
    window: &Window,
) -> RunQueue {
    let mut all = Histogram::new();
    let (mut preempted, mut woken) = (0, 0);
    let mut rows: Vec<(u32, &Histogram)> = Vec::new();
    for (tid, thread) in threads.live() {
        all.merge(&thread.delays);
        preempted += thread.preempted;
        woken += thread.woken;
        if thread.delays.count() > 0 {
            rows.push((tid, &thread.delays));
        }
    }
    for thread in threads.ended() {
        all.merge(&thread.delays);
        preempted += thread.preempted;
        woken += thread.woken;
    }
    rows.sort_by_key(|(tid, delays)| (std::cmp::Reverse(delays.total()), *tid));
    RunQueue {
        hist: hist(&all),
        by_thread: rows
            .into_iter()
            .take(ROWS_MAX)
            .map(|(tid, delays)| RunQueueThread {
                tid,
                comm: live.get(&tid).map(|now| now.comm.clone()).unwrap_or_default(),
                hist: hist(delays),
            })
            .collect(),
        preempted,
        woken,
        throttled_ns: throttled.map(|throttled| throttled.ns),
        throttled_periods: throttled.map(|throttled| throttled.periods),
        slices: threads.slices().report(window.ns()),
    }
}
