//! Stacks: from copied registers and bytes to frames, and from frames to names.
//!
//! ```text
//! Regs + bytes ──walk (space: address → file; module + cfi + row: rules)──> frames ──intern──> StackId ──symbols──> names
//! ```
//!
//! Nothing here stops a target: its mappings, files and memory are only read, and all three are taken as hostile.

mod bottom;
mod cfi;
mod code;
mod data;
mod debug_file;
pub(crate) mod elf;
mod expr;
mod file_names;
mod go;
mod instructions;
mod intern;
mod jit;
mod kernel;
mod log;
pub(crate) mod memory;
mod memos;
mod module;
pub(crate) mod pclntab;
mod row;
mod space;
mod symbols;
mod symtab;
mod walk;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;
use tracer_ebpf::wire::{Regs, StackPlace};

pub use data::{AddressKind, DataSymbol};
pub use kernel::KernelSymbols;
pub use memos::Order;
pub use module::ModuleId;
pub use symbols::Symbolizer;

use intern::Interned;
use log::{Log, Reader};
use memory::Live;
use memos::{Meaning, Memos};
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
/// Changes of processes that are not known yet, which may be children of those that are.
const MAX_UNCLAIMED: usize = 512;
/// Stacks of memos as other processes have them.
const MAX_SHARED: usize = 1 << 16;

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

impl Frame {
    /// An address inside the instruction that the frame is in.
    pub fn code(&self) -> u64 {
        self.address.wrapping_sub(u64::from(self.return_address))
    }
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

/// How stacks were had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recognition {
    /// Copies that were unwound.
    pub unwound: u64,
    /// Recognised stacks that were copied too, and unwound to the same frames.
    pub agreed: u64,
    /// The same, but to other frames: must be 0.
    pub disagreed: u64,
    /// Recognised by a memo whose mappings had changed: taken for no stack.
    pub stale: u64,
    /// Memos that hold.
    pub memos: u64,
    /// Memos that made room for others.
    pub dropped: u64,
    /// Unwindings that cannot be recognised.
    pub unfit: u64,
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
    /// Of processes not known, the latest last.
    unclaimed: VecDeque<Change>,
    memos: Memos,
    /// Whether changes of mappings are heard, without which a memo could outlive its code.
    learning: bool,
    /// Stacks of memos in processes other than those that they were unwound in.
    shared: FxHashMap<(StackId, u32), StackId>,
    recognition: Recognition,
    modules: Modules,
    interned: Interned,
    failures: BTreeMap<&'static str, u64>,
    frames: Vec<Frame>,
    log: Log,
}

impl Stacks {
    /// Knows nothing yet; processes are read when first unwound.
    pub fn new() -> Self {
        Self::default()
    }

    /// Unwinds registers and the bytes copied from `regs.sp` of a process; interns the frames, and lets the probes recognise them.
    pub fn unwind(&mut self, tgid: u32, regs: &Regs, bytes: &[u8]) -> Unwound {
        self.recognition.unwound += 1;
        let mut memory = walk::copied(regs, bytes);
        let (id, end) = self.walk(tgid, regs, &mut memory);
        self.count(id, end);
        let lasting = matches!(end, End::Complete | End::NoCfi | End::Jit | End::BadCfi);
        if self.learning && lasting && id != StackId::NONE && !self.heard.iter().any(|h| h.tgid == tgid) {
            let place = StackPlace {
                sp: regs.sp,
                ip: regs.ip,
            };
            self.memos.learn(tgid, place, self.log.inputs(), id);
        }
        Unwound {
            id,
            end,
            needed: memory.needed,
        }
    }

    /// As [`Stacks::unwind`], of a stack that will hardly come again: its place may be any instruction. It is known until
    /// [`Stacks::forget_once`]. It is no loss if its end is missing.
    pub fn unwind_once(&mut self, tgid: u32, regs: &Regs, bytes: &[u8]) -> StackId {
        let end = self.collect(tgid, regs, &mut walk::copied(regs, bytes));
        self.interned.intern_passing(tgid, &self.frames, end)
    }

    /// The part of a stack above the first frame in code that was made at run time; all of it without any. Such code is made anew, so what
    /// comes from one place has other stacks by and by.
    pub fn before_generated(&mut self, id: StackId) -> StackId {
        let frames = self.interned.frames(id);
        let Some(at) = frames.iter().position(|frame| frame.module.is_none()) else {
            return id;
        };
        match self.interned.tgid(id) {
            Some(tgid) if at > 0 => {
                let frames = frames[..at].to_vec();
                self.interned.intern(tgid, &frames, End::Jit)
            }
            _ => id,
        }
    }

