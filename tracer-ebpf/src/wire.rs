//! Records, maps' keys and values, and globals shared by the probes and user space.
//!
//! Times are `CLOCK_MONOTONIC` nanoseconds (`bpf_ktime_get_ns`). `tgid` is what people call the PID, `tid`
//! the thread's id; both in the initial pid namespace.

use core::mem::size_of;

/// Declares a wire struct: `repr(C)`, `Copy`, and its exact size asserted, which (fields being naturally
/// aligned integers) also proves that it has no padding.
macro_rules! wire {
    ($(#[$meta:meta])* pub struct $name:ident [$size:expr] { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size, "size on the wire");
        const _: () = assert!(0 $(+ size_of::<$ty>())* == $size, "implicit padding on the wire");
        impl $name {
            /// Size on the wire in bytes.
            pub const SIZE: usize = $size;
            /// Reads one from the front of `bytes`; `None` when they are too few.
            #[must_use]
            pub fn read(bytes: &[u8]) -> Option<Self> {
                if bytes.len() < $size {
                    return None;
                }
                // SAFETY: the length was checked, any bit pattern is a valid value of a struct of integers,
                // and `read_unaligned` asks for no alignment.
                Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
            }
        }
    };
}

/// Kinds of records in the `EVENTS` ring ([`Header::kind`]).
pub mod kind {
    /// [`super::Wait`]: a target thread slept and got a CPU again.
    pub const WAIT: u16 = 1;
    /// [`super::Stack`]: the copy of a stack that a later record refers to.
    pub const STACK: u16 = 2;
    /// [`super::Delays`]: run-queue delays of a target thread that ended no wait.
    pub const DELAYS: u16 = 3;
    /// [`super::FdOpen`]: a system call returned one descriptor or a pair.
    pub const FD_OPEN: u16 = 4;
    /// [`super::FdClose`]: a system call is about to close one descriptor or a range.
    pub const FD_CLOSE: u16 = 5;
    /// [`super::FdRights`]: `recvmsg` returned control data that may carry descriptors.
    pub const FD_RIGHTS: u16 = 6;
    /// [`super::Fork`]: a target thread made a thread or a process.
    pub const FORK: u16 = 7;
    /// [`super::Exec`]: a target process replaced its program.
    pub const EXEC: u16 = 8;
    /// [`super::Exit`]: a target thread ended.
    pub const EXIT: u16 = 9;
    /// [`super::FdUring`]: an `io_uring` request that makes or ends descriptors was submitted or completed.
    pub const FD_URING: u16 = 10;
    /// [`super::GoWait`]: a goroutine that waited was made runnable.
    pub const GO_WAIT: u16 = 11;
    /// [`super::GoStart`]: a goroutine was made, and who made it.
    pub const GO_START: u16 = 12;
    /// [`super::Sample`]: a tick of a CPU's clock found a target thread running.
    pub const SAMPLE: u16 = 13;
    /// [`super::Fault`].
    pub const FAULT: u16 = 14;
}

wire! {
    /// Front of every record.
    pub struct Header [24] {
        /// One of [`kind`].
        pub kind: u16,
        /// Class of the stack copy that follows a [`Stack`] ([`StackClass`]), 0 in other records.
        pub class: u16,
        /// Process of the thread that the record is about.
        pub tgid: u32,
        /// Thread that the record is about.
        pub tid: u32,
        /// CPU that wrote it.
        pub cpu: u32,
        /// When.
        pub ts_ns: u64,
    }
}

wire! {
    /// User registers at kernel entry, and how many bytes of stack were copied.
    pub struct Regs [160] {
        /// Program counter.
        pub ip: u64,
        /// Stack pointer; the copied bytes begin here.
        pub sp: u64,
        /// The sixteen general registers by DWARF number (x86-64: rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8–r15).
        pub gp: [u64; 16],
        /// Bytes of stack copied from `sp`: less than the class when a page could not be read.
        pub stack_len: u32,
        /// Why the copy is short or absent ([`stack_fault`]).
        pub fault: u32,
        /// Pages of the stack that could not be read though later ones could, counted from the page of `sp`: large buffers of
        /// which only a part was ever touched. Their bytes are void.
        pub missing: u32,
        /// Zero.
        pub reserved: u32,
    }
}

/// Values of [`Regs::fault`], and of a [`stack_ref`] that refers to no stack.
pub mod stack_fault {
    /// All of the class was copied.
    pub const NONE: u32 = 0;
    /// Pages were unreadable before the class was full: the top of the stack, or swapped out. A longer copy would not help.
    pub const UNREADABLE: u32 = 1;
    /// A 32-bit caller: no stack is taken.
    pub const COMPAT: u32 = 2;
    /// The ring was crowded: counted for its lock, without a stack.
    pub const PENDING: u32 = 3;
    /// Not in the set of reasons whose stacks are taken, or a thread without user registers.
    pub const UNWANTED: u32 = 4;
}

/// How a record names a stack, in 64 bits: a memo that was recognised, a copy that lies before it in the ring, or, when
/// neither bit is set, none, for the reason in [`stack_fault`].
pub mod stack_ref {
    /// The other bits are the id of a memo ([`crate::memo`]).
    pub const MEMO: u64 = 1 << 62;
    /// The other bits are the token of a [`super::Stack`] record.
    pub const COPY: u64 = 1 << 63;
    /// The bits of an id or a token.
    pub const VALUE: u64 = MEMO - 1;
}

/// Sizes of stack copies: a ring record needs a constant size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum StackClass {
    /// No stack.
    None = 0,
    /// 2 KiB.
    Small = 1,
    /// 8 KiB: the class of a stack never seen.
    Medium = 2,
    /// 32 KiB.
    Large = 3,
}

