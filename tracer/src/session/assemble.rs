//! A report put together from the state of a run.

use std::{cell::RefCell, io, time::Duration};

use anyhow::{Context as _, Result};
use rustc_hash::FxHashMap;
use tracer_ebpf::wire::{TaskSnapshot, counter};

use super::{
    apart::{Apart, PATIENCE},
    go::GoTargets,
    go_written,
    snapshot::{self, Edge},
    tracing::{Traced, Tracing},
};
use crate::{
    aggregate::{
        fds::{FdTable, ReportInput},
        go_starts::GoStarts,
    },
    analyse::{
        self, Window, blocked, cpu, deadlocks, findings, hints, locks, memory, names::Names, spawned, time,
        waiting,
    },
    capture::{
        Capture, TICKS_HZ,
        plan::Hook,
        stats::{KernelTime, scaled},
        uprobes::Group,
    },
    cli::options::Options,
    go::metrics,
    proc::{fd, host, limits, sockets::Sockets},
    report::{
        hist::hist,
        model::{self, Fds, Go, Losses, Overhead, Report, StacksHad},
        time::rfc3339,
    },
    stacks::StackId,
};

/// With longer waits left out, a thread that got a lock cannot be told from one that lost the race for it.
const SHORT_WAIT: Duration = Duration::from_micros(10);

/// A report that is being put together.
pub(super) enum Assembly {
    /// In a process of its own, which inherits mappings of eBPF maps of this size.
    Apart(Apart, u64),
    /// Here, as there could be no process.
    Done(Box<Report>),
}

impl Assembly {
    /// Waits for the report; `meanwhile` is called every few milliseconds.
    pub(super) fn finish(self, meanwhile: impl FnMut()) -> Result<Report> {
        let (apart, mapped_bytes) = match self {
            Self::Apart(apart, mapped_bytes) => (apart, mapped_bytes),
            Self::Done(report) => return Ok(*report),
        };
        let done = apart
            .finish(2 * PATIENCE, meanwhile)
            .context("the report's process did not end well")?;
        let mut report: Report =
            serde_json::from_slice(&done.bytes).context("the report's process sent no report")?;
        report.overhead.symbolize_peak_rss_bytes = Some(done.peak_rss_bytes.saturating_sub(mapped_bytes));
        report.overhead.symbolize_cpu_ns = Some(done.cpu_ns);
        Ok(report)
    }
}

impl Tracing {
    /// Puts a report together from the state as it is now, which may change at once: a process is forked that keeps it. It makes
    /// another one that looks up names, and does without names if a hostile file ends that one.
    pub(super) fn assemble(
        &mut self,
        snapshots: &[TaskSnapshot],
        after: &Edge,
        window: Window,
        losses: Losses,
        had: &StacksHad,
    ) -> Assembly {
        if losses.fd_ring_full > 0 || losses.unknown_record > 0 {
            for table in self.pipeline.fds.values_mut() {
                table.set_incomplete("records about descriptors were lost");
            }
        }
        if losses.ring_full + losses.map_full + losses.unknown_record > 0 {
            self.pipeline.spawned.set_incomplete();
        }
        let write = |out: &mut dyn io::Write, report: &Report| Ok(serde_json::to_writer(out, report)?);
        let apart = Apart::start(|out| {
            // They would stay on as long as this process holds them.
            if let Some(capture) = &mut self.capture {
                capture.let_go();
            }
            let named = Apart::start(|out| {
                let report = self.build(snapshots, after, window, losses.clone(), had.clone(), None);
                write(out, &report)
            });
            match named.and_then(|named| named.finish(PATIENCE, || {})) {
                Ok(done) => out.write_all(&done.bytes),
                Err(error) => {
                    let report = self.build(
                        snapshots,
                        after,
                        window,
                        losses.clone(),
                        had.clone(),
                        Some(&error),
                    );
                    write(out, &report)
                }
            }
        });
        match apart {
            Ok(apart) => Assembly::Apart(apart, after.memory.mapped_bytes),
            Err(error) => {
                log::warn!("names are looked up in this process: {error}");
                Assembly::Done(Box::new(self.build(
                    snapshots,
                    after,
                    window,
                    losses,
                    had.clone(),
                    None,
                )))
            }
        }
    }

