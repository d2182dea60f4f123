//! What is left out to hold the cost, and that the rest still tells the truth.

use tracer::report::model::{Reason, Report};

use super::support::stacks::show;
use super::support::{Ctrace, Workload, can_trace};

/// One sleep in so many is recorded.
const ONE_IN: u64 = 8;

/// Sleeps and their samples in stacks that have this function.
fn naps(report: &Report, function: &str) -> (u64, u64) {
    let rows = report.blocked.iter().flatten();
    let here = rows.filter(|row| show(report, row.stack.as_deref()).contains(function));
    here.fold((0, 0), |(count, samples), row| {
        (count + row.count, samples + row.wait.samples.unwrap_or(row.count))
    })
}

/// Five standard deviations of the estimate of `n` from a sample of one in [`ONE_IN`]: chance goes beyond in one run of a million.
fn tolerance(n: u64) -> u64 {
    (5.0 * ((n * (ONE_IN - 1)) as f64).sqrt()) as u64
}

/// From one sleep in eight: counts of two kinds of sleeps within what chance allows, and the thread's time exact.
#[test]
fn a_sample_estimates_without_bias() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("naps.c", &[]) else {
        return;
    };
    let tid = workload.pid;
    let pid = tid.to_string();
    let one_in = ONE_IN.to_string();
    let ctrace = Ctrace::start_with(&["--pid", &pid], &[("CTRACE_SAMPLE", &one_in)]);
    let truth = workload.go();
    let report = ctrace.interrupted();
    workload.quit();

    for (function, key) in [("nap_often", "often"), ("nap_seldom", "seldom")] {
        let ((count, samples), known) = (naps(&report, function), truth.get(key));
        println!("{function}: {count} from {samples} samples, {known} in truth");
        assert!(
            count.abs_diff(known) <= tolerance(known),
            "{function}: {count} of {known}"
        );
        assert_eq!(count, samples * ONE_IN, "{function}");
    }
    let budget = report.overhead.budget.as_ref().unwrap();
    assert_eq!((u64::from(budget.one_in), budget.percent), (ONE_IN, None));
    assert!(report.losses.complete, "a sample is no loss: {:?}", report.losses);

    // Every sleep's length is known, though not every one's reason; what is short is told apart.
    let time = report.time.as_ref().unwrap();
    let row = time.by_thread.iter().find(|row| row.tid == Some(tid)).unwrap();
    let blocked: u64 = row.blocked_ns.values().sum();
    let sum = row.running_ns + row.runnable_ns + blocked;
    let window = report.window.duration_ns;
    println!("{row:?}: {sum} ns of {window}");
    assert!(sum.abs_diff(window) <= window / 20, "{sum} ns of {window}");
    assert!(row.blocked_ns[&Reason::Sleep] > blocked / 2, "{row:?}");
}

/// A load that costs more than a hundredth of a CPU: less is recorded, and the report says what and whether that was enough.
#[test]
fn a_small_budget_records_less() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("loads.c", &["hot", "5"]) else {
        return;
    };
    let pid = workload.pid.to_string();
    let ctrace = Ctrace::start_with(&["--pid", &pid, "--only", "locks,sched", "--budget", "0.1%"], &[]);
    workload.go();
    let report = ctrace.interrupted();
    workload.quit();
    let budget = report.overhead.budget.as_ref().unwrap();
    println!("{budget:?}, cost of all {:?} %", report.overhead.cpu_percent);
    assert!(
        budget.min_wait_ns > report.options.min_wait_ns && budget.one_in > 1,
        "{budget:?}"
    );
    assert_eq!(
        report.losses.unmatched + report.losses.map_full,
        0,
        "{:?}",
        report.losses
    );
    let asked = budget.cpu_percent.unwrap();

    // Three times what that costs at the least can be held. A report may come in the moment when more is being tried.
    let percent = format!("{}%", 3.0 * asked.max(0.1));
    let held = (0..3).any(|_| {
        let Some(mut workload) = Workload::start("loads.c", &["hot", "6"]) else {
            return false;
        };
        let pid = workload.pid.to_string();
        let ctrace = Ctrace::start_with(
            &["--pid", &pid, "--only", "locks,sched", "--budget", &percent],
            &[],
        );
        workload.go();
        let report = ctrace.interrupted();
        workload.quit();
        let budget = report.overhead.budget.unwrap();
        println!("{budget:?}, cost of all {:?} %", report.overhead.cpu_percent);
        budget.held == Some(true)
    });
    assert!(held, "{percent} was never held");
}

/// The twin: next to nothing happens, so nothing is left out.
#[test]
fn a_budget_that_suffices_leaves_nothing_out() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("locks.c", &[]) else {
        return;
    };
    let pid = workload.pid.to_string();
    let ctrace = Ctrace::start_with(&["--pid", &pid, "--budget", "90%"], &[]);
    workload.go();
    let report = ctrace.interrupted();
    workload.quit();
    let budget = report.overhead.budget.as_ref().unwrap();
    assert_eq!(
        (budget.one_in, budget.min_wait_ns),
        (1, report.options.min_wait_ns)
    );
    assert_ne!(budget.held, Some(false), "{budget:?}");
    let samples = report.locks.iter().flatten().map(|lock| lock.wait.samples);
    assert!(samples.into_iter().all(|samples| samples.is_none()));
}
