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
    /// [`super::SwitchOut`]: a target thread goes to sleep. May carry a stack.
    pub const SWITCH_OUT: u16 = 1;
    /// [`super::Wake`]: a task of whatever process ended a sleep by its own system call. May carry a stack.
    pub const WAKE: u16 = 2;
    /// [`super::SwitchIn`]: a target thread got a CPU.
    pub const SWITCH_IN: u16 = 3;
    /// [`super::FdOpen`]: a system call returned one descriptor or a pair. May carry a stack.
    pub const FD_OPEN: u16 = 4;
    /// [`super::FdClose`]: a system call is about to close one descriptor or a range.
    pub const FD_CLOSE: u16 = 5;
    /// [`super::FdRights`]: `recvmsg` returned control data that may carry descriptors. May carry a stack.
    pub const FD_RIGHTS: u16 = 6;
    /// [`super::Fork`]: a target thread made a thread or a process.
    pub const FORK: u16 = 7;
    /// [`super::Exec`]: a target process replaced its program.
    pub const EXEC: u16 = 8;
    /// [`super::Exit`]: a target thread ended.
    pub const EXIT: u16 = 9;
    /// [`super::FdUring`]: an `io_uring` request that makes or ends descriptors completed. May carry a stack.
    pub const FD_URING: u16 = 10;
}

