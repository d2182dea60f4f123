//! Records in, tables out: decodes, unwinds, and feeds the aggregators. It never touches the kernel half.

use std::{ffi::CStr, io::Write as _};

use rustc_hash::FxHashMap;
use tracer_ebpf::{
    nr,
    rules::{self, Waker},
    wire::{
        Fault, FdUring, Fork, Regs, Stack, StackClass, StackPlace, TaskSnapshot, Wait, go_site, stack_fault,
        stack_ref, wait,
    },
};

use crate::{
    aggregate::{
        fds::FdTable,
        go_locks::GoLocks,
        go_starts::GoStarts,
        holds::{self, Holds},
        pages::{Pages, Touched},
        reason::{INTERRUPTIBLE, reason},
        samples::Samples,
        spawned::Spawned,
        threads::Threads,
        waits::Waits,
    },
    capture::{
        decode::{Event, decode},
        uprobes::{GROUPS, Group},
    },
    proc::memory::{PAGE, Page, Pagemaps},
    report::model::{FdKind, Reason},
    stacks::{End, StackId, Stacks},
};

/// Requests of `io_uring` under way that are remembered.
const URING_MAX: usize = 65_536;
/// Tables of descriptors, those of ended children included; further children's descriptors are not told apart, counted.
const TABLES_MAX: usize = 4096;
/// Copies that no record has referred to yet; beyond, the older half is forgotten, counted when a record asks for one.
const COPIES_MAX: usize = 65_536;
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
    /// Who held what, by threads.
    pub holds: Holds,
    /// Waits of goroutines.
    pub go_locks: GoLocks,
    /// Who made which goroutine.
    pub go_starts: GoStarts,
    /// What ran.
    pub samples: Samples,
    /// Memory that was touched for the first time.
    pub pages: Pages,
    /// Who made threads.
    pub spawned: Spawned,

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
    /// What copies unwound to, by token: the latest, and those before.
    copies: [FxHashMap<u64, StackId>; 2],
    /// Records that refer to a copy that is not there.
    unmatched: u64,
    uring: FxHashMap<u64, (u32, u32, StackId)>,
    classes: FxHashMap<StackPlace, StackClass>,
    new_classes: Vec<(StackPlace, StackClass)>,
    notices: Vec<Notice>,
    pagemaps: Pagemaps,
    unknown_records: u64,
    /// Records seen.
    records: u64,
    /// Those of probes in programs, by [`Group`].
    go_records: [u64; GROUPS.len()],
    last_ns: u64,
}