    /// What was not seen in this window, and the sums since attach that the next window begins with.
    pub(super) fn losses(&self) -> Result<(Losses, Losses)> {
        let now = self.losses_since_attach()?;
        Ok((since(&now, &self.lost_before), now))
    }

    /// What was not seen since attach.
    fn losses_since_attach(&self) -> Result<Losses> {
        let lost = match &self.capture {
            Some(capture) => capture.counters()?,
            None => [0; counter::COUNT as usize],
        };
        let at = |which: u32| lost[which as usize];
        let mut failures = self.pipeline.stacks.failures();
        let unheard = self.hearing.lost();
        if unheard > 0 {
            failures.insert("mapping_unheard", unheard);
        }
        let stale = self.pipeline.stacks.recognition().stale;
        if stale > 0 {
            failures.insert("stale", stale);
        }
        let folded = self.pipeline.waits.folded()
            + self.pipeline.go_locks.folded()
            + self.pipeline.threads.folded()
            + self.pipeline.folded()
            + self.pipeline.go_starts.folded()
            + self.pipeline.fds.values().map(FdTable::folded).sum::<u64>();
        Ok(Losses {
            ring_full: at(counter::RING_FULL),
            fd_ring_full: at(counter::FD_RING_FULL),
            map_full: at(counter::MAP_FULL),
            stack_failed: failures.values().sum(),
            stack_pending: at(counter::STACK_PENDING),
            unmatched: self.pipeline.unmatched(),
            go_stack_pending: at(counter::GO_PARK_PENDING),
            go_unmatched: at(counter::GO_UNMATCHED),
            folded,
            go_folded: self.pipeline.go_locks.folded_parks(),
            compat: at(counter::COMPAT),
            control_truncated: at(counter::CONTROL_TRUNCATED),
            user_fault: at(counter::USER_FAULT),
            unknown_record: self.pipeline.unknown_records(),
            switch_unseen: at(counter::SWITCH_UNSEEN),
            samples: at(counter::SAMPLE_RING_FULL) + at(counter::FAULT_RING_FULL),
            names: None,
            stack_failed_by: failures
                .into_iter()
                .map(|(reason, count)| (reason.to_owned(), count))
                .collect(),
            complete: true,
        })
    }

    /// How stacks were had since attach.
    pub(super) fn stacks_had(&self) -> Result<StacksHad> {
        let counters = match &self.capture {
            Some(capture) => capture.counters()?,
            None => [0; counter::COUNT as usize],
        };
        let user = self.pipeline.stacks.recognition();
        Ok(StacksHad {
            recognised: counters[counter::MEMO_HIT as usize],
            copied: counters[counter::MEMO_MISS as usize],
            hit_rate: None,
            agreed: user.agreed,
            disagreed: user.disagreed,
            stale: user.stale,
            unfit: user.unfit,
            dropped: user.dropped,
            memos: user.memos,
        })
    }