impl StackClass {
    /// Bytes that a copy of this class holds at most.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Small => 2 << 10,
            Self::Medium => 8 << 10,
            Self::Large => 32 << 10,
        }
    }

    /// From the wire; `None` when unknown.
    #[must_use]
    pub const fn from_wire(class: u16) -> Option<Self> {
        Some(match class {
            0 => Self::None,
            1 => Self::Small,
            2 => Self::Medium,
            3 => Self::Large,
            _ => return None,
        })
    }

    /// The next larger class.
    #[must_use]
    pub const fn larger(self) -> Self {
        match self {
            Self::None => Self::Small,
            Self::Small => Self::Medium,
            Self::Medium | Self::Large => Self::Large,
        }
    }

    /// The smallest class that holds `bytes`, the largest when none does.
    #[must_use]
    pub const fn holding(bytes: usize) -> Self {
        if bytes <= Self::Small.bytes() {
            Self::Small
        } else if bytes <= Self::Medium.bytes() {
            Self::Medium
        } else {
            Self::Large
        }
    }
}

wire! {
    /// A stack that no memo recognised, or that is compared with the one that did. The bytes from [`Regs::sp`] follow.
    pub struct Stack [200] {
        /// Front; `tgid` and `tid` are of the thread whose stack it is.
        pub header: Header,
        /// What later records call it ([`stack_ref::COPY`]); unique.
        pub token: u64,
        /// The memo that matched it, when it is a sample of the recognised ones; else 0.
        pub memo: u64,
        /// Registers.
        pub regs: Regs,
    }
}

/// Bits of [`Wait::flags`].
pub mod wait {
    /// A signal was pending when it was woken.
    pub const SIGNAL: u32 = 4;
    /// The wake-up was seen, `wake_ns` is valid.
    pub const WOKEN: u32 = 8;
    /// The sleep began before ctrace attached: its length is unknown.
    pub const BEFORE: u32 = 32;
}

