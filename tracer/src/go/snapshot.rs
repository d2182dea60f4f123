//! All goroutines of a process, with their stacks, read while it runs.
//!
//! A goroutine that is read while it moves would give a stack that never was. So its descriptor is read before its stack and, in the
//! same call, after it: the stack counts only when number, status, saved registers, bounds and the count of times that it stopped
//! running are the same. One that moved is read again; one that moves on and on is counted and not shown. A goroutine whose
//! descriptor has not changed since the last snapshot is where it was: its stack is not read again.

use rustc_hash::{FxHashMap, FxHasher};
use std::hash::{Hash as _, Hasher as _};
use std::rc::Rc;

use super::{
    memory::{Memory, Piece},
    program::Program,
    runtime::{Layout, MAX_GOROUTINES, Runtime},
};
use crate::stacks::{MAX_FRAMES, elf::u64_at, pclntab::Step};

/// Goroutines read at a time.
const BATCH: usize = 1024;
/// Bytes of stacks read at a time.
const BATCH_BYTES: usize = 4 << 20;
/// Bytes of one stack read at most: deeper ones are cut.
const MAX_STACK: u64 = 256 << 10;
/// A stack that claims to be larger does not exist (Go's own limit is 1 GB).
const MAX_CLAIMED: u64 = 1 << 30;
/// A goroutine that moved is read so often.
const TRIES: usize = 3;
/// Different groups kept; goroutines beyond are in none.
const MAX_GROUPS: usize = 1 << 16;
/// Addresses whose step is kept.
const MAX_STEPS: usize = 1 << 18;
/// User addresses are below.
pub(super) const USER_END: u64 = 1 << 47;
/// Descriptors that lie so close are read as one piece.
const GAP: u64 = 256;
/// A bit of the status: the collector scans the stack.
const SCAN: u32 = 0x1000;

/// What a goroutine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Wants a CPU.
    Runnable,
    /// Is on one.
    Running,
    /// In a system call, or in C.
    Syscall,
    /// For the reason of that number.
    Waiting(u8),
    /// Stopped by the runtime.
    Preempted,
    /// The collector proved that nothing can wake it.
    Leaked(u8),
}

impl Status {
    /// Of a descriptor; None for one that is no goroutine now.
    const fn of(status: u32, reason: u8) -> Option<Self> {
        match status & !SCAN {
            1 => Some(Self::Runnable),
            2 => Some(Self::Running),
            3 => Some(Self::Syscall),
            4 => Some(Self::Waiting(reason)),
            9 => Some(Self::Preempted),
            10 => Some(Self::Leaked(reason)),
            _ => None,
        }
    }

    /// As Go names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runnable => "runnable",
            Self::Running => "running",
            Self::Syscall => "syscall",
            Self::Waiting(_) => "waiting",
            Self::Preempted => "preempted",
            Self::Leaked(_) => "leaked",
        }
    }

    /// Number of the reason that it waits for.
    #[must_use]
    pub const fn reason(self) -> Option<u8> {
        match self {
            Self::Waiting(reason) | Self::Leaked(reason) => Some(reason),
            _ => None,
        }
    }
}

/// A frame: its address, and whether a call returns there.
pub type GoFrame = (u64, bool);

/// Goroutines with the same stack, creator and status.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// Leaf first; none while it runs.
    pub frames: Box<[GoFrame]>,
    /// Deeper frames were left out.
    pub cut: bool,
    /// After the `go` statement that made them; 0 when there was none.
    pub creator: u64,
    /// What they do.
    pub status: Status,
}

/// A goroutine as last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goroutine {
    /// Number; 0: there is none here now.
    pub goid: u64,
    /// Of [`Reader::groups`].
    pub group: u32,
    /// What it does.
    pub status: Status,
    /// After the `go` statement that made it; 0 when there was none.
    pub creator: u64,
    /// The one that made it; 0 when not told.
    pub parent: u64,
    /// Its thread (`*runtime.m`), when it runs or is in a system call, or the one it is locked to.
    pub m: u64,
    /// When this state was first seen, `CLOCK_MONOTONIC`.
    pub seen_ns: u64,
    /// When it was first seen in this group, whatever it did in between.
    pub joined_ns: u64,
    /// When it itself was first seen.
    pub born_ns: u64,
    /// Since when it waits at least, by the collector; 0 when not told.
    pub since_ns: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Program counter.
    pub pc: u64,
    /// Of the count of times that it stopped running, the last 8 bits.
    pub seq: u8,
}

