//! Who holds what a thread sleeps for, where the lock's memory says so.
//!
//! glibc's mutexes and reader-writer locks keep the thread id of who holds them (a reader-writer lock: of its writer), the word of a
//! priority-inheriting futex does by the kernel's own rules, and the word that `pthread_join` sleeps on is the thread that is to end.
//! Other locks (Rust's, Go's, a monitor) have no such word: nothing is said of them here.
//!
//! ```text
//! pthread_mutex_t    0 lock (slept on) · 4 count · 8 owner · 12 users · 16 kind
//! pthread_rwlock_t   8 and 12 slept on · 16, 20 unused (0) · 24 writer · 28 shared
//! ```
//! Ids are those of the target's own pid namespace.

use std::fs;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{rules::Class, waiting::Sleeper};
use crate::{
    proc::target,
    report::model::{LockKind, StackFrame},
    stacks::memory,
};

/// Threads of one process that are looked at.
const MAX_THREADS: usize = 1 << 16;
/// `FUTEX_TID_MASK`.
const TID_MASK: u32 = 0x3fff_ffff;
/// Bits that a `pthread_mutex_t`'s kind has: four types, robust, inheriting, protecting, shared, elision.
const KINDS: u32 = 0x3ff;
/// Frames between the function that sleeps and the one that takes the lock.
const CALLERS: usize = 4;
const ROBUST: u32 = 16;
const SHARED: u32 = 128;

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This thread of the same process.
    Thread(u32),
    /// A thread (by its id as the target knows it) that the process does not have: it ended, or was lost by a fork.
    Gone(u32),
}

/// The threads of each process by the ids that the process itself knows.
#[derive(Default)]
pub struct Tids {
    known: FxHashMap<u32, Threads>,
    /// Processes whose threads were listed a second time.
    listed_again: FxHashSet<u32>,
}

#[derive(Default)]
struct Threads {
    by_own: FxHashMap<u32, u32>,
    /// All there are.
    complete: bool,
}

impl Tids {
    /// The thread `own` of `pid`.
    fn of(&mut self, pid: u32, own: u32) -> Option<u32> {
        let threads = self.known.entry(pid).or_insert_with(|| threads(pid));
        threads.by_own.get(&own).copied()
    }

    /// They may have changed: lists them once more, and only once, as that takes as long as there are threads.
    fn list_again(&mut self, pid: u32) {
        if self.listed_again.insert(pid) {
            self.known.remove(&pid);
        }
    }

    /// Whether a thread that is not known is none of the process.
    fn are_all(&self, pid: u32) -> bool {
        self.known.get(&pid).is_some_and(|threads| threads.complete)
    }
}

/// Of a process's threads: the innermost id, and the one known here.
fn threads(pid: u32) -> Threads {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Threads::default();
    };
    let tids: Vec<u32> = entries
        .flatten()
        .take(MAX_THREADS)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let inside = ids(pid, pid).is_none_or(|ids| ids.len() > 1);
    let own = |&tid: &u32| {
        let own = if inside { *ids(pid, tid)?.last()? } else { tid };
        Some((own, tid))
    };
    let by_own: FxHashMap<u32, u32> = tids.iter().filter_map(own).collect();
    let all = target::Stat::of(pid).map_or(0, |stat| stat.threads as usize);
    Threads {
        complete: by_own.len() == all && all < MAX_THREADS,
        by_own,
    }
}

/// A thread's ids, from the namespace that we look from to the one that it lives in.
fn ids(pid: u32, tid: u32) -> Option<Vec<u32>> {
    let status = target::read(&format!("/proc/{pid}/task/{tid}/status")).ok()?;
    parse_ids(&status)
}

fn parse_ids(status: &str) -> Option<Vec<u32>> {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let ids: Vec<u32> = ids
        .split_ascii_whitespace()
        .map_while(|id| id.parse().ok())
        .collect();
    (!ids.is_empty()).then_some(ids)
}

/// Who holds what this thread sleeps for; `None` where nothing tells.
pub fn owner(sleeper: &Sleeper, class: &Class, frames: &[StackFrame], tids: &mut Tids) -> Option<Owner> {
    let found = said(sleeper, class, frames)?;
    if let Some(tid) = tids.of(sleeper.pid, found.own) {
        return Some(Owner::Thread(tid));
    }
    // It may be a new thread, or one that released the lock and ended since: then the lock says something else by now.
    tids.list_again(sleeper.pid);
    match tids.of(sleeper.pid, found.own) {
        Some(tid) => Some(Owner::Thread(tid)),
        None if found.only_here
            && tids.are_all(sleeper.pid)
            && said(sleeper, class, frames) == Some(found) =>
        {
            Some(Owner::Gone(found.own))
        }
        None => None,
    }
}

