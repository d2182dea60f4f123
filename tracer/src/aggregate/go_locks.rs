//! Waits of goroutines: a histogram for each lock or channel, reason and stack.

use rustc_hash::FxHashMap;
use tracer_ebpf::wire::{GoWait, go_site, go_wait};

use super::{
    hist::Room,
    waits::{Row, SIDES_MAX},
};
use crate::stacks::StackId;

/// Rows; further ones are folded into one row for each process, counted.
const ROWS_MAX: usize = 16_384;
/// Memory for the histograms of all rows.
const HISTOGRAMS_BYTES: usize = 8 << 20;

/// Channels told apart that goroutines wait for in one place: programs make one for each request. Further ones are one row.
const CHANNELS_MAX: u32 = 16;

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Process.
    pub tgid: u32,
    /// One of [`tracer_ebpf::wire::go_site`].
    pub site: u32,
    /// The word waited on, or the channel; 0 in a folded row, and where channels are not told apart.
    pub address: u64,
    /// Stack of those that waited.
    pub stack: StackId,
    /// As [`GoWait::reason`].
    pub reason: u32,
}

/// All waits of goroutines. [`Row::tids`] are the low halves of goroutines' numbers.
#[derive(Clone, Debug)]
pub struct GoLocks {
    rows: FxHashMap<Key, Row>,
    /// Channels seen by stack.
    channels: FxHashMap<StackId, u32>,
    room: Room,
    window_start_ns: u64,
    folded: u64,
}

impl Default for GoLocks {
    fn default() -> Self {
        Self {
            rows: FxHashMap::default(),
            channels: FxHashMap::default(),
            room: Room::new(HISTOGRAMS_BYTES),
            window_start_ns: 0,
            folded: 0,
        }
    }
}

impl GoLocks {
    /// A wait ended; what the stacks of the two goroutines are.
    pub fn on_wait(&mut self, record: &GoWait, (stack, waker_stack): (StackId, StackId)) {
        let tgid = record.header.tgid;
        let mut key = Key {
            tgid,
            site: record.site,
            address: record.address,
            stack,
            reason: record.reason,
        };
        if record.site == go_site::PARK && key.address != 0 && !self.rows.contains_key(&key) {
            let seen = self.channels.entry(stack).or_default();
            if *seen < CHANNELS_MAX {
                *seen += 1;
            } else {
                key.address = 0;
            }
        }
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key) {
            self.folded += 1;
            key = Key {
                address: 0,
                stack: StackId::NONE,
                ..key
            };
        }
        let ended_ns = record.header.ts_ns;
        let waited_ns = ended_ns.saturating_sub(record.started_ns);
        let inside_ns = waited_ns.min(ended_ns.saturating_sub(self.window_start_ns));
        let times = u64::from(record.weight.max(1));
        let row = self.rows.entry(key).or_default();
        row.inside_ns = row.inside_ns.saturating_add(inside_ns.saturating_mul(times));
        if record.flags & go_wait::GAVE_UP != 0 {
            row.interrupted += times;
        } else if record.flags & go_wait::UNKNOWN != 0 {
            row.unknown += times;
        } else {
            row.handed_over += times;
        }
        row.tids.insert(record.goid as u32, SIDES_MAX);
        let waker = (waker_stack, tgid);
        // Of a pool's waits some have none: who gave up, or came in the moment in which a connection came back.
        let woken = record.site != go_site::POOL || record.waker_goid != 0;
        if woken && (row.wakers.len() < SIDES_MAX || row.wakers.contains_key(&waker)) {
            *row.wakers.entry(waker).or_default() += times;
        }
        if record.waker_goid != 0 {
            row.waker_tids.insert(record.waker_goid as u32, SIDES_MAX);
        }
        self.room.record_n(&mut row.wait, waited_ns, times);
        while self.room.is_full() {
            self.room.shrink(self.rows.values_mut().map(|row| &mut row.wait));
        }
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = (&Key, &Row)> {
        self.rows.iter()
    }

