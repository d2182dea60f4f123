//! Every different stack once.

use std::hash::{Hash as _, Hasher as _};

use rustc_hash::{FxHashMap, FxHasher};

use super::{End, Frame, StackId};

/// Different stacks kept.
const MAX_STACKS: usize = 1 << 18;
/// Frames of all of them together.
const MAX_FRAMES: usize = 4 << 20;

struct Stack {
    tgid: u32,
    start: usize,
    len: usize,
    end: End,
    /// The next one of the same hash.
    next: StackId,
}

/// Stacks by number.
#[derive(Default)]
pub(super) struct Interned {
    stacks: Vec<Stack>,
    frames: Vec<Frame>,
    heads: FxHashMap<u64, StackId>,
}

impl Interned {
    /// The number of a stack of a process; [`StackId::NONE`] when there are too many.
    pub(super) fn intern(&mut self, tgid: u32, frames: &[Frame], end: End) -> StackId {
        let mut hasher = FxHasher::default();
        (tgid, end as u8).hash(&mut hasher);
        for frame in frames {
            frame.address.hash(&mut hasher);
        }
        let hash = hasher.finish();
        let head = self.heads.get(&hash).copied().unwrap_or(StackId::NONE);
        let mut at = head;
        while let Some(stack) = self.stack(at) {
            if stack.tgid == tgid && stack.end == end && self.frames(at) == frames {
                return at;
            }
            at = stack.next;
        }
        if self.stacks.len() >= MAX_STACKS || self.frames.len() + frames.len() > MAX_FRAMES {
            return StackId::NONE;
        }
        let start = self.frames.len();
        self.frames.extend_from_slice(frames);
        self.stacks.push(Stack {
            tgid,
            start,
            len: frames.len(),
            end,
            next: head,
        });
        let id = StackId(self.stacks.len() as u32);
        self.heads.insert(hash, id);
        id
    }

    fn stack(&self, id: StackId) -> Option<&Stack> {
        self.stacks.get((id.0 as usize).checked_sub(1)?)
    }

    pub(super) fn frames(&self, id: StackId) -> &[Frame] {
        self.stack(id)
            .and_then(|s| self.frames.get(s.start..s.start + s.len))
            .unwrap_or_default()
    }

    pub(super) fn tgid(&self, id: StackId) -> Option<u32> {
        self.stack(id).map(|s| s.tgid)
    }

    pub(super) fn end(&self, id: StackId) -> Option<End> {
        self.stack(id).map(|s| s.end)
    }

    pub(super) fn len(&self) -> usize {
        self.stacks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_stacks_of_a_process_are_one() {
        let frame = |address| Frame {
            module: None,
            address,
            offset: 0,
            return_address: false,
            guessed: false,
        };
        let mut stacks = Interned::default();
        let a = stacks.intern(1, &[frame(1), frame(2)], End::Complete);
        assert_eq!(a, stacks.intern(1, &[frame(1), frame(2)], End::Complete));
        assert_ne!(a, stacks.intern(2, &[frame(1), frame(2)], End::Complete));
        assert_ne!(a, stacks.intern(1, &[frame(1), frame(2)], End::Truncated));
        assert_ne!(a, stacks.intern(1, &[frame(1)], End::Complete));
        assert_eq!(stacks.len(), 4);
        assert_eq!(stacks.frames(a), [frame(1), frame(2)]);
        assert!(stacks.frames(StackId::NONE).is_empty());
    }
}
