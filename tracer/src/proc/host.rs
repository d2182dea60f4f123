//! The machine, and our own process on it.

use std::{ffi::CStr, mem::MaybeUninit, time::Duration};

use crate::report::model::Host;

/// Describes the machine.
#[must_use]
pub fn host() -> Host {
    let mut names = MaybeUninit::<libc::utsname>::zeroed();
    // SAFETY: uname(2) fills the struct, which was zeroed in case it fails.
    let names = unsafe {
        libc::uname(names.as_mut_ptr());
        names.assume_init()
    };
    let text = |field: &[libc::c_char]| {
        // SAFETY: the kernel ends each field with a NUL, and zeroed memory is one.
        unsafe { CStr::from_ptr(field.as_ptr()) }
            .to_string_lossy()
            .into_owned()
    };
    // SAFETY: sysconf(3) reads a number.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    Host {
        hostname: text(&names.nodename),
        kernel: text(&names.release),
        arch: text(&names.machine),
        cpus: u32::try_from(cpus).unwrap_or(1),
    }
}

/// A clock in ns.
fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime(2) fills the struct.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    (time.tv_sec as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec as u64)
}

/// `CLOCK_MONOTONIC`, the clock of all events.
#[must_use]
pub fn monotonic_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`.
#[must_use]
pub fn realtime_offset_ns() -> i64 {
    clock(libc::CLOCK_REALTIME) as i64 - monotonic_ns() as i64
}

/// CPU time of this process, user and system.
#[must_use]
pub fn own_cpu() -> Duration {
    Duration::from_nanos(clock(libc::CLOCK_PROCESS_CPUTIME_ID))
}

/// Resident memory of this process.
#[must_use]
pub fn own_rss_bytes() -> u64 {
    let pages: u64 = super::target::read("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_ascii_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0);
    // SAFETY: sysconf(3) reads a constant.
    pages * u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
