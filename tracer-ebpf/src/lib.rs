//! The contract between ctrace's two halves.
//!
//! The probes (binary `ctrace-ebpf`, `cfg(target_arch = "bpf")`) and user space (crate `tracer`) both
//! depend on this library and on nothing else of each other. Rules of the wire, which [`wire`] asserts at
//! compile time where it can:
//!
//! 1. `#[repr(C)]`, `Copy`, integers and arrays of integers only: no `bool`, `Option`, data-carrying enum, `usize`.
//! 2. No implicit padding: the size of every record is the sum of its fields, asserted beside it.
//! 3. An enumeration crosses as its integer; what user space does not know is a counted fault, never undefined.
//! 4. Numbers are stable: a retired one leaves a hole.
//! 5. A record reserved in a ring is written whole before it is submitted.
//!
//! Thinking lives here too ([`rules`]), so that host tests run the very functions the probes run.
#![no_std]
#![allow(
    clippy::inline_always,
    reason = "a call inside a probe costs the verifier more than the copy of a few instructions"
)]

pub mod bench;
pub mod births;
pub mod cookie;
pub mod delay;
pub mod go_pool;
pub mod go_start;
pub mod go_wait;
pub mod memo;
pub mod nr;
pub mod rules;
pub mod wire;
