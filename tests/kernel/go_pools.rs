//! Pools of `database/sql`: exhausted ones are found, with who waits and what holds the connections; enough ones are not.

use std::ops::Range;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use tracer::report::model::{GoPool, GoPoolUse, Report, Severity};

use super::support::workload::Truth;
use super::support::{Ctrace, Workload, can_trace, go, require, until};

/// Waits that a pool must have seen before the run ends.
const ENOUGH: u64 = 1_500;

/// The oldest, and the newest without symbols.
const BUILDS: [(&str, &[&str]); 2] = [("system", &[]), (go::VERSIONS[3], &["-ldflags=-s -w"])];

/// Traces a run of the workload until its own numbers are `enough`.
fn traced(
    (version, flags): (&str, &[&str]),
    mode: &str,
    enough: impl Fn(&Truth, u64) -> bool,
) -> Option<(Report, Truth)> {
    let toolchain = go::toolchain(version);
    if !require(
        toolchain.is_some(),
        &format!("no Go {version}: cargo xtask test fetches it"),
    ) {
        return None;
    }
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("gopool");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/gopool.go");
    go::build(&toolchain?, flags, &program, &source).unwrap();
    let mut workload = Workload::started({
        let mut command = Command::new(&program);
        command.arg(mode);
        command
    });
    let pid = workload.pid.to_string();
    let ctrace = Ctrace::start(&["--pid", &pid, "--only", "go"]);
    workload.tell("go");
    let mut rounds = 0;
    until("the pool has been used enough", || {
        rounds += 1;
        enough(&workload.counts(), rounds)
    });
    let report = ctrace.interrupted();
    let truth = workload.counts();
    workload.quit();
    Some((report, truth))
}

fn names<'a>(report: &'a Report, stack: Option<&String>) -> Vec<&'a str> {
    let frames = stack.and_then(|stack| report.stacks.get(stack));
    let functions = frames.into_iter().flatten();
    functions.filter_map(|frame| frame.function.as_deref()).collect()
}

/// The one pool, which must be the workload's.
fn pool<'a>(report: &'a Report, truth: &Truth) -> &'a GoPool {
    let pools = &report.go.as_ref().unwrap().pools;
    assert_eq!(pools.len(), 1, "{pools:#?}");
    let pool = &pools[0];
    assert_eq!(pool.address, format!("{:#x}", truth.get("address")));
    assert_eq!(pool.max_open, 10);
    // The program goes on after the last snapshot.
    assert!(pool.waits <= truth.get("waits"), "{pool:#?}");
    assert!(pool.wait_total_ns.unwrap() <= truth.get("wait_ns"), "{pool:#?}");
    pool
}

/// An exhausted pool, and the words of the finding.
fn assert_exhausted(report: &Report, truth: &Truth, waiter: &str, callers: Range<f64>, words: &[&str]) {
    let pool = pool(report, truth);
    println!("{pool:#?}");
    assert!(pool.exhausted_share > 0.1, "{pool:#?}");
    // All callers but those that have a connection wait, when it is exhausted; some move while they are read.
    let waiting = pool.mean_waiting / pool.exhausted_share;
    assert!(callers.contains(&waiting), "{waiting} not in {callers:?}");
    for row in &pool.waiters {
        let functions = names(report, row.stack.as_ref());
        assert!(
            functions.contains(&waiter) && functions.contains(&"database/sql.(*DB).conn"),
            "{functions:?}"
        );
    }
    let found = report
        .findings
        .iter()
        .find(|finding| finding.id == "pool.exhausted")
        .unwrap_or_else(|| panic!("{:#?}", report.findings));
    assert!(found.severity >= Severity::Medium, "{found:#?}");
    let text = format!("{}; {}; {}", found.title, found.detail, found.remedy);
    println!("{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[test]
fn exhausted_pools_are_found_with_what_holds_them() {
    let Some(_turn) = can_trace() else { return };
    for build in BUILDS {
        let enough = |truth: &Truth, _| truth.get("waits") >= ENOUGH;
        if let Some((report, truth)) = traced(build, "queries", enough) {
            let words = ["pool of 10 connections", "main.listOrders", "held by queries"];
            assert_exhausted(&report, &truth, "main.listOrders", 25.0..30.5, &words);
            let pool = pool(&report, &truth);
            // Nearly all waits were seen to end; the first ones may have been over before the first snapshot.
            assert!(
                pool.waits * 2 > truth.get("waits"),
                "{pool:#?} {}",
                truth.get("waits")
            );
            for row in pool.in_use.iter().flatten() {
                assert_eq!(row.does, GoPoolUse::Query, "{pool:#?}");
            }
        }
        if let Some((report, truth)) = traced(build, "work", enough) {
            let words = [
                "main.bookSeat",
                "held by open transactions",
                "Shorten transactions",
            ];
            assert_exhausted(&report, &truth, "main.bookSeat", 8.0..10.5, &words);
        }
        if let Some((report, truth)) = traced(build, "rows", enough) {
            let words = ["main.exportAll", "held by open Rows", "Read Rows to their end"];
            assert_exhausted(&report, &truth, "main.exportAll", 8.0..10.5, &words);
        }
        if let Some((report, truth)) = traced(build, "outside", enough) {
            let words = ["main.exportAll", "while the program does something else"];
            assert_exhausted(&report, &truth, "main.exportAll", 8.0..10.5, &words);
        }
        // Nobody ever gets one: rounds of the condition, a few ms each, are all that passes.
        if let Some((report, truth)) = traced(build, "kept", |truth, rounds| {
            truth.get("waits") == 20 && rounds > 100
        }) {
            let words = ["none of which has ended", "not given back", "defer rows.Close()"];
            assert_exhausted(&report, &truth, "main.listOrders", 19.5..20.5, &words);
        }
    }
}

#[test]
fn a_pool_that_is_large_enough_is_silent() {
    let Some(_turn) = can_trace() else { return };
    for build in BUILDS {
        let Some((report, truth)) = traced(build, "enough", |_, rounds| rounds > 100) else {
            continue;
        };
        assert_eq!(truth.get("waits"), 0);
        assert!(report.go.as_ref().unwrap().pools.is_empty());
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
    }
}
