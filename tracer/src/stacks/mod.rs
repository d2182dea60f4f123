//! Stacks: from copied registers and bytes to frames, and from frames to names.
//!
//! ```text
//! Regs + bytes ──walk (space: address → file; module + cfi + row: rules)──> frames ──intern──> StackId ──symbols──> names
//! ```
//!
//! Nothing here stops a target: its mappings, files and memory are only read, and all three are taken as hostile.

mod cfi;
mod data;
mod elf;
mod expr;
mod intern;
mod kernel;
mod memory;
mod module;
mod row;
mod space;
mod symbols;
mod walk;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;
use tracer_ebpf::wire::Regs;

pub use data::{AddressKind, DataSymbol};
pub use kernel::KernelSymbols;
pub use module::ModuleId;
pub use symbols::Symbolizer;

use intern::Interned;
use memory::Live;
use module::{Modules, Source};
use row::Memory;
use space::{Slot, Space};
use walk::Walk;

use crate::proc::maps::{Change, Map, What};

/// Frames of one stack at most.
pub const MAX_FRAMES: usize = 512;
/// Exited processes whose mappings are kept for names.
const MAX_EXITED: usize = 4096;
/// Changes of mappings that wait for their time; beyond, they come before it.
const MAX_HEARD: usize = 1 << 16;

/// A stack seen in a process; equal stacks of one process have equal ids. 0 is "no stack".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u32);

impl StackId {
    /// No stack could be taken.
    pub const NONE: Self = Self(0);
}

/// One physical frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// File of the code; None for a JIT's.
    pub module: Option<ModuleId>,
    /// Program counter in the process.
    pub address: u64,
    /// The same as virtual address within the file; 0 without a file.
    pub offset: u64,
    /// `address` is where a call returns to: the line that called is one byte before.
    pub return_address: bool,
    /// Found by frame pointer or call instruction, in code without unwind rules.
    pub guessed: bool,
}

/// Why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// At the bottom: the rules (or a null frame) say that there is no caller.
    Complete,
    /// More bytes of the stack were needed than were copied.
    Truncated,
    /// Memory that was needed could not be read.
    Unreadable,
    /// Code of a file that has no unwind rules, and no credible frame pointer either.
    NoCfi,
    /// Code outside any file, without a credible frame pointer.
    Jit,
    /// The rules contradict the stack, or are not understood.
    BadCfi,
    /// After [`MAX_FRAMES`] frames.
    TooDeep,
}

impl End {
    /// The reason as counted by [`Stacks::failures`].
    pub fn reason(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Truncated => "truncated",
            Self::Unreadable => "unreadable",
            Self::NoCfi => "no_cfi",
            Self::Jit => "jit",
            Self::BadCfi => "bad_cfi",
            Self::TooDeep => "too_deep",
        }
    }
}

/// What unwinding gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwound {
    /// The stack.
    pub id: StackId,
    /// Why it ends where it does.
    pub end: End,
    /// Bytes of stack, from sp, that decided it.
    pub needed: usize,
}

/// A change of mappings whose time has not come.
struct Heard {
    ts_ns: u64,
    tgid: u32,
    /// The mapping and its file; none is a new program.
    mapped: Option<(Map, Slot)>,
}

/// All targets' address spaces, the files they map, and every different stack.
#[derive(Default)]
pub struct Stacks {
    spaces: FxHashMap<u32, Space>,
    /// Exited ones, oldest first.
    exited: VecDeque<u32>,
    /// By time.
    heard: VecDeque<Heard>,
    modules: Modules,
    interned: Interned,
    failures: BTreeMap<&'static str, u64>,
    frames: Vec<Frame>,
}

impl Stacks {
    /// Knows nothing yet; processes are read when first unwound.
    pub fn new() -> Self {
        Self::default()
    }

    /// Unwinds registers and the bytes copied from `regs.sp` of a process; interns the frames.
    pub fn unwind(&mut self, tgid: u32, regs: &Regs, bytes: &[u8]) -> Unwound {
        let mut memory = walk::copied(regs, bytes);
        let (id, end) = self.walk(tgid, regs, &mut memory);
        Unwound {
            id,
            end,
            needed: memory.needed,
        }
    }

    /// The same for a thread blocked in a live process, whose stack is read without stopping it (256 KiB at most).
    ///
    /// The caller checks afterwards that the thread has not moved meanwhile.
    pub fn unwind_live(&mut self, tgid: u32, regs: &Regs) -> Unwound {
        let mut memory = Live::new(tgid, regs.sp);
        let (id, end) = self.walk(tgid, regs, &mut memory);
        Unwound {
            id,
            end,
            needed: memory.needed,
        }
    }

