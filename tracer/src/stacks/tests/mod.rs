//! Stacks against truth: programs whose blocked call chains are known, gdb, and libgcc's own unwinder.

mod derived;
mod go;
mod hostile;
mod names;
mod own;
mod rig;
mod truth;

use crate::testing::toolchains;
