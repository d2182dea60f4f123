//! The report: its data, and its renderings.

pub mod frames;
pub mod hist;
pub mod model;
pub mod time;
