//! The report says what goroutines wait on, and whom they have connections to.

use std::collections::BTreeMap;

use tempfile::TempDir;
use tracer::report::model::{GoObject, GoStack, GoWaitsOn, LockKind, Report};

use super::support::{Ctrace, can_trace, go, go_workload};

/// The oldest, and the newest without symbols.
const BUILDS: [(&str, &[&str]); 2] = [("system", &[]), (go::VERSIONS[3], &["-ldflags=-s -w"])];

/// The rows whose stack has a function.
fn rows<'a>(report: &'a Report, function: &str) -> Vec<&'a GoStack> {
    let rows = report.go.as_ref().unwrap().by_stack.iter();
    rows.filter(|row| {
        let frames = row.stack.as_ref().and_then(|stack| report.stacks.get(stack));
        let mut functions = frames.into_iter().flatten();
        functions.any(|frame| frame.function.as_deref() == Some(function))
    })
    .collect()
}

/// What all those wait on, together.
fn objects(rows: &[&GoStack]) -> BTreeMap<(LockKind, String), u64> {
    let mut all = BTreeMap::new();
    for row in rows {
        let on: &GoWaitsOn = row.waits_on.as_ref().unwrap_or_else(|| panic!("{row:#?}"));
        assert_eq!((on.asked, on.known), (row.count, row.count), "{row:#?}");
        for object in &on.most {
            *all.entry((object.kind, object.address.clone())).or_default() += object.waiters;
        }
    }
    all
}

#[test]
fn the_report_says_what_goroutines_wait_on() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    for (version, flags) in BUILDS {
        let Some(program) = go_workload::built("gosem", version, flags, folder.path()) else {
            continue;
        };
        let mut workload = go_workload::started(&program, &[]);
        let truth = workload.go();
        let ctrace = Ctrace::start(&["--pid", &workload.pid.to_string(), "--only", "go", "--no-uprobes"]);
        let report = ctrace.interrupted();
        workload.quit();

        let at = |key: &str| format!("{:#x}", truth.get(&format!("address.{key}")));
        let (full, empty) = ("chan_send", "chan_receive");
        for (function, kind, key, waiters) in [
            ("main.waitForA", LockKind::GoMutex, "mutex_a", 23),
            ("main.waitForB", LockKind::GoMutex, "mutex_b", 7),
            ("main.readConfig", LockKind::GoRwmutex, "rw_read", 11),
            ("main.writeConfig", LockKind::GoRwmutex, "rw_write", 3),
            ("main.waitForAll", LockKind::GoWaitgroup, "wait_group", 13),
            ("main.waitForNews", LockKind::GoCond, "cond", 3),
            ("main.offer", LockKind::GoChan, full, 5),
            ("main.take", LockKind::GoChan, empty, 2),
        ] {
            let found = objects(&rows(&report, function));
            let wanted = BTreeMap::from([((kind, at(key)), waiters)]);
            assert_eq!(found, wanted, "Go {version}: {function}");
        }
        // A nil channel is none.
        let wanted = BTreeMap::from([
            ((LockKind::GoChan, at(full)), 3),
            ((LockKind::GoChan, at(empty)), 3),
        ]);
        assert_eq!(
            objects(&rows(&report, "main.either")),
            wanted,
            "Go {version}: a select"
        );

        let one = |function: &str| -> GoObject {
            let rows = rows(&report, function);
            rows[0].waits_on.as_ref().unwrap().most[0].clone()
        };
        let channel = one("main.offer").channel.unwrap();
        assert_eq!((channel.len, channel.capacity, channel.closed), (19, 19, false));
        let channel = one("main.take").channel.unwrap();
        assert_eq!((channel.len, channel.capacity), (0, 0));
        // The first of them has waited since before the last one came.
        let longest = one("main.waitForA").longest_ns.unwrap();
        let begins: Vec<u64> = truth
            .all()
            .filter(|(key, _)| key.starts_with("mutex_a.") && key.ends_with(".before"))
            .map(|(_, ns)| ns)
            .collect();
        let spread = begins.iter().max().unwrap() - begins.iter().min().unwrap();
        assert!(longest >= spread, "{longest} {spread}");
        let never: u64 = report
            .go
            .iter()
            .flat_map(|go| &go.by_stack)
            .filter_map(|row| row.waits_on.as_ref())
            .map(|on| on.never)
            .sum();
        assert_eq!(never, 2, "Go {version}");
        let ticker = |row: &&GoStack| row.shape.as_deref() == Some("wait for a timer or ticker");
        let tickers: Vec<_> = report
            .go
            .iter()
            .flat_map(|go| &go.by_stack)
            .filter(ticker)
            .collect();
        assert_eq!(
            tickers.iter().map(|row| row.count).sum::<u64>(),
            2,
            "{tickers:#?}"
        );

        let host = format!("127.0.0.1:{}", truth.get("http.port"));
        let mut connections = 0;
        for row in rows(&report, "net/http.(*persistConn).readLoop") {
            for peer in &row.peers {
                assert_eq!((&*peer.scheme, &*peer.host, &peer.proxy), ("http", &*host, &None));
                connections += peer.connections;
            }
        }
        assert_eq!(connections, 8, "Go {version}");
    }
}
