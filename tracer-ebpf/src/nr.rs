//! System call numbers, x86-64 (`arch/x86/entry/syscalls/syscall_64.tbl`). Those above 423 are the same everywhere.
#![allow(missing_docs, reason = "each constant is the system call it is named after")]

macro_rules! numbers {
    ($($name:ident = $nr:literal,)*) => {
        $(pub const $name: i64 = $nr;)*
        /// The call's name in lower case, as in its manual page; `None` for numbers not listed here.
        #[must_use]
        pub const fn name(nr: i64) -> Option<&'static str> {
            match nr {
                $($nr => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

numbers! {
    READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, POLL = 7, MMAP = 9, MPROTECT = 10, IOCTL = 16, PREAD64 = 17,
    PWRITE64 = 18, READV = 19, WRITEV = 20, PIPE = 22, SELECT = 23, SCHED_YIELD = 24, MSYNC = 26, DUP = 32, DUP2 = 33,
    PAUSE = 34, NANOSLEEP = 35, SENDFILE = 40, SOCKET = 41, CONNECT = 42, ACCEPT = 43, SENDTO = 44,
    RECVFROM = 45, SENDMSG = 46, RECVMSG = 47, SHUTDOWN = 48, SOCKETPAIR = 53, CLONE = 56, FORK = 57, VFORK = 58,
    EXECVE = 59, EXIT = 60, WAIT4 = 61, KILL = 62, SEMOP = 65, MSGSND = 69, MSGRCV = 70, FCNTL = 72, FLOCK = 73, FSYNC = 74,
    FDATASYNC = 75, GETDENTS = 78, CREAT = 85, RT_SIGSUSPEND = 130, RT_SIGTIMEDWAIT = 128, SYNC = 162, GETTID = 186,
    TKILL = 200, FUTEX = 202, IO_GETEVENTS = 208, EPOLL_CREATE = 213, GETDENTS64 = 217, RESTART_SYSCALL = 219,
    SEMTIMEDOP = 220, CLOCK_NANOSLEEP = 230, EXIT_GROUP = 231, EPOLL_WAIT = 232, TGKILL = 234, MQ_OPEN = 240,
    MQ_TIMEDSEND = 242, MQ_TIMEDRECEIVE = 243, WAITID = 247, INOTIFY_INIT = 253, OPENAT = 257, PSELECT6 = 270,
    PPOLL = 271, SPLICE = 275, TEE = 276, SYNC_FILE_RANGE = 277, VMSPLICE = 278, EPOLL_PWAIT = 281, SIGNALFD = 282,
    TIMERFD_CREATE = 283, EVENTFD = 284, FALLOCATE = 285, ACCEPT4 = 288, SIGNALFD4 = 289, EVENTFD2 = 290,
    EPOLL_CREATE1 = 291, DUP3 = 292, PIPE2 = 293, INOTIFY_INIT1 = 294, PREADV = 295, PWRITEV = 296,
    PERF_EVENT_OPEN = 298, RECVMMSG = 299, FANOTIFY_INIT = 300, OPEN_BY_HANDLE_AT = 304, SYNCFS = 306, SENDMMSG = 307,
    SECCOMP = 317, MEMFD_CREATE = 319, BPF = 321, USERFAULTFD = 323, COPY_FILE_RANGE = 326, PREADV2 = 327, PWRITEV2 = 328,
    PIDFD_SEND_SIGNAL = 424, IO_URING_SETUP = 425, IO_URING_ENTER = 426, OPEN_TREE = 428, FSOPEN = 430,
    FSMOUNT = 432, FSPICK = 433, PIDFD_OPEN = 434, CLONE3 = 435, CLOSE_RANGE = 436, OPENAT2 = 437,
    PIDFD_GETFD = 438, EPOLL_PWAIT2 = 441, LANDLOCK_CREATE_RULESET = 444, MEMFD_SECRET = 447, FUTEX_WAITV = 449,
    FUTEX_WAKE = 454, FUTEX_WAIT = 455, FUTEX_REQUEUE = 456, OPEN_TREE_ATTR = 467,
}

/// Why a `linux/futex.h` constant is here and not taken from a crate: the probes have no libc.
pub mod futex {
    pub const WAIT: u32 = 0;
    pub const WAKE: u32 = 1;
    pub const REQUEUE: u32 = 3;
    pub const CMP_REQUEUE: u32 = 4;
    pub const WAKE_OP: u32 = 5;
    pub const LOCK_PI: u32 = 6;
    pub const UNLOCK_PI: u32 = 7;
    pub const WAIT_BITSET: u32 = 9;
    pub const WAKE_BITSET: u32 = 10;
    pub const WAIT_REQUEUE_PI: u32 = 11;
    pub const CMP_REQUEUE_PI: u32 = 12;
    pub const LOCK_PI2: u32 = 13;
    /// `FUTEX_PRIVATE_FLAG` of `futex`; `FUTEX2_PRIVATE` of the newer calls has the same value.
    pub const PRIVATE: u32 = 128;
    pub const CLOCK_REALTIME: u32 = 256;
    /// Mask that leaves the operation.
    pub const CMD_MASK: u32 = !(PRIVATE | CLOCK_REALTIME);
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_the_kernels_in_capitals() {
        assert_eq!(super::name(202), Some("FUTEX"));
        assert_eq!(super::name(-1), None);
    }
}
