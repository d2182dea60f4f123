//! Pools of connections of `database/sql`.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    frames::{Ask, is_pointer, read_standing},
    memory::Memory,
    objects::{DATABASE, Objects, Structs},
    snapshot::{NO_GROUP, Reader, Status},
};
use crate::stacks::elf::u64_at;

/// Bytes read of a structure.
const MAX_STRUCT: usize = 4096;
/// Connections of one pool; the default has no limit, but the system has.
const MAX_CONNECTIONS: u64 = 1 << 24;
/// Waiters asked for their pool, of one group and in all: those of a group do the same, mostly with the same pool.
const ASKED_OF_GROUP: u64 = 64;
const ASKED: usize = 1 << 13;
/// Pools read.
const MAX_POOLS: usize = 1024;

/// A `sql.DB` that goroutines wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Address.
    pub address: u64,
    /// Connections that it may open (`SetMaxOpenConns`).
    pub max_open: u64,
    /// Connections that it has open, or is opening.
    pub open: u64,
    /// Those of them that nobody uses.
    pub idle: u64,
    /// How often somebody had to wait, since it was made.
    pub waited: u64,
    /// What the waits took that are over, all together: of those who got a connection, and of those who gave up.
    pub waited_ns: Option<u64>,
    /// Who waits: how many of each group.
    pub waiters: Vec<(u32, u64)>,
    /// Numbers of those that were asked.
    pub asked: Vec<u64>,
}

impl Pool {
    /// Goroutines that wait for a connection.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiters.iter().map(|(_, count)| count).sum()
    }

    /// All that it may have are in use, and somebody wants another.
    #[must_use]
    pub fn exhausted(&self) -> bool {
        self.max_open > 0 && self.open >= self.max_open && self.idle == 0 && self.waiting() > 0
    }
}

/// What a program does with connections of its pools, whichever they are of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Goroutines within `database/sql` that do not wait for a connection, by group.
    pub by_group: Vec<(u32, u64)>,
    /// Goroutines of which it is not known what they do: they run, or moved while they were read.
    pub unseen: u64,
    /// Pools that are open, used or not.
    pub databases: u64,
}

/// Offsets in `sql.DB`.
#[derive(Clone, Debug)]
pub(super) struct Databases {
    max_open: usize,
    open: usize,
    idle: usize,
    waited: usize,
    waited_ns: Option<usize>,
    len: usize,
}

impl Databases {
    pub(super) fn find(found: &Structs) -> Option<Self> {
        let database = found.get(&DATABASE)?;
        let found = Self {
            max_open: database.field("maxOpen")?,
            open: database.field("numOpen")?,
            // A slice: its length is the second word.
            idle: database.field("freeConn")?.checked_add(8)?,
            waited: database.field("waitCount")?,
            waited_ns: database.field("waitDuration"),
            len: usize::try_from(database.size).ok()?,
        };
        (found.len <= MAX_STRUCT).then_some(found)
    }

    /// Of one that somebody waits for, or waited for at least so often.
    fn read(&self, address: u64, bytes: &[u8], waited: u64) -> Option<Pool> {
        let pool = Pool {
            address,
            max_open: u64_at(bytes, self.max_open)?,
            open: u64_at(bytes, self.open)?,
            idle: u64_at(bytes, self.idle)?,
            waited: u64_at(bytes, self.waited)?,
            waited_ns: self
                .waited_ns
                .and_then(|at| u64_at(bytes, at))
                .filter(|&ns| ns < 1 << 62),
            waiters: Vec::new(),
            asked: Vec::new(),
        };
        let numbers = [pool.max_open, pool.open, pool.idle];
        // Who waits was counted; without a limit nobody waits.
        let sound = numbers.iter().all(|&number| number <= MAX_CONNECTIONS)
            && pool.max_open > 0
            && (waited..1 << 48).contains(&pool.waited);
        sound.then_some(pool)
    }
}

impl Objects {
    /// Looks at stacks that are new, if the program has pools at all.
    pub fn learn_pools<M: Memory>(&mut self, reader: &Reader<M>) {
        if self.databases.is_some() {
            self.learn(reader);
        }
    }

