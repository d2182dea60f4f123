//! Aggregators: pure over decoded events. Time and identity come in the event; nothing here reads a clock or `/proc`.

pub(crate) mod ages;
pub mod fds;
pub mod go_locks;
pub mod go_pools;
pub mod go_starts;
pub mod goroutines;
pub mod hist;
pub mod holds;
pub mod pages;
pub(crate) mod periods;
pub mod reason;
pub mod resident;
pub mod samples;
pub(crate) mod series;
pub mod slices;
pub mod spawned;
pub(crate) mod stats;
pub mod threads;
pub mod tids;
pub(crate) mod verdict;
pub mod waits;
