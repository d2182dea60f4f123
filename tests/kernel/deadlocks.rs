//! Threads that wait for each other, and those that only wait long.

use std::collections::BTreeSet;

use tracer::report::model::{Certainty, Deadlock, Finding, Lock, Report, Severity};

use super::support::findings::of_program;
use super::support::stacks::stack_contains;
use super::support::workload::Truth;
use super::support::{Ctrace, Workload, can_trace};

/// Traces `seconds` of a workload whose threads are stuck when it says `done`.
fn stuck(source: &str, args: &[&str], seconds: &str) -> Option<(Report, Truth, u32)> {
    let mut workload = Workload::start(source, args)?;
    let pid = workload.pid;
    let truth = workload.go();
    let ctrace = Ctrace::start(&["--pid", &pid.to_string(), "--duration", seconds]);
    let (report, _) = ctrace.wait_report();
    workload.kill();
    Some((report, truth, pid))
}

fn tids(truth: &Truth, threads: u64) -> BTreeSet<u32> {
    (0..threads)
        .map(|at| truth.get(&format!("tid{at}")) as u32)
        .collect()
}

fn lock<'a>(report: &'a Report, id: &str) -> &'a Lock {
    let mut locks = report.locks.iter().flatten();
    locks.find(|lock| lock.id == id).unwrap()
}

fn lock_name<'a>(report: &'a Report, id: &str) -> &'a str {
    lock(report, id).name.as_deref().unwrap_or_default()
}

/// The one cycle, its threads those of the truth, each with what the next one holds.
fn the_cycle<'a>(report: &'a Report, truth: &Truth, threads: u64) -> &'a Deadlock {
    assert_eq!(report.deadlocks.len(), 1, "{:#?}", report.deadlocks);
    let deadlock = &report.deadlocks[0];
    let found: BTreeSet<u32> = deadlock.cycle.iter().map(|link| link.tid).collect();
    assert_eq!(found, tids(truth, threads));
    assert_eq!(found.len(), deadlock.cycle.len());
    let held = deadlock.cycle.iter().cycle().skip(1);
    for (link, next) in deadlock.cycle.iter().zip(held) {
        assert_eq!(next.holds.as_deref(), Some(link.waits_for.as_str()));
    }
    deadlock
}

fn first(report: &Report) -> &Finding {
    of_program(report).next().unwrap_or_else(|| panic!("no finding"))
}

/// Whether the stack of one thread of the cycle has this function.
fn waits_in(report: &Report, deadlock: &Deadlock, function: &str, lock: &str) -> bool {
    deadlock.cycle.iter().any(|link| {
        lock_name(report, &link.waits_for).contains(lock)
            && stack_contains(report, link.stack.as_deref(), &[function])
    })
}

fn assert_proven(source: &str, args: &[&str], wanted: &[(&str, &str)]) {
    // A thread that waits for what it holds itself must have waited for a while.
    let seconds = if args.contains(&"self") { "4" } else { "2" };
    let Some((report, truth, pid)) = stuck(source, args, seconds) else {
        return;
    };
    let threads = truth.get("threads");
    let deadlock = the_cycle(&report, &truth, threads);
    assert_eq!(deadlock.certainty, Certainty::Proven);
    assert_eq!(deadlock.pid, pid);
    assert_eq!(deadlock.behind, truth.find("behind").unwrap_or(0));
    for (function, lock) in wanted {
        assert!(
            waits_in(&report, deadlock, function, lock),
            "{function} waits for {lock}: {deadlock:#?}"
        );
    }
    let finding = first(&report);
    assert_eq!(
        (finding.id.as_str(), finding.severity),
        ("deadlock", Severity::Critical)
    );
    let others: Vec<_> = of_program(&report).skip(1).map(|found| &found.title).collect();
    assert!(
        others.is_empty(),
        "the waits behind it are no findings of their own: {others:?}"
    );
}

#[test]
fn two_mutexes_in_opposite_orders() {
    let Some(_turn) = can_trace() else { return };
    let wanted = [("transfer_a_to_b", "account_b"), ("transfer_b_to_a", "account_a")];
    assert_proven("deadlock.c", &["pair"], &wanted);
}

#[test]
fn two_mutexes_in_opposite_orders_long_before() {
    let Some(_turn) = can_trace() else { return };
    let wanted = [("transfer_a_to_b", "account_b"), ("transfer_b_to_a", "account_a")];
    assert_proven("deadlock.c", &["pair", "early"], &wanted);
    let wanted = [("place_order", "stock"), ("restock", "orders")];
    assert_proven("deadlock.cpp", &["early"], &wanted);
}

#[test]
fn cpp_mutexes() {
    let Some(_turn) = can_trace() else { return };
    let wanted = [("place_order", "stock"), ("restock", "orders")];
    assert_proven("deadlock.cpp", &[], &wanted);
}

#[test]
fn a_cycle_of_five() {
    let Some(_turn) = can_trace() else { return };
    assert_proven("deadlock.c", &["five"], &[("dine", "forks")]);
}

