//! From tables to a report: locks put together and named, time summed up, diagnoses made.

pub mod asked;
pub mod blocked;
pub mod cpu;
pub mod deadlocks;
pub mod findings;
pub mod gc;
pub mod go;
pub mod go_locks;
mod go_objects;
pub mod go_parks;
pub mod go_pool_waits;
mod go_pools;
pub mod go_shapes;
pub mod hints;
pub mod locks;
pub mod memory;
pub mod names;
pub mod owners;
pub mod rules;
pub mod spawned;
pub mod time;
pub mod waiting;

/// The time that a report covers, `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Start.
    pub start_ns: u64,
    /// End.
    pub end_ns: u64,
}

impl Window {
    /// Its length.
    #[must_use]
    pub const fn ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }
}
