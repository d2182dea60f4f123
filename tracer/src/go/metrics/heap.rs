//! The collector's own view of the heap (`runtime.gcController`): what is alive, and at which size it will collect next.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::{super::code::instructions, find::argument};
use crate::{
    go::{memory::Memory, program::Program},
    stacks::elf::u64_at,
};

/// The structure is smaller.
const MAX_OFFSET: u64 = 2048;
/// A goal or a size beyond what a processor can address.
const NO_SIZE: u64 = 1 << 48;
/// The least that is kept free below the limit, and the distance between the start of a collection and its goal.
const LEAST_ROOM: u64 = 1 << 20;
const RUNWAY: u64 = 64 << 10;

/// Where the numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Controller {
    /// Address.
    pub(super) at: u64,
    /// Bytes to be read.
    pub(super) len: usize,
    /// Offsets: bytes marked by the last collection.
    marked: usize,
    /// Goal by GOGC; after it the least one for the sweeper, then where the running collection began, else all ones.
    goal: usize,
    /// GOMEMLIMIT.
    limit: usize,
    /// Free bytes, those ever allocated, those freed, and those mapped.
    free: usize,
    /// Kept free below the limit are 3 % of it, not just 1 MB.
    shares: bool,
}

/// The heap as the collector sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    /// Bytes that the last collection found alive.
    pub live: u64,
    /// Bytes in use at which the next one is to be done; None when it is switched off.
    pub goal: Option<u64>,
    /// The soft limit of memory (`GOMEMLIMIT`); None without one.
    pub limit: Option<u64>,
    /// The goal is that of the limit.
    pub limited: bool,
}

