//! What `cargo xtask bench-probes` counts: indices of the map `BENCH`, which only the object with the feature `bench` has.

/// Sleeps of the target's threads.
pub const FILTER: u32 = 0;
/// Records sent.
pub const RING: u32 = 1;
/// Stacks taken by `bpf_get_stackid`.
pub const STACKID: u32 = 2;
/// Stacks taken as the probes do.
pub const STACK: u32 = 3;
/// Number of counts.
pub const COUNT: u32 = 4;