wire! {
    /// A target thread slept and got a CPU again: one whole wait, written when it is over.
    pub struct Wait [184] {
        /// Front; `ts_ns` is when it began to run.
        pub header: Header,
        /// Number of this sleep of this thread, from 1; 0 for the one it was in at attach.
        pub seq: u64,
        /// When it left the CPU; 0 when that was before attach.
        pub out_ns: u64,
        /// When it became runnable; `header.ts_ns` when that was not seen.
        pub wake_ns: u64,
        /// System call that it slept in, −1 in a fault or a kernel thread's work.
        pub nr: i64,
        /// The call's first six arguments; for `futex_waitv`, `args[5]` is the first futex word waited for.
        pub args: [u64; 6],
        /// The time-out that the call was given, in ns, as the caller wrote it: relative or absolute by the
        /// call's rules; `u64::MAX` without one or when it could not be read.
        pub timeout_ns: u64,
        /// Its stack ([`stack_ref`]).
        pub stack: u64,
        /// The stack of the thread whose call ended the wait ([`stack_ref`]), when it was handed over.
        pub waker_stack: u64,
        /// The state it slept in (`TASK_INTERRUPTIBLE` 1, `TASK_UNINTERRUPTIBLE` 2, …).
        pub state: u32,
        /// Kernel stack id in `KSTACKS`, negative without; only for uninterruptible sleeps.
        pub kstack: i32,
        /// Bits of [`wait`].
        pub flags: u32,
        /// How the wake-up came ([`crate::rules::Waker`] as integer).
        pub waker_kind: u32,
        /// The waker's process, 0 when unknown.
        pub waker_tgid: u32,
        /// The waker's thread, 0 when unknown.
        pub waker_tid: u32,
        /// Sum of this thread's time on a CPU since attach, until `out_ns`.
        pub running_total_ns: u64,
        /// How many of this thread's sleeps were shorter than [`Control::min_wait_ns`] since attach, and have no record.
        pub short_count: u32,
        /// How many sleeps this one stands for: as many as there were for each one that was chosen ([`Control::sample_mask`]) when
        /// it began.
        pub weight: u32,
        /// Sum of the short sleeps' lengths.
        pub short_ns: u64,
        /// Sum of the lengths of this thread's sleeps that were not chosen, as far as they lie in the windows in which they ended; the
        /// short ones are not in it.
        pub skipped_ns: u64,
    }
}

wire! {
    /// A tick of a CPU's clock found a target thread running. The bytes from [`Regs::sp`] follow, at most
    /// [`StackClass::Large`]: no memo recognises a place that code may stand at in any instruction.
    pub struct Sample [200] {
        /// Front.
        pub header: Header,
        /// Registers: where it ran, or came into the kernel.
        pub regs: Regs,
        /// System call that it was in; −1 in user space, and in a fault or an interrupt.
        pub nr: i64,
        /// How many ticks this one stands for ([`Control::ticks_mask`]).
        pub weight: u32,
        /// 1 in the kernel, 0 in user space.
        pub in_kernel: u32,
    }
}

wire! {
    /// A target thread touched a page of its memory that was not there. The bytes from [`Regs::sp`] follow, at most
    /// [`StackClass::Large`], as in a [`Sample`].
    pub struct Fault [200] {
        /// Front.
        pub header: Header,
        /// Registers: where it was touched, or where the thread came into the kernel, which did.
        pub regs: Regs,
        /// What was touched.
        pub address: u64,
        /// How many faults this one stands for ([`FAULTS_WEIGHT`], [`Control::faults_mask`]).
        pub weight: u64,
    }
}

/// Of a CPU's page faults, whoever makes them, every so many-th is looked at, by three counts at once: primes, so that an order in which a program
/// touches memory again and again falls into step with one of them at most.
pub const FAULTS_PERIODS: [u32; 3] = [89, 97, 101];
/// How many faults one of them stands for: 1 ÷ (1/89 + 1/97 + 1/101), rounded.
pub const FAULTS_WEIGHT: u32 = 32;

wire! {
    /// Value of the map `NEIGHBOURS`: a process that is no target.
    pub struct Neighbour [24] {
        /// Name of the thread that was seen last, with a NUL when it is shorter.
        pub comm: [u8; 16],
        /// Ticks that found it running.
        pub ticks: u64,
    }
}

/// What a goroutine waits for ([`GoWait::site`]).
pub mod go_site {
    /// In `runtime.semacquire1`: the address is that of a semaphore, a word of a lock.
    pub const SEMAPHORE: u32 = 0;
    /// In `sync.runtime_notifyListWait`: the address is that of a condition variable's list.
    pub const NOTIFY_LIST: u32 = 1;
    /// In `runtime.gopark`: the address is that of a channel, 0 for any other [`super::GoWait::reason`].
    pub const PARK: u32 = 2;
    /// In `database/sql.(*DB).conn`: the address is that of the pool (`sql.DB`). Ends when the goroutine runs again.
    pub const POOL: u32 = 3;
}

