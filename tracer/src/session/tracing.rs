//! The state of a run: capture and pipeline, the targets, and how a report is made of them.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::{Instant, SystemTime},
};

use anyhow::{Result, anyhow};
use tracer_ebpf::wire::{TaskSnapshot, counter};

use super::{
    assemble::had_since,
    budget::{Budget, Setting},
    creators::Creators,
    duty::Wanted,
    go::GoTargets,
    go_write::GoWriter,
    hearing::Hearing,
    pipeline::{Notice, Pipeline},
    probing::Probing,
    programs::{Found, Programs},
    sampling::Sampling,
    snapshot::Edge,
    uprobes::GoPrograms,
};
use crate::{
    aggregate::fds::FdTable,
    analyse::{Window, cpu::Others, memory::Readings},
    capture::{Capture, Request, TICKS_HZ, decode, plan::Hook},
    cli::{options::Options, targets::Held},
    proc::{fd, host, memory, sched, target},
    report::model::{Losses, Report, StacksHad, Target},
    stacks::{KernelSymbols, Symbolizer},
};

/// Records taken at a time, so that signals are heard under load.
const BATCH: usize = 4096;
/// Batches at one go.
const BATCHES: usize = 64;
/// Time between the two scans of descriptors that a verdict needs.
const SECOND_LOOK: std::time::Duration = std::time::Duration::from_millis(20);

/// One target.
pub(super) struct Traced {
    pub(super) held: Held,
    pub(super) described: Target,
    pub(super) exited: bool,
    pub(super) memory: Readings,
}

/// A run.
pub struct Tracing {
    /// As asked for.
    pub options: Options,
    pub(super) capture: Option<Capture>,
    pub(super) pipeline: Pipeline,
    pub(super) hearing: Hearing,
    pub(super) targets: Vec<Traced>,
    pub(super) uprobes: GoPrograms,
    pub(super) creators: Creators,
    pub(super) symbolizer: Symbolizer,
    pub(super) kernel: KernelSymbols,
    pub(super) edge: Edge,
    pub(super) started_at: SystemTime,
    /// Losses at the window's start.
    pub(super) lost_before: Losses,
    /// How stacks were had before it.
    pub(super) had_before: StacksHad,
    pub(super) unseen_kinds: Vec<String>,
    pub(super) budget: Budget,
    pub(super) probing: Probing,
    pub(super) sampling: Sampling,
    pub(super) faulting: Sampling,
    /// Samples of this window that were counted, for how many there are to be, and page faults.
    counted: (u64, u64),
    /// Who else ran in the window that is reported, and ticks of others until it began.
    pub(super) others: Others,
    others_before: u64,
    /// Go programs to be looked at.
    programs: Programs,
    /// Those that are read.
    pub(super) go: GoTargets,
    /// What is written into them.
    pub(super) go_write: GoWriter,
    /// Own CPU time when the cost was last measured, and when that was.
    cost_from: (std::time::Duration, u64),
}

/// What is asked of the probes.
fn request(options: &Options, held: &[Held], command: bool) -> Request {
    // What a command or a child will be is not known yet.
    let asked = options.go_waits || options.go_creators;
    let may_be_go =
        command || options.follow || asked || held.iter().any(|held| is_go(&target::describe(held.pid)));
    Request {
        targets: held.iter().map(|held| held.pid).collect(),
        collectors: options.collectors,
        follow: options.follow,
        ring_bytes: options.ring_bytes,
        watch_cost: options.budget.is_some() || options.go_waits,
        go_waits: options.go_waits,
        go: traces_go(options) && may_be_go,
        goroutines: options.collectors.fds && may_be_go,
        go_starts: Creators::wants_probes(options) && may_be_go,
    }
}