/// How a snapshot went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Alive.
    pub alive: u64,
    /// Stacks that were read and walked.
    pub walked: u64,
    /// Those that had not changed.
    pub unchanged: u64,
    /// Moved each time that they were read.
    pub moved: u64,
    /// Stood still and yet gave no stack that the runtime's tables can explain.
    pub inconsistent: u64,
    /// Memory that could not be read.
    pub unreadable: u64,
    /// More groups than are kept.
    pub folded: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// The fields of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor {
    goid: u64,
    status: u32,
    reason: u8,
    seq: u8,
    lo: u64,
    hi: u64,
    sp: u64,
    pc: u64,
    creator: u64,
    parent: u64,
    since_ns: u64,
    m: u64,
    locked_m: u64,
}

impl Goroutine {
    /// A descriptor read now, by its bytes, shows it where it was.
    pub(super) fn stands(&self, layout: &Layout, bytes: &[u8]) -> bool {
        Descriptor::read(layout, bytes).is_some_and(|now| {
            (now.goid, Status::of(now.status, now.reason)) == (self.goid, Some(self.status))
                && (now.sp, now.pc, now.seq) == (self.sp, self.pc, self.seq)
        })
    }
}

impl Descriptor {
    fn read(layout: &Layout, bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| u64_at(bytes, at);
        let syscall_sp = word(layout.syscall_sp)?;
        // As the runtime does: what was saved on the way into a system call, or into C, if anything was.
        let (sp, pc) = if syscall_sp == 0 {
            (word(layout.sp)?, word(layout.pc)?)
        } else {
            (syscall_sp, word(layout.syscall_pc)?)
        };
        Some(Self {
            goid: word(layout.goid)?,
            status: crate::stacks::elf::u32_at(bytes, layout.status)? & !SCAN,
            reason: *bytes.get(layout.wait_reason)?,
            seq: *bytes.get(layout.tracking_seq)?,
            lo: word(layout.stack_lo)?,
            hi: word(layout.stack_hi)?,
            sp,
            pc,
            creator: word(layout.creator)?,
            parent: layout.parent.map_or(Some(0), word)?,
            since_ns: word(layout.wait_since)?,
            m: word(layout.m)?,
            locked_m: word(layout.locked_m)?,
        })
    }

    /// Nothing that decides the stack differs.
    fn stands(&self, then: &Self) -> bool {
        let key = |d: &Self| (d.goid, d.status, d.reason, d.seq, d.lo, d.hi, d.sp, d.pc);
        key(self) == key(then)
    }

    /// What of its stack is to be read; None when that makes no sense.
    fn used(&self) -> Option<(u64, usize)> {
        let sound = self.lo < self.sp
            && self.sp < self.hi
            && self.hi < USER_END
            && self.hi - self.lo <= MAX_CLAIMED
            && self.sp.is_multiple_of(8);
        let len = self.hi.checked_sub(self.sp)?.min(MAX_STACK);
        sound.then_some((self.sp, len as usize))
    }
}

/// A goroutine that is being read.
struct Pending {
    index: usize,
    address: u64,
    descriptor: Descriptor,
}

/// Reads goroutines, and remembers them from one snapshot to the next.
pub struct Reader<M> {
    memory: M,
    program: Rc<Program>,
    runtime: Runtime,
    /// Addresses of the descriptors, in the runtime's order, which never changes.
    addresses: Vec<u64>,
    known: Vec<Goroutine>,
    groups: Groups,
    walker: Walker,
    /// Bytes of a descriptor that are of use.
    pub(super) used: usize,
}

