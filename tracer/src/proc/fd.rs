//! Descriptors open now: `/proc/PID/fd` (`proc_pid_fd(5)`, `fs/proc/fd.c`).
//!
//! What is read belongs to somebody else and changes while it is read: numbers vanish between the listing and
//! the link, link text is whatever the target named its files. So nothing is trusted, all is bounded, and the
//! scan says when it began and ended, for the reader to leave out what changed in between.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::report::model::FdKind;

/// Most descriptors listed: the kernel's default `fs.nr_open`. More make a scan incomplete.
pub const MAX_ENTRIES: usize = 1 << 20;
/// Most bytes of a link that are kept: `PATH_MAX`.
const MAX_LINK: usize = 4096;
/// Most threads asked when the first one has no descriptors left.
const MAX_TASKS: usize = 64;

/// The descriptors of one table, as they were at some moment between `started_ns` and `ended_ns`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdScan {
    /// `CLOCK_MONOTONIC` just before the first entry was read, in ns.
    pub started_ns: u64,
    /// `CLOCK_MONOTONIC` just after the last entry was read, in ns.
    pub ended_ns: u64,
    /// What was open, by number.
    pub entries: Vec<FdEntry>,
    /// All was listed: a number that is absent was closed.
    pub complete: bool,
}

/// One descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdEntry {
    /// Its number.
    pub fd: i32,
    /// What it is.
    pub kind: FdKind,
    /// Inode of the socket, pipe, namespace or file; `None` for anonymous kinds, which share one, and when it
    /// could not be read.
    pub inode: Option<u64>,
    /// Text of the link; `None` when it could not be read.
    pub target: Option<String>,
}

/// Lists the descriptors of `pid`, with `clock` telling `CLOCK_MONOTONIC` in ns.
///
/// A leader that ended while other threads go on has no table any more: then the first thread that has one is
/// asked. Nothing here can block on a hung file system: links are read without touching their file, and inodes
/// by statx(2) with `AT_STATX_DONT_SYNC`.
pub fn scan(pid: u32, clock: fn() -> u64) -> io::Result<FdScan> {
    let of_leader = scan_dir(&format!("/proc/{pid}/fd"), clock);
    if matches!(&of_leader, Ok(scan) if !scan.entries.is_empty()) {
        return of_leader;
    }
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return of_leader;
    };
    tasks
        .take(MAX_TASKS)
        .flatten()
        .filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&tid| tid != pid)
        .filter_map(|tid| scan_dir(&format!("/proc/{pid}/task/{tid}/fd"), clock).ok())
        .find(|scan| !scan.entries.is_empty())
        .map_or(of_leader, Ok)
}

fn scan_dir(path: &str, clock: fn() -> u64) -> io::Result<FdScan> {
    let dir = File::open(path)?;
    let started_ns = clock();
    let (numbers, mut complete) = list(dir.as_raw_fd())?;
    let mut entries = Vec::with_capacity(numbers.len());
    for fd in numbers {
        match entry(dir.as_raw_fd(), fd) {
            Ok(found) => entries.push(found),
            // Closed since it was listed.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            // The process is gone: what was listed no longer says anything.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => complete = false,
            Err(_) => entries.push(FdEntry {
                fd,
                kind: FdKind::Other,
                inode: None,
                target: None,
            }),
        }
    }
    entries.sort_unstable_by_key(|entry| entry.fd);
    entries.dedup_by_key(|entry| entry.fd);
    Ok(FdScan {
        started_ns,
        ended_ns: clock(),
        entries,
        complete,
    })
}

/// Numbers in the open directory `dir`, and whether that is all of them.
fn list(dir: RawFd) -> io::Result<(Vec<i32>, bool)> {
    let mut numbers = Vec::new();
    let mut buffer = vec![0_u8; 64 << 10];
    loop {
        // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which lives through the call.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), buffer.len()) };
        if read < 0 {
            return Err(io::Error::last_os_error());
        }
        if read == 0 {
            return Ok((numbers, true));
        }
        let mut rest = &buffer[..(read as usize).min(buffer.len())];
        while let Some((number, next)) = dirent(rest) {
            numbers.extend(number);
            rest = next;
        }
        if numbers.len() > MAX_ENTRIES {
            numbers.truncate(MAX_ENTRIES);
            return Ok((numbers, false));
        }
    }
}

