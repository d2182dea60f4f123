//! The measuring itself: off, on, off, on, …, with every tracer in turn.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    ctrace,
    loads::{Load, Tracer},
    neighbours::Moment,
    peers,
    row::{Measured, Pair, Row},
    running::{Ready, Running},
    stats::Window,
    workload::Workload,
};

/// After a tracer has ended the kernel still frees its maps, and waits until no probe runs.
const SETTLE: Duration = Duration::from_millis(200);
/// A disturbed window is measured again, up to this many times the number that is wanted.
const PATIENCE: usize = 2;
/// A tracer that failed this often is given up.
const TRIES: usize = 2;

/// How to measure.
pub(super) struct Bench {
    pub(super) windows: usize,
    pub(super) seconds: f64,
    /// CPUs of other programs from which a window is disturbed.
    pub(super) disturbed: f64,
    pub(super) ctrace: PathBuf,
    pub(super) loads: PathBuf,
    /// For files of this run.
    pub(super) folder: PathBuf,
}

impl Bench {
    /// One load with all its tracers.
    pub(super) fn measure(&self, load: &'static Load, with_peers: bool) -> Result<Measured> {
        let mut workload = Workload::start(&self.loads, load.name, self.seconds)?;
        // It sleeps until it is told to go, which it never is.
        let idle = load
            .bystander
            .then(|| Workload::start(&self.loads, "hot", self.seconds))
            .transpose()?;
        let pid = idle.as_ref().unwrap_or(&workload).pid();
        let tracers = load.tracers.iter();
        let mut rows: Vec<Row> = tracers
            .filter(|tracer| with_peers || !matches!(tracer, Tracer::Peer(_)))
            .map(|&tracer| Row {
                tracer,
                pairs: Vec::new(),
                failures: 0,
                failed: None,
            })
            .collect();

        // Caches, frequency and the first page faults are not what is compared.
        workload.window()?;
        let (mut before, mut seen) = watched(&mut workload)?;
        for round in 0..self.windows * PATIENCE {
            // Nobody comes always after the same one.
            for at in 0..rows.len() {
                let many = rows.len();
                let row = &mut rows[(round + at) % many];
                if row.failures >= TRIES || row.quiet(self.disturbed) >= self.windows {
                    continue;
                }
                eprintln!("bench: {}, round {}: {}", load.name, round + 1, row.tracer.name());
                match self.traced(row.tracer, load, pid, &mut workload)? {
                    Ok(on) => {
                        let (after, seen_after) = watched(&mut workload)?;
                        let mut tracers = [seen, on.tracers, seen_after.clone()].concat();
                        tracers.sort();
                        tracers.dedup();
                        row.pairs.push(Pair {
                            before,
                            after: after.clone(),
                            tracers,
                            ..on
                        });
                        (before, seen) = (after, seen_after);
                    }
                    Err(error) => {
                        eprintln!("bench: {}: {error:#}", row.tracer.name());
                        row.failures += 1;
                        row.failed = Some(format!("{error:#}"));
                        (before, seen) = watched(&mut workload)?;
                    }
                }
            }
        }
        Ok(Measured {
            load,
            wanted: self.windows,
            rows,
        })
    }

    /// One "on" window, without its neighbours. The inner error is the tracer's, the outer one the load's.
    fn traced(&self, tracer: Tracer, load: &Load, pid: u32, workload: &mut Workload) -> Result<Result<Pair>> {
        let running = match self.start(tracer, pid) {
            Ok(running) => running,
            Err(error) => return Ok(Err(error)),
        };
        let before = running.as_ref().map_or(Ok(0.0), Running::cpu_ns);
        let (mut on, tracers) = watched(workload)?;
        let after = running.as_ref().map_or(Ok(0.0), Running::cpu_ns);
        let mut pair = Pair {
            before: Window::new(),
            on: Window::new(),
            after: Window::new(),
            losses: BTreeMap::new(),
            tracers,
            report: Value::Null,
        };
        Ok((|| {
            on.insert("tracer_cpu_ns".to_owned(), after? - before?);
            if let Some(running) = running {
                self.finish(tracer, load, running, &mut on, &mut pair)?;
                thread::sleep(SETTLE);
            }
            pair.on = on;
            Ok(pair)
        })())
    }

    fn start(&self, tracer: Tracer, pid: u32) -> Result<Option<Running>> {
        let (mut command, ready) = match tracer {
            Tracer::Nothing => return Ok(None),
            Tracer::Only(_) | Tracer::Everything => {
                let mut command = Command::new(&self.ctrace);
                command
                    .args(["--no-tui", "--pid", &pid.to_string(), "--json"])
                    .arg(self.report());
                if let Tracer::Only(collector) = tracer {
                    command.args(["--only", collector]);
                }
                (command, Ready::Says("Hit Ctrl-C to end."))
            }
            Tracer::Peer(peer) => {
                let mut command = Command::new(peer.program);
                command.args((peer.arguments)(pid, &self.folder));
                (command, peer.ready)
            }
        };
        Running::start(&mut command, ready).map(Some)
    }

    /// Measures it from outside, stops it, and reads what it has to say.
    fn finish(
        &self,
        tracer: Tracer,
        load: &Load,
        running: Running,
        on: &mut Window,
        pair: &mut Pair,
    ) -> Result<()> {
        on.insert("tracer_start_s".to_owned(), running.start_s);
        on.insert("tracer_rss_bytes".to_owned(), running.rss_bytes()?);
        on.extend(
            running
                .maps_bytes()?
                .map(|bytes| ("tracer_maps_bytes".to_owned(), bytes)),
        );
        let bpftrace = matches!(tracer, Tracer::Peer(peer) if peer.program == "bpftrace");
        let stopped = running.stop(bpftrace)?;
        on.insert("tracer_stop_s".to_owned(), stopped.stop_s);
        if let Tracer::Peer(peer) = tracer {
            let lost = peers::lost(&stopped.said);
            pair.losses
                .extend((lost > 0).then(|| ("lost, it says".to_owned(), lost)));
            ensure!(
                load.bystander || stopped.said.contains(peer.proof),
                "it saw nothing: {}",
                stopped.said.lines().last().unwrap_or_default().trim()
            );
            // Not there unless this peer writes one.
            let _ = fs::remove_file(self.folder.join(peers::PERF_DATA));
        } else {
            let text = fs::read_to_string(self.report()).context("ctrace's report")?;
            let report: Value = serde_json::from_str(&text).context("ctrace's report")?;
            // Its own account of its memory counts the ring once; seen from outside it is resident as well.
            on.extend(ctrace::figures(&report));
            pair.losses = ctrace::losses(&report);
            pair.report = ctrace::kept(&report);
            fs::remove_file(self.report())?;
        }
        Ok(())
    }

    fn report(&self) -> PathBuf {
        self.folder.join("report.json")
    }
}

/// A window with what others did meanwhile, and those of them that traced.
fn watched(workload: &mut Workload) -> Result<(Window, Vec<String>)> {
    let before = Moment::now()?;
    let started = Instant::now();
    let mut window = workload.window()?;
    window.insert("took_s".to_owned(), started.elapsed().as_secs_f64());
    let between = before.until(&Moment::now()?);
    window.insert("others_cpus".to_owned(), between.cpus);
    window.insert("stolen_cpus".to_owned(), between.stolen);
    Ok((window, between.tracers))
}
