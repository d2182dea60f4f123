//! Descriptors that goroutines make for others: the row is that of who asked, with exact numbers, beside those that close.

use std::process::Command;

use tempfile::TempDir;
use tracer::report::model::{FdStack, Report, Severity, Verdict};

use super::support::{Ctrace, Workload, can_trace, go, go_workload};

/// Before goroutines knew their parent, the first that did, and the newest; with the linker's ways to place a thread's goroutine.
const BUILDS: [(&str, &[&str]); 5] = [
    ("system", &[]),
    (go::VERSIONS[0], &["-buildmode=pie"]),
    (go::VERSIONS[1], &["-tags=cgo"]),
    (go::VERSIONS[3], &["-ldflags=-s -w"]),
    (
        go::VERSIONS[3],
        &["-buildmode=pie", "-tags=cgo", "-ldflags=-s -w"],
    ),
];

fn rows(report: &Report) -> &[FdStack] {
    report.fds.as_ref().map_or(&[], |fds| &fds.by_stack)
}

/// Rows of a call with this function in their stack, or in the stack of one who asked for it.
fn rows_of<'a>(report: &'a Report, call: &str, function: &str) -> Vec<&'a FdStack> {
    let has = |stack: Option<&str>| go_workload::functions(report, stack).contains(&function);
    rows(report)
        .iter()
        .filter(|row| row.call.as_deref() == Some(call))
        .filter(|row| has(row.stack.as_deref()) || row.asked_by.iter().any(|by| has(by.stack.as_deref())))
        .collect()
}

/// Made, ended and open of these rows.
fn sums(rows: &[&FdStack]) -> (u64, u64, u64) {
    let sum = |of: fn(&FdStack) -> u64| rows.iter().map(|row| of(row)).sum::<u64>();
    (sum(|row| row.opened), sum(|row| row.closed), sum(|row| row.live))
}

/// The finding about descriptors, of which there is one.
fn leak(report: &Report) -> &tracer::report::model::Finding {
    let found: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.id == "fd.leak")
        .collect();
    let &[finding] = &found[..] else {
        panic!("{:#?}", report.findings)
    };
    finding
}

fn makers(row: &FdStack) -> Vec<&str> {
    row.asked_by
        .iter()
        .map(|by| by.created_by.as_deref().unwrap_or("?"))
        .collect()
}

fn assert_sound(report: &Report) {
    assert!(report.losses.complete, "{:?}", report.losses);
    assert!(report.hints.is_empty(), "{:?}", report.hints);
}

/// Three functions get pages by the same client; the one that drops bodies has a row of its own, though the call is made by a
/// goroutine that Go's library makes.
#[test]
fn go_descriptors_are_those_of_who_asked() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in BUILDS {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gosockets", version, args, folder.path()) else {
            return;
        };
        let (report, truth) = go_workload::traced(&program, &["http"], &[]);
        assert_sound(&report);
        let (leaked, closed, later) = (truth.get("leaked"), truth.get("closed"), truth.get("later"));
        let leaking = rows_of(&report, "socket", "main.leakBody");
        let &[row] = &leaking[..] else {
            panic!("Go {version} {args:?}: {leaking:#?}")
        };
        assert_eq!(
            (row.opened, row.closed, row.live, row.verdict),
            (leaked, 0, leaked, Verdict::Leaking),
            "Go {version} {args:?}"
        );
        let [maker] = makers(row)[..] else {
            panic!("Go {version} {args:?}: {row:#?}")
        };
        assert!(
            ["startDialConnForLocked", "queueForDial"]
                .iter()
                .any(|function| maker == format!("net/http.(*Transport).{function}")),
            "Go {version} {args:?}: {maker}"
        );
        let stack = go_workload::functions(&report, row.asked_by[0].stack.as_deref());
        for function in [
            "net/http.(*Client).Get",
            "main.get",
            "main.leakBody",
            "runtime.goexit",
        ] {
            assert!(stack.contains(&function), "Go {version} {args:?}: {stack:?}");
        }
        let closing = rows_of(&report, "socket", "main.closeBody");
        assert_eq!(sums(&closing), (closed, closed, 0), "Go {version} {args:?}");
        let closing = rows_of(&report, "socket", "main.closeLater");
        assert_eq!(sums(&closing), (later, later, 0), "Go {version} {args:?}");
        let finding = leak(&report);
        assert!(
            finding
                .title
                .starts_with("HTTP connections dialled for main.leakBody leak (socket)"),
            "Go {version} {args:?}: {}",
            finding.title
        );
        assert!(finding.severity >= Severity::High, "{finding:#?}");
        assert!(finding.remedy.contains("body"), "{}", finding.remedy);
        assert_eq!(finding.stack, row.asked_by[0].stack);
    }
}

