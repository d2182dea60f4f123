//! Stacks: from copied registers and bytes to frames, and from frames to names.

/// A stack seen in a process; equal stacks of one process have equal ids. 0 is "no stack".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u32);

impl StackId {
    /// No stack could be taken.
    pub const NONE: Self = Self(0);
}
