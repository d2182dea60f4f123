//! Goroutines of the targets: when they are looked at, and what is remembered of them.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Error;

use crate::{
    aggregate::{go_pools::Pools, goroutines::Goroutines},
    go::{
        memory::Live,
        metrics::{GcTrack, Metrics},
        objects::Objects,
        program::Program,
        runtime::Runtime,
        snapshot::{Goroutine, Reader, Tally, Watch},
    },
    proc::host,
};

/// Between two snapshots at least.
const SHORTEST: Duration = Duration::from_millis(20);
/// And at most, whatever they cost.
const LONGEST: Duration = Duration::from_mins(2);
/// A snapshot may take this share of the time until the next: 0.25 % of a core, so that all of Go stays under 0.5 %.
const SHARE: u32 = 400;

/// A target that is a Go program.
pub struct GoTarget {
    /// What reads it.
    pub reader: Reader<Live>,
    /// What was read.
    pub goroutines: Goroutines,
    /// Where it keeps what they wait on.
    pub objects: Objects,
    /// Its pools of connections.
    pub pools: Pools,
    /// Where its collector counts.
    metrics: Metrics,
    /// What it has counted.
    pub gc: GcTrack,
    /// How it went, all snapshots together; `alive` is of the last.
    pub tally: Tally,
    /// CPU time of them all.
    pub cpu: Duration,
    /// The next one.
    due: Instant,
    /// Until the next one.
    pub interval: Duration,
    /// It can be read no more.
    ended: bool,
}

/// Those of all targets.
#[derive(Default)]
pub struct GoTargets {
    targets: BTreeMap<u32, GoTarget>,
    /// Why goroutines of a Go program are not read.
    refused: BTreeMap<u32, String>,
    /// Where the random lengths of pauses come from.
    random: u64,
}

/// Tells the account, and lets other work go on.
struct Teller<'a, F> {
    goroutines: &'a mut Goroutines,
    now_ns: u64,
    meanwhile: F,
}

impl<F: FnMut()> Watch for Teller<'_, F> {
    fn changed(&mut self, before: &Goroutine, after: &Goroutine) {
        self.goroutines.changed(before, after, self.now_ns);
    }

    fn meanwhile(&mut self) {
        (self.meanwhile)();
    }
}

impl GoTargets {
    /// A target is a Go program, or runs another one now.
    pub fn open(&mut self, pid: u32, program: &Rc<Program>, runtime: Runtime) {
        self.close(pid);
        let memory = Live::new(pid);
        let metrics = Metrics::find(&memory, program);
        let reader = Reader::new(memory, Rc::clone(program), runtime);
        let target = GoTarget {
            gc: GcTrack::new(metrics.sample(reader.memory())),
            metrics,
            objects: Objects::find(&reader),
            pools: Pools::default(),
            reader,
            goroutines: Goroutines::default(),
            tally: Tally::default(),
            cpu: Duration::ZERO,
            due: Instant::now(),
            interval: SHORTEST,
            ended: false,
        };
        self.targets.insert(pid, target);
    }

    /// Its goroutines cannot be read.
    pub fn refuse(&mut self, pid: u32, why: &Error) {
        log::info!("goroutines of {pid} are not read: {why:#}");
        self.refused.insert(pid, format!("{why:#}"));
    }

    /// A target runs another program.
    pub fn close(&mut self, pid: u32) {
        self.targets.remove(&pid);
        self.refused.remove(&pid);
    }

    /// Its memory is gone.
    pub fn ended(&mut self, pid: u32) {
        if let Some(target) = self.targets.get_mut(&pid) {
            target.ended = true;
        }
    }

    /// Asks the collectors, which forget their pauses after 256 collections.
    pub fn sample(&mut self) {
        for target in self.targets.values_mut().filter(|target| !target.ended) {
            target.gc.add(target.metrics.sample(target.reader.memory()));
        }
    }

    /// A process uses the pools of connections at these addresses.
    pub fn expect_pools(&mut self, pid: u32, addresses: impl Iterator<Item = u64>) {
        if let Some(target) = self.targets.get_mut(&pid) {
            addresses.for_each(|address| target.pools.expect(address));
        }
    }

    /// When the next snapshot is due; None when there is nothing to look at.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let live = self.targets.values().filter(|target| !target.ended);
        live.map(|target| target.due).min()
    }

    /// Takes the snapshots that are due, or all; `meanwhile` is called every few milliseconds.
    pub fn take(&mut self, all: bool, mut meanwhile: impl FnMut()) {
        let now = Instant::now();
        for target in self.targets.values_mut() {
            if target.ended || (!all && target.due > now) {
                continue;
            }
            target.take(&mut meanwhile);
            // Around the wanted pause, so that nothing that the program does regularly keeps step with it.
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(host::monotonic_ns() | 1);
            let jitter = 0.5 + (self.random >> 40) as f64 / (1u64 << 24) as f64;
            target.due = Instant::now() + target.interval.mul_f64(jitter);
        }
    }

    /// All that are read.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &GoTarget)> {
        self.targets.iter().map(|(&pid, target)| (pid, target))
    }

    /// The same, to be asked.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut GoTarget)> {
        self.targets.iter_mut().map(|(&pid, target)| (pid, target))
    }

    /// Go programs that are not, and why.
    #[must_use]
    pub const fn refused(&self) -> &BTreeMap<u32, String> {
        &self.refused
    }
}

impl GoTarget {
    fn take(&mut self, meanwhile: &mut impl FnMut()) {
        let cpu = host::own_cpu();
        let now_ns = host::monotonic_ns();
        let mut others = Duration::ZERO;
        let mut teller = Teller {
            goroutines: &mut self.goroutines,
            now_ns,
            meanwhile: || {
                let begun = host::own_cpu();
                meanwhile();
                others += host::own_cpu().saturating_sub(begun);
            },
        };
        let Some(tally) = self.reader.take(now_ns, &mut teller) else {
            self.ended = true;
            return;
        };
        self.goroutines.snapshot(now_ns);
        // Stacks that are new are looked at once: that is no measure of what the next snapshot takes.
        let learning = host::own_cpu();
        self.objects.learn_pools(&self.reader);
        let learning = host::own_cpu().saturating_sub(learning);
        let (objects, reader) = (&mut self.objects, &self.reader);
        let pools = objects.pools(reader, self.pools.addresses());
        self.pools.observe(pools, || objects.pool_uses(reader), now_ns);
        let took = host::own_cpu().saturating_sub(cpu).saturating_sub(others);
        self.cpu += took;
        let took = took.saturating_sub(learning);
        self.interval = (took * SHARE).clamp(SHORTEST, LONGEST);
        let sum = &mut self.tally;
        sum.alive = tally.alive;
        sum.walked += tally.walked;
        sum.unchanged += tally.unchanged;
        sum.moved += tally.moved;
        sum.inconsistent += tally.inconsistent;
        sum.unreadable += tally.unreadable;
        sum.folded += tally.folded;
        sum.bytes += tally.bytes;
    }
}
