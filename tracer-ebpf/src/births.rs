//! Which system calls make descriptors, and where each leaves them.

use crate::nr;

/// Where a call that succeeded left the descriptors that it made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    /// It made none.
    None,
    /// Its result.
    Result,
    /// Two `int`s at this address.
    Pair(u64),
    /// One `int` at this address, written by the parent's kernel side (`CLONE_PIDFD`).
    At(u64),
    /// `struct clone_args` at this address: flags first, then the address of the pidfd.
    CloneArgs(u64),
    /// Control data of the `struct msghdr` at this address.
    Message(u64),
    /// Control data of as many `struct mmsghdr` at this address as the result says.
    Messages(u64),
}

/// `CLONE_PIDFD`.
pub const CLONE_PIDFD: u64 = 0x1000;
const F_DUPFD: u64 = 0;
const F_DUPFD_CLOEXEC: u64 = 1030;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const SECCOMP_FILTER_FLAG_NEW_LISTENER: u64 = 8;

/// Every system call that can make a descriptor and whose arguments and result show it, by the name that its tracepoint has
/// (`syscalls:sys_exit_NAME`). Not among them, and found by comparing with `/proc` only: `ioctl`s that make
/// descriptors, reads from fanotify, `SECCOMP_ADDFD`. `io_uring` has tracepoints of its own.
pub const CALLS: &[&str] = &[
    "accept",
    "accept4",
    "bpf",
    "clone",
    "clone3",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "epoll_create",
    "epoll_create1",
    "eventfd",
    "eventfd2",
    "fanotify_init",
    "fcntl",
    "fsmount",
    "fsopen",
    "fspick",
    "inotify_init",
    "inotify_init1",
    "io_uring_setup",
    "landlock_create_ruleset",
    "memfd_create",
    "memfd_secret",
    "mq_open",
    "open",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "openat",
    "openat2",
    "perf_event_open",
    "pidfd_getfd",
    "pidfd_open",
    "pipe",
    "pipe2",
    "recvmmsg",
    "recvmsg",
    "seccomp",
    "signalfd",
    "signalfd4",
    "socket",
    "socketpair",
    "timerfd_create",
    "userfaultfd",
];

/// What `call` with `args` made, given its `result`.
#[must_use]
#[inline(always)]
pub fn birth(call: i64, args: &[u64; 6], result: i64) -> Birth {
    if result < 0 {
        return Birth::None;
    }
    match call {
        nr::OPEN
        | nr::OPENAT
        | nr::OPENAT2
        | nr::CREAT
        | nr::OPEN_BY_HANDLE_AT
        | nr::SOCKET
        | nr::ACCEPT
        | nr::ACCEPT4
        | nr::DUP
        | nr::DUP2
        | nr::DUP3
        | nr::EVENTFD
        | nr::EVENTFD2
        | nr::EPOLL_CREATE
        | nr::EPOLL_CREATE1
        | nr::TIMERFD_CREATE
        | nr::SIGNALFD
        | nr::SIGNALFD4
        | nr::INOTIFY_INIT
        | nr::INOTIFY_INIT1
        | nr::FANOTIFY_INIT
        | nr::MEMFD_CREATE
        | nr::MEMFD_SECRET
        | nr::PIDFD_OPEN
        | nr::PIDFD_GETFD
        | nr::PERF_EVENT_OPEN
        | nr::USERFAULTFD
        | nr::IO_URING_SETUP
        | nr::MQ_OPEN
        | nr::FSOPEN
        | nr::FSMOUNT
        | nr::FSPICK
        | nr::OPEN_TREE
        | nr::OPEN_TREE_ATTR
        | nr::LANDLOCK_CREATE_RULESET => result_of(call, args, result),
        nr::PIPE | nr::PIPE2 => Birth::Pair(args[0]),
        nr::SOCKETPAIR => Birth::Pair(args[3]),
        nr::FCNTL if args[1] == F_DUPFD || args[1] == F_DUPFD_CLOEXEC => Birth::Result,
        nr::BPF if bpf_makes(args[0]) => Birth::Result,
        nr::SECCOMP
            if args[0] == SECCOMP_SET_MODE_FILTER
                && args[1] & SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
                && result > 0 =>
        {
            Birth::Result
        }
        // The child returns from the same call, with 0.
        nr::CLONE if args[0] & CLONE_PIDFD != 0 && result > 0 => Birth::At(args[2]),
        nr::CLONE3 if result > 0 => Birth::CloneArgs(args[0]),
        nr::RECVMSG => Birth::Message(args[1]),
        nr::RECVMMSG if result > 0 => Birth::Messages(args[1]),
        _ => Birth::None,
    }
}

/// Calls whose result is a descriptor, but for the cases in which it is an old one.
#[inline(always)]
fn result_of(call: i64, args: &[u64; 6], result: i64) -> Birth {
    let old = match call {
        // dup2 onto itself makes nothing.
        nr::DUP2 => args[0] as i32 == args[1] as i32,
        // With a descriptor these change its mask and return it.
        nr::SIGNALFD | nr::SIGNALFD4 => !(args[0] as i32).is_negative(),
        // LANDLOCK_CREATE_RULESET_VERSION and the like return a number.
        nr::LANDLOCK_CREATE_RULESET => args[2] != 0,
        _ => false,
    };
    if old || result > i64::from(i32::MAX) {
        Birth::None
    } else {
        Birth::Result
    }
}

/// Commands of `bpf(2)` (`enum bpf_cmd`) that return a descriptor.
#[inline(always)]
fn bpf_makes(command: u64) -> bool {
    matches!(
        command,
        0 | 5 | 7 | 13 | 14 | 17 | 18 | 19 | 28 | 30 | 32 | 33 | 36
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_make_nothing() {
        assert_eq!(birth(nr::OPENAT, &[0; 6], -2), Birth::None);
        assert_eq!(birth(nr::PIPE, &[0x1000, 0, 0, 0, 0, 0], -14), Birth::None);
    }

    #[test]
    fn old_descriptors_are_not_births() {
        assert_eq!(birth(nr::DUP2, &[5, 5, 0, 0, 0, 0], 5), Birth::None);
        assert_eq!(birth(nr::DUP2, &[5, 6, 0, 0, 0, 0], 6), Birth::Result);
        assert_eq!(birth(nr::SIGNALFD4, &[7, 0, 0, 0, 0, 0], 7), Birth::None);
        assert_eq!(
            birth(nr::SIGNALFD4, &[u64::from(u32::MAX), 0, 0, 0, 0, 0], 7),
            Birth::Result
        );
        assert_eq!(birth(nr::FCNTL, &[3, 3, 0, 0, 0, 0], 2), Birth::None);
        assert_eq!(birth(nr::FCNTL, &[3, 1030, 0, 0, 0, 0], 4), Birth::Result);
    }

    #[test]
    fn the_child_of_a_clone_makes_no_second_pidfd() {
        let args = [CLONE_PIDFD, 0, 0x2000, 0, 0, 0];
        assert_eq!(birth(nr::CLONE, &args, 0), Birth::None);
        assert_eq!(birth(nr::CLONE, &args, 4242), Birth::At(0x2000));
        assert_eq!(birth(nr::CLONE, &[0, 0, 0x2000, 0, 0, 0], 4242), Birth::None);
    }

    #[test]
    fn calls_are_sorted_and_known() {
        assert!(CALLS.is_sorted());
        for call in CALLS {
            assert!(
                (0..500).any(|nr| nr::name(nr).is_some_and(|name| name.eq_ignore_ascii_case(call))),
                "{call}"
            );
        }
    }
}
