//! Descriptors asked for by many functions: what none of them leaks fast enough is told in the sum, once.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tracer::report::model::{FdStack, Finding, Report, Severity, Verdict};

use super::support::{can_trace, go, go_workload, require};

const CALLERS: usize = 200;
const VERSIONS: [&str; 2] = ["system", go::VERSIONS[3]];

/// By default the probes at dials would be away for most of the time at such a rate.
const ALL: [&str; 2] = ["--budget", "100%"];

/// The workload with so many functions of its own.
fn built(version: &str, folder: &Path) -> Option<PathBuf> {
    let toolchain = go::toolchain(version);
    let why = format!("no Go {version}: cargo xtask test fetches it");
    if !require(toolchain.is_some(), &why) {
        return None;
    }
    let (mut functions, mut list) = (String::new(), String::new());
    for at in 0..CALLERS {
        writeln!(
            functions,
            "//go:noinline\nfunc caller{at}() {{ use(get(\"/endless\")) }}\n"
        )
        .unwrap();
        write!(list, "caller{at}, ").unwrap();
    }
    let template = include_str!("../workloads/gomany.go");
    let source = template
        .replace("/*FUNCTIONS*/", &functions)
        .replace("/*CALLERS*/", &list);
    let (from, program) = (folder.join("gomany.go"), folder.join("gomany"));
    fs::write(&from, source).unwrap();
    go::build(&toolchain?, &["-ldflags=-s -w"], &program, &from).unwrap_or_else(|why| panic!("{why}"));
    Some(program)
}

fn leaks(report: &Report) -> Vec<&Finding> {
    let found = report.findings.iter();
    found.filter(|finding| finding.id == "fd.leak").collect()
}

#[test]
fn go_askers_that_leak_together_are_one_finding() {
    let Some(_turn) = can_trace() else { return };
    for version in VERSIONS {
        let folder = TempDir::new().unwrap();
        let Some(program) = built(version, folder.path()) else {
            return;
        };
        let (report, truth) = go_workload::traced(&program, &["leak", "8"], &ALL);
        assert!(report.losses.complete, "{:?}", report.losses);
        let left = truth.get("left");
        assert_eq!((left, truth.get("reused")), (4 * CALLERS as u64, 0));
        let fds = report.fds.as_ref().unwrap();
        let told = |row: &&FdStack| row.verdict == Verdict::Leaking && row.confidence >= 0.25;
        let alone: Vec<&FdStack> = fds.by_stack.iter().filter(told).collect();
        assert!(alone.is_empty(), "Go {version}: told of one alone: {alone:#?}");
        let [sum] = &fds.shared[..] else {
            panic!("Go {version}: {:#?}", fds.shared)
        };
        assert_eq!((sum.verdict, sum.live), (Verdict::Leaking, left), "Go {version}");
        assert_eq!(
            sum.opened,
            truth.get("opened") + 1,
            "with the first, Go {version}"
        );
        let [finding] = leaks(&report)[..] else {
            panic!("Go {version}: {sum:#?} {:#?}", report.findings)
        };
        assert!(
            finding
                .title
                .starts_with("HTTP connections dialled for 200 functions leak (socket): 800 of 1,6"),
            "{}",
            finding.title
        );
        assert!(finding.severity >= Severity::High, "{finding:#?}");
        assert_eq!(finding.evidence["functions"], CALLERS);
        let most = finding.evidence["most"].as_array().unwrap();
        for share in most {
            assert!(share["function"].as_str().unwrap().starts_with("main.caller"));
            assert_eq!(share["live"], 4);
        }
        assert!(finding.detail.contains("main.caller"), "{}", finding.detail);
        assert!(!format!("{finding:?}").contains("main.closer"), "{finding:#?}");
        let stack = go_workload::functions(&report, finding.stack.as_deref());
        assert!(
            stack.iter().any(|name| name.starts_with("main.caller")),
            "{stack:?}"
        );
        assert_eq!(finding.evidence["opened_in"], sum.stack.clone().unwrap());
    }
}

#[test]
fn go_askers_that_all_close_are_no_finding() {
    let Some(_turn) = can_trace() else { return };
    for version in VERSIONS {
        let folder = TempDir::new().unwrap();
        let Some(program) = built(version, folder.path()) else {
            return;
        };
        let (report, truth) = go_workload::traced(&program, &["clean", "8"], &ALL);
        assert!(report.losses.complete, "{:?}", report.losses);
        assert_eq!(truth.get("left"), 0);
        let fds = report.fds.as_ref().unwrap();
        assert_eq!(fds.time_to_limit_ns, None);
        assert!(fds.shared.is_empty(), "Go {version}: {:#?}", fds.shared);
        assert!(leaks(&report).is_empty(), "Go {version}: {:#?}", report.findings);
    }
}

/// Every connection was dialled for the function that closes what it gets, and is kept open by the other one, which never dials: the
/// finding says what is known, for whom they were dialled, and not that this one leaks.
#[test]
fn go_askers_of_a_shared_client_are_not_said_to_leak() {
    let Some(_turn) = can_trace() else { return };
    for version in VERSIONS {
        let folder = TempDir::new().unwrap();
        let Some(program) = built(version, folder.path()) else {
            return;
        };
        let (report, truth) = go_workload::traced(&program, &["alternate", "8"], &ALL);
        let (left, opened, reused) = (truth.get("left"), truth.get("opened"), truth.get("reused"));
        assert_eq!(opened + reused, 2 * left);
        assert!(
            reused * 10 > left * 9,
            "{reused} of {left}: not the case that this is about"
        );
        let [finding] = leaks(&report)[..] else {
            panic!("Go {version}: {:#?}", report.findings)
        };
        assert!(
            finding
                .title
                .starts_with("HTTP connections dialled for main.finisher leak"),
            "{}",
            finding.title
        );
        assert!(
            finding
                .remedy
                .contains("or in another caller of the same http.Client"),
            "{}",
            finding.remedy
        );
        assert!(!finding.title.contains("finisher leaks"));
    }
}