impl Goroutine {
    /// None.
    pub const NOBODY: Self = Self {
        goid: 0,
        group: NO_GROUP,
        status: Status::Running,
        creator: 0,
        parent: 0,
        m: 0,
        seen_ns: 0,
        joined_ns: 0,
        born_ns: 0,
        since_ns: 0,
        sp: 0,
        pc: 0,
        seq: 0,
    };
}

/// Who is told what a snapshot finds.
pub trait Watch {
    /// A goroutine is not what it was; number 0 is none.
    fn changed(&mut self, before: &Goroutine, after: &Goroutine);
    /// Called every few milliseconds.
    fn meanwhile(&mut self) {}
}

/// Nobody.
impl Watch for () {
    fn changed(&mut self, _: &Goroutine, _: &Goroutine) {}
}

/// Not shown: it moved, or there are too many groups.
pub const NO_GROUP: u32 = u32::MAX;

impl<M: Memory> Reader<M> {
    /// Of a program in this memory.
    pub fn new(memory: M, program: impl Into<Rc<Program>>, runtime: Runtime) -> Self {
        let program = program.into();
        let l = &runtime.layout;
        let last = [
            l.creator,
            l.locked_m,
            l.tracking_seq,
            l.parent.unwrap_or(0),
            l.syscall_pc,
            l.wait_since,
            l.wait_reason,
            l.goid,
            l.status,
            l.m,
            l.pc,
            l.stack_hi,
        ];
        let used = (last.into_iter().max().unwrap_or(0) + 8).min(l.size);
        let walker = Walker::new(&program);
        Self {
            memory,
            program,
            runtime,
            addresses: Vec::new(),
            known: Vec::new(),
            groups: Groups::default(),
            walker,
            used,
        }
    }

    /// The memory that it reads.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Its runtime.
    pub const fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Those alive in the last snapshot, with the addresses of their descriptors.
    pub fn goroutines(&self) -> impl Iterator<Item = (u64, &Goroutine)> {
        let all = self.addresses.iter().copied().zip(&self.known);
        all.filter(|(_, goroutine)| goroutine.goid != 0)
    }

    /// Groups so far, by number.
    pub fn groups(&self) -> &[Group] {
        &self.groups.list
    }

    /// Number of the thread that a `*runtime.m` is.
    pub fn thread(&self, m: u64) -> Option<u32> {
        if m == 0 {
            return None;
        }
        let thread = self
            .memory
            .word(m.checked_add(self.runtime.layout.m_procid as u64)?)?;
        u32::try_from(thread).ok().filter(|&thread| thread != 0)
    }

    /// Takes one. None when the list cannot be read: the process has ended, or runs
    /// another program.
    pub fn take(&mut self, now_ns: u64, watch: &mut impl Watch) -> Option<Tally> {
        self.list()?;
        let mut tally = Tally::default();
        self.known.resize(self.addresses.len(), Goroutine::NOBODY);
        let mut descriptors = Vec::new();
        let mut pending = Vec::new();
        let mut before = Vec::with_capacity(BATCH);
        for from in (0..self.addresses.len()).step_by(BATCH) {
            let to = (from + BATCH).min(self.addresses.len());
            self.descriptors(from..to, &mut descriptors, &mut tally);
            pending.clear();
            before.clear();
            before.extend_from_slice(self.known.get(from..to).unwrap_or_default());
            for (index, descriptor) in (from..to).zip(&descriptors) {
                self.meet(index, descriptor.as_ref(), now_ns, &mut pending, &mut tally);
            }
            self.stacks(&mut pending, now_ns, &mut tally);
            for (before, after) in before.iter().zip(self.known.get(from..to).unwrap_or_default()) {
                if (before.goid, before.group) != (after.goid, after.group) {
                    watch.changed(before, after);
                }
            }
            watch.meanwhile();
        }
        Some(tally)
    }

