//! Story 3, "the lock nobody knew": a cache behind one lock, in five languages, and the same with the lock not held for long.

use tempfile::TempDir;
use tracer::report::model::{Report, Severity};

use super::support::findings::{assert_silent, of_program};
use super::support::stacks::show;
use super::support::{Workload, can_trace, go, go_workload};

/// One run from before `go` until after `done`.
fn traced(source: &str, args: &[&str]) -> Option<Report> {
    Some(Workload::start(source, args)?.traced(&[]).0)
}

/// The lock is the first finding; `function` waits for it, where functions of the language have names.
fn assert_found(of: &str, report: &Report, function: Option<&str>) {
    let first = of_program(report).next();
    let first = first.unwrap_or_else(|| panic!("{of}: no finding; {:#?}", report.locks));
    println!("{of}: {:?} {}; {}", first.severity, first.title, first.detail);
    assert_eq!(first.id, "lock.contended", "{of}: {first:#?}");
    assert!(first.severity >= Severity::Medium, "{of}: {first:#?}");
    let mut locks = report.locks.iter().flatten();
    let lock = locks.find(|lock| Some(&lock.id) == first.lock.as_ref()).unwrap();
    assert!(lock.waits >= 100, "{of}: {} waits", lock.waits);
    let Some(function) = function else { return };
    assert!(
        show(report, first.stack.as_deref()).contains(function),
        "{of}: {function} is not in the guilty stack: {}",
        show(report, first.stack.as_deref())
    );
    let released = |at: &Option<String>| show(report, at.as_deref()).contains(function);
    assert!(
        lock.wakers.iter().any(|waker| released(&waker.stack)),
        "{of}: nobody releases it in {function}"
    );
    // What goroutines hold cannot be told from their waits.
    if !of.starts_with("Go") {
        let taken = lock.utilisation.unwrap();
        assert!(taken > 0.5, "{of}: taken {taken}");
    }
}

fn story(source: &str, function: Option<&str>) {
    if let Some(report) = traced(source, &[]) {
        assert_found(source, &report, function);
    }
    if let Some(report) = traced(source, &["fixed"]) {
        assert_silent(source, &report);
    }
}

#[test]
fn story_3_in_c() {
    let Some(_turn) = can_trace() else { return };
    story("prices.c", Some("lookup_price"));
}

#[test]
fn story_3_in_rust() {
    let Some(_turn) = can_trace() else { return };
    story("prices.rs", Some("lookup_price"));
}

#[test]
fn story_3_in_java() {
    let Some(_turn) = can_trace() else { return };
    story("Prices.java", None);
}

#[test]
fn story_3_in_python() {
    let Some(_turn) = can_trace() else { return };
    story("prices.py", None);
}

#[test]
fn story_3_in_go() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in [("system", &[][..]), (go::VERSIONS[3], &["-ldflags=-s -w"])] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("goprices", version, args, folder.path()) else {
            continue;
        };
        let of = format!("Go {version}");
        let (report, _) = go_workload::traced(&program, &[], &[]);
        assert_found(&of, &report, Some("main.lookupPrice"));
        let (report, _) = go_workload::traced(&program, &["fixed"], &[]);
        assert_silent(&of, &report);
    }
}