    /// Takes what the kernel told of a process's mappings: the file is opened at once, the mapping counts when
    /// [`Self::advance`] comes to its time.
    pub fn hear(&mut self, change: Change) {
        let Change { ts_ns, tgid, what } = change;
        let mapped = match what {
            What::Mapped(map) if map.exec => {
                let slot = space::open(tgid, &map, &mut self.modules, Source::Heard);
                Some((map, slot.unwrap_or(Slot::Unopened)))
            }
            What::Mapped(_) => return,
            What::Exec => {
                self.spaces.entry(tgid).or_default().superseded = true;
                None
            }
        };
        let at = self.heard.partition_point(|h| h.ts_ns <= ts_ns);
        self.heard.insert(at, Heard { ts_ns, tgid, mapped });
        if self.heard.len() > MAX_HEARD
            && let Some(first) = self.heard.pop_front()
        {
            self.apply(first);
        }
    }

    /// The next events are of this time: what was heard up to it counts.
    pub fn advance(&mut self, ts_ns: u64) {
        while self.heard.front().is_some_and(|h| h.ts_ns <= ts_ns) {
            if let Some(heard) = self.heard.pop_front() {
                self.apply(heard);
            }
        }
    }

    fn apply(&mut self, heard: Heard) {
        if let Some((map, slot)) = heard.mapped {
            self.spaces.entry(heard.tgid).or_default().add(map, slot);
        } else {
            self.renew(heard.tgid, Space::default());
            self.spaces.entry(heard.tgid).or_default().renewed = true;
        }
    }

    /// Begins an address space.
    fn renew(&mut self, tgid: u32, mut space: Space) {
        space.superseded = self.heard.iter().any(|h| h.tgid == tgid && h.mapped.is_none());
        self.spaces.insert(tgid, space);
    }

    fn walk(&mut self, tgid: u32, regs: &Regs, memory: &mut impl Memory) -> (StackId, End) {
        let Self {
            spaces,
            modules,
            failures,
            frames,
            interned,
            ..
        } = self;
        let space = spaces.entry(tgid).or_default();
        frames.clear();
        let end = Walk {
            tgid,
            space,
            modules,
            failures,
            memory,
            frames,
        }
        .run(regs);
        let id = interned.intern(tgid, frames, end);
        if end != End::Complete {
            *self.failures.entry(end.reason()).or_default() += 1;
        }
        if id == StackId::NONE {
            *self.failures.entry("folded").or_default() += 1;
        }
        (id, end)
    }

    /// Reads a process's mappings and opens its files now: it may end before its first stack is unwound.
    pub fn prime(&mut self, tgid: u32) {
        let Self {
            spaces,
            modules,
            failures,
            ..
        } = self;
        spaces.entry(tgid).or_default().prime(tgid, modules, failures);
    }

    /// A process runs another program now.
    pub fn process_exec(&mut self, tgid: u32) {
        // When the probes see it, the new program is mapped already; its mappings were heard.
        let renewed = self.spaces.get_mut(&tgid).map(|space| &mut space.renewed);
        if !renewed.is_some_and(std::mem::take) {
            self.renew(tgid, Space::default());
        }
    }

    /// A process made or dropped an executable mapping: what was known about its addresses is read again.
    pub fn process_mapped(&mut self, tgid: u32) {
        if let Some(space) = self.spaces.get_mut(&tgid) {
            space.invalidate();
        }
    }

    /// A process has gone; its mappings and files stay, for names.
    pub fn process_exit(&mut self, tgid: u32) {
        let Some(space) = self.spaces.get_mut(&tgid) else {
            return;
        };
        space.freeze();
        self.exited.retain(|&t| t != tgid);
        self.exited.push_back(tgid);
        if self.exited.len() > MAX_EXITED
            && let Some(oldest) = self.exited.pop_front()
        {
            self.spaces.remove(&oldest);
        }
    }

    /// A process began as a copy of another.
    pub fn process_fork(&mut self, parent: u32, child: u32) {
        self.exited.retain(|&t| t != child);
        let space = self.spaces.get(&parent).map(Space::fork).unwrap_or_default();
        self.renew(child, space);
    }

    /// Frames of a stack, leaf first.
    pub fn frames(&self, id: StackId) -> &[Frame] {
        self.interned.frames(id)
    }

    /// Why a stack ends where it does; [`End::Unreadable`] for no stack.
    pub fn end(&self, id: StackId) -> End {
        self.interned.end(id).unwrap_or(End::Unreadable)
    }

    /// How many different stacks there are; their ids are 1 to this.
    pub fn len(&self) -> usize {
        self.interned.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Path of a file as the process that was seen first maps it.
    pub fn module_path(&self, id: ModuleId) -> Option<&str> {
        self.modules.get(id).map(|m| &*m.path)
    }

    /// Stacks that are not whole, and what could not be read, by reason.
    pub fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.failures.clone()
    }
}
