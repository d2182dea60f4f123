//! Pools of connections over time, by samples: how long all were in use, and who waited.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::go::pools::Pool;

/// Pools kept.
const MAX_POOLS: usize = 256;
/// Stacks of waiters kept, of one pool.
const MAX_STACKS: usize = 1024;

/// Those of one program.
#[derive(Debug, Default)]
pub struct Pools {
    by_address: BTreeMap<u64, PoolAccount>,
    /// From the first snapshot to the last.
    window_ns: u64,
    last_ns: Option<u64>,
    snapshots: u64,
}

/// What was seen of one.
#[derive(Clone, Debug)]
pub struct PoolAccount {
    /// When last seen.
    pub last: Pool,
    /// Waits that had begun before it was first seen, and were over.
    waited_before: u64,
    /// How long those took.
    waited_before_ns: Option<u64>,
    /// Snapshots in which all its connections were in use and somebody waited.
    pub exhausted: u64,
    /// The time that they stand for.
    pub exhausted_ns: u64,
    /// Time that goroutines waited, all of them together.
    pub waiting_ns: u64,
    /// That, by their group.
    pub by_group: FxHashMap<u32, u64>,
}

impl PoolAccount {
    /// Waits since it was first seen, those that were under way then included.
    #[must_use]
    pub const fn waits(&self) -> u64 {
        self.last.waited.saturating_sub(self.waited_before)
    }

    /// What the waits took that ended since then, by the program's own account.
    #[must_use]
    pub fn waited_ns(&self) -> Option<u64> {
        Some(self.last.waited_ns?.saturating_sub(self.waited_before_ns?))
    }
}

impl Pools {
    /// Takes what a snapshot found.
    pub fn observe(&mut self, found: Vec<Pool>, now_ns: u64) {
        let passed = self.last_ns.map_or(0, |last| now_ns.saturating_sub(last));
        self.last_ns = Some(now_ns);
        self.window_ns += passed;
        self.snapshots += 1;
        for pool in found {
            if self.by_address.len() >= MAX_POOLS && !self.by_address.contains_key(&pool.address) {
                continue;
            }
            let account = self
                .by_address
                .entry(pool.address)
                .or_insert_with(|| PoolAccount {
                    waited_before: pool.waited.saturating_sub(pool.waiters.len() as u64),
                    waited_before_ns: pool.waited_ns,
                    last: pool.clone(),
                    exhausted: 0,
                    exhausted_ns: 0,
                    waiting_ns: 0,
                    by_group: FxHashMap::default(),
                });
            // What nobody waits for is not known to be a pool still.
            if pool.waiters.is_empty()
                && (pool.max_open != account.last.max_open || pool.waited < account.last.waited)
            {
                account.last.waiters.clear();
                continue;
            }
            if pool.exhausted() {
                account.exhausted += 1;
                account.exhausted_ns += passed;
            }
            for waiter in &pool.waiters {
                account.waiting_ns = account.waiting_ns.saturating_add(passed);
                if account.by_group.len() < MAX_STACKS || account.by_group.contains_key(&waiter.group) {
                    let sum = account.by_group.entry(waiter.group).or_default();
                    *sum = sum.saturating_add(passed);
                }
            }
            account.last = pool;
        }
    }

    /// Addresses of all that were seen.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        self.by_address.keys().copied()
    }

    /// All that were seen.
    pub fn iter(&self) -> impl Iterator<Item = &PoolAccount> {
        self.by_address.values()
    }

    /// Time that the snapshots cover.
    #[must_use]
    pub const fn window_ns(&self) -> u64 {
        self.window_ns
    }

    /// Snapshots taken.
    #[must_use]
    pub const fn snapshots(&self) -> u64 {
        self.snapshots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::pools::PoolWaiter;

    const MS: u64 = 1_000_000;

    fn pool(idle: u64, waited: u64, groups: &[u32]) -> Pool {
        Pool {
            address: 0xc000,
            max_open: 10,
            open: 10,
            idle,
            waited,
            waited_ns: Some(waited * 1000),
            waiters: groups
                .iter()
                .map(|&group| PoolWaiter { goid: 7, group })
                .collect(),
        }
    }

    #[test]
    fn time_of_exhaustion_and_of_those_who_wait() {
        let mut pools = Pools::default();
        pools.observe(Vec::new(), 100 * MS);
        // Two wait when it is first seen; 40 had waited before.
        pools.observe(vec![pool(0, 42, &[1, 2])], 120 * MS);
        pools.observe(vec![pool(0, 43, &[2])], 150 * MS);
        pools.observe(vec![pool(3, 43, &[])], 180 * MS);
        let account = pools.iter().next().unwrap();
        assert_eq!((account.waits(), account.waited_ns()), (3, Some(1000)));
        assert_eq!((account.exhausted, account.exhausted_ns), (2, 50 * MS));
        assert_eq!(account.waiting_ns, 70 * MS);
        assert_eq!((account.by_group[&1], account.by_group[&2]), (20 * MS, 50 * MS));
        assert_eq!((pools.window_ns(), pools.snapshots()), (80 * MS, 4));
        assert_eq!(pools.addresses().collect::<Vec<_>>(), [0xc000]);
    }

    #[test]
    fn many_pools_are_bounded() {
        let mut pools = Pools::default();
        for address in 0..2 * MAX_POOLS as u64 {
            pools.observe(
                vec![Pool {
                    address,
                    ..pool(0, 1, &[1])
                }],
                address * MS,
            );
        }
        assert_eq!(pools.iter().count(), MAX_POOLS);
    }
}
