//! Story 4, "the forgotten channel": who sends waits for ever, as nobody receives any more. In Go goroutines, elsewhere threads.

use tempfile::TempDir;
use tracer::report::model::{Finding, Report, Severity, SpawnStack, Verdict};

use super::support::findings::{assert_silent, of_program};
use super::support::stacks::show;
use super::support::{Ctrace, Workload, can_trace, go, go_workload, until};

fn traced(source: &str, args: &[&str]) -> Option<(Report, u64)> {
    let mut workload = Workload::start(source, args)?;
    let ctrace = Ctrace::attach(workload.pid);
    let kept = workload.go().get("kept");
    // A JVM has threads of its own that come and go.
    if source != "Fanout.java" {
        let tasks = format!("/proc/{}/task", workload.pid);
        until("those that can end have ended", || {
            std::fs::read_dir(&tasks).unwrap().count() as u64 == kept + 1
        });
    }
    let report = ctrace.interrupted();
    workload.quit();
    Some((report, kept))
}

fn first<'a>(of: &str, report: &'a Report) -> &'a Finding {
    let first = of_program(report).next();
    let first = first.unwrap_or_else(|| panic!("{of}: no finding; {:#?}", report.threads));
    println!("{of}: {:?} {}; {}", first.severity, first.title, first.detail);
    assert!(first.severity >= Severity::Medium, "{of}: {first:#?}");
    first
}

/// `maker` makes the threads and `stuck` is where they stay, where functions of the language have names.
fn story(source: &str, names: Option<(&str, &str)>) {
    if let Some((report, kept)) = traced(source, &[]) {
        let first = first(source, &report);
        assert_eq!(first.id, "thread.leak", "{source}: {first:#?}");
        let threads = report.threads.as_ref().unwrap();
        let leaking: Vec<_> = threads
            .by_stack
            .iter()
            .filter(|row| row.verdict == Verdict::Leaking)
            .collect();
        let live: u64 = leaking.iter().map(|row| row.live).sum();
        assert!(live > 0, "{source}: {threads:#?}");
        if names.is_none() {
            // All that a runtime makes is made in one place of it.
            assert!(live <= kept + 2 && live + 2 >= kept, "{source}: {leaking:#?}");
        }
        if let Some((maker, stuck)) = names {
            // A compiler may have made three lines of the one that makes them.
            let made: Vec<_> = threads
                .by_stack
                .iter()
                .filter(|row| show(&report, row.stack.as_deref()).contains(maker))
                .collect();
            let sum = |of: fn(&SpawnStack) -> u64| made.iter().map(|row| of(row)).sum::<u64>();
            assert_eq!(
                (sum(|row| row.created), sum(|row| row.live)),
                (3 * kept, kept),
                "{source}: {made:#?}"
            );
            let findings = of_program(&report).filter(|finding| finding.id == "thread.leak");
            assert_eq!(findings.count(), 1, "{source}: {:#?}", report.findings);
            assert!(first.title.contains(maker), "{source}: {first:#?}");
            let (_, asleep) = first.detail.split_once("sleep in ").unwrap();
            assert!(asleep.contains(stuck), "{source}: {first:#?}");
            let guilty = show(&report, first.stack.as_deref());
            assert!(guilty.contains(stuck), "{source}: {guilty}");
        }
    }
    if let Some((report, _)) = traced(source, &["fixed"]) {
        assert_silent(source, &report);
        let threads = report.threads.as_ref().unwrap();
        assert!(threads.created >= 240, "{source}: {threads:#?}");
    }
}

#[test]
fn story_4_in_c() {
    let Some(_turn) = can_trace() else { return };
    story("fanout.c", Some(("serve_request", "send_result")));
}

#[test]
fn story_4_in_rust() {
    let Some(_turn) = can_trace() else { return };
    story("fanout.rs", Some(("serve_request", "send_result")));
}

#[test]
fn story_4_in_java() {
    let Some(_turn) = can_trace() else { return };
    story("Fanout.java", None);
}

#[test]
fn story_4_in_python() {
    let Some(_turn) = can_trace() else { return };
    story("fanout.py", None);
}

#[test]
fn story_4_in_go() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in [("system", &[][..]), (go::VERSIONS[3], &["-ldflags=-s -w"])] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gofanout", version, args, folder.path()) else {
            continue;
        };
        let of = format!("Go {version}");
        let (report, _) = go_workload::traced(&program, &[], &[]);
        let found = first(&of, &report);
        assert_eq!(found.id, "go.leak", "{of}: {found:#?}");
        assert!(
            found.title.contains("main.serveRequest")
                && found.title.contains("stuck in main.sendResult (chan send)"),
            "{of}: {found:#?}"
        );
        assert!(found.detail.contains("gofanout.go:"), "{of}: {found:#?}");
        let (report, _) = go_workload::traced(&program, &["fixed"], &[]);
        assert_silent(&of, &report);
    }
}