/// Bits of [`GoWait::flags`].
pub mod go_wait {
    /// It had been made runnable before, found the semaphore taken again, and waited on: a second wait of the same call.
    pub const AGAIN: u32 = 1;
    /// It wanted a connection of a pool and got none: its context ended before.
    pub const GAVE_UP: u32 = 2;
    /// The same, as the pool was closed, or it cannot be told.
    pub const UNKNOWN: u32 = 4;
}

wire! {
    /// A goroutine that waited was made runnable: one whole wait.
    pub struct GoWait [88] {
        /// Front; `ts_ns` is when it was made runnable, `tid` the thread that did.
        pub header: Header,
        /// When it began to wait.
        pub started_ns: u64,
        /// What it waited for ([`go_site`]).
        pub address: u64,
        /// Number of the goroutine that waited.
        pub goid: u64,
        /// Number of the goroutine that made it runnable; 0 when that was none.
        pub waker_goid: u64,
        /// The stack of the one that waited ([`stack_ref`]).
        pub stack: u64,
        /// The stack of the one that made it runnable ([`stack_ref`]).
        pub waker_stack: u64,
        /// One of [`go_site`].
        pub site: u32,
        /// Bits of [`go_wait`].
        pub flags: u32,
        /// How many waits this one stands for, as [`Wait::weight`].
        pub weight: u32,
        /// Why, by the runtime's number of the reason; 0 where the site tells.
        pub reason: u32,
    }
}

/// Run-queue delays that one [`Delays`] holds.
pub const DELAYS: usize = 64;

wire! {
    /// Run-queue delays that ended no wait of a record: after losing the CPU, of a new thread, or after a short sleep.
    pub struct Delays [296] {
        /// Front.
        pub header: Header,
        /// How many delays of this thread went before.
        pub first: u64,
        /// How many follow.
        pub len: u32,
        /// Zero.
        pub reserved: u32,
        /// Each as [`crate::delay::encode`] has it.
        pub delays: [u32; DELAYS],
    }
}

wire! {
    /// A system call of a target thread returned descriptors.
    pub struct FdOpen [104] {
        /// Front; written at the call's exit.
        pub header: Header,
        /// The system call.
        pub nr: i64,
        /// The descriptor.
        pub fd: i32,
        /// The second of a pair, else −1.
        pub fd2: i32,
        /// The call's first four arguments.
        pub args: [u64; 4],
        /// The caller's stack ([`stack_ref`]).
        pub stack: u64,
        /// Number of the goroutine that called; 0 when none did, or none that can be told for certain.
        pub goid: u64,
        /// Number of the goroutine that made that one; 0 when unknown (before Go 1.21).
        pub parent_goid: u64,
        /// After the `go` statement that made it.
        pub creator: u64,
    }
}

wire! {
    /// A goroutine was made at one of the `go` statements that are probed.
    pub struct GoStart [56] {
        /// Front.
        pub header: Header,
        /// Its number.
        pub goid: u64,
        /// Number of the goroutine that made it.
        pub parent_goid: u64,
        /// When its maker came to the `go` statement.
        pub asked_ns: u64,
        /// The maker's stack there ([`stack_ref`]).
        pub stack: u64,
    }
}

/// [`GoLayout::parent`] of a version of Go that keeps none.
pub const NO_FIELD: u16 = u16::MAX;

/// Of a goroutine's descriptor fewer bytes than this are read: a power of two.
pub const GO_BYTES: u32 = 512;

wire! {
    /// Value of the map `GO_TARGETS`: how to find out which goroutine makes a system call.
    pub struct GoLayout [24] {
        /// From the thread's `fs` base to the word that holds its goroutine, modulo 2^64.
        pub tls: u64,
        /// In `runtime.g`: the bounds of its stack, the lower first.
        pub stack: u16,
        /// In `runtime.g`: its thread (`*runtime.m`).
        pub m: u16,
        /// In `runtime.g`: its number.
        pub goid: u16,
        /// In `runtime.g`: the number of the one that made it; [`NO_FIELD`] before Go 1.21.
        pub parent: u16,
        /// In `runtime.g`: after the `go` statement that made it.
        pub creator: u16,
        /// In `runtime.m`: the goroutine that it runs.
        pub curg: u16,
        /// Bytes of `runtime.g` that hold all of these: less than [`GO_BYTES`].
        pub bytes: u32,
    }
}