    /// Reads the list of descriptors' addresses. It only grows, and moves when it does.
    fn list(&mut self) -> Option<()> {
        for _ in 0..TRIES {
            let slice = self.memory.read(self.runtime.goroutines, 16)?;
            let (list, len) = (u64_at(&slice, 0)?, u64_at(&slice, 8)?);
            if len == 0 || len > MAX_GOROUTINES || len < self.addresses.len() as u64 {
                continue;
            }
            let bytes = self.memory.read(list, len as usize * 8);
            if self.memory.word(self.runtime.goroutines)? != list {
                continue;
            }
            let words = bytes?;
            let sound = |&address: &u64| address != 0 && address.is_multiple_of(8) && address < USER_END;
            let addresses: Vec<u64> = words
                .chunks_exact(8)
                .filter_map(|word| u64_at(word, 0))
                .take_while(sound)
                .collect();
            // The last ones may just be on their way; anything else is no list of goroutines.
            if addresses.len() + 64 < len as usize {
                return None;
            }
            // Another program's, or another runtime's, list has nothing to do with what is known.
            if !addresses.starts_with(&self.addresses) {
                return None;
            }
            self.addresses = addresses;
            return Some(());
        }
        None
    }

    /// Reads the descriptors of a range of the list.
    fn descriptors(
        &self,
        range: std::ops::Range<usize>,
        into: &mut Vec<Option<Descriptor>>,
        tally: &mut Tally,
    ) {
        into.clear();
        let addresses = self.addresses.get(range).unwrap_or_default();
        let mut pieces: Vec<Piece> = Vec::new();
        // (piece, offset in it)
        let mut places = Vec::with_capacity(addresses.len());
        for &address in addresses {
            let near = pieces.last_mut().and_then(|piece| {
                let end = piece.address + piece.len as u64;
                (address >= end && address - end <= GAP && piece.len < 64 << 10).then(|| {
                    let within = address - piece.address;
                    piece.len = within as usize + self.used;
                    within as usize
                })
            });
            let within = near.unwrap_or_else(|| {
                pieces.push(Piece::new(address, self.used));
                0
            });
            places.push((pieces.len() - 1, within));
        }
        let mut starts = Vec::with_capacity(pieces.len());
        let mut len = 0;
        for piece in &pieces {
            starts.push(len);
            len += piece.len;
        }
        let mut bytes = vec![0; len];
        self.memory.read_pieces(&mut pieces, &mut bytes);
        tally.bytes += len as u64;
        for (piece, within) in places {
            let whole = pieces.get(piece).is_some_and(|piece| piece.whole);
            let at = starts.get(piece).map_or(usize::MAX, |start| start + within);
            let descriptor = whole
                .then(|| Descriptor::read(&self.runtime.layout, bytes.get(at..at.checked_add(self.used)?)?))
                .flatten();
            if descriptor.is_none() {
                tally.unreadable += 1;
            }
            into.push(descriptor);
        }
    }

    /// Compares a goroutine with what is known of it; what has to be read is put aside.
    fn meet(
        &mut self,
        index: usize,
        descriptor: Option<&Descriptor>,
        now_ns: u64,
        pending: &mut Vec<Pending>,
        tally: &mut Tally,
    ) {
        let (Some(known), Some(&address)) = (self.known.get_mut(index), self.addresses.get(index)) else {
            return;
        };
        let alive = descriptor.and_then(|d| Some((d, Status::of(d.status, d.reason)?)));
        let Some((descriptor, status)) = alive.filter(|(d, _)| d.goid != 0) else {
            // A stack that is being copied belongs to one that lives.
            if descriptor.is_some_and(|d| d.status == 8 && d.goid != 0) {
                tally.alive += 1;
                tally.moved += 1;
                known.group = NO_GROUP;
                return;
            }
            *known = Goroutine::NOBODY;
            return;
        };
        tally.alive += 1;
        if known.goid != descriptor.goid {
            *known = Goroutine {
                goid: descriptor.goid,
                creator: descriptor.creator,
                parent: descriptor.parent,
                born_ns: now_ns,
                joined_ns: now_ns,
                seen_ns: now_ns,
                ..Goroutine::NOBODY
            };
        }
        known.since_ns = descriptor.since_ns;
        known.m = match status {
            Status::Running | Status::Syscall => descriptor.m,
            _ => descriptor.locked_m,
        };
        let same = known.group != NO_GROUP
            && (known.status, known.sp, known.pc, known.seq)
                == (status, descriptor.sp, descriptor.pc, descriptor.seq);
        // Not every system call is counted by every version: the same place need not be the same call.
        if same && !matches!(status, Status::Syscall | Status::Running) {
            tally.unchanged += 1;
            return;
        }
        pending.push(Pending {
            index,
            address,
            descriptor: *descriptor,
        });
    }