/// The twin in which everybody closes has nothing to say.
#[test]
fn go_descriptors_that_are_closed_are_no_finding() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("gosockets", go::VERSIONS[3], &["-ldflags=-s -w"], folder.path())
    else {
        return;
    };
    let (report, truth) = go_workload::traced(&program, &["clean"], &[]);
    assert_sound(&report);
    for (function, key) in [("main.closeBody", "closed"), ("main.closeLater", "later")] {
        let count = truth.get(key);
        assert_eq!(sums(&rows_of(&report, "socket", function)), (count, count, 0));
    }
    let found = report.findings.iter().filter(|finding| finding.id == "fd.leak");
    assert_eq!(found.count(), 0, "{:#?}", report.findings);
}

/// A host with addresses of both kinds is dialled by two goroutines, made by the one that the client's library makes.
#[test]
fn go_descriptors_are_followed_through_every_goroutine() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gosockets", version, &[], folder.path()) else {
            return;
        };
        let (report, truth) = go_workload::traced(&program, &["dual"], &[]);
        assert_sound(&report);
        let (leaked, closed, later) = (truth.get("leaked"), truth.get("closed"), truth.get("later"));
        let leaking = rows_of(&report, "socket", "main.leakBody");
        // Without the other kind of address there is nothing to try at once.
        let both = leaking.iter().any(|row| row.asked_by.len() > 1);
        let has_both = std::net::TcpListener::bind("[::1]:0").is_ok();
        assert_eq!(both, has_both, "Go {version}: {leaking:#?}");
        for row in &leaking {
            if let [racer, dialler] = makers(row)[..] {
                assert_eq!(racer, "net.(*sysDialer).dialParallel");
                assert!(dialler.starts_with("net/http.(*Transport)."), "{dialler}");
            }
        }
        let (opened, _, live) = sums(&leaking);
        assert!(opened >= leaked, "{opened}");
        assert_eq!(live, leaked, "Go {version}");
        for (function, count) in [("main.closeBody", closed), ("main.closeLater", later)] {
            let (opened, closed, live) = sums(&rows_of(&report, "socket", function));
            assert!(opened >= count, "{function}: {opened}");
            assert_eq!((closed, live), (opened, 0), "Go {version}: {function}");
        }
        let title = &leak(&report).title;
        assert!(
            title.starts_with("HTTP connections dialled for main.leakBody leak"),
            "{title}"
        );
    }
}

/// Goroutines that dial by themselves: the function is in their own stack, and their creator is told.
#[test]
fn go_descriptors_of_raw_dials_name_the_creator() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gosockets", version, &["-ldflags=-s -w"], folder.path())
        else {
            return;
        };
        let (report, truth) = go_workload::traced(&program, &["dial"], &[]);
        assert_sound(&report);
        let (leaked, closed) = (truth.get("leaked"), truth.get("closed"));
        let leaking = rows_of(&report, "socket", "main.dialAndForget");
        assert_eq!(sums(&leaking), (leaked, 0, leaked), "Go {version}");
        for row in &leaking {
            // Nothing is known but what the goroutine's own descriptor says.
            assert!(row.asked_by.iter().all(|by| by.stack.is_none()), "{row:#?}");
            assert_eq!(makers(row), ["main.apart.func1"], "Go {version}");
        }
        let closing = rows_of(&report, "socket", "main.dialAndClose");
        assert_eq!(sums(&closing), (closed, closed, 0), "Go {version}");
        let title = &leak(&report).title;
        assert!(title.starts_with("main.dialAndForget leaks"), "{title}");
    }
}

/// Without probes in the program, and without parents' numbers: the creator, and nothing that would be a guess.
#[test]
fn go_descriptors_without_uprobes_say_the_creator_only() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gosockets", version, &[], folder.path()) else {
            return;
        };
        let (report, truth) = go_workload::traced(&program, &["http"], &["--no-uprobes"]);
        assert_sound(&report);
        assert!(report.probes.iter().all(|probe| probe.attach != "uprobe"));
        let dials: Vec<&FdStack> = rows(&report)
            .iter()
            .filter(|row| row.call.as_deref() == Some("socket"))
            .collect();
        let all = truth.get("leaked") + truth.get("closed") + truth.get("later");
        assert_eq!(sums(&dials).0, all);
        for row in dials {
            assert!(row.asked_by.iter().all(|by| by.stack.is_none()), "{row:#?}");
            let [maker] = makers(row)[..] else {
                panic!("{row:#?}")
            };
            assert!(maker.starts_with("net/http.(*Transport)."), "{maker}");
        }
    }
}

