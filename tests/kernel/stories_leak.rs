//! Stories 2 and 5: a pool that drains as one path keeps its Rows, and a job that never closes the bodies it gets.

use tempfile::TempDir;
use tracer::report::model::{Finding, Report, Severity, Verdict};

use super::support::findings::{assert_silent, of_program};
use super::support::workload::Truth;
use super::support::{Ctrace, can_trace, go, go_workload, until};

/// Traces a workload until it has done enough.
fn traced(
    name: &str,
    version: &str,
    args: &[&str],
    mode: &str,
    enough: impl Fn(&Truth) -> bool,
) -> Option<(Report, Truth)> {
    let folder = TempDir::new().unwrap();
    let program = go_workload::built(name, version, args, folder.path())?;
    let mut workload = go_workload::started(&program, &[mode]);
    let ctrace = Ctrace::attach(workload.pid);
    workload.tell("go");
    until("the workload has done enough", || enough(&workload.counts()));
    let report = ctrace.interrupted();
    let truth = workload.counts();
    workload.quit();
    Some((report, truth))
}

/// What is said of the program, in the order of the report.
fn told(report: &Report) -> Vec<&Finding> {
    let found: Vec<&Finding> = of_program(report).collect();
    for finding in &found {
        println!("{:?} {}; {}", finding.severity, finding.title, finding.detail);
    }
    found
}

const BUILDS: [(&str, &[&str]); 2] = [("system", &[]), (go::VERSIONS[3], &["-ldflags=-s -w"])];

#[test]
fn story_2_the_pool_that_drained() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in BUILDS {
        let enough = |truth: &Truth| truth.get("kept") >= 40;
        let Some((report, truth)) = traced("godrain", version, args, "broken", enough) else {
            continue;
        };
        println!("Go {version}: {truth:?}");
        let found = told(&report);
        let first = found.first().unwrap();
        assert_eq!(first.id, "fd.leak", "{first:#?}");
        assert!(first.severity >= Severity::Medium, "{first:#?}");
        // A connection is opened for who finds none free: who keeps it need not be the same.
        assert!(
            first
                .title
                .contains("connections of a database/sql pool are not given back")
                && first.detail.contains("main.loadOrder")
                && first.remedy.contains("rows.Close()"),
            "{first:#?}"
        );
        assert_eq!(
            found.iter().filter(|finding| finding.id == "fd.leak").count(),
            1,
            "{found:#?}"
        );
        let fds = report.fds.as_ref().unwrap();
        let leaking: u64 = fds
            .by_stack
            .iter()
            .filter(|row| row.verdict == Verdict::Leaking)
            .map(|row| row.live)
            .sum();
        // A connection that is kept was opened in any of both functions.
        assert!(
            leaking <= truth.get("kept") + 8,
            "{leaking} of {}",
            truth.get("kept")
        );
    }
}

#[test]
fn story_2_fixed_is_silent() {
    let Some(_turn) = can_trace() else { return };
    let enough = |truth: &Truth| truth.get("served") >= 1500;
    if let Some((report, _)) = traced("godrain", go::VERSIONS[3], &[], "fixed", enough) {
        assert_silent("fixed", &report);
    }
}

#[test]
fn story_5_the_body_never_closed() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in BUILDS {
        let enough = |truth: &Truth| truth.get("runs") >= 12;
        let Some((report, truth)) = traced("gojobs", version, args, "broken", enough) else {
            continue;
        };
        println!("Go {version}: {truth:?}");
        let found = told(&report);
        let first = found.first().unwrap();
        assert!(["fd.leak", "go.leak"].contains(&first.id.as_str()), "{first:#?}");
        let sockets = found.iter().find(|finding| finding.id == "fd.leak").unwrap();
        assert!(sockets.severity >= Severity::Medium, "{sockets:#?}");
        // The function that asks is one that all jobs use; who called it is the one to be found.
        assert!(
            sockets.title.contains("main.get") && sockets.detail.contains("called by main.syncPrices"),
            "{sockets:#?}"
        );
        // The front end dials anew for each idle connection that the job has taken and kept: those were dialled for it, truly, and the
        // remedy says so.
        for innocent in ["syncStock", "sendReport", "expireSessions"] {
            let says =
                |finding: &&Finding| finding.title.contains(innocent) || finding.detail.contains(innocent);
            let blamed = found.iter().copied().any(|finding| says(&finding));
            assert!(!blamed, "{innocent}: {found:#?}");
        }
        let fds = report.fds.as_ref().unwrap();
        let row = fds
            .by_stack
            .iter()
            .find(|row| row.verdict == Verdict::Leaking)
            .unwrap();
        let period = row.period_ns.unwrap_or_else(|| panic!("no period: {row:#?}"));
        let off = period as f64 / 2.3e9 - 1.0;
        assert!(off.abs() < 0.02, "a period of {period} ns");
        assert!(sockets.detail.contains("every 2.3"), "{}", sockets.detail);
    }
}

#[test]
fn story_5_fixed_is_silent() {
    let Some(_turn) = can_trace() else { return };
    let enough = |truth: &Truth| truth.get("runs") >= 9;
    if let Some((report, _)) = traced("gojobs", go::VERSIONS[3], &[], "fixed", enough) {
        assert_silent("fixed", &report);
    }
}