/// Bits of [`FdClose::flags`].
pub mod fd_close {
    /// `CLOSE_RANGE_UNSHARE`: the caller gets a descriptor table of its own first.
    pub const UNSHARE: u32 = 2;
    /// `CLOSE_RANGE_CLOEXEC`: nothing is closed yet.
    pub const CLOEXEC: u32 = 4;
}

wire! {
    /// A target thread enters `close` or `close_range`: written at entry, because the number is free, and may be
    /// given out anew, before the call returns.
    pub struct FdClose [48] {
        /// Front.
        pub header: Header,
        /// The system call.
        pub nr: i64,
        /// First descriptor.
        pub first: u32,
        /// Last descriptor, inclusive.
        pub last: u32,
        /// Bits of [`fd_close`].
        pub flags: u32,
        /// Zero.
        pub reserved: u32,
    }
}

/// Most bytes of control data that [`FdRights`] carries: one full `SCM_RIGHTS` message (253 descriptors).
pub const CONTROL_MAX: usize = 1040;

wire! {
    /// `recvmsg`/`recvmmsg` of a target thread returned control data.
    pub struct FdRights [1096] {
        /// Front.
        pub header: Header,
        /// The system call.
        pub nr: i64,
        /// The socket it came by.
        pub socket: u32,
        /// Bytes of `control` that are valid.
        pub len: u32,
        /// Bytes of control data there were: more than `len` when they did not fit.
        pub total: u64,
        /// The caller's stack ([`stack_ref`]).
        pub stack: u64,
        /// `struct cmsghdr`s as the kernel wrote them.
        pub control: [u8; CONTROL_MAX],
    }
}

wire! {
    /// An `io_uring` request that opens, accepts, or makes a socket or pipe was submitted ([`FdUring::SUBMITTED`]) or
    /// completed (`tgid` and `tid` are 0).
    pub struct FdUring [48] {
        /// Front; `tgid`/`tid` are the submitter's.
        pub header: Header,
        /// `IORING_OP_*`.
        pub opcode: u32,
        /// The request's result: a descriptor; [`FdUring::SUBMITTED`] at submission.
        pub result: i32,
        /// The submitter's stack ([`stack_ref`]), at submission.
        pub stack: u64,
        /// Address of the request in the kernel; joins submission and completion.
        pub request: u64,
    }
}

impl FdUring {
    /// [`FdUring::result`] of a submission.
    pub const SUBMITTED: i32 = i32::MIN;
}

wire! {
    /// A target thread made a thread (`child_tgid == header.tgid`) or a process.
    pub struct Fork [40] {
        /// Front: the parent.
        pub header: Header,
        /// Process of the new thread.
        pub child_tgid: u32,
        /// The new thread.
        pub child_tid: u32,
        /// The stack of the one that made it ([`stack_ref`]): of threads only.
        pub stack: u64,
    }
}

wire! {
    /// A target process replaced its program; `header.tid` is the tid after (the leader's).
    pub struct Exec [32] {
        /// Front.
        pub header: Header,
        /// The tid that the calling thread had before.
        pub old_tid: u32,
        /// Zero.
        pub reserved: u32,
    }
}

wire! {
    /// A target thread ended.
    pub struct Exit [56] {
        /// Front.
        pub header: Header,
        /// Sum of its time on a CPU since attach.
        pub running_total_ns: u64,
        /// As [`Wait::short_count`].
        pub short_count: u32,
        /// Zero.
        pub reserved: u32,
        /// As [`Wait::short_ns`].
        pub short_ns: u64,
        /// As [`Wait::skipped_ns`].
        pub skipped_ns: u64,
    }
}

