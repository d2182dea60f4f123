//! Which stacks the probes recognise by themselves: what they are told, and what their answers mean.
//!
//! Pure book-keeping. What is to be written into the probes' maps is left as [`Order`]s for who owns the maps.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHasher};
use std::hash::{Hash as _, Hasher as _};
use tracer_ebpf::{
    memo::{self, Input, KEYS, Key, POOL_BYTES, WAYS, Ways},
    wire::StackPlace,
};

use super::StackId;

/// Memos lie at multiples of this, in bytes: freed ones fit others of about their size.
const GRAIN: usize = 64;
/// Words of the largest memo.
const WORDS_MAX: usize = 2 + memo::RUNS + memo::INPUTS + memo::INPUTS / 4;
/// Dropped memos whose ids are still understood: records that name them may be on their way.
const TOMBSTONES: usize = 4096;
/// Layouts that a process had before and that its records on the way may still name.
const EARLIER: usize = 16;
/// Keys kept in the probes' map, a little less than it holds.
const KEYS_MAX: usize = KEYS as usize - 64;

/// Something to be written where the probes see it, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// The memo at this offset holds no longer.
    Clear(u32),
    /// A memo: its words but for the id, and the id, which makes it valid.
    Write {
        /// Offset in the pool.
        at: u32,
        /// From the second word on.
        words: Box<[u64]>,
        /// The first word.
        id: u64,
    },
    /// The memos of a key; all 0: none.
    Ways(Key, Ways),
    /// The layout of a process's address space.
    Space {
        /// Process.
        tgid: u32,
        /// Its layout; 0: none.
        space: u32,
    },
}

/// What a memo's id means in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// This stack, as it was unwound in that process.
    Stack(StackId, u32),
    /// The mappings below it had changed, or it is not known.
    Stale,
}

struct Memo {
    generation: u32,
    key: Key,
    at: u32,
    bytes: u32,
    hash: u64,
    /// The stack, and the process in which it was unwound.
    stack: StackId,
    tgid: u32,
    /// In use; else a tombstone.
    live: bool,
    /// From then on its mappings were others.
    dead_since_ns: u64,
    used: u64,
}

struct Process {
    space: u32,
    /// Layouts before the present one, and until when.
    earlier: VecDeque<(u32, u64)>,
}

/// All memos.
pub(super) struct Memos {
    /// By index; dropped ones stay until their index is used anew.
    all: Vec<Memo>,
    tombs: VecDeque<u32>,
    keys: FxHashMap<Key, [u32; WAYS]>,
    processes: FxHashMap<u32, Process>,
    last_space: u32,
    /// Free pieces of the pool by size in grains, and the part never used.
    free: FxHashMap<usize, Vec<u32>>,
    unused: usize,
    clock: u64,
    live: usize,
    dropped: u64,
    unfit: u64,
    orders: Vec<Order>,
}

impl Default for Memos {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            tombs: VecDeque::new(),
            keys: FxHashMap::default(),
            processes: FxHashMap::default(),
            last_space: 0,
            free: FxHashMap::default(),
            // Offset 0 means none.
            unused: GRAIN,
            clock: 0,
            live: 0,
            dropped: 0,
            unfit: 0,
            orders: Vec::new(),
        }
    }
}

impl Memos {
    /// What is to be told to the probes.
    pub(super) fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// Memos that hold.
    pub(super) const fn len(&self) -> usize {
        self.live
    }

    /// Memos that had to make room, and stacks that cannot have one.
    pub(super) const fn dropped(&self) -> (u64, u64) {
        (self.dropped, self.unfit)
    }

    /// A process begins, or begins another program: a new layout.
    pub(super) fn renew(&mut self, tgid: u32, ts_ns: u64) {
        self.last_space += 1;
        let space = self.last_space;
        self.enter(tgid, space, ts_ns);
    }

    /// A process begins as a copy of another.
    pub(super) fn fork(&mut self, parent: u32, child: u32, ts_ns: u64) {
        match self.processes.get(&parent).map(|process| process.space) {
            Some(space) => self.enter(child, space, ts_ns),
            None => self.renew(child, ts_ns),
        }
    }

