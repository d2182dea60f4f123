//! The run as Markdown.

use std::{collections::BTreeMap, fmt::Write as _, fs, process::Command};

use super::{
    Args,
    judge::Verdict,
    loads::Tracer,
    outcome::Outcome,
    peers,
    row::{Measured, Pair, Row},
    stats::{Spread, get, median, text},
};
use crate::shell;

pub(super) fn print_host(args: &Args) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let commit = shell::output(
        Command::new("git")
            .current_dir(shell::root())
            .args(["describe", "--always", "--dirty"]),
    );
    println!(
        "ctrace {}, Linux {}, {cpus} × {}; {}.",
        commit.as_deref().unwrap_or("of unknown commit"),
        kernel.trim(),
        model(&cpu_info).unwrap_or("CPU"),
        if args.no_peers {
            "no peers".to_owned()
        } else {
            peers::versions().join(", ")
        }
    );
    println!(
        "{} windows of {} s a row, each by the mean of the two without beside it; median [min–max]. A window in which \
         other programs took {} CPUs or more, or traced, is disturbed, measured again, and left out unless all are.",
        args.windows, args.seconds, args.disturbed
    );
}

/// What a system call and a probe cost differs threefold between makes.
fn model(cpu_info: &str) -> Option<&str> {
    let line = cpu_info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

/// Both tables of a load.
pub(super) fn print(measured: &Measured, disturbed: f64) {
    let load = measured.load;
    println!("\n### {}: {}\n", load.name, load.title);
    println!("{}\n", without(measured, disturbed));
    if load.bystander {
        println!("| with | throughput | CPU/op | ns/op added | windows |");
        println!("|---|---|---|---|---|");
    } else {
        println!("| with | throughput | CPU/op | and tracer's | ns/op added | windows |");
        println!("|---|---|---|---|---|---|");
    }
    let columns = if load.bystander { 3 } else { 4 };
    for row in &measured.rows {
        let name = row.tracer.name();
        if row.pairs.is_empty() {
            let why = cell(row.failed.as_deref().unwrap_or("no window"));
            println!(
                "| {name} | did not run: {why} {}",
                "| ".repeat(columns + 1).trim_end()
            );
            continue;
        }
        let used = row.used(disturbed);
        let both = if load.bystander {
            String::new()
        } else {
            format!(" {} |", text(used.clone().map(Pair::cpu_of_both), 3))
        };
        println!(
            "| {name} | {} | {} |{both} {} | {} |",
            text(used.clone().map(Pair::throughput), 3),
            text(used.clone().map(Pair::cpu), 3),
            text(used.map(Pair::added_ns), digits(measured)),
            windows(row, disturbed),
        );
    }
    println!("\n| tracer | CPUs | RSS MB | maps MB | start s | stop s | hit rate | names MB | lost |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for row in &measured.rows {
        if row.pairs.is_empty() || matches!(row.tracer, Tracer::Nothing) {
            continue;
        }
        let of = |key, unit: f64, digits| {
            median(row.used(disturbed).map(|pair| get(&pair.on, key) / unit), digits)
        };
        let cpus = row
            .used(disturbed)
            .map(|pair| get(&pair.on, "tracer_cpu_ns") / get(&pair.on, "wall_ns"));
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.tracer.name(),
            median(cpus, 3),
            of("tracer_rss_bytes", 1e6, 1),
            of("tracer_maps_bytes", 1e6, 1),
            of("tracer_start_s", 1.0, 2),
            of("tracer_stop_s", 1.0, 2),
            of("hit_rate", 1.0, 4),
            of("names_rss_bytes", 1e6, 1),
            losses(row),
        );
    }
    println!("\n{}", neighbours(measured, disturbed));
}