    /// Puts a report together; without names when looking them up ended in `failure`.
    #[allow(
        clippy::too_many_lines,
        reason = "one straight line through the report's sections"
    )]
    fn build(
        &mut self,
        snapshots: &[TaskSnapshot],
        after: &Edge,
        window: Window,
        losses: Losses,
        had: StacksHad,
        failure: Option<&io::Error>,
    ) -> Report {
        let Self {
            capture,
            pipeline,
            targets,
            symbolizer,
            kernel,
            edge,
            options,
            budget,
            go: go_targets,
            go_write,
            uprobes,
            creators,
            probing,
            others,
            ..
        } = self;
        let mut names = Names::new(&mut pipeline.stacks, symbolizer, kernel);
        if failure.is_some() {
            names = names.nameless();
        }
        let sleepers = waiting::sleepers(snapshots, &mut names, || {
            capture
                .as_mut()
                .and_then(|capture| capture.tasks().ok())
                .unwrap_or_default()
        });
        let live = snapshot::live(edge, after, &sleepers, window.start_ns);
        let targets = &*targets;
        let runtime = |pid: u32| {
            let mut own = targets.iter().filter(|traced| traced.held.pid == pid);
            own.next().map_or("", |traced| &*traced.described.runtime)
        };
        let is_go = |pid: u32| runtime(pid).starts_with("go");
        let mut losses = losses;
        // What a lock is, and who waits idly for work, is told by names.
        losses.complete &= failure.is_none();
        losses.names =
            failure.map(|error| format!("the process that looks them up did not end well: {error}"));
        let in_part = |group| probing.in_part(group, window.end_ns, window.ns());
        let go_locks = locks::Go {
            waits: &pipeline.go_locks,
            layouts: &uprobes.layouts,
            reasons: &uprobes.reasons,
            covered_ns: [in_part(Group::Locks), in_part(Group::Parks)],
            window_ns: window.ns(),
        };
        let collectors = options.collectors;
        // Holds follow from waits that are all seen.
        let all_waits = losses.ring_full + losses.map_full == 0
            && !budget.leaves_short_out()
            && options.min_wait <= SHORT_WAIT;
        let held = all_waits.then_some(&pipeline.holds);
        let mut found_locks = (collectors.locks || collectors.go).then(|| {
            let waits = collectors.locks.then_some(&pipeline.waits);
            locks::locks(waits, go_locks, held, &mut names, is_go)
        });
        let stuck = found_locks.as_mut().filter(|_| collectors.locks).map(|locks| {
            deadlocks::look(&sleepers, locks, &mut names, &window, is_go, || {
                capture
                    .as_mut()
                    .and_then(|capture| capture.tasks().ok())
                    .unwrap_or_default()
            })
        });
        let stuck = stuck.unwrap_or_default();
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
            blocked::blocked(&pipeline.waits, &mut names, kernel_stack, window.ns())
        });
        let left_out = found_locks.as_ref().map_or(0, |locks| locks.left_out)
            + blocked.as_ref().map_or(0, |(_, left_out)| *left_out);
        losses.folded += left_out;
        let steal_ns = after
            .steal_ns
            .zip(edge.steal_ns)
            .map(|(after, before)| after.saturating_sub(before));
        let time = time::time(&pipeline.threads, &live, &window, steal_ns);
        let run_queue = options.collectors.sched.then(|| {
            time::run_queue(
                &pipeline.threads,
                &live,
                snapshot::throttled(edge, after),
                &window,
            )
        });
        let ticks = capture.as_ref().filter(|capture| capture.samples_cpus());
        let cpu = ticks.map(|_| cpu::cpu(&pipeline.samples, others, TICKS_HZ, &mut names));
        let threads = options.collectors.sched.then(|| {
            let older_ns = options.older.map(|older| older.as_nanos() as u64);
            spawned::spawned(&pipeline.spawned, &sleepers, after.ns, older_ns, &mut names)
        });
        let memory = options.collectors.memory.then(|| {
            let read = targets.iter().map(|traced| (traced.held.pid, &traced.memory));
            let sampled = capture.as_ref().is_some_and(Capture::sees_faults);
            memory::memory(read, &pipeline.pages, sampled, &window, &mut names)
        });
        let fds = options.collectors.fds.then(|| {
            let starts = &pipeline.go_starts;
            fds(
                &pipeline.fds,
                starts,
                options,
                &self.unseen_kinds,
                &mut names,
                after.ns,
            )
        });
        let mut go = if options.collectors.go {
            let mut all = go(go_targets, targets, options, after.ns, &mut names);
            go_written::add(&mut all, go_targets, go_write, &mut names);
            all
        } else {
            Vec::new()
        };
        analyse::go_pool_waits::timed(
            &mut go,
            found_locks.as_mut(),
            &pipeline.go_locks,
            |pid| {
                let probed = uprobes.with_pools().any(|probed| probed == pid);
                let counts = capture.as_ref().filter(|_| probed)?.pool_counts(pid);
                Some((counts, uprobes.counts_requests(pid)))
            },
            &mut names,
        );
        let go_probes = capture
            .as_ref()
            .map(|capture| probing.report(capture, window.end_ns))
            .unwrap_or_default();
        let whole =
            |probes: &model::GoProbes| probes.group == "waits" && probes.covered_ns >= window.ns() / 100 * 99;
        let whole_ns = go_probes.iter().any(whole).then(|| window.ns());
        analyse::asked::complete(&mut go, &pipeline.go_starts, &mut names);
        for go in &mut go {
            if let Some(reasons) = uprobes.reasons.get(&go.pid) {
                let waits = &pipeline.go_locks;
                losses.folded += analyse::go_parks::exact(go, waits, reasons, whole_ns, &mut names);
            }
        }
        let host = host::host();
        let findings = findings::findings(
            &findings::Facts {
                locks: found_locks.as_ref(),
                stuck: &stuck,
                go: &go,
                starts: &pipeline.go_starts,
                fds: fds.as_ref(),
                time: &time,
                cpu: cpu.as_ref(),
                threads: threads.as_ref(),
                memory: memory.as_ref(),
                runtime: &runtime,
                cpus: host.cpus,
                run_queue: run_queue.as_ref(),
                throttling: snapshot::throttled(edge, after),
                throttling_of: &|pid| snapshot::throttled_of(edge, after, pid),
                losses: &losses,
                window_ns: window.ns(),
                short_left_out: budget.leaves_short_out(),
            },
            &mut names,
        );
        let described: Vec<_> = targets.iter().map(|traced| traced.described.clone()).collect();
        let mut hints = hints::hints(&described, &names.naming());
        hints.extend(hints::unread_go(&described, go_targets.refused()));
        hints.extend(go_written::hints(&described, go_write));
        hints.extend(uprobes.hints(|pid| {
            let target = described.iter().find(|target| target.pid == pid)?;
            Some(target.runtime.clone())
        }));
        hints.extend(
            capture
                .as_ref()
                .and_then(|capture| unsampled(capture, &described)),
        );
        hints.extend(creators.hints(|pid| {
            let target = described.iter().find(|target| target.pid == pid)?;
            Some(target.runtime.clone())
        }));
        let probes = capture.as_ref().map(Capture::probes).unwrap_or_default();
        Report {
            schema: model::SCHEMA.to_owned(),
            ctrace: model::Ctrace {
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            host,
            window: model::Window {
                started_at: rfc3339(self.started_at).unwrap_or_default(),
                duration_ns: window.ns(),
            },
            options: options_used(options),
            targets: described,
            probes,
            losses,
            overhead: Overhead {
                go_probes,
                ..overhead(edge, after, &window, had, budget.report())
            },
            stacks: names.into_stacks(),
            locks: found_locks.map(|locks| locks.locks),
            blocked: blocked.map(|(blocked, _)| blocked),
            time: Some(time),
            cpu,
            run_queue,
            threads,
            waiting_now,
            fds,
            go: (!go.is_empty()).then(|| go.remove(0)),
            go_others: go,
            memory,
            deadlocks: stuck.deadlocks,
            findings,
            hints,
        }
    }
}