/// `--go-creators`: the makers' stacks for whatever goroutines make, and through goroutines that have ended.
#[test]
fn go_creators_are_told_at_every_go_statement() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[0], go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gosockets", version, &["-ldflags=-s -w"], folder.path())
        else {
            return;
        };
        let (report, truth) = go_workload::traced(&program, &["files"], &["--go-creators"]);
        assert_sound(&report);
        for (function, opened, live) in [
            ("main.openAndForget", truth.get("leaked"), truth.get("leaked")),
            ("main.openAndClose", truth.get("closed"), 0),
        ] {
            let of = rows_of(&report, "openat", function);
            assert_eq!(
                sums(&of),
                (opened, opened - live, live),
                "Go {version}: {function}"
            );
            for row in of {
                let stack =
                    go_workload::functions(&report, row.asked_by.first().and_then(|by| by.stack.as_deref()));
                assert!(stack.contains(&"main.apart.func1"), "Go {version}: {row:#?}");
                // Those of the jobs were made by another goroutine; the first is the program's own.
                assert!(
                    stack.contains(&"main.job") == (row.asked_by.len() > 1),
                    "Go {version}: {stack:?}"
                );
            }
        }
        let title = &leak(&report).title;
        assert!(title.starts_with("main.openAndForget leaks"), "{title}");
    }
}

/// With `--go-creators`, goroutines too are those of who asked: the two that each connection keeps are made by a goroutine that ended.
#[test]
fn go_creators_of_goroutines_that_stay_are_told() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gosockets", version, &[], folder.path()) else {
            return;
        };
        let (report, truth) = go_workload::traced(&program, &["http"], &["--go-creators"]);
        assert_sound(&report);
        let leaked = truth.get("leaked");
        let leaking = rows_of(&report, "socket", "main.leakBody");
        assert_eq!(sums(&leaking), (leaked, 0, leaked), "Go {version}");
        let go = report.go.as_ref().unwrap();
        for function in ["readLoop", "writeLoop"] {
            let function = format!("net/http.(*persistConn).{function}");
            let loops = go.by_stack.iter().filter(|row| {
                let stack = go_workload::functions(&report, row.stack.as_deref());
                stack.contains(&function.as_str())
            });
            let loops: Vec<_> = loops.collect();
            assert_eq!(
                loops.iter().map(|row| row.count).sum::<u64>(),
                leaked,
                "{loops:#?}"
            );
            for row in loops {
                let stacks = row
                    .asked_by
                    .iter()
                    .map(|by| go_workload::functions(&report, by.stack.as_deref()));
                let stacks: Vec<_> = stacks.collect();
                assert!(
                    stacks.len() >= 2
                        && stacks[0].contains(&"net/http.(*Transport).dialConn")
                        && stacks[1].contains(&"main.leakBody"),
                    "Go {version}: {stacks:#?}"
                );
            }
        }
    }
}

const PYTHON: &str = r#"
import os, sys, time
kept = []
def leak(): kept.append(os.open("/dev/null", os.O_RDONLY))
def close(): os.close(os.open("/dev/null", os.O_RDONLY))
print("ready", os.getpid(), flush=True)
for line in sys.stdin:
    if line.strip() == "quit": break
    for i in range(97):
        leak()
        if i < 41: close()
        time.sleep(0.05)
    print("truth leaked 97\ntruth closed 41\ndone", flush=True)
"#;

/// A program that has no goroutines is told as ever, with the same options.
#[test]
fn go_creators_of_other_programs_are_nobody() {
    let Some(_turn) = can_trace() else { return };
    let mut workload = Workload::started({
        let mut command = Command::new("python3");
        command.args(["-c", PYTHON]);
        command
    });
    let pid = workload.pid.to_string();
    let ctrace = Ctrace::start(&["--pid", &pid, "--go-creators"]);
    let truth = workload.go();
    let report = ctrace.interrupted();
    workload.quit();
    let made: Vec<&FdStack> = rows(&report)
        .iter()
        .filter(|row| row.call.as_deref() == Some("openat"))
        .collect();
    let (leaked, closed) = (truth.get("leaked"), truth.get("closed"));
    assert_eq!(sums(&made), (leaked + closed, closed, leaked));
    assert!(rows(&report).iter().all(|row| row.asked_by.is_empty()));
    assert!(report.probes.iter().all(|probe| probe.attach != "uprobe"));
}

/// A program that makes goroutines as fast as it can is not watched all the time, and the report says so.
#[test]
fn go_creators_rest_when_they_cost_too_much() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("gosockets", go::VERSIONS[3], &[], folder.path()) else {
        return;
    };
    let options = ["--only", "fds", "--go-creators"];
    let (report, truth) = go_workload::traced(&program, &["spin", "6"], &options);
    let hits = report.probes.iter().find(|probe| probe.name == "go_started");
    let hits = hits.and_then(|probe| probe.hits).unwrap_or_default();
    let made = truth.get("made");
    assert!(hits * 2 < made, "{hits} of {made}");
    let creators = report
        .overhead
        .go_probes
        .iter()
        .find(|probes| probes.group == "creators")
        .unwrap();
    println!("{hits} of {made}; {creators:?}");
    assert!(
        creators.covered_ns < report.window.duration_ns / 2,
        "{creators:?}"
    );
    assert!(creators.cpu_percent.unwrap() < 100.0, "{creators:?}");
}
