//! Goroutines that leak, each beside a twin that does not.

use super::goroutines::{ENDS, command};
use super::support::goroutines::{Frame, parse};
use super::support::snapshot::{Finding, Group, Snapshot};
use super::support::{Ctrace, Workload, can_trace, until};

/// The build with net/http.
const HTTP: (&str, &[&str]) = ("http", &["-tags=http"]);

/// How many of the quickest leak are waited for.
const ENOUGH: u64 = 197;

/// A way to leak.
struct Leak {
    /// Of the workload, which counts under the same name.
    mode: &'static str,
    /// Whose `go` statement it is.
    creator: &'static str,
    /// Where the leaked are stuck.
    function: &'static str,
    /// Goroutines for each that is counted.
    each: u64,
}

const LEAKS: [Leak; 3] = [
    Leak {
        mode: "leak-send",
        creator: "main.leakSend",
        function: "main.leakedAnswer",
        each: 1,
    },
    Leak {
        mode: "leak-ticker",
        creator: "main.leakReload",
        function: "main.tickLeaked",
        each: 1,
    },
    // One that reads from the connection, one that writes.
    Leak {
        mode: "leak-body",
        creator: "net/http.(*Transport).dialConn",
        function: "net/http.(*persistConn).readLoop",
        each: 2,
    },
];

/// Starts a server for the modes that need one, then these modes, which ask it.
fn started(version: &str, modes: &str) -> Option<(Workload, Workload)> {
    let mut server = Workload::started(command(version, HTTP, "serve")?);
    server.tell("go");
    let line = server.expect("listening", |line| line.starts_with("listening "));
    let mut command = command(version, HTTP, modes)?;
    command.env("SERVER", line.trim_start_matches("listening "));
    Some((server, Workload::started(command)))
}

fn ctrace(workload: &Workload) -> Ctrace {
    Ctrace::start(&["--only", "go", "--pid", &workload.pid.to_string()])
}

fn groups_of<'a>(snapshot: &'a Snapshot, creator: &str) -> Vec<&'a Group> {
    let groups = snapshot.go.by_stack.iter();
    groups
        .filter(|group| group.created_by.as_deref() == Some(creator))
        .collect()
}

fn count_of(snapshot: &Snapshot, creator: &str) -> u64 {
    groups_of(snapshot, creator).iter().map(|group| group.count).sum()
}

fn created_by(finding: &Finding) -> Option<&str> {
    finding.evidence.get("created_by")?.as_str()
}

const CLEAN: &str = "clean-send,clean-ticker,clean-body,pool,warm";

/// The workload alone: what it counts as leaked is there by the runtime's own account, with this creator and in this
/// function; and of what it does right nothing stays behind.
#[test]
fn goroutines_leak_as_the_workload_says() {
    for version in ENDS {
        let leaky = LEAKS.map(|leak| leak.mode).join(",");
        for (modes, quickest) in [(&*leaky, "leak-send"), (CLEAN, "clean-send")] {
            let Some((server, mut workload)) = started(version, modes) else {
                return;
            };
            workload.tell("go");
            until("something has leaked", || workload.counts().get(quickest) >= 23);
            let counts = workload.counts();
            let account = parse(&workload.account()).unwrap();
            server.quit();
            let created = |creator: &str| {
                let by = |frame: &Frame| frame.function == creator;
                let of = account.iter().filter(|g| g.created_by.as_ref().is_some_and(by));
                of.collect::<Vec<_>>()
            };
            for leak in &LEAKS {
                let of_leak = created(leak.creator);
                let stuck = of_leak
                    .iter()
                    .filter(|g| g.frames.iter().any(|frame| frame.function == leak.function));
                let (all, stuck) = (of_leak.len() as u64, stuck.count() as u64);
                let context = format!("Go {version}, {modes}: {} {all}, {stuck} stuck", leak.mode);
                if modes == CLEAN {
                    // One connection, which is used over and over.
                    assert!(all <= if leak.each == 2 { 2 } else { 0 }, "{context}");
                    continue;
                }
                let counted = counts.get(leak.mode);
                assert!(counted > 10, "{context}, {counts:?}");
                // One more may come before the account.
                assert!((counted..=counted + 1).contains(&stuck), "{context}, {counts:?}");
                assert_eq!(all, stuck * leak.each, "{context}");
            }
            let (pool, tickers) = (created("main.pool").len(), created("main.cleanReload").len());
            let wanted = if modes == CLEAN { (499, 1) } else { (0, 0) };
            assert_eq!((pool, tickers), wanted, "Go {version}, {modes}");
        }
    }
}

