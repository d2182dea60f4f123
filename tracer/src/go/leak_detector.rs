//! The collector's own search for goroutines that nothing can wake any more, which Go has since 1.26.
//!
//! A collection for which `work.goroutineLeak.pending` was set does not begin at the stacks of blocked goroutines: those that are
//! blocked on channels and locks that nobody else can reach are leaked, and get a status of their own (`_Gleaked`). The three bytes
//! `pending`, `enabled`, `done` are found by the code of the collection's start and end.

use iced_x86::{Code, Instruction};

use super::{
    code::{instructions, reference},
    memory::{Memory, Piece},
    program::Program,
    runtime::{MAX_GOROUTINES, Runtime},
    snapshot::USER_END,
};
use crate::stacks::elf::{u32_at, u64_at};

/// `_Gleaked`, and a bit that the collector adds while it scans.
const LEAKED: u32 = 10;
const SCAN: u32 = 0x1000;

/// Where a runtime's detector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detector {
    /// Address of `pending`.
    pub pending: u64,
}

/// What it does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The next collection is to look.
    Pending,
    /// One is looking.
    Enabled,
    /// Neither.
    Idle,
}

impl Detector {
    /// Looks for it; the error says what is not as expected.
    pub fn find<M: Memory>(memory: &M, program: &Program) -> Result<Self, &'static str> {
        let start = bytes_of(program, "runtime.gcStart");
        let end = bytes_of(program, "runtime.gcMarkTermination");
        let middle = bytes_of(program, "runtime.gcMarkDone");
        // The start sets `enabled` and names `pending` before it, the middle asks for both others and sets the last, the end
        // clears both.
        let fits = |pending: &u64| {
            let (enabled, done) = (pending.wrapping_add(1), pending.wrapping_add(2));
            start.named.contains(pending)
                && start.set.contains(&(enabled, 1))
                && middle.asked.contains(&enabled)
                && middle.asked.contains(&done)
                && middle.stored.contains(&done)
                && end.set.contains(&(enabled, 0))
                && end.set.contains(&(done, 0))
        };
        let mut found: Vec<u64> = start.named.iter().copied().filter(fits).collect();
        found.sort_unstable();
        found.dedup();
        let &[pending] = &found[..] else {
            return Err("its collector has no search for leaked goroutines, which came with Go 1.26");
        };
        let found = Self { pending };
        found
            .state(memory)
            .ok_or("the search for leaked goroutines contradicts itself")?;
        Ok(found)
    }

    /// None when the bytes are no switches, or cannot be read.
    pub fn state<M: Memory>(&self, memory: &M) -> Option<State> {
        let bytes = memory.read(self.pending, 3)?;
        match bytes[..] {
            [1, 0 | 1, 0 | 1] => Some(State::Pending),
            [0, 1, 0 | 1] => Some(State::Enabled),
            [0, 0, 0] => Some(State::Idle),
            _ => None,
        }
    }
}

/// Bytes of data that a function and its closures use.
#[derive(Default)]
struct Used {
    /// In any way.
    named: Vec<u64>,
    /// Set to a constant.
    set: Vec<(u64, u64)>,
    /// Set to something.
    stored: Vec<u64>,
    /// Compared with 0.
    asked: Vec<u64>,
}

fn bytes_of(program: &Program, function: &str) -> Used {
    let mut used = Used::default();
    let own = |name: &&str| name[function.len()..].is_empty() || name[function.len()..].starts_with('.');
    for name in program.functions_like(function).filter(own).take(32) {
        let Some((code, start)) = program.code(name) else {
            continue;
        };
        for one in instructions(&code, start) {
            if let Some(at) = reference(&one) {
                used.add(&one, at);
            }
        }
    }
    used
}

impl Used {
    fn add(&mut self, one: &Instruction, at: u64) {
        self.named.push(at);
        match one.code() {
            Code::Mov_rm8_imm8 => self
                .set
                .extend(one.try_immediate(1).ok().map(|value| (at, value))),
            Code::Mov_rm8_r8 | Code::Mov_moffs8_AL => self.stored.push(at),
            Code::Cmp_rm8_imm8 if one.try_immediate(1).is_ok_and(|value| value == 0) => self.asked.push(at),
            _ => {}
        }
    }
}

/// Numbers of all goroutines that have that status now. None when the list cannot be read.
pub fn leaked<M: Memory>(memory: &M, runtime: &Runtime) -> Option<Vec<u64>> {
    let layout = &runtime.layout;
    let slice = memory.read(runtime.goroutines, 16)?;
    let (list, len) = (u64_at(&slice, 0)?, u64_at(&slice, 8)?);
    let len = usize::try_from(len)
        .ok()
        .filter(|&len| len as u64 <= MAX_GOROUTINES)?;
    let addresses = memory.read(list, 8 * len)?;
    let first = layout.status.min(layout.goid);
    let used = layout.status.max(layout.goid) + 8 - first;
    let mut found = Vec::new();
    for chunk in addresses.chunks(8 * 1024) {
        let places = chunk
            .chunks_exact(8)
            .filter_map(|word| u64_at(word, 0)?.checked_add(first as u64));
        let mut pieces: Vec<Piece> = places
            .filter(|&at| at < USER_END)
            .map(|at| Piece::new(at, used))
            .collect();
        let mut bytes = vec![0; used * pieces.len()];
        memory.read_pieces(&mut pieces, &mut bytes);
        for (piece, bytes) in pieces.iter().zip(bytes.chunks_exact(used)) {
            let status = u32_at(bytes, layout.status - first).filter(|_| piece.whole);
            if status.is_some_and(|status| status & !SCAN == LEAKED) {
                found.extend(u64_at(bytes, layout.goid - first).filter(|&goid| goid != 0));
            }
        }
    }
    Some(found)
}
