//! The only module that knows aya: loads and attaches the probes, drains their ring, reads their counters.
//! Beside them [`mappings`] hears from perf what a command maps.

pub mod btf;
pub mod decode;
mod go_pools;
mod go_starts;
pub mod mappings;
pub mod offsets;
pub mod plan;
pub mod pool;
pub mod stats;
pub mod tracefs;
pub mod uprobes;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    os::fd::{AsFd, BorrowedFd},
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Btf, Ebpf,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf, StackTraceMap},
    programs::{
        BtfTracePoint, Iter, PerfEvent, ProgramError, ProgramInfo, TracePoint,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};
use aya_log::EbpfLogger;
use tracer_ebpf::{
    go_pool::{self, Counts},
    go_wait::{self, Layout, Pending},
    memo::{Key, Ways},
    wire::{Control, FAULTS_PERIODS, GoLayout, Neighbour, StackClass, StackPlace, TaskSnapshot, counter},
};

use self::{
    btf::KernelBtf,
    go_pools::GoPools,
    go_starts::GoStarts,
    offsets::{Offsets, STRUCTS},
    plan::{Collectors, Hook, Step},
    pool::Pool,
    stats::{KernelTime, RunStats, Sampled, Sampler, run_stats},
    uprobes::{GROUPS, Group, Uprobes},
};
use crate::{
    go::{park_sites::ParkSites, pool_sites::PoolSites, sites::Sites, starts::Places},
    proc::host::monotonic_ns,
    report::model::Probe,
    stacks::Order,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ctrace.bpf.o"));

/// From one sample of the cost to the next when something hangs on it.
const WATCH_NS: u64 = 500_000_000;
/// Goroutines whose last wait is remembered: that for a lock, or any.
const GO_WAITS: [u32; 2] = [65_536, 1 << 18];
/// Go programs whose parking is traced at once.
const GO_PROGRAMS: u32 = 1024;
/// Goroutines that were asked for and have not begun.
const GO_ASKED: u32 = 4096;
/// Characters kept of why a hook could not be attached.
const REASON_MAX: usize = 512;
/// Processes beside the targets that are told, as many as the kernel's map holds.
const NEIGHBOURS_MAX: usize = 1024;
/// Ticks of each CPU's clock in a second that are looked at: no divisor of what programs do in round numbers.
pub const TICKS_HZ: u32 = 49;
/// What a hit of a probe in a program costs there, where none was sampled (`docs/probes.md`).
pub const PROBE_NS: f64 = 1_200.0;

/// What to capture.
#[derive(Clone, Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "switches of a run, each independent of the others"
)]
pub struct Request {
    /// Processes.
    pub targets: Vec<u32>,
    /// Which collectors.
    pub collectors: Collectors,
    /// Trace children too.
    pub follow: bool,
    /// Size of the ring: a power of two of at least a page.
    pub ring_bytes: u32,
    /// The cost is to be known soon, not only at the end.
    pub watch_cost: bool,
    /// There may be Go programs among the targets, whose locks are to be traced.
    pub go: bool,
    /// There may be Go programs among them, and descriptors are to be told with their goroutines.
    pub goroutines: bool,
    /// There may be Go programs among them, and who asks for descriptors is to be told.
    pub go_starts: bool,
    /// And everything else that their goroutines wait for.
    pub go_waits: bool,
}

/// Probes attached to the kernel; they go with this value, and with the process however it ends.
pub struct Capture {
    // Those in programs first: taking the others away takes seconds, in which these would go on costing.
    uprobes: Uprobes,
    go_starts: GoStarts,
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    targets: HashMap<MapData, u32, u32>,
    epochs: Array<MapData, u64>,
    epoch: u64,
    classes: HashMap<MapData, Wire<StackPlace>, u32>,
    control: Array<MapData, Wire<Control>>,
    memos: HashMap<MapData, Wire<Key>, Ways>,
    pool: Pool,
    kstacks: StackTraceMap<MapData>,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    attached: Vec<Step>,
    unattached: Vec<(Step, String)>,
    sampler: Sampler,
    go_programs: HashMap<MapData, u32, Wire<Layout>>,
    go_waits: HashMap<MapData, Wire<go_wait::Key>, Wire<Pending>>,
    go_pools: GoPools,
    neighbours: HashMap<MapData, u32, Wire<Neighbour>>,
}