impl Pipeline {
    /// An empty one; tables of descriptors are added with [`Pipeline::fds`].
    #[must_use]
    pub fn new(min_wait_ns: u64, io: bool, follow: bool, realtime_offset_ns: i64) -> Self {
        Self {
            stacks: Stacks::new(),
            waits: Waits::new(min_wait_ns),
            holds: Holds::default(),
            go_locks: GoLocks::default(),
            go_starts: GoStarts::default(),
            samples: Samples::default(),
            pages: Pages::default(),
            pagemaps: Pagemaps::default(),
            spawned: Spawned::default(),
            threads: Threads::default(),
            fds: FxHashMap::default(),
            realtime_offset_ns,
            window_start_ns: 0,
            io,
            follow,
            folded: 0,
            copies: Default::default(),
            unmatched: 0,
            uring: FxHashMap::default(),
            classes: FxHashMap::default(),
            new_classes: Vec::new(),
            notices: Vec::new(),
            unknown_records: 0,
            records: 0,
            go_records: [0; GROUPS.len()],
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
            Event::Wait(record) => self.on_wait(&record),
            Event::Stack(record, copied) => self.on_stack(&record, copied),
            Event::Delays(record) => self.threads.on_delays(&record),
            Event::FdOpen(record) => {
                let stack = self.stack(record.stack, record.header.tgid, record.header.ts_ns);
                // Named by the program that runs now: it may be another one when the report is made.
                let creator = match record.creator {
                    0 => StackId::NONE,
                    at => self.stacks.intern_code(record.header.tgid, &[(at, true)], false),
                };
                let asker = self.go_starts.asker(record.header.tgid, record.goid, creator);
                if let Some(table) = self.fds.get_mut(&record.header.tgid) {
                    table.on_asked(&record, stack, asker);
                }
            }
            Event::FdClose(record) => {
                if let Some(table) = self.fds.get_mut(&record.header.tgid) {
                    table.on_close(&record);
                }
            }
            Event::FdRights(record) => {
                let stack = self.stack(record.stack, record.header.tgid, record.header.ts_ns);
                if let Some(table) = self.fds.get_mut(&record.header.tgid) {
                    table.on_rights(&record, stack);
                }
            }
            Event::FdUring(record) => self.on_uring(record),
            Event::GoWait(record) => {
                let tgid = record.header.tgid;
                let stack = self.stack(record.stack, tgid, record.started_ns);
                let waker = self.stack(record.waker_stack, tgid, record.header.ts_ns);
                let group = if record.site == go_site::PARK {
                    Group::Parks
                } else {
                    Group::Locks
                };
                self.note_go(group, &[record.stack, record.waker_stack]);
                self.go_locks.on_wait(&record, (stack, waker));
            }
            Event::GoStart(record) => {
                let stack = self.stack(record.stack, record.header.tgid, record.asked_ns);
                self.note_go(Group::Starts, &[record.stack]);
                self.go_starts.on_start(&record, stack);
            }
            Event::Sample(record, copied) => {
                let stack = self.stacks.unwind_once(record.header.tgid, &record.regs, copied);
                self.samples.on_sample(&record, stack);
            }
            Event::Fault(record, copied) => self.on_fault(&record, copied),
            Event::Fork(record) => {
                if record.child_tgid == record.header.tgid {
                    let ts_ns = record.header.ts_ns;
                    let stack = self.stack(record.stack, record.header.tgid, ts_ns);
                    let stack = self.stacks.before_generated(stack);
                    self.spawned
                        .on_birth(record.child_tgid, record.child_tid, stack, ts_ns);
                }
                if self.follow && record.child_tgid != record.header.tgid {
                    self.on_child(&record);
                    self.notices.push(Notice::Child {
                        child: record.child_tgid,
                    });
                }
            }
            Event::Exec(record) => {
                self.threads.on_rename(record.old_tid, record.header.tid);
                self.stacks.process_exec(record.header.tgid, record.header.ts_ns);
                self.go_starts.on_exec(record.header.tgid);
                self.forget_pages(record.header.tgid);
                self.spawned.on_exec(record.header.tgid, record.header.ts_ns);
                if let Some(table) = self.fds.get_mut(&record.header.tgid) {
                    table.on_exec(record.header.ts_ns);
                }
                self.notices.push(Notice::Exec(record.header.tgid));
            }
            Event::Exit(record) => {
                self.threads.on_exit(&record);
                self.spawned
                    .on_end(record.header.tgid, record.header.tid, record.header.ts_ns);
                self.holds.forget(record.header.tid);
                if let Some(table) = self.fds.get_mut(&record.header.tgid) {
                    table.on_thread_exit(record.header.tid);
                }
            }
        }
    }

    fn on_fault(&mut self, record: &Fault, copied: &[u8]) {
        let tgid = record.header.tgid;
        let page = record.address / PAGE;
        self.pages.on_record();
        // What is a file's, or was given back at once, is no memory of its own.
        let Page::Own(bytes) = self.pagemaps.look(tgid, page) else {
            return;
        };
        let stack = self.stacks.unwind_once(tgid, &record.regs, copied);
        let bytes = bytes.saturating_mul(record.weight);
        self.pages.on_fault(tgid, page, Touched { stack, bytes });
    }

    /// Looks whether memory that was touched is still there, when it is time or must be known `now`.
    pub fn look_at_pages(&mut self, now_ns: u64, now: bool) {
        let pagemaps = &mut self.pagemaps;
        self.pages
            .look(now_ns, now, |tgid, page| pagemaps.is_own(tgid, page));
    }

    /// A process has another program image, or its number is another one's.
    fn forget_pages(&mut self, tgid: u32) {
        self.pages.forget(tgid);
        self.pagemaps.forget(tgid);
    }

    /// A process has ended.
    pub fn end_pages(&mut self, tgid: u32) {
        self.pages.on_exit(tgid);
        self.pagemaps.forget(tgid);
    }

