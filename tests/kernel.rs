//! Whole runs of `ctrace` against programs whose truth is known.
//!
//! These need root and a kernel with BTF. A test that cannot run prints `SKIP: reason`; with
//! `CTRACE_TEST_NO_SKIP=1` that is a failure. Tests of any process on the machine take turns (see
//! [`support::turn`]): two tracers at once would measure each other.
//!
//! `cargo test --test kernel truth` checks the workloads alone, without `ctrace` and without root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, and prints what it measured"
)]

#[path = "kernel/budget.rs"]
mod budget;
#[path = "kernel/cpu.rs"]
mod cpu;
#[path = "kernel/deadlocks.rs"]
mod deadlocks;
#[path = "kernel/diff.rs"]
mod diff;
#[path = "kernel/fds.rs"]
mod fds;
#[path = "kernel/go_askers.rs"]
mod go_askers;
#[path = "kernel/go_descriptors.rs"]
mod go_descriptors;
#[path = "kernel/go_gc.rs"]
mod go_gc;
#[path = "kernel/go_locks.rs"]
mod go_locks;
#[path = "kernel/go_objects.rs"]
mod go_objects;
#[path = "kernel/go_pools.rs"]
mod go_pools;
#[path = "kernel/go_samples.rs"]
mod go_samples;
#[path = "kernel/go_waits.rs"]
mod go_waits;
#[path = "kernel/go_waits_lives.rs"]
mod go_waits_lives;
#[path = "kernel/go_waits_on.rs"]
mod go_waits_on;
#[path = "kernel/go_write.rs"]
mod go_write;
#[path = "kernel/goroutines.rs"]
mod goroutines;
#[path = "kernel/goroutines_grammar.rs"]
mod goroutines_grammar;
#[path = "kernel/goroutines_leaks.rs"]
mod goroutines_leaks;
#[path = "kernel/holds.rs"]
mod holds;
#[path = "kernel/locks.rs"]
mod locks;
#[path = "kernel/memory.rs"]
mod memory;
#[path = "kernel/memos.rs"]
mod memos;
#[path = "kernel/names.rs"]
mod names;
#[path = "kernel/robustness.rs"]
mod robustness;
#[path = "kernel/sched.rs"]
mod sched;
#[path = "kernel/servers.rs"]
mod servers;
#[path = "kernel/stories_cpu.rs"]
mod stories_cpu;
#[path = "kernel/stories_leak.rs"]
mod stories_leak;
#[path = "kernel/stories_lock.rs"]
mod stories_lock;
#[path = "kernel/stories_pool.rs"]
mod stories_pool;
#[path = "kernel/stories_threads.rs"]
mod stories_threads;
#[path = "kernel/storm.rs"]
mod storm;
mod support;
#[path = "kernel/truth.rs"]
mod truth;
#[path = "kernel/unwind.rs"]
mod unwind;
#[path = "kernel/unwind_cases.rs"]
mod unwind_cases;
#[path = "kernel/unwind_programs.rs"]
mod unwind_programs;