    /// Reads and walks the stacks of those put aside.
    fn stacks(&mut self, pending: &mut Vec<Pending>, now_ns: u64, tally: &mut Tally) {
        for _ in 0..TRIES {
            let mut moved = Vec::new();
            let mut rest = std::mem::take(pending);
            while !rest.is_empty() {
                // As many as fit.
                let mut bytes = 0;
                let many = rest
                    .iter()
                    .take_while(|pending| {
                        bytes += self.used + pending.descriptor.used().map_or(0, |(_, len)| len);
                        bytes <= BATCH_BYTES
                    })
                    .count()
                    .max(1);
                let others = rest.split_off(many);
                self.read_stacks(rest, now_ns, tally, &mut moved);
                rest = others;
            }
            *pending = moved;
            if pending.is_empty() {
                return;
            }
        }
        for pending in pending.drain(..) {
            tally.moved += 1;
            if let Some(known) = self.known.get_mut(pending.index) {
                known.group = NO_GROUP;
            }
        }
    }

    fn read_stacks(
        &mut self,
        goroutines: Vec<Pending>,
        now_ns: u64,
        tally: &mut Tally,
        moved: &mut Vec<Pending>,
    ) {
        let mut pieces = Vec::with_capacity(2 * goroutines.len());
        for pending in &goroutines {
            let runs = Status::of(pending.descriptor.status, 0) == Some(Status::Running);
            let (sp, len) = pending.descriptor.used().filter(|_| !runs).unwrap_or((0, 0));
            pieces.push(Piece::new(sp, len));
            pieces.push(Piece::new(pending.address, self.used));
        }
        // Nothing is read at 0, which is not an error.
        let mut bytes = vec![0; pieces.iter().map(|piece| piece.len).sum()];
        self.memory.read_pieces(&mut pieces, &mut bytes);
        tally.bytes += bytes.len() as u64;
        let mut rest = &bytes[..];
        for (mut pending, pair) in goroutines.into_iter().zip(pieces.chunks_exact(2)) {
            let [stack_piece, after_piece] = pair else { return };
            let Some((stack, after)) = rest.split_at_checked(stack_piece.len) else {
                return;
            };
            let Some((after, others)) = after.split_at_checked(after_piece.len) else {
                return;
            };
            rest = others;
            let after = after_piece
                .whole
                .then(|| Descriptor::read(&self.runtime.layout, after))
                .flatten();
            let Some(after) = after else {
                tally.unreadable += 1;
                self.forget(pending.index);
                continue;
            };
            if !after.stands(&pending.descriptor) {
                // It may have ended, too.
                if Status::of(after.status, after.reason).is_none() && after.status != 8 {
                    tally.alive = tally.alive.saturating_sub(1);
                    if let Some(known) = self.known.get_mut(pending.index) {
                        *known = Goroutine::NOBODY;
                    }
                    continue;
                }
                pending.descriptor = after;
                moved.push(pending);
                continue;
            }
            let status = Status::of(after.status, after.reason).unwrap_or(Status::Running);
            let walked = if status == Status::Running {
                self.walker.frames.clear();
                Some(false)
            } else if stack_piece.whole && stack_piece.len > 0 {
                tally.walked += 1;
                self.walker.walk(&self.program, &after, stack)
            } else {
                None
            };
            let Some(cut) = walked else {
                tally.inconsistent += 1;
                self.forget(pending.index);
                continue;
            };
            let group = self.groups.find(&self.walker.frames, cut, after.creator, status);
            if group == NO_GROUP {
                tally.folded += 1;
            }
            self.settle(pending.index, &after, status, group, now_ns);
        }
    }

    fn forget(&mut self, index: usize) {
        if let Some(known) = self.known.get_mut(index) {
            known.group = NO_GROUP;
        }
    }