    fn on_wait(&mut self, record: &Wait) {
        self.last_ns = record.header.ts_ns;
        self.threads.on_wait(record);
        let (tgid, tid) = (record.header.tgid, record.header.tid);
        let table = self.fds.get(&tgid);
        let kind = |fd| kind_of(table, tgid, fd);
        // What lies before this window is another one's, or nobody's.
        let inside = record.wake_ns.saturating_sub(self.window_start_ns);
        if record.flags & wait::BEFORE != 0 {
            let why = reason_before(record, kind);
            self.threads.on_blocked(tgid, tid, why, inside, 1);
            if why == Reason::Futex {
                self.holds.gap((tgid, record.args[0]));
            }
            return;
        }
        let why = reason(record.nr, &record.args, record.state, kind);
        let stack = if why == Reason::Futex || self.io {
            self.stack(record.stack, tgid, record.out_ns)
        } else {
            StackId::NONE
        };
        let waker = self.stack(record.waker_stack, record.waker_tgid, record.wake_ns);
        let ended = self
            .waits
            .on_wait(record, why, (stack, waker), self.realtime_offset_ns);
        self.on_hold(record, why, (stack, waker));
        self.threads.on_blocked(
            tgid,
            tid,
            ended.reason,
            ended.blocked_ns.min(inside),
            record.weight,
        );
    }

    /// What a sleep says of who held which lock.
    fn on_hold(&mut self, record: &Wait, why: Reason, (stack, waker_stack): (StackId, StackId)) {
        if record.weight > 1 {
            // Of a sample nothing follows: what is between two sleeps may be another one.
            self.holds.spoil();
            return;
        }
        // A shared word may be held by processes that are not traced, and has another address in each.
        let futex =
            rules::futex_wait(record.nr, &record.args).filter(|futex| why == Reason::Futex && futex.private);
        if let Some(futex) = futex {
            let handed_over = Waker::from_wire(record.waker_kind) == Some(Waker::HandOver);
            self.holds.on_wait(holds::Wait {
                lock: (record.header.tgid, futex.uaddr),
                from_ns: record.out_ns,
                woken_ns: record.wake_ns,
                on_ns: record.header.ts_ns,
                released_by: handed_over.then_some((record.waker_tid, waker_stack)),
            });
        }
        let sleep = holds::Sleep {
            reason: why,
            stack,
            from_ns: record.out_ns,
            woken_ns: record.wake_ns,
            on_ns: record.header.ts_ns,
        };
        self.holds.on_sleep(record.header.tid, sleep);
    }

    /// The stack that a record of a process refers to, taken at that time.
    fn stack(&mut self, reference: u64, tgid: u32, ts_ns: u64) -> StackId {
        let value = reference & stack_ref::VALUE;
        if reference & stack_ref::MEMO != 0 {
            return self.stacks.recognised(value, tgid, ts_ns);
        }
        if reference & stack_ref::COPY == 0 {
            return StackId::NONE;
        }
        // Not taken out: all messages that one call received have the same.
        if let Some(&id) = self.copies.iter().find_map(|copies| copies.get(&value)) {
            return id;
        }
        self.unmatched += 1;
        StackId::NONE
    }

    fn on_stack(&mut self, record: &Stack, copied: &[u8]) {
        let tgid = record.header.tgid;
        if record.memo != 0 {
            self.stacks
                .compare(record.memo, tgid, record.header.ts_ns, &record.regs, copied);
            return;
        }
        let class = StackClass::from_wire(record.header.class).unwrap_or(StackClass::Medium);
        let id = self.unwind(tgid, &record.regs, copied, class);
        let [latest, before] = &mut self.copies;
        if latest.len() >= COPIES_MAX / 2 {
            *before = std::mem::take(latest);
        }
        latest.insert(record.token, id);
    }

    /// What the probes have not sent of the threads.
    pub fn on_snapshots(&mut self, snapshots: &[TaskSnapshot]) {
        for snapshot in snapshots {
            self.threads.on_snapshot(snapshot);
        }
        self.threads.forget_ends();
    }

