//! A goroutine's place in a queue (`runtime.sudog`): of a channel, a semaphore or a condition variable.

use super::{
    memory::Memory,
    objects::{SUDOG, Structs},
    types::{Struct, Types},
};
use crate::stacks::elf::u64_at;

/// Offsets in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sudogs {
    g: usize,
    next: usize,
    prev: usize,
    elem: usize,
    acquired: usize,
    waitlink: usize,
    channel: usize,
    /// Bytes read.
    pub(crate) len: usize,
}

/// One.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sudog {
    /// Who waits.
    pub(crate) g: u64,
    /// The next one of a queue; in the tree of semaphores the one with higher addresses.
    pub(crate) next: u64,
    /// The one before; in the tree of semaphores the one with lower addresses.
    pub(crate) prev: u64,
    /// The semaphore; for a channel, where the value is.
    pub(crate) elem: u64,
    /// When the wait began, in the clock ticks of the CPU; 0 unless the program profiles its locks.
    pub(crate) acquired: u64,
    /// The next one that waits for the same semaphore; for a channel, the next case of the same select.
    pub(crate) waitlink: u64,
    /// The channel.
    pub(crate) channel: u64,
}

impl Sudogs {
    /// By the descriptor; None when it contradicts itself.
    pub(super) fn find<M: Memory + ?Sized>(types: &Types<'_, M>, found: &Structs) -> Option<Self> {
        let sudog = found.get(&SUDOG)?;
        let found = Self {
            g: sudog.field("g")?,
            next: sudog.field("next")?,
            prev: sudog.field("prev")?,
            elem: pointer(types, sudog, "elem")?,
            acquired: sudog.field("acquiretime")?,
            waitlink: sudog.field("waitlink")?,
            channel: pointer(types, sudog, "c")?,
            len: usize::try_from(sudog.size).ok()?,
        };
        let fields = [
            found.g,
            found.next,
            found.prev,
            found.elem,
            found.acquired,
            found.waitlink,
            found.channel,
        ];
        (found.len <= 1024 && fields.iter().all(|&at| at + 8 <= found.len)).then_some(found)
    }

    /// As Go 1.21 has it.
    #[cfg(test)]
    pub(crate) const fn sample() -> Self {
        Self {
            g: 0,
            next: 8,
            prev: 16,
            elem: 24,
            acquired: 32,
            waitlink: 64,
            channel: 80,
            len: 88,
        }
    }

    /// Reads the bytes of one.
    pub(crate) fn read(&self, bytes: &[u8]) -> Option<Sudog> {
        let word = |at: usize| u64_at(bytes, at);
        Some(Sudog {
            g: word(self.g)?,
            next: word(self.next)?,
            prev: word(self.prev)?,
            elem: word(self.elem)?,
            acquired: word(self.acquired)?,
            waitlink: word(self.waitlink)?,
            channel: word(self.channel)?,
        })
    }
}

/// Offset of a field that is an address. Since 1.26 some are structures that also hold it as a number, which is always set (`vu`).
fn pointer<M: Memory + ?Sized>(types: &Types<'_, M>, structure: &Struct, name: &str) -> Option<usize> {
    let mut at = structure.field(name)?;
    let mut inner = types.structure(structure.type_of(name)?);
    // A channel's is a structure of one field which is that structure.
    for _ in 0..2 {
        let Some(held) = inner else { return Some(at) };
        if let Some(number) = held.field("vu") {
            return at.checked_add(number);
        }
        at = at.checked_add(held.field("maybeTraceablePtr")?)?;
        inner = types.structure(held.type_of("maybeTraceablePtr")?);
    }
    inner?.field("vu").and_then(|number| at.checked_add(number))
}