/// The load itself, by all its quiet windows without a tracer.
fn without(measured: &Measured, disturbed: f64) -> String {
    let pairs = || measured.rows.iter().flat_map(|row| row.used(disturbed));
    let off = |of: fn(&super::stats::Window) -> f64, digits| {
        text(
            pairs().flat_map(|pair| [of(&pair.before), of(&pair.after)]),
            digits,
        )
    };
    let mut line = format!(
        "Without: {} operations/s ({}), {} ns of CPU each, {} CPUs",
        off(
            |window| 1e9 * get(window, "operations") / get(window, "wall_ns"),
            0
        ),
        measured.load.operation,
        off(
            |window| get(window, "cpu_ns") / get(window, "operations"),
            digits(measured)
        ),
        off(|window| get(window, "cpu_ns") / get(window, "wall_ns"), 2),
    );
    for (what, key) in [("contended locks", "contended"), ("sleeps", "sleeps")] {
        let rates = pairs().map(|pair| 1e9 * get(&pair.before, key) / get(&pair.before, "wall_ns"));
        // A loop that never sleeps does it a few times nevertheless.
        if Spread::of(rates.clone()).is_some_and(|rates| rates.median >= 100.0) {
            // Writing to a string does not fail.
            let _ = write!(line, ", {} {what}/s", median(rates, 0));
        }
    }
    line + "."
}

/// After the point of ns: a tenth where an operation is short.
fn digits(measured: &Measured) -> usize {
    let pairs = measured.rows.iter().flat_map(|row| &row.pairs);
    let ns = Spread::of(pairs.map(|pair| get(&pair.before, "cpu_ns") / get(&pair.before, "operations")));
    usize::from(ns.is_some_and(|ns| ns.median < 500.0))
}

/// Text of a tool as part of a row.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// `5`, or `5 of 8` when some were disturbed, or `8 disturbed` when all were; and those that came to nothing.
fn windows(row: &Row, disturbed: f64) -> String {
    let (quiet, all) = (row.quiet(disturbed), row.pairs.len());
    let count = match quiet {
        0 => format!("{all} disturbed"),
        _ if quiet == all => format!("{all}"),
        _ => format!("{quiet} of {all}"),
    };
    match (&row.failed, row.failures) {
        (Some(why), failures) => format!("{count}; {failures} failed: {}", cell(why)),
        (None, _) => count,
    }
}

/// By cause, over all windows.
fn losses(row: &Row) -> String {
    let mut sums = BTreeMap::<&str, u64>::new();
    for (cause, count) in row.pairs.iter().flat_map(|pair| &pair.losses) {
        *sums.entry(cause).or_default() += count;
    }
    let told: Vec<String> = sums
        .iter()
        .map(|(cause, count)| format!("{cause} {count}"))
        .collect();
    if told.is_empty() {
        "none told".to_owned()
    } else {
        told.join(", ")
    }
}

fn neighbours(measured: &Measured, disturbed: f64) -> String {
    let pairs = || measured.rows.iter().flat_map(|row| &row.pairs);
    let mut tracers: Vec<&str> = pairs()
        .flat_map(|pair| &pair.tracers)
        .map(String::as_str)
        .collect();
    tracers.sort_unstable();
    tracers.dedup();
    let used = measured.rows.iter().flat_map(|row| row.used(disturbed));
    let traced = if tracers.is_empty() {
        String::new()
    } else {
        format!("; others that traced: {}", tracers.join(", "))
    };
    format!(
        "Others took {} CPUs in the windows used, {} in all{traced}.",
        text(used.map(Pair::others), 2),
        text(pairs().map(Pair::others), 2),
    )
}

pub(super) fn print_verdicts(verdicts: &[Verdict]) {
    println!("\n### Bounds\n");
    for Verdict { text, outcome } in verdicts {
        match outcome {
            Outcome::Pass => println!("- {text} pass"),
            Outcome::Fail => println!("- {text} **FAIL**"),
            Outcome::Inconclusive(why) => println!("- {text} inconclusive: {why}"),
        }
    }
}
