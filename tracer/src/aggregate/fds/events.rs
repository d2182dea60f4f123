//! Records of the probes, one function each.

use tracer_ebpf::nr;
use tracer_ebpf::wire::{FdClose, FdOpen, FdRights, FdUring, fd_close};

use super::births::{self, Source};
use super::{FdTable, MAX_PRIVATE, RowKey};
use crate::aggregate::go_starts::AskerId;
use crate::report::model::FdKind;
use crate::stacks::StackId;

impl FdTable {
    /// A system call returned one descriptor or a pair.
    pub fn on_open(&mut self, event: &FdOpen, stack: StackId) {
        self.on_asked(event, stack, AskerId::NONE);
    }

    /// The same, when it is known who asked for the call.
    pub fn on_asked(&mut self, event: &FdOpen, stack: StackId, asker: AskerId) {
        let header = &event.header;
        if self.foreign(header.tid) {
            return;
        }
        let Some(source) = births::source(event.nr, &event.args) else {
            return;
        };
        let over = matches!(event.nr, nr::DUP2 | nr::DUP3);
        for fd in [event.fd, event.fd2] {
            self.birth(
                fd,
                header.ts_ns,
                RowKey::Stack(stack, asker),
                source,
                Some(event.nr),
                over,
            );
        }
    }

    /// A system call is about to close a number or a range. A number that is not open is harmless (`EBADF`).
    ///
    /// `CLOSE_RANGE_CLOEXEC` closes nothing yet. `CLOSE_RANGE_UNSHARE` gives the caller a table of its own first:
    /// when another thread than the leader asks for it, this table keeps all, and what that thread does later is
    /// not about this table; when the leader asks, `/proc/PID/fd` and we follow the leader, and if there were other
    /// threads, whose descriptors stay behind in the old table, no verdict is possible any more.
    pub fn on_close(&mut self, event: &FdClose) {
        let header = &event.header;
        // close_range(2): EINVAL, nothing closed.
        if self.foreign(header.tid)
            || event.first > event.last
            || event.flags & !(fd_close::UNSHARE | fd_close::CLOEXEC) != 0
        {
            return;
        }
        if event.flags & fd_close::UNSHARE != 0 {
            if header.tid != self.tgid {
                self.unshared(header.tid);
                return;
            }
            if self.other_threads {
                self.set_incomplete("the descriptor table was split by CLOSE_RANGE_UNSHARE");
            }
        }
        if event.flags & fd_close::CLOEXEC != 0 {
            return;
        }
        self.recent.push(header.ts_ns, event.first, event.last);
        let single = event.first == event.last;
        let span = u64::from(event.last - event.first);
        let holds = |fd: i32| fd >= 0 && (event.first..=event.last).contains(&(fd as u32));
        if single {
            self.death(event.first as i32, header.ts_ns);
        } else {
            self.candidates.retain(|&fd, _| !holds(fd));
            let doomed: Vec<i32> = if span < self.live.len() as u64 {
                (event.first..=event.last)
                    .filter_map(|fd| i32::try_from(fd).ok())
                    .filter(|fd| self.live.contains_key(fd))
                    .collect()
            } else {
                self.live.keys().copied().filter(|&fd| holds(fd)).collect()
            };
            for fd in doomed {
                self.death(fd, header.ts_ns);
            }
        }
    }

    /// `recvmsg` or `recvmmsg` brought descriptors, perhaps.
    pub fn on_rights(&mut self, event: &FdRights, stack: StackId) {
        if self.foreign(event.header.tid) {
            return;
        }
        for (fd, source) in births::rights(event) {
            self.birth(
                fd,
                event.header.ts_ns,
                RowKey::Stack(stack, AskerId::NONE),
                source,
                Some(event.nr),
                false,
            );
        }
    }

    /// An `io_uring` request completed, not a direct one. Of multishot accepts every completion comes here. Closes come as
    /// [`FdTable::on_close`].
    pub fn on_uring(&mut self, event: &FdUring, stack: StackId) {
        if self.foreign(event.header.tid) {
            return;
        }
        let Some(kind) = births::uring(event.opcode, event.result) else {
            return;
        };
        let source = if kind == FdKind::File {
            Source::Guess(kind)
        } else {
            Source::Made(kind)
        };
        let call = births::uring_call(event.opcode);
        self.birth(
            event.result,
            event.header.ts_ns,
            RowKey::Stack(stack, AskerId::NONE),
            source,
            Some(call),
            false,
        );
    }

    /// The process replaced its program: descriptors marked close-on-exec are gone. Which, the next scan shows;
    /// the caller takes it and reconciles soon. The table is no longer shared with anyone.
    pub fn on_exec(&mut self, ts_ns: u64) {
        self.exec_ns = Some(ts_ns);
        self.private.clear();
        self.other_threads = false;
    }

    /// The process ended: the kernel has closed everything.
    pub fn on_process_exit(&mut self, ts_ns: u64) {
        let open: Vec<i32> = self.live.keys().copied().collect();
        for fd in open {
            self.death(fd, ts_ns);
        }
        self.kernel_open = Some(0);
    }

    /// A thread ended; its number may be given to another.
    pub fn on_thread_exit(&mut self, tid: u32) {
        self.private.remove(&tid);
    }

    /// A thread got a table of its own (`unshare(CLONE_FILES)`): what it does is not about this one.
    pub fn unshared(&mut self, tid: u32) {
        if self.private.len() >= MAX_PRIVATE {
            self.set_incomplete("too many threads with a descriptor table of their own");
        } else {
            self.private.insert(tid);
        }
    }

    fn foreign(&mut self, tid: u32) -> bool {
        self.other_threads |= tid != self.tgid;
        !self.private.is_empty() && self.private.contains(&tid)
    }
}
