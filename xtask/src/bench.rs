//! `bench`: what ctrace costs, as ratios within one run: absolute speeds change with the hour on a shared machine.
//!
//! ```text
//! workload   off ── on ── off ── on ── off      each `on` ÷ the mean of the two `off` beside it
//! ctrace          └─┘          └─┘              started, waited for, stopped: once a window
//! ```
//! It prints Markdown for a page of the journal, and judges nothing.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::shell;

/// Measure what ctrace costs its target and bystanders; needs root, takes minutes
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Windows with ctrace of each row
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,
    /// Length of a window
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
}

/// What is on in the "on" windows: ctrace with `--only`, or nothing, which tells how far to trust the other rows.
#[derive(Clone, Copy)]
enum Tracer {
    Nothing,
    Only(&'static str),
    Everything,
}

impl Tracer {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing (A/A)",
            Self::Only(collector) => collector,
            Self::Everything => "all",
        }
    }
}

const EACH: [Tracer; 6] = [
    Tracer::Nothing,
    Tracer::Only("locks"),
    Tracer::Only("sched"),
    Tracer::Only("io"),
    Tracer::Only("fds"),
    Tracer::Everything,
];
/// For a target that neither waits nor wakes.
const DESCRIPTORS: [Tracer; 4] = [
    Tracer::Nothing,
    Tracer::Only("locks"),
    Tracer::Only("fds"),
    Tracer::Everything,
];

/// Builds, measures, prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        shell::is_root(),
        "probes need root: run `cargo xtask bench` as root"
    );
    ensure!(
        args.seconds.is_finite() && (0.1..=300.0).contains(&args.seconds),
        "--seconds {}: from 0.1 to 300",
        args.seconds
    );
    shell::run(shell::cargo().args([
        "build",
        "--locked",
        "--release",
        "--package",
        "tracer",
        "--bin",
        "ctrace",
    ]))?;
    let bench = Bench::new(args)?;

    println!(
        "{} windows of {} s a row; median [min–max].",
        args.windows, args.seconds
    );
    let mut rows = Vec::new();
    for tracer in EACH {
        let idle = Workload::start(&bench.contend, &[&bench.seconds])?;
        let mut bystander = Workload::start(&bench.syscall_loop, &[&bench.seconds])?;
        rows.push(bench.row(tracer, &mut bystander, idle.child.id())?);
    }
    print_bystander(&rows);
    print_traces("Bystander: what ctrace did", &rows);

    for (title, mode, tracers) in [
        ("Target: 8 threads, 4 mutexes", None, EACH.as_slice()),
        (
            "Target: open and close of /dev/null",
            Some("fds"),
            DESCRIPTORS.as_slice(),
        ),
    ] {
        let mut rows = Vec::new();
        for &tracer in tracers {
            let options: Vec<&str> = [bench.seconds.as_str()].into_iter().chain(mode).collect();
            let mut target = Workload::start(&bench.contend, &options)?;
            let pid = target.child.id();
            rows.push(bench.row(tracer, &mut target, pid)?);
        }
        print_target(title, &rows);
        print_traces(&format!("{title}: what ctrace did"), &rows);
    }
    Ok(())
}

struct Bench {
    windows: u32,
    seconds: String,
    ctrace: PathBuf,
    json: PathBuf,
    contend: PathBuf,
    syscall_loop: PathBuf,
}