/// The sections of Go programs, the one with most goroutines first.
fn go(
    go_targets: &mut GoTargets,
    targets: &[Traced],
    options: &Options,
    now_ns: u64,
    names: &mut Names<'_>,
) -> Vec<Go> {
    let version = |pid: u32| {
        let traced = targets.iter().find(|traced| traced.held.pid == pid)?;
        Some(traced.described.runtime.clone()).filter(|version| version != "go")
    };
    let older_ns = options.older.map(|older| older.as_nanos() as u64);
    let mut all: Vec<Go> = go_targets
        .iter_mut()
        .map(|(pid, target)| {
            let seen = analyse::go::Seen {
                pid,
                version: version(pid),
                reader: &target.reader,
                account: &target.goroutines,
                pools: &target.pools,
                gc: metrics::gc(&target.gc, target.goroutines.window_ns()),
                tally: target.tally,
                cpu_ns: target.cpu.as_nanos() as u64,
                interval_ns: target.interval.as_nanos() as u64,
            };
            analyse::go::go(&seen, &mut target.objects, older_ns, now_ns, names)
        })
        .collect();
    all.sort_by_key(|go| std::cmp::Reverse(go.goroutines));
    all
}

/// How stacks were had between two sums.
pub(super) fn had_since(now: &StacksHad, before: &StacksHad) -> StacksHad {
    let recognised = now.recognised.saturating_sub(before.recognised);
    let copied = now.copied.saturating_sub(before.copied);
    let all = recognised + copied;
    StacksHad {
        recognised,
        copied,
        hit_rate: (all > 0).then(|| recognised as f64 / all as f64),
        agreed: now.agreed.saturating_sub(before.agreed),
        disagreed: now.disagreed.saturating_sub(before.disagreed),
        stale: now.stale.saturating_sub(before.stale),
        unfit: now.unfit.saturating_sub(before.unfit),
        dropped: now.dropped.saturating_sub(before.dropped),
        memos: now.memos,
    }
}

