//! Story 7, "the stop-the-world": latency that comes from the collector, a quota or neighbours, and not from the service's lock.

use std::thread::available_parallelism;

use tempfile::TempDir;
use tracer::report::model::{Finding, Report, Severity};

use super::support::findings::assert_silent;
use super::support::quota::Quota;
use super::support::{Ctrace, Workload, can_trace, go, go_workload, until};

/// The first finding has this id, and no lock is blamed.
fn first<'a>(of: &str, report: &'a Report, id: &str) -> &'a Finding {
    for finding in &report.findings {
        println!(
            "{of}: {:?} {}; {}",
            finding.severity, finding.title, finding.detail
        );
    }
    // That a hypervisor takes part of this machine is as true, and not the program's.
    let mut found = report
        .findings
        .iter()
        .filter(|finding| finding.id != "cpu.stolen");
    let first = found.next().unwrap_or_else(|| panic!("{of}: no finding"));
    assert_eq!(first.id, id, "{of}: {first:#?}");
    assert!(first.severity >= Severity::Medium, "{of}: {first:#?}");
    let blamed = |finding: &Finding| finding.id.starts_with("lock.") && finding.severity >= Severity::Medium;
    assert!(
        !report.findings.iter().any(blamed),
        "{of}: {:#?}",
        report.findings
    );
    first
}

fn spikes() -> Option<Workload> {
    Workload::start("spikes.c", &["6000", "20"])
}

#[test]
fn story_7_a_quota() {
    let Some(_turn) = can_trace() else { return };
    let Some(quota) = Quota::new(20_000) else { return };
    let Some(workload) = spikes() else { return };
    quota.put(workload.pid);
    let (report, truth) = workload.traced(&[]);
    let found = first("quota", &report, "cpu.throttled");
    assert_eq!(found.severity, Severity::High, "{found:#?}");
    assert!(truth.get("served") > 0);
    // The same service without it.
    let Some(workload) = spikes() else { return };
    let (report, _) = workload.traced(&[]);
    assert_silent("no quota", &report);
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.id != "cpu.throttled")
    );
}

#[test]
fn story_7_neighbours() {
    let Some(_turn) = can_trace() else { return };
    let threads = (2 * available_parallelism().unwrap().get()).to_string();
    let Some(mut neighbour) = Workload::start("burn.c", &["burn", &threads, "60000"]) else {
        return;
    };
    let Some(mut workload) = spikes() else { return };
    neighbour.tell("go");
    let tasks = format!("/proc/{}/task", neighbour.pid);
    until("the neighbour computes", || {
        std::fs::read_dir(&tasks).unwrap().count() > 1
    });
    let ctrace = Ctrace::attach(workload.pid);
    workload.go();
    let report = ctrace.interrupted();
    neighbour.kill();
    workload.quit();
    let found = first("neighbours", &report, "cpu.starved");
    assert!(found.detail.contains("burn"), "{found:#?}");
}

#[test]
fn story_7_the_collector() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in [("system", &[][..]), (go::VERSIONS[3], &["-ldflags=-s -w"])] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("goalloc", version, args, folder.path()) else {
            continue;
        };
        let of = format!("Go {version}");
        let (report, _) = go_workload::traced(&program, &["pressed"], &[]);
        let found = first(&of, &report, "gc.pressure");
        assert!(found.title.contains("collections/s"), "{found:#?}");
        let go = report.go.as_ref().unwrap();
        let gc = go.gc.as_ref().unwrap();
        assert!(gc.cycles >= 5 && gc.pauses.count > 0, "{of}: {gc:#?}");
        let (report, _) = go_workload::traced(&program, &["fixed"], &[]);
        assert_silent(&of, &report);
    }
}
