//! How long locks were held, and what their holders did meanwhile, against the program's own clocks.

use tracer::report::model::{Lock, Reason, Report};

use super::support::findings::of_program;
use super::support::stacks::stack_contains;
use super::support::workload::Truth;
use super::support::{Workload, can_trace};

fn traced(args: &[&str]) -> Option<(Report, Truth)> {
    Some(Workload::start("holds.c", args)?.traced(&[]))
}

fn page_lock(report: &Report) -> Option<&Lock> {
    let mut locks = report.locks.iter().flatten();
    locks.find(|lock| lock.name.as_deref() == Some("page_lock"))
}

#[test]
fn holds_and_what_is_done_in_them() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, truth)) = traced(&[]) else {
        return;
    };
    let lock = page_lock(&report).unwrap();
    let hold = lock.hold.as_ref().unwrap();
    let (holds, held, slept) = (truth.get("holds"), truth.get("held_ns"), truth.get("slept_ns"));
    let mean = held as f64 / holds as f64;
    println!(
        "{} of {holds} holds seen, mean {:.0} ns, by the program {mean:.0} ns; taken {:.3}",
        hold.count,
        hold.mean_ns,
        lock.utilisation.unwrap()
    );
    // With three threads always waiting, nearly every hold begins with the end of a wait and ends with a wake-up.
    // Each of the four finds at last that nothing is left to do, under the lock.
    assert!(
        hold.count <= holds + 4 && hold.count * 2 > holds,
        "{} of {holds}",
        hold.count
    );
    let ratio = hold.mean_ns as f64 / mean;
    assert!(
        (0.9..1.25).contains(&ratio),
        "mean hold {ratio} of the program's own"
    );

    // It is taken at least so much of the time, and never more than all threads were at it.
    let taken = lock.utilisation.unwrap() * report.window.duration_ns as f64;
    let elapsed = truth.get("elapsed_ns") as f64;
    assert!(taken <= elapsed, "{taken} of {elapsed}");
    assert!(taken >= held as f64 * 0.75, "{taken} of {held}");

    let asleep: u64 = lock
        .holders
        .iter()
        .filter(|row| row.state == "blocked" && row.reason == Some(Reason::Sleep))
        .filter(|row| stack_contains(&report, row.stack.as_deref(), &["load_page", "serve_page"]))
        .map(|row| row.total_ns)
        .sum();
    let all: u64 = lock.holders.iter().map(|row| row.total_ns).sum();
    assert!(
        all <= hold.total_ns && all * 20 >= hold.total_ns * 19,
        "the parts are the whole: {all} of {}",
        hold.total_ns
    );
    let (share, wanted) = (asleep as f64 / all as f64, slept as f64 / held as f64);
    println!("asleep in load_page {share:.3}, by the program {wanted:.3}");
    assert!((share - wanted).abs() < 0.1, "{share} against {wanted}");

    let finding = of_program(&report).next().unwrap();
    assert_eq!(finding.id, "lock.contended");
    for word in ["taken at least", "past the knee", "of it asleep in "] {
        assert!(finding.detail.contains(word), "{word}: {}", finding.detail);
    }
}

/// The same lock taken as often, for a moment: whatever little is seen of it, it is not busy.
#[test]
fn a_lock_held_for_moments_is_not_busy() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, truth)) = traced(&["idle"]) else {
        return;
    };
    let taken = page_lock(&report)
        .and_then(|lock| lock.utilisation)
        .unwrap_or(0.0);
    println!(
        "taken {taken:.4}; by the program {:.4}",
        truth.get("held_ns") as f64 / truth.get("elapsed_ns") as f64
    );
    assert!(taken < 0.1, "{taken}");
    assert!(
        report.findings.iter().all(|found| found.id != "lock.contended"),
        "{:?}",
        report.findings
    );
}