impl Tracing {
    /// Attaches the probes and looks at the targets for the first time. `command`: they wait to become the command.
    pub fn start(options: Options, held: Vec<Held>, command: bool) -> Result<Self> {
        let go_write = GoWriter::new(options.go_write);
        if go_write.is_asked() && !command && !options.follow {
            some_go(&held)?;
        }
        let request = request(&options, &held, command);
        let mut capture = Capture::start(&request)?;
        let min_wait_ns = options.min_wait.as_nanos() as u64;
        let mut pipeline = Pipeline::new(
            min_wait_ns,
            options.collectors.io,
            options.follow,
            host::realtime_offset_ns(),
        );
        let mut hearing = Hearing::default();
        let mut heard = command || hearing.watch_host();
        let mut targets = Vec::new();
        for held in held {
            // A command may be gone before its mappings can be read.
            if command {
                heard &= hearing.watch(held.pid, options.follow);
            }
            pipeline.stacks.prime(held.pid);
            targets.push(Traced {
                described: target::describe(held.pid),
                held,
                exited: false,
                memory: Readings::default(),
            });
        }
        if heard && options.shadow > 0 {
            pipeline.stacks.learn();
        }
        let mut programs = Programs::default();
        // A command is no program yet.
        for traced in targets
            .iter()
            .filter(|traced| !command && is_go(&traced.described))
        {
            programs.want(traced.held.pid);
        }
        let budget = Budget::new(
            options.budget,
            Setting {
                min_wait_ns,
                one_in: options.sample,
            },
        );
        let creators = Creators::new(&options);
        capture.set_control(
            budget
                .setting()
                .control(shadow_mask(&options), host::monotonic_ns()),
        )?;
        // What is open is looked at when nothing more can be missed.
        first_look(&mut pipeline, &targets, &options)?;
        pipeline.reset(host::monotonic_ns());
        let probing = Probing::new(Wanted {
            budget: options.budget,
            parks: options.go_waits,
            creators: options.go_creators,
        });
        let unseen_kinds = unseen_kinds(&capture, &options);
        let ticks = u64::from(host::host().cpus) * u64::from(TICKS_HZ);
        let sampling = Sampling::new(host::monotonic_ns(), ticks, options.budget);
        let faulting = Sampling::of_faults(host::monotonic_ns(), options.budget);
        let pids = pids(&targets);
        let edge = Edge::read(&pids, capture.kernel_time());
        capture.forget_neighbours();
        let others_before = capture.counter(counter::OTHERS_TICKS)?;
        let mut tracing = Self {
            options,
            capture: Some(capture),
            pipeline,
            hearing,
            targets,
            programs,
            uprobes: GoPrograms::default(),
            creators,
            symbolizer: Symbolizer::new(),
            kernel: KernelSymbols::new(),
            edge,
            started_at: SystemTime::now(),
            lost_before: Losses::default(),
            had_before: StacksHad::default(),
            unseen_kinds,
            budget,
            probing,
            sampling,
            faulting,
            counted: (0, 0),
            others: Others::default(),
            others_before,
            go: GoTargets::default(),
            go_write,
            cost_from: (host::own_cpu(), host::monotonic_ns()),
        };
        tracing.look_at_memory(tracing.edge.ns, false);
        tracing.look_at_programs(false);
        tracing.begin_probing()?;
        Ok(tracing)
    }

    /// A descriptor that becomes readable when the probes want the ring emptied.
    pub fn ring(&self) -> Result<OwnedFd> {
        let capture = self
            .capture
            .as_ref()
            .ok_or_else(|| anyhow!("the probes are detached"))?;
        Ok(capture.as_fd().try_clone_to_owned()?)
    }

    /// Takes what the probes have written.
    pub fn drain(&mut self) {
        self.drain_records();
        for notice in self.pipeline.take_notices() {
            self.on_notice(notice);
        }
        self.go_write.tick();
    }

    fn drain_records(&mut self) {
        for _ in 0..BATCHES {
            if !self.drain_batch() {
                break;
            }
            // There are more: taking them all can last, and what makes them may have to be shed.
            self.hold();
        }
    }

    /// [`Tracing::hold_probes`], where nobody can be told that it failed.
    fn hold(&mut self) {
        if let Err(error) = self.hold_probes() {
            log::warn!("the cost of probes in programs is not held: {error:#}");
        }
    }

