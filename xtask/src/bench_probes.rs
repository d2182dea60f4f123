//! `bench-probes`: what the probes at the scheduler cost in the kernel, against other ways to do the same, all in one run.
//!
//! ```text
//! probes + peers ──┐
//! frames15.c ──────┼─> probe_costs: one window each of all subjects, again and again ─> medians ─> table, verdicts
//! ctrace ──────────┘
//! ```
//! The bounds are of parts of one run: absolute figures change with the machine and the hour. A bound that does not hold fails
//! the verb.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{bench, build_ebpf, shell};

/// Measure what the scheduler probes cost in the kernel against their peers; needs root
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Windows of each subject
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,
    /// Length of a window
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// KiB of memory that the target writes between two waits: with 0 everything stays in the nearest cache
    #[arg(long, default_value_t = 64)]
    kib: u32,
}

/// Lines of the table: key of `probe_costs`, what it is.
const ROWS: &[(&str, &str)] = &[
    ("empty", "empty `tp_btf/sched_switch`, statistics included"),
    ("ring", "one 64-byte ring record, `BPF_RB_NO_WAKEUP`"),
    ("stackid", "`bpf_get_stackid`, user stack of 15 frames"),
    ("stack", "our stack of the same 15 frames, recognised"),
    ("wait", "our whole wait: switch-out, waking, switch-in"),
    ("wait_switch", "… of it `sched_switch`"),
    ("wait_waking", "… of it `sched_waking`"),
    ("clock", "part: `bpf_ktime_get_ns`"),
    ("regs", "part: `bpf_task_pt_regs`"),
    ("storage", "part: `bpf_task_storage_get` that finds nothing"),
    ("hash", "part: hash look-up of a 4-byte key"),
    ("read", "part: `bpf_probe_read_user` of 1,200 bytes"),
    (
        "bystander",
        "our `sched_switch` between non-targets, over the empty one",
    ),
    (
        "bystander_waking",
        "our `sched_waking` of a non-target, over an empty one",
    ),
];

/// Median of one key, what of (1: itself), at most how much.
struct Bound {
    what: &'static str,
    of: &'static str,
    to: Option<&'static str>,
    at_most: f64,
}

const BOUNDS: &[Bound] = &[
    Bound {
        what: "recognised stack ÷ bpf_get_stackid",
        of: "stack",
        to: Some("stackid"),
        at_most: 0.5,
    },
    Bound {
        what: "whole wait ÷ one 64-byte ring record",
        of: "wait",
        to: Some("ring"),
        at_most: 5.0,
    },
    Bound {
        what: "ns of a non-target's switch over an empty program",
        of: "bystander",
        to: None,
        at_most: 15.0,
    },
];

/// Frames of the workload's stacks.
const FRAMES: f64 = 15.0;
/// Part of the stacks that must be recognised for a figure to be one of recognised stacks.
const RECOGNISED: f64 = 0.999;

/// Builds, measures, prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        shell::is_root(),
        "probes need root: run `cargo xtask bench-probes` as root"
    );
    ensure!(
        args.seconds.is_finite() && (0.05..=60.0).contains(&args.seconds),
        "--seconds {}: from 0.05 to 60",
        args.seconds
    );
    shell::run(
        shell::cargo()
            .args(["build", "--locked", "--release", "--package", "tracer"])
            .args(["--bin", "ctrace", "--example", "probe_costs"]),
    )?;
    let object = build_ebpf::with_peers()?;
    let folder = shell::target_dir().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let frames15 = bench::workload::compile(
        "frames15",
        &folder,
        &["-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer"],
    )?;
    let release = shell::target_dir().join("release");
    // The last CPU: interrupts mostly go to the first.
    let cpu = std::thread::available_parallelism()?.get() - 1;
    let mut measure = Command::new(release.join("examples/probe_costs"));
    measure
        .args([object, release.join("ctrace"), frames15])
        .args([&cpu.to_string(), &args.kib.to_string()])
        .args([&args.windows.to_string(), &args.seconds.to_string()]);
    let samples = samples(&mut measure)?;

    println!(
        "Medians of {} windows of {} s [min–max]; {} KiB written between waits; on CPU {cpu}.\n",
        args.windows, args.seconds, args.kib
    );
    println!("| what | ns |\n|---|---|");
    for (key, what) in ROWS {
        println!(
            "| {what} | {} |",
            bench::stats::text(samples.all(key)?.iter().copied(), 0)
        );
    }
    println!();
    samples.sound()?;
    let mut failed = 0;
    for bound in BOUNDS {
        let value = samples.median(bound.of)? / bound.to.map_or(Ok(1.0), |to| samples.median(to))?;
        let holds = value <= bound.at_most;
        failed += usize::from(!holds);
        println!(
            "{}: {value:.2}, at most {}: {}",
            bound.what,
            bound.at_most,
            if holds { "pass" } else { "FAIL" }
        );
    }
    ensure!(failed == 0, "{failed} of {} bounds do not hold", BOUNDS.len());
    Ok(())
}

/// Runs it; its lines of `KEY VALUE`.
fn samples(measure: &mut Command) -> Result<Samples> {
    eprintln!("$ {}", shell::words(measure));
    let output = measure.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(
        output.status.success(),
        "probe_costs ended with {}",
        output.status
    );
    let mut samples = Samples::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((key, value)) = line.split_once(' ') else {
            bail!("probe_costs said {line:?}")
        };
        samples.0.entry(key.to_owned()).or_default().push(value.parse()?);
    }
    Ok(samples)
}

/// All values of each key.
#[derive(Default)]
struct Samples(BTreeMap<String, Vec<f64>>);

impl Samples {
    fn all(&self, key: &str) -> Result<&[f64]> {
        let values = self.0.get(key).filter(|values| !values.is_empty());
        Ok(values.with_context(|| format!("no {key} was measured"))?)
    }

    fn median(&self, key: &str) -> Result<f64> {
        let spread = bench::stats::Spread::of(self.all(key)?.iter().copied());
        Ok(spread.with_context(|| format!("{key} is no number"))?.median)
    }

    fn worst(&self, key: &str) -> Result<f64> {
        Ok(self.all(key)?.iter().copied().fold(f64::INFINITY, f64::min))
    }

    /// Says what the figures rest on; fails when it is not what they are said to be.
    fn sound(&self) -> Result<()> {
        for key in ["frames_recognised", "frames_stackid"] {
            let frames = self.all(key)?;
            println!("{key}: {frames:?}");
            ensure!(
                frames.iter().all(|&frames| frames == FRAMES),
                "{key}: not {FRAMES}"
            );
        }
        for (key, what) in [
            ("stack_hits", "recognised in the windows of our stack"),
            ("wait_hits", "recognised in the windows of the whole wait"),
            ("ring_done", "records that found room"),
            ("stackid_done", "stacks that bpf_get_stackid could take"),
        ] {
            let worst = self.worst(key)?;
            println!("{what}: at least {:.3} %", worst * 100.0);
            ensure!(worst >= RECOGNISED, "{what}: {worst}");
        }
        println!(
            "stacks of one wait: {}",
            bench::stats::text(self.all("wait_stacks")?.iter().copied(), 3)
        );
        let lost: f64 = self.all("wait_lost")?.iter().sum();
        println!("records of waits lost: {lost}");
        println!("hand-overs: {}", self.all("handovers")?.iter().sum::<f64>());
        Ok(())
    }
}
