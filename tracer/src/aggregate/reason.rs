//! Why a thread sleeps: from its system call, its arguments and its state.

use tracer_ebpf::{nr, rules};

use crate::report::model::{FdKind, Reason};

/// `TASK_INTERRUPTIBLE`: only such a sleep in a futex call is a wait for another thread.
pub const INTERRUPTIBLE: u32 = 1;
/// `__TASK_STOPPED | __TASK_TRACED`.
const STOPPED: u32 = 4 | 8;
/// `TASK_FROZEN`.
const FROZEN: u32 = 0x8000;
/// `CLONE_VFORK`.
const CLONE_VFORK: u64 = 0x4000;

/// The reason of a sleep in call `call`. `kind_of` tells what a descriptor is, when that is known.
#[must_use]
pub fn reason(call: i64, args: &[u64; 6], state: u32, kind_of: impl Fn(i32) -> Option<FdKind>) -> Reason {
    if state & (STOPPED | FROZEN) != 0 {
        return Reason::Stopped;
    }
    if rules::futex_wait(call, args).is_some() {
        // In an uninterruptible state it waits for the kernel (a page of the word, memory), not for a thread.
        return if state & INTERRUPTIBLE != 0 {
            Reason::Futex
        } else {
            Reason::Other
        };
    }
    let fd = args[0] as i32;
    match call {
        i64::MIN..0 => Reason::PageFault,
        nr::RECVFROM | nr::RECVMSG | nr::RECVMMSG => Reason::SocketRead,
        nr::SENDTO | nr::SENDMSG | nr::SENDMMSG => Reason::SocketWrite,
        nr::ACCEPT | nr::ACCEPT4 => Reason::Accept,
        nr::CONNECT => Reason::Connect,
        nr::POLL
        | nr::PPOLL
        | nr::SELECT
        | nr::PSELECT6
        | nr::EPOLL_WAIT
        | nr::EPOLL_PWAIT
        | nr::EPOLL_PWAIT2 => Reason::Poll,
        nr::READ | nr::READV | nr::PREAD64 | nr::PREADV | nr::PREADV2 => {
            transfer(kind_of(fd), Reason::SocketRead)
        }
        nr::WRITE | nr::WRITEV | nr::PWRITE64 | nr::PWRITEV | nr::PWRITEV2 => {
            transfer(kind_of(fd), Reason::SocketWrite)
        }
        nr::SENDFILE => transfer(kind_of(fd), Reason::SocketWrite),
        nr::SPLICE | nr::TEE | nr::VMSPLICE => Reason::Pipe,
        nr::NANOSLEEP | nr::CLOCK_NANOSLEEP => Reason::Sleep,
        nr::WAIT4 | nr::WAITID | nr::VFORK => Reason::WaitChild,
        nr::CLONE if args[0] & CLONE_VFORK != 0 => Reason::WaitChild,
        nr::PAUSE | nr::RT_SIGSUSPEND | nr::RT_SIGTIMEDWAIT => Reason::Signal,
        nr::SEMOP | nr::SEMTIMEDOP | nr::MSGSND | nr::MSGRCV | nr::MQ_TIMEDSEND | nr::MQ_TIMEDRECEIVE => {
            Reason::Ipc
        }
        nr::IO_URING_ENTER => Reason::IoUring,
        nr::IO_GETEVENTS
        | nr::FSYNC
        | nr::FDATASYNC
        | nr::SYNC
        | nr::SYNCFS
        | nr::MSYNC
        | nr::SYNC_FILE_RANGE
        | nr::FALLOCATE
        | nr::OPEN
        | nr::OPENAT
        | nr::OPENAT2
        | nr::CREAT
        | nr::FLOCK
        | nr::GETDENTS
        | nr::GETDENTS64
        | nr::COPY_FILE_RANGE => Reason::FileIo,
        _ => Reason::Other,
    }
}

/// Reading and writing wait for what the descriptor is.
fn transfer(kind: Option<FdKind>, socket: Reason) -> Reason {
    match kind {
        Some(FdKind::Socket) => socket,
        Some(FdKind::File | FdKind::Memfd) => Reason::FileIo,
        Some(_) => Reason::Pipe,
        None => Reason::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(call: i64, args: [u64; 6], state: u32) -> Reason {
        reason(call, &args, state, |fd| (fd == 7).then_some(FdKind::Socket))
    }

    #[test]
    fn a_lock_wait_is_interruptible() {
        assert_eq!(of(nr::FUTEX, [0x1000, 128, 2, 0, 0, 0], 0x2001), Reason::Futex);
        assert_eq!(of(nr::FUTEX, [0x1000, 128, 2, 0, 0, 0], 2), Reason::Other);
        assert_eq!(
            of(nr::FUTEX, [0x1000, 129, 2, 0, 0, 0], 1),
            Reason::Other,
            "a wake does not wait"
        );
    }

    #[test]
    fn reads_wait_for_what_they_read() {
        assert_eq!(of(nr::READ, [7, 0, 0, 0, 0, 0], 1), Reason::SocketRead);
        assert_eq!(of(nr::WRITE, [7, 0, 0, 0, 0, 0], 1), Reason::SocketWrite);
        assert_eq!(of(nr::READ, [8, 0, 0, 0, 0, 0], 1), Reason::Other);
    }

    #[test]
    fn faults_and_stops_have_reasons_of_their_own() {
        assert_eq!(of(-1, [0; 6], 2), Reason::PageFault);
        assert_eq!(of(nr::READ, [7, 0, 0, 0, 0, 0], 4), Reason::Stopped);
    }
}
