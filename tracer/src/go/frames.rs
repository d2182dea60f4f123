//! Values in the stacks of goroutines: where each frame of a group lies, and reading there while the program runs.
//!
//! All goroutines of a group have the same frames, so whatever lies in one lies equally far above the stack pointer in each. What is
//! read counts only when the goroutine's descriptor, read right after it in the same call, shows that it has not moved.

use super::{
    code::instructions,
    memory::{Memory, Piece},
    program::Program,
    snapshot::{Goroutine, Group, Reader, USER_END},
};
use crate::stacks::elf::u64_at;
use iced_x86::{Mnemonic, OpKind, Register};

/// Pieces read at a time: two for each goroutine.
const BATCH: usize = 512;
/// Bytes asked for at one place.
const MAX_ASKED: usize = 4096;

/// Where a frame lies, in bytes above the goroutine's saved stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its address in the code.
    pub pc: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Where its caller's begins (the canonical frame address); the return address is in the word below.
    pub cfa: u64,
}

/// Where the frames of a group lie, leaf first; none beyond one whose size no table tells.
pub fn places(program: &Program, group: &Group) -> Vec<Place> {
    let mut places = Vec::with_capacity(group.frames.len());
    let mut sp = 0u64;
    for &(pc, _) in &group.frames {
        let Some(step) = program.step(pc) else { break };
        let cfa = sp + u64::from(step.size) + 8;
        places.push(Place { pc, sp, cfa });
        sp = cfa;
    }
    places
}

/// Something asked of a goroutine that stands where the last snapshot saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    /// Its descriptor.
    pub(crate) g: u64,
    /// As it was seen.
    pub(crate) goroutine: Goroutine,
    /// What to read.
    pub(crate) at: u64,
    /// How much.
    pub(crate) len: usize,
}

impl Ask {
    /// Bytes from one offset above its stack pointer to another.
    pub(crate) fn stack(g: u64, goroutine: &Goroutine, from: u64, to: u64) -> Self {
        Self {
            g,
            goroutine: *goroutine,
            at: goroutine.sp.wrapping_add(from),
            len: to.saturating_sub(from) as usize,
        }
    }
}

/// Reads what is asked; calls with the number of each and its bytes, in order, leaving out those that cannot be read, and those whose
/// goroutine has moved.
pub(crate) fn read_standing<M: Memory>(reader: &Reader<M>, asks: &[Ask], mut each: impl FnMut(usize, &[u8])) {
    let layout = &reader.runtime().layout;
    let mut bytes = Vec::new();
    for (batch, asks) in asks.chunks(BATCH).enumerate() {
        let sound = |ask: &Ask| ask.len <= MAX_ASKED && ask.at != 0 && ask.at < USER_END;
        let mut pieces: Vec<Piece> = asks
            .iter()
            .flat_map(|ask| {
                let len = if sound(ask) { ask.len } else { 0 };
                [Piece::new(ask.at, len), Piece::new(ask.g, reader.used)]
            })
            .collect();
        bytes.clear();
        bytes.resize(pieces.iter().map(|piece| piece.len).sum(), 0);
        reader.memory().read_pieces(&mut pieces, &mut bytes);
        let mut rest = &bytes[..];
        for (number, (ask, pair)) in asks.iter().zip(pieces.chunks_exact(2)).enumerate() {
            let [wanted, after] = pair else { return };
            let Some((found, others)) = rest.split_at_checked(wanted.len) else {
                return;
            };
            let Some((descriptor, others)) = others.split_at_checked(after.len) else {
                return;
            };
            rest = others;
            if wanted.whole && wanted.len > 0 && after.whole && ask.goroutine.stands(layout, descriptor) {
                each(batch * BATCH + number, found);
            }
        }
    }
}

/// The receiver of a method is a word in its caller's part of the stack when the compiler had to keep it over a call. Whether the code
/// before `pc` stores one there; `size` is that frame's.
pub(crate) fn keeps_receiver(program: &Program, pc: u64, size: u64) -> bool {
    let Some((code, start)) = program.code_at(pc) else {
        return false;
    };
    let home = size + 8;
    instructions(&code, start)
        .take_while(|instruction| instruction.ip() < pc)
        .any(|instruction| {
            instruction.mnemonic() == Mnemonic::Mov
                && instruction.op0_kind() == OpKind::Memory
                && instruction.op1_kind() == OpKind::Register
                && (Register::RAX..=Register::R15).contains(&instruction.op1_register())
                && instruction.memory_base() == Register::RSP
                && instruction.memory_index() == Register::None
                && instruction.memory_displacement64() == home
        })
}

/// A receiver, and the return address below it, which shows that the frame is still the one of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receiver {
    cfa: u64,
    back: u64,
}

impl Receiver {
    /// Of the frame of that number; None when its code does not keep it.
    pub(crate) fn of(program: &Program, places: &[Place], frame: usize) -> Option<Self> {
        let place = places.get(frame)?;
        let back = places.get(frame + 1)?.pc;
        let size = place.cfa.checked_sub(place.sp)?.checked_sub(8)?;
        keeps_receiver(program, place.pc, size).then_some(Self { cfa: place.cfa, back })
    }

    /// What to read of a goroutine.
    pub(crate) fn ask(&self, g: u64, goroutine: &Goroutine) -> Ask {
        Ask::stack(g, goroutine, self.cfa - 8, self.cfa + 8)
    }

    /// What was read.
    pub(crate) fn take(&self, bytes: &[u8]) -> Option<u64> {
        let receiver = u64_at(bytes, 8)?;
        (u64_at(bytes, 0)? == self.back && is_pointer(receiver)).then_some(receiver)
    }
}

/// Could be the address of a structure that Go allocated.
pub(crate) const fn is_pointer(word: u64) -> bool {
    word >= 4096 && word < USER_END && word.is_multiple_of(8)
}