/// A worker nobody listens to, a ticker nobody stops, a body nobody closes: each is named with who started it, how many
/// there are and how fast they become more, and nothing else is accused.
#[test]
fn leaked_goroutines_are_found_with_their_creator() {
    let Some(_turn) = can_trace() else { return };
    for version in ENDS {
        let modes = LEAKS.map(|leak| leak.mode).join(",");
        let Some((server, mut workload)) = started(version, &modes) else {
            continue;
        };
        let ctrace = ctrace(&workload);
        workload.tell("go");
        until("enough has leaked", || {
            workload.counts().get("leak-send") >= ENOUGH
        });
        let before = workload.counts();
        let snapshot = Snapshot::of(ctrace.interrupted_document());
        let after = workload.counts();
        workload.quit();
        server.quit();

        let findings: Vec<&Finding> = snapshot.findings.iter().filter(|f| f.id == "go.leak").collect();
        let context = format!("Go {version}: {findings:#?}\n{}", snapshot.show());
        for leak in &LEAKS {
            let of_leak: Vec<_> = findings
                .iter()
                .filter(|finding| created_by(finding) == Some(leak.creator))
                .collect();
            assert!(!of_leak.is_empty(), "{} is not found: {context}", leak.mode);
            assert!(of_leak.len() as u64 <= leak.each, "{}: {context}", leak.mode);
            let stuck = of_leak
                .iter()
                .find(|finding| snapshot.has(finding.stack.as_deref(), leak.function));
            let finding = stuck.unwrap_or_else(|| panic!("nobody stuck in {}: {context}", leak.function));
            // Without the path of the package, which takes the room of what matters.
            let short = leak.creator.rsplit('/').next().unwrap();
            assert!(finding.title.contains(short), "{context}");
            assert!(
                !matches!(&*finding.severity, "info" | "low"),
                "{}: {context}",
                leak.mode
            );

            // The last snapshot may be a moment older than what was counted before the end.
            let (low, high) = (before.get(leak.mode) * 8 / 10, after.get(leak.mode));
            let count = count_of(&snapshot, leak.creator);
            assert!(
                (low * leak.each..=high * leak.each).contains(&count),
                "{}: {count} alive, {low} to {high} leaked: {context}",
                leak.mode
            );
            // By the workload's own clock, whatever became of its pace on this machine.
            let pace = |number: u64| number as f64 * 1e9 / before.get("elapsed_ns") as f64;
            let wanted = pace(before.get(leak.mode));
            let told = finding.evidence["growth_per_s"].as_f64().unwrap();
            let per_leak = told / wanted;
            let each = leak.each as f64;
            assert!(
                (0.8..=1.2 * each).contains(&per_leak),
                "{}: {told} a second, {wanted} leaked a second: {context}",
                leak.mode
            );
            // What they are stuck on, read from memory.
            match leak.mode {
                "leak-send" => {
                    let on = &finding.evidence["waits_on"];
                    assert_eq!(on["objects"], on["known"], "each has its own: {context}");
                    assert_eq!(on["most"][0]["channel"]["capacity"], 0, "{context}");
                }
                "leak-body" => {
                    let peers = &finding.evidence["peers"];
                    assert_eq!(peers.as_array().map(Vec::len), Some(1), "{context}");
                    let host = peers[0]["host"].as_str().unwrap_or_default();
                    assert!(host.starts_with("127.0.0.1:"), "{context}");
                }
                _ => {}
            }
            let verdicts: Vec<&str> = groups_of(&snapshot, leak.creator)
                .iter()
                .map(|group| &*group.verdict)
                .collect();
            assert!(verdicts.contains(&"leaking"), "{verdicts:?}: {context}");
        }
        let innocent: Vec<_> = findings
            .iter()
            .filter(|finding| LEAKS.iter().all(|leak| created_by(finding) != Some(leak.creator)))
            .collect();
        assert!(innocent.is_empty(), "accused: {innocent:#?}: {context}");
    }
}

/// The same work done right, a busy pool of a known size, and one that fills up and then is full: nobody is accused.
#[test]
fn goroutines_that_do_not_leak_are_not_accused() {
    let Some(_turn) = can_trace() else { return };
    for version in ENDS {
        let Some((server, mut workload)) = started(version, CLEAN) else {
            continue;
        };
        let ctrace = ctrace(&workload);
        workload.tell("go");
        until("enough was done", || {
            workload.counts().get("clean-send") >= ENOUGH
        });
        let done = workload.counts();
        let snapshot = Snapshot::of(ctrace.interrupted_document());
        workload.quit();
        server.quit();

        let context = snapshot.show();
        for key in ["clean-ticker", "clean-body", "jobs", "ticks", "warmed"] {
            assert!(
                done.get(key) >= 97,
                "the workload did nothing for {key}: {done:?}"
            );
        }
        assert_eq!(done.get("warmed"), 97);
        assert_eq!(count_of(&snapshot, "main.pool"), 499, "Go {version}: {context}");
        assert_eq!(count_of(&snapshot, "main.warmUp"), 97, "Go {version}: {context}");
        assert!(
            count_of(&snapshot, "main.cleanReload") <= 2,
            "Go {version}: {context}"
        );
        let alarms = snapshot.alarms();
        assert!(alarms.is_empty(), "Go {version}: {alarms:#?}\n{context}");
        let leaking: Vec<_> = snapshot
            .go
            .by_stack
            .iter()
            .filter(|g| g.verdict == "leaking")
            .collect();
        assert!(leaking.is_empty(), "Go {version}: {leaking:#?}\n{context}");
    }
}
