//! What happened between samples, and over a whole run.

use super::{
    heap::Heap,
    sample::{Cpu, RING, Sample},
    times::Times,
};
use crate::{
    aggregate::hist::Histogram,
    report::{hist::hist, model::GoGc},
};

/// More collections than this between two samples are a number that jumped.
const MAX_CYCLES: u32 = 1 << 24;

/// What happened between two samples.
#[derive(Clone, Debug, Default)]
pub struct Gc {
    /// Collections that ended; None when they are not known.
    pub cycles: Option<u32>,
    /// How many of them the program asked for.
    pub forced: u32,
    /// The pauses that were still there, in order, nanoseconds.
    pub pauses: Vec<u64>,
    /// Collections whose pause was not.
    pub lost: u32,
    /// Sum of all pauses, nanoseconds.
    pub pause_ns: u64,
    /// CPU time of the collector without what ran on idle CPUs, nanoseconds.
    pub cpu_ns: Option<u64>,
    /// How much of that goroutines did themselves.
    pub assist_ns: u64,
    /// CPUs that the runtime used, by its own accounts at the ends of collections.
    pub processors: Option<f64>,
}

/// What happened from one sample to a later one of the same process.
#[must_use]
pub fn between(before: &Sample, after: &Sample) -> Gc {
    let (Some(first), Some(last)) = (&before.collections, &after.collections) else {
        return Gc::default();
    };
    let cycles = last.cycles.wrapping_sub(first.cycles);
    if cycles > MAX_CYCLES {
        return Gc::default();
    }
    let kept = (0..cycles.min(RING)).rev();
    let pauses: Vec<u64> = kept
        .filter_map(|ago| last.pause(last.cycles.wrapping_sub(1).wrapping_sub(ago)))
        .collect();
    let lost = cycles - pauses.len() as u32;
    let sum = pauses.iter().fold(0, |sum: u64, ns| sum.saturating_add(*ns));
    let cpu = before.cpu.zip(after.cpu);
    Gc {
        cycles: Some(cycles),
        forced: last.forced.wrapping_sub(first.forced).min(cycles),
        lost,
        pause_ns: if lost == 0 {
            sum
        } else {
            last.pause_ns.saturating_sub(first.pause_ns).max(sum)
        },
        pauses,
        cpu_ns: cpu.map(|(first, last)| first.used(&last)),
        assist_ns: cpu.map_or(0, |(first, last)| first.assisted(&last)),
        processors: cpu.and_then(|(first, last)| first.processors(&last)),
    }
}

/// From one account to a later one.
impl Cpu {
    /// CPU time of the collector without what ran on idle CPUs.
    fn used(&self, last: &Self) -> u64 {
        let all = last.collector_ns.saturating_sub(self.collector_ns);
        all.saturating_sub(last.idle_ns.saturating_sub(self.idle_ns))
    }

    /// How much of that goroutines did themselves.
    const fn assisted(&self, last: &Self) -> u64 {
        last.assist_ns.saturating_sub(self.assist_ns)
    }

    /// CPUs that the runtime used; both accounts are of the end of a collection.
    fn processors(&self, last: &Self) -> Option<f64> {
        let time = last.ended_ns.saturating_sub(self.ended_ns);
        (self.ended_ns > 0 && time > 0).then(|| last.all_ns.saturating_sub(self.all_ns) as f64 / time as f64)
    }
}

/// Adds up samples: each pause once, however often samples are taken. At least one is needed in the time of 255 collections, or
/// pauses are lost, which is counted.
#[derive(Clone, Debug, Default)]
pub struct GcTrack {
    first: Sample,
    last: Sample,
    /// The first account of CPU time at the end of a collection.
    base: Option<Cpu>,
    cycles: u64,
    lost: u64,
    pauses: Histogram,
    pause_ns: u64,
}

impl GcTrack {
    /// Of what comes after this sample.
    #[must_use]
    pub fn new(first: Sample) -> Self {
        Self {
            base: first.cpu.filter(|cpu| cpu.ended_ns > 0),
            last: first.clone(),
            first,
            ..Self::default()
        }
    }

