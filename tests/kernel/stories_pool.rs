//! Waits for connections of a pool, one by one, and the story that they tell: "the p99 that lied".

use tempfile::TempDir;
use tracer::report::model::{GoPool, Lock, LockKind, Mode, Report, Severity};

use super::support::findings::{assert_silent, of_program};
use super::support::workload::Truth;
use super::support::{Ctrace, can_trace, go, go_workload, until};

const ALL: [&str; 5] = [
    "system",
    go::VERSIONS[0],
    go::VERSIONS[1],
    go::VERSIONS[2],
    go::VERSIONS[3],
];
const STRIPPED: &str = "-ldflags=-s -w";

/// The one pool of the workload, and its row among the locks.
fn pool<'a>(report: &'a Report, truth: &Truth) -> (&'a GoPool, &'a Lock) {
    let pools = &report.go.as_ref().unwrap().pools;
    let [pool] = &pools[..] else { panic!("{pools:#?}") };
    assert_eq!(pool.address, format!("{:#x}", truth.get("address")));
    let locks = report.locks.iter().flatten();
    let locks: Vec<&Lock> = locks.filter(|lock| lock.kind == LockKind::Pool).collect();
    let &[lock] = &locks[..] else { panic!("{locks:#?}") };
    assert_eq!(lock.address.as_ref(), Some(&pool.address));
    assert_eq!(pool.lock.as_ref(), Some(&lock.id));
    (pool, lock)
}

/// Sum over the rows whose stack has a function.
fn of<'a>(report: &Report, rows: impl Iterator<Item = (&'a Option<String>, u64)>, function: &str) -> u64 {
    rows.filter(|(stack, _)| {
        let names = go_workload::functions(report, stack.as_deref());
        assert_eq!(names.last(), Some(&"runtime.goexit"), "{names:?}");
        names.contains(&function)
    })
    .map(|(_, number)| number)
    .sum()
}

/// Every request, every wait, every one that gave up, and who gave the connection, against what the pool itself counts: on each version
/// and however linked, while collections move the stacks of those who wait.
#[test]
fn every_wait_for_a_connection_is_timed() {
    let Some(_turn) = can_trace() else { return };
    for version in ALL {
        for args in [&[][..], &[STRIPPED], &["-buildmode=pie", STRIPPED]] {
            let folder = TempDir::new().unwrap();
            let Some(program) = go_workload::built("gopoolhttp", version, args, folder.path()) else {
                continue;
            };
            let (report, truth) = go_workload::traced(&program, &["exact"], &["--budget", "100%"]);
            println!("Go {version} {args:?}");
            assert!(report.hints.is_empty(), "{:#?}", report.hints);
            let (pool, lock) = pool(&report, &truth);
            let (waits, vain) = (truth.get("waits"), truth.get("vain"));
            assert_eq!(
                (pool.requests, pool.requests_waited),
                (Some(truth.get("requests")), Some(waits))
            );
            // Read from memory, since the pool was first seen.
            assert!(pool.waits <= waits && pool.wait_total_ns.unwrap() <= truth.get("wait_ns"));
            let wait = pool.wait.as_ref().unwrap();
            assert_eq!((wait.count, lock.waits, pool.gave_up), (waits, waits, Some(vain)));
            let outcomes = &lock.outcomes;
            assert_eq!((outcomes.handed_over, outcomes.interrupted), (waits - vain, vain));
            // The pool's own clock begins before the probe's and ends after it.
            println!("  {} of {} ns", wait.total_ns, truth.get("wait_ns"));
            assert!(wait.total_ns <= truth.get("wait_ns"));
            assert!(wait.total_ns * 10 >= truth.get("wait_ns") * 9);
            let waiters = || lock.waiters.iter().map(|row| (&row.stack, row.waits));
            assert_eq!(of(&report, waiters(), "main.giveUp"), vain);
            assert_eq!(of(&report, waiters(), "main.wantConnection"), waits - vain);
            assert_eq!(of(&report, waiters(), "database/sql.(*DB).conn"), waits);
            // Each of those that got one was given it, by the two that held them at first or by those who were served before.
            let wakers = || lock.wakers.iter().map(|row| (&row.stack, row.wakes));
            assert_eq!(of(&report, wakers(), "main.giveBack"), 2, "{:#?}", lock.wakers);
            assert_eq!(of(&report, wakers(), "main.wantConnection"), waits - vain - 2);
            assert_eq!(report.losses.go_unmatched, 0);
        }
    }
}