    fn enter(&mut self, tgid: u32, space: u32, ts_ns: u64) {
        let before = self.processes.get_mut(&tgid).map(|process| {
            if process.earlier.len() >= EARLIER {
                process.earlier.pop_front();
            }
            process.earlier.push_back((process.space, ts_ns));
            std::mem::replace(&mut process.space, space)
        });
        match before {
            Some(before) if before != space => self.leave(before),
            Some(_) => {}
            None => {
                let earlier = VecDeque::new();
                self.processes.insert(tgid, Process { space, earlier });
            }
        }
        self.orders.push(Order::Space { tgid, space });
    }

    /// A process has gone.
    pub(super) fn exit(&mut self, tgid: u32) {
        if let Some(process) = self.processes.remove(&tgid) {
            self.leave(process.space);
        }
    }

    /// Drops what only this layout had, if nobody has it any more.
    fn leave(&mut self, space: u32) {
        if self.processes.values().all(|process| process.space != space) {
            self.drop_where(|memo| memo.key.space == space);
        }
    }

    /// A process changed its executable mappings. `touched` tells whether a stack, of those unwound in a process, has a frame
    /// there.
    pub(super) fn mapped(&mut self, tgid: u32, ts_ns: u64, touched: impl Fn(StackId) -> bool) {
        let Some(space) = self.processes.get(&tgid).map(|process| process.space) else {
            return;
        };
        if !self
            .all
            .iter()
            .any(|memo| memo.live && memo.key.space == space && touched(memo.stack))
        {
            return;
        }
        if self
            .processes
            .iter()
            .any(|(&other, process)| other != tgid && process.space == space)
        {
            // The others' stacks are still what they were.
            self.renew(tgid, ts_ns);
            return;
        }
        for memo in &mut self.all {
            if memo.live && memo.key.space == space && touched(memo.stack) {
                memo.dead_since_ns = memo.dead_since_ns.min(ts_ns);
            }
        }
        self.drop_where(|memo| memo.dead_since_ns != u64::MAX);
    }

    /// Nothing is known of any process's mappings between two times: what was known before is forgotten.
    pub(super) fn forget(&mut self, ts_ns: u64) {
        let tgids: Vec<u32> = self.processes.keys().copied().collect();
        for tgid in tgids {
            self.renew(tgid, ts_ns);
        }
    }

    /// Remembers how a stack of a process is recognised. `inputs` are sorted; None: by nothing that a probe could compare.
    pub(super) fn learn(&mut self, tgid: u32, place: StackPlace, inputs: Option<&[Input]>, stack: StackId) {
        let Some(space) = self.processes.get(&tgid).map(|process| process.space) else {
            return;
        };
        let mut words = [0u64; WORDS_MAX];
        let Some(bytes) = inputs.and_then(|inputs| memo::encode(inputs, &mut words)) else {
            self.unfit += 1;
            return;
        };
        let words = words.get(1..bytes / 8).unwrap_or_default();
        let mut hasher = FxHasher::default();
        words.hash(&mut hasher);
        let hash = hasher.finish();
        let key = Key::new(space, place);
        let ways = self.keys.get(&key).copied().unwrap_or([0; WAYS]);
        let known = |&way: &u32| self.by_way(way).is_some_and(|memo| memo.hash == hash);
        if ways.iter().any(known) {
            return;
        }
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(&key) {
            self.make_room();
        }
        if !ways.contains(&0) {
            // Of the key's own, the one not seen for longest.
            let oldest = ways
                .iter()
                .copied()
                .min_by_key(|&way| self.by_way(way).map_or(0, |memo| memo.used));
            if let Some(index) = oldest.and_then(|way| way.checked_sub(1)) {
                self.drop_one(index);
            }
        }
        let at = self.allocate(bytes);
        let (index, generation) = self.bury();
        self.clock += 1;
        let memo = Memo {
            generation,
            key,
            at,
            bytes: bytes as u32,
            hash,
            stack,
            tgid,
            live: true,
            dead_since_ns: u64::MAX,
            used: self.clock,
        };
        if let Some(slot) = self.all.get_mut(index as usize) {
            *slot = memo;
        } else {
            self.all.push(memo);
        }
        self.live += 1;
        self.orders.push(Order::Write {
            at,
            words: words.into(),
            id: id(index, generation),
        });
        let ways = self.keys.entry(key).or_insert([0; WAYS]);
        if let Some(way) = ways.iter_mut().find(|way| **way == 0) {
            *way = index + 1;
        }
        self.tell_ways(key);
    }