/// A function of this name takes the lock, or calls the one that sleeps for it.
pub fn taken_by(class: &Class, frames: &[StackFrame], function: &str) -> bool {
    let from = class.frame.unwrap_or(frames.len());
    let near = frames.iter().skip(from).take(CALLERS);
    near.filter_map(|frame| frame.function.as_deref())
        .any(|name| name.contains(function))
}

/// A lock in the narrow sense, by the function that takes it: CPython's and stdio's are held over waits for work and for input.
pub fn is_plain(class: &Class, frames: &[StackFrame]) -> bool {
    let by = |function: &str| taken_by(class, frames, function);
    let inside = by("lll_lock_wait") && !by("pthread_");
    let other = inside || ["_IO_lock_lock", "PyThread_", "runtime."].into_iter().any(by);
    let kinds = [
        LockKind::Mutex,
        LockKind::Rwlock,
        LockKind::JavaMonitor,
        LockKind::Pi,
    ];
    class.frame.is_some() && !other && !class.idle && kinds.contains(&class.kind)
}

/// What the lock's memory says at present.
fn said(sleeper: &Sleeper, class: &Class, frames: &[StackFrame]) -> Option<Found> {
    let uaddr = sleeper.uaddr?;
    // By the thread: a process whose first thread has ended is read through the others.
    let read = |address: u64, len: usize| memory::read(sleeper.tid, address, len);
    let found = if sleeper.pi {
        // A shared one may be held from another namespace, whose ids are others.
        if sleeper.private {
            inheriting(&read(uaddr, 4)?)
        } else {
            None
        }
    } else {
        let by = |function: &str| taken_by(class, frames, function);
        match class.kind {
            LockKind::Mutex if by("pthread_mutex") => mutex(&read(uaddr, 20)?),
            LockKind::Rwlock if by("pthread_rwlock_") => {
                let at = |at: u64| rwlock(&read(uaddr.checked_sub(at)?, 32)?);
                match (at(8), at(12)) {
                    (Some(found), None) | (None, Some(found)) => Some(found),
                    _ => None,
                }
            }
            LockKind::Join if by("pthread_") => join(uaddr, &read),
            _ => None,
        }
    }?;
    (found.own != 0).then_some(found)
}

/// What a lock's memory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    own: u32,
    /// Only threads of this process can hold it, and nobody sets it right when one of them ends.
    only_here: bool,
}

