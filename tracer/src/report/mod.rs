//! The report: its data, and its renderings.

pub mod model;
