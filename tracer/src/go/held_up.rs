//! Which lock a goroutine waits for, and since when.
//!
//! All of Go's locks sleep in the runtime's table of semaphores, which tells the lock. A mutex keeps in its own frame when the wait
//! began: `sync.(*Mutex).lockSlow` compares it with 1 ms to decide whether the lock is starving, so its code tells where that is.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    frames::{Ask, Place, is_pointer, read_standing},
    lock_frames::{Frame, SLOW, start},
    memory::Memory,
    objects::{COND, GROUP, INNER, MUTEX, Objects, RW_MUTEX, Structs},
    program::Program,
    semaphores::Followed,
    snapshot::{Goroutine, Reader},
    sudogs::Sudogs,
    types::Types,
};
use crate::stacks::elf::u64_at;

/// Waiters of condition variables followed, of all of them together.
const MAX_LISTED: usize = 1 << 16;

/// What kind of lock a goroutine waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LockKind {
    /// `sync.Mutex`.
    Mutex,
    /// `sync.RWMutex`, to read.
    RwRead,
    /// `sync.RWMutex`, to write.
    RwWrite,
    /// `sync.WaitGroup`.
    WaitGroup,
    /// `sync.Cond`.
    Cond,
    /// Another semaphore: of a descriptor, or of the runtime itself.
    Semaphore,
}

/// A goroutine that waits for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockWaiter {
    /// Its number.
    pub goid: u64,
    /// Its descriptor.
    pub g: u64,
    /// Of [`Reader::groups`].
    pub group: u32,
    /// What it waits for.
    pub kind: LockKind,
    /// Address of the lock; of its semaphore, where the program does not tell how its kind is laid out.
    pub lock: u64,
    /// When the wait began, `CLOCK_MONOTONIC` of the program: told by mutexes only.
    pub since_ns: Option<u64>,
    /// How many are before it.
    pub position: Option<u32>,
}

/// Who waits for locks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldUp {
    /// In the order of the snapshot.
    pub waiters: Vec<LockWaiter>,
    /// They wait for a lock, but it is not known for which: they moved, or the program's table was not found.
    pub unknown: u64,
    /// Their frame and the table tell different locks: neither is believed.
    pub contradicted: u64,
    /// How far the table could be followed.
    pub followed: Followed,
}

/// Where locks keep what.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// In `lockSlow`'s frame: when the wait began.
    start: Option<u64>,
    /// Semaphores in their locks.
    mutex: Option<u64>,
    readers: Option<u64>,
    writers: Option<u64>,
    group: Option<u64>,
    /// In an `RWMutex`: the mutex that writers take first.
    writing: Option<u64>,
    /// In a `Cond`: the list of its waiters; in that: the first of them.
    listed: Option<(u64, u64)>,
}

impl Layout {
    pub(super) fn find<M: Memory + ?Sized>(types: &Types<'_, M>, found: &Structs, program: &Program) -> Self {
        let at = |offset: usize| offset as u64;
        let mutex = match (found.get(&MUTEX), found.get(&INNER)) {
            // Either it has the semaphore itself, or one that has it.
            (Some(outer), inner) => outer.field("sema").or_else(|| {
                let held = outer
                    .type_of("mu")
                    .and_then(|descriptor| types.structure(descriptor));
                Some(outer.field("mu")? + held.as_ref().or(inner)?.field("sema")?)
            }),
            (None, Some(inner)) => inner.field("sema"),
            (None, None) => None,
        };
        let field = |name: &str| found.get(&RW_MUTEX)?.field(name).map(at);
        let group = found.get(&GROUP);
        Self {
            start: start(program),
            mutex: mutex.map(at),
            readers: field("readerSem"),
            writers: field("writerSem"),
            writing: field("w"),
            group: group
                .and_then(|group| group.field("sema").or_else(|| group.field("state2")))
                .map(at),
            listed: found.get(&COND).and_then(|cond| {
                let list = types.structure(cond.type_of("notify")?)?;
                Some((at(cond.field("notify")?), at(list.field("head")?)))
            }),
        }
    }
}