impl Found {
    const fn sure(own: u32) -> Self {
        Self {
            own,
            only_here: false,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn inheriting(bytes: &[u8]) -> Option<Found> {
    Some(Found::sure(word(bytes, 0)? & TID_MASK))
}

fn mutex(bytes: &[u8]) -> Option<Found> {
    let (lock, owner, users, kind) = (
        word(bytes, 0)?,
        word(bytes, 8)?,
        word(bytes, 12)?,
        word(bytes, 16)?,
    );
    let robust = kind & ROBUST != 0;
    // A robust one has the id in its first word, too.
    let agrees = if robust {
        lock & TID_MASK == owner
    } else {
        lock <= 2
    };
    let is = lock != 0 && owner & !TID_MASK == 0 && users > 0 && kind & !KINDS == 0 && agrees;
    // A shared one may be held from another namespace, whose ids are others.
    (is && kind & SHARED == 0).then_some(Found {
        own: owner,
        only_here: !robust,
    })
}

fn rwlock(bytes: &[u8]) -> Option<Found> {
    let (unused, writer, shared) = (
        (word(bytes, 16)?, word(bytes, 20)?),
        word(bytes, 24)?,
        word(bytes, 28)?,
    );
    let is = unused == (0, 0) && writer != 0 && writer & !TID_MASK == 0 && shared == 0;
    is.then_some(Found::sure(writer))
}

/// Where glibc's description of a thread has its id, on x86-64; it begins with its own address, and has it again after two words. Other
/// libraries sleep on another word.
const TID_OFFSET: u64 = 0x2d0;

fn join(uaddr: u64, read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Found> {
    let thread = uaddr.checked_sub(TID_OFFSET)?;
    let head = read(thread, 24)?;
    let own = thread.to_le_bytes();
    let is = head.get(..8)? == own && head.get(16..24)? == own;
    let found = Found::sure(word(&read(uaddr, 4)?, 0)?);
    is.then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `FUTEX_WAITERS`.
    const WAITERS: u32 = 1 << 31;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_mutex_that_is_held_names_its_holder() {
        let held = bytes(&[2, 0, 4261, 1, 0]);
        assert_eq!(
            mutex(&held).map(|found| (found.own, found.only_here)),
            Some((4261, true))
        );
        let recursive = bytes(&[1, 2, 4261, 1, 1]);
        assert_eq!(mutex(&recursive).map(|found| found.own), Some(4261));
        let robust = bytes(&[WAITERS + 4261, 0, 4261, 1, ROBUST]);
        assert_eq!(mutex(&robust).map(|found| found.own), Some(4261));
    }

    #[test]
    fn memory_that_is_no_mutex_names_nobody() {
        assert_eq!(mutex(&bytes(&[0, 0, 4261, 1, 0])), None, "free");
        assert_eq!(mutex(&bytes(&[2, 0, 4261, 0, 0])), None, "no user");
        assert_eq!(mutex(&bytes(&[2, 0, 4261, 1, 0x5555])), None, "no kind");
        assert_eq!(mutex(&bytes(&[2, 0, 0xffff_1234, 1, 0])), None, "no id");
        assert_eq!(mutex(&bytes(&[77, 0, 4261, 1, 0])), None, "no lock word");
        assert_eq!(
            mutex(&bytes(&[WAITERS + 1, 0, 4261, 1, ROBUST])),
            None,
            "two holders"
        );
        assert_eq!(
            mutex(&bytes(&[2, 0, 4261, 1, SHARED])),
            None,
            "of other processes, too"
        );
        assert_eq!(mutex(&[1, 0, 0]), None, "too short");
    }

    #[test]
    fn a_lock_held_by_a_writer_names_it_and_one_held_by_readers_nobody() {
        let held = bytes(&[10, 1, 2, 1, 0, 0, 4261, 0]);
        assert_eq!(rwlock(&held), Some(Found::sure(4261)));
        assert_eq!(rwlock(&bytes(&[8, 1, 2, 1, 0, 0, 0, 0])), None);
        // The same memory four bytes on, as if the other word were the one slept on.
        assert_eq!(rwlock(&bytes(&[1, 2, 1, 0, 0, 4261, 0, 0])), None);
        assert_eq!(rwlock(&bytes(&[0, 10, 1, 2, 1, 0, 0, 4261])), None);
    }

    #[test]
    fn a_thread_that_is_joined_is_known_by_its_description() {
        const AT: u64 = 0x7f00_1000;
        let memory = |own: u64| {
            move |address: u64, len: usize| {
                let mut thread = vec![0u8; 0x2e0];
                thread[..8].copy_from_slice(&own.to_le_bytes());
                thread[16..24].copy_from_slice(&own.to_le_bytes());
                thread[0x2d0..0x2d4].copy_from_slice(&4261u32.to_le_bytes());
                let from = address.checked_sub(AT)? as usize;
                Some(thread.get(from..from + len)?.to_vec())
            }
        };
        assert_eq!(join(AT + 0x2d0, &memory(AT)), Some(Found::sure(4261)));
        // musl sleeps on a state, not on an id.
        assert_eq!(join(AT + 0x2d0, &memory(AT + 8)), None);
        assert_eq!(join(0x100, &memory(AT)), None);
    }

    #[test]
    fn ids_are_told_from_the_outermost_to_the_innermost() {
        assert_eq!(
            parse_ids("Name:\tx\nNSpid:\t4261\t17\t3\nThreads:\t1\n"),
            Some(vec![4261, 17, 3])
        );
        assert_eq!(parse_ids("NSpid:\t4261\n"), Some(vec![4261]));
        assert_eq!(parse_ids("NSpid:\n"), None);
        assert_eq!(parse_ids("Name:\tx\n"), None);
    }

    #[test]
    fn our_own_threads_are_known_by_their_ids() {
        let me = std::process::id();
        let mut tids = Tids::default();
        assert_eq!(tids.of(me, *ids(me, me).unwrap().last().unwrap()), Some(me));
        assert_eq!(tids.of(me, 0), None);
    }
}
