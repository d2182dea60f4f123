//! Pools of connections over time, by samples: how long all were in use, and who waited.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use crate::go::pools::{Pool, Uses};

/// Pools kept.
const MAX_POOLS: usize = 256;
/// Stacks kept, of those who wait for one pool or use it.
const MAX_STACKS: usize = 4096;

/// Those of one program.
#[derive(Debug, Default)]
pub struct Pools {
    by_address: BTreeMap<u64, PoolAccount>,
    /// Those that are used, whether somebody was seen to wait or not.
    used: BTreeSet<u64>,
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
    /// The time that they stand for. All that follows is of that time.
    pub exhausted_ns: u64,
    /// Time that goroutines waited, by their group.
    pub waiting: FxHashMap<u32, u64>,
    /// Time that goroutines used connections, by their group: of this pool, as long as the program had no other.
    pub using: FxHashMap<u32, u64>,
    /// Time of goroutines of which it is not known what they did.
    pub unseen_ns: u64,
    /// The program had other pools.
    pub others: bool,
}

impl PoolAccount {
    fn new(pool: &Pool) -> Self {
        Self {
            waited_before: pool.waited.saturating_sub(pool.waiting()),
            waited_before_ns: pool.waited_ns,
            last: pool.clone(),
            exhausted: 0,
            exhausted_ns: 0,
            waiting: FxHashMap::default(),
            using: FxHashMap::default(),
            unseen_ns: 0,
            others: false,
        }
    }

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

/// Adds time to a group's.
fn add(groups: &mut FxHashMap<u32, u64>, group: u32, ns: u64) {
    if groups.len() < MAX_STACKS || groups.contains_key(&group) {
        let sum = groups.entry(group).or_default();
        *sum = sum.saturating_add(ns);
    }
}

impl Pools {
    /// Takes what a snapshot found; `uses` is asked for when some pool is exhausted.
    pub fn observe(&mut self, found: Vec<Pool>, uses: impl Fn() -> Uses, now_ns: u64) {
        let passed = self.last_ns.map_or(0, |last| now_ns.saturating_sub(last));
        self.last_ns = Some(now_ns);
        self.window_ns += passed;
        self.snapshots += 1;
        let mut asked = None;
        for pool in found {
            if self.by_address.len() >= MAX_POOLS && !self.by_address.contains_key(&pool.address) {
                continue;
            }
            let account = self
                .by_address
                .entry(pool.address)
                .or_insert_with(|| PoolAccount::new(&pool));
            let waiting = pool.waiting();
            if pool.waited < account.last.waited {
                // Another one lies there now; without a waiter it need not be one.
                if waiting > 0 {
                    *account = PoolAccount::new(&pool);
                } else {
                    account.last.waiters.clear();
                    continue;
                }
            }
            if waiting == 0 && pool.idle > pool.open {
                account.last.waiters.clear();
                continue;
            }
            if pool.exhausted() {
                account.exhausted += 1;
                account.exhausted_ns += passed;
                for &(group, count) in &pool.waiters {
                    add(&mut account.waiting, group, passed.saturating_mul(count));
                }
                let uses = asked.get_or_insert_with(&uses);
                account.others |= uses.databases != 1;
                let unseen_ns = passed.saturating_mul(uses.unseen);
                account.unseen_ns = account.unseen_ns.saturating_add(unseen_ns);
                for &(group, count) in &uses.by_group {
                    add(&mut account.using, group, passed.saturating_mul(count));
                }
            }
            account.last = pool;
        }
    }

    /// There is a pool at this address: its own counts are wanted from now on.
    pub fn expect(&mut self, address: u64) {
        if self.used.len() < MAX_POOLS {
            self.used.insert(address);
        }
    }

    /// Addresses of all that were seen, or are expected.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        let unseen = self.used.iter().filter(|at| !self.by_address.contains_key(at));
        self.by_address.keys().chain(unseen).copied()
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

    const MS: u64 = 1_000_000;

    fn pool(idle: u64, waited: u64, waiters: &[(u32, u64)]) -> Pool {
        Pool {
            address: 0xc000,
            max_open: 10,
            open: 10,
            idle,
            waited,
            waited_ns: Some(waited * 1000),
            waiters: waiters.to_vec(),
            asked: Vec::new(),
        }
    }

    fn uses() -> Uses {
        Uses {
            by_group: vec![(7, 3)],
            unseen: 2,
            databases: 1,
        }
    }

    fn one(pools: &Pools) -> &PoolAccount {
        pools.iter().next().unwrap()
    }

    #[test]
    fn time_of_exhaustion_and_of_those_who_wait() {
        let mut pools = Pools::default();
        pools.observe(Vec::new(), uses, 100 * MS);
        // Two wait when it is first seen; 40 had waited before.
        pools.observe(vec![pool(0, 42, &[(1, 1), (2, 1)])], uses, 120 * MS);
        pools.observe(vec![pool(0, 43, &[(2, 1)])], uses, 150 * MS);
        // Not exhausted: what is done then says nothing of why it was.
        pools.observe(vec![pool(3, 43, &[])], uses, 180 * MS);
        let account = one(&pools);
        assert_eq!((account.waits(), account.waited_ns()), (3, Some(1000)));
        assert_eq!((account.exhausted, account.exhausted_ns), (2, 50 * MS));
        assert_eq!((account.waiting[&1], account.waiting[&2]), (20 * MS, 50 * MS));
        assert_eq!((account.using[&7], account.unseen_ns), (150 * MS, 100 * MS));
        assert!(!account.others);
        assert_eq!((pools.window_ns(), pools.snapshots()), (80 * MS, 4));
        assert_eq!(pools.addresses().collect::<Vec<_>>(), [0xc000]);
    }

    #[test]
    fn a_pool_that_is_changed_or_replaced() {
        let mut pools = Pools::default();
        pools.observe(vec![pool(0, 42, &[(1, 2)])], uses, 100 * MS);
        let more = Pool {
            max_open: 30,
            open: 12,
            ..pool(2, 50, &[])
        };
        pools.observe(vec![more], uses, 120 * MS);
        assert_eq!((one(&pools).last.max_open, one(&pools).waits()), (30, 10));
        // Nonsense that nobody waits for, then another pool at the same place.
        pools.observe(vec![pool(0, 3, &[])], uses, 140 * MS);
        assert_eq!((one(&pools).last.max_open, one(&pools).waits()), (30, 10));
        let two = || Uses {
            databases: 2,
            ..uses()
        };
        pools.observe(vec![pool(0, 3, &[(1, 2)])], two, 160 * MS);
        assert_eq!((one(&pools).last.max_open, one(&pools).waits()), (10, 2));
        assert!(one(&pools).others);
    }

    #[test]
    fn a_pool_that_is_expected_is_asked_for_once() {
        let mut pools = Pools::default();
        pools.expect(0xc000);
        pools.expect(0xd000);
        // Before anybody had waited: all of its waits are of this time.
        pools.observe(vec![pool(10, 0, &[])], uses, 100 * MS);
        assert_eq!(pools.addresses().collect::<Vec<_>>(), [0xc000, 0xd000]);
        pools.observe(vec![pool(0, 9, &[(1, 2)])], uses, 120 * MS);
        assert_eq!(one(&pools).waits(), 9);
    }

    #[test]
    fn many_pools_are_bounded() {
        let mut pools = Pools::default();
        for address in 0..2 * MAX_POOLS as u64 {
            let pool = Pool {
                address,
                ..pool(0, 1, &[(1, 1)])
            };
            pools.observe(vec![pool], uses, address * MS);
        }
        assert_eq!(pools.iter().count(), MAX_POOLS);
    }
}
