//! Go programs from outside: their goroutines, read from memory, without a stop, an endpoint or a symbol.
//!
//! ```text
//! program (file: functions, code) ──> runtime (layouts by type descriptors, variables by code) ──> snapshot (goroutines, stacks)
//! ```
//!
//! Nothing about a version of Go is known beforehand but the format of its table of functions and of its type descriptors: layouts
//! are read from the descriptors, addresses of variables from the code of functions that use them, and both are checked against
//! what must hold before they are used.

pub(crate) mod code;
pub mod locks;
pub mod memory;
pub mod program;
pub mod runtime;
pub mod sites;
pub mod snapshot;
pub mod types;

#[cfg(test)]
mod tests;
