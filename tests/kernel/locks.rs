//! Locks: exact numbers of sleeps, their outcomes, and the code on both sides.

use tracer::report::model::{Lock, LockKind, Report, Severity};

use super::support::stacks::{locks_awaited_in, show, stack_complete, stack_contains};
use super::support::workload::Truth;
use super::support::{Workload, can_trace};

/// Traces one run of a workload, from before `go` until after `done`.
fn traced(source: &str, args: &[&str]) -> Option<(Report, Truth)> {
    let _turn = can_trace()?;
    Some(Workload::start(source, args)?.traced(&[]))
}

/// The one lock of this name.
fn lock_named<'a>(report: &'a Report, name: &str) -> &'a Lock {
    let named = |lock: &&Lock| lock.name.as_deref().is_some_and(|n| n.contains(name));
    let locks: Vec<_> = report.locks.iter().flatten().filter(named).collect();
    assert_eq!(locks.len(), 1, "locks named {name}; all: {}", all_locks(report));
    locks[0]
}

/// The one lock awaited in these functions.
fn lock_awaited_in<'a>(report: &'a Report, functions: &[&str]) -> &'a Lock {
    let locks = locks_awaited_in(report, functions);
    assert_eq!(
        locks.len(),
        1,
        "locks awaited in {functions:?}; all: {}",
        all_locks(report)
    );
    locks[0]
}

/// Every lock on a line, for messages.
fn all_locks(report: &Report) -> String {
    let line = |lock: &Lock| {
        let stack = lock.waiters.first().and_then(|waiter| waiter.stack.as_deref());
        format!(
            "\n  {:?} {:?} waits {} idle {}: {}",
            lock.name,
            lock.kind,
            lock.waits,
            lock.idle,
            show(report, stack)
        )
    };
    report.locks.iter().flatten().map(line).collect()
}

/// Every wait of the lock was handed over, each by a waiter and a waker whose whole stacks name these functions.
fn assert_handed_over(report: &Report, lock: &Lock, waits: u64, waiter: &[&str], waker: &[&str]) {
    let name = &lock.name;
    assert_eq!(lock.waits, waits, "{name:?}: waits");
    assert_eq!(lock.wait.count, waits, "{name:?}: samples");
    assert_eq!(lock.outcomes.handed_over, waits, "{name:?}: {:?}", lock.outcomes);
    assert!(!lock.idle, "{name:?} is contended, not idle");
    assert_eq!(
        lock.waiters.iter().map(|w| w.waits).sum::<u64>(),
        waits,
        "{name:?}: waiters"
    );
    for row in &lock.waiters {
        assert_stack(report, row.stack.as_deref(), waiter);
    }
    assert_eq!(
        lock.wakers.iter().map(|w| w.wakes).sum::<u64>(),
        waits,
        "{name:?}: wakers"
    );
    for row in &lock.wakers {
        assert_stack(report, row.stack.as_deref(), waker);
    }
}

fn assert_stack(report: &Report, id: Option<&str>, functions: &[&str]) {
    assert!(
        stack_contains(report, id, functions),
        "{functions:?} not in: {}",
        show(report, id)
    );
    assert!(
        stack_complete(report, id),
        "does not reach the thread's start: {}",
        show(report, id)
    );
}

/// Nothing that the workload did deserves more than a low finding.
fn assert_silent(report: &Report) {
    let loud: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.severity >= Severity::Medium)
        .collect();
    assert!(loud.is_empty(), "findings about a healthy program: {loud:#?}");
}

