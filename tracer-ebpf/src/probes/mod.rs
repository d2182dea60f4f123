//! See `docs/probes.md` for what each hook relies on and costs.
#![allow(unreachable_pub, reason = "aya's macros want entry points to be pub")]

mod emit;
mod fds;
mod maps;
mod sched;
mod task;
mod tasks_iter;
