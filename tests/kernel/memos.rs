//! Stacks recognised by the probes: never another one's, however alike they are.

use std::collections::BTreeSet;

use tracer::report::model::Report;

use super::support::stacks::{fds_made_in, show};
use super::support::{Ctrace, Workload, build, can_trace, require, workload::Truth};

/// Ways to the same leaf, and the functions that tell each.
const WAYS: [(&str, &[&str]); 8] = [
    ("way_small", &["through", "way_small"]),
    ("way_page", &["through", "way_page"]),
    ("way_pages", &["through", "way_pages"]),
    ("way_deep", &["through", "way_deep"]),
    ("way_signal", &["on_signal", "way_signal"]),
    ("way_array", &["open_close", "way_array"]),
    ("way_plain", &["open_close", "way_plain"]),
    ("way_other", &["through", "way_other"]),
];

/// Rounds of each of two threads; `CTRACE_TEST_ROUNDS` for a long run.
fn rounds() -> String {
    std::env::var("CTRACE_TEST_ROUNDS").unwrap_or_else(|_| "200000".to_owned())
}

/// Births in stacks that have these functions, in the whole report.
fn opened(report: &Report, functions: &[&str]) -> u64 {
    fds_made_in(report, functions).iter().map(|row| row.opened).sum()
}

/// No way has more births than it made, and what it has less was counted: a deep stack's first copy is too short.
fn compare(report: &Report, truth: &Truth, ways: &[(&str, &[&str])]) {
    println!("{:?}\n{:?}", report.overhead.memos, report.losses);
    let mut less = 0;
    for (way, functions) in ways {
        let (seen, known) = (opened(report, functions), truth.get(way));
        println!("{way:<12} {seen:>9} {known:>9}");
        assert!(seen <= known, "{way}: {seen} of {known}");
        assert!(seen * 100 >= known * 99, "{way}: {seen} of {known}");
        less += known - seen;
    }
    let counted = report.losses.stack_failed + report.losses.stack_pending;
    assert!(less <= counted, "{less} are missing, {counted} counted");
}

/// Callers with different `alloca` below one call site, recursion, arrays of variable length, signal handlers, and what other
/// ways left on the stack: each is counted for its own functions to the last one. Of those recognised one in 16 is unwound
/// as well, and to the same frames.
#[test]
fn no_way_is_taken_for_another() {
    let Some(_turn) = can_trace() else { return };
    let rounds = rounds();
    let Some(mut workload) = Workload::start("memos.c", &[&rounds]) else {
        return;
    };
    let pid = workload.pid.to_string();
    let ctrace = Ctrace::start_with(&["--pid", &pid, "--only", "fds"], &[("CTRACE_SHADOW", "16")]);
    let truth = workload.go();
    let report = ctrace.interrupted();
    workload.quit();

    let had = &report.overhead.memos;
    compare(&report, &truth, &WAYS);
    assert_eq!((had.disagreed, had.stale), (0, 0));
    let all: u64 = 2 * rounds.parse::<u64>().unwrap();
    assert!(had.agreed > all / 32, "{had:?}");
    assert!(had.hit_rate.unwrap() > 0.99, "{had:?}");
    // Every row is one of the ways, and goes to where its thread began.
    let named: BTreeSet<_> = WAYS
        .iter()
        .flat_map(|(_, functions)| fds_made_in(&report, functions))
        .filter_map(|row| row.stack.as_deref())
        .collect();
    let rows = &report.fds.as_ref().unwrap().by_stack;
    for row in rows.iter().filter(|row| row.opened > 0) {
        let stack = row.stack.as_deref();
        let text = show(&report, stack);
        if !text.contains("start_thread") {
            // Cut, and counted.
            assert!(
                row.opened <= report.losses.stack_failed + report.losses.stack_pending,
                "{text}"
            );
            continue;
        }
        assert!(stack.is_some_and(|id| named.contains(id)), "{text}");
        assert!(text.contains("memos_main"), "{text}");
    }
}

/// Two libraries in turn at one address, with the same code under other names: what the first was recognised by must not name
/// the second.
#[test]
fn a_library_in_anothers_place_has_its_own_names() {
    let Some(_turn) = can_trace() else { return };
    let plugins = ["INNER=plug_a", "INNER=plug_b"].map(|define| build::library("plugin.c", define));
    let [Ok(a), Ok(b)] = plugins else {
        require(false, "plugin.c cannot be built");
        return;
    };
    let args = ["0", a.to_str().unwrap(), b.to_str().unwrap()];
    let Some(mut workload) = Workload::start("memos.c", &args) else {
        return;
    };
    let pid = workload.pid.to_string();
    let ctrace = Ctrace::start_with(&["--pid", &pid, "--only", "fds"], &[("CTRACE_SHADOW", "4")]);
    let truth = workload.go();
    let report = ctrace.interrupted();
    workload.quit();

    assert_eq!(truth.get("same_address"), 64, "the loader chose other addresses");
    println!("{:?}", report.losses);
    let had = &report.overhead.memos;
    assert_eq!(had.disagreed, 0);
    let nameless: u64 = had.stale + report.losses.stack_pending + report.losses.stack_failed;
    let mut seen = 0;
    for plug in ["plug_a", "plug_b"] {
        let opened = opened(&report, &["open_close", plug, "load"]);
        println!("{plug} {opened} of {}", truth.get(plug));
        assert!(opened <= truth.get(plug), "another's counted for {plug}");
        seen += opened;
    }
    // Those between a change and its news have no name, and are said to.
    assert!(
        seen + nameless >= truth.get("plug_a") + truth.get("plug_b"),
        "{seen} + {nameless}"
    );
    assert!(had.recognised > 0);
}
