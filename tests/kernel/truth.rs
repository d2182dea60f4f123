//! The workloads alone: each proves its own truth before `ctrace` is measured against it.

use std::process::Command;

use super::support::{Workload, build};

/// Runs a workload by itself and compares what it verified with what its source promises.
fn check(source: &str, args: &[&str], expected: &[(&str, u64)]) {
    let Some(mut workload) = Workload::start(source, args) else {
        return;
    };
    let truth = workload.go();
    for (key, number) in expected {
        assert_eq!(truth.get(key), *number, "{source} {args:?}: {key}");
    }
    workload.quit();
}

/// Every round of locks.c was one sleep that the kernel confirmed.
#[test]
fn c_locks() {
    check(
        "locks.c",
        &[],
        &[
            ("cache_lock", 23),
            ("session_lock", 97),
            ("timed_lock", 11),
            ("raw_word", 7),
        ],
    );
    check("locks.c", &["clean"], &[("cache_lock", 0), ("session_lock", 0)]);
}

/// The same for C++.
#[test]
fn cpp_locks() {
    check("locks.cpp", &[], &[("std_mutex", 23), ("std_shared_mutex", 97)]);
}

/// The same for Rust.
#[test]
fn rust_locks() {
    check("locks.rs", &[], &[("std_mutex", 23), ("parking_lot", 97)]);
}

/// The same for Python.
#[test]
fn python_locks() {
    check("locks.py", &[], &[("cache_lock", 23), ("session_lock", 97)]);
}

/// The same for Java, which also measures: each enter waits for a holder who sleeps 20 ms.
#[test]
fn java_locks() {
    let Some(mut workload) = Workload::start("Locks.java", &[]) else {
        return;
    };
    let truth = workload.go();
    assert_eq!(truth.get("enters"), 23);
    assert!(truth.get("waited_ns") >= 23 * 20_000_000, "{truth:?}");
    workload.quit();
}

/// Every job was done, by workers that otherwise slept.
#[test]
fn pool() {
    check("pool.c", &[], &[("jobs", 23)]);
}

/// Thousands of threads exist, or come and go.
#[test]
fn storm() {
    check("storm.c", &["hold", "2000"], &[("threads", 2001)]);
    check("storm.c", &["churn", "2000", "1"], &[("created", 2000)]);
}

/// Spinning threads stop when told.
#[test]
fn spin() {
    let Some(mut workload) = Workload::start("spin.c", &["2"]) else {
        return;
    };
    workload.tell("go");
    workload.expect("spinning", |line| line == "spinning");
    workload.tell("stop");
    assert_eq!(workload.finish().get("threads"), 3);
    workload.quit();
}

/// The bystander counts its calls.
#[test]
fn syscall_loop() {
    let Some(mut workload) = Workload::start("syscall_loop.c", &[]) else {
        return;
    };
    assert!(workload.go().get("calls_per_second") > 0);
    workload.quit();
}

/// The heavy workload did something.
#[test]
fn heavy() {
    let Some(mut workload) = Workload::start("heavy.c", &["1"]) else {
        return;
    };
    assert!(workload.go().get("opened_under_lock") > 0);
    workload.quit();
}

/// The command to trace ends with its own status, by itself and after an exec.
#[test]
fn short() {
    let path = build::workload("short.c").unwrap();
    let status = Command::new(&path).args(["run", "23"]).status().unwrap();
    assert_eq!(status.code(), Some(7));
    let Some(mut workload) = Workload::start("short.c", &["exec", path.to_str().unwrap()]) else {
        return;
    };
    workload.go();
    workload.tell("quit");
    assert_eq!(workload.wait().code(), Some(0));
}
