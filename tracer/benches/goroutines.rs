//! What reading goroutines costs: us, against bare `process_vm_readv` of the same bytes; and the program that is read, against a
//! goroutine dump of its own and a debugger.
//!
//! `cargo bench -p tracer --bench goroutines -- --count 100000 --count 1000000`

#![allow(
    clippy::print_stdout,
    missing_docs,
    reason = "a bench prints what it measured, and panics when it cannot"
)]

use std::{
    cell::RefCell,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::Parser;
use tracer::go::{
    memory::{Live, Memory, Piece},
    program::Program,
    runtime::Runtime,
    snapshot::Reader,
};

/// A whole snapshot may cost so many times what the bare reads cost.
const BAR: f64 = 2.5;
/// Memory, in MB.
const RSS_BAR: f64 = 1000.0;
/// Rounds, of which the best counts.
const ROUNDS: usize = 5;

#[derive(Parser)]
struct Args {
    /// Goroutines, once for each size
    #[arg(long, default_values_t = [100_000])]
    count: Vec<usize>,
    /// The Go compiler
    #[arg(long, default_value = "go")]
    go: PathBuf,
    /// End with 1 when a bound is missed
    #[arg(long)]
    gate: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A memory that notes what was read.
struct Noting {
    live: Live,
    pieces: RefCell<Vec<Vec<Piece>>>,
}

impl Memory for Noting {
    fn read_pieces(&self, pieces: &mut [Piece], into: &mut [u8]) {
        self.live.read_pieces(pieces, into);
        self.pieces.borrow_mut().push(pieces.to_vec());
    }
}

/// The workload.
struct Target {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Target {
    fn start(program: &Path, count: usize) -> Self {
        let mut process = Command::new(program)
            .args(["many", &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the workload does not start");
        let stdin = process.stdin.take().expect("a pipe");
        let stdout = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut target = Self {
            process,
            stdin,
            stdout,
        };
        while !target.line().starts_with("ready") {}
        target
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(
            self.stdout.read_line(&mut line).expect("the workload's output") > 0,
            "it ended"
        );
        line
    }

    fn say(&mut self, word: &str) {
        writeln!(self.stdin, "{word}").expect("the workload's input");
    }

    /// How often its loop went round so far, and when that was.
    fn spins(&mut self) -> (f64, Instant) {
        self.say("count");
        let mut spins = 0.0;
        loop {
            let line = self.line();
            if line.starts_with("done") {
                return (spins, Instant::now());
            }
            if let Some(number) = line.strip_prefix("truth spins ") {
                spins = number.trim().parse().expect("a number");
            }
        }
    }

    /// Rounds a second while `work` goes on.
    fn rate(&mut self, work: impl FnOnce(&mut Self)) -> f64 {
        let (before, begun) = self.spins();
        work(self);
        let (after, ended) = self.spins();
        (after - before) / (ended - begun).as_secs_f64()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn build(go: &Path) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let output = folder.join("goroutines-bench");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/goroutines");
    let done = Command::new(go)
        .arg("build")
        .arg("-o")
        .arg(&output)
        .args(
            fs::read_dir(&sources)
                .expect("the workload's sources")
                .filter_map(|entry| {
                    let path = entry.ok()?.path();
                    let name = path.file_name()?.to_str()?.to_owned();
                    (path.extension()? == "go" && name != "cgo.go" && name != "go123.go").then_some(path)
                }),
        )
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", "0")
        .status()
        .expect("no Go compiler: name one with --go");
    assert!(done.success(), "the workload cannot be built");
    output
}

/// CPU time of this process.
fn cpu() -> Duration {
    tracer::proc::host::own_cpu()
}

fn main() -> ExitCode {
    let args = Args::parse();
    let program = build(&args.go);
    let mut held = true;
    for &count in &args.count {
        held &= measure(&program, count);
    }
    ExitCode::from(u8::from(args.gate && !held))
}

fn measure(program: &Path, count: usize) -> bool {
    let mut target = Target::start(program, count);
    target.say("go");
    let pid = target.process.id();
    let begun = Instant::now();
    let opened = Program::open(pid).expect("a Go program");
    let runtime = Runtime::find(&Live::new(pid), &opened).expect("a runtime");
    println!(
        "{count} goroutines: opened in {:.1} ms",
        begun.elapsed().as_secs_f64() * 1e3
    );
    let rss_before = tracer::proc::host::own_rss_bytes();
    let (mut first, mut again, mut bare) = (f64::MAX, f64::MAX, f64::MAX);
    let mut rss = 0;
    for _ in 0..ROUNDS {
        let noting = Noting {
            live: Live::new(pid),
            pieces: RefCell::default(),
        };
        let program = Program::open(pid).expect("a Go program");
        let mut reader = Reader::new(noting, program, runtime.clone());
        let from = cpu();
        let tally = reader.take(1, &mut ()).expect("a snapshot");
        first = first.min(cpu().saturating_sub(from).as_secs_f64());
        assert!(
            tally.alive as usize >= count && tally.inconsistent == 0,
            "{tally:?}"
        );
        let pieces = reader.memory().pieces.take();
        rss = rss.max(tracer::proc::host::own_rss_bytes().saturating_sub(rss_before));
        let from = cpu();
        let tally = reader.take(2, &mut ()).expect("a snapshot");
        again = again.min(cpu().saturating_sub(from).as_secs_f64());
        assert!(tally.unchanged as usize >= count, "{tally:?}");
        // As the reader does, but for looking at it.
        let live = Live::new(pid);
        let mut sink = Vec::new();
        let from = cpu();
        for mut pieces in pieces {
            sink.clear();
            sink.resize(pieces.iter().map(|piece| piece.len).sum(), 0u8);
            live.read_pieces(&mut pieces, &mut sink);
        }
        bare = bare.min(cpu().saturating_sub(from).as_secs_f64());
    }
    let ratio = first / bare;
    let rss = rss as f64 / 1e6;
    println!(
        "  snapshot {:.1} ms CPU, bare reads {:.1} ms: {ratio:.2} ({})",
        first * 1e3,
        bare * 1e3,
        verdict(ratio <= BAR)
    );
    println!(
        "  nothing moved: {:.1} ms, {:.2} of the bare reads",
        again * 1e3,
        again / bare
    );
    println!(
        "  {rss:.0} MB with what the bench notes ({})",
        verdict(rss < RSS_BAR)
    );
    disturbance(&mut target, pid, &runtime);
    ratio <= BAR && rss < RSS_BAR
}

/// What the program loses: to us, one snapshot after the other; to a dump of its own; to a debugger that only looks in.
fn disturbance(target: &mut Target, pid: u32, runtime: &Runtime) {
    const EACH: Duration = Duration::from_secs(3);
    let nothing = |_: &mut Target| std::thread::sleep(EACH);
    let (before, mut snapshots) = (target.rate(nothing), 0);
    let program = Program::open(pid).expect("a Go program");
    let mut reader = Reader::new(Live::new(pid), program, runtime.clone());
    let read = target.rate(|_| {
        let begun = Instant::now();
        while begun.elapsed() < EACH {
            reader.take(1, &mut ()).expect("a snapshot");
            snapshots += 1;
        }
    });
    let between = target.rate(nothing);
    let dumped = target.rate(|target| {
        let begun = Instant::now();
        while begun.elapsed() < EACH {
            target.say("dump");
            while !target.line().starts_with("dumped") {}
        }
    });
    let stopped = target.rate(|_| {
        let begun = Instant::now();
        while begun.elapsed() < EACH {
            let _ = Command::new("gdb")
                .args(["-nx", "-batch", "-p", &pid.to_string(), "-ex", "info threads"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    });
    let after = target.rate(nothing);
    let base = (before + between + after) / 3.0;
    let stray = [before, between, after]
        .into_iter()
        .map(|rate| (rate / base - 1.0).abs())
        .fold(0.0, f64::max);
    println!(
        "  its loop, against nothing (strays {:.1} %): {snapshots} snapshots {:.3}, its own dumps {:.3}, gdb {:.3}",
        stray * 100.0,
        read / base,
        dumped / base,
        stopped / base
    );
}

fn verdict(held: bool) -> &'static str {
    if held { "holds" } else { "MISSED" }
}