/// What a stack waits for, by the names of its functions, leaf first; and whether it is a writer that waits for the other writers.
pub(super) fn kind(names: &[impl AsRef<str>]) -> Option<(LockKind, bool)> {
    let mut names = names.iter().map(AsRef::as_ref);
    let mut leaf = names.by_ref().take(8);
    let begins = leaf.find(|name| matches!(*name, "runtime.semacquire1" | "sync.runtime_notifyListWait"))?;
    if begins == "sync.runtime_notifyListWait" {
        return Some((LockKind::Cond, false));
    }
    let mut mutex = false;
    for name in names {
        match name {
            _ if SLOW.contains(&name) => mutex = true,
            "sync.(*Mutex).Lock" | "internal/sync.(*Mutex).Lock" if mutex => {}
            "sync.(*RWMutex).Lock" => return Some((LockKind::RwWrite, mutex)),
            _ if mutex => return Some((LockKind::Mutex, false)),
            "sync.(*RWMutex).RLock" | "sync.runtime_SemacquireRWMutexR" => {
                return Some((LockKind::RwRead, false));
            }
            "sync.(*WaitGroup).Wait" => return Some((LockKind::WaitGroup, false)),
            _ if name.contains(".runtime_Semacquire")
                || name.contains("_runtime_Semacquire")
                || name == "runtime.semacquire" => {}
            _ => break,
        }
    }
    let kind = if mutex {
        LockKind::Mutex
    } else {
        LockKind::Semaphore
    };
    Some((kind, false))
}

/// How the goroutines of a group wait for a lock.
#[derive(Clone, Debug)]
pub(super) struct LockSite {
    kind: LockKind,
    /// For the mutex of a lock's writers.
    writing: bool,
    frame: Option<Frame>,
}

impl LockSite {
    pub(super) fn new(
        program: &Program,
        (kind, writing): (LockKind, bool),
        places: &[Place],
        compiled: &[String],
        layout: &Layout,
    ) -> Self {
        let frame = if kind == LockKind::Cond {
            Frame::of_cond(program, places, compiled, layout.listed.map(|(list, _)| list))
        } else {
            Frame::of_mutex(program, places, compiled, layout.start)
        };
        Self { kind, writing, frame }
    }

    /// What to read of a goroutine.
    fn ask(&self, g: u64, goroutine: &Goroutine) -> Option<Ask> {
        let (from, to) = self.frame?.bounds();
        Some(Ask::stack(g, goroutine, from, to))
    }

    /// The lock, and when the wait began.
    fn take(&self, bytes: &[u8], now_ns: u64) -> Option<(u64, Option<u64>)> {
        let frame = self.frame?;
        let (from, _) = frame.bounds();
        let word = |at: u64| u64_at(bytes, usize::try_from(at.checked_sub(from)?).ok()?);
        let lock = word(frame.lock.0)?.checked_sub(frame.lock.1)?;
        if word(frame.back.0)? != frame.back.1 || lock == 0 || !lock.is_multiple_of(4) {
            return None;
        }
        let since = frame.start.and_then(word);
        Some((lock, since.filter(|&since| since != 0 && since <= now_ns)))
    }
}

impl Objects {
    /// Who waits for which lock, of those goroutines of the last snapshot that are `wanted`. `now_ns` is the time,
    /// `CLOCK_MONOTONIC`: no wait begins later.
    pub fn held_up<M: Memory>(
        &mut self,
        reader: &Reader<M>,
        wanted: impl Fn(&Goroutine) -> bool,
        now_ns: u64,
    ) -> HeldUp {
        self.learn(reader);
        let mut held = HeldUp::default();
        let waiting: Vec<(u64, &Goroutine, &LockSite)> = reader
            .goroutines()
            .filter(|(_, goroutine)| wanted(goroutine))
            .filter_map(|(g, goroutine)| Some((g, goroutine, self.sites(goroutine)?.lock.as_ref()?)))
            .collect();
        if waiting.is_empty() {
            return held;
        }
        let semaphores = self.semaphores_of(reader, &waiting, &mut held);
        let frames = self.frames_of(reader, &waiting, now_ns);
        for (at, &(g, goroutine, site)) in waiting.iter().enumerate() {
            let semaphore = semaphores.get(&g).copied();
            let frame = frames.get(&at).copied();
            let own = self.lock_of(site, semaphore.map(|(semaphore, _)| semaphore));
            let (lock, since_ns) = match (own, frame) {
                (None, None) => {
                    held.unknown += 1;
                    continue;
                }
                (Some((lock, _)), None) => (lock, None),
                (Some((lock, exact)), Some((told, since))) => {
                    let told = self.outermost(site, told);
                    // Without its layout, the semaphore lies in the lock.
                    if lock != told && (exact || !(4..=64).contains(&lock.wrapping_sub(told))) {
                        held.contradicted += 1;
                        continue;
                    }
                    (told, since)
                }
                (None, Some((told, since))) => (self.outermost(site, told), since),
            };
            held.waiters.push(LockWaiter {
                goid: goroutine.goid,
                g,
                group: goroutine.group,
                kind: site.kind,
                lock,
                since_ns,
                position: semaphore.map(|(_, position)| position),
            });
        }
        held
    }

