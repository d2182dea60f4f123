//! The profiler that every Go program has: how long goroutines were blocked, by stack, in the runtime's own tables.
//!
//! It counts only while `runtime.blockprofilerate` and `runtime.mutexprofilerate` are not 0. Where these are is told by the code of
//! the functions that ask them; its tables (`bbuckets`, `xbuckets`) are lists that only grow, found by `runtime.stkbucket`, which
//! adds to them. A record is `{next, allnext, type, hash, size, number of addresses}`, the addresses, `{count, ticks}`.

use iced_x86::{Code, Instruction, Mnemonic, Register};
use rustc_hash::FxHashMap;

use super::{
    code::{instructions, reference},
    memory::Memory,
    program::Program,
    snapshot::USER_END,
};
use crate::stacks::elf::u64_at;

/// Functions that ask whether waits for channels and conditions are counted: all that a program has ask the same.
const BLOCKED: [&str; 4] = [
    "runtime.chansend",
    "runtime.chanrecv",
    "runtime.selectgo",
    "sync.runtime_notifyListWait",
];
/// Asks that too, and whether waits for locks are counted.
const BOTH: &str = "runtime.semacquire1";
/// Those that ask the latter only, by the names they had.
const MUTEXES: [&str; 3] = ["runtime.mutexevent", "sync.event", "internal/sync.event"];
/// Adds a record.
const ADDS: &str = "runtime.stkbucket";
/// Adds up, by the names it had.
const SUMS: [&str; 2] = ["runtime.saveBlockEventStack", "runtime.saveblockevent"];
/// A rate in ticks is below; a larger one is none: 11 days at 1 GHz.
const MAX_RATE: u64 = 1 << 50;
/// Bytes of a record before its addresses, and after.
const HEADER: usize = 48;
const SUM: usize = 16;
/// Addresses of a record: the runtime's own limit is 1,024 and a few.
const MAX_STACK: u64 = 1100;
/// No address: `logicalStackSentinel`.
const MARK: u64 = u64::MAX;
/// Addresses kept of all stacks.
const MAX_WORDS: usize = 4 << 20;
/// Records of one list.
const MAX_RECORDS: usize = 1 << 16;

/// What a list is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Goroutines that were blocked, by their own stack: channels, selects, locks, groups, conditions.
    Block,
    /// The same waits for locks, by the stack of the one that let the lock go.
    Mutex,
}

impl Kind {
    /// The runtime's number.
    const fn number(self) -> u64 {
        match self {
            Self::Block => 2,
            Self::Mutex => 3,
        }
    }
}

/// Where a runtime's profiler is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profiler {
    /// Address of the rate of [`Kind::Block`]: one event for so many ticks blocked; 1: all; 0: none.
    pub block_rate: u64,
    /// Address of that of [`Kind::Mutex`]: one event in so many; 0: none.
    pub mutex_fraction: u64,
    /// Sums of mutexes stand for all events, also those left out. Before Go 1.20 they did not.
    pub scaled: bool,
    /// Words that may be heads of the lists.
    heads: Vec<u64>,
}

impl Profiler {
    /// Looks for all of it; the error says what is not as expected.
    pub fn find<M: Memory>(memory: &M, program: &Program) -> Result<Self, &'static str> {
        let both = read_words(program, BOTH);
        let mut block = both.clone();
        let mut asked = 0;
        for function in BLOCKED
            .into_iter()
            .filter(|name| program.function(name).is_some())
        {
            let named = read_words(program, function);
            block.retain(|at| named.contains(at));
            asked += 1;
        }
        let &[block_rate] = &block[..] else {
            return Err("the functions that block do not agree on one rate of the profiler");
        };
        let mut mutex = both;
        let named: Vec<u64> = MUTEXES
            .iter()
            .flat_map(|name| read_words(program, name))
            .collect();
        mutex.retain(|at| *at != block_rate && named.contains(at));
        let &[mutex_fraction] = &mutex[..] else {
            return Err("the functions that lock do not agree on one rate of the profiler");
        };
        let sound = |at: u64| at.is_multiple_of(8) && memory.word(at).is_some_and(|rate| rate < MAX_RATE);
        if asked < 2 {
            return Err("too few functions ask whether it is to count");
        }
        if !sound(block_rate) || !sound(mutex_fraction) {
            return Err("its rates contradict themselves");
        }
        let found = Self {
            block_rate,
            mutex_fraction,
            scaled: SUMS.iter().any(|function| tells_mutexes(program, function)),
            heads: heads(program)?,
        };
        // Neither may be in two lists, nor a list be damaged.
        let mut buckets = Buckets::default();
        buckets
            .read(memory, &|pc| program.step(pc).is_some(), &found)
            .ok_or("its tables contradict themselves")?;
        Ok(found)
    }
}