impl Bench {
    fn new(args: &Args) -> Result<Self> {
        let folder = shell::target_dir().join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self {
            windows: args.windows,
            seconds: args.seconds.to_string(),
            ctrace: shell::target_dir().join("release/ctrace"),
            json: folder.join("report.json"),
            contend: compiled("contend", &folder, &[])?,
            syscall_loop: compiled("syscall_loop", &folder, &[])?,
        })
    }

    /// Windows of `workload` without and with `tracer` on process `pid`.
    fn row(&self, tracer: Tracer, workload: &mut Workload, pid: u32) -> Result<Row> {
        eprintln!("bench: {} / {}", workload.name, tracer.name());
        // Caches, frequency and the first page faults are not what is compared.
        workload.window()?;
        let mut row = Row {
            tracer,
            off: vec![workload.window()?],
            on: Vec::new(),
            traces: Vec::new(),
        };
        for _ in 0..self.windows {
            let ctrace = self.start(tracer, pid)?;
            let before = ctrace.as_ref().map_or(Ok(0.0), Ctrace::cpu_ns)?;
            let mut window = workload.window()?;
            let after = ctrace.as_ref().map_or(Ok(0.0), Ctrace::cpu_ns)?;
            window.insert("ctrace_cpu_ns".to_owned(), after - before);
            row.on.push(window);
            if let Some(ctrace) = ctrace {
                row.traces.push(ctrace.stop(&self.json)?);
            }
            row.off.push(workload.window()?);
        }
        Ok(row)
    }

    fn start(&self, tracer: Tracer, pid: u32) -> Result<Option<Ctrace>> {
        let mut command = Command::new(&self.ctrace);
        command
            .args(["--no-tui", "--pid", &pid.to_string(), "--json"])
            .arg(&self.json);
        match tracer {
            Tracer::Nothing => return Ok(None),
            Tracer::Only(collector) => drop(command.args(["--only", collector])),
            Tracer::Everything => {}
        }
        Ctrace::start(&mut command).map(Some)
    }
}

/// Compiles a C workload as the tests do, and with more flags.
pub(crate) fn compiled(name: &str, folder: &Path, flags: &[&str]) -> Result<PathBuf> {
    let source = shell::root().join(format!("tests/workloads/{name}.c"));
    let program = folder.join(name);
    shell::run(
        Command::new("gcc")
            .args([
                "-O2",
                "-g",
                "-pthread",
                "-Wall",
                "-Wextra",
                "-fno-optimize-sibling-calls",
                "-std=gnu11",
            ])
            .args(flags)
            .arg("-o")
            .args([&program, &source]),
    )?;
    Ok(program)
}

/// What a workload says of one window.
type Window = BTreeMap<String, f64>;

/// A workload, which ends with its owner.
struct Workload {
    child: Child,
    stdout: BufReader<ChildStdout>,
    name: String,
}

impl Workload {
    fn start(program: &Path, options: &[&str]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = child.stdout.take().context("no stdout")?;
        let mut workload = Self {
            child,
            stdout: BufReader::new(stdout),
            name: program
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        };
        let line = workload.line()?;
        ensure!(
            line.starts_with("ready "),
            "{}: expected ready, got {line}",
            workload.name
        );
        Ok(workload)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("{} ended", self.name);
        }
        Ok(line.trim_end().to_owned())
    }

    /// Runs one window.
    fn window(&mut self) -> Result<Window> {
        let stdin = self.child.stdin.as_mut().context("no stdin")?;
        stdin
            .write_all(b"go\n")
            .with_context(|| format!("{} ended", self.name))?;
        let mut window = Window::new();
        loop {
            let line = self.line()?;
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["truth", key, value] => drop(window.insert(key.to_owned(), value.parse()?)),
                ["done"] => return Ok(window),
                _ => bail!("{} said {line:?}", self.name),
            }
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A ctrace that traces. Dropped before [`Self::stop`], it is killed.
struct Ctrace(Child);

impl Ctrace {
    /// Starts it and waits until its probes are live.
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let stderr = child.stderr.take().context("no stderr")?;
        let ctrace = Self(child);
        let mut stderr = BufReader::new(stderr);
        let mut said = String::new();
        while !said.contains("Hit Ctrl-C to end.") {
            if stderr.read_line(&mut said)? == 0 {
                bail!("{}: {}", shell::words(command), said.trim_end());
            }
        }
        // It must never wait for a reader.
        thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
        Ok(ctrace)
    }

    /// CPU time of its threads so far; that of its probes is the traced threads' own.
    fn cpu_ns(&self) -> Result<f64> {
        let mut sum = 0.0;
        for task in fs::read_dir(format!("/proc/{}/task", self.0.id())).context("ctrace ended")? {
            let path = task?.path().join("schedstat");
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let ran = text.split_whitespace().next().context("empty schedstat")?;
            sum += ran.parse::<f64>()?;
        }
        Ok(sum)
    }

    /// Ctrl-C; its report.
    fn stop(mut self, json: &Path) -> Result<Value> {
        let interrupt = format!("kill -INT {}", self.0.id());
        ensure!(
            Command::new("sh").args(["-c", &interrupt]).status()?.success(),
            "cannot interrupt ctrace"
        );
        let status = self.0.wait()?;
        ensure!(status.success(), "ctrace ended with {status}");
        let text = fs::read_to_string(json).with_context(|| json.display().to_string())?;
        serde_json::from_str(&text).context("ctrace's JSON")
    }
}

