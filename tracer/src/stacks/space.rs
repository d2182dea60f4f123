//! One process's address space: which file and which rules belong to an address.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::module::{Lookup, ModuleId, Modules, Source};
use super::{jit, memory};
use crate::proc::{
    host::monotonic_ns,
    maps::{self, Map},
};

/// Mappings are not read again sooner than this, whatever addresses turn up.
const READ_INTERVAL: Duration = Duration::from_millis(50);
/// Addresses whose rules are kept per process; when full the cache starts anew.
const MAX_CACHED: usize = 1 << 16;
/// The vdso is two to four pages.
const MAX_VDSO: u64 = 64 << 10;

/// Counted reasons.
pub(super) type Failures = BTreeMap<&'static str, u64>;

/// What lies at a code address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// A file's code at a virtual address, and its rules.
    File {
        module: ModuleId,
        bias: u64,
        lookup: Lookup,
    },
    /// Executable memory without a file that says anything: a JIT's.
    Anonymous,
    /// Of a file that could not be opened: what it says is not known.
    Unreadable,
    /// Not executable, or not mapped.
    No,
}

/// A file behind a mapping, opened when first needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Unopened,
    Not,
    Unreadable,
    Module(ModuleId, u64),
}

/// Where a runtime describes what it compiles, if it does.
#[derive(Clone, Default)]
enum Jit {
    #[default]
    Unasked,
    Asked(Option<Arc<jit::Place>>),
}

/// An address space.
#[derive(Clone, Default)]
pub(super) struct Space {
    pub(super) maps: Arc<Vec<Map>>,
    slots: Vec<Slot>,
    code: FxHashMap<u64, Code>,
    read_at: Option<Instant>,
    /// When they were last read, `CLOCK_MONOTONIC`: what is told of a time before that may be in them already.
    read_ns: u64,
    /// The mappings are known to have changed.
    stale: bool,
    /// Where a runtime describes what it compiles; looked for when code outside files first turns up.
    jit: Jit,
    /// A thread to read through, when the leader has exited.
    through: Option<u32>,
    /// The kernel told that this program began; the probes are about to.
    pub(super) renewed: bool,
    /// It is known that another program has begun since: what `/proc` tells is of that one.
    pub(super) superseded: bool,
}

impl Space {
    /// As a forked child has it: the same mappings.
    pub(super) fn fork(&self) -> Self {
        Self {
            maps: Arc::clone(&self.maps),
            slots: self.slots.clone(),
            ..Self::default()
        }
    }

    /// Forgets what only unwinding needs.
    pub(super) fn freeze(&mut self) {
        self.code = FxHashMap::default();
    }

    /// Has one more mapping, told by the kernel; `slot` is its file, if that could be opened. Whether that changes anything.
    pub(super) fn add(&mut self, map: Map, slot: Slot) -> bool {
        if let Some(at) = maps::find(&self.maps, map.start)
            && let Some(known) = self.maps.get(at)
            && includes(known, &map)
        {
            let Some(known) = self.slots.get_mut(at) else {
                return false;
            };
            // The same file with other contents: written anew in its place.
            let other = matches!((&*known, &slot), (Slot::Module(a, _), Slot::Module(b, _)) if a != b);
            if other || *known == Slot::Unopened {
                *known = slot;
                self.code.clear();
            }
            return other;
        }
        self.code.clear();
        if self.maps.len() + 2 > maps::MAX_MAPS {
            self.stale = true;
            return true;
        }
        let first = self.maps.partition_point(|m| m.end <= map.start);
        let end = self.maps.partition_point(|m| m.start < map.end).max(first);
        let below = self
            .maps
            .get(first)
            .filter(|m| first < end && m.start < map.start);
        let below = below.map(|m| (cut(m, m.start, map.start), self.slots.get(first)));
        let above = end.checked_sub(1).filter(|&last| first <= last);
        let above = above.and_then(|last| Some((self.maps.get(last)?, self.slots.get(last))));
        let above = above
            .filter(|(m, _)| m.end > map.end)
            .map(|(m, slot)| (cut(m, map.end, m.end), slot));
        let (maps, slots): (Vec<_>, Vec<_>) = below
            .into_iter()
            .chain([(map, Some(&slot))])
            .chain(above)
            .map(|(map, slot)| (map, slot.copied().unwrap_or(Slot::Unopened)))
            .unzip();
        Arc::make_mut(&mut self.maps).splice(first..end, maps);
        self.slots.splice(first..end, slots);
        true
    }