/// Indices into the per-CPU array `COUNTERS`: what was not seen, by cause.
pub mod counter {
    /// A record did not fit into the ring.
    pub const RING_FULL: u32 = 0;
    /// Task storage or a map could not take an entry.
    pub const MAP_FULL: u32 = 1;
    /// A stack was not copied because the ring was over three quarters full.
    pub const STACK_PENDING: u32 = 2;
    /// A 32-bit caller's call.
    pub const COMPAT: u32 = 3;
    /// A `SCM_RIGHTS` message longer than [`super::CONTROL_MAX`], or more messages than are walked.
    pub const CONTROL_TRUNCATED: u32 = 4;
    /// A user pointer (pair of descriptors, time-out, control data) could not be read.
    pub const USER_FAULT: u32 = 5;
    /// A record about descriptors did not fit into the ring: leak verdicts are withheld.
    pub const FD_RING_FULL: u32 = 6;
    /// A stack was recognised by a memo. Not a loss; this and the next tell the hit rate.
    pub const MEMO_HIT: u32 = 7;
    /// A stack was not recognised.
    pub const MEMO_MISS: u32 = 8;
    /// Copies numbered so far ([`super::Stack::token`]), by each of the three probes that may interrupt one another.
    pub const TOKEN: u32 = 9;
    /// A thread got a CPU and the kernel did not announce it: made up for from its time on that CPU. Not a loss.
    pub const SWITCH_UNSEEN: u32 = 12;
    /// A goroutine was made runnable whose wait had not been seen to begin: before attach, or the map was full.
    pub const GO_UNMATCHED: u32 = 13;
    /// A goroutine got its lock without a wait after all. Not a loss.
    pub const GO_UNPARKED: u32 = 14;
    /// A goroutine's wait was shorter than [`super::Control::min_wait_ns`]. Not a loss.
    pub const GO_SHORT: u32 = 15;
    /// Hits of the probes on waits for Go's locks, whatever came of them. Not a loss: what the traps cost.
    pub const GO_LOCK_HITS: u32 = 16;
    /// The same of the probes on parking.
    pub const GO_PARK_HITS: u32 = 17;
    /// A park began that is to have a record. Not a loss; this and the next three tell how many are under way.
    pub const GO_PARK_BEGUN: u32 = 18;
    /// A park ended, also a short one.
    pub const GO_PARK_ENDED: u32 = 19;
    /// A goroutine parks whose last park was not seen to end: it did not wait after all, or was woken where no probe is.
    pub const GO_PARK_UNENDED: u32 = 20;
    /// A goroutine was made runnable that had not been seen to park: before the probes were there, or for a reason left out.
    pub const GO_PARK_UNMATCHED: u32 = 21;
    /// Hits of the probes at `go` statements and where their goroutines begin.
    pub const GO_START_HITS: u32 = 22;
    /// Of [`STACK_PENDING`], those of goroutines that park, and of who ends it.
    pub const GO_PARK_PENDING: u32 = 23;
    /// A sample found no room in the ring. Not a loss that anything but samples feel.
    pub const SAMPLE_RING_FULL: u32 = 24;
    /// Ticks that found a process running that is no target. Not a loss.
    pub const OTHERS_TICKS: u32 = 25;
    /// A page fault that was looked at found no room in the ring. Not a loss that anything but memory feels.
    pub const FAULT_RING_FULL: u32 = 26;
    /// Number of counters.
    pub const COUNT: u32 = 27;
}

/// Bits of the global `FEATURES`: which collectors the probes feed.
pub mod feature {
    /// Waits: stacks of sleepers.
    pub const WAITS: u32 = 1;
    /// Stacks of wakers.
    pub const WAKERS: u32 = 2;
    /// Run-queue delays of preempted threads.
    pub const SCHED: u32 = 4;
    /// Follow child processes.
    pub const FOLLOW: u32 = 8;
    /// Stacks only of futex sleeps: the `io` collector is off.
    pub const FUTEX_ONLY: u32 = 16;
}

wire! {
    /// Key of the map `STACK_CLASSES` (LRU hash): the size that the stack at this place needed last time.
    /// Written by user space, read by the probes; absent means [`StackClass::Medium`].
    pub struct StackPlace [16] {
        /// Stack pointer.
        pub sp: u64,
        /// Program counter. Without the process: forked ones have the same stacks at the same places.
        pub ip: u64,
    }
}

/// Values of [`TaskSnapshot::phase`]: where the probes have a thread.
pub mod phase {
    /// It runs, or nothing is known of it yet.
    pub const RUNNING: u32 = 0;
    /// It sleeps; what the snapshot says of its sleep is valid.
    pub const SLEEPING: u32 = 1;
    /// It is runnable and lost its CPU.
    pub const PREEMPTED: u32 = 2;
    /// It is new and has not run.
    pub const NEW: u32 = 3;
    /// It slept when ctrace attached.
    pub const BEFORE: u32 = 4;
}

