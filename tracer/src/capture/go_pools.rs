//! What the probes on pools of connections keep: waits under way, and how often connections were wanted.

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData, PerCpuHashMap};
use tracer_ebpf::{
    go_pool::{Counts, Pending},
    go_wait::Key,
};

use super::{Wire, some_keys};

/// Entries of either map looked at.
const MOST: usize = 65_536;

/// The two maps.
pub(super) struct GoPools {
    waits: HashMap<MapData, Wire<Key>, Wire<Pending>>,
    counts: PerCpuHashMap<MapData, Wire<Key>, Wire<Counts>>,
}

impl GoPools {
    /// Of the object.
    pub(super) fn new(waits: Map, counts: Map) -> Result<Self> {
        Ok(Self {
            waits: HashMap::try_from(waits)?,
            counts: PerCpuHashMap::try_from(counts)?,
        })
    }

    /// Of each pool of a process, by address.
    pub(super) fn counts(&self, pid: u32) -> Vec<(u64, Counts)> {
        let own = self
            .counts
            .iter()
            .take(MOST)
            .filter_map(Result::ok)
            .filter(|(key, _)| key.0.tgid == pid);
        own.map(|(key, each)| {
            let mut sum = Counts::default();
            for counts in each.iter() {
                sum.requests = sum.requests.saturating_add(counts.0.requests);
                sum.waits = sum.waits.saturating_add(counts.0.waits);
            }
            (key.0.g, sum)
        })
        .collect()
    }

    /// Forgets a process's: the next program that it runs may have others at the same addresses.
    pub(super) fn forget(&mut self, pid: u32) {
        let is_own = |key: &Wire<Key>| key.0.tgid == pid;
        for key in some_keys(self.waits.keys(), MOST, is_own) {
            let _ = self.waits.remove(&key);
        }
        for key in some_keys(self.counts.keys(), MOST, is_own) {
            let _ = self.counts.remove(&key);
        }
    }
}