    /// Whether the mappings as they are known may hold already what was told of that time.
    pub(super) fn was_read_since(&self, ts_ns: u64) -> bool {
        ts_ns <= self.read_ns
    }

    /// Has other mappings: the next address reads them, unless they were just read.
    pub(super) fn invalidate(&mut self) {
        self.stale = true;
        self.code.clear();
    }

    /// Where a runtime describes what it compiles.
    pub(super) fn jit(&self) -> Option<Arc<jit::Place>> {
        match &self.jit {
            Jit::Asked(place) => place.clone(),
            Jit::Unasked => None,
        }
    }

    /// Reads the mappings and opens the files of all code now, while the process surely lives.
    pub(super) fn prime(&mut self, tgid: u32, modules: &mut Modules, failures: &mut Failures) {
        self.refresh(tgid, failures);
        for at in 0..self.maps.len() {
            if self.maps.get(at).is_some_and(|map| map.exec) {
                self.module(tgid, at, modules, failures);
            }
        }
    }

    /// What lies at `address`.
    pub(super) fn code(
        &mut self,
        tgid: u32,
        address: u64,
        modules: &mut Modules,
        failures: &mut Failures,
    ) -> Code {
        if let Some(&code) = self.code.get(&address) {
            return code;
        }
        if self.stale {
            self.refresh(tgid, failures);
        }
        let mut code = self.look(tgid, address, modules, failures);
        if code == Code::No && self.refresh(tgid, failures) {
            code = self.look(tgid, address, modules, failures);
        }
        if code == Code::Anonymous && matches!(self.jit, Jit::Unasked) {
            // Now, as the process may have ended when names are asked for.
            self.jit = Jit::Asked(jit::Place::of(tgid).map(Arc::new));
        }
        if code != Code::No {
            if self.code.len() >= MAX_CACHED {
                self.code.clear();
            }
            self.code.insert(address, code);
        }
        code
    }

    fn look(&mut self, tgid: u32, address: u64, modules: &mut Modules, failures: &mut Failures) -> Code {
        let Some(at) = maps::find(&self.maps, address) else {
            return Code::No;
        };
        if !self.maps.get(at).is_some_and(|m| m.exec) {
            return Code::No;
        }
        match self.module(tgid, at, modules, failures) {
            Some((module, bias)) => Code::File {
                module,
                bias,
                lookup: modules.lookup(module, address.wrapping_sub(bias)),
            },
            None if self.slots.get(at) == Some(&Slot::Unreadable) => Code::Unreadable,
            None => Code::Anonymous,
        }
    }

    /// The file behind a mapping and its bias.
    fn module(
        &mut self,
        tgid: u32,
        at: usize,
        modules: &mut Modules,
        failures: &mut Failures,
    ) -> Option<(ModuleId, u64)> {
        let (slot, map) = (self.slots.get_mut(at)?, self.maps.get(at)?);
        if *slot == Slot::Unopened {
            *slot = open(self.through.unwrap_or(tgid), map, modules, Source::Proc).unwrap_or_else(|_| {
                *failures.entry("file_unreadable").or_default() += 1;
                Slot::Unreadable
            });
        }
        if let Slot::Module(id, bias) = *slot {
            Some((id, bias))
        } else {
            None
        }
    }

    /// Reads the mappings again unless that was just done. Whether they changed.
    fn refresh(&mut self, tgid: u32, failures: &mut Failures) -> bool {
        if self.superseded || self.read_at.is_some_and(|at| at.elapsed() < READ_INTERVAL) {
            return false;
        }
        self.read_at = Some(Instant::now());
        // A process that has gone keeps the mappings it had.
        self.stale = false;
        let Some((through, fresh)) = read_maps(tgid) else {
            *failures.entry("maps_unreadable").or_default() += 1;
            return false;
        };
        self.through = through;
        self.read_ns = monotonic_ns();
        if fresh == *self.maps {
            return false;
        }
        let kept: FxHashMap<_, _> = self
            .maps
            .iter()
            .zip(&self.slots)
            .map(|(m, s)| ((m.start, m.offset, m.inode, m.device), s))
            .collect();
        self.slots = fresh
            .iter()
            .map(|m| {
                kept.get(&(m.start, m.offset, m.inode, m.device))
                    .map_or(Slot::Unopened, |&&s| s)
            })
            .collect();
        self.maps = Arc::new(fresh);
        self.code.clear();
        true
    }

