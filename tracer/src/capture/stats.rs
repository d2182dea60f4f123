//! What the probes cost: the kernel's run-time statistics of our programs.

use std::{
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::sys::{Stats, enable_stats};

/// Front of `struct bpf_prog_info` up to `verified_insns` (`include/uapi/linux/bpf.h`).
#[repr(C)]
#[derive(Clone, Copy)]
struct ProgInfo {
    before: [u8; 192],
    run_time_ns: u64,
    run_cnt: u64,
    recursion_misses: u64,
    verified_insns: u32,
    pad: u32,
}

/// The kernel's account of one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Time in it, while statistics were on.
    pub run_ns: u64,
    /// Runs, while statistics were on.
    pub runs: u64,
    /// Runs skipped because it was running already on that CPU.
    pub missed: u64,
}

const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// Reads a program's account; `None` when the kernel refuses.
#[must_use]
pub fn run_stats(program: BorrowedFd<'_>) -> Option<RunStats> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = ProgInfo {
        before: [0; 192],
        run_time_ns: 0,
        run_cnt: 0,
        recursion_misses: 0,
        verified_insns: 0,
        pad: 0,
    };
    let attr = Attr {
        fd: program.as_raw_fd() as u32,
        len: size_of::<ProgInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: bpf(2) with an attribute of the stated size that points to a buffer of the stated length.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw const attr,
            size_of::<Attr>(),
        )
    };
    (result == 0).then_some(RunStats {
        run_ns: info.run_time_ns,
        runs: info.run_cnt,
        missed: info.recursion_misses,
    })
}

/// Switches the kernel's statistics on while it lives; they go off when the descriptor does, at the latest with us.
#[derive(Debug)]
pub struct StatsOn {
    _fd: OwnedFd,
}

impl StatsOn {
    /// `None` when the privileges do not reach (`CAP_SYS_ADMIN`).
    #[must_use]
    pub fn enable() -> Option<Self> {
        enable_stats(Stats::RunTime).ok().map(|fd| Self { _fd: fd })
    }
}
