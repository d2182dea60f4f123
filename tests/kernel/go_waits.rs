//! Everything that goroutines wait for (`--go-waits`): exact numbers, the channel's address, both sides' code, the same shares as the
//! runtime's own profile tells, and what is done when it costs too much.

use std::process::Command;

use tempfile::TempDir;
use tracer::report::model::{GoProbes, GoWait, Lock, LockKind, Report, Severity};

use super::support::ctrace::BINARY;
use super::support::workload::Truth;
use super::support::{Ctrace, can_trace, ctrace, go, go_workload};

/// One of each way to enter the functions that are probed, the newest, and how they are linked.
const BUILDS: [(&str, &[&str]); 4] = [
    ("system", &[]),
    (go::VERSIONS[0], &["-ldflags=-s -w"]),
    (go::VERSIONS[2], &["-buildmode=pie"]),
    (go::VERSIONS[3], &[]),
];
/// Far more than it costs: nothing is left out.
const ROOM: [&str; 4] = ["--go-waits", "--budget", "90%", "--min-wait=1us"];

/// Whether a stack has a function.
fn has(report: &Report, stack: Option<&str>, function: &str) -> bool {
    let frames = stack.and_then(|stack| report.stacks.get(stack));
    frames
        .into_iter()
        .flatten()
        .any(|frame| frame.function.as_deref() == Some(function))
}

fn channels(report: &Report) -> impl Iterator<Item = &Lock> {
    let locks = report.locks.iter().flatten();
    locks.filter(|lock| matches!(lock.kind, LockKind::GoChan | LockKind::GoSelect))
}

/// The one row of this kind that was waited for in a function.
fn row<'a>(report: &'a Report, kind: LockKind, waiter: &str) -> &'a Lock {
    let found: Vec<&Lock> = channels(report)
        .filter(|lock| lock.kind == kind)
        .filter(|lock| {
            let stacks = lock.waiters.iter().map(|row| row.stack.as_deref());
            stacks.into_iter().any(|stack| has(report, stack, waiter))
        })
        .collect();
    let &[lock] = &found[..] else {
        panic!("{kind:?} waited for in {waiter}: {found:#?}")
    };
    lock
}

/// Every wait was in one function and ended by another, and none was shorter than it can have been.
fn assert_channel(report: &Report, truth: &Truth, kind: LockKind, key: &str, sides: (&str, &str)) {
    let lock = row(report, kind, sides.0);
    let waits = truth.get(&format!("{key}.waits"));
    assert_eq!((lock.waits, lock.wait.count), (waits, waits), "{lock:#?}");
    assert_eq!(lock.outcomes.handed_over, waits, "{lock:#?}");
    let address = truth.find(&format!("{key}.address"));
    assert_eq!(
        lock.address,
        address.map(|address| format!("{address:#x}")),
        "{key}"
    );
    assert!(
        lock.wait.min_ns >= truth.get("hold_ns"),
        "{key}: {} ns is less than it was let wait for",
        lock.wait.min_ns
    );
    assert!(!lock.idle, "{lock:#?}");
    let waited = lock
        .waiters
        .iter()
        .filter(|row| has(report, row.stack.as_deref(), sides.0));
    let woken = lock
        .wakers
        .iter()
        .filter(|row| has(report, row.stack.as_deref(), sides.1));
    let counts = (
        waited.map(|row| row.waits).sum::<u64>(),
        woken.map(|row| row.wakes).sum::<u64>(),
    );
    assert_eq!(counts, (waits, waits), "{sides:?}: {lock:#?}");
}

/// Waits for a reason in a function, in `go.waits`.
fn place<'a>(report: &'a Report, reason: &str, function: &str) -> &'a GoWait {
    let go = report.go.as_ref().unwrap();
    let found: Vec<&GoWait> = go
        .waits
        .iter()
        .filter(|row| row.wait.is_some() && row.wait_reason.as_deref() == Some(reason))
        .filter(|row| has(report, row.stack.as_deref(), function))
        .collect();
    let &[row] = &found[..] else {
        panic!("{reason} in {function}: {found:#?}")
    };
    row
}

fn assert_place(report: &Report, truth: &Truth, reason: &str, function: &str, key: &str) {
    let row = place(report, reason, function);
    let wait = row.wait.as_ref().unwrap();
    let waits = truth.get(&format!("{key}.waits"));
    assert_eq!((row.count, wait.count), (Some(waits), waits), "{row:#?}");
    assert!(wait.min_ns >= truth.get("hold_ns"), "{row:#?}");
    assert_eq!(row.status, "waiting");
}