    /// The file that holds `address`, with its bias, if it was opened for code: for data the nearest mapping below counts
    /// too, as `.bss` continues in anonymous memory after the file's last page.
    pub(super) fn data_module(&self, address: u64, modules: &Modules) -> Option<(ModuleId, u64)> {
        let holds = |id, bias| {
            let vaddr = address.wrapping_sub(bias);
            let inside =
                |s: &super::elf::Segment| vaddr.checked_sub(s.vaddr).is_some_and(|o| o < s.memory_size);
            modules
                .get(id)
                .is_some_and(|module| module.elf.segments.iter().any(inside))
        };
        let Some(at) = maps::find(&self.maps, address) else {
            // Of a process that was gone before its mappings could be read only the code's are known.
            return self.slots.iter().find_map(|slot| match *slot {
                Slot::Module(id, bias) if holds(id, bias) => Some((id, bias)),
                _ => None,
            });
        };
        let map = self.maps.get(at)?;
        let file = if map.is_file() {
            map
        } else {
            self.maps.get(..at)?.iter().rev().take(2).find(|m| m.is_file())?
        };
        // Segments of one file lie together; one of them is code that was on a stack, or is opened now.
        let same = |m: &Map| m.inode == file.inode && m.device == file.device && m.name == file.name;
        let (id, bias) = self.maps.iter().zip(&self.slots).find_map(|(m, s)| match *s {
            Slot::Module(id, bias) if same(m) => Some((id, bias)),
            _ => None,
        })?;
        holds(id, bias).then_some((id, bias))
    }

    /// Opens the code of the file that holds or precedes `address`, so that [`Self::data_module`] finds it.
    pub(super) fn open_for_data(
        &mut self,
        tgid: u32,
        address: u64,
        modules: &mut Modules,
        failures: &mut Failures,
    ) {
        if maps::find(&self.maps, address).is_none() {
            self.refresh(tgid, failures);
        }
        let Some(at) = maps::find(&self.maps, address) else {
            return;
        };
        let file = self
            .maps
            .get(..=at)
            .and_then(|m| m.iter().rev().take(3).find(|m| m.is_file()))
            .cloned();
        let Some(file) = file else { return };
        let code = self
            .maps
            .iter()
            .position(|m| m.exec && m.inode == file.inode && m.device == file.device);
        if let Some(code) = code {
            self.module(tgid, code, modules, failures);
        }
    }
}

/// A process's mappings, and through which of its threads they were read if not the leader.
fn read_maps(tgid: u32) -> Option<(Option<u32>, Vec<Map>)> {
    let read = |id| maps::read(id).ok().filter(|m| !m.is_empty());
    if let Some(found) = read(tgid) {
        return Some((None, found));
    }
    maps::other_threads(tgid)
        .into_iter()
        .find_map(|tid| Some((Some(tid), read(tid)?)))
}

/// Whether `map` adds nothing to `known`, which holds its start.
fn includes(known: &Map, map: &Map) -> bool {
    let base = |m: &Map| m.start.wrapping_sub(m.offset);
    known.exec
        && known.end >= map.end
        && (known.inode, known.device) == (map.inode, map.device)
        && (base(known) == base(map) || (map.inode == 0 && known.name == map.name))
}

/// The part of a mapping from `start` to `end`.
fn cut(map: &Map, start: u64, end: u64) -> Map {
    let skipped = if map.inode == 0 { 0 } else { start - map.start };
    Map {
        start,
        end,
        offset: map.offset.wrapping_add(skipped),
        ..map.clone()
    }
}