/// That what runs is not known, and why, when it was asked for.
fn unsampled(capture: &Capture, targets: &[model::Target]) -> Option<model::Hint> {
    let mut refused = capture.unattached().iter();
    let (_, why) = refused.find(|(step, _)| step.hook == Hook::CpuClock)?;
    let first = targets.first()?;
    Some(model::Hint {
        pid: first.pid,
        runtime: first.runtime.clone(),
        text: format!("what runs on the CPUs is not sampled: {why}"),
        frames: 0,
    })
}

/// What was lost between two sums.
fn since(now: &Losses, before: &Losses) -> Losses {
    let mut lost = Losses {
        ring_full: now.ring_full.saturating_sub(before.ring_full),
        fd_ring_full: now.fd_ring_full.saturating_sub(before.fd_ring_full),
        map_full: now.map_full.saturating_sub(before.map_full),
        stack_failed: now.stack_failed.saturating_sub(before.stack_failed),
        stack_pending: now.stack_pending.saturating_sub(before.stack_pending),
        unmatched: now.unmatched.saturating_sub(before.unmatched),
        go_stack_pending: now.go_stack_pending.saturating_sub(before.go_stack_pending),
        go_folded: now.go_folded.saturating_sub(before.go_folded),
        go_unmatched: now.go_unmatched.saturating_sub(before.go_unmatched),
        folded: now.folded.saturating_sub(before.folded),
        compat: now.compat.saturating_sub(before.compat),
        control_truncated: now.control_truncated.saturating_sub(before.control_truncated),
        user_fault: now.user_fault.saturating_sub(before.user_fault),
        unknown_record: now.unknown_record.saturating_sub(before.unknown_record),
        switch_unseen: now.switch_unseen.saturating_sub(before.switch_unseen),
        samples: now.samples.saturating_sub(before.samples),
        names: None,
        stack_failed_by: now
            .stack_failed_by
            .iter()
            .map(|(reason, &count)| {
                let before = before.stack_failed_by.get(reason).copied().unwrap_or(0);
                (reason.clone(), count.saturating_sub(before))
            })
            .filter(|(_, count)| *count > 0)
            .collect(),
        complete: true,
    };
    // No verdict rests on what goroutines park for.
    lost.complete = [
        lost.ring_full,
        lost.fd_ring_full,
        lost.map_full,
        lost.stack_pending.saturating_sub(lost.go_stack_pending),
        lost.unmatched,
        lost.folded.saturating_sub(lost.go_folded),
        lost.control_truncated,
        lost.unknown_record,
    ]
    .iter()
    .all(|&count| count == 0);
    lost
}