impl Drop for Ctrace {
    fn drop(&mut self) {
        // After `stop` there is nothing left to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All windows of one tracer on one workload.
struct Row {
    tracer: Tracer,
    /// One more than `on`: before, between and after.
    off: Vec<Window>,
    on: Vec<Window>,
    traces: Vec<Value>,
}

impl Row {
    /// Each "on" window's figure by the mean of those of the "off" windows beside it.
    fn ratios(&self, of: impl Fn(&Window) -> f64) -> Vec<f64> {
        let pairs = self.off.windows(2).zip(&self.on);
        pairs
            .map(|(off, on)| of(on) / f64::midpoint(of(&off[0]), of(&off[1])))
            .collect()
    }

    /// Each trace's figure; what the report does not say is not a number.
    fn traced(&self, of: impl Fn(&Value) -> f64) -> Vec<f64> {
        self.traces.iter().map(of).collect()
    }
}

fn throughput(window: &Window) -> f64 {
    get(window, "operations") / get(window, "wall_ns")
}

fn cpu_per_operation(window: &Window) -> f64 {
    get(window, "cpu_ns") / get(window, "operations")
}

/// With ctrace's own; there is none of that in an "off" window.
fn cpu_per_operation_of_both(window: &Window) -> f64 {
    let ctrace = window.get("ctrace_cpu_ns").copied().unwrap_or(0.0);
    (get(window, "cpu_ns") + ctrace) / get(window, "operations")
}

fn get(window: &Window, key: &str) -> f64 {
    window.get(key).copied().unwrap_or(f64::NAN)
}

/// `median [min–max]`.
pub(crate) fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (values.first(), values.last()) else {
        return "–".to_owned();
    };
    // A minus sign, which beside the dash of a range is told from it.
    format!("{:.digits$} [{min:.digits$}–{max:.digits$}]", median(&values)).replace('-', "−")
}

/// Of sorted values, at least one.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

fn print_bystander(rows: &[Row]) {
    println!("\n### Bystander: getppid in a process that is not traced\n");
    println!("| collectors | calls/s with ctrace ÷ without | ns a call without | ns a call added |");
    println!("|---|---|---|---|");
    for row in rows {
        let ns = |window: &Window| 1e9 / get(window, "calls_per_second");
        let ratios = row.ratios(|window| get(window, "calls_per_second"));
        println!(
            "| {} | {} | {} | {} |",
            row.tracer.name(),
            spread(ratios, 3),
            spread(row.off.iter().map(ns).collect(), 1),
            spread(added(row, ns), 1),
        );
    }
}

fn print_target(title: &str, rows: &[Row]) {
    println!("\n### {title}\n");
    println!(
        "| collectors | throughput | target's CPU per operation | target's and ctrace's | µs an operation without \
         | CPU µs added, target | CPUs ctrace took |"
    );
    println!("|---|---|---|---|---|---|---|");
    for row in rows {
        let us = |window: &Window| 1e-3 / throughput(window);
        let cpu_us = |window: &Window| cpu_per_operation(window) / 1e3;
        let ctrace = |window: &Window| get(window, "ctrace_cpu_ns") / get(window, "wall_ns");
        println!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.tracer.name(),
            spread(row.ratios(throughput), 3),
            spread(row.ratios(cpu_per_operation), 3),
            spread(row.ratios(cpu_per_operation_of_both), 3),
            spread(row.off.iter().map(us).collect(), 3),
            spread(added(row, cpu_us), 3),
            spread(row.on.iter().map(ctrace).collect(), 2),
        );
    }
}