    /// Forgets the stacks of [`Stacks::unwind_once`].
    pub fn forget_once(&mut self) {
        self.interned.forget_passing();
    }

    /// The stack that a memo stands for in a process at a time.
    pub fn recognised(&mut self, memo: u64, tgid: u32, ts_ns: u64) -> StackId {
        let id = self.meaning(memo, tgid, ts_ns);
        if id == StackId::NONE {
            self.recognition.stale += 1;
        } else {
            self.count(id, self.end(id));
        }
        id
    }

    fn meaning(&mut self, memo: u64, tgid: u32, ts_ns: u64) -> StackId {
        match self.memos.meaning(memo, tgid, ts_ns) {
            Meaning::Stale => StackId::NONE,
            Meaning::Stack(id, owner) if owner == tgid => id,
            Meaning::Stack(id, _) => {
                if let Some(&own) = self.shared.get(&(id, tgid)) {
                    return own;
                }
                if self.shared.len() >= MAX_SHARED {
                    self.shared.clear();
                }
                let (frames, end) = (self.interned.frames(id).to_vec(), self.end(id));
                let own = self.interned.intern(tgid, &frames, end);
                self.shared.insert((id, tgid), own);
                own
            }
        }
    }

    /// Unwinds the copy of a stack that a memo recognised, and compares.
    pub fn compare(&mut self, memo: u64, tgid: u32, ts_ns: u64, regs: &Regs, bytes: &[u8]) {
        let recognised = self.meaning(memo, tgid, ts_ns);
        let mut memory = walk::copied(regs, bytes);
        let (unwound, end) = self.walk(tgid, regs, &mut memory);
        // A copy too short for the whole says nothing.
        if recognised == StackId::NONE || matches!(end, End::Truncated | End::Unreadable) {
            return;
        }
        if recognised == unwound {
            self.recognition.agreed += 1;
        } else {
            self.recognition.disagreed += 1;
            ::log::warn!(
                "a stack of process {tgid} was recognised as {recognised:?} but is {unwound:?}: {:x?}, {:x?}",
                self.interned.frames(recognised),
                self.interned.frames(unwound)
            );
            self.memos.retract(memo);
        }
    }

    /// What the probes are to be told.
    pub fn take_orders(&mut self) -> Vec<Order> {
        self.memos.take_orders()
    }

    /// From now on changes of mappings are heard: stacks may be recognised.
    pub fn learn(&mut self) {
        self.learning = true;
    }

    /// Some changes of mappings were not heard.
    pub fn unheard(&mut self, ts_ns: u64) {
        self.memos.forget(ts_ns);
        for space in self.spaces.values_mut() {
            space.invalidate();
        }
    }

    /// How stacks were had so far.
    pub fn recognition(&self) -> Recognition {
        let (dropped, unfit) = self.memos.dropped();
        Recognition {
            memos: self.memos.len() as u64,
            dropped,
            unfit,
            ..self.recognition
        }
    }

    /// The same for a thread blocked in a live process, whose stack is read without stopping it (256 KiB at most).
    ///
    /// The caller checks afterwards that the thread has not moved meanwhile.
    pub fn unwind_live(&mut self, tgid: u32, regs: &Regs) -> Unwound {
        let mut memory = Live::new(tgid, regs.sp);
        let (id, end) = self.walk(tgid, regs, &mut memory);
        self.count(id, end);
        Unwound {
            id,
            end,
            needed: memory.needed,
        }
    }

    /// The number of a stack that something else walked: addresses of a process, leaf first, and whether a call returns there.
    pub fn intern_code(&mut self, tgid: u32, code: &[(u64, bool)], cut: bool) -> StackId {
        let Self {
            spaces,
            modules,
            failures,
            interned,
            ..
        } = self;
        let space = spaces.entry(tgid).or_default();
        let frames: Vec<Frame> = code
            .iter()
            .map(|&(address, return_address)| {
                let inside = address.wrapping_sub(u64::from(return_address));
                let (module, offset) = match space.code(tgid, inside, modules, failures) {
                    space::Code::File { module, bias, .. } => (Some(module), address.wrapping_sub(bias)),
                    _ => (None, 0),
                };
                Frame {
                    module,
                    address,
                    offset,
                    return_address,
                    guessed: false,
                }
            })
            .collect();
        let end = if cut { End::TooDeep } else { End::Complete };
        interned.intern(tgid, &frames, end)
    }