fn probes<'a>(report: &'a Report, group: &str) -> Option<&'a GoProbes> {
    report
        .overhead
        .go_probes
        .iter()
        .find(|probes| probes.group == group)
}

/// Probes in the program, but for those that tell who asks for descriptors.
fn uprobes(report: &Report) -> usize {
    let others = ["go_asked", "go_started"];
    let probes = report.probes.iter();
    probes
        .filter(|probe| probe.attach == "uprobe" && !others.contains(&&*probe.name))
        .count()
}

/// Every wait with its channel, its waiter and who ended it, however the program is linked and whatever Go made it.
#[test]
fn go_waits_count_every_wait_and_name_both_sides() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in BUILDS {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gowaits", version, args, folder.path()) else {
            continue;
        };
        let (report, truth) = go_workload::traced(&program, &[], &ROOM);
        println!("Go {version} {args:?}: {:?}", report.overhead.go_probes);
        let waits = probes(&report, "waits").unwrap();
        assert_eq!((waits.parts, waits.cut), (1, Some(0)), "{waits:?}");
        let sides = ("main.sendOrder", "main.takeOrder");
        assert_channel(&report, &truth, LockKind::GoChan, "send", sides);
        let sides = ("main.awaitAnswer", "main.giveAnswer");
        assert_channel(&report, &truth, LockKind::GoChan, "receive", sides);
        let sides = ("main.awaitEither", "main.giveSecond");
        assert_channel(&report, &truth, LockKind::GoSelect, "select", sides);
        assert_place(&report, &truth, "chan send", "main.sendOrder", "send");
        assert_place(&report, &truth, "chan receive", "main.awaitAnswer", "receive");
        assert_place(&report, &truth, "select", "main.awaitEither", "select");
        assert_place(&report, &truth, "sleep", "main.nap", "sleep");
        assert_place(&report, &truth, "IO wait", "main.readByte", "read");
        let contended = |id: &str| {
            report
                .findings
                .iter()
                .any(|finding| finding.lock.as_deref() == Some(id))
        };
        assert!(
            channels(&report).all(|lock| !contended(&lock.id)),
            "{:#?}",
            report.findings
        );
        assert!(report.losses.complete, "{:?}", report.losses);
        assert!(report.hints.is_empty(), "{:?}", report.hints);
        assert_eq!(uprobes(&report), 6, "{:?}", report.probes);
    }
}

/// A wait for a lock is one wait, whoever sees it.
#[test]
fn go_waits_leave_locks_to_the_probes_on_locks() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    for version in ["system", go::VERSIONS[3]] {
        let Some(program) = go_workload::built("golocks", version, &[], folder.path()) else {
            continue;
        };
        let (report, truth) = go_workload::traced(&program, &[], &ROOM);
        let kinds = [
            (LockKind::GoMutex, truth.get("mutex.waits")),
            (
                LockKind::GoRwmutex,
                truth.get("rwmutex.readers") + truth.get("rwmutex.writers"),
            ),
            (LockKind::GoWaitgroup, truth.get("waitgroup.waits")),
            (LockKind::GoCond, truth.get("cond.waits")),
        ];
        for (kind, waits) in kinds {
            let rows = report.locks.iter().flatten().filter(|lock| lock.kind == kind);
            assert_eq!(rows.map(|lock| lock.waits).sum::<u64>(), waits, "{kind:?}");
        }
        let row = row(&report, LockKind::GoChan, "main.waitForResult");
        assert_eq!(row.waits, truth.get("channel.waits"));
        let twice = report.go.iter().flat_map(|go| &go.waits).filter(|row| {
            let reason = row.wait_reason.as_deref().unwrap_or_default();
            row.wait.is_some() && (reason == "semacquire" || reason.starts_with("sync."))
        });
        assert_eq!(twice.count(), 0);
    }
}

/// Who waits for work, ticks and connections is idle, and nothing is wrong.
#[test]
fn go_waits_of_idle_goroutines_are_silent() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gowaits", version, &[], folder.path()) else {
            continue;
        };
        let (report, _) = go_workload::traced(&program, &["clean"], &ROOM);
        let ticker = row(&report, LockKind::GoChan, "main.onEveryTick");
        assert!(ticker.waits > 20 && ticker.idle, "{ticker:#?}");
        // The last time it was not a timer that ended its wait.
        let either = row(&report, LockKind::GoSelect, "main.onTick");
        assert!(either.waits > 20, "{either:#?}");
        let loud: Vec<_> = report
            .findings
            .iter()
            .filter(|finding| finding.lock.is_some() || finding.id.starts_with("go."))
            .filter(|finding| finding.severity >= Severity::Low)
            .filter(|finding| {
                let id = finding.lock.as_deref();
                channels(&report).any(|lock| Some(&*lock.id) == id) || finding.lock.is_none()
            })
            .collect();
        assert!(loud.is_empty(), "{loud:#?}");
    }
}