/// Each "on" window's figure less the mean of those beside it.
fn added(row: &Row, of: impl Fn(&Window) -> f64) -> Vec<f64> {
    let pairs = row.off.windows(2).zip(&row.on);
    pairs
        .map(|(off, on)| of(on) - f64::midpoint(of(&off[0]), of(&off[1])))
        .collect()
}

/// What the reports of the "on" windows say of ctrace itself, one row per collectors.
fn print_traces(title: &str, rows: &[Row]) {
    println!("\n### {title}\n");
    println!(
        "| collectors | complete | losses, sum of all windows | probe hits/s | RSS, MiB | probes: ns a hit × hits/s |"
    );
    println!("|---|---|---|---|---|---|");
    for row in rows.iter().filter(|row| !row.traces.is_empty()) {
        let complete = row
            .traces
            .iter()
            .filter(|report| report["losses"]["complete"] == true);
        println!(
            "| {} | {} of {} | {} | {} | {} | {} |",
            row.tracer.name(),
            complete.count(),
            row.traces.len(),
            losses(&row.traces),
            spread(
                row.traced(|report| probes(report).map(|probe| probe.hits).sum::<f64>() / seconds(report)),
                0
            ),
            spread(
                row.traced(
                    |report| report["overhead"]["rss_bytes"].as_f64().unwrap_or(f64::NAN)
                        / f64::from(1 << 20)
                ),
                1
            ),
            costs(&row.traces),
        );
    }
}

/// Length of the report's window, which is a little more than the workload's.
fn seconds(report: &Value) -> f64 {
    report["window"]["duration_ns"].as_f64().unwrap_or(f64::NAN) / 1e9
}

struct Probe<'a> {
    name: &'a str,
    hits: f64,
    run_ns: f64,
}

/// The probes of which the kernel says how often they ran.
fn probes(report: &Value) -> impl Iterator<Item = Probe<'_>> {
    let probes = report["probes"].as_array().into_iter().flatten();
    probes.filter_map(|probe| {
        Some(Probe {
            name: probe["name"].as_str()?,
            hits: probe["hits"].as_f64()?,
            run_ns: probe["run_ns"].as_f64().unwrap_or(f64::NAN),
        })
    })
}

/// Every loss that is not zero, by cause.
fn losses(traces: &[Value]) -> String {
    let mut sums = BTreeMap::<&str, u64>::new();
    let causes = traces
        .iter()
        .filter_map(|report| report["losses"].as_object())
        .flatten();
    for (cause, count) in causes {
        *sums.entry(cause).or_default() += count.as_u64().unwrap_or(0);
    }
    let told = sums.iter().filter(|(_, count)| **count > 0);
    let told: Vec<String> = told.map(|(cause, count)| format!("{cause} {count}")).collect();
    if told.is_empty() {
        "none".to_owned()
    } else {
        told.join(", ")
    }
}

/// Each probe's cost over all windows, the dearest first; those under a hit a second are left out.
fn costs(traces: &[Value]) -> String {
    let seconds: f64 = traces.iter().map(seconds).sum();
    let mut sums = BTreeMap::<&str, (f64, f64)>::new();
    for probe in traces.iter().flat_map(probes) {
        let sum = sums.entry(probe.name).or_default();
        sum.0 += probe.hits;
        sum.1 += probe.run_ns;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.retain(|(_, (hits, _))| *hits >= seconds);
    sums.sort_by(|(_, (_, a)), (_, (_, b))| b.total_cmp(a));
    let mut text = String::new();
    for (name, (hits, run_ns)) in sums {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{name} {:.0} × {:.0}", run_ns / hits, hits / seconds);
    }
    text
}
