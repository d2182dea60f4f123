//! Go programs from outside: their goroutines, read from memory, without a stop, an endpoint or a symbol.
//!
//! ```text
//! program (file: functions, code) ──> runtime (layouts by type descriptors, variables by code) ──> snapshot (goroutines, stacks)
//!                                                                                   └──> objects (locks, channels, descriptors, pools)
//! ```
//!
//! Nothing about a version of Go is known beforehand but the format of its table of functions and of its type descriptors: layouts
//! are read from the descriptors, addresses of variables from the code of functions that use them, and both are checked against
//! what must hold before they are used.

pub mod channels;
pub(crate) mod code;
pub mod connections;
pub mod frames;
pub mod held_up;
pub mod leak_detector;
pub(crate) mod lock_frames;
pub mod locks;
pub mod memory;
pub mod metrics;
pub mod objects;
pub mod park_sites;
pub mod pool_sites;
pub mod pools;
pub mod profiler;
pub mod program;
pub mod runtime;
pub mod semaphores;
pub mod sites;
pub mod snapshot;
pub mod sockets;
pub mod starts;
pub(crate) mod sudogs;
pub mod ticks;
pub mod types;

#[cfg(test)]
mod tests;