const PATHS: [&str; 3] = ["slowPath", "middlePath", "quickPath"];

/// Parts of a sum, in percent.
fn shares(parts: [u64; 3]) -> [f64; 3] {
    let sum = parts.iter().sum::<u64>().max(1) as f64;
    parts.map(|part| part as f64 * 100.0 / sum)
}

/// Under load, against the runtime's own profile in the same run: who waited how long.
#[test]
fn go_waits_have_the_shares_that_the_runtime_measures() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in BUILDS {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gowaits", version, args, folder.path()) else {
            continue;
        };
        let (report, truth) =
            go_workload::traced(&program, &["hard", "3"], &[&ROOM[..], &["--only", "go"]].concat());
        let waits = probes(&report, "waits").unwrap();
        assert_eq!(waits.parts, 1, "{waits:?}");
        let waited = PATHS.map(|path| {
            let function = format!("main.{path}");
            let rows = channels(&report).flat_map(|lock| &lock.waiters);
            let here = rows.filter(|row| has(&report, row.stack.as_deref(), &function));
            here.map(|row| row.total_ns).sum()
        });
        let block = PATHS.map(|path| truth.get(&format!("block.{path}.cycles")));
        println!(
            "Go {version}: waiters {:.1?}, by the runtime {:.1?}",
            shares(waited),
            shares(block)
        );
        for (ours, theirs) in shares(waited).into_iter().zip(shares(block)) {
            assert!((ours - theirs).abs() < 5.0, "{ours} % and {theirs} %");
        }
        assert!(report.losses.complete, "{:?}", report.losses);
    }
}

/// A program that does nothing but park: the probes come and go, and the report says how much they saw. What it costs is printed, as a
/// machine shared with others gives no number to rely on.
#[test]
fn go_waits_that_cost_too_much_are_seen_in_part() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("gowaits", go::VERSIONS[3], &[], folder.path()) else {
        return;
    };
    let per_op = |truth: &Truth, key: &str| truth.get(key) as f64 / truth.get("ops").max(1) as f64;
    let mut alone = go_workload::started(&program, &["bench", "4"]);
    let without = alone.go();
    alone.quit();
    let options = [&["--go-waits"][..], &["--go-waits", "--budget", "10000%"]];
    for options in options {
        let (report, with) =
            go_workload::traced(&program, &["bench", "4"], &[options, &["--only", "go"]].concat());
        let waits = probes(&report, "waits").unwrap();
        let seen: u64 = channels(&report).map(|lock| lock.waits).sum();
        println!(
            "{options:?}: throughput {:.3} of untraced, CPU time for each round {:.0} ns, untraced {:.0} ns; {seen} waits of {}; {waits:?}",
            per_op(&without, "wall_ns") / per_op(&with, "wall_ns"),
            per_op(&with, "cpu_ns"),
            per_op(&without, "cpu_ns"),
            2 * with.get("ops"),
        );
        for probe in report.probes.iter().filter(|probe| probe.attach == "uprobe") {
            let (hits, run_ns) = (probe.hits.unwrap_or(0), probe.run_ns.unwrap_or(0));
            println!("  {}: {hits} hits, {} ns each", probe.name, run_ns / hits.max(1));
        }
        assert!(seen > 0, "{waits:?}");
        if waits.parts == 1 && waits.cut == Some(0) {
            let throughout = row(&report, LockKind::GoChan, "main.waitThroughout");
            assert_eq!(throughout.waits, 1, "{throughout:#?}");
        }
        if waits.percent.is_some_and(|percent| percent < 3.0) {
            // Nothing is scaled up.
            assert!(waits.covered_ns < report.window.duration_ns / 2, "{waits:?}");
            assert!(seen < with.get("ops"), "{seen}");
        }
        let locks = probes(&report, "locks").unwrap();
        assert_eq!(
            locks.parts, 1,
            "locks are not taken away for what others cost: {locks:?}"
        );
    }
}

