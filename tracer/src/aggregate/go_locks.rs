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
/// Of them, those of parks: a program's channels leave room for its locks.
const PARKS_MAX: usize = ROWS_MAX / 2;
/// Memory for the histograms of all rows.
const HISTOGRAMS_BYTES: usize = 8 << 20;

/// Channels told apart that goroutines wait for in one place. Programs make one for each request, and get the addresses of those that are
/// gone: where there are more, all of the place are one row.
const CHANNELS_MAX: usize = 16;

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
    /// Addresses of the channels that a place has rows of, by its row without an address; `None`: too many to be told apart.
    channels: FxHashMap<Key, Option<Vec<u64>>>,
    /// Rows of parks.
    parks: usize,
    room: Room,
    window_start_ns: u64,
    /// Rows told by slice.
    sliced: usize,
    folded: u64,
    folded_parks: u64,
}

impl Default for GoLocks {
    fn default() -> Self {
        Self {
            rows: FxHashMap::default(),
            channels: FxHashMap::default(),
            parks: 0,
            room: Room::new(HISTOGRAMS_BYTES),
            window_start_ns: 0,
            sliced: 0,
            folded: 0,
            folded_parks: 0,
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
        let parks = record.site == go_site::PARK;
        if parks && key.address != 0 && !self.rows.contains_key(&key) {
            key.address = self.channel(key);
        }
        let full = self.rows.len() >= ROWS_MAX || (parks && self.parks >= PARKS_MAX);
        if full && !self.rows.contains_key(&key) {
            self.folded += 1;
            self.folded_parks += u64::from(parks);
            key = Key {
                address: 0,
                stack: StackId::NONE,
                ..key
            };
        }
        if parks && !self.rows.contains_key(&key) {
            self.parks += 1;
        }
        let ended_ns = record.header.ts_ns;
        let waited_ns = ended_ns.saturating_sub(record.started_ns);
        let inside_ns = waited_ns.min(ended_ns.saturating_sub(self.window_start_ns));
        let times = u64::from(record.weight.max(1));
        let row = self.rows.entry(key).or_default();
        row.inside_ns = row.inside_ns.saturating_add(inside_ns.saturating_mul(times));
        let at_ns = ended_ns.saturating_sub(self.window_start_ns);
        row.slice(at_ns, waited_ns, times, &mut self.sliced);
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

    /// The address under which a channel not seen before has its row. One too many makes one row of all of its place.
    fn channel(&mut self, key: Key) -> u64 {
        let place = Key { address: 0, ..key };
        let known = self.channels.entry(place).or_insert_with(|| Some(Vec::new()));
        let Some(addresses) = known else { return 0 };
        if addresses.len() < CHANNELS_MAX {
            addresses.push(key.address);
            return key.address;
        }
        let addresses = known.take().unwrap_or_default();
        let mut sum = self.rows.remove(&place).unwrap_or_default();
        for address in addresses {
            // One that found no room has none.
            if let Some(row) = self.rows.remove(&Key { address, ..key }) {
                self.room.leave(&row.wait);
                self.parks = self.parks.saturating_sub(1);
                sum.merge(&row);
            }
        }
        self.rows.insert(place, sum);
        0
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

    /// Of them, those of parks: no verdict rests on these.
    #[must_use]
    pub const fn folded_parks(&self) -> u64 {
        self.folded_parks
    }

    /// Begins a new window.
    pub fn reset(&mut self, now_ns: u64) {
        self.window_start_ns = now_ns;
        self.sliced = 0;
        self.rows.clear();
        self.channels.clear();
        self.parks = 0;
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

    fn park(channel: u64, ended_ns: u64) -> GoWait {
        GoWait {
            site: go_site::PARK,
            reason: 14,
            ..record(0x1000 + 96 * channel, 0, ended_ns, 1)
        }
    }

    #[test]
    fn channels_of_one_place_are_told_apart_while_they_are_few() {
        let mut waits = GoLocks::default();
        for round in 0..2 {
            for channel in 0..CHANNELS_MAX as u64 {
                waits.on_wait(&park(channel, 1_000 + round), STACKS);
            }
        }
        assert!(waits.rows().all(|(_, row)| row.wait.count() == 2));
        assert_eq!((waits.rows().count(), waits.parks), (CHANNELS_MAX, CHANNELS_MAX));
        // One more: they may well be made anew each time, at addresses of others that are gone.
        for round in 0..2 {
            for channel in CHANNELS_MAX as u64..97 {
                waits.on_wait(&park(channel, 1_000 + round), STACKS);
            }
        }
        let rows: Vec<_> = waits.rows().collect();
        let [(key, row)] = rows[..] else {
            panic!("{rows:?}")
        };
        assert_eq!(
            (key.address, key.stack, row.wait.count()),
            (0, StackId(3), 2 * 97)
        );
        assert_eq!(
            (row.wakers[&(StackId(9), 10)], waits.folded(), waits.parks),
            (2 * 97, 0, 0)
        );
        // Another place has channels of its own.
        waits.on_wait(&park(3, 1_000), (StackId(4), StackId(9)));
        assert_eq!((waits.rows().count(), waits.parks), (2, 1));
    }

    #[test]
    fn channels_leave_room_for_locks() {
        let mut waits = GoLocks::default();
        for stack in 0..ROWS_MAX as u32 {
            for channel in 0..5 {
                waits.on_wait(&park(channel, 1_000), (StackId(1 + stack), StackId(9)));
            }
        }
        let all = 5 * ROWS_MAX as u64;
        assert_eq!(waits.folded(), all - PARKS_MAX as u64);
        assert_eq!(waits.folded_parks(), waits.folded());
        for lock in 0..1_000 {
            waits.on_wait(&record(8 * lock + 8, 0, 1_000, 1), STACKS);
        }
        assert_eq!(waits.folded_parks(), waits.folded());
        let locks = waits.rows().filter(|(key, _)| key.site == go_site::SEMAPHORE);
        assert_eq!(locks.count(), 1_000);
        let sum: u64 = waits.rows().map(|(_, row)| row.wait.count()).sum();
        assert_eq!(sum, all + 1_000);
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