    /// Whether there are more.
    fn drain_batch(&mut self) -> bool {
        let Some(capture) = &mut self.capture else {
            return false;
        };
        let cpu = host::own_cpu();
        // What samples cost is not to be shared among all records: each is unwound anew.
        let mut sampled = std::time::Duration::ZERO;
        self.hearing.hear(&mut self.pipeline.stacks);
        let taken = capture.drain(BATCH, |record| {
            self.hearing.before(record, &mut self.pipeline.stacks);
            let from = decode::is_sample(record).then(host::own_cpu);
            self.pipeline.on_record(record);
            sampled += from.map_or_else(Default::default, |from| host::own_cpu().saturating_sub(from));
        });
        for (place, class) in self.pipeline.take_classes() {
            capture.set_stack_class(place, class);
        }
        for order in self.pipeline.stacks.take_orders() {
            capture.obey(order);
        }
        self.probing.drained += host::own_cpu().saturating_sub(cpu).saturating_sub(sampled);
        taken == BATCH
    }

    /// In the midst of work that takes long: nothing is lost, and no probe costs more than it may meanwhile.
    fn meanwhile(&mut self) {
        self.hold();
        self.drain_records();
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Exec(pid) => {
                if let Some(traced) = self.targets.iter_mut().find(|traced| traced.held.pid == pid) {
                    let described = target::describe(pid);
                    if let Some(capture) = &mut self.capture {
                        capture.detach_go(pid);
                    }
                    self.uprobes.forget(pid);
                    self.creators.forget(pid);
                    self.go.close(pid);
                    self.go_write.forget(pid);
                    if is_go(&described) {
                        self.programs.want(pid);
                    } else {
                        self.programs.forget(pid);
                    }
                    if !described.comm.is_empty() {
                        traced.described = described;
                    }
                    // Another image, of which nothing was read yet.
                    traced.memory = Readings::default();
                    if self.options.collectors.memory {
                        traced.memory.read(pid, host::monotonic_ns());
                    }
                    self.look_at_programs(false);
                }
                self.reconcile(pid);
            }
            Notice::Child { child } => {
                // A child that has ended already left its records, which need no more of it.
                let Ok(held) = Held::hold(child) else {
                    if target::Stat::of(child).is_ok_and(|stat| stat.state != 'Z') {
                        log::warn!("process {child} lives and cannot be followed: too many open files?");
                        self.pipeline.not_followed();
                    }
                    self.pipeline.stacks.process_exit(child);
                    self.pipeline.end_pages(child);
                    if let Some(capture) = &mut self.capture {
                        capture.remove_target(child);
                    }
                    if let Some(table) = self.pipeline.fds.get_mut(&child) {
                        table.on_process_exit(host::monotonic_ns());
                    }
                    return;
                };
                let described = target::describe(child);
                if is_go(&described) {
                    self.programs.want_child(child);
                }
                self.targets.push(Traced {
                    described,
                    held,
                    exited: false,
                    memory: Readings::default(),
                });
            }
        }
    }

    /// Reads and probes the Go programs that can be now: those that were due for a look, or all.
    fn look_at_programs(&mut self, all: bool) {
        let found = self.programs.look(all);
        let mut programs = Vec::new();
        for Found {
            pid,
            program,
            runtime,
        } in found
        {
            if self.options.collectors.go {
                match (&program, runtime) {
                    (Ok(program), Ok(runtime)) => self.go.open(pid, program, runtime),
                    (Err(error), _) => self.go.refuse(pid, error),
                    (_, Err(error)) => self.go.refuse(pid, &error),
                }
            }
            programs.push((pid, program));
        }
        // Last: from now on the programs pay for them.
        let mut begun = false;
        if let Some(capture) = &mut self.capture {
            let duties = &mut self.probing.duties;
            for (pid, program) in &programs {
                self.creators.attach(capture, &mut duties.starts, *pid, program);
                if traces_go(&self.options) {
                    begun |= self.uprobes.attach(capture, duties, *pid, program);
                }
            }
        }
        // At once: what begins before the probes are told has no record.
        if begun && let Err(error) = self.set_control() {
            log::warn!("the probes are not told to begin: {error:#}");
        }
    }

    /// When goroutines, or a program that was still being loaded, are to be looked at.
    pub fn look_due(&self) -> Option<Instant> {
        self.go.due().into_iter().chain(self.programs.due()).min()
    }

    /// Looks at the targets, and notes how many descriptors are open.
    pub fn sample(&mut self) {
        let now = host::monotonic_ns();
        for table in self.pipeline.fds.values_mut() {
            table.snapshot(now);
        }
        self.pipeline.spawned.snapshot(now);
        self.thin(now);
        self.go.sample();
        self.go_write.sample(&self.go);
        let ended: Vec<bool> = self
            .targets
            .iter()
            .map(|traced| traced.held.has_exited())
            .collect();
        if ended
            .iter()
            .zip(&self.targets)
            .any(|(ended, traced)| *ended && !traced.exited)
        {
            // Its last records come before its end.
            self.drain();
        }
        for (traced, ended) in self
            .targets
            .iter_mut()
            .zip(ended)
            .filter(|(traced, _)| !traced.exited)
        {
            if ended {
                traced.exited = true;
                traced.described.exited = true;
                self.programs.forget(traced.held.pid);
                self.uprobes.forget(traced.held.pid);
                self.creators.forget(traced.held.pid);
                traced.held.release();
                if let Some(table) = self.pipeline.fds.get_mut(&traced.held.pid) {
                    table.on_process_exit(now);
                }
                self.go.ended(traced.held.pid);
                self.pipeline.end_pages(traced.held.pid);
                traced.memory.room = None;
                self.pipeline.stacks.process_exit(traced.held.pid);
                // Its id may be another's soon.
                if let Some(capture) = &mut self.capture {
                    capture.remove_target(traced.held.pid);
                }
            } else if let Ok(stat) = target::Stat::of(traced.held.pid) {
                traced.described.threads = stat.threads;
            }
        }
        self.look_at_memory(now, false);
    }

    /// How much memory a target has, and whether what was touched of it is still there.
    fn look_at_memory(&mut self, now_ns: u64, edge: bool) {
        if !self.options.collectors.memory {
            return;
        }
        self.pipeline.look_at_pages(now_ns, edge);
        for traced in self.targets.iter_mut().filter(|traced| !traced.exited) {
            traced.memory.read(traced.held.pid, now_ns);
            if edge {
                traced.memory.room = memory::room(traced.held.pid);
            }
        }
    }

    /// Has as many of the CPUs' ticks and of page faults recorded as are needed.
    fn thin(&mut self, now_ns: u64) {
        let records = (self.pipeline.samples.records(), self.pipeline.pages.records());
        let before = std::mem::replace(&mut self.counted, records);
        let ticks = self.sampling.counted(records.0.saturating_sub(before.0), now_ns);
        let faults = self.faulting.counted(records.1.saturating_sub(before.1), now_ns);
        if (ticks || faults)
            && let Err(error) = self.set_control()
        {
            log::warn!("the probes are not told how many samples to record: {error:#}");
        }
    }

    /// Begins with what `--go-write` asks for, before anything is said to be traced.
    pub fn write_go(&mut self) {
        if self.go_write.is_asked() {
            self.look_at_go(true);
            self.go_write.begin(&self.go);
        }
    }

    /// Looks at goroutines, where it is due, or at all of them.
    pub fn look_at_go(&mut self, all: bool) {
        // At the end one that has just begun would else not be in the report.
        self.look_at_programs(all);
        let mut go = std::mem::take(&mut self.go);
        if let Some(capture) = &self.capture {
            for pid in self.uprobes.with_pools() {
                let counts = capture.pool_counts(pid);
                go.expect_pools(pid, counts.into_iter().map(|(address, _)| address));
            }
        }
        go.take(all, || self.meanwhile());
        self.go = go;
    }

    /// Measures what ctrace costs, and leaves more out or less when a budget asks for it.
    pub fn hold_budget(&mut self) -> Result<()> {
        let Some(capture) = self.capture.as_mut().filter(|_| self.budget.is_set()) else {
            return Ok(());
        };
        let probes = capture.take_kernel_share();
        if probes.is_none() && capture.tells_cost() {
            return Ok(());
        }
        let (cpu, now) = (host::own_cpu(), host::monotonic_ns());
        let (cpu_before, before) = std::mem::replace(&mut self.cost_from, (cpu, now));
        let elapsed = now.saturating_sub(before).max(1);
        // Probes in programs have an account of their own.
        let (in_own, in_programs) = self.probing.take_cost_ns(elapsed);
        let own = (cpu.saturating_sub(cpu_before).as_nanos() as f64 - in_own).max(0.0) + in_programs;
        let cost = (probes.unwrap_or(0.0) + own / elapsed as f64) * 100.0;
        let setting = match probes {
            Some(_) => self.budget.measured(cost),
            None => self.budget.measured_in_part(cost),
        };
        if let Some(setting) = setting {
            log::info!(
                "own cost {cost:.2} %: sleeps from {} ns, one in {}",
                setting.min_wait_ns,
                setting.one_in
            );
            self.set_control()?;
        }
        Ok(())
    }

    /// No target lives.
    #[must_use]
    pub fn all_exited(&self) -> bool {
        self.targets.iter().all(|traced| traced.exited)
    }

    /// Said once the probes are live.
    #[must_use]
    pub fn ready_line(&mut self) -> String {
        // A command has its own name by now.
        for traced in &mut self.targets {
            if let Ok(stat) = target::Stat::of(traced.held.pid) {
                traced.described.comm = stat.comm;
            }
        }
        let of = self
            .targets
            .iter()
            .map(|traced| format!("{} ({})", traced.held.pid, traced.described.comm.escape_debug()))
            .collect::<Vec<_>>()
            .join(", ");
        let until = self.options.duration.map_or_else(
            || "Hit Ctrl-C to end.".to_owned(),
            |duration| format!("{}. Hit Ctrl-C to end.", humantime::format_duration(duration)),
        );
        format!("Tracing {of} … {until}")
    }

    /// A sign of life.
    #[must_use]
    pub fn progress_line(&self) -> String {
        let open: usize = self.pipeline.fds.values().map(FdTable::live).sum();
        let seconds = host::monotonic_ns().saturating_sub(self.edge.ns) / 1_000_000_000;
        format!(
            "  {seconds} s: {} records, {} stacks, {open} descriptors open",
            self.pipeline.records(),
            self.pipeline.stacks.len()
        )
    }

    /// Detaches the probes.
    pub fn detach(&mut self) {
        self.capture = None;
    }

    fn reconcile(&mut self, pid: u32) {
        let Some(table) = self.pipeline.fds.get_mut(&pid) else {
            return;
        };
        if let Ok(scan) = fd::scan(pid, host::monotonic_ns) {
            // Records up to the scan's end must be known before it is compared.
            self.drain_records();
            if let Some(table) = self.pipeline.fds.get_mut(&pid) {
                table.reconcile(&scan);
            }
        } else {
            let _ = table;
        }
    }

    fn alive(&self) -> Vec<u32> {
        self.targets
            .iter()
            .filter(|traced| !traced.exited)
            .map(|traced| traced.held.pid)
            .collect()
    }

    fn snapshots(&mut self) -> Vec<TaskSnapshot> {
        self.capture
            .as_mut()
            .and_then(|capture| capture.tasks().ok())
            .unwrap_or_default()
    }

    /// Who else ran in the window that ends now; of the next one they are counted anew.
    fn look_at_others(&mut self, last: bool) -> Result<()> {
        let Some(capture) = &mut self.capture else {
            return Ok(());
        };
        let ticks = capture.counter(counter::OTHERS_TICKS)?;
        let own = std::process::id();
        self.others.known = capture.neighbours();
        // What tracing costs is told elsewhere.
        let tracing = self.others.known.iter().find(|(pid, _)| *pid == own);
        let of_tracing = tracing.map_or(0, |(_, known)| known.ticks);
        self.others.ticks = ticks
            .saturating_sub(self.others_before)
            .saturating_sub(of_tracing);
        self.others.known.retain(|(pid, _)| *pid != own);
        self.others_before = ticks;
        if !last {
            capture.forget_neighbours();
        }
        Ok(())
    }

    /// Makes a report of the window that ends now; unless it is the last, a new window begins.
    pub fn report(&mut self, last: bool) -> Result<Report> {
        self.drain();
        self.sample();
        self.look_at_go(true);
        self.go_write.read(&self.go);
        if last {
            self.go_write.end();
        }
        let alive = self.alive();
        if self.options.collectors.fds {
            for &pid in &alive {
                self.reconcile(pid);
            }
            std::thread::sleep(SECOND_LOOK);
            for &pid in &alive {
                self.reconcile(pid);
            }
        }
        self.pipeline.threads.note_ends();
        let snapshots = self.snapshots();
        self.drain();
        self.pipeline.on_snapshots(&snapshots);
        let after = Edge::read(&alive, self.capture.as_ref().and_then(Capture::kernel_time));
        let window = Window {
            start_ns: self.edge.ns,
            end_ns: after.ns,
        };
        self.look_at_others(last)?;
        self.look_at_memory(after.ns, true);
        let (losses, lost) = self.losses()?;
        let had = self.stacks_had()?;
        let had_here = had_since(&had, &self.had_before);
        if let Some(capture) = self.capture.as_mut().filter(|_| last) {
            // Looking names up takes its time, in which the program should pay for nothing.
            capture.detach_programs();
        }
        let assembly = self.assemble(&snapshots, &after, window, losses, &had_here);
        if !last {
            self.pipeline.reset(after.ns);
            self.counted = (0, 0);
            for traced in &mut self.targets {
                traced.memory.reset(traced.exited);
            }
            self.lost_before = lost;
            self.had_before = had;
            self.edge = after;
            self.started_at = SystemTime::now();
            self.budget.reset();
            self.probing.reset(self.capture.as_ref(), self.edge.ns);
            self.set_control()?;
        }
        let report = assembly.finish(|| {
            if !last {
                self.hold();
                self.drain();
            }
        });
        // Making a report is no part of what tracing costs.
        self.cost_from = (host::own_cpu(), host::monotonic_ns());
        report
    }
}

