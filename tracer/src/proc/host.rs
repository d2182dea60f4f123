//! The machine, and our own process on it.

use std::{collections::BTreeMap, ffi::CStr, fs, mem::MaybeUninit, path::Path, time::Duration};

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

/// Our own memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident, without the mappings of eBPF maps: a ring is mapped twice over and whole, so that it would count double.
    pub rss_bytes: u64,
    /// Those mappings.
    pub mapped_bytes: u64,
    /// What the eBPF maps take in the kernel, each counted once; `None` when it does not say.
    pub maps_bytes: Option<u64>,
}

/// Measures our own memory.
#[must_use]
pub fn own_memory() -> Memory {
    let mapped_bytes = super::target::read("/proc/self/smaps").map_or(0, |smaps| mapped_maps(&smaps));
    Memory {
        rss_bytes: own_rss_bytes().saturating_sub(mapped_bytes),
        mapped_bytes,
        maps_bytes: maps_bytes(),
    }
}

/// Resident bytes of mappings of eBPF maps, by `/proc/PID/smaps`.
fn mapped_maps(smaps: &str) -> u64 {
    let mut of_a_map = false;
    let mut kib = 0;
    for line in smaps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            if of_a_map {
                kib += rss.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            }
        } else if line.starts_with(|first: char| first.is_ascii_digit() || first.is_ascii_lowercase()) {
            of_a_map = line.ends_with("anon_inode:bpf-map");
        }
    }
    kib * 1024
}

/// Sum of `memlock` over the eBPF maps whose descriptors we hold.
fn maps_bytes() -> Option<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd").ok()?.flatten() {
        // Asked first what it is: there may be thousands of files open.
        let is_map = fs::read_link(entry.path()).is_ok_and(|link| link == Path::new("anon_inode:bpf-map"));
        if !is_map {
            continue;
        }
        let info = format!("/proc/self/fdinfo/{}", entry.file_name().to_string_lossy());
        let info = super::target::read(&info).ok()?;
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        maps.insert(field("map_id:")?, field("memlock:")?);
    }
    Some(maps.values().sum())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_counts_once() {
        let smaps = "\
7f00-7f80 r--s 00001000 00:0f 14                         anon_inode:bpf-map
Size:              32772 kB
Rss:               32772 kB
VmFlags: rd sh mr
55aa-55bb rw-p 00000000 00:00 0                          [heap]
Rss:                1023 kB
7fa0-7fb0 rw-s 00000000 00:0f 14                         anon_inode:bpf-map
Rss:                   4 kB
";
        assert_eq!(mapped_maps(smaps), 32_776 * 1024);
        assert_eq!(mapped_maps(""), 0);
    }

    #[test]
    fn we_have_memory_and_no_maps() {
        let memory = own_memory();
        assert!(memory.rss_bytes > 1 << 20);
        assert_eq!(memory.maps_bytes, Some(0));
    }
}