    /// What the id of a memo means in a record of a process about a stack of that time.
    pub(super) fn meaning(&mut self, id: u64, tgid: u32, ts_ns: u64) -> Meaning {
        self.clock += 1;
        let clock = self.clock;
        let (index, generation) = ((id >> 32) as usize, id as u32);
        let Some(memo) = index.checked_sub(1).and_then(|index| self.all.get_mut(index)) else {
            return Meaning::Stale;
        };
        if memo.generation != generation || ts_ns >= memo.dead_since_ns {
            return Meaning::Stale;
        }
        if let Some(process) = self.processes.get(&tgid)
            && process.space != memo.key.space
        {
            let earlier = |&(space, until): &(u32, u64)| space == memo.key.space && ts_ns < until;
            if !process.earlier.iter().any(earlier) {
                return Meaning::Stale;
            }
        }
        memo.used = clock;
        Meaning::Stack(memo.stack, memo.tgid)
    }

    /// The probes and the unwinder disagree about a memo: it goes.
    pub(super) fn retract(&mut self, id: u64) {
        let index = ((id >> 32) as u32).wrapping_sub(1);
        if self
            .all
            .get(index as usize)
            .is_some_and(|memo| memo.live && memo.generation == id as u32)
        {
            self.drop_one(index);
        }
    }

    /// The memo of a way, which is its index plus one.
    fn by_way(&self, way: u32) -> Option<&Memo> {
        self.all.get(way.checked_sub(1)? as usize)
    }

    /// An index for a new memo and its generation.
    fn bury(&mut self) -> (u32, u32) {
        if self.tombs.len() > TOMBSTONES
            && let Some(index) = self.tombs.pop_front()
            && let Some(old) = self.all.get(index as usize)
        {
            return (index, old.generation.wrapping_add(1));
        }
        (self.all.len() as u32, 1)
    }

    fn allocate(&mut self, bytes: usize) -> u32 {
        let grains = bytes.div_ceil(GRAIN);
        for attempt in 0..2 {
            if let Some(at) = self.free.get_mut(&grains).and_then(Vec::pop) {
                return at;
            }
            if self.unused + grains * GRAIN <= POOL_BYTES {
                let at = self.unused;
                self.unused += grains * GRAIN;
                return at as u32;
            }
            if attempt == 0 {
                self.make_room();
            }
        }
        // Pieces of other sizes only: begin anew.
        self.drop_where(|_| true);
        self.free.clear();
        self.unused = GRAIN + grains * GRAIN;
        GRAIN as u32
    }

    /// Drops the half not seen for longest.
    fn make_room(&mut self) {
        let mut used: Vec<u64> = self
            .all
            .iter()
            .filter(|memo| memo.live)
            .map(|memo| memo.used)
            .collect();
        let middle = used.len() / 2;
        if used.is_empty() {
            return;
        }
        let (_, &mut median, _) = used.select_nth_unstable(middle);
        self.dropped += middle as u64;
        self.drop_where(|memo| memo.used <= median);
    }

    fn drop_where(&mut self, doomed: impl Fn(&Memo) -> bool) {
        let indices: Vec<u32> = (0..)
            .zip(&self.all)
            .filter(|(_, memo)| memo.live && doomed(memo))
            .map(|(index, _)| index)
            .collect();
        for index in indices {
            self.drop_one(index);
        }
    }

    fn drop_one(&mut self, index: u32) {
        let Some(memo) = self.all.get_mut(index as usize).filter(|memo| memo.live) else {
            return;
        };
        memo.live = false;
        self.live -= 1;
        let (key, at, grains) = (memo.key, memo.at, (memo.bytes as usize).div_ceil(GRAIN));
        self.tombs.push_back(index);
        self.free.entry(grains).or_default().push(at);
        self.orders.push(Order::Clear(at));
        if let Some(ways) = self.keys.get_mut(&key) {
            // The first 0 ends a probe's search.
            let mut left = [0; WAYS];
            let kept = ways.iter().copied().filter(|&way| way != 0 && way != index + 1);
            for (to, way) in left.iter_mut().zip(kept) {
                *to = way;
            }
            *ways = left;
        }
        self.tell_ways(key);
    }

