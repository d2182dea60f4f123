//! The numbers at one moment, by one read of the process's memory.

use super::{
    find::{Metrics, Place, TRIES},
    heap::Heap,
    times::Times,
};
use crate::{
    go::memory::{Memory, Piece},
    stacks::elf::{u32_at, u64_at},
};

/// Pauses that the runtime keeps.
pub(super) const RING: u32 = 256;
/// Offsets from `memstats.last_gc_unix`: the sum of pauses, the last ones, when they ended, the number of collections, of forced
/// ones, and when the last one ended by the clock that runs evenly.
const TOTAL: usize = 8;
const PAUSES: usize = 16;
const ENDS: usize = PAUSES + 8 * RING as usize;
const CYCLES: usize = ENDS + 8 * RING as usize;
const FORCED: usize = CYCLES + 4;
const LAST: usize = CYCLES + 16;
/// Bytes of all that.
pub(super) const COLLECTIONS: usize = LAST + 8;
/// Bytes of the eleven counters of CPU time.
pub(super) const CPU: usize = 88;

/// Collections since the program began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collections {
    /// How many; wraps round.
    pub cycles: u32,
    /// How many of them the program asked for; wraps round.
    pub forced: u32,
    /// Sum of their pauses, nanoseconds.
    pub pause_ns: u64,
    /// When the last one ended, `CLOCK_MONOTONIC`; 0 before the first.
    pub ended_ns: u64,
    /// Pauses of the last 256, by their number modulo 256. Each is the sum of the stops of one collection.
    ring: Vec<u64>,
    /// How many there were when the ring had been read: it may have lost as many of the oldest.
    later: u32,
}

impl Collections {
    /// `earlier`: how many there were before the rest was read.
    fn parse(earlier: u32, bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| u64_at(bytes, at);
        Some(Self {
            cycles: earlier,
            forced: u32_at(bytes, FORCED)?,
            pause_ns: word(TOTAL)?,
            ended_ns: word(LAST)?,
            ring: (0..RING as usize)
                .map(|at| word(PAUSES + 8 * at))
                .collect::<Option<_>>()?,
            later: u32_at(bytes, CYCLES)?,
        })
    }

    /// The pause of a collection, by number; None for one that has been overwritten, or may have been.
    #[must_use]
    pub fn pause(&self, number: u32) -> Option<u64> {
        let (ago, read) = (self.cycles.wrapping_sub(number), self.later.wrapping_sub(number));
        let kept = (1..=RING).contains(&ago) && (1..RING).contains(&read);
        kept.then(|| self.ring.get((number % RING) as usize).copied())?
    }
}

/// The last collection is in both rings, and none is without a pause.
pub(super) fn whole(bytes: &[u8]) -> bool {
    let numbers = || {
        let (unix, cycles) = (u64_at(bytes, 0)?, u32_at(bytes, CYCLES)?);
        let (total, forced) = (u64_at(bytes, TOTAL)?, u32_at(bytes, FORCED)?);
        let last = (cycles.wrapping_sub(1) % RING) as usize;
        let (pause, end) = (u64_at(bytes, PAUSES + 8 * last)?, u64_at(bytes, ENDS + 8 * last)?);
        if cycles == 0 {
            return Some(unix == 0 && total == 0 && pause == 0 && end == 0);
        }
        Some(end == unix && pause > 0 && pause <= total && forced <= cycles && u64_at(bytes, LAST)? > 0)
    };
    numbers().unwrap_or(false)
}

/// CPU time that the runtime accounts for at the end of each collection: wall time of its workers, which includes what they waited
/// for a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Done by goroutines that wanted memory, before they got it.
    pub assist_ns: u64,
    /// By workers on CPUs that had nothing else to do.
    pub idle_ns: u64,
    /// All of the collector's.
    pub collector_ns: u64,
    /// What there was: `GOMAXPROCS` times the time since the program began.
    pub all_ns: u64,
    /// When the last collection ended, `CLOCK_MONOTONIC`; 0 before the first.
    pub ended_ns: u64,
}

/// None where the sums are wrong: it is changing, or something else.
pub(super) fn cpu(bytes: &[u8]) -> Option<Cpu> {
    let word = |at: usize| u64_at(bytes, 8 * at).filter(|&ns| ns < 1 << 62);
    let sum = |from: usize, to: usize| (from..to).map(word).sum::<Option<u64>>();
    let (collector_ns, all_ns) = (word(4)?, word(10)?);
    let right = sum(0, 4)? == collector_ns && sum(5, 7)? == word(7)?;
    right.then_some(Cpu {
        assist_ns: word(0)?,
        idle_ns: word(2)?,
        collector_ns,
        all_ns,
        ended_ns: 0,
    })
}

