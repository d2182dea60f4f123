//! What a Go runtime counts of its own: collections and their pauses, stops of the world, its run queue, its heap.
//!
//! The runtime keeps these all the time, for `runtime/metrics`; they are read from its memory, without a call into the program:
//!
//! ```text
//! find (variables by the code that uses them) ──> sample (one read) ──> between (two samples) ──> track (a whole run) ──> report
//! ```
//!
//! Each part is found, and checked against what must hold of it, by itself: what is not found is not reported.

mod find;
mod heap;
mod sample;
mod times;
mod track;

#[cfg(test)]
mod tests;

pub use find::Metrics;
pub use heap::Heap;
pub use sample::{Collections, Cpu, Sample, Stops};
pub use times::{Form, Times};
pub use track::{Gc, GcTrack, between, gc};