/// Words that a function compares with 0, or loads.
fn read_words(program: &Program, function: &str) -> Vec<u64> {
    let Some((code, start)) = program.code(function) else {
        return Vec::new();
    };
    let asks = |one: &Instruction| match one.code() {
        Code::Cmp_rm64_imm8 | Code::Cmp_rm64_imm32 => one.try_immediate(1).is_ok_and(|value| value == 0),
        Code::Mov_r64_rm64 => true,
        _ => false,
    };
    let mut found: Vec<u64> = instructions(&code, start)
        .filter(asks)
        .filter_map(|one| reference(&one))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// A function treats mutexes in a way of their own.
fn tells_mutexes(program: &Program, function: &str) -> bool {
    program.code(function).is_some_and(|(code, start)| {
        instructions(&code, start).any(|one| {
            matches!(one.code(), Code::Cmp_rm64_imm8 | Code::Cmp_rm64_imm32)
                && one
                    .try_immediate(1)
                    .is_ok_and(|value| value == Kind::Mutex.number())
        })
    })
}

/// Variables whose address the function that adds records takes, if it takes records to be as they are here.
fn heads(program: &Program) -> Result<Vec<u64>, &'static str> {
    let (code, start) = program.code(ADDS).ok_or("nothing adds to its tables")?;
    let code: Vec<Instruction> = instructions(&code, start).collect();
    let compares = |offset: u64| {
        code.iter().any(|one| {
            one.mnemonic() == Mnemonic::Cmp
                && one.memory_displacement64() == offset
                && one.memory_index() == Register::None
                && !matches!(
                    one.memory_base(),
                    Register::None | Register::RSP | Register::RIP | Register::R14
                )
        })
    };
    // Type, hash and size of one are compared with what is looked for.
    if ![16, 24, 32].into_iter().all(compares) {
        return Err("its tables are of a form that is not known");
    }
    let mut found: Vec<u64> = code
        .iter()
        .filter(|one| one.code() == Code::Lea_r64_m)
        .filter_map(reference)
        .filter(|at| at.is_multiple_of(8))
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// One record: how much there is by now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// Events, those that stand for others counted as many.
    pub count: f64,
    /// Time blocked, in ticks.
    pub ticks: u64,
}

/// What the lists hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// By list and address of the record, for which its stack is remembered.
    pub sums: FxHashMap<(Kind, u64), Sum>,
    /// Records that were not understood.
    pub unreadable: u64,
    /// There are more than are read.
    pub cut: bool,
}

/// The records' stacks, which never change.
#[derive(Clone, Debug, Default)]
pub struct Buckets {
    stacks: FxHashMap<u64, Box<[u64]>>,
    /// Addresses in all of them.
    words: usize,
}

impl Buckets {
    /// A record's addresses, leaf first: each is where a call returns to.
    #[must_use]
    pub fn stack(&self, record: u64) -> Option<&[u64]> {
        self.stacks.get(&record).map(|stack| &**stack)
    }

    /// Reads both lists; `is_code` knows which addresses are in functions. None when memory is gone, or a list is none.
    pub fn read<M: Memory>(
        &mut self,
        memory: &M,
        is_code: &dyn Fn(u64) -> bool,
        profiler: &Profiler,
    ) -> Option<Reading> {
        let mut reading = Reading::default();
        let mut seen = Vec::new();
        for &at in &profiler.heads {
            let first = memory.word(at)?;
            let Some(kind) = list_of(memory, first) else {
                continue;
            };
            if seen.contains(&kind) {
                return None;
            }
            seen.push(kind);
            self.list(memory, is_code, (kind, first), &mut reading)?;
        }
        Some(reading)
    }