/// Whether the two agree within a tenth.
fn near(mode: &Mode, truth: u64) -> bool {
    (mode.center_ns as f64 / truth as f64 - 1.0).abs() <= 0.1
}

/// Traces until the service has seen enough.
fn traced(
    version: &str,
    args: &[&str],
    mode: &str,
    enough: impl Fn(&Truth, u32) -> bool,
) -> Option<(Report, Truth)> {
    let folder = TempDir::new().unwrap();
    let program = go_workload::built("gopoolhttp", version, args, folder.path())?;
    let mut workload = go_workload::started(&program, &[mode]);
    let pid = workload.pid.to_string();
    let ctrace = Ctrace::start(&["--pid", &pid]);
    workload.tell("go");
    let mut rounds = 0;
    until("the service has seen enough", || {
        rounds += 1;
        enough(&workload.counts(), rounds)
    });
    let truth = workload.counts();
    let report = ctrace.interrupted();
    workload.quit();
    Some((report, truth))
}

/// Most requests get a connection at once, some wait a little, and few wait long: no mean tells, and the finding does.
#[test]
fn story_1_the_p99_that_lied() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in [("system", &[][..]), (go::VERSIONS[3], &[STRIPPED])] {
        let enough = |truth: &Truth, _: u32| truth.get("long") >= 60;
        let Some((report, truth)) = traced(version, args, "exhausted", enough) else {
            continue;
        };
        let (pool, _) = pool(&report, &truth);
        let wait = pool.wait.as_ref().unwrap();
        println!(
            "Go {version}: {} s, {:#?}",
            report.window.duration_ns / 1_000_000_000,
            wait.modes
        );
        println!("{truth:?}");
        let [short, long] = &wait.modes[..] else {
            panic!("{wait:?}\n{:#?}", report.overhead)
        };
        assert!(near(short, truth.get("short_ns")), "{short:?}");
        assert!(near(long, truth.get("long_ns")), "{long:?}");
        let share = truth.get("long") as f64 / truth.get("waits") as f64;
        assert!((long.share - share).abs() < 0.03, "{long:?}, truly {share}");
        // The service goes on for a moment after it was asked.
        assert!(wait.count >= truth.get("waits") && wait.count + pool.waiting + 1 >= pool.waits);
        let first = of_program(&report).next().unwrap();
        println!("{}\n{}", first.title, first.detail);
        assert_eq!(
            (&*first.id, first.severity >= Severity::Medium),
            ("pool.exhausted", true)
        );
        assert!(first.title.contains("pool of 10 connections") && first.title.contains("of waits about"));
        assert!(
            first.detail.contains("two populations")
                && first.detail.contains("in main.serveOrders; ")
                && first.detail.contains("in main.serveReport"),
            "{first:#?}"
        );
        assert!(first.detail.contains("database/sql.(*DB).conn"));
    }
}

/// The same service and the same clients, with connections enough.
#[test]
fn story_1_fixed_is_silent() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, truth)) = traced(go::VERSIONS[3], &[STRIPPED], "enough", |_, rounds| rounds > 400)
    else {
        return;
    };
    assert_eq!(truth.get("waits"), 0);
    assert_silent("enough", &report);
    let named = of_program(&report).any(|finding| finding.id == "pool.exhausted");
    assert!(!named, "{:#?}", report.findings);
}