    /// A goroutine's state is known.
    fn settle(&mut self, index: usize, descriptor: &Descriptor, status: Status, group: u32, now_ns: u64) {
        let Some(known) = self.known.get_mut(index) else {
            return;
        };
        if known.goid != descriptor.goid {
            known.goid = descriptor.goid;
            known.creator = descriptor.creator;
            known.parent = descriptor.parent;
            known.born_ns = now_ns;
            known.joined_ns = now_ns;
        }
        let same = (known.status, known.sp, known.pc, known.seq)
            == (status, descriptor.sp, descriptor.pc, descriptor.seq);
        if !same || known.group != group {
            known.seen_ns = now_ns;
        }
        if known.group != group {
            known.joined_ns = now_ns;
        }
        known.status = status;
        known.sp = descriptor.sp;
        known.pc = descriptor.pc;
        known.seq = descriptor.seq;
        known.since_ns = descriptor.since_ns;
        known.group = group;
    }
}

/// Walks stacks by the runtime's tables.
struct Walker {
    steps: FxHashMap<u64, Option<Step>>,
    frames: Vec<GoFrame>,
    /// Functions that did not call what is below them: it was interrupted.
    injected: Vec<u64>,
    /// Moves the stack pointer from C's stack to Go's, where its frame is as described.
    cgocallback: Option<u64>,
}

impl Walker {
    fn new(program: &Program) -> Self {
        let injected = ["runtime.sigpanic", "runtime.asyncPreempt", "runtime.debugCallV2"];
        Self {
            steps: FxHashMap::default(),
            frames: Vec::new(),
            injected: injected
                .into_iter()
                .filter_map(|name| program.function(name))
                .collect(),
            cgocallback: program.function("runtime.cgocallback"),
        }
    }

    fn step(&mut self, program: &Program, pc: u64) -> Option<Step> {
        if let Some(step) = self.steps.get(&pc) {
            return *step;
        }
        if self.steps.len() >= MAX_STEPS {
            self.steps.clear();
        }
        let step = program.step(pc);
        self.steps.insert(pc, step);
        step
    }

    /// Puts the frames into `frames`; whether there are more. None when the tables cannot explain the stack.
    fn walk(&mut self, program: &Program, at: &Descriptor, stack: &[u8]) -> Option<bool> {
        self.frames.clear();
        let (mut pc, mut sp) = (at.pc, 0usize);
        let mut interrupted = false;
        loop {
            let step = self.step(program, pc)?;
            let leaf = self.frames.is_empty();
            self.frames.push((pc, !interrupted && pc != step.start));
            if step.top {
                return Some(false);
            }
            if step.moves_sp && !leaf && Some(step.start) != self.cgocallback {
                return None;
            }
            if self.frames.len() >= MAX_FRAMES {
                return Some(true);
            }
            interrupted = self.injected.contains(&step.start);
            sp = sp.checked_add(step.size as usize)?;
            let Some(back) = u64_at(stack, sp) else {
                // Either there is more than was read, or the stack was overrun.
                return (at.hi - at.sp > MAX_STACK).then_some(true);
            };
            sp += 8;
            pc = back;
        }
    }
}

/// Every different group once.
#[derive(Default)]
struct Groups {
    list: Vec<Group>,
    by_hash: FxHashMap<u64, Vec<u32>>,
}

impl Groups {
    fn find(&mut self, frames: &[GoFrame], cut: bool, creator: u64, status: Status) -> u32 {
        let mut hasher = FxHasher::default();
        (frames, cut, creator, status).hash(&mut hasher);
        let same = self.by_hash.entry(hasher.finish()).or_default();
        let list = &self.list;
        let is = |&&at: &&u32| {
            list.get(at as usize).is_some_and(|group| {
                *group.frames == *frames && (group.cut, group.creator, group.status) == (cut, creator, status)
            })
        };
        if let Some(&at) = same.iter().find(is) {
            return at;
        }
        if self.list.len() >= MAX_GROUPS {
            return NO_GROUP;
        }
        let at = self.list.len() as u32;
        same.push(at);
        self.list.push(Group {
            frames: frames.into(),
            cut,
            creator,
            status,
        });
        at
    }
}