    fn list<M: Memory>(
        &mut self,
        memory: &M,
        is_code: &dyn Fn(u64) -> bool,
        (kind, first): (Kind, u64),
        reading: &mut Reading,
    ) -> Option<()> {
        let mut at = first;
        for _ in 0..MAX_RECORDS {
            if at == 0 {
                return Some(());
            }
            let record = Record::read(memory, at).filter(|record| record.kind == kind)?;
            if self.keep(memory, is_code, at, &record)
                && let Some(sum) = record.sum(memory, at)
            {
                reading.sums.insert((kind, at), sum);
            } else {
                reading.unreadable += 1;
            }
            at = record.after;
        }
        reading.cut = true;
        Some(())
    }

    /// Remembers the stack; whether it is one.
    fn keep<M: Memory>(
        &mut self,
        memory: &M,
        is_code: &dyn Fn(u64) -> bool,
        at: u64,
        record: &Record,
    ) -> bool {
        if self.stacks.contains_key(&at) {
            return true;
        }
        let stack = || {
            let bytes = memory.read(at.checked_add(HEADER as u64)?, 8 * record.len)?;
            let words = bytes.chunks_exact(8).filter_map(|word| u64_at(word, 0));
            // Go 1.22 and 1.23 begin some with a mark: calls inlined are frames of their own there, as they are everywhere else.
            let stack: Box<[u64]> = words
                .enumerate()
                .filter(|&one| one != (0, MARK))
                .map(|(_, pc)| pc)
                .collect();
            let code = |pc: &u64| pc.checked_sub(1).is_some_and(is_code);
            let sound = !stack.is_empty() && stack.iter().all(code);
            if !sound {
                log::debug!("a stack of Go's profiler that is none: {stack:x?}");
            }
            sound.then_some(stack)
        };
        let Some(stack) = stack() else { return false };
        if self.words + stack.len() > MAX_WORDS {
            return false;
        }
        self.words += stack.len();
        self.stacks.insert(at, stack);
        true
    }
}

/// What list a record is in, if it is one.
fn list_of<M: Memory>(memory: &M, at: u64) -> Option<Kind> {
    Some(Record::read(memory, at)?.kind)
}

/// The head of a record.
struct Record {
    kind: Kind,
    /// The next one of the list.
    after: u64,
    /// Addresses in its stack.
    len: usize,
}

impl Record {
    fn read<M: Memory>(memory: &M, at: u64) -> Option<Self> {
        let is_address = |at: u64| at.is_multiple_of(8) && at < USER_END;
        if at == 0 || !is_address(at) {
            return None;
        }
        let bytes = memory.read(at, HEADER)?;
        let word = |at: usize| u64_at(&bytes, 8 * at);
        let (next, after, number, size, len) = (word(0)?, word(1)?, word(2)?, word(4)?, word(5)?);
        let kinds = [Kind::Block, Kind::Mutex];
        let kind = kinds.into_iter().find(|kind| kind.number() == number)?;
        // What was blocked has no size, what was allocated has.
        let sound = is_address(next) && is_address(after) && size == 0 && len <= MAX_STACK;
        sound.then_some(Self {
            kind,
            after,
            len: len as usize,
        })
    }

    /// Both are added to one after the other: what was read between lacks the second, which is in the next reading.
    fn sum<M: Memory>(&self, memory: &M, at: u64) -> Option<Sum> {
        let place = at.checked_add((HEADER + 8 * self.len) as u64)?;
        let bytes = memory.read(place, SUM)?;
        let sum = Sum {
            count: f64::from_bits(u64_at(&bytes, 0)?),
            ticks: u64_at(&bytes, 8)?,
        };
        let sound = (0.0..1e18).contains(&sum.count) && i64::try_from(sum.ticks).is_ok();
        sound.then_some(sum)
    }
}

#[cfg(test)]
mod tests;
