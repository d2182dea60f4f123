//! What the tests stand on: workloads built and talked to, `ctrace` run and its report read and validated.
//!
//! Everything waits for a condition, bounded by [`PATIENCE`]; nothing waits for a time to pass. Whatever a test
//! started ends with it, also when it fails.

use std::thread;
use std::time::{Duration, Instant};

pub(crate) mod build;
pub(crate) mod ctrace;
pub(crate) mod findings;
pub(crate) mod gdb;
pub(crate) mod go;
pub(crate) mod go_workload;
pub(crate) mod goroutines;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod quota;
pub(crate) mod server;
pub(crate) mod snapshot;
pub(crate) mod stacks;
pub(crate) mod turn;
pub(crate) mod workload;

pub(crate) use ctrace::Ctrace;
pub(crate) use turn::{can_trace, require};
pub(crate) use workload::Workload;

/// How long any one condition may take to come true. Generous: it only bounds a failure, and a shared machine can
/// stand still for a minute.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// Waits until `condition` holds; fails with `what` when it never does.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
