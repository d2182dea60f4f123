//! One run: the probes are attached, the one event loop turns, reports are made. Every output is a sink of this loop.

pub mod apart;
pub mod assemble;
pub mod budget;
pub mod child;
mod creators;
pub mod duty;
pub mod go;
pub mod go_write;
mod go_written;
pub mod hearing;
pub mod output;
pub mod pipeline;
mod probing;
mod programs;
pub mod sampling;
pub mod snapshot;
pub mod tracing;
mod uprobes;
pub mod watchdog;

use std::{
    io,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior},
};

use self::{child::Child, output::Output, tracing::Tracing};
use crate::cli::{
    args::TraceArgs,
    options::Options,
    targets::{Held, check_privileges},
};
use crate::proc::{host, limits};

/// The ring is looked at this often; the probes wake us earlier when it fills.
const TICK: Duration = Duration::from_millis(10);
/// Descriptors are counted, and the targets looked at, this often.
const SAMPLE: Duration = Duration::from_millis(250);
/// A sign of life on stderr.
const PROGRESS: Duration = Duration::from_secs(10);

/// Status when a condition of `--fail-on` held.
const FAILED_ON: ExitCode = ExitCode::FAILURE;

/// Traces as the command line says. The process must still have one thread: see [`crate::capture::tracefs`].
pub fn run(args: &TraceArgs) -> Result<ExitCode> {
    let options = Options::new(args)?;
    ensure!(
        args.pid.is_empty() != args.exec.is_empty(),
        "name what to trace: `ctrace --pid N`, or `ctrace -- COMMAND ARGS…`{}",
        if args.exec.is_empty() { "" } else { ", not both" }
    );
    let targets = args
        .pid
        .iter()
        .map(|pid| Held::parse(pid))
        .collect::<Result<Vec<_>>>()?;
    check_privileges()?;
    let output = Output::open(&options, args.color)?;
    let mut child = if args.exec.is_empty() {
        None
    } else {
        Some(Child::spawn(&args.exec)?)
    };
    // After the command was forked, which keeps the limit it was given.
    limits::raise_nofile();
    let targets = match &child {
        Some(child) => vec![Held::hold(child.pid())?],
        None => targets,
    };
    let mut tracing = Tracing::start(options, targets, child.is_some())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(turn(&mut tracing, output, child.as_mut()))
}

/// The event loop.
async fn turn(tracing: &mut Tracing, mut output: Output, mut child: Option<&mut Child>) -> Result<ExitCode> {
    // SAFETY: the descriptor is owned by what is registered, and so outlives its registration.
    let ring = unsafe { AsyncFd::register(tracing.ring()?) }.context("cannot watch the ring")?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let every = |period| {
        let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    };
    let (mut tick, mut sample, mut progress) = (every(TICK), every(SAMPLE), every(PROGRESS));
    let far = Duration::from_hours(10 * 365 * 24);
    let mut interval = every(tracing.options.interval.unwrap_or(far));
    let far_off = Instant::now() + far;
    let end = tokio::time::sleep(tracing.options.duration.unwrap_or(far));
    tokio::pin!(end);
    if let Some(child) = &mut child {
        child.go()?;
    }
    tracing.write_go();
    output.say(&tracing.ready_line());
    loop {
        let look = tracing.look_due().map_or(far_off, Instant::from_std);
        tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = &mut end => break,
            ready = ring.readable() => {
                ready.context("cannot watch the ring")?.clear_ready();
                tracing.hold_probes()?;
                tracing.drain();
            }
            _ = tick.tick() => {
                // First: under a load that is to be shed, the ring takes long.
                tracing.hold_probes()?;
                tracing.drain();
            }
            _ = sample.tick() => {
                tracing.sample();
                tracing.hold_budget()?;
                if tracing.all_exited() {
                    break;
                }
            }
            () = tokio::time::sleep_until(look) => tracing.look_at_go(false),
            _ = interval.tick() => {
                let report = tracing.report(false)?;
                if !output.interval(&report)? {
                    break;
                }
            }
            _ = progress.tick() => output.progress(&tracing.progress_line()),
        }
        if output.reader_is_gone() {
            break;
        }
    }
    patience();
    let report = tracing.report(true)?;
    // The report first: taking 45 system call tracepoints away costs the kernel a grace period each, seconds together.
    output.last(&report)?;
    tracing.detach();
    let status = match child {
        Some(child) => child.finish()?,
        None => ExitCode::SUCCESS,
    };
    Ok(if output.has_failed() { FAILED_ON } else { status })
}

/// When the report was asked for, `CLOCK_MONOTONIC` ns.
static ASKED_NS: AtomicU64 = AtomicU64::new(0);
/// A second Ctrl-C this soon is the first one's echo, not impatience.
const ECHO_NS: u64 = 1_000_000_000;

/// From now on Ctrl-C ends at once, the report unwritten, but for an echo; the probes go with the process.
fn patience() {
    extern "C" fn again(_: libc::c_int) {
        if host::monotonic_ns().saturating_sub(ASKED_NS.load(Ordering::Relaxed)) > ECHO_NS {
            // SAFETY: _exit(2) may be called in a signal handler.
            unsafe { libc::_exit(130) };
        }
    }
    ASKED_NS.store(host::monotonic_ns(), Ordering::Relaxed);
    let handler: extern "C" fn(libc::c_int) = again;
    // SAFETY: the handler does nothing but read a clock and an atomic, and leave.
    unsafe {
        libc::signal(libc::SIGINT, handler as libc::sighandler_t);
        libc::signal(libc::SIGTERM, handler as libc::sighandler_t);
    }
}

/// Waits for a condition that another process brings about, without burning a CPU.
fn poll_until(mut condition: impl FnMut() -> io::Result<bool>, limit: Duration) -> io::Result<bool> {
    let start = std::time::Instant::now();
    while start.elapsed() < limit {
        if condition()? {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    condition()
}