    /// Takes the next one. One of which nothing could be read, as of a process that has ended, changes nothing.
    pub fn add(&mut self, next: Sample) {
        if self.last.collections.is_none() && self.first == Sample::default() {
            *self = Self::new(next);
            return;
        }
        let gc = between(&self.last, &next);
        let Some(cycles) = gc.cycles else { return };
        self.cycles += u64::from(cycles);
        self.lost += u64::from(gc.lost);
        gc.pauses.iter().for_each(|&ns| self.pauses.record(ns));
        self.pause_ns = self.pause_ns.saturating_add(gc.pause_ns);
        self.base = self.base.or(next.cpu.filter(|cpu| cpu.ended_ns > 0));
        // What could not be read this time is counted with the next.
        self.last = Sample {
            collections: next.collections,
            cpu: next.cpu.or(self.last.cpu),
            heap: next.heap.or(self.last.heap),
            stops: next.stops.or(self.last.stops.take()),
            other: next.other.or(self.last.other.take()),
            run_queue: next.run_queue.or(self.last.run_queue.take()),
            mutex_wait_ns: next.mutex_wait_ns.or(self.last.mutex_wait_ns),
        };
    }

    /// The last sample.
    #[must_use]
    pub const fn last(&self) -> &Sample {
        &self.last
    }
}

/// What a track says of a window of that length; None when the runtime's numbers of collections were not found.
#[must_use]
pub fn gc(track: &GcTrack, window_ns: u64) -> Option<GoGc> {
    track.last.collections.as_ref()?;
    let window = window_ns.max(1) as f64;
    let (first, last) = (&track.first, &track.last);
    let since =
        |before: Option<&Times>, after: Option<&Times>| Some(hist(&after?.since(before?).histogram()));
    let other = |part: fn(&super::Stops) -> &Times| {
        since(first.other.as_ref().map(part), last.other.as_ref().map(part))
    };
    // From end to end: a collection is counted, timed and accounted for one after the other, and a sample in between has the one and
    // not the other.
    let cpu = first.cpu.zip(last.cpu);
    let cpu_ns = cpu.map(|(first, last)| first.used(&last));
    let assist_ns = cpu.map_or(0, |(first, last)| first.assisted(&last));
    let processors = track
        .base
        .zip(last.cpu)
        .and_then(|(base, last)| base.processors(&last));
    let forced = first
        .collections
        .as_ref()
        .zip(last.collections.as_ref())
        .map(|(first, last)| u64::from(last.forced.wrapping_sub(first.forced)).min(track.cycles));
    // Without a collection no CPU time was accounted for, and none is needed to know it.
    let share = |ns: u64| match (ns, processors) {
        (0, _) => Some(0.0),
        (ns, Some(processors)) if processors > 0.0 => Some((ns as f64 / (window * processors)).min(1.0)),
        _ => None,
    };
    Some(GoGc {
        cycles: track.cycles,
        forced,
        pauses: hist(&track.pauses),
        pauses_lost: track.lost,
        pause_total_ns: track.pause_ns,
        pause_share: (track.pause_ns as f64 / window).min(1.0),
        stops: since(first.stops.as_ref(), last.stops.as_ref()),
        stopping: other(|stops| &stops.stopping),
        other_stops: other(|stops| &stops.others),
        cpu_ns,
        cpu_share: cpu_ns.and_then(share),
        assist_share: cpu_ns.and_then(|_| share(assist_ns)),
        heap_live_bytes: last.heap.map(|heap| heap.live),
        heap_goal_bytes: last.heap.and_then(|heap: Heap| heap.goal),
        memory_limit_bytes: last.heap.and_then(|heap| heap.limit),
        limited: last.heap.map(|heap| heap.limited),
        mutex_wait_ns: last
            .mutex_wait_ns
            .zip(first.mutex_wait_ns)
            .map(|(after, before)| after.saturating_sub(before)),
        run_queue: since(first.run_queue.as_ref(), last.run_queue.as_ref()),
    })
}
