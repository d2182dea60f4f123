//! The report: its data, and its renderings.

pub mod diff;
pub mod frames;
pub mod go_write;
pub mod hist;
pub mod model;
pub mod schema;
pub mod text;
pub mod time;
pub(crate) mod units;
pub mod write;

#[cfg(test)]
pub(crate) mod sample;