/// What the targets have open, and how many threads.
fn first_look(pipeline: &mut Pipeline, targets: &[Traced], options: &Options) -> Result<()> {
    for traced in targets {
        let pid = traced.held.pid;
        if traced.held.has_exited() {
            return Err(anyhow!(
                "process {pid} ended while ctrace attached: nothing to report"
            ));
        }
        if options.collectors.fds {
            pipeline.fds.insert(pid, seeded(pid));
        }
        if options.collectors.sched {
            let threads = sched::tids(pid).len() as u64;
            pipeline.spawned.begin(pid, threads, host::monotonic_ns());
        }
    }
    Ok(())
}

/// Whether waits for Go's own locks are to be traced.
const fn traces_go(options: &Options) -> bool {
    options.uprobes && (options.collectors.locks || options.collectors.go)
}

/// One of them is a Go program.
fn some_go(held: &[Held]) -> Result<()> {
    let described = |held: &Held| (held.pid, target::describe(held.pid));
    let all: Vec<(u32, Target)> = held.iter().map(described).collect();
    if all.iter().any(|(_, target)| is_go(target)) {
        return Ok(());
    }
    let names: Vec<String> = all
        .iter()
        .map(|(pid, target)| format!("{pid} ({})", target.comm.escape_debug()))
        .collect();
    Err(anyhow!(
        "--go-write writes into Go programs only, and {} is none: leave it out",
        names.join(", ")
    ))
}

