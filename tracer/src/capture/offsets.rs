//! What the probes must know of kernel structs, from the running kernel's BTF: Rust emits no field relocations.

use anyhow::{Context as _, Result, bail};
use btf_rs::{Btf, Type};

/// Offsets in bytes; 0 where the field does not exist on this kernel and may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.pid`.
    pub task_pid: u32,
    /// `task_struct.tgid`.
    pub task_tgid: u32,
    /// The set in `task_struct.pending`.
    pub task_pending: u32,
    /// `task_struct.blocked`.
    pub task_blocked: u32,
    /// `task_struct.signal`.
    pub task_signal: u32,
    /// The set in `signal_struct.shared_pending`.
    pub signal_shared: u32,
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

/// Where kernels keep their BTF.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

impl Offsets {
    /// Reads them from the running kernel's BTF.
    pub fn of_this_kernel() -> Result<Self> {
        let btf = Btf::from_file(BTF).with_context(|| {
            format!("cannot read {BTF}: ctrace needs a kernel built with CONFIG_DEBUG_INFO_BTF=y (most distributions' are)")
        })?;
        let needed = |owner, field| {
            member(&btf, owner, field)
                .with_context(|| format!("the kernel's BTF has no {owner}.{field}; is {BTF} this kernel's?"))
        };
        let task = |field| needed("task_struct", field);
        let set = needed("sigpending", "signal")?;
        let optional = |owner, field| member(&btf, owner, field).unwrap_or(0);
        Ok(Self {
            task_pid: task("pid")?,
            task_tgid: task("tgid")?,
            task_pending: task("pending")? + set,
            task_blocked: task("blocked")?,
            task_signal: task("signal")?,
            signal_shared: needed("signal_struct", "shared_pending")? + set,
            uring_open: optional("io_open", "file_slot"),
            uring_accept: optional("io_accept", "file_slot"),
            uring_socket: optional("io_socket", "file_slot"),
            uring_close: optional("io_close", "file_slot"),
            uring_close_fd: optional("io_close", "fd"),
        })
    }
}

/// Byte offset of a direct member of a struct.
fn member(btf: &Btf, owner: &str, field: &str) -> Result<u32> {
    for candidate in btf
        .resolve_types_by_name(owner)
        .map_err(|error| anyhow::anyhow!("{error}"))?
    {
        let Type::Struct(owner) = candidate else { continue };
        for candidate in &owner.members {
            if btf.resolve_name(candidate).is_ok_and(|name| name == field) {
                return Ok(candidate.bit_offset() / 8);
            }
        }
    }
    bail!("no {owner}.{field}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_what_the_probes_need() {
        let offsets = Offsets::of_this_kernel().unwrap();
        assert!(offsets.task_pid > 0);
        assert_eq!(offsets.task_tgid, offsets.task_pid + 4, "neighbours since 2.6");
    }
}
