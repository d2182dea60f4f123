//! What a call's number and arguments tell about the descriptors it returned.

use tracer_ebpf::nr;
use tracer_ebpf::wire::{CONTROL_MAX, FdRights};

use crate::report::model::FdKind;

/// Where a new descriptor's kind comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// This call makes nothing else.
    Made(FdKind),
    /// Probably this; the link in `/proc/PID/fd` has the last word.
    Guess(FdKind),
    /// The same as that descriptor of the same table.
    CopyOf(i32),
}

/// What a successful call made; `None` when its result is no new descriptor.
pub(super) fn source(call: i64, args: &[u64; 4]) -> Option<Source> {
    use FdKind as K;
    use Source::{CopyOf, Guess, Made};
    Some(match call {
        nr::OPEN | nr::OPENAT | nr::OPENAT2 | nr::CREAT | nr::OPEN_BY_HANDLE_AT => Guess(K::File),
        nr::SOCKET | nr::SOCKETPAIR | nr::ACCEPT | nr::ACCEPT4 => Made(K::Socket),
        nr::PIPE | nr::PIPE2 => Made(K::Pipe),
        nr::EVENTFD | nr::EVENTFD2 => Made(K::Eventfd),
        nr::EPOLL_CREATE | nr::EPOLL_CREATE1 => Made(K::Epoll),
        nr::TIMERFD_CREATE => Made(K::Timerfd),
        // signalfd(2): given a descriptor, it changes that one and returns it.
        nr::SIGNALFD | nr::SIGNALFD4 => {
            if args[0] as u32 != u32::MAX {
                return None;
            }
            Made(K::Signalfd)
        }
        nr::INOTIFY_INIT | nr::INOTIFY_INIT1 => Made(K::Inotify),
        nr::FANOTIFY_INIT => Made(K::Fanotify),
        nr::MEMFD_CREATE | nr::MEMFD_SECRET => Made(K::Memfd),
        nr::PIDFD_OPEN | nr::CLONE | nr::CLONE3 => Made(K::Pidfd),
        nr::PERF_EVENT_OPEN => Made(K::PerfEvent),
        nr::BPF => bpf(args[0] as u32)?,
        nr::USERFAULTFD => Made(K::Userfaultfd),
        nr::IO_URING_SETUP => Made(K::IoUring),
        nr::MQ_OPEN => Made(K::Mqueue),
        nr::OPEN_TREE | nr::OPEN_TREE_ATTR | nr::FSOPEN | nr::FSMOUNT | nr::FSPICK => Made(K::Mount),
        // landlock_create_ruleset(2): with flags it returns a version.
        nr::LANDLOCK_CREATE_RULESET if args[2] as u32 != 0 => return None,
        // seccomp(2): a descriptor only with SECCOMP_FILTER_FLAG_NEW_LISTENER.
        nr::SECCOMP if args[1] & 8 == 0 => return None,
        nr::DUP => CopyOf(args[0] as i32),
        nr::DUP2 | nr::DUP3 => {
            // dup2(n, n) does nothing.
            if args[0] as i32 == args[1] as i32 {
                return None;
            }
            CopyOf(args[0] as i32)
        }
        // fcntl(2): F_DUPFD, F_DUPFD_CLOEXEC; other commands return other numbers.
        nr::FCNTL => {
            if !matches!(args[1] as u32, 0 | 1030) {
                return None;
            }
            CopyOf(args[0] as i32)
        }
        // Some ioctls and reads of fanotify give descriptors, most do not: the scans tell.
        nr::IOCTL | nr::READ => return None,
        // pidfd_getfd copies from another process; the rest is new to us.
        _ => Guess(K::Other),
    })
}