/// A type of the wire in a map: aya wants its marker trait on a type of ours.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Wire<T>(#[allow(dead_code, reason = "read by the kernel")] T);

// SAFETY: integers without padding, asserted where the type is declared.
unsafe impl aya::Pod for Wire<StackPlace> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<Control> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<Key> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<GoLayout> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<Layout> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<go_wait::Key> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<Pending> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<go_pool::Pending> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<Counts> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<Neighbour> {}

impl Capture {
    /// Loads and attaches everything in the plan. Must be called while the process has one thread.
    pub fn start(request: &Request) -> Result<Self> {
        let steps = plan::plan(request.collectors);
        if request.collectors.fds {
            tracefs::with_tracefs(|| Self::attach(request, steps))
        } else {
            Self::attach(request, steps)
        }
    }

    fn attach(request: &Request, steps: Vec<Step>) -> Result<Self> {
        let types: Vec<_> = steps.iter().filter_map(|step| step.hook.btf_type()).collect();
        let wanted: Vec<_> = types
            .iter()
            .map(|(kind, name)| (*kind, &**name))
            .chain(STRUCTS)
            .collect();
        let kernel = KernelBtf::read(&wanted)?;
        let offsets = Offsets::new(&kernel)?;
        let btf = kernel.for_aya()?;
        let mut ebpf = load(request, &offsets, &btf)?;
        let logger = log::log_enabled!(log::Level::Warn)
            .then(|| EbpfLogger::init(&mut ebpf))
            .transpose()
            .unwrap_or_else(|error| {
                log::warn!("the probes cannot log: {error}");
                None
            });
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .ok_or_else(|| anyhow!("the eBPF object has no map {name}"))
        };
        let ring = RingBuf::try_from(take("EVENTS")?)?;
        let counters = PerCpuArray::try_from(take("COUNTERS")?)?;
        let mut targets: HashMap<_, u32, u32> = HashMap::try_from(take("TARGETS")?)?;
        let epochs = Array::try_from(take("EPOCHS")?)?;
        let classes = HashMap::try_from(take("STACK_CLASSES")?)?;
        let memos = HashMap::try_from(take("MEMOS")?)?;
        let pool = match take("MEMO_POOL")? {
            aya::maps::Map::Array(map) => Pool::map(map)?,
            _ => return Err(anyhow!("the eBPF object's MEMO_POOL is no array")),
        };
        let control: Array<_, Wire<Control>> = Array::try_from(take("CONTROL")?)?;
        let kstacks = StackTraceMap::try_from(take("KSTACKS")?)?;
        let go_starts = GoStarts::new(take("GO_TARGETS")?, offsets.task_fsbase != 0)?;
        let go_programs = HashMap::try_from(take("GO_PROGRAMS")?)?;
        let go_waits = HashMap::try_from(take("GO_WAITS")?)?;
        let go_pools = GoPools::new(take("GO_POOL_WAITS")?, take("GO_POOLS")?)?;
        let neighbours = HashMap::try_from(take("NEIGHBOURS")?)?;
        for &tgid in &request.targets {
            targets
                .insert(tgid, 0, 0)
                .context("cannot name the targets to the probes")?;
        }
        let (mut attached, mut unattached) = (Vec::new(), Vec::new());
        for step in steps {
            match attach_step(&mut ebpf, &btf, step) {
                Ok(()) => attached.push(step),
                Err(error) if step.required => {
                    return Err(error).with_context(|| {
                        format!(
                            "cannot attach {} to {} {}",
                            step.program,
                            step.hook.word(),
                            step.hook.name()
                        )
                    });
                }
                Err(error) => {
                    log::debug!("{}: {error:#}", step.hook.name());
                    // The verifier's log may be 16 MB, and this is kept.
                    let why = format!("{error:#}").chars().take(REASON_MAX).collect();
                    unattached.push((step, why));
                }
            }
            if step.hook == Hook::Iter {
                // The first reading gives every thread of the targets its state.
                read_tasks(&mut ebpf)?;
            }
        }
        attached.extend(load_uprobes(&mut ebpf, request));
        let apart = programs(&attached)
            .iter()
            .map(|(_, hook)| matches!(hook, Hook::Uprobe(_)))
            .collect();
        Ok(Self {
            ebpf,
            ring,
            counters,
            targets,
            epochs,
            epoch: 0,
            classes,
            control,
            memos,
            pool,
            kstacks,
            logger,
            attached,
            unattached,
            sampler: if request.watch_cost {
                Sampler::every(WATCH_NS)
            } else {
                Sampler::default()
            }
            .without(apart),
            uprobes: Uprobes::default(),
            go_starts,
            go_programs,
            go_waits,
            go_pools,
            neighbours,
        })
    }

    /// Hands every record in the ring to `each`, at most `limit` of them; returns how many.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        self.sampler.turn(monotonic_ns(), || {
            all_stats(&self.ebpf, &programs(&self.attached))
        });
        let mut count = 0;
        while count < limit {
            let Some(record) = self.ring.next() else { break };
            each(&record);
            count += 1;
        }
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        count
    }

    /// Whether samples are taken of what runs.
    #[must_use]
    pub fn samples_cpus(&self) -> bool {
        self.attached.iter().any(|step| step.hook == Hook::CpuClock)
    }

    /// Whether page faults are looked at.
    #[must_use]
    pub fn sees_faults(&self) -> bool {
        self.attached.iter().any(|step| step.hook == Hook::PageFaults)
    }

    /// Processes that are no targets and ran at ticks, since they were last forgotten.
    #[must_use]
    pub fn neighbours(&self) -> Vec<(u32, Neighbour)> {
        self.neighbours
            .iter()
            .take(NEIGHBOURS_MAX)
            .filter_map(Result::ok)
            .map(|(tgid, neighbour)| (tgid, neighbour.0))
            .collect()
    }

    /// Begins to count their ticks anew.
    pub fn forget_neighbours(&mut self) {
        for tgid in some_keys(self.neighbours.keys(), NEIGHBOURS_MAX, |_| true) {
            let _ = self.neighbours.remove(&tgid);
        }
    }

    /// Where every thread of the targets is now.
    pub fn tasks(&mut self) -> Result<Vec<TaskSnapshot>> {
        read_tasks(&mut self.ebpf)
    }

    /// Sum over the CPUs of each counter of [`counter`].
    pub fn counters(&self) -> Result<[u64; counter::COUNT as usize]> {
        let mut sums = [0; counter::COUNT as usize];
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = self.counters.get(&(index as u32), 0)?.iter().sum();
        }
        Ok(sums)
    }

    /// Says how large a copy the stack at `place` needs.
    pub fn set_stack_class(&mut self, place: StackPlace, class: StackClass) {
        // Best effort: without it the copy has the default size.
        if let Err(error) = self.classes.insert(Wire(place), class as u32, 0) {
            log::debug!("stack class: {error}");
        }
    }

    /// Tells the probes how stacks are recognised.
    pub fn obey(&mut self, order: Order) {
        let done = match order {
            Order::Clear(at) => {
                self.pool.clear(at);
                Ok(())
            }
            Order::Write { at, words, id } => {
                self.pool.write(at, &words, id);
                Ok(())
            }
            Order::Ways(key, ways) if ways == Ways::default() => self.memos.remove(&Wire(key)),
            Order::Ways(key, ways) => self.memos.insert(Wire(key), ways, 0),
            // Only of processes that are traced: a value makes one a target.
            Order::Space { tgid, space } if self.targets.get(&tgid, 0).is_ok() => {
                let done = self.targets.insert(tgid, space, 0);
                self.next_epoch();
                done
            }
            Order::Space { .. } => Ok(()),
        };
        // Best effort: without it the stack is copied.
        if let Err(error) = done {
            log::debug!("stack memo: {error}");
        }
    }

    /// Changes what the probes do from now on; until the first time they send nothing, as a ring that nobody reads yet would be
    /// full of first stacks.
    pub fn set_control(&mut self, control: Control) -> Result<()> {
        Ok(self.control.set(0, Wire(control), 0)?)
    }

    /// Attaches to a Go program, which a process runs from this file; the probes must have been asked for at the start.
    pub fn attach_go(&mut self, (pid, file): (u32, &File), sites: &Sites) -> Result<()> {
        self.uprobes.attach(&mut self.ebpf, (pid, file), sites)
    }

    /// Attaches the probes on parking to a Go program; they must have been asked for at the start.
    pub fn attach_parks(&mut self, (pid, file): (u32, &File), sites: &ParkSites) -> Result<()> {
        self.go_programs.insert(pid, Wire(sites.layout), 0)?;
        self.uprobes.attach_parks(&mut self.ebpf, (pid, file), sites)
    }

    /// Attaches the probes on pools of connections to a Go program, of the group on locks.
    pub fn attach_pools(&mut self, (pid, file): (u32, &File), sites: &PoolSites) -> Result<()> {
        self.uprobes.attach_pools(&mut self.ebpf, (pid, file), sites)
    }

    /// How often connections of each pool of a process were wanted and there was none, while the probes were there: by address.
    #[must_use]
    pub fn pool_counts(&self, pid: u32) -> Vec<(u64, Counts)> {
        self.go_pools.counts(pid)
    }

    /// Detaches a group of probes from all Go programs.
    pub fn detach_group(&mut self, group: Group) {
        if group == Group::Starts {
            uprobes::close(self.go_starts.take());
        } else {
            self.uprobes.detach_group(group);
        }
    }

    /// Whether a group of probes was in a program at some time.
    #[must_use]
    pub fn was_attached(&self, group: Group) -> bool {
        if group == Group::Starts {
            self.go_starts.were_attached
        } else {
            self.uprobes.has_been(group)
        }
    }

    /// One counter of [`counter`], summed over the CPUs.
    pub fn counter(&self, which: u32) -> Result<u64> {
        Ok(self.counters.get(&which, 0)?.iter().sum())
    }

    /// Times that programs came to a group's probes.
    pub fn hits(&self, group: Group) -> Result<u64> {
        self.counter(match group {
            Group::Locks => counter::GO_LOCK_HITS,
            Group::Parks => counter::GO_PARK_HITS,
            Group::Starts => counter::GO_START_HITS,
        })
    }

    /// Time in a group's probes for each hit, as far as it was sampled.
    #[must_use]
    pub fn hit_ns(&self, group: Group) -> Option<f64> {
        let programs = self.programs();
        let sampled = self
            .sampler
            .sampled(monotonic_ns(), &all_stats(&self.ebpf, &programs))?;
        of_group(&programs, &sampled, group).hit_ns(PROBE_NS)
    }

    /// Detaches from a Go program.
    pub fn detach_go(&mut self, pid: u32) {
        if self.uprobes.are_at(pid) {
            self.uprobes.detach(pid);
            self.forget_waits(pid);
        }
        self.go_starts.forget(pid);
    }

    /// Forgets waits of a process: the descriptors of goroutines of the program that it runs next may lie at the same addresses.
    fn forget_waits(&mut self, pid: u32) {
        let own = |key: &Wire<go_wait::Key>| key.0.tgid == pid;
        for key in some_keys(self.go_waits.keys(), GO_WAITS[1] as usize, own) {
            let _ = self.go_waits.remove(&key);
        }
        self.go_pools.forget(pid);
    }

    /// Takes all probes in programs away, before what takes long; what they have counted stays.
    pub fn detach_programs(&mut self) {
        let mut links = self.uprobes.take(|_, _| true);
        links.extend(self.go_starts.take());
        uprobes::close(links);
    }

    /// Tells the probes how to know a Go program's goroutines.
    pub fn know_goroutines(&mut self, pid: u32, layout: GoLayout) -> Result<()> {
        self.go_starts.know(pid, layout)
    }

    /// Attaches to these `go` statements of a program, and to no others of it; whether there are any. The probes must have been asked
    /// for at the start.
    pub fn attach_starts(&mut self, program: (u32, &File), places: &Places) -> Result<bool> {
        self.go_starts.attach(&mut self.ebpf, program, places)
    }

    /// Forgets a process that has ended.
    pub fn remove_target(&mut self, tgid: u32) {
        self.detach_go(tgid);
        // Absent unless its parking was traced.
        let _ = self.go_programs.remove(&tgid);
        // Absent when there was no room for it.
        if let Err(error) = self.targets.remove(&tgid) {
            log::debug!("target {tgid}: {error}");
        }
        self.next_epoch();
    }

    /// Tells the probes that what they know of layouts may be old; after the change, or they could keep the old one.
    fn next_epoch(&mut self) {
        self.epoch += 1;
        // A write to an array of that size cannot fail.
        if let Err(error) = self.epochs.set(0, self.epoch, 0) {
            log::warn!("epoch {}: {error}", self.epoch);
        }
    }

    /// Addresses of a kernel stack, leaf first.
    #[must_use]
    pub fn kernel_stack(&self, id: u32) -> Vec<u64> {
        self.kstacks
            .get(&id, 0)
            .map(|trace| trace.frames().iter().map(|frame| frame.ip).collect())
            .unwrap_or_default()
    }

    /// Time in the probes since attach, as far as it was sampled; `None` when the privileges do not reach.
    #[must_use]
    pub fn kernel_time(&self) -> Option<KernelTime> {
        let programs = self.programs();
        let sampled = self
            .sampler
            .sampled(monotonic_ns(), &all_stats(&self.ebpf, &programs))?;
        let in_programs = GROUPS.into_iter().map(|group| {
            let hit_ns = of_group(&programs, &sampled, group)
                .hit_ns(PROBE_NS)
                .unwrap_or(PROBE_NS);
            self.hits(group).unwrap_or_default() as f64 * hit_ns
        });
        Some(KernelTime {
            in_programs_ns: in_programs.sum::<f64>() as u64,
            ..self.sampler.sum(&sampled)
        })
    }

    /// Part of one CPU that the probes in the kernel took in the last sample, once for each sample.
    pub fn take_kernel_share(&mut self) -> Option<f64> {
        let fresh = self.sampler.take_fresh()?;
        Some(fresh.run_ns as f64 / fresh.sampled_ns.max(1) as f64)
    }

    /// In a forked process: closes its part in what the parent may end meanwhile, the kernel's statistics and the probes in programs.
    pub fn let_go(&mut self) {
        self.sampler.let_go();
        drop(self.uprobes.take(|_, _| true));
        drop(self.go_starts.take());
    }

    /// Whether the kernel tells what the probes cost.
    #[must_use]
    pub const fn tells_cost(&self) -> bool {
        !self.sampler.is_refused()
    }

    /// Every attached program with its account since attach: hits and time estimated from the part that was sampled.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        let programs = self.programs();
        let stats = all_stats(&self.ebpf, &programs);
        let sampled = self.sampler.sampled(monotonic_ns(), &stats);
        let estimate = |at: usize, program: &str| {
            let sampled = sampled.as_ref()?;
            let Some(group) = uprobes::group(program) else {
                return sampled.estimate(at);
            };
            // There for a part of the time only, of which a sample says nothing: its share of the hits, all of which are counted.
            let hits = self.hits(group).ok()?;
            of_group(&programs, sampled, group).share(*sampled.programs.get(at)?, hits)
        };
        programs
            .iter()
            .enumerate()
            .filter(|(_, (program, _))| match uprobes::group(program) {
                None => true,
                Some(Group::Starts) => self.was_attached(Group::Starts),
                Some(_) => self.uprobes.was_attached(program),
            })
            .map(|(at, (program, hook))| {
                let estimate = estimate(at, program);
                Probe {
                    name: (*program).to_owned(),
                    attach: hook.word().to_owned(),
                    hits: estimate.map(|(hits, _)| hits),
                    run_ns: estimate.map(|(_, run_ns)| run_ns),
                    missed: stats.get(at).map(|stats| stats.missed),
                }
            })
            .collect()
    }

    /// Attached programs by name, each with its first hook.
    fn programs(&self) -> Vec<(&'static str, Hook)> {
        programs(&self.attached)
    }

    /// Hooks that this kernel does not have, with the reason.
    #[must_use]
    pub fn unattached(&self) -> &[(Step, String)] {
        &self.unattached
    }
}