/// Stops of the world other than the pauses themselves; counts since the program began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stops {
    /// For a collection: until all threads stood.
    pub stopping: Times,
    /// For something else, such as a profile or a change of `GOMAXPROCS`: until all threads stood.
    pub other_stopping: Times,
    /// For something else: all of it.
    pub others: Times,
}

/// The numbers at one moment. What is None was not found, or changed too fast.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Collections.
    pub collections: Option<Collections>,
    /// Their CPU time.
    pub cpu: Option<Cpu>,
    /// The heap.
    pub heap: Option<Heap>,
    /// Every stop for a collection, of which each has two or more.
    pub stops: Option<Times>,
    /// Other stops; since Go 1.22.
    pub other: Option<Stops>,
    /// How long goroutines were runnable before they ran, of every eighth time that one does.
    pub run_queue: Option<Times>,
    /// Time that goroutines waited for `sync.Mutex` and `sync.RWMutex`, estimated by the runtime from every eighth; since Go 1.20.
    pub mutex_wait_ns: Option<u64>,
}

impl Metrics {
    /// Reads all numbers that were found.
    #[must_use]
    pub fn sample<M: Memory>(&self, memory: &M) -> Sample {
        let mut sample = self.once(memory);
        // A collection was just being accounted for.
        for _ in 1..TRIES {
            if sample.cpu.is_some() || self.cpu.is_none() {
                break;
            }
            sample = self.once(memory);
        }
        sample
    }

    fn once<M: Memory>(&self, memory: &M) -> Sample {
        let mut pieces = Vec::new();
        let mut wanted = |at: Option<u64>, len: usize| {
            pieces.push(Piece::new(at.unwrap_or(0), if at.is_some() { len } else { 0 }));
            pieces.len() - 1
        };
        let histogram = |place: Option<Place>| place.map(|place| (place.at, place.form.size() as usize));
        let mut wanted_times = |place: Option<Place>| {
            let (at, len) = histogram(place).unzip();
            wanted(at, len.unwrap_or(0))
        };
        let stops = wanted_times(self.stops);
        let others = [0, 1, 2].map(|at| wanted_times(self.others.map(|others| others[at])));
        let run_queue = wanted_times(self.run_queue);
        // The number of collections comes before what it counts, and once more after it.
        let earlier = wanted(self.collections.map(|at| at.wrapping_add(CYCLES as u64)), 4);
        let collections = wanted(self.collections, COLLECTIONS);
        let cpu_time = wanted(self.cpu, CPU);
        let heap = wanted(
            self.heap.map(|heap| heap.at),
            self.heap.map_or(0, |heap| heap.len),
        );
        let mutex_wait = wanted(self.mutex_wait, 8);

        let mut bytes = vec![0; pieces.iter().map(|piece| piece.len).sum()];
        memory.read_pieces(&mut pieces, &mut bytes);
        let mut rest = &bytes[..];
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let (part, after) = rest.split_at_checked(piece.len).unwrap_or((&[], &[]));
            parts.push((piece.whole && piece.len > 0).then_some(part));
            rest = after;
        }
        let part = |at: usize| parts.get(at).copied().flatten();
        let times = |place: Option<Place>, at: usize| Times::parse(place?.form, part(at)?);
        let other = |at: usize| times(self.others.map(|others| others[at]), others[at]);
        let collections =
            part(earlier).and_then(|earlier| Collections::parse(u32_at(earlier, 0)?, part(collections)?));
        let ended_ns = collections.as_ref().map_or(0, |one| one.ended_ns);
        Sample {
            collections,
            cpu: part(cpu_time).and_then(cpu).map(|cpu| Cpu { ended_ns, ..cpu }),
            heap: self.heap.and_then(|found| found.parse(part(heap)?)),
            stops: times(self.stops, stops),
            other: other(0).and_then(|stopping| {
                Some(Stops {
                    stopping,
                    other_stopping: other(1)?,
                    others: other(2)?,
                })
            }),
            run_queue: times(self.run_queue, run_queue),
            mutex_wait_ns: part(mutex_wait).and_then(|bytes| u64_at(bytes, 0)),
        }
    }
}