    /// The semaphores of waiters, by their descriptors: found in the table, and read again while they stand.
    fn semaphores_of<M: Memory>(
        &self,
        reader: &Reader<M>,
        waiting: &[(u64, &Goroutine, &LockSite)],
        held: &mut HeldUp,
    ) -> FxHashMap<u64, (u64, u32)> {
        let mut sure = FxHashMap::default();
        let (Some(semaphores), Some(sudogs)) = (&self.semaphores, &self.sudogs) else {
            return sure;
        };
        let known: FxHashMap<u64, &Goroutine> =
            waiting.iter().map(|&(g, goroutine, _)| (g, goroutine)).collect();
        let (mut found, followed) = semaphores.walk(reader.memory(), sudogs);
        held.followed = followed;
        found.retain(|waiter| known.contains_key(&waiter.g));
        let asks: Vec<Ask> = found
            .iter()
            .filter_map(|waiter| {
                Some(Ask {
                    g: waiter.g,
                    goroutine: **known.get(&waiter.g)?,
                    at: waiter.sudog,
                    len: sudogs.len,
                })
            })
            .collect();
        read_standing(reader, &asks, |at, bytes| {
            let (Some(waiter), Some(sudog)) = (found.get(at), sudogs.read(bytes)) else {
                return;
            };
            if (sudog.g, sudog.elem, sudog.channel) == (waiter.g, waiter.semaphore, 0) {
                sure.insert(waiter.g, (waiter.semaphore, waiter.position));
            }
        });
        sure
    }

    /// What the frames of waiters tell: the lock, and when the wait began; by their number in `waiting`.
    fn frames_of<M: Memory>(
        &self,
        reader: &Reader<M>,
        waiting: &[(u64, &Goroutine, &LockSite)],
        now_ns: u64,
    ) -> FxHashMap<usize, (u64, Option<u64>)> {
        let (numbers, asks): (Vec<usize>, Vec<Ask>) = waiting
            .iter()
            .enumerate()
            .filter_map(|(number, (g, goroutine, site))| Some((number, site.ask(*g, goroutine)?)))
            .unzip();
        let mut told = FxHashMap::default();
        read_standing(reader, &asks, |at, bytes| {
            let waiter = numbers
                .get(at)
                .and_then(|&number| Some((number, waiting.get(number)?)));
            let Some((number, (_, _, site))) = waiter else {
                return;
            };
            if let Some(found) = site.take(bytes, now_ns) {
                told.insert(number, found);
            }
        });
        // A condition variable's waiters are in no table: it must list them itself.
        let mut lists: FxHashMap<u64, FxHashSet<u64>> = FxHashMap::default();
        let mut left = MAX_LISTED;
        told.retain(|&number, &mut (lock, _)| {
            let Some((g, _, site)) = waiting.get(number) else {
                return false;
            };
            if site.kind != LockKind::Cond {
                return true;
            }
            let (Some((within, first)), Some(sudogs)) = (self.locks.listed, &self.sudogs) else {
                return false;
            };
            let list = lists.entry(lock).or_insert_with(|| {
                list(
                    reader.memory(),
                    sudogs,
                    lock.wrapping_add(within + first),
                    &mut left,
                )
            });
            list.contains(g)
        });
        told
    }

    /// The lock that a semaphore is in, and whether its layout is known; without it, the semaphore itself.
    fn lock_of(&self, site: &LockSite, semaphore: Option<u64>) -> Option<(u64, bool)> {
        let semaphore = semaphore?;
        let layout = &self.locks;
        let within = match site.kind {
            LockKind::Mutex => layout.mutex,
            LockKind::RwWrite if site.writing => {
                layout.mutex.map(|mutex| mutex + layout.writing.unwrap_or(0))
            }
            LockKind::RwWrite => layout.writers,
            LockKind::RwRead => layout.readers,
            LockKind::WaitGroup => layout.group,
            LockKind::Cond | LockKind::Semaphore => None,
        };
        Some((semaphore.wrapping_sub(within.unwrap_or(0)), within.is_some()))
    }

    /// The lock that a mutex belongs to.
    fn outermost(&self, site: &LockSite, mutex: u64) -> u64 {
        let within = if site.writing {
            self.locks.writing.unwrap_or(0)
        } else {
            0
        };
        mutex.wrapping_sub(within)
    }
}

/// Descriptors of those in a list that begins there, as far as steps are left.
fn list<M: Memory>(memory: &M, sudogs: &Sudogs, head: u64, left: &mut usize) -> FxHashSet<u64> {
    let mut listed = FxHashSet::default();
    let mut at = memory.word(head).unwrap_or(0);
    while *left > 0 {
        *left -= 1;
        let sudog = is_pointer(at)
            .then(|| memory.read(at, sudogs.len))
            .flatten()
            .and_then(|bytes| sudogs.read(&bytes));
        let Some(sudog) = sudog else { break };
        if !listed.insert(sudog.g) {
            break;
        }
        at = sudog.next;
    }
    listed
}

#[cfg(test)]
#[path = "held_up_tests.rs"]
mod tests;
