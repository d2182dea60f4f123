//! The state of a run: capture and pipeline, the targets, and how a report is made of them.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::SystemTime,
};

use anyhow::{Result, anyhow};
use rustc_hash::FxHashMap;
use tracer_ebpf::wire::{TaskSnapshot, counter};

use super::{
    pipeline::{Notice, Pipeline},
    snapshot::{self, Edge},
};
use crate::{
    aggregate::fds::{FdTable, ReportInput},
    analyse::{Window, blocked, findings, locks, names::Names, time, waiting},
    capture::{Capture, Request},
    cli::{options::Options, targets::Held},
    proc::{fd, host, limits, sockets::Sockets, target},
    report::{
        hist::hist,
        model::{self, Fds, Losses, Overhead, Report, Target},
        time::rfc3339,
    },
    stacks::{KernelSymbols, StackId, Symbolizer},
};

/// Records taken at a time, so that signals are heard under load.
const BATCH: usize = 4096;
/// Batches at one go.
const BATCHES: usize = 64;
/// Time between the two scans of descriptors that a verdict needs.
const SECOND_LOOK: std::time::Duration = std::time::Duration::from_millis(20);

struct Traced {
    held: Held,
    described: Target,
    exited: bool,
}

/// A run.
pub struct Tracing {
    /// As asked for.
    pub options: Options,
    capture: Option<Capture>,
    pipeline: Pipeline,
    targets: Vec<Traced>,
    symbolizer: Symbolizer,
    kernel: KernelSymbols,
    edge: Edge,
    started_at: SystemTime,
    /// Counters of losses at the window's start.
    lost_before: [u64; counter::COUNT as usize],
    unseen_kinds: Vec<String>,
}