    /// A child begins with its parent's mappings and descriptors; its own records may be next.
    fn on_child(&mut self, record: &Fork) {
        let (parent, child) = (record.header.tgid, record.child_tgid);
        self.stacks.process_fork(parent, child, record.header.ts_ns);
        self.forget_pages(child);
        if self.spawned.is_on() {
            self.spawned.begin(child, 0, record.header.ts_ns);
        }
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
    fn on_uring(&mut self, record: FdUring) {
        if record.result == FdUring::SUBMITTED {
            let stack = self.stack(record.stack, record.header.tgid, record.header.ts_ns);
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

    fn unwind(&mut self, tgid: u32, regs: &Regs, copied: &[u8], class: StackClass) -> StackId {
        let unwound = self.stacks.unwind(tgid, regs, copied);
        let wanted = if unwound.end == End::Truncated && regs.fault == stack_fault::NONE {
            class.larger()
        } else {
            // Twice what it took: another path to the same place may be a little deeper.
            StackClass::holding(unwound.needed.saturating_mul(2))
        };
        self.note_class(regs, wanted);
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

    /// Records whose stack was not found.
    #[must_use]
    pub const fn unmatched(&self) -> u64 {
        self.unmatched
    }

    /// Records that were not understood.
    #[must_use]
    pub const fn unknown_records(&self) -> u64 {
        self.unknown_records
    }

    /// A child could not be held on to.
    pub const fn not_followed(&mut self) {
        self.folded += 1;
    }

    /// Children whose descriptors found no room, or that were not followed.
    #[must_use]
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    /// Records seen.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// Records of probes in programs, by [`Group`].
    #[must_use]
    pub const fn go_records(&self) -> [u64; GROUPS.len()] {
        self.go_records
    }

    /// A record of a probe in a program; the copies that it refers to came as records of their own.
    fn note_go(&mut self, group: Group, stacks: &[u64]) {
        let is_copy = |stack: &&u64| **stack & stack_ref::MEMO == 0 && **stack & stack_ref::COPY != 0;
        self.go_records[group as usize] += 1 + stacks.iter().filter(is_copy).count() as u64;
    }

    /// Begins a new window.
    pub fn reset(&mut self, now_ns: u64) {
        self.window_start_ns = now_ns;
        self.waits.reset(now_ns);
        self.holds.reset(now_ns);
        self.go_locks.reset(now_ns);
        self.samples.reset();
        self.pages.reset();
        self.stacks.forget_once();
        self.threads.reset(now_ns);
    }
}

/// Why a thread slept that slept already at attach: of the call's arguments only the first is known, and not the state.
fn reason_before(record: &Wait, kind_of: impl Fn(i32) -> Option<FdKind>) -> Reason {
    if matches!(record.nr, nr::FUTEX | nr::FUTEX_WAIT | nr::FUTEX_WAITV) {
        return Reason::Futex;
    }
    reason(
        record.nr,
        &[record.args[0], 0, 0, 0, 0, 0],
        INTERRUPTIBLE,
        kind_of,
    )
}

/// What a descriptor is: from its table, else from `/proc`, where it still stands while its thread sleeps in a call on it.
fn kind_of(table: Option<&FdTable>, tgid: u32, fd: i32) -> Option<FdKind> {
    table
        .and_then(|table| table.kind(fd))
        .or_else(|| kind_now(tgid, fd))
}

/// What a descriptor is by its link in `/proc`; allocates nothing, as it may be asked for each event.
fn kind_now(tgid: u32, fd: i32) -> Option<FdKind> {
    let (mut path, mut link) = ([0u8; 48], [0u8; 256]);
    // Room for the longest numbers, and the NUL that is there already.
    write!(&mut path[..47], "/proc/{tgid}/fd/{fd}").ok()?;
    let path = CStr::from_bytes_until_nul(&path).ok()?;
    // SAFETY: a string that ends with NUL, and a buffer with its length.
    let len = unsafe { libc::readlink(path.as_ptr(), link.as_mut_ptr().cast(), link.len()) };
    // What is cut off a long path does not tell its kind.
    let link = link.get(..usize::try_from(len).ok()?)?;
    Some(crate::proc::fd::kind_of(&String::from_utf8_lossy(link)))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd as _};

    use super::*;

    #[test]
    fn a_descriptor_is_what_its_link_says() {
        let own = std::process::id();
        let file = File::open("/proc/self/status").unwrap();
        let (pipe, _write) = std::io::pipe().unwrap();
        assert_eq!(kind_now(own, file.as_raw_fd()), Some(FdKind::File));
        assert_eq!(kind_now(own, pipe.as_raw_fd()), Some(FdKind::Pipe));
        assert_eq!(kind_now(own, -1), None);
        assert_eq!(kind_now(u32::MAX, i32::MIN), None);
    }

    /// One `recvmmsg` may bring descriptors in several messages, each a record, with one stack.
    #[test]
    fn records_may_share_a_copy() {
        let mut pipeline = Pipeline::new(0, true, false, 0);
        pipeline.copies[0].insert(7, StackId(3));
        let mut stack = |token| pipeline.stack(stack_ref::COPY | token, 1, 2);
        assert_eq!((stack(7), stack(7)), (StackId(3), StackId(3)));
        assert_eq!(stack(8), StackId::NONE);
        assert_eq!(pipeline.unmatched, 1);
    }
}
