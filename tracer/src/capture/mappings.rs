//! Hears from the kernel what a process maps, as it maps it: a command may be gone before its `/proc/PID/maps` could be
//! read. A software event of perf that counts nothing, one per CPU, each with a small ring of its own.

mod records;

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use self::records::{Record, parse};
use crate::proc::maps::Change;

/// Bytes of records of one CPU: five hundred mappings between two looks.
const DATA: usize = 64 << 10;
/// The rings' own page comes first.
const PAGE: usize = 4096;
/// CPUs at most, as the kernel can be built for.
const MAX_CPUS: i32 = 8192;

/// `struct perf_event_attr` as of `PERF_ATTR_SIZE_VER3`, the first with a clock.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_watermark: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
}

const _: () = assert!(size_of::<Attributes>() == 96);

const TYPE_SOFTWARE: u32 = 1;
const COUNT_SW_DUMMY: u64 = 9;
const SAMPLE_TIME: u64 = 1 << 2;
const FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// Bits of [`Attributes::flags`].
mod flag {
    pub(super) const INHERIT: u64 = 1 << 1;
    pub(super) const EXCLUDE_KERNEL: u64 = 1 << 5;
    pub(super) const EXCLUDE_HV: u64 = 1 << 6;
    pub(super) const MMAP: u64 = 1 << 8;
    pub(super) const COMM: u64 = 1 << 9;
    pub(super) const WATERMARK: u64 = 1 << 14;
    pub(super) const SAMPLE_ID_ALL: u64 = 1 << 18;
    pub(super) const MMAP2: u64 = 1 << 23;
    pub(super) const COMM_EXEC: u64 = 1 << 24;
    pub(super) const USE_CLOCKID: u64 = 1 << 25;
    pub(super) const INHERIT_THREAD: u64 = 1 << 35;
}

/// What is heard of a process and all that it becomes. Nobody else hears less or pays for it, and it ends with this value.
#[derive(Default)]
pub struct Mappings {
    rings: Vec<Ring>,
    lost: u64,
    /// Reused: bytes of one ring, and records of all.
    bytes: Vec<u8>,
    changes: Vec<Change>,
}

impl Mappings {
    /// Hears of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Hears of executable mappings that a thread makes, and the threads that it makes from now on, and, with `follow`, the
    /// processes.
    pub fn watch(&mut self, tid: u32, follow: bool) -> io::Result<()> {
        let tid = libc::pid_t::try_from(tid).map_err(io::Error::other)?;
        let inherit = flag::INHERIT | if follow { 0 } else { flag::INHERIT_THREAD };
        self.open(tid, inherit)
    }

    /// Hears of executable mappings that any process makes.
    pub fn watch_host(&mut self) -> io::Result<()> {
        self.open(-1, 0)
    }

    fn open(&mut self, pid: libc::pid_t, flags: u64) -> io::Result<()> {
        // SAFETY: sysconf(3) reads a number.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
        let cpus = i32::try_from(cpus).unwrap_or(1).clamp(1, MAX_CPUS);
        let mut rings = Vec::new();
        for cpu in 0..cpus {
            match Ring::open(pid, cpu, flags) {
                Ok(ring) => rings.push(ring),
                // A CPU that is off.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        if rings.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.rings.extend(rings);
        Ok(())
    }

    /// Rings open.
    #[must_use]
    pub fn rings(&self) -> usize {
        self.rings.len()
    }

    /// Hands on what has been heard since the last time, in order of time.
    pub fn drain(&mut self, each: impl FnMut(Change)) {
        for ring in &mut self.rings {
            self.bytes.clear();
            let whole = ring.take(&mut self.bytes)
                && parse(&self.bytes, |record| match record {
                    Record::Change(change) => self.changes.push(change),
                    Record::Lost(count) => self.lost = self.lost.saturating_add(count),
                });
            if !whole {
                self.lost = self.lost.saturating_add(1);
            }
        }
        self.changes.sort_by_key(|change| change.ts_ns);
        self.changes.drain(..).for_each(each);
    }

    /// Records that did not fit into a ring, or were not whole.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }
}

/// The ring of one CPU.
struct Ring {
    /// [`PAGE`] of control, then [`DATA`] of records.
    memory: NonNull<u8>,
    _event: OwnedFd,
}

impl Ring {
    fn open(pid: libc::pid_t, cpu: i32, flags: u64) -> io::Result<Self> {
        let event = open_event(pid, cpu, flags)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE + DATA,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            memory,
            _event: event,
        })
    }

    /// A field of the control page: `struct perf_event_mmap_page` has its head and tail from 1 KiB on.
    fn control(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `at` is one of the two below, inside the page and aligned; the mapping lives as long as `self`, and the
        // kernel too accesses these fields as whole words.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(at).cast()) }
    }

    fn head(&self) -> &AtomicU64 {
        self.control(1024)
    }

    fn tail(&self) -> &AtomicU64 {
        self.control(1032)
    }