    /// Waits that went to a folded row.
    #[must_use]
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    /// Begins a new window.
    pub fn reset(&mut self, now_ns: u64) {
        self.window_start_ns = now_ns;
        self.rows.clear();
        self.channels.clear();
        self.room.clear();
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::wire::{Header, kind};

    use super::*;

    fn record(address: u64, started_ns: u64, ended_ns: u64, goid: u64) -> GoWait {
        GoWait {
            header: Header {
                kind: kind::GO_WAIT,
                class: 0,
                tgid: 10,
                tid: 11,
                cpu: 0,
                ts_ns: ended_ns,
            },
            started_ns,
            address,
            goid,
            waker_goid: 1,
            stack: 0,
            waker_stack: 0,
            site: go_site::SEMAPHORE,
            flags: 0,
            weight: 1,
            reason: 0,
        }
    }

    const STACKS: (StackId, StackId) = (StackId(3), StackId(9));

    #[test]
    fn waits_of_one_lock_and_stack_are_one_row() {
        let mut locks = GoLocks::default();
        for goid in 1..=23 {
            locks.on_wait(&record(0x1000, 100, 5_100, goid), STACKS);
        }
        locks.on_wait(&record(0x2000, 100, 5_100, 1), STACKS);
        locks.on_wait(&record(0x1000, 100, 5_100, 1), (StackId(4), StackId(9)));
        assert_eq!(locks.rows().count(), 3);
        let (_, row) = locks
            .rows()
            .find(|(key, _)| key.address == 0x1000 && key.stack == StackId(3))
            .unwrap();
        assert_eq!((row.wait.count(), row.wait.total()), (23, 23 * 5_000));
        assert_eq!(row.wakers[&(StackId(9), 10)], 23);
        assert_eq!(row.tids.clone().into_iter().count(), 23);
        assert_eq!(row.waker_tids.clone().into_iter().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn who_gave_up_was_not_handed_a_connection_and_has_no_waker() {
        let mut locks = GoLocks::default();
        let given = GoWait {
            site: go_site::POOL,
            ..record(0x1000, 100, 5_100, 7)
        };
        let ended = |flags, waker_goid| GoWait {
            flags,
            waker_goid,
            ..given
        };
        locks.on_wait(&given, STACKS);
        // Nobody was seen to give this one its connection.
        locks.on_wait(&ended(0, 0), (STACKS.0, StackId::NONE));
        locks.on_wait(&ended(go_wait::GAVE_UP, 0), (STACKS.0, StackId::NONE));
        locks.on_wait(&ended(go_wait::UNKNOWN, 0), (STACKS.0, StackId::NONE));
        let (_, row) = locks.rows().next().unwrap();
        assert_eq!((row.handed_over, row.interrupted, row.unknown), (2, 1, 1));
        assert_eq!(row.wakers.values().copied().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_wait_counts_for_a_window_as_far_as_it_lies_in_it() {
        let mut locks = GoLocks::default();
        locks.reset(4_000);
        let wait = GoWait {
            weight: 8,
            ..record(0x1000, 1_000, 9_000, 7)
        };
        locks.on_wait(&wait, STACKS);
        let (_, row) = locks.rows().next().unwrap();
        assert_eq!(
            (row.inside_ns, row.wait.total(), row.handed_over),
            (40_000, 64_000, 8)
        );
        locks.reset(9_000);
        assert_eq!(locks.rows().count(), 0);
    }

    #[test]
    fn channels_of_one_place_are_told_apart_while_they_are_few() {
        let mut waits = GoLocks::default();
        for round in 0..2 {
            for channel in 0..97 {
                let wait = GoWait {
                    site: go_site::PARK,
                    reason: 14,
                    ..record(0x1000 + 96 * channel, 0, 1_000 + round, 1)
                };
                waits.on_wait(&wait, STACKS);
            }
        }
        let (apart, together): (Vec<_>, Vec<_>) = waits.rows().partition(|(key, _)| key.address != 0);
        assert_eq!(apart.len(), CHANNELS_MAX as usize);
        assert!(apart.iter().all(|(_, row)| row.wait.count() == 2));
        assert_eq!(together.len(), 1);
        assert_eq!(together[0].1.wait.count(), 2 * (97 - u64::from(CHANNELS_MAX)));
        assert_eq!(waits.folded(), 0);
    }

    #[test]
    fn more_locks_than_are_kept_are_folded() {
        let mut locks = GoLocks::default();
        for lock in 0..ROWS_MAX as u64 + 97 {
            locks.on_wait(&record(8 * lock + 8, 0, 1_000, 1), STACKS);
        }
        assert_eq!(locks.folded(), 97);
        let sum: u64 = locks.rows().map(|(_, row)| row.wait.count()).sum();
        assert_eq!(sum, ROWS_MAX as u64 + 97);
    }
}
