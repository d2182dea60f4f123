//! Readers of `/proc`: hostile input, read with bounds.

pub mod fd;
pub mod limits;
pub mod sockets;
