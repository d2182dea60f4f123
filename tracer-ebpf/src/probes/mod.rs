//! See `docs/probes.md` for what each hook relies on and costs.
#![allow(unreachable_pub, reason = "aya's macros want entry points to be pub")]
#![allow(
    clippy::inline_always,
    reason = "a call inside a probe costs the verifier more than the copy of a few instructions"
)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "aya's macros hand the context over by value"
)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "the kernel's structs and records are aligned to their fields"
)]

#[cfg(feature = "bench")]
mod bench;
mod emit;
mod faults;
mod fds;
mod go;
mod go_parks;
mod go_pools;
mod go_start;
mod maps;
mod samples;
mod sched;
mod stack;
mod task;
mod tasks_iter;