/// Number named by the `struct linux_dirent64` at the front (none for `.` and `..`), and the bytes after it.
fn dirent(bytes: &[u8]) -> Option<(Option<i32>, &[u8])> {
    /// Offset of `d_reclen` and of `d_name` (getdents64(2)).
    const RECLEN: usize = 16;
    const NAME: usize = 19;
    let length = usize::from(u16::from_ne_bytes([*bytes.get(RECLEN)?, *bytes.get(RECLEN + 1)?]));
    let name = bytes.get(NAME..length)?;
    let name = name.split(|&byte| byte == 0).next()?;
    let number = std::str::from_utf8(name)
        .ok()
        .and_then(|name| name.parse::<i32>().ok());
    Some((number.filter(|&fd| fd >= 0), &bytes[length..]))
}

fn entry(dir: RawFd, fd: i32) -> io::Result<FdEntry> {
    let name = CString::new(fd.to_string())?;
    let mut link = [0_u8; MAX_LINK];
    // SAFETY: `name` is NUL-terminated, and the kernel writes at most `link.len()` bytes to `link`.
    let read = unsafe { libc::readlinkat(dir, name.as_ptr(), link.as_mut_ptr().cast(), link.len()) };
    if read < 0 {
        return Err(io::Error::last_os_error());
    }
    let target = String::from_utf8_lossy(&link[..(read as usize).min(MAX_LINK)]).into_owned();
    let mut kind = kind_of(&target);
    let mut inode = inode_of(&target);
    if target.starts_with('/')
        && let Some((found, fifo)) = stat(dir, &name)
    {
        inode = Some(found);
        if fifo {
            kind = FdKind::Pipe;
        }
    }
    Ok(FdEntry {
        fd,
        kind,
        inode,
        target: Some(target),
    })
}

/// Inode behind the link, and whether it is a FIFO; `None` when even the cached answer is refused.
fn stat(dir: RawFd, name: &CString) -> Option<(u64, bool)> {
    // SAFETY: all-zero is a valid `statx`, a struct of integers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_INO | libc::STATX_TYPE;
    // SAFETY: `name` is NUL-terminated, `found` is a `statx` that lives through the call.
    let failed = unsafe { libc::statx(dir, name.as_ptr(), libc::AT_STATX_DONT_SYNC, mask, &raw mut found) };
    (failed == 0).then(|| {
        (
            found.stx_ino,
            u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFIFO,
        )
    })
}

/// Kind that the text of a `/proc/PID/fd` link tells: `socket:[1]`, `anon_inode:[eventfd]`, `/memfd:x (deleted)`,
/// a path. Names of anonymous inodes: `anon_inode_getfd` and its callers in the kernel.
pub fn kind_of(target: &str) -> FdKind {
    if let Some(name) = target.strip_prefix("anon_inode:") {
        let name = name.trim_start_matches('[').trim_end_matches(']');
        return match name {
            "eventfd" => FdKind::Eventfd,
            "eventpoll" => FdKind::Epoll,
            "timerfd" => FdKind::Timerfd,
            "signalfd" => FdKind::Signalfd,
            "inotify" => FdKind::Inotify,
            "fanotify" => FdKind::Fanotify,
            "pidfd" => FdKind::Pidfd,
            "perf_event" => FdKind::PerfEvent,
            "userfaultfd" => FdKind::Userfaultfd,
            "io_uring" => FdKind::IoUring,
            "fscontext" => FdKind::Mount,
            "btf" => FdKind::Bpf,
            name if name.starts_with("bpf") => FdKind::Bpf,
            _ => FdKind::Other,
        };
    }
    if target.starts_with('/') {
        return if target.starts_with("/memfd:") || target.starts_with("/secretmem") {
            FdKind::Memfd
        } else if target.starts_with("/dev/mqueue/") {
            FdKind::Mqueue
        } else {
            FdKind::File
        };
    }
    match target.split_once(":[") {
        Some(("socket", _)) => FdKind::Socket,
        Some(("pipe", _)) => FdKind::Pipe,
        Some(("pidfd", _)) => FdKind::Pidfd,
        // Namespaces (`mnt:[…]`, `net:[…]`), sync files, dma-bufs, …
        _ => FdKind::Other,
    }
}

/// Inode in a link such as `socket:[4711]`.
fn inode_of(target: &str) -> Option<u64> {
    if target.starts_with("anon_inode:") {
        return None;
    }
    target.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
#[path = "fd_tests.rs"]
mod tests;