fn is_go(target: &Target) -> bool {
    target.runtime.starts_with("go")
}

/// Of the recognised stacks one in this plus one is compared; with 0 in the options none is recognised.
pub(super) fn shadow_mask(options: &Options) -> u64 {
    u64::from(options.shadow.wrapping_sub(1))
}

fn pids(targets: &[Traced]) -> Vec<u32> {
    targets.iter().map(|traced| traced.held.pid).collect()
}

/// A table that knows what is open now; the probes are live already, so nothing falls between.
fn seeded(pid: u32) -> FdTable {
    let mut table = FdTable::new(pid);
    match fd::scan(pid, host::monotonic_ns) {
        Ok(scan) => table.seed(&scan),
        Err(_) => table.set_incomplete("the process's descriptors could not be listed"),
    }
    table
}

/// What this kernel does not show of descriptors' births.
fn unseen_kinds(capture: &Capture, options: &Options) -> Vec<String> {
    if !options.collectors.fds {
        return Vec::new();
    }
    let mut kinds = vec![
        "ioctl".to_owned(),
        "fanotify events".to_owned(),
        "SECCOMP_IOCTL_NOTIF_ADDFD".to_owned(),
        "io_uring pipe".to_owned(),
    ];
    kinds.extend(
        capture
            .unattached()
            .iter()
            .filter(|(step, _)| matches!(step.hook, Hook::Tracepoint(..)))
            .map(|(step, _)| step.hook.name().trim_start_matches("sys_exit_").to_owned()),
    );
    kinds
}