/// They come back, and what they see then has begun since: no wait lasts from one part to another.
#[test]
fn go_waits_are_seen_in_several_parts() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gowaits", version, &[], folder.path()) else {
            continue;
        };
        let options = ["--go-waits", "--budget", "40%", "--only", "go"];
        let mut workload = go_workload::started(&program, &["bench", "9"]);
        let pid = workload.pid.to_string();
        let ctrace = Ctrace::start(&[&["--pid", &pid], &options[..]].concat());
        let truth = workload.go();
        let report = ctrace.interrupted();
        workload.quit();
        let waits = probes(&report, "waits").unwrap();
        let seen: u64 = channels(&report).map(|lock| lock.waits).sum();
        println!(
            "Go {version}: {seen} waits of {}; {waits:?}; {:?}",
            2 * truth.get("ops"),
            report.overhead.budget
        );
        assert!(
            waits.parts >= 2 && waits.covered_ns < report.window.duration_ns,
            "{waits:?}"
        );
        // Of each part the last waits of two goroutines, and of two CPUs what was just being told.
        assert!(waits.cut.unwrap() <= 4 * u64::from(waits.parts), "{waits:?}");
        for lock in channels(&report) {
            assert!(lock.wait.max_ns <= waits.covered_ns, "{lock:#?} in {waits:?}");
        }
        // One began before the first gap, and ended after the last: that it was one wait is not known, so it is none.
        let throughout = channels(&report).filter(|lock| {
            let mut stacks = lock.waiters.iter().map(|row| row.stack.as_deref());
            stacks.any(|stack| has(&report, stack, "main.waitThroughout"))
        });
        assert_eq!(throughout.count(), 0);
        // What is left out to hold the cost is left out by taking the probes away, not by recording less.
        let budget = report.overhead.budget.as_ref().unwrap();
        assert_eq!(budget.one_in, 1, "{budget:?}");
    }
}

/// A small budget takes away the probes on locks, too, when they alone break it.
#[test]
fn go_locks_that_cost_too_much_are_seen_in_part() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("golocks", go::VERSIONS[3], &[], folder.path()) else {
        return;
    };
    let options = ["--budget", "0.2%", "--only", "go"];
    let (report, _) = go_workload::traced(&program, &["bench", "4", "8"], &options);
    let locks = probes(&report, "locks").unwrap();
    println!("{locks:?}");
    assert!(probes(&report, "waits").is_none());
    assert!(locks.covered_ns < report.window.duration_ns / 2, "{locks:?}");
    assert!(uprobes(&report) > 0, "what was attached is listed");
}

/// Without probes in programs nothing can be told; said in one line.
#[test]
fn go_waits_need_probes_in_programs() {
    for args in [
        &["--go-waits", "--no-uprobes"][..],
        &["--go-waits", "--only", "fds"],
    ] {
        let ended = ctrace::run(Command::new(BINARY).args(args).args(["--pid", "1"]));
        assert_eq!(ended.status.code(), Some(2), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.trim().lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("--go-waits"), "{}", ended.stderr);
    }
}

/// A program that makes a channel for each request: its locks are whole beside them, and each place is one row.
#[test]
fn go_waits_for_many_channels_leave_locks_whole() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gochans", version, &[], folder.path()) else {
            continue;
        };
        let (report, truth) = go_workload::traced(&program, &[], &ROOM);
        let mutexes = report.locks.iter().flatten();
        let mutexes: Vec<&Lock> = mutexes.filter(|lock| lock.kind == LockKind::GoMutex).collect();
        let &[lock] = &mutexes[..] else {
            panic!("Go {version}: {mutexes:#?}")
        };
        let waits = truth.get("mutex.waits");
        assert_eq!((lock.waits, lock.outcomes.handed_over), (waits, waits));
        // Its own, or that of the word in it where the program has no code that tells how far in the word is.
        let address = lock
            .address
            .as_deref()
            .and_then(|address| address.strip_prefix("0x"));
        let address = u64::from_str_radix(address.unwrap(), 16).unwrap();
        assert!(
            (0..8).contains(&address.wrapping_sub(truth.get("mutex.address"))),
            "{lock:#?}"
        );
        assert!(lock.wait.min_ns >= truth.get("hold_ns"), "{lock:#?}");
        let asked: Vec<&Lock> = channels(&report)
            .filter(|lock| {
                let mut stacks = lock.waiters.iter().map(|row| row.stack.as_deref());
                stacks.any(|stack| has(&report, stack, "main.request"))
            })
            .collect();
        let seen: u64 = asked.iter().map(|lock| lock.waits).sum();
        println!(
            "Go {version}: {seen} waits for {} channels in {} rows; {:?}; {:?}",
            truth.get("channels"),
            asked.len(),
            report.overhead.go_probes,
            report.losses
        );
        assert!(seen > 0 && seen <= truth.get("channels"));
        // What is not told apart is one row: that of the function.
        assert!(asked.len() <= 2, "{asked:#?}");
        // Stacks may be lost at such a rate; what is about the mutex was not.
        assert_eq!(report.losses.folded, 0, "{:?}", report.losses);
    }
}
