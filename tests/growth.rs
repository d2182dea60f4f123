//! How good the verdicts on growth, the periods and the populations of a distribution are, over generated truths.
//!
//! Each run draws a seed, prints it, and prints what it measured; `CTRACE_SEED=N` repeats a run. The generators know
//! nothing of the rules that judge: they make histories of births and deaths, which the real table of descriptors gets
//! as the probes' records.
//!
//! `cargo test -p tracer --test growth -- --nocapture`

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it measured"
)]

#[path = "growth/dice.rs"]
mod dice;
#[path = "growth/histories.rs"]
mod histories;
#[path = "growth/modes.rs"]
mod modes;
#[path = "growth/periods.rs"]
mod periods;
#[path = "growth/stage.rs"]
mod stage;
#[path = "growth/verdicts.rs"]
mod verdicts;
