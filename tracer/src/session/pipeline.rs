//! Records in, tables out: decodes, unwinds, and feeds the aggregators. It never touches the kernel half.

use rustc_hash::FxHashMap;
use tracer_ebpf::{
    nr,
    wire::{FdUring, Fork, Regs, StackClass, StackPlace, SwitchIn, SwitchOut, stack_fault, switch_in},
};

use crate::{
    aggregate::{
        fds::FdTable,
        reason::{INTERRUPTIBLE, reason},
        threads::Threads,
        waits::Waits,
    },
    capture::decode::{Event, StackCopy, decode},
    report::model::{FdKind, Reason},
    stacks::{End, StackId, Stacks},
};

/// Requests of `io_uring` under way that are remembered.
const URING_MAX: usize = 65_536;
/// Tables of descriptors, those of ended children included; further children's descriptors are not told apart, counted.
const TABLES_MAX: usize = 4096;
/// Places whose class of copy is remembered here, as many as the kernel's map holds.
const PLACES_MAX: usize = 16_384;

/// Something that the session must see to, in the order of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A process replaced its program.
    Exec(u32),
    /// A target made a process.
    Child {
        /// The new one.
        child: u32,
    },
}

/// The targets' state as far as records tell.
pub struct Pipeline {
    /// Address spaces and stacks.
    pub stacks: Stacks,
    /// Sleeps.
    pub waits: Waits,
    /// Threads.
    pub threads: Threads,
    /// Descriptor tables by process; empty when descriptors are not collected.
    pub fds: FxHashMap<u32, FdTable>,
    /// `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`.
    pub realtime_offset_ns: i64,
    /// Start of the window, `CLOCK_MONOTONIC`.
    window_start_ns: u64,
    /// Sleeps other than futex waits are kept.
    io: bool,
    /// Children are traced.
    follow: bool,
    /// Children without a table.
    folded: u64,
    uring: FxHashMap<u64, (u32, u32, StackId)>,
    classes: FxHashMap<StackPlace, StackClass>,
    new_classes: Vec<(StackPlace, StackClass)>,
    notices: Vec<Notice>,
    unknown_records: u64,
    /// Records seen.
    records: u64,
    last_ns: u64,
}

impl Pipeline {
    /// An empty one; tables of descriptors are added with [`Pipeline::fds`].
    #[must_use]
    pub fn new(min_wait_ns: u64, io: bool, follow: bool, realtime_offset_ns: i64, now_ns: u64) -> Self {
        Self {
            stacks: Stacks::new(),
            waits: Waits::new(min_wait_ns),
            threads: Threads::default(),
            fds: FxHashMap::default(),
            realtime_offset_ns,
            window_start_ns: now_ns,
            io,
            follow,
            folded: 0,
            uring: FxHashMap::default(),
            classes: FxHashMap::default(),
            new_classes: Vec::new(),
            notices: Vec::new(),
            unknown_records: 0,
            records: 0,
            last_ns: 0,
        }
    }

    /// Takes one record of the ring.
    pub fn on_record(&mut self, bytes: &[u8]) {
        self.records += 1;
        let Some(event) = decode(bytes) else {
            self.unknown_records += 1;
            return;
        };
        match event {
            Event::SwitchOut(record, copy) => self.on_switch_out(&record, &copy),
            Event::Wake(record, copy) => {
                let stack = self.unwind(record.waker_tgid, &copy);
                self.waits.on_wake(&record, stack);
            }
            Event::SwitchIn(record) => {
                self.last_ns = record.header.ts_ns;
                self.threads.on_switch_in(&record);
                let ended = self.waits.on_switch_in(&record, self.realtime_offset_ns);
                let (tgid, tid) = (record.header.tgid, record.header.tid);
                // What lies before this window is another one's, or nobody's.
                let inside = record.wake_ns.saturating_sub(self.window_start_ns);
                if let Some(ended) = ended {
                    self.threads
                        .on_blocked(tgid, tid, ended.reason, ended.blocked_ns.min(inside));
                } else if record.flags & switch_in::BEFORE != 0 {
                    let table = self.fds.get(&tgid);
                    let why = reason_before(&record, |fd| kind_of(table, tgid, fd));
                    self.threads.on_blocked(tgid, tid, why, inside);
                }
            }
            Event::FdOpen(record, copy) => {
                let stack = self.unwind(record.header.tgid, &copy);
                if let Some(table) = self.fds.get_mut(&record.header.tgid) {
                    table.on_open(&record, stack);
                }
            }
            Event::FdClose(record) => {
                if let Some(table) = self.fds.get_mut(&record.header.tgid) {
                    table.on_close(&record);
                }
            }
            Event::FdRights(record, copy) => {
                let stack = self.unwind(record.header.tgid, &copy);
                if let Some(table) = self.fds.get_mut(&record.header.tgid) {
                    table.on_rights(&record, stack);
                }
            }
            Event::FdUring(record, copy) => self.on_uring(record, copy.as_ref()),
            Event::Fork(record) => {
                if self.follow && record.child_tgid != record.header.tgid {
                    self.on_child(&record);
                    self.notices.push(Notice::Child {
                        child: record.child_tgid,
                    });
                }
            }
            Event::Exec(record) => {
                self.threads.on_rename(record.old_tid, record.header.tid);
                self.waits.on_exit(record.old_tid);
                self.stacks.process_exec(record.header.tgid);
                if let Some(table) = self.fds.get_mut(&record.header.tgid) {
                    table.on_exec(record.header.ts_ns);
                }
                self.notices.push(Notice::Exec(record.header.tgid));
            }
            Event::Exit(record) => {
                self.waits.on_exit(record.header.tid);
                self.threads.on_exit(&record);
                if let Some(table) = self.fds.get_mut(&record.header.tgid) {
                    table.on_thread_exit(record.header.tid);
                }
            }
        }
    }

