//! How many events a second one core takes, without loss, and in how much memory.
//!
//! ```text
//! process of its own, one core                     this process, one core, as in a session
//! real stacks, records as the probes write them ──ring──> mappings' time ─> decode ─> unwind ─> aggregate
//!                     ^──────────────── memos ───────────────────────────────────────────'
//! ```
//! `cargo bench -p tracer --bench consumer -- --rate 1000000 --seconds 10`: first at that rate, where a record that finds no room is
//! lost; then as fast as the consumer goes, where the producer waits for room.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    reason = "a bench prints what it measured, and panics when it cannot"
)]

#[path = "support/mod.rs"]
mod support;

use std::{
    fs, io,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use clap::Parser;
use tracer::{
    aggregate::fds::FdTable,
    proc::{fd, host::monotonic_ns},
    session::{hearing::Hearing, pipeline::Pipeline},
};
use tracer_ebpf::wire::{Header, Regs, Stack, StackClass, kind};

use support::{
    Known, Probes,
    alloc::{Counting, taken},
    load::{Load, Shape, stack_of},
    own,
    ring::{self, Ring, shared},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// As the session has them.
const BATCH: usize = 4096;
const BATCHES: usize = 64;
const TICK: Duration = Duration::from_millis(10);
const SAMPLE: Duration = Duration::from_millis(250);
/// Seconds before the figures count.
const WARM_UP: Duration = Duration::from_secs(3);
/// What issue 3 asks for.
const RATE_BAR: f64 = 1e6;
const RSS_BAR: f64 = 64.0;

#[derive(Parser)]
struct Args {
    /// Events a second of the first part
    #[arg(long, default_value_t = 1_000_000)]
    rate: u64,
    /// Seconds of each part, beside the warm-up
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Different stacks
    #[arg(long, default_value_t = 10_000)]
    stacks: usize,
    /// Different locks
    #[arg(long, default_value_t = 1000)]
    locks: usize,
    /// Threads
    #[arg(long, default_value_t = 64)]
    threads: usize,
    /// Of this many recognised stacks one is copied and compared; 0: none
    #[arg(long, default_value_t = 1024)]
    shadow: usize,
    /// Every stack waits for every lock: more rows than are kept
    #[arg(long)]
    crossed: bool,
    /// Waits alone
    #[arg(long)]
    waits: bool,
    /// CPU of the consumer
    #[arg(long, default_value_t = 1)]
    cpu: usize,
    /// What cargo says
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the producer does.
mod part {
    pub(crate) const LEARN: u64 = 0;
    pub(crate) const LEARNT: u64 = 1;
    pub(crate) const PACED: u64 = 2;
    pub(crate) const FLAT_OUT: u64 = 3;
    pub(crate) const PAUSE: u64 = 4;
}

/// Pages that both processes have.
#[repr(C)]
struct Common {
    part: AtomicU64,
    sent: AtomicU64,
    lost: AtomicU64,
    crowded: AtomicU64,
    known: [Known; own::STACKS],
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ring = Ring::new().expect("a ring");
    let common: &Common = shared();
    // SAFETY: there is one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        produce(&args, &ring, common);
    }
    assert!(child > 0, "{}", io::Error::last_os_error());
    let done = consume(&args, &ring, common, child as u32);
    // SAFETY: our own child, which is not reaped yet.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Stays on one CPU, if that is there.
fn pin(cpu: usize) {
    // SAFETY: plain bits, set before the call that reads them.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        if libc::sched_setaffinity(0, size_of_val(&set), &raw const set) != 0 {
            eprintln!("CPU {cpu} is not there: wherever the scheduler likes");
        }
    }
}

fn produce(args: &Args, ring: &Ring, common: &Common) -> ! {
    // SAFETY: asks to end with the consumer.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    pin(usize::from(args.cpu == 0));
    let shape = Shape {
        tgid: std::process::id(),
        stacks: args.stacks,
        locks: args.locks,
        threads: args.threads,
        shadow: args.shadow,
        crossed: args.crossed,
        mixed: !args.waits,
    };
    let mut copies: Vec<(Regs, Vec<u8>)> = Vec::new();
    let mut record = Vec::new();
    own::each(args.stacks, StackClass::Large, |stack, regs, copied| {
        support::load::stack(
            shape.tgid,
            monotonic_ns(),
            stack as u64,
            0,
            (regs, copied),
            StackClass::Medium,
            &mut record,
        );
        while !ring.send(&record) {
            std::thread::sleep(Duration::from_millis(1));
        }
        copies.push((*regs, copied.to_vec()));
    });
    common.part.store(part::LEARNT, Relaxed);
    let mut load = Load::new(shape, &common.known, &copies);
    let (mut part, mut began, mut due) = (part::PAUSE, 0, 0);
    loop {
        let now = common.part.load(Relaxed);
        if now != part {
            (part, began, due) = (now, monotonic_ns(), 0);
        }
        let now_ns = monotonic_ns();
        let owed = match part {
            part::PACED => {
                (u128::from(now_ns.saturating_sub(began)) * u128::from(args.rate) / 1_000_000_000) as u64
                    - due
            }
            part::FLAT_OUT => 64,
            _ => 0,
        };
        if owed == 0 {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        let owed = owed.min(64);
        due += owed;
        let crowded = ring.used() > ring::BYTES as u64 / 4 * 3;
        for event in 0..owed {
            load.event(now_ns + event, crowded, |record| {
                while !ring.send(record) {
                    if part == part::PACED {
                        common.lost.fetch_add(1, Relaxed);
                        return;
                    }
                    std::hint::spin_loop();
                }
            });
        }
        common.crowded.fetch_add(owed * u64::from(crowded), Relaxed);
        common.sent.fetch_add(owed, Relaxed);
    }
}

/// The consumer as in a session: everything but the probes is the same code.
struct Consumer<'a> {
    ring: &'a Ring,
    pipeline: Pipeline,
    hearing: Hearing,
    probes: Probes<'a>,
    sampled: Instant,
    /// Most that was in the ring.
    most: u64,
}

impl Consumer<'_> {
    /// As `Tracing::drain_records`.
    fn drain(&mut self) {
        let Self {
            ring,
            pipeline,
            hearing,
            probes,
            most,
            ..
        } = self;
        *most = (*most).max(ring.used());
        hearing.hear(&mut pipeline.stacks);
        for _ in 0..BATCHES {
            let taken = ring.drain(BATCH, |record| {
                hearing.before(record, &mut pipeline.stacks);
                pipeline.on_record(record);
                // Which stack an order is about, only the bench has to know: the probes do not.
                if Header::read(record).is_some_and(|header| header.kind == kind::STACK)
                    && let Some(stack) = Stack::read(record)
                {
                    probes.obey(pipeline, stack_of(stack.token));
                }
            });
            probes.obey(pipeline, 0);
            if taken < BATCH {
                break;
            }
        }
    }

    /// Drains as a session does for so long.
    fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.drain();
            if self.sampled.elapsed() >= SAMPLE {
                self.sampled = Instant::now();
                for table in self.pipeline.fds.values_mut() {
                    table.snapshot(monotonic_ns());
                }
            }
            // The probe whose record makes the ring a quarter full wakes us.
            let tick = Instant::now() + TICK;
            while Instant::now() < tick && self.ring.used() < ring::BYTES as u64 / 4 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime(2) fills the struct.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Time that this thread stood in its CPU's queue: the core was not ours alone.
fn queued_ns() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace()
        .nth(1)
        .and_then(|ns| ns.parse().ok())
        .unwrap_or(0)
}