    fn tell_ways(&mut self, key: Key) {
        let Some(ways) = self.keys.get(&key).copied() else {
            return;
        };
        let told = ways.map(|way| self.by_way(way).map_or(0, |memo| memo.at));
        if told[0] == 0 {
            self.keys.remove(&key);
        }
        self.orders.push(Order::Ways(key, told));
    }
}

/// The id of a memo: never 0, and never that of another.
const fn id(index: u32, generation: u32) -> u64 {
    ((index as u64 + 1) << 32 | generation as u64) & tracer_ebpf::wire::stack_ref::VALUE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tracer_ebpf::memo::Source;

    use super::*;

    fn place(ip: u64) -> StackPlace {
        StackPlace { sp: 0x7000_1230, ip }
    }

    fn inputs(value: u64) -> [Input; 2] {
        [0, 8].map(|at| Input {
            source: Source::Stack(at),
            relative: false,
            value: value + u64::from(at),
        })
    }

    /// What the probes would find: pool offset → id, and keys → offsets.
    #[derive(Default)]
    struct Kernel {
        pool: FxHashMap<u32, u64>,
        ways: FxHashMap<Key, Ways>,
        spaces: FxHashMap<u32, u32>,
    }

    impl Kernel {
        fn obey(&mut self, memos: &mut Memos) {
            for order in memos.take_orders() {
                match order {
                    Order::Clear(at) => drop(self.pool.insert(at, 0)),
                    Order::Write { at, words, id } => {
                        assert!(at as usize + 8 + words.len() * 8 <= POOL_BYTES);
                        self.pool.insert(at, id);
                    }
                    Order::Ways(key, ways) if ways == [0; WAYS] => drop(self.ways.remove(&key)),
                    Order::Ways(key, ways) => drop(self.ways.insert(key, ways)),
                    Order::Space { tgid, space } => drop(self.spaces.insert(tgid, space)),
                }
            }
        }

        fn ids(&self, tgid: u32, at: StackPlace) -> Vec<u64> {
            let ways = self.ways.get(&Key::new(self.spaces[&tgid], at));
            let ways = ways.copied().unwrap_or_default();
            ways.iter()
                .filter(|&&at| at != 0)
                .map(|at| self.pool[at])
                .collect()
        }
    }

    #[test]
    fn a_memo_is_told_and_understood() {
        let (mut memos, mut kernel) = (Memos::default(), Kernel::default());
        memos.renew(7, 1);
        for _ in 0..2 {
            memos.learn(7, place(5), Some(&inputs(1)), StackId(9));
        }
        kernel.obey(&mut memos);
        let ids = kernel.ids(7, place(5));
        assert_eq!((ids.len(), memos.len()), (1, 1));
        assert_eq!(memos.meaning(ids[0], 7, 100), Meaning::Stack(StackId(9), 7));
        assert_eq!(memos.meaning(ids[0] + 1, 7, 100), Meaning::Stale);
        // A child has its parent's.
        memos.fork(7, 8, 2);
        kernel.obey(&mut memos);
        assert_eq!(kernel.ids(8, place(5)), ids);
        assert_eq!(memos.meaning(ids[0], 8, 100), Meaning::Stack(StackId(9), 7));
    }

    #[test]
    fn other_mappings_end_what_lay_there() {
        let (mut memos, mut kernel) = (Memos::default(), Kernel::default());
        memos.renew(7, 1);
        memos.learn(7, place(5), Some(&inputs(1)), StackId(9));
        memos.learn(7, place(6), Some(&inputs(2)), StackId(10));
        kernel.obey(&mut memos);
        let (gone, kept) = (kernel.ids(7, place(5))[0], kernel.ids(7, place(6))[0]);
        memos.mapped(7, 50, |stack| stack == StackId(9));
        kernel.obey(&mut memos);
        assert!(kernel.ids(7, place(5)).is_empty());
        assert_eq!(
            memos.meaning(gone, 7, 49),
            Meaning::Stack(StackId(9), 7),
            "on its way"
        );
        assert_eq!(memos.meaning(gone, 7, 50), Meaning::Stale);
        assert_eq!(memos.meaning(kept, 7, 60), Meaning::Stack(StackId(10), 7));
        // Of a layout that others share only this process leaves it.
        memos.fork(7, 8, 70);
        memos.mapped(8, 80, |_| true);
        kernel.obey(&mut memos);
        assert_eq!(memos.meaning(kept, 7, 90), Meaning::Stack(StackId(10), 7));
        assert_eq!(memos.meaning(kept, 8, 79), Meaning::Stack(StackId(10), 7));
        assert_eq!(memos.meaning(kept, 8, 80), Meaning::Stale);
        assert!(kernel.ids(8, place(6)).is_empty());
        // A new program.
        memos.renew(7, 100);
        kernel.obey(&mut memos);
        assert!(kernel.ids(7, place(6)).is_empty());
        assert_eq!(memos.len(), 0);
    }

    #[test]
    fn a_key_keeps_those_seen_last() {
        let (mut memos, mut kernel) = (Memos::default(), Kernel::default());
        memos.renew(7, 1);
        for n in 0..WAYS as u64 {
            memos.learn(7, place(5), Some(&inputs(n * 100)), StackId(n as u32 + 1));
        }
        kernel.obey(&mut memos);
        let first = kernel.ids(7, place(5))[0];
        memos.meaning(first, 7, 10);
        memos.learn(7, place(5), Some(&inputs(9000)), StackId(99));
        kernel.obey(&mut memos);
        let ids = kernel.ids(7, place(5));
        assert_eq!(ids.len(), WAYS);
        assert!(ids.contains(&first) && ids.iter().all(|&id| id != 0));
        memos.retract(first);
        kernel.obey(&mut memos);
        assert_eq!(kernel.ids(7, place(5)).len(), WAYS - 1);
    }

    proptest! {
        /// However much is learnt and dropped, what the probes hold is what is meant, and within the pool.
        #[test]
        fn the_probes_never_hold_more_than_is_known(
            steps in proptest::collection::vec((0u64..40_000, 1usize..200, 0u32..3), 1..400),
        ) {
            let (mut memos, mut kernel) = (Memos::default(), Kernel::default());
            memos.renew(0, 0);
            memos.renew(1, 0);
            memos.renew(2, 0);
            for (now, (ip, words, tgid)) in (1..).zip(steps) {
                let inputs: Vec<Input> = (0..words as u32)
                    .map(|n| Input { source: Source::Stack(n * 8), relative: n % 3 == 0, value: ip })
                    .collect();
                memos.learn(tgid, place(ip % 50), Some(&inputs), StackId(now as u32));
                if ip % 97 == 0 {
                    memos.mapped(tgid, now, |stack| stack.0 % 2 == 0);
                }
                if ip % 499 == 0 {
                    memos.forget(now);
                }
            }
            kernel.obey(&mut memos);
            let mut seen = 0;
            for ways in kernel.ways.values() {
                for at in ways.iter().filter(|&&at| at != 0) {
                    let id = kernel.pool[at];
                    prop_assert_ne!(id, 0);
                    let index = (id >> 32) as usize - 1;
                    prop_assert!(memos.all[index].live && memos.all[index].generation == id as u32);
                    seen += 1;
                }
            }
            prop_assert_eq!(seen, memos.len());
        }
    }

    #[test]
    fn a_full_pool_makes_room() {
        let (mut memos, mut kernel) = (Memos::default(), Kernel::default());
        memos.renew(7, 1);
        let many: Vec<Input> = (0..200)
            .map(|n| Input {
                source: Source::Stack(n * 8),
                relative: false,
                value: 1,
            })
            .collect();
        for n in 0..3000 {
            memos.learn(7, place(n), Some(&many), StackId(n as u32 + 1));
        }
        kernel.obey(&mut memos);
        assert!(memos.dropped().0 > 0 && memos.len() > 100, "{}", memos.len());
        assert_eq!(kernel.ids(7, place(2999)).len(), 1);
        assert!(kernel.ids(7, place(0)).is_empty());
        // Another size, when only pieces of that one are free.
        for n in 0..20_000 {
            memos.learn(7, place(10_000 + n), Some(&inputs(n)), StackId(1));
        }
        kernel.obey(&mut memos);
        assert_eq!(kernel.ids(7, place(29_999)).len(), 1);
    }
}
