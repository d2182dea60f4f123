//! The only module that knows aya: loads and attaches the probes, drains their ring, reads their counters.
//! Beside them [`mappings`] hears from perf what a command maps.

pub mod decode;
pub mod mappings;
pub mod offsets;
pub mod plan;
pub mod stats;
pub mod tracefs;

use std::{
    collections::BTreeMap,
    io::Read as _,
    os::fd::{AsFd, BorrowedFd},
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray, RingBuf, StackTraceMap},
    programs::{BtfTracePoint, Iter, TracePoint},
};
use aya_log::EbpfLogger;
use tracer_ebpf::wire::{StackClass, StackPlace, TaskSnapshot, counter};

use self::{
    offsets::Offsets,
    plan::{Collectors, Hook, Step},
    stats::{RunStats, StatsOn, run_stats},
};
use crate::report::model::Probe;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ctrace.bpf.o"));

/// What to capture.
#[derive(Clone, Debug)]
pub struct Request {
    /// Processes.
    pub targets: Vec<u32>,
    /// Which collectors.
    pub collectors: Collectors,
    /// Trace children too.
    pub follow: bool,
    /// Size of the ring: a power of two of at least a page.
    pub ring_bytes: u32,
}

/// Probes attached to the kernel; they go with this value, and with the process however it ends.
pub struct Capture {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    targets: HashMap<MapData, u32, u32>,
    classes: HashMap<MapData, Place, u32>,
    kstacks: StackTraceMap<MapData>,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    attached: Vec<Step>,
    unattached: Vec<(Step, String)>,
    stats_on: Option<StatsOn>,
}

/// [`StackPlace`] as a map key: aya wants the marker trait on a type of ours.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Place(#[allow(dead_code, reason = "read by the kernel")] StackPlace);

// SAFETY: integers without padding, asserted where the type is declared.
unsafe impl aya::Pod for Place {}

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
        let offsets = Offsets::of_this_kernel()?;
        let btf = Btf::from_sys_fs().context("cannot parse the kernel's BTF")?;
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
        let classes = HashMap::try_from(take("STACK_CLASSES")?)?;
        let kstacks = StackTraceMap::try_from(take("KSTACKS")?)?;
        for &tgid in &request.targets {
            targets
                .insert(tgid, 1, 0)
                .context("cannot name the targets to the probes")?;
        }
        let stats_on = StatsOn::enable();
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
                    unattached.push((step, format!("{error:#}")));
                }
            }
            if step.hook == Hook::Iter {
                // The first reading gives every thread of the targets its state.
                read_tasks(&mut ebpf)?;
            }
        }
        Ok(Self {
            ebpf,
            ring,
            counters,
            targets,
            classes,
            kstacks,
            logger,
            attached,
            unattached,
            stats_on,
        })
    }

    /// Hands every record in the ring to `each`, at most `limit` of them; returns how many.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
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
        if let Err(error) = self.classes.insert(Place(place), class as u32, 0) {
            log::debug!("stack class: {error}");
        }
    }

    /// Forgets a process that has ended.
    pub fn remove_target(&mut self, tgid: u32) {
        // Absent when there was no room for it.
        if let Err(error) = self.targets.remove(&tgid) {
            log::debug!("target {tgid}: {error}");
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

    /// Every attached program with its account.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        let mut probes: BTreeMap<&str, (&Step, Vec<&str>)> = BTreeMap::new();
        for step in &self.attached {
            probes
                .entry(step.program)
                .or_insert((step, Vec::new()))
                .1
                .push(step.hook.name());
        }
        probes
            .into_iter()
            .map(|(program, (step, _))| {
                let stats = self.stats_of(program).filter(|_| self.stats_on.is_some());
                Probe {
                    name: program.to_owned(),
                    attach: step.hook.word().to_owned(),
                    hits: stats.map(|stats| stats.runs),
                    run_ns: stats.map(|stats| stats.run_ns),
                    missed: stats.map(|stats| stats.missed),
                }
            })
            .collect()
    }

    fn stats_of(&self, program: &str) -> Option<RunStats> {
        let fd = self
            .ebpf
            .program(program)?
            .fd()
            .ok()?
            .as_fd()
            .try_clone_to_owned()
            .ok()?;
        run_stats(fd.as_fd())
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
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        .allow_unsupported_maps()
        .map_max_entries("EVENTS", request.ring_bytes)
        .override_global("RING_BYTES", &request.ring_bytes, true)
        .override_global("FEATURES", &features, true)
        .override_global("ONE_TARGET", &one_target, true)
        .override_global("OFF_TASK_PID", &offsets.task_pid, true)
        .override_global("OFF_TASK_TGID", &offsets.task_tgid, true)
        .override_global("OFF_TASK_PENDING", &offsets.task_pending, true)
        .override_global("OFF_TASK_BLOCKED", &offsets.task_blocked, true)
        .override_global("OFF_TASK_SIGNAL", &offsets.task_signal, true)
        .override_global("OFF_SIGNAL_SHARED", &offsets.signal_shared, true)
        .override_global("OFF_URING_OPEN", &offsets.uring_open, true)
        .override_global("OFF_URING_ACCEPT", &offsets.uring_accept, true)
        .override_global("OFF_URING_SOCKET", &offsets.uring_socket, true)
        .override_global("OFF_URING_CLOSE", &offsets.uring_close, true)
        .override_global("OFF_URING_CLOSE_FD", &offsets.uring_close_fd, true)
        .override_global(aya_log::LEVEL, &level, false);
    loader.load(OBJECT).map_err(|error| match error {
        aya::EbpfError::MapError(aya::maps::MapError::CreateError { ref io_error, .. })
            if io_error.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            anyhow!("no permission to load eBPF programs: run as root, or give the binary CAP_BPF and CAP_PERFMON (sudo ctrace …)")
        }
        error => anyhow!(error).context("cannot load the eBPF object"),
    })
}

fn attach_step(ebpf: &mut Ebpf, btf: &Btf, step: Step) -> Result<()> {
    let program = ebpf
        .program_mut(step.program)
        .ok_or_else(|| anyhow!("the eBPF object has no program {}", step.program))?;
    match step.hook {
        Hook::TpBtf(name) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(name, btf)?;
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
            }
            program.attach(category, name)?;
        }
        Hook::Iter => {
            let program: &mut Iter = program.try_into()?;
            program.load("task", btf)?;
        }
    }
    Ok(())
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