impl Tracing {
    /// Attaches the probes and looks at the targets for the first time.
    pub fn start(options: Options, held: Vec<Held>) -> Result<Self> {
        let request = Request {
            targets: held.iter().map(|held| held.pid).collect(),
            collectors: options.collectors,
            follow: options.follow,
            ring_bytes: options.ring_bytes,
        };
        let capture = Capture::start(&request)?;
        let min_wait = options.min_wait.as_nanos() as u64;
        let mut pipeline = Pipeline::new(min_wait, options.collectors.io, host::realtime_offset_ns());
        let mut targets = Vec::new();
        for held in held {
            if held.has_exited() {
                return Err(anyhow!(
                    "process {} ended while ctrace attached: nothing to report",
                    held.pid
                ));
            }
            if options.collectors.fds {
                pipeline.fds.insert(held.pid, seeded(held.pid));
            }
            pipeline.stacks.prime(held.pid);
            targets.push(Traced {
                described: target::describe(held.pid),
                held,
                exited: false,
            });
        }
        let unseen_kinds = unseen_kinds(&capture, &options);
        let pids = pids(&targets);
        let edge = Edge::read(&pids, kernel_ns(&capture));
        Ok(Self {
            options,
            capture: Some(capture),
            pipeline,
            targets,
            symbolizer: Symbolizer::new(),
            kernel: KernelSymbols::new(),
            edge,
            started_at: SystemTime::now(),
            lost_before: [0; counter::COUNT as usize],
            unseen_kinds,
        })
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
        let Some(capture) = &mut self.capture else { return };
        for _ in 0..BATCHES {
            let taken = capture.drain(BATCH, |record| self.pipeline.on_record(record));
            for (place, class) in self.pipeline.take_classes() {
                capture.set_stack_class(place, class);
            }
            if taken < BATCH {
                break;
            }
        }
        for notice in self.pipeline.take_notices() {
            self.on_notice(notice);
        }
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Exec(pid) => {
                if let Some(traced) = self.targets.iter_mut().find(|traced| traced.held.pid == pid) {
                    let described = target::describe(pid);
                    if !described.comm.is_empty() {
                        traced.described = described;
                    }
                }
                self.reconcile(pid);
            }
            Notice::Child { parent, child, ts_ns } => {
                if !self.options.follow {
                    return;
                }
                // A child that has ended already left its records, which need no more of it.
                let Ok(held) = Held::hold(child) else { return };
                self.pipeline.stacks.process_fork(parent, child);
                if let Some(table) = self.pipeline.fds.get(&parent) {
                    let table = table.forked(child, ts_ns);
                    self.pipeline.fds.insert(child, table);
                }
                self.targets.push(Traced {
                    described: target::describe(child),
                    held,
                    exited: false,
                });
            }
        }
    }

    /// Looks at the targets, and notes how many descriptors are open.
    pub fn sample(&mut self) {
        let now = host::monotonic_ns();
        for table in self.pipeline.fds.values_mut() {
            table.snapshot(now);
        }
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
                if let Some(table) = self.pipeline.fds.get_mut(&traced.held.pid) {
                    table.on_process_exit(now);
                }
                self.pipeline.stacks.process_exit(traced.held.pid);
            } else if let Ok(stat) = target::Stat::of(traced.held.pid) {
                traced.described.threads = stat.threads;
            }
        }
    }

    /// No target lives.
    #[must_use]
    pub fn all_exited(&self) -> bool {
        self.targets.iter().all(|traced| traced.exited)
    }

    /// Said once the probes are live.
    #[must_use]
    pub fn ready_line(&self) -> String {
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
            if let Some(capture) = &mut self.capture {
                let mut late = Vec::new();
                capture.drain(usize::MAX, |record| late.push(record.to_vec()));
                for record in late {
                    self.pipeline.on_record(&record);
                }
            }
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

    /// Makes a report of the window that ends now; unless it is the last, a new window begins.
    pub fn report(&mut self, last: bool) -> Result<Report> {
        self.drain();
        self.sample();
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
        let snapshots = self.snapshots();
        self.drain();
        let after = Edge::read(&alive, self.capture.as_ref().and_then(kernel_ns));
        let window = Window {
            start_ns: self.edge.ns,
            end_ns: after.ns,
        };
        let losses = self.losses()?;
        let report = self.build(&snapshots, &after, window, losses);
        if !last {
            self.pipeline.reset();
            if let Some(capture) = &self.capture {
                self.lost_before = capture.counters()?;
            }
            self.edge = after;
            self.started_at = SystemTime::now();
        }
        Ok(report)
    }

    fn losses(&self) -> Result<Losses> {
        let mut lost = match &self.capture {
            Some(capture) => capture.counters()?,
            None => self.lost_before,
        };
        for (now, before) in lost.iter_mut().zip(self.lost_before) {
            *now = now.saturating_sub(before);
        }
        let at = |which: u32| lost[which as usize];
        let stack_failed_by: std::collections::BTreeMap<String, u64> = self
            .pipeline
            .stacks
            .failures()
            .into_iter()
            .map(|(reason, count)| (reason.to_owned(), count))
            .collect();
        let folded = self.pipeline.waits.folded()
            + self.pipeline.threads.folded()
            + self.pipeline.fds.values().map(FdTable::folded).sum::<u64>();
        let mut losses = Losses {
            ring_full: at(counter::RING_FULL),
            fd_ring_full: at(counter::FD_RING_FULL),
            map_full: at(counter::MAP_FULL),
            stack_failed: stack_failed_by.values().sum(),
            stack_pending: at(counter::STACK_PENDING),
            unmatched: self.pipeline.waits.unmatched(),
            folded,
            compat: at(counter::COMPAT),
            control_truncated: at(counter::CONTROL_TRUNCATED),
            user_fault: at(counter::USER_FAULT),
            unknown_record: self.pipeline.unknown_records(),
            stack_failed_by,
            complete: true,
        };
        losses.complete = losses.ring_full == 0
            && losses.fd_ring_full == 0
            && losses.map_full == 0
            && losses.stack_pending == 0
            && losses.unmatched == 0
            && losses.folded == 0
            && losses.control_truncated == 0
            && losses.unknown_record == 0;
        Ok(losses)
    }

    fn build(&mut self, snapshots: &[TaskSnapshot], after: &Edge, window: Window, losses: Losses) -> Report {
        let Self {
            capture,
            pipeline,
            targets,
            symbolizer,
            kernel,
            edge,
            options,
            ..
        } = self;
        if losses.fd_ring_full > 0 || losses.unknown_record > 0 {
            for table in pipeline.fds.values_mut() {
                table.set_incomplete("records about descriptors were lost");
            }
        }
        let mut names = Names::new(&mut pipeline.stacks, symbolizer, kernel);
        let sleepers = waiting::sleepers(snapshots, &pipeline.waits, &mut names, || {
            capture
                .as_mut()
                .and_then(|capture| capture.tasks().ok())
                .unwrap_or_default()
        });
        let live = snapshot::live(edge, after, &sleepers, window.start_ns);
        let is_go = |pid: u32| {
            targets
                .iter()
                .any(|traced| traced.held.pid == pid && traced.described.runtime.starts_with("go"))
        };
        let mut losses = losses;
        let found_locks = options
            .collectors
            .locks
            .then(|| locks::locks(&pipeline.waits, &mut names, is_go));
        let nothing = locks::Locks::default();
        let waiting_now = waiting::waiting_now(
            &sleepers,
            found_locks.as_ref().unwrap_or(&nothing),
            &mut names,
            &live,
            &window,
        );
        let blocked = options.collectors.io.then(|| {
            let kernel_stack = |id| {
                capture
                    .as_ref()
                    .map(|capture| capture.kernel_stack(id))
                    .unwrap_or_default()
            };
            blocked::blocked(&pipeline.waits, &mut names, kernel_stack)
        });
        let left_out = found_locks.as_ref().map_or(0, |locks| locks.left_out)
            + blocked.as_ref().map_or(0, |(_, left_out)| *left_out);
        losses.folded += left_out;
        let steal_ns = after
            .steal_ns
            .zip(edge.steal_ns)
            .map(|(after, before)| after.saturating_sub(before));
        let time = time::time(&pipeline.threads, &live, &window, steal_ns);
        let run_queue = options
            .collectors
            .sched
            .then(|| time::run_queue(&pipeline.threads, &live, snapshot::throttled(edge, after)));
        let fds = options.collectors.fds.then(|| {
            fds(
                &pipeline.fds,
                targets,
                options,
                &self.unseen_kinds,
                &mut names,
                after.ns,
            )
        });
        let findings = findings::findings(
            &findings::Facts {
                locks: found_locks.as_ref(),
                fds: fds.as_ref(),
                time: &time,
                run_queue: run_queue.as_ref(),
                losses: &losses,
                window_ns: window.ns(),
            },
            &mut names,
        );
        let probes = capture.as_ref().map(Capture::probes).unwrap_or_default();
        Report {
            schema: model::SCHEMA.to_owned(),
            ctrace: model::Ctrace {
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            host: host::host(),
            window: model::Window {
                started_at: rfc3339(self.started_at).unwrap_or_default(),
                duration_ns: window.ns(),
            },
            options: options_used(options),
            targets: targets.iter().map(|traced| traced.described.clone()).collect(),
            probes,
            losses,
            overhead: overhead(edge, after, &window),
            stacks: names.into_stacks(),
            locks: found_locks.map(|locks| locks.locks),
            blocked: blocked.map(|(blocked, _)| blocked),
            time: Some(time),
            run_queue,
            waiting_now,
            fds,
            go: None,
            memory: None,
            deadlocks: Vec::new(),
            findings,
        }
    }
}

fn pids(targets: &[Traced]) -> Vec<u32> {
    targets.iter().map(|traced| traced.held.pid).collect()
}

fn kernel_ns(capture: &Capture) -> Option<u64> {
    capture.probes().iter().map(|probe| probe.run_ns).sum()
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
            .map(|(step, _)| step.hook.name().trim_start_matches("sys_exit_").to_owned()),
    );
    kinds
}

