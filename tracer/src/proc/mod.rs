//! Readers of `/proc`: hostile input, read with bounds.

pub mod cgroup;
pub mod fd;
pub mod host;
pub mod limits;
pub mod maps;
pub mod memory;
pub mod sched;
pub mod sockets;
pub mod target;
