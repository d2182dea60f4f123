//! Waits for connections of pools as probes timed them, beside what snapshots saw of the pools.

use rustc_hash::FxHashMap;
use tracer_ebpf::{go_pool::Counts, wire::go_site};

use super::{locks::Locks, names::Names};
use crate::{
    aggregate::{go_locks::GoLocks, waits::Row},
    report::{
        hist::hist,
        model::{Go, GoPoolWait, LockKind},
        units::counted,
    },
    stacks::StackId,
};

/// Stacks told, of one pool.
const MAX_STACKS: usize = 10;

/// Puts them there. `counts` has what was counted of the pools of a process, by address, and whether that is all requests, not only those
/// that waited; `None` where no probe was.
pub fn timed(
    go: &mut [Go],
    mut locks: Option<&mut Locks>,
    waits: &GoLocks,
    counts: impl Fn(u32) -> Option<(Vec<(u64, Counts)>, bool)>,
    names: &mut Names<'_>,
) {
    for go in go {
        let Some((counts, all)) = counts(go.pid) else {
            continue;
        };
        let counts: FxHashMap<String, Counts> = counts
            .into_iter()
            .map(|(address, counts)| (format!("{address:#x}"), counts))
            .collect();
        let mut rows: FxHashMap<String, Vec<(StackId, &Row)>> = FxHashMap::default();
        let own = waits
            .rows()
            .filter(|(key, _)| key.site == go_site::POOL && key.tgid == go.pid);
        for (key, row) in own {
            rows.entry(format!("{:#x}", key.address))
                .or_default()
                .push((key.stack, row));
        }
        for pool in &mut go.pools {
            let mut by_stack = rows.remove(&pool.address).unwrap_or_default();
            let mut sum = Row::default();
            for (_, row) in &by_stack {
                sum.merge(row);
            }
            by_stack.sort_by_key(|(stack, row)| (std::cmp::Reverse(row.wait.total()), *stack));
            let counted_here = counts.get(&pool.address).copied().unwrap_or_default();
            pool.requests = all.then_some(counted_here.requests);
            pool.requests_waited = Some(counted_here.waits);
            pool.wait = Some(hist(&sum.wait));
            pool.gave_up = Some(sum.interrupted);
            pool.wait_by_stack = by_stack
                .into_iter()
                .take(MAX_STACKS)
                .map(|(stack, row)| GoPoolWait {
                    stack: names.key(stack),
                    wait: hist(&row.wait),
                })
                .collect();
            let mut all = locks
                .as_deref_mut()
                .into_iter()
                .flat_map(|locks| &mut locks.locks);
            let lock = all.find(|lock| {
                lock.kind == LockKind::Pool
                    && lock.pid == go.pid
                    && lock.address.as_deref() == Some(&*pool.address)
            });
            if let Some(lock) = lock {
                lock.name = Some(format!("pool of {}", counted(pool.max_open, "connection")));
                pool.lock = Some(lock.id.clone());
            }
        }
    }
}