/// bpf(2) returns descriptors for some commands only (`enum bpf_cmd`, `linux/bpf.h`).
fn bpf(command: u32) -> Option<Source> {
    const MAP_CREATE: u32 = 0;
    const PROG_LOAD: u32 = 5;
    const OBJ_GET: u32 = 7;
    const PROG_GET_FD_BY_ID: u32 = 13;
    const MAP_GET_FD_BY_ID: u32 = 14;
    const RAW_TRACEPOINT_OPEN: u32 = 17;
    const BTF_LOAD: u32 = 18;
    const BTF_GET_FD_BY_ID: u32 = 19;
    const LINK_CREATE: u32 = 28;
    const LINK_GET_FD_BY_ID: u32 = 30;
    const ENABLE_STATS: u32 = 32;
    const ITER_CREATE: u32 = 33;
    const TOKEN_CREATE: u32 = 36;
    match command {
        MAP_CREATE | PROG_LOAD | OBJ_GET | PROG_GET_FD_BY_ID | MAP_GET_FD_BY_ID | RAW_TRACEPOINT_OPEN
        | BTF_LOAD | BTF_GET_FD_BY_ID | LINK_GET_FD_BY_ID | ENABLE_STATS | ITER_CREATE | TOKEN_CREATE => {
            Some(Source::Made(FdKind::Bpf))
        }
        // A perf link is a link too, but older kernels name it by what it holds.
        LINK_CREATE => Some(Source::Guess(FdKind::Bpf)),
        _ => None,
    }
}

/// What a completed `io_uring` request made, by its opcode (`enum io_uring_op`).
pub(super) fn uring(opcode: u32, result: i32) -> Option<FdKind> {
    const ACCEPT: u32 = 13;
    const OPENAT: u32 = 18;
    const OPENAT2: u32 = 28;
    const SOCKET: u32 = 45;
    if result < 0 {
        return None;
    }
    match opcode {
        OPENAT | OPENAT2 => Some(FdKind::File),
        ACCEPT | SOCKET => Some(FdKind::Socket),
        _ => None,
    }
}

/// A call as the rows count it: a system call's number, or an `io_uring` opcode below zero.
pub(super) fn uring_call(opcode: u32) -> i64 {
    -1 - i64::from(opcode)
}

/// Name of such a call, as in its manual page.
pub(super) fn call_name(call: i64) -> Option<String> {
    if call >= 0 {
        return nr::name(call).map(str::to_ascii_lowercase);
    }
    Some(match -1 - call {
        13 => "io_uring accept".into(),
        18 => "io_uring openat".into(),
        28 => "io_uring openat2".into(),
        45 => "io_uring socket".into(),
        opcode => format!("io_uring op {opcode}"),
    })
}

/// Descriptors in control data (cmsg(3), unix(7)): of `SCM_RIGHTS` a guess, of `SCM_PIDFD` a pidfd.
///
/// The bytes lie in the target's memory and may say anything: at most as many are returned as fit into the record, and
/// a number that is none is mended by the next scan. A message cut by `MSG_CTRUNC` gives those that it holds.
pub(super) fn rights(event: &FdRights) -> Vec<(i32, Source)> {
    const HEAD: usize = 16;
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    const SCM_PIDFD: i32 = 4;
    let mut rest = &event.control[..(event.len as usize).min(CONTROL_MAX)];
    let mut found = Vec::new();
    while let Some((head, data)) = rest.split_at_checked(HEAD) {
        let number = |at: usize| i32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = u64::from(number(0) as u32) | u64::from(number(4) as u32) << 32;
        let Some(length) = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_sub(HEAD))
        else {
            break;
        };
        let body = &data[..length.min(data.len())];
        if number(8) == SOL_SOCKET && matches!(number(12), SCM_RIGHTS | SCM_PIDFD) {
            let source = if number(12) == SCM_PIDFD {
                Source::Made(FdKind::Pidfd)
            } else {
                Source::Guess(FdKind::Other)
            };
            found.extend(
                body.as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&bytes| i32::from_ne_bytes(bytes))
                    .filter(|&fd| fd >= 0)
                    .map(|fd| (fd, source)),
            );
        }
        // The next one begins at a multiple of eight (CMSG_ALIGN).
        let Some(next) = length
            .checked_next_multiple_of(8)
            .and_then(|next| data.get(next..))
        else {
            break;
        };
        rest = next;
    }
    found
}
