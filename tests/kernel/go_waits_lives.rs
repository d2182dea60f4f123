//! `--go-waits` over the lives of processes: two at once, a child that is followed, a program that becomes another one; and beside the
//! collector, whose waits are not told.

use std::process::Command;

use tempfile::TempDir;
use tracer::report::model::{Lock, LockKind, Report};

use super::support::{Ctrace, Workload, can_trace, go, go_workload};

const ROOM: [&str; 4] = ["--go-waits", "--budget", "90%", "--min-wait=1us"];

/// Waits for channels in a function of a process.
fn waits(report: &Report, pid: u32, function: &str) -> u64 {
    let locks = report.locks.iter().flatten();
    let channels = locks.filter(|lock: &&Lock| lock.kind == LockKind::GoChan && lock.pid == pid);
    let waiters = channels.flat_map(|lock| &lock.waiters);
    let here = waiters.filter(|row| go_workload::functions(report, row.stack.as_deref()).contains(&function));
    here.map(|row| row.waits).sum()
}

#[test]
fn go_waits_of_two_processes_are_apart() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let mut workloads = Vec::new();
    for version in ["system", go::VERSIONS[3]] {
        let own = folder.path().join(version);
        std::fs::create_dir(&own).unwrap();
        let Some(program) = go_workload::built("gowaits", version, &[], &own) else {
            return;
        };
        workloads.push(go_workload::started(&program, &[]));
    }
    let pids: Vec<String> = workloads
        .iter()
        .map(|workload| workload.pid.to_string())
        .collect();
    let options = ["--pid", &pids[0], "--pid", &pids[1]];
    let ctrace = Ctrace::start(&[&options[..], &ROOM].concat());
    let truths: Vec<_> = workloads.iter_mut().map(Workload::go).collect();
    let report = ctrace.interrupted();
    for (workload, truth) in workloads.iter().zip(&truths) {
        for (function, key) in [
            ("main.sendOrder", "send.waits"),
            ("main.awaitAnswer", "receive.waits"),
        ] {
            assert_eq!(
                waits(&report, workload.pid, function),
                truth.get(key),
                "{function}"
            );
        }
    }
    assert_eq!(report.go_others.len(), 1);
    assert!(report.losses.complete, "{:?}", report.losses);
    workloads.into_iter().for_each(Workload::quit);
}

/// A shell that starts the program when it is told to, as a child or in its own place.
fn by_shell(how: &str, follow: &[&str]) -> Option<(Report, u32, u32)> {
    let folder = TempDir::new().unwrap();
    let program = go_workload::built("gowaits", go::VERSIONS[3], &[], folder.path())?;
    let script = format!("echo ready $$; read go; {how}");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).env("PROGRAM", &program);
    let mut workload = Workload::started(command);
    let shell = workload.pid;
    let pid = shell.to_string();
    let ctrace = Ctrace::start(&[&["--pid", &pid], &ROOM[..], follow].concat());
    workload.tell("go");
    let truth = workload.go();
    assert!(truth.get("ops") > 0);
    let report = ctrace.interrupted();
    workload.quit();
    let of_go = report
        .targets
        .iter()
        .find(|target| target.runtime.starts_with("go"));
    let of_go = of_go.unwrap_or_else(|| panic!("{:#?}", report.targets)).pid;
    Some((report, shell, of_go))
}

#[test]
fn go_waits_of_a_child_are_followed() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, shell, child)) = by_shell("\"$PROGRAM\" bench 4; true", &["--follow"]) else {
        return;
    };
    assert_ne!(shell, child);
    println!("{:?}; {:?}", report.overhead.go_probes, report.losses);
    assert!(waits(&report, child, "main.bench") > 0, "{:#?}", report.probes);
    assert_eq!(waits(&report, shell, "main.bench"), 0);
}

#[test]
fn go_waits_begin_with_the_program_that_is_executed() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, shell, of_go)) = by_shell("exec \"$PROGRAM\" bench 4", &[]) else {
        return;
    };
    assert_eq!(shell, of_go);
    println!("{:?}; {:?}", report.overhead.go_probes, report.losses);
    assert!(waits(&report, of_go, "main.bench") > 0, "{:#?}", report.probes);
}

/// Another program in the same process: its channels, and none of the one before.
#[test]
fn go_waits_go_on_in_the_program_that_follows() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gowaits", version, &[], folder.path()) else {
            continue;
        };
        let mut workload = go_workload::started(&program, &["exec", "4"]);
        let pid = workload.pid.to_string();
        let ctrace = Ctrace::start(&[&["--pid", &pid], &ROOM[..]].concat());
        workload.tell("go");
        workload.expect("the other program", |line| line.starts_with("ready "));
        let truth = workload.go();
        let report = ctrace.interrupted();
        let seen = waits(&report, workload.pid, "main.bench");
        workload.quit();
        println!(
            "Go {version}: {seen}; {:?}; {:?}",
            report.overhead.go_probes, report.losses
        );
        // A send and a receive of each round, and the end.
        assert!(
            seen > 0 && seen <= 2 * truth.get("ops") + 2,
            "{seen} of {truth:?}"
        );
    }
}

/// Goroutines that help the collector, or wait for it, wait for nobody of the program.
#[test]
fn go_waits_leave_out_those_for_the_collector() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gc", version, &[], folder.path()) else {
            continue;
        };
        let mut workload = go_workload::started(&program, &[]);
        let pid = workload.pid.to_string();
        let ctrace = Ctrace::start(&[&["--pid", &pid], &ROOM[..]].concat());
        workload.tell("go 23 3");
        let truth = workload.finish();
        let report = ctrace.interrupted();
        workload.quit();
        println!("Go {version}: {truth:?}");
        let rows = report.go.iter().flat_map(|go| &go.waits);
        let collectors = rows.filter(|row| {
            let reason = row.wait_reason.as_deref().unwrap_or_default();
            row.wait.is_some() && (reason.starts_with("GC ") || reason.contains(" GC "))
        });
        let collectors: Vec<_> = collectors.collect();
        assert!(collectors.is_empty(), "Go {version}: {collectors:#?}");
        assert!(report.losses.complete, "{:?}", report.losses);
    }
}