impl AsFd for Capture {
    /// The ring: readable when the probes woke its reader.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// Some of the keys of a map that the probes go on writing to, which has so many at most: by the time that one is used it may be gone.
fn some_keys<K>(
    keys: impl Iterator<Item = Result<K, MapError>>,
    most: usize,
    which: impl Fn(&K) -> bool,
) -> Vec<K> {
    keys.take(most).filter_map(Result::ok).filter(which).collect()
}

fn load(request: &Request, offsets: &Offsets, btf: &Btf) -> Result<Ebpf> {
    let one_target = match request.targets[..] {
        [one] if !request.follow => one,
        _ => 0,
    };
    let features = request.collectors.features(request.follow);
    let level = if log::log_enabled!(log::Level::Warn) {
        aya_log::Level::Warn as u8
    } else {
        0
    };
    let goroutines = u32::from(request.goroutines);
    let mut loader = btf::loader();
    loader
        .btf(Some(btf))
        .allow_unsupported_maps()
        .map_max_entries("EVENTS", request.ring_bytes)
        .map_max_entries(
            "GO_WAITS",
            entries(request.go, GO_WAITS[usize::from(request.go_waits)]),
        )
        .map_max_entries("GO_POOL_WAITS", entries(request.go, GO_WAITS[0]))
        .map_max_entries("GO_PROGRAMS", entries(request.go_waits, GO_PROGRAMS))
        .map_max_entries("GO_ASKED", entries(request.go_starts, GO_ASKED))
        .override_global("RING_BYTES", &request.ring_bytes, true)
        .override_global("FEATURES", &features, true)
        .override_global("ONE_TARGET", &one_target, true)
        .override_global("OFF_TASK_PID", &offsets.task_pid, true)
        .override_global("OFF_TASK_TGID", &offsets.task_tgid, true)
        .override_global("OFF_TASK_STORAGE", &offsets.task_storage, true)
        .override_global("OFF_TASK_PENDING", &offsets.task_pending, true)
        .override_global("OFF_TASK_BLOCKED", &offsets.task_blocked, true)
        .override_global("OFF_TASK_SIGNAL", &offsets.task_signal, true)
        .override_global("OFF_SIGNAL_SHARED", &offsets.signal_shared, true)
        .override_global("OFF_TASK_RAN", &offsets.task_ran, true)
        .override_global("OFF_TASK_RAN_BEFORE", &offsets.task_ran_before, true)
        .override_global("GOROUTINES", &goroutines, true)
        .override_global("OFF_TASK_FSBASE", &offsets.task_fsbase, true)
        .override_global("OFF_URING_OPEN", &offsets.uring_open, true)
        .override_global("OFF_URING_ACCEPT", &offsets.uring_accept, true)
        .override_global("OFF_URING_SOCKET", &offsets.uring_socket, true)
        .override_global("OFF_URING_CLOSE", &offsets.uring_close, true)
        .override_global("OFF_URING_CLOSE_FD", &offsets.uring_close_fd, true)
        .override_global(aya_log::LEVEL, &level, false);
    loader.load(OBJECT).map_err(|error| match error {
        aya::EbpfError::MapError(MapError::CreateError { ref io_error, .. })
            if io_error.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            anyhow!("no permission to load eBPF programs: run as root, or give the binary CAP_BPF and CAP_PERFMON (sudo ctrace …)")
        }
        error => anyhow!(error).context("cannot load the eBPF object"),
    })
}

