//! Locks whose waits were seen for a part of the window: what snapshots, which are taken all the time, say against a verdict.

use crate::analyse::names::Names;
use crate::report::{
    model::{Go, Lock, Severity},
    units::duration,
};

/// What was seen for less says nothing.
const LEAST_NS: u64 = 10_000_000;
/// Of what was seen in none of n independent looks, less than 3 in n are there, with 95 % confidence.
const NONE_SEEN: f64 = 3.0;
/// Snapshots that say something.
const SNAPSHOTS: u64 = 10;

/// How bad it is that a lock was waited for in this share of the time, and whether that is sure; `None`: not worth a word. What was seen for
/// a part of the window must agree with what is known of all of it.
pub(super) fn severity(
    lock: &Lock,
    share: f64,
    all: &[Go],
    names: &mut Names<'_>,
) -> Option<(Severity, bool)> {
    let (felt, sure) = match lock.covered_ns {
        Some(covered_ns) if covered_ns < LEAST_NS => return None,
        Some(_) => match most_waiting(lock.pid, all, names) {
            Some(most) => (share.min(most), true),
            None => (share, false),
        },
        None => (share, true),
    };
    let severity = match felt {
        0.5.. if sure => Severity::High,
        0.1.. if sure => Severity::Medium,
        0.5.. => Severity::Medium,
        0.01.. => Severity::Low,
        _ => return None,
    };
    Some((severity, sure))
}

/// So many goroutines of a process waited for its locks on average at most, by snapshots; `None` where there are too few. The probes may have
/// met the one moment in which there was a crowd.
fn most_waiting(pid: u32, all: &[Go], names: &mut Names<'_>) -> Option<f64> {
    let go = all.iter().find(|go| go.pid == pid)?;
    let snapshots = go.snapshots.count;
    if snapshots < SNAPSHOTS {
        return None;
    }
    let mut for_locks = 0.0;
    for row in &go.waits {
        let id = row.stack.as_deref().and_then(|key| names.id(key));
        let is_lock = id.is_some_and(|id| {
            names.frames(id).iter().any(|frame| {
                let name = frame.function.as_deref().unwrap_or_default();
                name.starts_with("sync.(*Mutex).") || name.starts_with("sync.(*RWMutex).")
            })
        });
        // Those of which probes alone know are what is to be judged.
        if is_lock && row.samples > 0 {
            let most = row
                .total_ci_ns
                .map_or(1.0, |[_, high]| high as f64 / row.total_ns.max(1) as f64);
            for_locks += row.mean.unwrap_or_default() * most;
        }
    }
    // Those that moved while they were read may all have been there.
    let unknown = NONE_SEEN + go.snapshots.moved as f64;
    Some(for_locks + unknown / snapshots as f64)
}

/// The time that a lock's waits are set against, in words.
pub(super) fn window(covered_ns: Option<u64>, window_ns: u64) -> String {
    match covered_ns {
        Some(covered_ns) => format!("{} seen of {}", duration(covered_ns), duration(window_ns)),
        None => duration(window_ns),
    }
}
