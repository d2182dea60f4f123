//! Pools of `database/sql`: exhausted ones are found, with who waits and what holds the connections; enough ones are not.

use std::ops::Range;

use tempfile::TempDir;
use tracer::report::model::{GoPool, Report, Severity};

use super::support::workload::Truth;
use super::support::{Ctrace, can_trace, go, go_workload, until};

/// Waits that a pool must have seen before the run ends.
const ENOUGH: u64 = 1_500;

/// The newest without symbols, and the oldest, which shows the ways that differ most only.
const BUILDS: [(&str, &[&str]); 2] = [(go::VERSIONS[3], &["-ldflags=-s -w"]), ("system", &[])];

/// A pool that is exhausted.
struct Case {
    mode: &'static str,
    /// Who waits, and how many: all callers but those that have a connection. Some move while they are read.
    waiter: &'static str,
    waiting: Range<f64>,
    /// The finding says so.
    words: &'static [&'static str],
    /// Nobody ever gets a connection.
    vain: bool,
    /// With the oldest, too.
    oldest: bool,
}

const CASES: [Case; 8] = [
    Case {
        mode: "queries",
        waiter: "main.listOrders",
        waiting: 25.0..30.5,
        words: &["pool of 10 connections", "main.listOrders", "held by queries, "],
        vain: false,
        oldest: true,
    },
    Case {
        mode: "many",
        waiter: "main.listOrders",
        waiting: 8.0..10.5,
        words: &["held by queries, "],
        vain: false,
        oldest: false,
    },
    Case {
        mode: "work",
        waiter: "main.bookSeat",
        waiting: 8.0..10.5,
        words: &[
            "main.bookSeat",
            "open transactions",
            "Shorten transactions",
            "--go-creators tells which functions open them",
        ],
        vain: false,
        oldest: true,
    },
    Case {
        mode: "rows",
        waiter: "main.exportAll",
        waiting: 8.0..10.5,
        words: &["main.exportAll", "open Rows", "Read Rows to their end"],
        vain: false,
        oldest: false,
    },
    Case {
        mode: "outside",
        waiter: "main.exportAll",
        waiting: 8.0..10.5,
        words: &["main.exportAll", "kept meanwhile, or were not given back"],
        vain: false,
        oldest: false,
    },
    Case {
        mode: "connect",
        waiter: "main.listOrders",
        waiting: 15.0..20.5,
        words: &["are opened anew", "SetConnMaxLifetime"],
        vain: false,
        oldest: true,
    },
    Case {
        mode: "kept",
        waiter: "main.listOrders",
        waiting: 19.5..20.5,
        words: &[
            "none of which has ended",
            "are not given back",
            "defer rows.Close()",
        ],
        vain: true,
        oldest: true,
    },
    // The queries are those of another pool: nothing is said of what holds this one's connections.
    Case {
        mode: "several",
        waiter: "main.listOrders",
        waiting: 19.5..20.5,
        words: &["none of which has ended", "several pools"],
        vain: true,
        oldest: false,
    },
];

/// Traces a run of the workload until its own numbers are `enough`: the report, and those numbers before and after its end.
fn traced(
    (version, flags): (&str, &[&str]),
    mode: &str,
    options: &[&str],
    enough: impl Fn(&Truth, u64) -> bool,
) -> Option<(Report, Truth, Truth)> {
    let folder = TempDir::new().unwrap();
    let program = go_workload::built("gopool", version, flags, folder.path())?;
    let mut workload = go_workload::started(&program, &[mode]);
    let pid = workload.pid.to_string();
    let ctrace = Ctrace::start(&[&["--pid", &pid, "--only", "go"], options].concat());
    workload.tell("go");
    let mut rounds = 0;
    until("the pool has been used enough", || {
        rounds += 1;
        enough(&workload.counts(), rounds)
    });
    let before = workload.counts();
    let report = ctrace.interrupted();
    let after = workload.counts();
    workload.quit();
    Some((report, before, after))
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
fn assert_exhausted(report: &Report, truth: &Truth, case: &Case) {
    let pool = pool(report, truth);
    println!("{}: {pool:#?}", case.mode);
    assert!(pool.exhausted_share > 0.1, "{pool:#?}");
    let waiting = pool.mean_waiting;
    assert!(
        case.waiting.contains(&waiting),
        "{waiting} not in {:?}",
        case.waiting
    );
    for row in &pool.waiters {
        let functions = go_workload::functions(report, row.stack.as_deref());
        assert!(
            functions.contains(&case.waiter) && functions.contains(&"database/sql.(*DB).conn"),
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
    for word in case.words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[test]
fn exhausted_pools_are_found_with_what_holds_them() {
    let Some(_turn) = can_trace() else { return };
    for (build, oldest) in BUILDS.into_iter().zip([false, true]) {
        for case in CASES.iter().filter(|case| case.oldest || !oldest) {
            // Rounds of the condition, 20 ms and more each, where there is nothing else to count.
            let enough = |truth: &Truth, rounds| {
                if case.vain {
                    truth.get("waits") == 20 && rounds > 200
                } else {
                    truth.get("waits") >= ENOUGH || rounds > 400
                }
            };
            let Some((report, before, after)) = traced(build, case.mode, &[], enough) else {
                continue;
            };
            assert_exhausted(&report, &after, case);
            let pool = pool(&report, &after);
            // Nearly all waits were seen to begin; the first ones may have been over before the first snapshot.
            assert!(
                pool.waits * 2 > before.get("waits"),
                "{pool:#?} {}",
                before.get("waits")
            );
        }
    }
}

/// No waits; waits that were over long ago, while connections are opened all the time; waits in rare bursts.
#[test]
fn pools_that_are_large_enough_are_silent() {
    let Some(_turn) = can_trace() else { return };
    for mode in ["enough", "opening", "bursts"] {
        let Some((report, _, after)) = traced(BUILDS[0], mode, &[], |_, rounds| rounds > 200) else {
            continue;
        };
        let waits = after.get("waits");
        assert_eq!(waits == 0, mode == "enough", "{mode}: {waits} waits");
        println!("{mode}: {waits} waits, {:#?}", report.go.as_ref().unwrap().pools);
        assert!(report.findings.is_empty(), "{mode}: {:#?}", report.findings);
    }
}

/// With the makers of goroutines, the finding names the function that opened what holds the connections.
#[test]
fn exhausted_pools_name_who_opened_what_holds_them() {
    let Some(_turn) = can_trace() else { return };
    for (mode, function) in [("work", "main.bookSeat"), ("rows", "main.exportAll")] {
        let enough = |truth: &Truth, rounds| truth.get("waits") >= ENOUGH || rounds > 400;
        let Some((report, ..)) = traced(BUILDS[0], mode, &["--go-creators"], enough) else {
            continue;
        };
        let found = report.findings.iter().find(|found| found.id == "pool.exhausted");
        let found = found.unwrap_or_else(|| panic!("{mode}: {:#?}", report.findings));
        let words = format!("the oldest that are open were opened in {function}");
        assert!(found.detail.contains(&words), "{mode}: {}", found.detail);
        let opened_in = &found.evidence["opened_in"];
        assert_eq!(opened_in[0][0], function, "{mode}: {opened_in}");
    }
}
