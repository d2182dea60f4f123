//! `bench`: what ctrace costs, as ratios within one run: absolute speeds change with the hour on a shared machine.
//!
//! ```text
//! load     off ── on ── off ── on ── off ── on ── off …     each `on` ÷ the mean of the two `off` beside it
//! tracer         └A/A┘       └ctrace┘     └peer┘            started, waited for, stopped: once a window
//! ```
//! One process per load, all tracers in turn, round after round. A window in which other programs took CPU, or traced,
//! is measured again. It prints Markdown, and at the end whether the bounds hold that ctrace is built to.

mod bounds;
mod ctrace;
mod judge;
mod loads;
mod neighbours;
mod outcome;
mod peers;
mod raw;
mod rounds;
mod row;
mod running;
pub(crate) mod stats;
mod table;
pub(crate) mod workload;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell;

/// Measure what ctrace and other tracers cost their target and bystanders; needs root, takes half an hour
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Windows of each tracer on each load
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,
    /// Length of a window
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Only this load (repeatable)
    #[arg(long, value_name = "NAME", value_parser = loads::names())]
    load: Vec<String>,
    /// Only ctrace: nothing is installed, and there is no row of empty probes
    #[arg(long)]
    no_peers: bool,
    /// CPUs' worth of other programs from which a window counts as disturbed
    #[arg(long, default_value_t = 0.1)]
    disturbed: f64,
    /// All windows and verdicts, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail when a bound does not hold
    #[arg(long)]
    gate: bool,
}

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
    if !args.no_peers {
        peers::install();
    }
    let folder = shell::target_dir().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let bench = rounds::Bench {
        windows: args.windows as usize,
        seconds: args.seconds,
        disturbed: args.disturbed,
        ctrace: shell::target_dir().join("release/ctrace"),
        loads: workload::compile("loads", &folder, &[])?,
        folder,
    };

    table::print_host(args);
    let mut measured = Vec::new();
    for load in loads::chosen(&args.load) {
        let row = bench.measure(load, !args.no_peers)?;
        table::print(&row, args.disturbed);
        measured.push(row);
        // After each load: what was measured outlives whatever ends this run.
        save(args, &measured, &[])?;
    }
    let verdicts = judge::all(&measured, args.disturbed);
    table::print_verdicts(&verdicts);
    save(args, &measured, &verdicts)?;
    let failed = verdicts.iter().filter(|verdict| verdict.failed()).count();
    if args.gate && failed > 0 {
        bail!("{failed} bounds do not hold");
    }
    Ok(())
}

fn save(args: &Args, measured: &[row::Measured], verdicts: &[judge::Verdict]) -> Result<()> {
    let Some(file) = &args.json else {
        return Ok(());
    };
    let text = serde_json::to_string_pretty(&raw::all(args, measured, verdicts))?;
    fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}
