//! Memory that grows, and who touches it first; story 6, "the worker that never stops".

use tempfile::TempDir;
use tracer::report::model::{Finding, Memory, Report, Severity, Verdict};

use super::support::findings::{assert_silent, of_program};
use super::support::stacks::show;
use super::support::{Workload, can_trace, go, go_workload};

/// What is estimated from so many samples is as near to the truth as four standard deviations of their number, as a factor.
fn near(of: &str, found: u64, truth: u64, samples: u64) {
    assert!(samples >= 10, "{of}: {samples} samples");
    let near = 1.0 + 4.0 / (samples as f64).sqrt();
    let ratio = found as f64 / truth as f64;
    println!(
        "{of}: {:.1} MB, {ratio:.2} of the truth, {samples} samples",
        found as f64 / 1e6
    );
    assert!(
        (1.0 / near..near).contains(&ratio),
        "{of}: {found}, {truth} in truth"
    );
}

fn memory(report: &Report) -> &Memory {
    report.memory.as_ref().unwrap()
}

/// What a function touched, by how many samples, and its part.
fn touched_in(report: &Report, function: &str) -> (u64, u64, f64) {
    let rows = memory(report).by_stack.iter();
    let own = rows.filter(|row| show(report, row.stack.as_deref()).contains(function));
    own.fold((0, 0, 0.0), |(bytes, samples, share), row| {
        (bytes + row.bytes, samples + row.samples, share + row.share)
    })
}

fn growth_finding<'a>(of: &str, report: &'a Report) -> &'a Finding {
    let found = of_program(report).find(|finding| finding.id == "memory.growth");
    let found = found.unwrap_or_else(|| panic!("{of}: {:#?}", memory(report)));
    println!("{of}: {:?} {}; {}", found.severity, found.title, found.detail);
    found
}

fn sessions(args: &[&str]) -> Option<(Report, u64)> {
    let (report, truth) = Workload::start("sessions.c", args)?.traced(&[]);
    Some((report, truth.get("kept")))
}

/// Four times as much memory is touched by `render_page`, which gives it back.
#[test]
fn who_touches_what_is_kept_is_named() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, kept)) = sessions(&["keep", "12000"]) else {
        return;
    };
    let found = growth_finding("keep", &report);
    assert_eq!(of_program(&report).next().unwrap().id, "memory.growth");
    assert!(found.severity >= Severity::Low, "{found:#?}");
    assert!(
        found.title.ends_with("first touched in remember_session"),
        "{found:#?}"
    );
    assert!(show(&report, found.stack.as_deref()).contains("remember_session"));
    let process = &memory(&report).by_process[0];
    assert_eq!(process.verdict, Verdict::Growing);
    // The kernel's own count, to the page.
    let grown = process.own_end - process.own_start;
    assert!(
        grown >= kept && grown < kept + kept / 10,
        "{grown}, {kept} in truth"
    );
    let (bytes, samples, _) = touched_in(&report, "remember_session");
    near("remember_session", bytes, kept, samples);
    assert!(
        touched_in(&report, "render_page").2 < 0.2,
        "{:#?}",
        memory(&report)
    );
}

#[test]
fn memory_that_is_bounded_or_filled_once_is_silent() {
    let Some(_turn) = can_trace() else { return };
    for mode in ["bound", "fill"] {
        let Some((report, _)) = sessions(&[mode, "12000"]) else {
            return;
        };
        assert_silent(mode, &report);
        assert!(
            of_program(&report).all(|finding| finding.id != "memory.growth"),
            "{mode}: {:#?}",
            report.findings
        );
        assert_ne!(memory(&report).by_process[0].verdict, Verdict::Growing, "{mode}");
    }
}

/// One fault brings 2 MiB.
#[test]
fn huge_pages_count_for_what_they_are() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, kept)) = sessions(&["huge", "12000"]) else {
        return;
    };
    growth_finding("huge", &report);
    let process = &memory(&report).by_process[0];
    let grown = process.own_end - process.own_start;
    // Where the kernel finds no huge page it gives a small one.
    let (bytes, samples, _) = touched_in(&report, "keep_huge_page");
    near("keep_huge_page", bytes, grown, samples);
    println!("{grown} of {kept} are there");
}

/// A heap that fills up until it is collected says nothing of what is kept.
#[test]
fn a_jvm_that_fills_its_heap_is_silent() {
    let Some(_turn) = can_trace() else { return };
    let Some(workload) = Workload::start("Garbage.java", &["10000"]) else {
        return;
    };
    let (report, _) = workload.traced(&[]);
    let process = &memory(&report).by_process[0];
    println!(
        "JVM: {:?}, {:.1} MB more",
        process.verdict,
        process.own_end.saturating_sub(process.own_start) as f64 / 1e6
    );
    assert_silent("Garbage.java", &report);
}

#[test]
fn without_the_collector_there_is_no_section() {
    let Some(_turn) = can_trace() else { return };
    let Some(workload) = Workload::start("sessions.c", &["bound", "1000"]) else {
        return;
    };
    let (report, _) = workload.traced(&["--only", "locks"]);
    assert!(report.memory.is_none());
    assert!(report.probes.iter().all(|probe| probe.name != "page_fault"));
}

#[test]
fn story_6() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in [("system", &[][..]), (go::VERSIONS[3], &["-ldflags=-s -w"])] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gosessions", version, args, folder.path()) else {
            continue;
        };
        let of = format!("Go {version}");
        let (report, truth) = go_workload::traced(&program, &["keep"], &[]);
        let first = of_program(&report).next();
        let first = first.unwrap_or_else(|| panic!("{of}: {:#?}", report.go));
        println!("{of}: {:?} {}; {}", first.severity, first.title, first.detail);
        assert_eq!(first.id, "go.leak", "{of}: {first:#?}");
        assert!(first.title.contains("main.reloadConfig"), "{of}: {first:#?}");
        let found = growth_finding(&of, &report);
        assert!(
            found.title.contains("first touched in main.rememberSession"),
            "{of}: {found:#?}"
        );
        // A collector leaves room for garbage.
        let process = &memory(&report).by_process[0];
        assert!(
            process.own_end - process.own_start >= truth.get("kept") / 2,
            "{of}: {process:#?}"
        );
        let (report, _) = go_workload::traced(&program, &["fixed"], &[]);
        assert_silent(&of, &report);
    }
}
