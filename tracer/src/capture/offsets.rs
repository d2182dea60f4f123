//! What the probes must know of kernel structs, from the running kernel's BTF: Rust emits no field relocations.

use anyhow::{Context as _, Result};

use super::btf::{BTF, KernelBtf, Kind};

/// Offsets in bytes; 0 where the field does not exist on this kernel and may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.pid`.
    pub task_pid: u32,
    /// `task_struct.tgid`.
    pub task_tgid: u32,
    /// `task_struct.bpf_storage`.
    pub task_storage: u32,
    /// The set in `task_struct.pending`.
    pub task_pending: u32,
    /// `task_struct.blocked`.
    pub task_blocked: u32,
    /// `task_struct.signal`.
    pub task_signal: u32,
    /// The set in `signal_struct.shared_pending`.
    pub signal_shared: u32,
    /// `task_struct.se.sum_exec_runtime`.
    pub task_ran: u32,
    /// `task_struct.se.prev_sum_exec_runtime`: the same when it last got a CPU.
    pub task_ran_before: u32,
    /// `task_struct.thread.fsbase`; 0 where there is none.
    pub task_fsbase: u32,
    /// `io_open.file_slot`: a request's private data begin at the request's first byte.
    pub uring_open: u32,
    /// `io_accept.file_slot`.
    pub uring_accept: u32,
    /// `io_socket.file_slot`.
    pub uring_socket: u32,
    /// `io_close.file_slot`.
    pub uring_close: u32,
    /// `io_close.fd`.
    pub uring_close_fd: u32,
}

/// Structs whose members are needed, for [`KernelBtf::read`].
pub const STRUCTS: [(Kind, &str); 9] = [
    (Kind::Struct, "task_struct"),
    (Kind::Struct, "sched_entity"),
    (Kind::Struct, "sigpending"),
    (Kind::Struct, "signal_struct"),
    (Kind::Struct, "thread_struct"),
    (Kind::Struct, "io_open"),
    (Kind::Struct, "io_accept"),
    (Kind::Struct, "io_socket"),
    (Kind::Struct, "io_close"),
];

impl Offsets {
    /// Takes them from the running kernel's BTF, read for [`STRUCTS`].
    pub fn new(btf: &KernelBtf) -> Result<Self> {
        let needed = |owner, field| {
            btf.member(owner, field)
                .with_context(|| format!("the kernel's BTF has no {owner}.{field}; is {BTF} this kernel's?"))
        };
        let task = |field| needed("task_struct", field);
        let set = needed("sigpending", "signal")?;
        let entity = task("se")?;
        let optional = |owner, field| btf.member(owner, field).unwrap_or(0);
        let fsbase = btf
            .member("task_struct", "thread")
            .zip(btf.member("thread_struct", "fsbase"))
            .map_or(0, |(thread, base)| thread + base);
        Ok(Self {
            task_pid: task("pid")?,
            task_tgid: task("tgid")?,
            task_storage: optional("task_struct", "bpf_storage"),
            task_pending: task("pending")? + set,
            task_blocked: task("blocked")?,
            task_signal: task("signal")?,
            signal_shared: needed("signal_struct", "shared_pending")? + set,
            task_ran: entity + needed("sched_entity", "sum_exec_runtime")?,
            task_ran_before: entity + needed("sched_entity", "prev_sum_exec_runtime")?,
            task_fsbase: fsbase,
            uring_open: optional("io_open", "file_slot"),
            uring_accept: optional("io_accept", "file_slot"),
            uring_socket: optional("io_socket", "file_slot"),
            uring_close: optional("io_close", "file_slot"),
            uring_close_fd: optional("io_close", "fd"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_what_the_probes_need() {
        let offsets = Offsets::new(&KernelBtf::read(&STRUCTS).unwrap()).unwrap();
        assert!(offsets.task_pid > 0);
        assert_eq!(offsets.task_tgid, offsets.task_pid + 4, "neighbours since 2.6");
    }
}