/// The descriptors' section: tables of all targets together, rows by process.
fn fds(
    tables: &FxHashMap<u32, FdTable>,
    targets: &[Traced],
    options: &Options,
    unseen_kinds: &[String],
    names: &mut Names<'_>,
    now_ns: u64,
) -> Fds {
    let mut sum = Fds {
        open_at_start: 0,
        open_at_end: 0,
        limit: None,
        opened: 0,
        closed: 0,
        time_to_limit_ns: None,
        unseen_births: 0,
        unseen_deaths: 0,
        unseen_kinds: unseen_kinds.to_vec(),
        by_stack: Vec::new(),
    };
    for traced in targets {
        let Some(table) = tables.get(&traced.held.pid) else {
            continue;
        };
        let scan = fd::scan(traced.held.pid, host::monotonic_ns).ok();
        let limit = limits::nofile(traced.held.pid).ok().and_then(|limit| limit.soft);
        let stack_key = |stack: StackId| format!("s{}", stack.0);
        let mut input = ReportInput {
            now_ns,
            limit,
            older_ns: options.older.map(|older| older.as_nanos() as u64),
            scan: scan.as_ref(),
            sockets: None,
            unseen_kinds: Vec::new(),
            hist,
            stack_key: &stack_key,
        };
        let sockets = Sockets::of_only(traced.held.pid, &table.example_inodes(&input)).ok();
        input.sockets = sockets.as_ref();
        let fds = table.report(&input);
        sum.open_at_start += fds.open_at_start;
        sum.open_at_end += fds.open_at_end;
        sum.limit = match (sum.limit, fds.limit) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        sum.opened += fds.opened;
        sum.closed += fds.closed;
        sum.time_to_limit_ns = match (sum.time_to_limit_ns, fds.time_to_limit_ns) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        sum.unseen_births += fds.unseen_births;
        sum.unseen_deaths += fds.unseen_deaths;
        sum.by_stack.extend(fds.by_stack);
    }
    for row in &sum.by_stack {
        if let Some(id) = row
            .stack
            .as_deref()
            .and_then(|key| key.strip_prefix('s')?.parse().ok())
        {
            names.key(StackId(id));
        }
    }
    sum
}

fn overhead(before: &Edge, after: &Edge, window: &Window) -> Overhead {
    let kernel_ns = after
        .kernel_ns
        .zip(before.kernel_ns)
        .map(|(after, before)| after.saturating_sub(before));
    let user_cpu_ns = after.own_cpu_ns.saturating_sub(before.own_cpu_ns);
    Overhead {
        kernel_ns,
        user_cpu_ns,
        rss_bytes: host::own_rss_bytes(),
        cpu_percent: (kernel_ns.unwrap_or(0) + user_cpu_ns) as f64 * 100.0 / window.ns().max(1) as f64,
    }
}

fn options_used(options: &Options) -> model::OptionsUsed {
    let collectors = options.collectors;
    model::OptionsUsed {
        only: [
            (collectors.locks, "locks"),
            (collectors.fds, "fds"),
            (collectors.sched, "sched"),
            (collectors.io, "io"),
        ]
        .into_iter()
        .filter_map(|(on, name)| on.then(|| name.to_owned()))
        .collect(),
        min_wait_ns: options.min_wait.as_nanos() as u64,
        top: options.top,
        older_ns: options.older.map(|older| older.as_nanos() as u64),
        follow: options.follow,
    }
}
