//! What is read beside the records at a window's edges: the scheduler's accounts and names of threads.

use rustc_hash::FxHashMap;

use crate::{
    analyse::{time::Live, waiting::Sleeper},
    capture::stats::KernelTime,
    proc::{
        host::{Memory, own_memory},
        sched::{SchedStat, Throttling, schedstats, throttling},
        target::Stat,
    },
};

/// The edge of a window.
#[derive(Clone, Debug, Default)]
pub struct Edge {
    /// `CLOCK_MONOTONIC`.
    pub ns: u64,
    /// Each thread's account, by tid.
    pub threads: FxHashMap<u32, (u32, SchedStat)>,
    /// The cgroup's quota, by process.
    pub throttling: FxHashMap<u32, Throttling>,
    /// The host's stolen time.
    pub steal_ns: Option<u64>,
    /// Our own CPU time.
    pub own_cpu_ns: u64,
    /// Time in the probes so far.
    pub kernel: Option<KernelTime>,
    /// Our own memory.
    pub memory: Memory,
}

impl Edge {
    /// Reads it for these processes.
    #[must_use]
    pub fn read(pids: &[u32], kernel: Option<KernelTime>) -> Self {
        let mut edge = Self {
            ns: crate::proc::host::monotonic_ns(),
            steal_ns: crate::proc::sched::steal_ns(),
            own_cpu_ns: crate::proc::host::own_cpu().as_nanos() as u64,
            kernel,
            memory: own_memory(),
            ..Self::default()
        };
        for &pid in pids {
            edge.threads
                .extend(schedstats(pid).into_iter().map(|(tid, stat)| (tid, (pid, stat))));
            if let Some(throttling) = throttling(pid) {
                edge.throttling.insert(pid, throttling);
            }
        }
        edge
    }
}

/// Threads alive at the end, with their accounts at both edges.
#[must_use]
pub fn live(before: &Edge, after: &Edge, sleepers: &[Sleeper], started_at_ns: u64) -> FxHashMap<u32, Live> {
    let asleep: FxHashMap<u32, &Sleeper> = sleepers.iter().map(|sleeper| (sleeper.tid, sleeper)).collect();
    after
        .threads
        .iter()
        .map(|(&tid, &(pid, stat))| {
            let live = Live {
                pid,
                comm: Stat::of_thread(pid, tid)
                    .map(|stat| stat.comm)
                    .unwrap_or_default(),
                before: before.threads.get(&tid).map(|&(_, stat)| stat),
                after: stat,
                asleep: asleep
                    .get(&tid)
                    .map(|sleeper| (sleeper.reason, sleeper.since_ns.unwrap_or(started_at_ns))),
            };
            (tid, live)
        })
        .collect()
}

/// What the quota did between two edges, of the process that it held longest (processes of one cgroup share the figure).
#[must_use]
pub fn throttled(before: &Edge, after: &Edge) -> Option<Throttling> {
    let pids = after.throttling.keys();
    pids.filter_map(|&pid| throttled_of(before, after, pid))
        .max_by_key(|throttling| throttling.ns)
}

/// The same of one process.
#[must_use]
pub fn throttled_of(before: &Edge, after: &Edge, pid: u32) -> Option<Throttling> {
    let now = after.throttling.get(&pid)?;
    let then = before.throttling.get(&pid).copied().unwrap_or(*now);
    Some(Throttling {
        ns: now.ns.saturating_sub(then.ns),
        periods: now.periods.saturating_sub(then.periods),
        of: now.of.saturating_sub(then.of),
    })
}