#[test]
fn cycles_of_other_kinds() {
    let Some(_turn) = can_trace() else { return };
    assert_proven("deadlock.c", &["self"], &[("log_again", "journal")]);
    assert_proven(
        "deadlock.c",
        &["join"],
        &[("finish_work", "account_a"), ("shut_down", "")],
    );
    let wanted = [("rewrite_table", "journal"), ("journal_table", "table")];
    assert_proven("deadlock.c", &["rwlock"], &wanted);
}

/// Ids in the lock's memory are those of the target's own namespace.
#[test]
fn a_cycle_in_a_namespace_of_its_own() {
    let Some(_turn) = can_trace() else { return };
    let Some(inner) = Workload::command("deadlock.c", &["pair", "early"]) else {
        return;
    };
    let mut command = std::process::Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    command.arg(inner.get_program()).args(inner.get_args());
    let mut workload = Workload::started(command);
    // It says the id that it knows itself by.
    assert!(
        workload.pid < 10,
        "{} is no id of a young namespace",
        workload.pid
    );
    let truth = workload.go();
    let parent = workload.process_id();
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let pid = children.trim();
    let (report, _) = Ctrace::start(&["--pid", pid, "--duration", "2"]).wait_report();
    workload.kill();
    assert_eq!(report.deadlocks.len(), 1, "{:?}", report.findings);
    let deadlock = &report.deadlocks[0];
    assert_eq!(deadlock.certainty, Certainty::Proven);
    assert_eq!(deadlock.cycle.len() as u64, truth.get("threads"));
    assert!(
        deadlock
            .cycle
            .iter()
            .all(|link| u64::from(link.tid) != truth.get("tid0"))
    );
}

/// A lock whose holder ended, or was left behind by a fork.
#[test]
fn locks_of_threads_that_are_gone() {
    let Some(_turn) = can_trace() else { return };
    for (kind, severity) in [("gone", Severity::High), ("fork", Severity::Medium)] {
        let Some((report, _, _)) = stuck("deadlock.c", &[kind], "4") else {
            return;
        };
        let finding = first(&report);
        assert_eq!(
            (finding.id.as_str(), finding.severity),
            ("lock.abandoned", severity),
            "{kind}"
        );
        assert_eq!(lock_name(&report, finding.lock.as_deref().unwrap()), "account_a");
        assert!(report.deadlocks.is_empty());
    }
}

/// Rust's mutexes do not say who holds them.
#[test]
fn rust_mutexes_are_a_probable_deadlock_at_most() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, truth, _)) = stuck("deadlock.rs", &[], "4") else {
        return;
    };
    let deadlock = the_cycle(&report, &truth, 2);
    assert_eq!(deadlock.certainty, Certainty::Probable);
    assert!(waits_in(&report, deadlock, "place_order", "") && waits_in(&report, deadlock, "restock", ""));
    let finding = first(&report);
    assert_eq!(
        (finding.id.as_str(), finding.severity),
        ("deadlock", Severity::Medium)
    );
}

/// Two threads wait for locks that a third one holds over a sleep; both have both locks at hand.
#[test]
fn a_long_hold_is_no_deadlock() {
    let Some(_turn) = can_trace() else { return };
    // The holder may sleep, or compute.
    if let Some((report, _, _)) = stuck("deadlock.rs", &["busy crowd"], "4") {
        assert!(report.deadlocks.is_empty(), "{:#?}", report.deadlocks);
    }
    let Some((report, _, _)) = stuck("deadlock.rs", &["crowd"], "4") else {
        return;
    };
    assert!(report.deadlocks.is_empty(), "{:#?}", report.deadlocks);
    assert!(of_program(&report).all(|found| found.id == "lock.stuck"));
    assert_eq!(of_program(&report).count(), 2);

    let Some((report, _, _)) = stuck("deadlock.c", &["slow"], "4") else {
        return;
    };
    assert!(report.deadlocks.is_empty(), "{:#?}", report.deadlocks);
    let finding = first(&report);
    assert_eq!(
        (finding.id.as_str(), finding.severity),
        ("lock.stuck", Severity::Low)
    );
    assert!(
        finding.detail.contains("which sleeps in slow_main"),
        "{}",
        finding.detail
    );
}

/// Locks that are always taken by somebody, and always released again.
#[test]
fn busy_programs_have_none() {
    let Some(_turn) = can_trace() else { return };
    for (source, args) in [
        ("deadlock.c", ["busy"]),
        ("deadlock.cpp", ["ordered"]),
        ("deadlock.rs", ["ordered"]),
    ] {
        let Some((report, _, _)) = stuck(source, &args, "4") else {
            return;
        };
        assert!(report.deadlocks.is_empty(), "{source}: {:#?}", report.deadlocks);
        let stuck: Vec<&Finding> = report
            .findings
            .iter()
            .filter(|found| ["deadlock", "lock.stuck", "lock.abandoned"].contains(&found.id.as_str()))
            .collect();
        assert!(stuck.is_empty(), "{source}: {stuck:#?}");
        let waits: u64 = report.locks.iter().flatten().map(|lock| lock.waits).sum();
        assert!(
            waits > 0,
            "{source}: nobody waited, so nothing was put to the test"
        );
    }
}