wire! {
    /// The map `CONTROL`: what user space may change while the probes run.
    pub struct Control [72] {
        /// 0 while user space does not read the ring yet: nothing is sent.
        pub armed: u64,
        /// Sleeps shorter than this, in ns, get no record.
        pub min_wait_ns: u64,
        /// Of the recognised stacks one in this plus one is copied too and compared; a power of two minus one.
        pub shadow_mask: u64,
        /// Of the sleeps one in this plus one, chosen at random when it begins, gets a record; a power of two minus one.
        pub sample_mask: u64,
        /// When the present window began: of sleeps without a record only what lies after it is added up.
        pub window_ns: u64,
        /// Waits for Go's locks that began before this are void, as ends may have been missed; `u64::MAX`: none is recorded.
        pub go_locks_ns: u64,
        /// The same of goroutines that park.
        pub go_parks_ns: u64,
        /// Of the ticks that find a target running one in this plus one, chosen at random, gets a record; a power of two minus one.
        pub ticks_mask: u64,
        /// The same of the page faults that are looked at.
        pub faults_mask: u64,
    }
}

wire! {
    /// One thread as the task iterator saw it (`bpf_seq_write`, one per thread of a target), and what the probes know of it.
    pub struct TaskSnapshot [576] {
        /// Process.
        pub tgid: u32,
        /// Thread.
        pub tid: u32,
        /// System call, −1 when not in one.
        pub nr: i64,
        /// When the snapshot was taken.
        pub ts_ns: u64,
        /// Registers; no stack follows.
        pub regs: Regs,
        /// One of [`phase`].
        pub phase: u32,
        /// As [`Wait::state`].
        pub state: u32,
        /// As [`Wait::seq`].
        pub seq: u64,
        /// As [`Wait::out_ns`].
        pub out_ns: u64,
        /// As [`Wait::nr`]: differs from `nr` in a restarted call.
        pub sleep_nr: i64,
        /// As [`Wait::args`].
        pub args: [u64; 6],
        /// As [`Wait::timeout_ns`].
        pub timeout_ns: u64,
        /// As [`Wait::running_total_ns`].
        pub running_total_ns: u64,
        /// As [`Wait::short_count`].
        pub short_count: u32,
        /// As [`Delays::len`], of the delays that are still to be sent.
        pub delays_len: u32,
        /// As [`Wait::short_ns`].
        pub short_ns: u64,
        /// As [`Wait::skipped_ns`].
        pub skipped_ns: u64,
        /// As [`Delays::first`].
        pub delays_first: u64,
        /// As [`Delays::delays`].
        pub delays: [u32; DELAYS],
        /// `delays_first` once more, read last: when it differs, the delays were sent meanwhile.
        pub delays_first_again: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_keep_the_ring_aligned() {
        for size in [
            Wait::SIZE,
            Stack::SIZE,
            Delays::SIZE,
            GoWait::SIZE,
            GoStart::SIZE,
            Sample::SIZE,
            Fault::SIZE,
            FdOpen::SIZE,
            FdClose::SIZE,
            FdRights::SIZE,
            FdUring::SIZE,
            Fork::SIZE,
            Exec::SIZE,
            Exit::SIZE,
            Regs::SIZE,
            TaskSnapshot::SIZE,
        ] {
            assert_eq!(size % 8, 0);
        }
    }

    #[test]
    fn read_asks_for_the_whole_record() {
        assert!(Fork::read(&[0; Fork::SIZE - 1]).is_none());
        assert_eq!(
            Fork::read(&[1; Fork::SIZE]).map(|fork| fork.child_tid),
            Some(0x0101_0101)
        );
    }

    #[test]
    fn classes_hold_what_they_say() {
        for class in 0..4 {
            let class = StackClass::from_wire(class).unwrap();
            assert!(StackClass::holding(class.bytes().max(1)) >= class);
            assert!(class.larger() > class || class == StackClass::Large);
        }
        assert_eq!(StackClass::holding(2049), StackClass::Medium);
        assert_eq!(StackClass::holding(1 << 20), StackClass::Large);
        assert_eq!(StackClass::from_wire(4), None);
    }
}