    /// Moves all that is in the ring to the end of `into`. False when head and tail contradict each other.
    fn take(&mut self, into: &mut Vec<u8>) -> bool {
        let (head, tail) = (
            self.head().load(Ordering::Acquire),
            self.tail().load(Ordering::Relaxed),
        );
        let len = head.wrapping_sub(tail) as usize;
        let fits = len <= DATA;
        if fits && len > 0 {
            let at = tail as usize % DATA;
            let first = len.min(DATA - at);
            into.reserve(len);
            for (from, len) in [(at, first), (0, len - first)] {
                // SAFETY: both runs lie inside the data area, which is mapped as long as `self` lives; the kernel writes
                // nothing between tail and head until the tail is moved below. The room was reserved above.
                unsafe {
                    let from = self.memory.as_ptr().add(PAGE + from);
                    std::ptr::copy_nonoverlapping(from, into.as_mut_ptr().add(into.len()), len);
                    into.set_len(into.len() + len);
                }
            }
        }
        self.tail().store(head, Ordering::Release);
        fits
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`, which nobody uses any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), PAGE + DATA) };
    }
}

fn open_event(pid: libc::pid_t, cpu: i32, flags: u64) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: TYPE_SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config: COUNT_SW_DUMMY,
        sample_type: SAMPLE_TIME,
        flags: flags
            | flag::EXCLUDE_KERNEL
            | flag::EXCLUDE_HV
            | flag::MMAP
            | flag::MMAP2
            | flag::COMM
            | flag::COMM_EXEC
            | flag::SAMPLE_ID_ALL
            | flag::USE_CLOCKID
            | flag::WATERMARK,
        wakeup_watermark: DATA as u32,
        clockid: libc::CLOCK_MONOTONIC,
        ..Attributes::default()
    };
    let no_group: libc::c_int = -1;
    // SAFETY: perf_event_open(2) reads a struct of the size that it names; a new descriptor is returned, or -1.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            pid,
            cpu,
            no_group,
            FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        process::{Command, Stdio},
        time::Duration,
    };

    use super::*;
    use crate::{
        proc::{host::monotonic_ns, maps::What},
        testing::skip,
    };

    /// A shell that waits for a line, then becomes another program.
    #[test]
    fn a_program_that_has_gone_was_heard() {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "read line; exec /bin/cat /dev/null"]);
        let mut shell = shell.stdin(Stdio::piped()).spawn().unwrap();
        let mut mappings = Mappings::new();
        if let Err(error) = mappings.watch(shell.id(), false) {
            shell.kill().unwrap();
            shell.wait().unwrap();
            skip(&error);
            return;
        }
        let before = monotonic_ns();
        shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
        assert!(shell.wait().unwrap().success());
        let after = monotonic_ns();
        let mut changes = Vec::new();
        mappings.drain(|change| changes.push(change));
        assert_eq!(mappings.lost(), 0);
        assert!(changes.is_sorted_by_key(|change| change.ts_ns));
        assert!(changes.iter().all(|change| change.tgid == shell.id()));
        assert!(
            changes
                .iter()
                .all(|change| (before..after).contains(&change.ts_ns))
        );
        let exec = changes.iter().position(|change| change.what == What::Exec);
        let names: Vec<_> = changes[exec.unwrap()..]
            .iter()
            .filter_map(|change| match &change.what {
                What::Mapped(map) if map.exec => Some(&*map.name),
                _ => None,
            })
            .collect();
        for name in ["/cat", "/ld-", "/libc", "[vdso]"] {
            assert!(names.iter().any(|n| n.contains(name)), "{name}: {names:?}");
        }
        mappings.drain(|change| panic!("again: {change:?}"));
    }

    /// Records go round the rings' ends many times. Then more than a ring holds: counted, and what is told is whole.
    #[test]
    fn what_does_not_fit_is_counted() {
        let script = "
            for programs in 1000 2000 200; do
                read line
                for i in $(seq $programs); do /bin/true; done
                echo done
            done
            read line";
        let mut shell = Command::new("/bin/sh");
        let mut shell = shell
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut mappings = Mappings::new();
        if let Err(error) = mappings.watch(shell.id(), true) {
            skip(&error);
            shell.kill().unwrap();
            shell.wait().unwrap();
            return;
        }
        let mut stdin = shell.stdin.take().unwrap();
        let mut begin = || stdin.write_all(b"go\n").unwrap();
        let mut said = BufReader::new(shell.stdout.take().unwrap()).lines();
        let mut ended = || assert_eq!(said.next().unwrap().unwrap(), "done");
        let mut execs = 0;
        begin();
        // `seq`, then its thousand.
        while execs < 1001 && mappings.lost() == 0 {
            mappings.drain(|change| execs += u32::from(change.what == What::Exec));
            std::thread::sleep(Duration::from_millis(5));
        }
        ended();
        let (told, lost) = (execs, mappings.lost());
        println!("{told} programs, {lost} records lost");
        // Nobody drains while twice as many run.
        begin();
        ended();
        mappings.drain(|_| ());
        // The loss is told, by each CPU for itself, once there is room again and something to tell.
        begin();
        ended();
        drop(stdin);
        shell.wait().unwrap();
        mappings.drain(|_| ());
        println!("then {} records lost", mappings.lost() - lost);
        assert!(mappings.lost() > lost);
    }
}