/// Opens the file behind a mapping.
pub(super) fn open(tgid: u32, map: &Map, modules: &mut Modules, source: Source) -> std::io::Result<Slot> {
    let id = if &*map.name == "[vdso]" {
        let len = (map.end - map.start).min(MAX_VDSO);
        let image = memory::read(tgid, map.start, len as usize).or_else(|| own_vdso(len));
        modules.add_vdso(image.ok_or(std::io::ErrorKind::NotFound)?)?
    } else if map.is_file() {
        modules.open(tgid, map, source)?
    } else {
        None
    };
    let bias = |id| modules.get(id)?.elf.bias(map.start, map.offset, map.exec);
    Ok(id
        .and_then(|id| Some(Slot::Module(id, bias(id)?)))
        .unwrap_or(Slot::Not))
}

/// Our own vdso, which is everyone's, if it has that length.
fn own_vdso(len: u64) -> Option<Vec<u8>> {
    let own = std::process::id();
    let maps = maps::read(own).ok()?;
    let map = maps.iter().find(|m| &*m.name == "[vdso]")?;
    (map.end - map.start == len)
        .then(|| memory::read(own, map.start, len as usize))
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(start: u64, end: u64, offset: u64, inode: u64) -> Map {
        Map {
            start,
            end,
            read: true,
            write: false,
            exec: true,
            shared: false,
            offset,
            device: 1,
            inode,
            name: if inode == 0 { "" } else { "/file" }.into(),
        }
    }

    fn seen(space: &Space) -> Vec<(u64, u64, u64, u64)> {
        assert_eq!(space.maps.len(), space.slots.len());
        let one = |m: &Map| (m.start, m.end, m.offset, m.inode);
        space.maps.iter().map(one).collect()
    }

    #[test]
    fn a_new_mapping_lies_over_the_old() {
        let mut space = Space::default();
        space.add(map(0x1000, 0x9000, 0x4000, 7), Slot::Not);
        space.add(map(0x3000, 0x4000, 0, 8), Slot::Unopened);
        assert_eq!(
            seen(&space),
            [
                (0x1000, 0x3000, 0x4000, 7),
                (0x3000, 0x4000, 0, 8),
                (0x4000, 0x9000, 0x7000, 7)
            ]
        );
        assert_eq!(space.slots, [Slot::Not, Slot::Unopened, Slot::Not]);
        // Part of what is known, its file opened meanwhile; then one over all of it.
        space.add(map(0x3000, 0x4000, 0, 8), Slot::Not);
        assert_eq!(space.slots[1], Slot::Not);
        space.add(map(0x5000, 0x6000, 0x8000, 7), Slot::Unopened);
        assert_eq!(seen(&space).len(), 3);
        space.add(map(0, 0x10000, 0, 0), Slot::Not);
        assert_eq!(seen(&space), [(0, 0x10000, 0, 0)]);
    }

    /// A library that was written anew in its place and loaded again is another one.
    #[test]
    fn another_file_in_the_same_inode_is_another() {
        let mut space = Space::default();
        let module = |number| Slot::Module(ModuleId(number), 0x1000);
        assert!(space.add(map(0x1000, 0x9000, 0, 7), module(1)));
        assert!(!space.add(map(0x1000, 0x9000, 0, 7), module(1)));
        assert!(!space.add(map(0x1000, 0x9000, 0, 7), Slot::Unopened));
        assert!(space.add(map(0x1000, 0x9000, 0, 7), module(2)));
        assert_eq!(space.slots, [module(2)]);
    }

    proptest! {
        #[test]
        fn mappings_never_overlap(added in proptest::collection::vec((0u64..60, 1u64..20, 0u64..3), 0..40)) {
            let mut space = Space::default();
            for (start, len, inode) in added {
                let new = map(start << 12, (start + len) << 12, start << 12, inode);
                space.add(new, Slot::Unopened);
                let all = seen(&space);
                prop_assert!(all.iter().all(|m| m.0 < m.1));
                prop_assert!(all.windows(2).all(|pair| pair[0].1 <= pair[1].0));
                let at = maps::find(&space.maps, start << 12).unwrap();
                prop_assert_eq!(space.maps[at].inode, inode);
            }
        }
    }
}
