//! What the frames of the functions that wait for a lock keep: the lock, and when the wait began. Found out from their code.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use rustc_hash::FxHashMap;

use super::{
    code::instructions,
    frames::{Place, keeps_receiver},
    program::Program,
};

/// Where a mutex makes its callers wait: since 1.24 in a package of its own.
pub(super) const SLOW: [&str; 2] = ["sync.(*Mutex).lockSlow", "internal/sync.(*Mutex).lockSlow"];
/// Nanoseconds after which a mutex is starving.
const STARVING: u64 = 1_000_000;
/// Bytes of a lock's own frame.
const MAX_FRAME: u64 = 1024;

/// Where in its frame `lockSlow` keeps when the wait began: what it subtracts from the time before it compares with [`STARVING`].
pub(super) fn start(program: &Program) -> Option<u64> {
    let (code, start) = SLOW.into_iter().find_map(|name| program.code(name))?;
    let mut loaded: FxHashMap<Register, u64> = FxHashMap::default();
    let mut subtracted = None;
    for instruction in instructions(&code, start) {
        match instruction.mnemonic() {
            Mnemonic::Mov if instruction.op0_kind() == OpKind::Register => {
                let place = (instruction.op1_kind() == OpKind::Memory)
                    .then(|| in_frame(&instruction))
                    .flatten();
                match place {
                    Some(place) => loaded.insert(instruction.op0_register(), place),
                    None => loaded.remove(&instruction.op0_register()),
                };
            }
            Mnemonic::Sub => {
                subtracted = match instruction.op1_kind() {
                    OpKind::Register => loaded.get(&instruction.op1_register()).copied(),
                    OpKind::Memory => in_frame(&instruction),
                    _ => None,
                };
            }
            Mnemonic::Cmp
                if instruction.op_count() == 2
                    && instruction.op1_kind() == OpKind::Immediate32to64
                    && instruction.immediate(1) == STARVING =>
            {
                return subtracted;
            }
            Mnemonic::Call => loaded.clear(),
            _ => {}
        }
    }
    None
}

/// What the frame of a lock's function keeps, in bytes above the goroutine's stack pointer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// An address in the lock; how far in it.
    pub(super) lock: (u64, u64),
    /// Where it returns to, which shows that it is this frame.
    pub(super) back: (u64, u64),
    /// When the wait began.
    pub(super) start: Option<u64>,
}

impl Frame {
    /// `lockSlow` keeps its receiver, and at `start` when the wait began.
    pub(super) fn of_mutex(
        program: &Program,
        places: &[Place],
        compiled: &[String],
        start: Option<u64>,
    ) -> Option<Self> {
        let at = compiled.iter().position(|name| SLOW.contains(&&**name))?;
        let place = places.get(at)?;
        let size = place.cfa.checked_sub(place.sp)?.checked_sub(8)?;
        let start = start.filter(|&start| start + 8 <= size);
        keeps_receiver(program, place.pc, size).then_some(Self {
            lock: (place.cfa, 0),
            back: (place.cfa - 8, places.get(at + 1)?.pc),
            start: start.map(|start| place.sp + start),
        })
    }

    /// `Wait` keeps the address of the list of waiters, which is at `list` in the `Cond`, and passes it to `runtime_notifyListWait`.
    pub(super) fn of_cond(
        program: &Program,
        places: &[Place],
        compiled: &[String],
        list: Option<u64>,
    ) -> Option<Self> {
        let at = compiled.iter().position(|name| name == "sync.(*Cond).Wait")?;
        let place = places.get(at)?;
        let slot = argument(program, place.pc)?;
        (place.sp + slot + 16 <= place.cfa).then_some(Self {
            lock: (place.sp + slot, list?),
            back: (place.cfa - 8, places.get(at + 1)?.pc),
            start: None,
        })
    }

    /// From the first to behind the last.
    pub(super) fn bounds(&self) -> (u64, u64) {
        let (lock, back) = (self.lock.0, self.back.0);
        let start = self.start.unwrap_or(back);
        (lock.min(back).min(start), lock.max(back).max(start) + 8)
    }
}

/// Where in its frame the function keeps the first argument of the call that returns to `pc`.
fn argument(program: &Program, pc: u64) -> Option<u64> {
    let (code, start) = program.code_at(pc)?;
    let mut slot = None;
    for instruction in instructions(&code, start).take_while(|instruction| instruction.ip() < pc) {
        if instruction.mnemonic() == Mnemonic::Call {
            if instruction.next_ip() == pc {
                return slot;
            }
            slot = None;
        } else if instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && matches!(instruction.op0_register(), Register::RAX | Register::EAX)
        {
            let kept = instruction.mnemonic() == Mnemonic::Mov && instruction.op1_kind() == OpKind::Memory;
            slot = kept.then(|| in_frame(&instruction)).flatten();
        }
    }
    None
}

/// The place in its frame that an instruction names.
fn in_frame(instruction: &Instruction) -> Option<u64> {
    let named = instruction.memory_base() == Register::RSP && instruction.memory_index() == Register::None;
    named
        .then(|| instruction.memory_displacement64())
        .filter(|&at| at.is_multiple_of(8) && at < MAX_FRAME)
}