/// Both mutexes of locks.c: exact counts, all handed over, named, and both sides' code to the thread's start. No
/// sleep may be shorter than the holder held on after it saw the waiter asleep.
#[test]
fn c_mutexes_count_every_sleep_and_name_both_sides() {
    let Some((report, truth)) = traced("locks.c", &[]) else {
        return;
    };
    let cache = lock_named(&report, "cache_lock");
    assert_eq!(cache.kind, LockKind::Mutex);
    assert_eq!(truth.get("cache_lock"), 23);
    assert_handed_over(
        &report,
        cache,
        23,
        &[
            "pthread_mutex_lock",
            "wait_for_cache",
            "handle_request",
            "worker_main",
        ],
        &[
            "pthread_mutex_unlock",
            "release_cache",
            "refresh_cache",
            "holder_main",
        ],
    );
    assert!(
        cache.wait.min_ns >= 20_000_000,
        "shorter than the hold: {:?}",
        cache.wait
    );

    let session = lock_named(&report, "session_lock");
    assert_eq!(session.kind, LockKind::Mutex);
    assert_eq!(truth.get("session_lock"), 97);
    assert_handed_over(
        &report,
        session,
        97,
        &[
            "pthread_mutex_lock",
            "wait_for_session",
            "handle_request",
            "worker_main",
        ],
        &[
            "pthread_mutex_unlock",
            "release_session",
            "refresh_session",
            "holder_main",
        ],
    );
    assert!(
        session.wait.min_ns >= 5_000_000,
        "shorter than the hold: {:?}",
        session.wait
    );
    assert!(report.losses.complete, "{:?}", report.losses);
}

/// The other two ends of a wait: the clock and a signal.
#[test]
fn c_timeouts_and_interrupted_waits_are_told_apart() {
    let Some((report, truth)) = traced("locks.c", &[]) else {
        return;
    };
    let timed = lock_named(&report, "timed_lock");
    assert_eq!(timed.kind, LockKind::Mutex);
    assert_eq!(truth.get("timed_lock"), 11);
    assert_eq!(
        (timed.waits, timed.outcomes.timed_out),
        (11, 11),
        "{:?}",
        timed.outcomes
    );
    for waiter in &timed.waiters {
        assert_stack(
            &report,
            waiter.stack.as_deref(),
            &["pthread_mutex_timedlock", "wait_timed", "worker_main"],
        );
    }

    let raw = lock_awaited_in(&report, &["wait_raw", "worker_main"]);
    assert_eq!(truth.get("raw_word"), 7);
    assert_eq!(
        (raw.waits, raw.outcomes.interrupted),
        (7, 7),
        "{:?}",
        raw.outcomes
    );
}

/// The clean twin of locks.c takes the same locks as often, without contention.
#[test]
fn c_uncontended_mutexes_are_not_reported() {
    let Some((report, _)) = traced("locks.c", &["clean"]) else {
        return;
    };
    let waits: u64 = locks_awaited_in(&report, &["handle_request"])
        .iter()
        .map(|lock| lock.waits)
        .sum();
    assert_eq!(waits, 0, "{}", all_locks(&report));
    for name in ["cache_lock", "session_lock", "timed_lock", "raw_word"] {
        let named = report
            .locks
            .iter()
            .flatten()
            .find(|lock| lock.name.as_deref().is_some_and(|n| n.contains(name)));
        assert!(named.is_none_or(|lock| lock.waits == 0), "{named:?}");
    }
    assert_silent(&report);
}

/// `std::sync::Mutex` sleeps on its own word, `parking_lot::Mutex` on its waiter's: both counted by who acquires.
#[test]
fn rust_mutexes_count_every_sleep() {
    let Some((report, _)) = traced("locks.rs", &[]) else {
        return;
    };
    let cache = lock_awaited_in(&report, &["wait_for_cache"]);
    assert_eq!(cache.kind, LockKind::Mutex);
    assert_handed_over(
        &report,
        cache,
        23,
        &["wait_for_cache", "handle_request", "worker_main"],
        &["refresh_cache", "holder_main", "main"],
    );
    let sessions = lock_awaited_in(&report, &["wait_for_sessions"]);
    assert_eq!(sessions.kind, LockKind::Mutex);
    assert_handed_over(
        &report,
        sessions,
        97,
        &["lock_slow", "wait_for_sessions", "handle_request", "worker_main"],
        &["refresh_sessions", "holder_main", "main"],
    );
}