impl Controller {
    /// By the code of its methods: their first argument is its address.
    pub(super) fn find(program: &Program) -> Result<Self, &'static str> {
        let method = |name: &str| {
            let (code, start) = program.code(&format!("runtime.(*gcControllerState).{name}"))?;
            Some(instructions(&code, start).collect::<Vec<_>>())
        };
        let of =
            |caller, name: &str| argument(program, caller, &format!("runtime.(*gcControllerState).{name}"));
        let at =
            of("runtime.gcControllerCommit", "commit").ok_or("its address is not in gcControllerCommit")?;
        if of("runtime.gcMark", "resetLive").is_some_and(|other| other != at) {
            return Err("its addresses contradict each other");
        }
        Self::of(
            at,
            &method("resetLive").ok_or("no resetLive")?,
            &method("heapGoalInternal").ok_or("no heapGoalInternal")?,
            &method("memoryLimitHeapGoal").ok_or("no memoryLimitHeapGoal")?,
        )
    }

    /// By the code of three of its methods.
    pub(super) fn of(
        at: u64,
        reset: &[Instruction],
        goal: &[Instruction],
        limit: &[Instruction],
    ) -> Result<Self, &'static str> {
        // resetLive(bytes) stores its argument as what was marked, then as what is alive, and that no collection runs.
        let argument = |one: &Instruction| [one.op0_register(), one.op1_register()].contains(&Register::RBX);
        let stored: Vec<u64> = reset
            .iter()
            .filter(|one| argument(one))
            .filter_map(|one| field(one, Register::RAX))
            .collect();
        let begun: Vec<u64> = reset
            .iter()
            .filter(|one| one.code() == Code::Mov_rm64_imm32 && one.immediate(1) == u64::MAX)
            .filter_map(|one| field(one, Register::RAX))
            .collect();
        let (&[marked, _], &[begun]) = (&stored[..], &begun[..]) else {
            return Err("resetLive is not understood");
        };
        // heapGoalInternal() loads the goal by GOGC, that of the sweeper and the beginning, which are next to each other.
        let goals = loads(goal);
        let rate = begun.checked_sub(16).ok_or("resetLive is not understood")?;
        if goals.get(..3) != Some(&[rate, rate + 8, begun]) {
            return Err("heapGoalInternal is not understood");
        }
        // memoryLimitHeapGoal() loads the four of what is mapped and free, then the limit.
        let limits = loads(limit);
        let &[free, allocated, freed, mapped, bound, last] = &limits[..] else {
            return Err("memoryLimitHeapGoal is not understood");
        };
        if [allocated, freed, mapped] != [free + 8, free + 16, free + 24] || last != marked {
            return Err("memoryLimitHeapGoal loads something else");
        }
        let end = [marked, begun, bound, mapped].into_iter().max().unwrap_or(0) + 8;
        let offset = |at: u64| usize::try_from(at).map_err(|_| "an offset is too large");
        Ok(Self {
            at,
            len: offset(end)?,
            marked: offset(marked)?,
            goal: offset(rate)?,
            limit: offset(bound)?,
            free: offset(free)?,
            shares: limit.iter().any(|one| one.code() == Code::Mul_rm64),
        })
    }

    /// As in Go 1.27.
    #[cfg(test)]
    pub(super) const fn made(at: u64) -> Self {
        Self {
            at,
            len: 0x140,
            marked: 0x98,
            goal: 0x48,
            limit: 8,
            free: 0x120,
            shares: true,
        }
    }

    /// What the bytes say that were read there.
    pub(super) fn parse(&self, bytes: &[u8]) -> Option<Heap> {
        let word = |at: usize| u64_at(bytes, at);
        let (live, by_rate) = (word(self.marked)?, word(self.goal)?);
        let (sweep, begun) = (word(self.goal + 8)?, word(self.goal + 16)?);
        let limit = word(self.limit).filter(|&limit| i64::try_from(limit).is_ok())?;
        let by_limit = self.by_limit(bytes, limit, live)?;
        let limited = limit < NO_SIZE && by_limit < by_rate;
        let goal = if limited {
            by_limit
        } else {
            // A collection that runs ends a bit later than it began.
            let least = if begun == u64::MAX {
                0
            } else {
                begun.saturating_add(RUNWAY)
            };
            by_rate.max(sweep).max(least)
        };
        (live < NO_SIZE).then_some(Heap {
            live,
            goal: (goal < NO_SIZE).then_some(goal),
            limit: (limit < NO_SIZE).then_some(limit),
            limited,
        })
    }

    /// The goal that keeps the process below its limit: as `memoryLimitHeapGoal` has it.
    fn by_limit(&self, bytes: &[u8], limit: u64, live: u64) -> Option<u64> {
        let word = |at: usize| u64_at(bytes, self.free + at);
        let (free, allocated, freed, mapped) = (word(0)?, word(8)?, word(16)?, word(24)?);
        let used = allocated.wrapping_sub(freed);
        let others = mapped
            .wrapping_sub(free)
            .wrapping_sub(used)
            .wrapping_add(mapped.saturating_sub(limit));
        if others >= limit {
            return Some(live);
        }
        let goal = limit - others;
        let room = if self.shares {
            (goal / 100 * 3).max(LEAST_ROOM)
        } else {
            LEAST_ROOM
        };
        let goal = goal.checked_sub(room).map_or(room, |goal| goal.max(room));
        Some(goal.max(live))
    }
}

/// A variable of the process that has been found is read at once, to be sure that it is one.
pub(super) fn checked<M: Memory>(memory: &M, program: &Program) -> Result<Controller, &'static str> {
    let found = Controller::find(program)?;
    let bytes = memory.read(found.at, found.len).ok_or("it cannot be read")?;
    found.parse(&bytes).ok_or("it holds no sizes")?;
    Ok(found)
}

/// Offset of the field of a structure in a register that an instruction reads or writes.
fn field(instruction: &Instruction, base: Register) -> Option<u64> {
    let memory = (0..instruction.op_count()).any(|at| instruction.op_kind(at) == OpKind::Memory);
    let offset = instruction.memory_displacement64();
    let plain = memory && instruction.memory_base() == base && instruction.memory_index() == Register::None;
    (plain && offset < MAX_OFFSET).then_some(offset)
}

/// Offsets loaded from a structure in any register but the stack's and the goroutine's, in order, each once.
pub(super) fn loads(code: &[Instruction]) -> Vec<u64> {
    let mut offsets = Vec::new();
    for one in code.iter().filter(|one| one.code() == Code::Mov_r64_rm64) {
        let base = one.memory_base();
        if matches!(
            base,
            Register::None | Register::RSP | Register::RBP | Register::R14 | Register::RIP
        ) {
            continue;
        }
        if let Some(offset) = field(one, base)
            && !offsets.contains(&offset)
        {
            offsets.push(offset);
        }
    }
    offsets
}