/// Resident MB: in all without the ring (as reports have it), and of these anonymous.
fn rss_mb() -> (f64, f64) {
    let status = fs::read_to_string("/proc/self/status").expect("our own status");
    let kib = |name: &str| -> f64 {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        line.and_then(|kib| kib.parse().ok()).unwrap_or(f64::NAN)
    };
    let (anon, file) = (kib("RssAnon:"), kib("RssFile:"));
    ((anon + file) / 1024.0, anon / 1024.0)
}

/// True when the bars are met.
fn consume(args: &Args, ring: &Ring, common: &Common, child: u32) -> bool {
    pin(args.cpu);
    let mut pipeline = Pipeline::new(0, true, false, 0);
    let mut hearing = Hearing::default();
    if !hearing.watch_host() {
        println!("mappings are not heard here (needs root): their time is not part of the figures");
    }
    pipeline.stacks.prime(child);
    pipeline.stacks.learn();
    if !args.waits {
        let mut table = FdTable::new(child);
        table.seed(&fd::scan(child, monotonic_ns).expect("the producer's descriptors"));
        pipeline.fds.insert(child, table);
    }
    pipeline.reset(monotonic_ns());
    let mut consumer = Consumer {
        ring,
        pipeline,
        hearing,
        probes: Probes::new(&common.known),
        sampled: Instant::now(),
        most: 0,
    };
    println!(
        "{} stacks, {} locks, {} threads{}; consumer on CPU {}; RSS without the ring of {} MiB",
        args.stacks,
        args.locks,
        args.threads,
        if args.crossed { ", crossed" } else { "" },
        args.cpu,
        ring::BYTES >> 20
    );
    let (start, cpu) = (Instant::now(), cpu_ns());
    while common.part.load(Relaxed) == part::LEARN || ring.used() > 0 {
        consumer.run(TICK);
    }
    let recognition = consumer.pipeline.stacks.recognition();
    println!(
        "learning: {} stacks in {:.2} s ({:.1} µs of CPU each), {} memos, {} unfit for one, {} dropped; {:.1} MB",
        consumer.pipeline.stacks.len(),
        start.elapsed().as_secs_f64(),
        (cpu_ns() - cpu) as f64 / 1e3 / args.stacks as f64,
        recognition.memos,
        recognition.unfit,
        recognition.dropped,
        rss_mb().0
    );
    println!(
        "             events/s    ns each   busy  queued     lost  most in ring  allocations    RSS MB (anonymous)"
    );
    let paced = measure(args, "paced", part::PACED, &mut consumer, common);
    let flat = measure(args, "flat out", part::FLAT_OUT, &mut consumer, common);
    let lost = common.lost.load(Relaxed);
    let recognition = consumer.pipeline.stacks.recognition();
    let waits = &consumer.pipeline.waits;
    println!(
        "{} rows ({} folded), {} stacks; {} events while the ring was too full for stacks; {} copies unwound, {} of {} compared differ, {} stale, {} memos dropped, {} unmatched",
        waits.rows().count(),
        waits.folded(),
        consumer.pipeline.stacks.len(),
        common.crowded.load(Relaxed),
        recognition.unwound,
        recognition.disagreed,
        recognition.agreed + recognition.disagreed,
        recognition.stale,
        recognition.dropped,
        consumer.pipeline.unmatched()
    );
    let mut errors: Vec<f64> = waits.rows().map(|(_, row)| row.wait.error()).collect();
    errors.sort_by(f64::total_cmp);
    println!(
        "buckets of the rows' histograms are {:.1} % wide in the middle, {:.1} % at most",
        errors.get(errors.len() / 2).unwrap_or(&0.0) * 100.0,
        errors.last().unwrap_or(&0.0) * 100.0
    );
    let bars = [
        (
            format!("{} events/s without loss: {lost} lost", args.rate),
            lost == 0 && paced.rate >= args.rate as f64 * 0.99,
        ),
        (
            format!(
                "one core takes 1 million events/s: {:.2} million",
                1e3 / flat.ns_each
            ),
            1e9 / flat.ns_each >= RATE_BAR,
        ),
        (format!("RSS under 64 MB: {:.1} MB", flat.rss), flat.rss < RSS_BAR),
    ];
    for (what, met) in &bars {
        println!("{}  {what}", if *met { "ok    " } else { "MISSED" });
    }
    bars.iter().all(|(_, met)| *met)
}