    /// Takes what the kernel told of a process's mappings: the file is opened at once, the mapping counts when
    /// [`Self::advance`] comes to its time.
    ///
    /// `own`: nobody but the targets is heard; otherwise only processes that are known already are believed to be.
    pub fn hear(&mut self, change: Change, own: bool) {
        if !own && !self.spaces.contains_key(&change.tgid) {
            if self.unclaimed.len() >= MAX_UNCLAIMED {
                self.unclaimed.pop_front();
            }
            self.unclaimed.push_back(change);
            return;
        }
        let Change { ts_ns, tgid, what } = change;
        // Its id may be another's by now; its own mappings are kept for names.
        if self.exited.contains(&tgid) {
            return;
        }
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
        let Heard { ts_ns, tgid, mapped } = heard;
        let Some((map, slot)) = mapped else {
            self.memos.renew(tgid, ts_ns);
            self.renew(tgid, Space::default());
            self.spaces.entry(tgid).or_default().renewed = true;
            return;
        };
        let code = map.start..map.end;
        let space = self.spaces.entry(tgid).or_default();
        let read_since = space.was_read_since(ts_ns);
        // When the mappings were read meanwhile, the change may be in them already, and the memos know nothing of it.
        if space.add(map, slot) || read_since {
            let interned = &self.interned;
            self.memos.mapped(tgid, ts_ns, |stack| {
                interned
                    .frames(stack)
                    .iter()
                    .any(|frame| code.contains(&frame.code()))
            });
        }
    }

    /// Begins an address space.
    fn renew(&mut self, tgid: u32, mut space: Space) {
        space.superseded = self.heard.iter().any(|h| h.tgid == tgid && h.mapped.is_none());
        self.spaces.insert(tgid, space);
    }

    fn walk(&mut self, tgid: u32, regs: &Regs, memory: &mut impl Memory) -> (StackId, End) {
        let end = self.collect(tgid, regs, memory);
        (self.interned.intern(tgid, &self.frames, end), end)
    }

    /// Walks a stack; its frames are left in `frames`.
    fn collect(&mut self, tgid: u32, regs: &Regs, memory: &mut impl Memory) -> End {
        let Self {
            spaces,
            modules,
            failures,
            frames,
            log,
            ..
        } = self;
        let space = spaces.entry(tgid).or_default();
        frames.clear();
        log.clear();
        Walk {
            tgid,
            space,
            modules,
            failures,
            reader: Reader::new(memory, log, regs.sp),
            frames,
        }
        .run(regs)
    }

    /// Counts a stack that is not whole.
    fn count(&mut self, id: StackId, end: End) {
        if end != End::Complete {
            *self.failures.entry(end.reason()).or_default() += 1;
        }
        if id == StackId::NONE {
            *self.failures.entry("folded").or_default() += 1;
        }
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
        self.memos.renew(tgid, 0);
    }

    /// A process runs another program since that time.
    pub fn process_exec(&mut self, tgid: u32, ts_ns: u64) {
        // The probes have forgotten the layout; they are told the new one again.
        self.memos.renew(tgid, ts_ns);
        // When the probes see it, the new program is mapped already; its mappings were heard.
        let renewed = self.spaces.get_mut(&tgid).map(|space| &mut space.renewed);
        if !renewed.is_some_and(std::mem::take) {
            self.renew(tgid, Space::default());
        }
    }

    /// A process has gone; its mappings and files stay, for names.
    pub fn process_exit(&mut self, tgid: u32) {
        let Some(space) = self.spaces.get_mut(&tgid) else {
            return;
        };
        space.freeze();
        self.memos.exit(tgid);
        self.exited.retain(|&t| t != tgid);
        self.exited.push_back(tgid);
        if self.exited.len() > MAX_EXITED
            && let Some(oldest) = self.exited.pop_front()
        {
            self.spaces.remove(&oldest);
        }
    }

    /// A process began as a copy of another.
    pub fn process_fork(&mut self, parent: u32, child: u32, ts_ns: u64) {
        self.memos.fork(parent, child, ts_ns);
        self.exited.retain(|&t| t != child);
        let space = self.spaces.get(&parent).map(Space::fork).unwrap_or_default();
        self.renew(child, space);
        let (own, others) = std::mem::take(&mut self.unclaimed)
            .into_iter()
            .partition::<VecDeque<_>, _>(|change| change.tgid == child && change.ts_ns >= ts_ns);
        self.unclaimed = others;
        for change in own {
            self.hear(change, true);
        }
    }

    /// Frames of a stack, leaf first.
    pub fn frames(&self, id: StackId) -> &[Frame] {
        self.interned.frames(id)
    }

    /// The process that a stack was seen in.
    pub fn tgid(&self, id: StackId) -> Option<u32> {
        self.interned.tgid(id)
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
