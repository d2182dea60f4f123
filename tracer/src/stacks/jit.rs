//! Names of code that a runtime compiled as it ran: from the map that it writes for tools, `/tmp/perf-PID.map`.
//!
//! ```text
//! START SIZE NAME\n        in hex, each line for a piece of code as it is made; a later line takes the place of an earlier one
//! ```
//! Node writes it with `--perf-basic-prof`, the JVM when told to (`jcmd PID Compiler.perfmap`), CPython with `-X perf`. Code comes and
//! goes at one address, so a stack is named by what the map says when it is first read after the stack was first seen. The map is
//! never held: it is read to its end for the addresses that have no names yet, however long it is.

mod file;
mod line;

#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::space::Space;
use super::symbols::Named;
use super::{StackId, Stacks};
pub(super) use file::Place;
use file::State;

/// Addresses named in one reading, and kept of one process.
const MAX_ADDRESSES: usize = 1 << 18;
/// Whether a map has grown is not asked more often, for addresses that it had no name for.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// What was found out about code outside files, by process.
#[derive(Default)]
pub(super) struct JitNames {
    processes: FxHashMap<u32, Process>,
}

/// One process's.
#[derive(Default)]
struct Process {
    /// How many stacks there were at each reading: by it a stack's own reading is known.
    readings: Vec<u32>,
    names: FxHashMap<(u64, usize), Rc<Named>>,
    /// Addresses, and of which reading, that had no name so far.
    unnamed: Vec<(u64, usize)>,
    file: Option<State>,
    asked: Option<Instant>,
    found: bool,
}

impl JitNames {
    /// Finds names for the addresses of a stack that lie outside files; reads the map if that may bring new ones.
    pub(super) fn load(&mut self, stacks: &Stacks, id: StackId) {
        let Some(tgid) = stacks.interned.tgid(id) else {
            return;
        };
        let process = self.processes.entry(tgid).or_default();
        let new = process.readings.last().is_none_or(|&upto| id.0 > upto);
        let ask = || process.asked.is_none_or(|at| at.elapsed() >= ASK_INTERVAL);
        if !new && (process.unnamed.is_empty() || !ask()) {
            return;
        }
        let place = stacks.spaces.get(&tgid).and_then(Space::jit);
        // A process that did nothing outside files before it was asked about is looked at now, if it still lives.
        let place = place.or_else(|| Place::of(tgid).map(Into::into));
        process.asked = Some(Instant::now());
        process.read(stacks, tgid, place.as_deref(), new);
    }

    /// The name of an address of a stack that was loaded.
    pub(super) fn name(&self, stacks: &Stacks, id: StackId, address: u64) -> Option<Rc<Named>> {
        let process = self.processes.get(&stacks.interned.tgid(id)?)?;
        let reading = process.readings.partition_point(|&upto| upto < id.0);
        process.names.get(&(address, reading)).cloned()
    }

    /// Whether a process has a map.
    pub(super) fn has_map(&self, tgid: u32) -> bool {
        self.processes.get(&tgid).is_some_and(|process| process.found)
    }
}

impl Process {
    fn read(&mut self, stacks: &Stacks, tgid: u32, place: Option<&Place>, new: bool) {
        let mut wanted = std::mem::take(&mut self.unnamed);
        if new {
            let from = self.readings.last().copied().unwrap_or(0);
            let upto = stacks.len() as u32;
            self.readings.push(upto);
            let reading = self.readings.len() - 1;
            let ids = (from + 1..=upto).map(StackId);
            let addresses = ids
                .filter(|&id| stacks.interned.tgid(id) == Some(tgid))
                .flat_map(|id| stacks.frames(id))
                .filter(|frame| frame.module.is_none())
                .map(|frame| (frame.code(), reading));
            wanted.extend(addresses.take(MAX_ADDRESSES));
        }
        wanted.sort_unstable();
        wanted.dedup();
        wanted.truncate(MAX_ADDRESSES);
        let grown = |file: &State| new || self.file.as_ref().is_none_or(|known| file.differs(known));
        let Some(map) = place.and_then(Place::open).filter(|(_, state)| grown(state)) else {
            self.unnamed = wanted;
            return;
        };
        let (file, state) = map;
        self.found = true;
        self.file = Some(state);
        if self.names.len() > MAX_ADDRESSES {
            self.names.clear();
        }
        let addresses: Vec<u64> = wanted.iter().map(|w| w.0).collect();
        let found = file::find(file, &addresses);
        for (at, found) in wanted.into_iter().zip(found) {
            match found {
                Some(found) => drop(self.names.insert(at, Rc::new(found))),
                None => self.unnamed.push(at),
            }
        }
    }
}