/// A part's figures.
struct Figures {
    rate: f64,
    ns_each: f64,
    rss: f64,
}

fn measure(args: &Args, name: &str, part: u64, consumer: &mut Consumer<'_>, common: &Common) -> Figures {
    common.part.store(part, Relaxed);
    consumer.run(WARM_UP);
    consumer.most = 0;
    let before = (
        consumer.pipeline.records(),
        common.lost.load(Relaxed),
        taken(),
        cpu_ns(),
        queued_ns(),
    );
    let start = Instant::now();
    consumer.run(Duration::from_secs(args.seconds));
    let wall = start.elapsed();
    let events = (consumer.pipeline.records() - before.0) as f64;
    let (allocations, cpu) = ((taken() - before.2) as f64, (cpu_ns() - before.3) as f64);
    let lost = common.lost.load(Relaxed) - before.1;
    let (rss, anon) = rss_mb();
    let figures = Figures {
        rate: events / wall.as_secs_f64(),
        ns_each: cpu / events,
        rss,
    };
    println!(
        "{name:>10} {:10.0} {:10.1} {:5.0}% {:6.0}% {lost:8} {:11.1}% {:12.5} {rss:9.1} ({anon:.1})",
        figures.rate,
        figures.ns_each,
        cpu / wall.as_nanos() as f64 * 100.0,
        (queued_ns() - before.4) as f64 / wall.as_nanos() as f64 * 100.0,
        consumer.most as f64 / ring::BYTES as f64 * 100.0,
        allocations / events,
    );
    common.part.store(part::PAUSE, Relaxed);
    consumer.run(Duration::from_millis(100));
    figures
}
