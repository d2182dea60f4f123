//! Every different stack once.

use std::hash::{Hash as _, Hasher as _};

use rustc_hash::{FxHashMap, FxHasher};

use super::{End, Frame, StackId};

/// Different stacks kept, and frames of all of them together.
const LASTING: (usize, usize) = (1 << 18, 4 << 20);
/// The same of those that are forgotten with their window.
const PASSING: (usize, usize) = (1 << 14, 1 << 20);
/// Bit of the numbers of those.
const IS_PASSING: u32 = 1 << 31;

struct Stack {
    tgid: u32,
    start: usize,
    len: usize,
    end: End,
    /// The next one of the same hash.
    next: StackId,
}

/// Stacks by number: those that come again and are kept, and samples of running code, which hardly do and would crowd those out.
#[derive(Default)]
pub(super) struct Interned {
    lasting: Store,
    passing: Store,
}

impl Interned {
    /// The number of a stack of a process; [`StackId::NONE`] when there are too many.
    pub(super) fn intern(&mut self, tgid: u32, frames: &[Frame], end: End) -> StackId {
        self.lasting.intern(LASTING, tgid, frames, end)
    }

    /// The same of one that is forgotten with the next [`Interned::forget_passing`].
    pub(super) fn intern_passing(&mut self, tgid: u32, frames: &[Frame], end: End) -> StackId {
        match self.passing.intern(PASSING, tgid, frames, end) {
            StackId::NONE => StackId::NONE,
            id => StackId(id.0 | IS_PASSING),
        }
    }

    pub(super) fn forget_passing(&mut self) {
        self.passing = Store::default();
    }

    fn of(&self, id: StackId) -> (&Store, StackId) {
        if id.0 & IS_PASSING == 0 {
            (&self.lasting, id)
        } else {
            (&self.passing, StackId(id.0 & !IS_PASSING))
        }
    }

    pub(super) fn frames(&self, id: StackId) -> &[Frame] {
        let (store, id) = self.of(id);
        store.frames(id)
    }

    pub(super) fn tgid(&self, id: StackId) -> Option<u32> {
        let (store, id) = self.of(id);
        store.stack(id).map(|s| s.tgid)
    }

    pub(super) fn end(&self, id: StackId) -> Option<End> {
        let (store, id) = self.of(id);
        store.stack(id).map(|s| s.end)
    }

    /// Of those that are kept.
    pub(super) fn len(&self) -> usize {
        self.lasting.stacks.len()
    }
}

#[derive(Default)]
struct Store {
    stacks: Vec<Stack>,
    frames: Vec<Frame>,
    heads: FxHashMap<u64, StackId>,
}

impl Store {
    fn intern(
        &mut self,
        (max_stacks, max_frames): (usize, usize),
        tgid: u32,
        frames: &[Frame],
        end: End,
    ) -> StackId {
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
        if self.stacks.len() >= max_stacks || self.frames.len() + frames.len() > max_frames {
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

    fn frames(&self, id: StackId) -> &[Frame] {
        self.stack(id)
            .and_then(|s| self.frames.get(s.start..s.start + s.len))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(address: u64) -> Frame {
        Frame {
            module: None,
            address,
            offset: 0,
            return_address: false,
            guessed: false,
        }
    }

    #[test]
    fn samples_do_not_crowd_out_what_comes_again() {
        let mut stacks = Interned::default();
        let kept = stacks.intern(1, &[frame(1)], End::Complete);
        let passing = stacks.intern_passing(1, &[frame(1)], End::Complete);
        assert_ne!(kept, passing);
        assert_eq!(stacks.frames(passing), [frame(1)]);
        for address in 2..=PASSING.0 as u64 {
            assert_ne!(
                stacks.intern_passing(1, &[frame(address)], End::Complete),
                StackId::NONE
            );
        }
        assert_eq!(
            stacks.intern_passing(1, &[frame(1 << 40)], End::Complete),
            StackId::NONE
        );
        stacks.forget_passing();
        assert!(stacks.frames(passing).is_empty());
        assert_eq!((stacks.frames(kept), stacks.len()), (&[frame(1)][..], 1));
    }

    #[test]
    fn equal_stacks_of_a_process_are_one() {
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
