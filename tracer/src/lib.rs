//! ctrace's user half. Data flows one way:
//!
//! ```text
//! kernel probes ──ring──> capture ──> aggregate ──> stacks (names) ──> analyse ──> report
//! ```

pub mod aggregate;
pub mod capture;
pub mod report;
pub mod stacks;