    /// The pools that goroutines of the last snapshot wait for a connection of, and those `known` to be there.
    pub fn pools<M: Memory>(&mut self, reader: &Reader<M>, known: impl Iterator<Item = u64>) -> Vec<Pool> {
        self.learn_pools(reader);
        let known: Vec<u64> = known.collect();
        let wanted = self.any_database || !known.is_empty();
        let Some(layout) = self.databases.as_ref().filter(|_| wanted) else {
            return Vec::new();
        };
        let mut waiting: FxHashMap<u32, u64> = FxHashMap::default();
        let mut asked: FxHashSet<u64> = FxHashSet::default();
        for (_, goroutine) in reader.goroutines() {
            let waits = goroutine.status.reason().is_some()
                && self
                    .sites(goroutine)
                    .is_some_and(|sites| sites.database.is_some());
            if waits {
                let count = waiting.entry(goroutine.group).or_default();
                *count += 1;
                if *count <= ASKED_OF_GROUP && asked.len() < ASKED {
                    asked.insert(goroutine.goid);
                }
            }
        }
        let receivers = self.receivers(
            reader,
            |goroutine| asked.contains(&goroutine.goid),
            |sites| sites.database,
        );
        // Each pool once, while one that waits for it still stands there.
        let mut first: BTreeMap<u64, Ask> = BTreeMap::new();
        for &(g, goroutine, at) in receivers.iter().filter(|receiver| is_pointer(receiver.2)) {
            if first.len() < MAX_POOLS || first.contains_key(&at) {
                first.entry(at).or_insert(Ask {
                    g,
                    goroutine,
                    at,
                    len: layout.len,
                });
            }
        }
        let asks: Vec<Ask> = first.into_values().collect();
        let mut pools: BTreeMap<u64, Pool> = BTreeMap::new();
        read_standing(reader, &asks, |at, bytes| {
            let address = asks.get(at).map_or(0, |ask| ask.at);
            if let Some(pool) = layout.read(address, bytes, 1) {
                pools.insert(address, pool);
            }
        });
        // Those of a group that were not asked wait for the same pools in the same proportions.
        let mut votes: FxHashMap<u32, (u64, FxHashMap<u64, u64>)> = FxHashMap::default();
        for &(_, goroutine, at) in &receivers {
            let (all, by_pool) = votes.entry(goroutine.group).or_default();
            *all += 1;
            *by_pool.entry(at).or_default() += 1;
            if let Some(pool) = pools.get_mut(&at) {
                pool.asked.push(goroutine.goid);
            }
        }
        for (group, (all, by_pool)) in votes {
            let count = waiting.get(&group).copied().unwrap_or(0);
            for (at, votes) in by_pool {
                if let Some(pool) = pools.get_mut(&at) {
                    pool.waiters.push((group, (count * votes).div_ceil(all.max(1))));
                }
            }
        }
        for address in known {
            let free = || layout.read(address, &reader.memory().read(address, layout.len)?, 0);
            if !pools.contains_key(&address)
                && let Some(pool) = free()
            {
                pools.insert(address, pool);
            }
        }
        pools.into_values().collect()
    }

    /// What goroutines of the last snapshot do with connections.
    #[must_use]
    pub fn pool_uses<M: Memory>(&self, reader: &Reader<M>) -> Uses {
        let mut uses = Uses::default();
        let mut by_group: FxHashMap<u32, u64> = FxHashMap::default();
        for (_, goroutine) in reader.goroutines() {
            if goroutine.status == Status::Running || goroutine.group == NO_GROUP {
                uses.unseen += 1;
                continue;
            }
            let Some(sites) = self.sites(goroutine) else {
                continue;
            };
            uses.databases += u64::from(sites.serves_database);
            if sites.uses_database {
                *by_group.entry(goroutine.group).or_default() += 1;
            }
        }
        uses.by_group = by_group.into_iter().collect();
        uses
    }
}