/// Loads the programs for uprobes, which are attached to programs one by one: listed from the start, as samples of the cost go by the
/// programs' order.
fn load_uprobes(ebpf: &mut Ebpf, request: &Request) -> Vec<Step> {
    let mut loaded = Vec::new();
    if request.go_starts {
        match go_starts::load(ebpf) {
            Ok(()) => loaded.extend(go_starts::steps()),
            Err(error) => log::warn!("who makes goroutines is not told: {error:#}"),
        }
    }
    if request.go {
        match uprobes::load(ebpf, request.go_waits) {
            Ok(()) => loaded.extend(uprobes::steps(request.go_waits)),
            Err(error) => log::warn!("waits for Go's locks are not traced: {error:#}"),
        }
    }
    loaded
}

/// Entries of a map that is not always needed.
const fn entries(needed: bool, entries: u32) -> u32 {
    if needed { entries } else { 1 }
}

fn attach_step(ebpf: &mut Ebpf, btf: &Btf, step: Step) -> Result<()> {
    let program = ebpf
        .program_mut(step.program)
        .ok_or_else(|| anyhow!("the eBPF object has no program {}", step.program))?;
    match step.hook {
        Hook::TpBtf(name) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(name, btf)?;
            say_size(step.program, program.info());
            program.attach()?;
        }
        Hook::Tracepoint(category, name) => {
            if category == "io_uring" && !uring_format_is_known(name) {
                return Err(anyhow!("its record has another layout on this kernel"));
            }
            let program: &mut TracePoint = program.try_into()?;
            // One program serves many tracepoints; it is loaded with the first.
            if program.fd().is_err() {
                program.load()?;
                say_size(step.program, program.info());
            }
            program.attach(category, name)?;
        }
        Hook::Iter => {
            let program: &mut Iter = program.try_into()?;
            program.load("task", btf)?;
        }
        Hook::CpuClock | Hook::PageFaults => {
            let (event, policies) = match step.hook {
                Hook::PageFaults => (
                    SoftwareEvent::PageFaultsMin,
                    FAULTS_PERIODS
                        .map(|period| SamplePolicy::Period(period.into()))
                        .to_vec(),
                ),
                _ => (
                    SoftwareEvent::CpuClock,
                    vec![SamplePolicy::Frequency(TICKS_HZ.into())],
                ),
            };
            let program: &mut PerfEvent = program.try_into()?;
            program.load()?;
            say_size(step.program, program.info());
            let cpus = online_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))?;
            for (cpu, policy) in cpus
                .iter()
                .flat_map(|cpu| policies.iter().map(move |policy| (*cpu, *policy)))
            {
                let scope = PerfEventScope::AllProcessesOneCpu { cpu };
                let event = PerfEventConfig::Software(event);
                if let Err(error) = program.attach(event, scope, policy, false) {
                    // All or none: shares of some CPUs would be taken for those of all.
                    program.unload()?;
                    return Err(error.into());
                }
            }
        }
        Hook::Uprobe(_) => return Err(anyhow!("attached to processes, not to the kernel")),
    }
    Ok(())
}

