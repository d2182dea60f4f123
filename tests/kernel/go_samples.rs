//! Time by samples against what the program itself measured, in the same run.

use tempfile::TempDir;
use tracer::report::model::Report;

use super::support::{Ctrace, can_trace, go, go_workload, until};

/// Waits for the slowest place.
const ENOUGH: u64 = 600;

/// The places: the function, what the workload calls it.
const PLACES: [(&str, &str); 3] = [
    ("main.receiveAnswer", "receive"),
    ("main.chooseAnswer", "choose"),
    ("main.lockTable", "lock"),
];

/// Estimate, half of the interval, samples: of those who wait in a function.
fn sampled(report: &Report, function: &str) -> (f64, f64, u64) {
    let (mut total, mut variance, mut samples) = (0.0, 0.0, 0);
    for wait in &report.go.as_ref().unwrap().waits {
        let frames = wait.stack.as_ref().and_then(|stack| report.stacks.get(stack));
        let mut functions = frames
            .into_iter()
            .flatten()
            .filter_map(|frame| frame.function.as_deref());
        let asleep = wait.wait_reason.as_deref() == Some("sleep");
        if wait.status != "waiting" || asleep || !functions.any(|name| name == function) {
            continue;
        }
        let [low, high] = wait.total_ci_ns.unwrap_or_else(|| panic!("{wait:#?}"));
        total += wait.total_ns as f64;
        variance += ((high - low) as f64 / 2.0).powi(2);
        samples += wait.samples;
    }
    (total, variance.sqrt(), samples)
}

#[test]
fn time_by_samples_is_what_the_program_measured() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    for (version, flags) in [("system", &[][..]), (go::VERSIONS[3], &["-ldflags=-s -w"][..])] {
        let Some(program) = go_workload::built("gosample", version, flags, folder.path()) else {
            continue;
        };
        let mut workload = go_workload::started(&program, &[]);
        let ctrace = Ctrace::start(&["--pid", &workload.pid.to_string(), "--only", "go", "--no-uprobes"]);
        workload.tell("go");
        until("there were enough waits", || {
            workload.counts().get("choose.waits") >= ENOUGH
        });
        let truth = workload.counts();
        let report = ctrace.interrupted();
        let later = workload.counts();
        workload.quit();
        for (function, place) in PLACES {
            let (total, half, samples) = sampled(&report, function);
            // It went on between the counts, and the last waits were not over.
            let key = format!("{place}.ns");
            let (low, high) = (truth.get(&key) as f64, later.get(&key) as f64 * 1.03);
            let inside =
                (low..=high).contains(&total) || (total - low).abs().min((total - high).abs()) <= half;
            println!(
                "Go {version}, {function}: {:.0} ms ± {:.0} by {samples} samples, measured {:.0} … {:.0} ms{}",
                total / 1e6,
                half / 1e6,
                low / 1e6,
                high / 1e6,
                if inside { "" } else { ": not inside" }
            );
            // A busy machine takes fewer snapshots, and says so by a wider interval.
            assert!(
                samples > 20 && half < total * 0.45,
                "{total} ± {half} by {samples}"
            );
            // One interval in twenty may miss; twice as wide, one in ten thousand.
            assert!(
                total + 2.0 * half > low && total - 2.0 * half < high,
                "{function}: {total} ± {half}, measured {low} … {high}"
            );
        }
    }
}
