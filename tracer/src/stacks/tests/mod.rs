//! Stacks against truth: programs whose blocked call chains are known, gdb, and libgcc's own unwinder.

mod hostile;
mod own;
mod rig;
mod truth;
