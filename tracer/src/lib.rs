//! ctrace's user half. Data flows one way:
//!
//! ```text
//! kernel probes ──ring──> capture ──> aggregate ──> stacks (names) ──> analyse ──> report
//! ```
//!
//! `session` turns the wheel; only `capture` knows aya, only `report` and `cli` print.

pub mod aggregate;
pub mod analyse;
pub mod capture;
pub mod cli;
pub mod diff;
pub mod fail_on;
pub mod go;
pub mod proc;
pub mod report;
pub mod session;
pub mod stacks;

#[cfg(test)]
mod testing;
