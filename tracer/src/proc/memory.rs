//! A process's resident memory: how much, of what kind, and how much more it may take.

use std::{cell::OnceCell, fs::File, os::unix::fs::FileExt as _};

use rustc_hash::FxHashMap;

use super::{
    cgroup::{Cgroup, cgroups},
    target::read,
};

/// Size of a page.
pub const PAGE: u64 = 4096;
/// Size of a huge page, and pages in it.
const HUGE: u64 = 2 << 20;
const HUGE_PAGES: u64 = HUGE / PAGE;
/// Page maps kept open.
const FILES_MAX: usize = 4096;
/// Cgroups above one another that are looked at.
const ABOVE_MAX: usize = 64;

/// Resident memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// All of it.
    pub all: u64,
    /// What is neither a file's nor shared (the kernel calls it anonymous), and what of it was swapped out: what comes back from there is no growth.
    pub own: u64,
}

/// Resident memory of a process, from `/proc/PID/status`; `None` when its leader has ended.
#[must_use]
pub fn resident(pid: u32) -> Option<Resident> {
    parse_status(&read(&format!("/proc/{pid}/status")).ok()?)
}

fn parse_status(text: &str) -> Option<Resident> {
    let kib = |name| value_of(text, name).map(|kib| kib.saturating_mul(1024));
    Some(Resident {
        all: kib("VmRSS:")?,
        own: kib("RssAnon:")?.saturating_add(kib("VmSwap:").unwrap_or(0)),
    })
}

/// How much more memory a process may take before a cgroup's limit or the host's end is reached.
#[must_use]
pub fn room(pid: u32) -> Option<u64> {
    let host = read("/proc/meminfo")
        .ok()
        .and_then(|text| value_of(&text, "MemAvailable:"))
        .map(|kib| kib.saturating_mul(1024));
    let of_cgroups = cgroups(pid, "memory").into_iter().filter_map(|lowest| {
        std::iter::successors(Some(lowest), Cgroup::parent)
            .take(ABOVE_MAX)
            .filter_map(|cgroup| room_in(&cgroup))
            .min()
    });
    host.into_iter().chain(of_cgroups).min()
}

/// Below the cgroup's own limit; what the kernel can drop counts as free.
fn room_in(cgroup: &Cgroup) -> Option<u64> {
    let (limit, used, caches) = if cgroup.unified {
        (
            "memory.max",
            "memory.current",
            ["inactive_file ", "active_file ", "slab_reclaimable "],
        )
    } else {
        (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ["total_inactive_file ", "total_active_file ", "slab_reclaimable "],
        )
    };
    let number = |file| cgroup.read(file)?.trim().parse::<u64>().ok();
    let text = cgroup.read("memory.stat").unwrap_or_default();
    let cached: u64 = caches.into_iter().filter_map(|name| value_of(&text, name)).sum();
    Some(number(limit)?.saturating_sub(number(used)?.saturating_sub(cached)))
}

/// The number in the line that begins so.
fn value_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// What is at a page's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Nothing, or nothing of the process's own: memory of a file, or shared.
    Other,
    /// Memory of its own, of this size: that of one fault.
    Own(u64),
}

/// Page maps of processes (`/proc/PID/pagemap`), each of one program image: the kernel keeps to the memory that was there when the file
/// was opened.
#[derive(Debug, Default)]
pub struct Pagemaps {
    files: FxHashMap<u32, File>,
    /// The frame that stands for all memory that was read and never written, where frames are shown.
    zeros: OnceCell<Option<u64>>,
}

/// Bits of an entry.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
/// The frame's number; 0 where we may not see it.
const FRAME: u64 = (1 << 55) - 1;

impl Pagemaps {
    /// What is at this page, a number of pages from address 0.
    pub fn look(&mut self, pid: u32, page: u64) -> Page {
        let zeros = self.zeros();
        let Some(file) = self.file(pid) else {
            return Page::Other;
        };
        let Some(entry) = entry(file, page).filter(|&entry| is_own(entry, zeros)) else {
            return Page::Other;
        };
        let first = page - page % HUGE_PAGES;
        let around = [first, first + HUGE_PAGES - 1].map(|page| entry_frame(file, page));
        let frame = frame_of(entry).map(|frame| frame.wrapping_sub(page - first));
        Page::Own(if is_huge(frame, around) { HUGE } else { PAGE })
    }

    /// Whether memory of its own is still there.
    pub fn is_own(&mut self, pid: u32, page: u64) -> bool {
        let zeros = self.zeros();
        self.file(pid)
            .and_then(|file| entry(file, page))
            .is_some_and(|entry| is_own(entry, zeros))
    }

    fn zeros(&self) -> Option<u64> {
        *self.zeros.get_or_init(frame_of_zeros)
    }

    /// The process has another program image, or has ended.
    pub fn forget(&mut self, pid: u32) {
        self.files.remove(&pid);
    }