    fn on_switch_out(&mut self, record: &SwitchOut, copy: &StackCopy<'_>) {
        let tgid = record.header.tgid;
        let table = self.fds.get(&tgid);
        let why = reason(record.nr, &record.args, record.state, |fd| {
            kind_of(table, tgid, fd)
        });
        let stack = if why == Reason::Futex || self.io {
            self.unwind(tgid, copy)
        } else {
            StackId::NONE
        };
        self.waits.on_switch_out(record, why, stack);
    }

    /// A child begins with its parent's mappings and descriptors; its own records may be next.
    fn on_child(&mut self, record: &Fork) {
        let (parent, child) = (record.header.tgid, record.child_tgid);
        self.stacks.process_fork(parent, child);
        let Some(table) = self.fds.get(&parent) else {
            return;
        };
        if self.fds.len() >= TABLES_MAX {
            self.folded += 1;
            return;
        }
        let table = table.forked(child, record.header.ts_ns);
        self.fds.insert(child, table);
    }

    /// Joins submission and completion of a request.
    fn on_uring(&mut self, record: FdUring, copy: Option<&StackCopy<'_>>) {
        if record.result == FdUring::SUBMITTED {
            let Some(copy) = copy else { return };
            let stack = self.unwind(record.header.tgid, copy);
            if self.uring.len() >= URING_MAX {
                self.uring.clear();
            }
            self.uring
                .insert(record.request, (record.header.tgid, record.header.tid, stack));
            return;
        }
        let Some(&(tgid, tid, stack)) = self.uring.get(&record.request) else {
            return;
        };
        if let Some(table) = self.fds.get_mut(&tgid) {
            let mut record = record;
            record.header.tgid = tgid;
            record.header.tid = tid;
            table.on_uring(&record, stack);
        }
    }

    fn unwind(&mut self, tgid: u32, copy: &StackCopy<'_>) -> StackId {
        if copy.regs.fault > stack_fault::UNREADABLE {
            return StackId::NONE;
        }
        let unwound = self.stacks.unwind(tgid, &copy.regs, copy.bytes);
        let copied = copy.bytes.len();
        let wanted = if unwound.end == End::Truncated && copy.regs.fault == stack_fault::NONE {
            StackClass::holding(copied + 1)
        } else {
            // Twice what it took: another path to the same place may be a little deeper.
            StackClass::holding(unwound.needed.saturating_mul(2))
        };
        self.note_class(&copy.regs, wanted);
        unwound.id
    }

    /// Remembers how large a copy the stack at this place needs; it only ever grows, so that one deep path is not cut again and
    /// again by the shallow ones beside it.
    fn note_class(&mut self, regs: &Regs, wanted: StackClass) {
        let place = StackPlace {
            sp: regs.sp,
            ip: regs.ip,
        };
        let known = self.classes.get(&place).copied();
        if known.is_some_and(|known| known >= wanted) {
            return;
        }
        if self.classes.len() >= PLACES_MAX {
            self.classes.clear();
        }
        self.classes.insert(place, wanted);
        if wanted != StackClass::Medium || known.is_some() {
            self.new_classes.push((place, wanted));
        }
    }

    /// Classes that the probes do not know yet.
    pub fn take_classes(&mut self) -> Vec<(StackPlace, StackClass)> {
        std::mem::take(&mut self.new_classes)
    }

    /// What the session must see to.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Records that were not understood.
    #[must_use]
    pub const fn unknown_records(&self) -> u64 {
        self.unknown_records
    }

    /// Children whose descriptors found no room.
    #[must_use]
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    /// Records seen.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// Begins a new window.
    pub fn reset(&mut self, now_ns: u64) {
        self.window_start_ns = now_ns;
        self.waits.reset(now_ns);
        self.threads.reset();
    }
}

/// Why a thread slept that slept already at attach: of the call's arguments only the first is known, and not the state.
fn reason_before(record: &SwitchIn, kind_of: impl Fn(i32) -> Option<FdKind>) -> Reason {
    if matches!(record.nr, nr::FUTEX | nr::FUTEX_WAIT | nr::FUTEX_WAITV) {
        return Reason::Futex;
    }
    reason(record.nr, &[record.arg0, 0, 0, 0, 0, 0], INTERRUPTIBLE, kind_of)
}

/// What a descriptor is: from its table, else from `/proc`, where it still stands while its thread sleeps in a call on it.
fn kind_of(table: Option<&FdTable>, tgid: u32, fd: i32) -> Option<FdKind> {
    table.and_then(|table| table.kind(fd)).or_else(|| {
        let link = std::fs::read_link(format!("/proc/{tgid}/fd/{fd}")).ok()?;
        Some(crate::proc::fd::kind_of(&link.to_string_lossy()))
    })
}