/// How much the verifier had to follow: its limit is a million.
fn say_size(program: &str, info: Result<ProgramInfo, ProgramError>) {
    let verified = info.ok().and_then(|info| info.verified_instruction_count());
    log::debug!("{program}: {} instructions verified", verified.unwrap_or(0));
}

fn programs(attached: &[Step]) -> Vec<(&'static str, Hook)> {
    let by_name: BTreeMap<_, _> = attached
        .iter()
        .rev()
        .map(|step| (step.program, step.hook))
        .collect();
    by_name.into_iter().collect()
}

/// What was sampled of a group's probes, together.
fn of_group(programs: &[(&'static str, Hook)], sampled: &Sampled, group: Group) -> RunStats {
    let mut sum = RunStats::default();
    let of_group = programs
        .iter()
        .zip(&sampled.programs)
        .filter(|((name, _), _)| uprobes::group(name) == Some(group));
    for (_, stats) in of_group {
        sum.runs += stats.runs;
        sum.run_ns += stats.run_ns;
    }
    sum
}

/// The kernel's accounts of programs; of one that cannot be asked zeros.
fn all_stats(ebpf: &Ebpf, programs: &[(&'static str, Hook)]) -> Vec<RunStats> {
    programs
        .iter()
        .map(|(program, _)| {
            ebpf.program(program)
                .and_then(|program| run_stats(program.fd().ok()?.as_fd()))
                .unwrap_or_default()
        })
        .collect()
}

/// The probes read `req` at 16 and `opcode` or `res` at 32, as every kernel from 6.0 on has them.
fn uring_format_is_known(name: &str) -> bool {
    let second = if name == "io_uring_complete" {
        "res"
    } else {
        "opcode"
    };
    tracefs::field_offset("io_uring", name, "req") == Some(16)
        && tracefs::field_offset("io_uring", name, second) == Some(32)
}

/// Most bytes of snapshots that are read: four million threads.
const SNAPSHOT_MAX: u64 = 4 << 20;

fn read_tasks(ebpf: &mut Ebpf) -> Result<Vec<TaskSnapshot>> {
    let program: &mut Iter = ebpf
        .program_mut("tasks")
        .ok_or_else(|| anyhow!("the eBPF object has no program tasks"))?
        .try_into()?;
    let id = program.attach().context("cannot make a task iterator")?;
    let file = program
        .take_link(id)?
        .into_file()
        .context("cannot open the task iterator")?;
    let mut bytes = Vec::new();
    file.take(SNAPSHOT_MAX * TaskSnapshot::SIZE as u64)
        .read_to_end(&mut bytes)
        .context("cannot read the task iterator")?;
    Ok(bytes
        .chunks_exact(TaskSnapshot::SIZE)
        .filter_map(TaskSnapshot::read)
        .collect())
}