/// `std::mutex` and a writer of a `std::shared_mutex` behind a reader.
#[test]
fn cpp_mutexes_count_every_sleep() {
    let Some((report, _)) = traced("locks.cpp", &[]) else {
        return;
    };
    let table = lock_awaited_in(&report, &["wait_for_table"]);
    assert_eq!(table.kind, LockKind::Mutex);
    assert_handed_over(
        &report,
        table,
        23,
        &[
            "pthread_mutex_lock",
            "wait_for_table",
            "handle_request",
            "worker_main",
        ],
        &["pthread_mutex_unlock", "refresh_table", "holder_main"],
    );
    let routes = lock_awaited_in(&report, &["wait_for_routes"]);
    assert_eq!(routes.kind, LockKind::Rwlock);
    assert_handed_over(
        &report,
        routes,
        97,
        &[
            "pthread_rwlock_wrlock",
            "wait_for_routes",
            "handle_request",
            "worker_main",
        ],
        &["pthread_rwlock_unlock", "read_routes", "holder_main"],
    );
}

/// `threading.Lock` is a semaphore acquired in `PyThread_acquire_lock_timed`; waits for the interpreter lock stay
/// apart from it.
#[test]
fn python_locks_count_every_sleep() {
    let Some((report, _)) = traced("locks.py", &[]) else {
        return;
    };
    let mut locks = locks_awaited_in(&report, &["PyThread_acquire_lock_timed"]);
    locks.sort_by_key(|lock| lock.waits);
    let waits: Vec<_> = locks
        .iter()
        .map(|lock| (lock.waits, lock.outcomes.handed_over, lock.idle))
        .collect();
    assert_eq!(
        waits,
        [(23, 23, false), (97, 97, false)],
        "{}",
        all_locks(&report)
    );
    assert!(locks.iter().all(|lock| lock.kind != LockKind::Gil));
    assert!(
        locks_awaited_in(&report, &["take_gil"])
            .iter()
            .all(|lock| lock.kind == LockKind::Gil)
    );
}

/// `synchronized`: at least one sleep for each contended enter, and as much time as the waiter itself measured.
#[test]
fn java_monitors_wait_as_long_as_java_says() {
    let Some((report, truth)) = traced("Locks.java", &[]) else {
        return;
    };
    let monitors: Vec<_> = report
        .locks
        .iter()
        .flatten()
        .filter(|l| l.kind == LockKind::JavaMonitor && !l.idle)
        .collect();
    let waits: u64 = monitors.iter().map(|lock| lock.waits).sum();
    assert!(
        waits >= truth.get("enters"),
        "{waits} waits; {}",
        all_locks(&report)
    );
    // What the waiter measures ends when it runs again, so the run queue belongs to it.
    let seen: u64 = monitors
        .iter()
        .map(|lock| lock.wait.total_ns + lock.run_queue.total_ns)
        .sum();
    let measured = truth.get("waited_ns");
    let error = (seen as f64 - measured as f64).abs() / measured as f64;
    assert!(
        error <= 0.05,
        "ctrace {seen} ns, Java {measured} ns: {:.1} % off",
        error * 100.0
    );
}

/// Workers of `pool.c`.
const WORKERS: u64 = 8;

/// Eight workers without work sleep on a condition variable: that is idleness, never contention.
#[test]
fn idle_pool_is_no_contention() {
    let Some((report, truth)) = traced("pool.c", &[]) else {
        return;
    };
    let contended: Vec<_> = report
        .locks
        .iter()
        .flatten()
        .filter(|lock| !lock.idle && lock.waits > 0)
        .collect();
    assert!(contended.is_empty(), "contended: {}", all_locks(&report));
    let pool = locks_awaited_in(&report, &["pthread_cond_wait", "wait_for_job", "pool_worker"]);
    // Each worker's first sleep began before tracing: it has no length and is not counted.
    let (waits, jobs) = (pool.iter().map(|lock| lock.waits).sum::<u64>(), truth.get("jobs"));
    assert!(
        (jobs - WORKERS..=jobs).contains(&waits),
        "{waits} waits for {jobs} jobs: {}",
        all_locks(&report)
    );
    assert!(pool.iter().all(|lock| lock.kind == LockKind::Cond));
    assert_silent(&report);
}
