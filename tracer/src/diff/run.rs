//! One of the two runs, and what of it matters besides its waits.

use std::collections::BTreeSet;

use super::{
    item::{Class, Item, items},
    names::Chain,
};
use crate::report::model::{Reason, Report};

/// One of the two runs.
pub struct Run<'a> {
    /// Its reports.
    pub reports: &'a [Report],
    /// What waits.
    pub items: Vec<Item>,
    /// All windows together.
    pub duration_ns: f64,
    /// Things that are not in `items`, for want of room.
    pub left_out: u64,
    /// Nothing was lost.
    pub complete: bool,
    /// Stacks, hashed, in which threads or goroutines had waited for most of the run when it ended: such waits are in no distribution.
    stuck: BTreeSet<u64>,
}

impl<'a> Run<'a> {
    /// Of reports of consecutive windows.
    #[must_use]
    pub fn new(reports: &'a [Report]) -> Self {
        let (items, left_out) = items(reports);
        Self {
            reports,
            items,
            left_out,
            duration_ns: reports
                .iter()
                .map(|report| report.window.duration_ns as f64)
                .sum(),
            complete: reports.iter().all(|report| report.losses.complete),
            stuck: reports.last().map(stuck).unwrap_or_default(),
        }
    }

    /// Threads of this run are stuck where the other one's waited.
    pub(super) fn is_stuck(&self, other: &Item) -> bool {
        self.stuck.iter().any(|chain| other.chains.contains_key(chain))
    }

    /// Whether the class was collected.
    pub(super) fn has(&self, class: Class) -> bool {
        self.reports.iter().all(|report| match class {
            Class::Lock => report.locks.is_some(),
            Class::Blocked => report.blocked.is_some(),
            Class::RunQueue => report.run_queue.is_some(),
            Class::Gc => report.go.as_ref().is_some_and(|go| go.gc.is_some()),
        })
    }

    pub(super) fn cpus(&self) -> f64 {
        self.reports
            .first()
            .map_or(1.0, |report| f64::from(report.host.cpus.max(1)))
    }

    /// CPU time of the targets, of one CPU.
    pub(super) fn running(&self) -> Option<f64> {
        let all: Option<f64> = self
            .reports
            .iter()
            .map(|report| Some(report.time.as_ref()?.running_ns as f64))
            .sum();
        all.map(|ns| ns / self.duration_ns.max(1.0))
    }
}

fn stuck(report: &Report) -> BTreeSet<u64> {
    let long = report.window.duration_ns / 2;
    let waiting = report.waiting_now.iter();
    let threads = waiting
        .filter(|thread| thread.reason == Reason::Futex && thread.since_ns.is_none_or(|since| since >= long))
        .filter_map(|thread| thread.stack.as_ref());
    let go = report.go.iter().chain(&report.go_others);
    let goroutines = go
        .flat_map(|go| &go.by_stack)
        .filter(|row| row.wait_ns.max_ns >= long && row.wait_reason.as_deref().is_some_and(is_lock))
        .filter_map(|row| row.stack.as_ref());
    threads
        .chain(goroutines)
        .filter_map(|key| report.stacks.get(key))
        .map(|frames| Chain::of(frames).hash)
        .collect()
}

/// Go's reasons to park for a lock; before 1.20 there is one for all that uses a semaphore.
fn is_lock(reason: &str) -> bool {
    reason == "semacquire" || reason.starts_with("sync.Mutex.") || reason.starts_with("sync.RWMutex.")
}
