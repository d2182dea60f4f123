//! What `cargo xtask bench-probes` counts: indices of the map `BENCH`, which only the object with the feature `bench` has.

/// Sleeps of the target's threads.
pub const FILTER: u32 = 0;
/// Records sent.
pub const RING: u32 = 1;
/// Stacks taken by `bpf_get_stackid`.
pub const STACKID: u32 = 2;
/// Stacks taken as the probes do.
pub const STACK: u32 = 3;
/// Runs of each part alone: clock, registers, task storage, hash, read of user memory.
pub const CLOCK: u32 = 4;
/// Registers.
pub const REGS: u32 = 5;
/// Task storage.
pub const STORAGE: u32 = 6;
/// Hash look-up.
pub const HASH: u32 = 7;
/// Read of user memory.
pub const READ: u32 = 8;
/// Number of counts.
pub const COUNT: u32 = 9;