wire! {
    /// Front of every record.
    pub struct Header [24] {
        /// One of [`kind`].
        pub kind: u16,
        /// Class of the stack copy that follows the record ([`StackClass`]), 0 without.
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
    /// User registers at kernel entry, and how many bytes of stack follow the record.
    pub struct Regs [152] {
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
    }
}

/// Values of [`Regs::fault`].
pub mod stack_fault {
    /// All of the class was copied.
    pub const NONE: u32 = 0;
    /// A page was unreadable before the class was full: the top of the stack, or swapped out.
    pub const UNREADABLE: u32 = 1;
    /// A 32-bit caller: no stack is taken.
    pub const COMPAT: u32 = 2;
    /// The ring was over half full: counted for its lock, without a stack.
    pub const PENDING: u32 = 3;
    /// Not in the set of reasons whose stacks are taken, or a thread without user registers.
    pub const UNWANTED: u32 = 4;
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
    /// A target thread goes to sleep (`sched_switch`, not preempted, state not running).
    /// [`Regs`] and the stack bytes follow.
    pub struct SwitchOut [104] {
        /// Front.
        pub header: Header,
        /// Number of this sleep of this thread, from 1; joins it to its [`Wake`] and [`SwitchIn`].
        pub seq: u64,
        /// The state it sleeps in (`TASK_INTERRUPTIBLE` 1, `TASK_UNINTERRUPTIBLE` 2, …).
        pub state: u32,
        /// Kernel stack id in `KSTACKS`, negative without; only for uninterruptible sleeps.
        pub kstack: i32,
        /// System call it sleeps in, −1 in a fault or a kernel thread's work.
        pub nr: i64,
        /// The call's first six arguments; for `futex_waitv`, `args[5]` is the first futex word waited for.
        pub args: [u64; 6],
        /// The time-out that the call was given, in ns, as the caller wrote it: relative or absolute by the
        /// call's rules; `u64::MAX` without one or when it could not be read.
        pub timeout_ns: u64,
    }
}

wire! {
    /// Somebody's system call ended a target thread's sleep. `header.tgid`/`tid` are the *sleeper*.
    /// [`Regs`] and stack bytes of the *waker* follow.
    pub struct Wake [72] {
        /// Front; `ts_ns` is the moment of waking.
        pub header: Header,
        /// The sleep that ended.
        pub seq: u64,
        /// The waker's process.
        pub waker_tgid: u32,
        /// The waker's thread.
        pub waker_tid: u32,
        /// The waker's system call.
        pub nr: i64,
        /// First argument of the waker's call (the futex word).
        pub uaddr: u64,
        /// The waker's `comm`, NUL-padded.
        pub comm: [u8; 16],
    }
}

/// Bits of [`SwitchIn::flags`].
pub mod switch_in {
    /// It had slept (a wait ends here); otherwise it had only lost the CPU.
    pub const SLEPT: u32 = 1;
    /// It was preempted or yielded.
    pub const PREEMPTED: u32 = 2;
    /// A signal was pending when it was woken.
    pub const SIGNAL: u32 = 4;
    /// The wake-up was seen, `wake_ns` is valid.
    pub const WOKEN: u32 = 8;
    /// First run of a new thread.
    pub const NEW: u32 = 16;
    /// The sleep began before ctrace attached: its length is unknown.
    pub const BEFORE: u32 = 32;
}

wire! {
    /// A target thread got a CPU: ends a wait and a stay in the run queue.
    pub struct SwitchIn [104] {
        /// Front; `ts_ns` is when it began to run.
        pub header: Header,
        /// The sleep that ended (with [`switch_in::SLEPT`]), else the last one.
        pub seq: u64,
        /// When it left the CPU.
        pub out_ns: u64,
        /// When it became runnable: woken, or `out_ns` when preempted.
        pub wake_ns: u64,
        /// System call that it slept in, −1 in a fault.
        pub nr: i64,
        /// First argument of that call.
        pub arg0: u64,
        /// Bits of [`switch_in`].
        pub flags: u32,
        /// How the wake-up came ([`crate::rules::Waker`] as integer).
        pub waker_kind: u32,
        /// The waker's process, 0 when unknown.
        pub waker_tgid: u32,
        /// The waker's thread, 0 when unknown.
        pub waker_tid: u32,
        /// Sum of this thread's run-queue delays since attach, this one included: a gap against the sum of
        /// the records shows what was lost.
        pub run_queue_total_ns: u64,
        /// Sum of this thread's time on a CPU since attach, until `out_ns`.
        pub running_total_ns: u64,
        /// Number of [`SwitchIn`] of this thread, this one included.
        pub count: u64,
    }
}

wire! {
    /// A system call of a target thread returned descriptors. [`Regs`] and stack bytes follow.
    pub struct FdOpen [72] {
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
    /// `recvmsg`/`recvmmsg` of a target thread returned control data. [`Regs`] and stack bytes follow.
    pub struct FdRights [1088] {
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
        /// `struct cmsghdr`s as the kernel wrote them.
        pub control: [u8; CONTROL_MAX],
    }
}

wire! {
    /// An `io_uring` request that opens, accepts, or makes a socket or pipe was submitted ([`FdUring::SUBMITTED`]:
    /// [`Regs`] and stack bytes of the submitter follow) or completed (nothing follows, `tgid` and `tid` are 0).
    pub struct FdUring [48] {
        /// Front; `tgid`/`tid` are the submitter's.
        pub header: Header,
        /// `IORING_OP_*`.
        pub opcode: u32,
        /// The request's result: a descriptor; [`FdUring::SUBMITTED`] at submission.
        pub result: i32,
        /// Zero.
        pub reserved: u64,
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
    pub struct Fork [32] {
        /// Front: the parent.
        pub header: Header,
        /// Process of the new thread.
        pub child_tgid: u32,
        /// The new thread.
        pub child_tid: u32,
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
    pub struct Exit [48] {
        /// Front.
        pub header: Header,
        /// Sum of its run-queue delays since attach.
        pub run_queue_total_ns: u64,
        /// Sum of its time on a CPU since attach.
        pub running_total_ns: u64,
        /// Number of its [`SwitchIn`].
        pub count: u64,
    }
}

/// Indices into the per-CPU array `COUNTERS`: what was not seen, by cause.
pub mod counter {
    /// A record did not fit into the ring.
    pub const RING_FULL: u32 = 0;
    /// Task storage or a map could not take an entry.
    pub const MAP_FULL: u32 = 1;
    /// A stack was not copied because the ring was over half full.
    pub const STACK_PENDING: u32 = 2;
    /// A 32-bit caller's call.
    pub const COMPAT: u32 = 3;
    /// A `SCM_RIGHTS` message longer than [`super::CONTROL_MAX`], or more messages than are walked.
    pub const CONTROL_TRUNCATED: u32 = 4;
    /// A user pointer (pair of descriptors, time-out, control data) could not be read.
    pub const USER_FAULT: u32 = 5;
    /// A record about descriptors did not fit into the ring: leak verdicts are withheld.
    pub const FD_RING_FULL: u32 = 6;
    /// Number of counters.
    pub const COUNT: u32 = 8;
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

wire! {
    /// One thread as the task iterator saw it (`bpf_seq_write`, one per thread of a target).
    pub struct TaskSnapshot [176] {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_keep_the_ring_aligned() {
        for size in [
            SwitchOut::SIZE,
            Wake::SIZE,
            SwitchIn::SIZE,
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
        }
        assert_eq!(StackClass::holding(2049), StackClass::Medium);
        assert_eq!(StackClass::holding(1 << 20), StackClass::Large);
        assert_eq!(StackClass::from_wire(4), None);
    }
}
