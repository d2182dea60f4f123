//! What /proc says about a process.

pub mod maps;