    fn file(&mut self, pid: u32) -> Option<&File> {
        if !self.files.contains_key(&pid) {
            if self.files.len() >= FILES_MAX
                && let Some(&other) = self.files.keys().next()
            {
                self.files.remove(&other);
            }
            self.files
                .insert(pid, File::open(format!("/proc/{pid}/pagemap")).ok()?);
        }
        self.files.get(&pid)
    }
}

fn entry(file: &File, page: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, page.checked_mul(8)?).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

fn is_own(entry: u64, zeros: Option<u64>) -> bool {
    let of_zeros = zeros.is_some() && frame_of(entry) == zeros;
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 && !of_zeros
}

/// Known by memory of this process that is read and never written: so much that any allocator takes it from the kernel, which gives all pages
/// the same frame.
fn frame_of_zeros() -> Option<u64> {
    let never_written = vec![0u8; UNWRITTEN];
    let file = File::open("/proc/self/pagemap").ok()?;
    let frame = |at: usize| {
        let byte = never_written.get(at)?;
        std::hint::black_box(*byte);
        entry_frame(&file, std::ptr::from_ref(byte) as u64 / PAGE)
    };
    frame(UNWRITTEN / 4).filter(|&found| frame(UNWRITTEN / 2 + PAGE as usize) == Some(found))
}

/// More than any allocator keeps at hand; none of it is ever resident.
const UNWRITTEN: usize = 64 << 20;

fn frame_of(entry: u64) -> Option<u64> {
    let frame = entry & FRAME;
    (entry & PRESENT != 0 && frame != 0).then_some(frame)
}

fn entry_frame(file: &File, page: u64) -> Option<u64> {
    frame_of(entry(file, page)?)
}

/// The frames of a huge page's first and last small one are aligned to it and as far from each other as they must be; `frame` is where the
/// first one is by what was touched.
fn is_huge(frame: Option<u64>, [first, last]: [Option<u64>; 2]) -> bool {
    first.is_some_and(|first| {
        first % HUGE_PAGES == 0 && frame == Some(first) && last == Some(first + HUGE_PAGES - 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_swapped_out_is_own() {
        let text = "Name:\tx\nVmRSS:\t    300 kB\nRssAnon:\t 200 kB\nRssFile:\t 100 kB\nVmSwap:\t 50 kB\n";
        let found = parse_status(text).unwrap();
        assert_eq!((found.all, found.own), (300 << 10, 250 << 10));
        // A kernel thread, and one whose leader has ended.
        assert_eq!(parse_status("Name:\tkthreadd\n"), None);
        let hostile = "VmRSS: 18446744073709551615 kB\nRssAnon: 18446744073709551615\nVmSwap: 1\n";
        assert_eq!(parse_status(hostile).unwrap().own, u64::MAX);
    }

    #[test]
    fn memory_that_was_only_read_is_not_own() {
        let own = std::process::id();
        let mut pagemaps = Pagemaps::default();
        let mut bytes = vec![0u8; UNWRITTEN];
        let at = 2 << 20;
        std::hint::black_box(bytes[at]);
        let page = (&raw const bytes[at]) as u64 / PAGE;
        if pagemaps.zeros().is_none() {
            println!("frames are not shown here (no CAP_SYS_ADMIN)");
            return;
        }
        assert_eq!(pagemaps.look(own, page), Page::Other);
        bytes[at] = 1;
        std::hint::black_box(&bytes);
        assert!(matches!(pagemaps.look(own, page), Page::Own(_)));
    }

    #[test]
    fn we_have_memory_and_room() {
        let own = resident(std::process::id()).unwrap();
        assert!(own.own > 0 && own.all >= own.own);
        assert!(room(std::process::id()).unwrap() > 1 << 20);
        assert_eq!(resident(0), None);
    }

    /// In this process, whose truth is known: memory of its own, of a file (this code), and none.
    #[test]
    fn a_page_is_what_it_is() {
        let own = std::process::id();
        let mut pagemaps = Pagemaps::default();
        let bytes = vec![1u8; 16 * PAGE as usize];
        let page = |at: *const u8| (at as u64).div_ceil(PAGE);
        assert!(matches!(pagemaps.look(own, page(bytes.as_ptr())), Page::Own(_)));
        assert!(pagemaps.is_own(own, page(bytes.as_ptr())));
        let code = a_page_is_what_it_is as *const () as u64 / PAGE;
        assert_eq!(pagemaps.look(own, code), Page::Other);
        for nowhere in [0, u64::MAX, 1 << 40] {
            assert_eq!(pagemaps.look(own, nowhere), Page::Other);
        }
        assert_eq!(pagemaps.look(u32::MAX, 1), Page::Other);
    }

    #[test]
    fn a_huge_page_has_its_frames_in_a_row() {
        let at = |first: u64| [Some(first), Some(first + HUGE_PAGES - 1)];
        assert!(is_huge(Some(1024), at(1024)));
        assert!(!is_huge(Some(1000), at(1000)));
        assert!(!is_huge(Some(1025), at(1024)));
        assert!(!is_huge(Some(1024), [Some(1024), Some(3)]));
        assert!(!is_huge(None, [None, None]));
    }
}