/// The descriptors' section: tables of all targets together, rows by process.
fn fds(
    tables: &FxHashMap<u32, FdTable>,
    starts: &GoStarts,
    options: &Options,
    unseen_kinds: &[String],
    names: &mut Names<'_>,
    now_ns: u64,
) -> Fds {
    let mut sum = Fds {
        window_ns: None,
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
        shared: Vec::new(),
    };
    let mut tables: Vec<(u32, &FdTable)> = tables.iter().map(|(&pid, table)| (pid, table)).collect();
    tables.sort_unstable_by_key(|(pid, _)| *pid);
    let several = tables.len() > 1;
    let names = RefCell::new(names);
    for (pid, table) in tables {
        let scan = fd::scan(pid, host::monotonic_ns).ok();
        let limit = limits::nofile(pid).ok().and_then(|limit| limit.soft);
        let stack_key = |stack: StackId| format!("s{}", stack.0);
        let asked_by = |asker| analyse::asked::steps(&starts.get(asker), &mut names.borrow_mut());
        let mut input = ReportInput {
            now_ns,
            limit,
            older_ns: options.older.map(|older| older.as_nanos() as u64),
            scan: scan.as_ref(),
            sockets: None,
            unseen_kinds: Vec::new(),
            hist,
            stack_key: &stack_key,
            asked_by: &asked_by,
        };
        let sockets = Sockets::of_only(pid, &table.example_inodes(&input)).ok();
        input.sockets = sockets.as_ref();
        let fds = table.report(&input);
        sum.window_ns = sum.window_ns.max(fds.window_ns);
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
        sum.shared.extend(fds.shared);
    }
    if several {
        // A limit is each process's own: a sum has none.
        sum.limit = None;
        sum.time_to_limit_ns = None;
    }
    for row in &sum.by_stack {
        if let Some(id) = row
            .stack
            .as_deref()
            .and_then(|key| key.strip_prefix('s')?.parse().ok())
        {
            names.borrow_mut().key(StackId(id));
        }
    }
    sum
}

fn overhead(
    before: &Edge,
    after: &Edge,
    window: &Window,
    memos: StacksHad,
    budget: Option<model::Budget>,
) -> Overhead {
    let kernel = after.kernel.zip(before.kernel).map(|(after, before)| KernelTime {
        run_ns: after.run_ns.saturating_sub(before.run_ns),
        sampled_ns: after.sampled_ns.saturating_sub(before.sampled_ns),
        in_programs_ns: after.in_programs_ns.saturating_sub(before.in_programs_ns),
    });
    let kernel_ns = kernel.and_then(|kernel| {
        let sampled = scaled(kernel.run_ns, kernel.sampled_ns, window.ns())?;
        Some(sampled.saturating_add(kernel.in_programs_ns))
    });
    let user_cpu_ns = after.own_cpu_ns.saturating_sub(before.own_cpu_ns);
    Overhead {
        kernel_ns,
        kernel_sampled_ns: kernel.map(|kernel| kernel.sampled_ns.min(window.ns())),
        user_cpu_ns,
        rss_bytes: after.memory.rss_bytes,
        maps_bytes: after.memory.maps_bytes,
        cpu_percent: kernel_ns
            .map(|kernel_ns| (kernel_ns + user_cpu_ns) as f64 * 100.0 / window.ns().max(1) as f64),
        symbolize_peak_rss_bytes: None,
        symbolize_cpu_ns: None,
        memos,
        budget,
        go_probes: Vec::new(),
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
            (collectors.go, "go"),
            (collectors.memory, "memory"),
        ]
        .into_iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| name.to_owned())
        .collect(),
        min_wait_ns: options.min_wait.as_nanos() as u64,
        top: options.top,
        older_ns: options.older.map(|older| older.as_nanos() as u64),
        follow: options.follow,
    }
}
