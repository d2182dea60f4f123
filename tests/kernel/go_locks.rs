//! Go's own locks: exact numbers of hand-overs, both sides' code, and the same shares as the runtime's own profiles tell.

use std::fs;
use std::os::unix::fs::FileExt as _;

use tempfile::TempDir;
use tracer::report::model::{Lock, LockKind, Report, Severity};

use super::support::workload::Truth;
use super::support::{Ctrace, can_trace, go, go_workload, until};

/// One of each way to enter a function, and the newest.
const VERSIONS: [&str; 3] = ["system", go::VERSIONS[0], go::VERSIONS[3]];
/// All of them.
const ALL: [&str; 5] = [
    "system",
    go::VERSIONS[0],
    go::VERSIONS[1],
    go::VERSIONS[2],
    go::VERSIONS[3],
];

fn go_locks(report: &Report) -> Vec<&Lock> {
    let is_go = |lock: &&Lock| {
        matches!(
            lock.kind,
            LockKind::GoMutex | LockKind::GoRwmutex | LockKind::GoWaitgroup | LockKind::GoCond
        )
    };
    report.locks.iter().flatten().filter(is_go).collect()
}

/// The one lock of this kind that was waited for in a function, whose every wait was ended in another.
fn assert_lock(report: &Report, truth: &Truth, kind: LockKind, key: &str, sides: &[(&str, &str, u64)]) {
    let found: Vec<&Lock> = go_locks(report)
        .into_iter()
        .filter(|lock| lock.kind == kind)
        .collect();
    let &[lock] = &found[..] else {
        panic!("locks of kind {kind:?}: {found:#?}")
    };
    let waits: u64 = sides.iter().map(|(_, _, waits)| waits).sum();
    assert_eq!(
        (lock.waits, lock.wait.count, lock.outcomes.handed_over),
        (waits, waits, waits),
        "{kind:?}"
    );
    let address = format!("{:#x}", truth.get(&format!("{key}.address")));
    assert_eq!(lock.address, Some(address), "{kind:?}");
    assert!(
        lock.wait.min_ns >= truth.get("hold_ns"),
        "{kind:?}: {} ns is less than it was held for",
        lock.wait.min_ns
    );
    for &(waiter, waker, waits) in sides {
        let side = |stack: Option<&str>, name: &str| {
            let names = go_workload::functions(report, stack);
            assert_eq!(names.last(), Some(&"runtime.goexit"), "{names:?}");
            names.contains(&name)
        };
        let waited: u64 = lock
            .waiters
            .iter()
            .filter(|row| side(row.stack.as_deref(), waiter))
            .map(|row| row.waits)
            .sum();
        let woken: u64 = lock
            .wakers
            .iter()
            .filter(|row| side(row.stack.as_deref(), waker))
            .map(|row| row.wakes)
            .sum();
        assert_eq!((waited, woken), (waits, waits), "{waiter} and {waker}: {lock:#?}");
    }
}

/// Those for condition variables are told when more may be spent than by default.
fn assert_all(report: &Report, truth: &Truth, conditions: bool) {
    let sides = [("main.waitForCache", "main.releaseCache", 23)];
    assert_lock(report, truth, LockKind::GoMutex, "mutex", &sides);
    let sides = [
        ("main.waitForTable", "main.releaseTable", 13),
        ("main.changeTable", "main.stopReading", 11),
    ];
    assert_lock(report, truth, LockKind::GoRwmutex, "rwmutex", &sides);
    let sides = [("main.waitForAll", "main.oneIsDone", 5)];
    assert_lock(report, truth, LockKind::GoWaitgroup, "waitgroup", &sides);
    if conditions {
        let sides = [("main.waitForSignal", "main.signalReady", 7)];
        assert_lock(report, truth, LockKind::GoCond, "cond", &sides);
    } else {
        let told = go_locks(report).iter().any(|lock| lock.kind == LockKind::GoCond);
        assert!(!told, "{:#?}", report.locks);
    }
    // Only mutexes are contended; the others wait for work.
    for lock in go_locks(report) {
        let contended = matches!(lock.kind, LockKind::GoMutex | LockKind::GoRwmutex);
        assert_eq!(lock.idle, !contended, "{lock:#?}");
    }
    assert!(report.losses.complete, "{:?}", report.losses);
    assert!(report.hints.is_empty(), "{:?}", report.hints);
}

fn uprobes(report: &Report) -> usize {
    report
        .probes
        .iter()
        .filter(|probe| probe.attach == "uprobe")
        .count()
}

/// Every wait with its lock, its waiter and who ended it, however the program is linked and whatever Go made it.
#[test]
fn go_locks_count_every_wait_and_name_both_sides() {
    let Some(_turn) = can_trace() else { return };
    for version in ALL {
        for (args, options) in [
            (&[][..], &EVERY_WAIT[..]),
            (&["-buildmode=pie", "-ldflags=-s -w"], &[]),
        ] {
            let folder = TempDir::new().unwrap();
            let Some(program) = go_workload::built("golocks", version, args, folder.path()) else {
                continue;
            };
            let (report, truth) = go_workload::traced(&program, &[], options);
            println!("Go {version} {args:?} {options:?}");
            assert_all(&report, &truth, !options.is_empty());
            assert_eq!(uprobes(&report), 3);
        }
    }
}

/// The same work with nobody in the way.
#[test]
fn go_locks_that_nobody_waits_for_are_silent() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("golocks", go::VERSIONS[3], &[], folder.path()) else {
        return;
    };
    let (report, _) = go_workload::traced(&program, &["clean"], &[]);
    let loud = |lock: &&Lock| !lock.idle;
    let locks: Vec<&Lock> = go_locks(&report).into_iter().filter(loud).collect();
    assert!(locks.is_empty(), "{locks:#?}");
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.severity < Severity::Medium),
        "{:#?}",
        report.findings
    );
}

/// `--only go` has them and nothing else; `--no-uprobes` leaves the program alone.
#[test]
fn go_locks_are_traced_when_asked_for() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("golocks", go::VERSIONS[3], &[], folder.path()) else {
        return;
    };
    let (report, truth) = go_workload::traced(&program, &[], &["--only", "go"]);
    assert_all(&report, &truth, false);
    assert!(report.fds.is_none() && report.blocked.is_none() && report.run_queue.is_none());
    assert!(
        report
            .locks
            .iter()
            .flatten()
            .all(|lock| lock.kind != LockKind::RuntimeIdle),
        "{:#?}",
        report.locks
    );
    for options in [&["--no-uprobes"][..], &["--only", "fds,sched,io"]] {
        let (report, _) = go_workload::traced(&program, &[], options);
        assert_eq!(uprobes(&report), 0, "{options:?}");
        assert!(go_locks(&report).is_empty(), "{options:?}");
    }
}

/// A command is no Go program yet when ctrace attaches to it.
#[test]
fn go_locks_of_a_command() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    for args in [&[][..], &["-buildmode=pie"]] {
        let Some(program) = go_workload::built("golocks", go::VERSIONS[3], args, folder.path()) else {
            return;
        };
        let mut ctrace = Ctrace::start(&["--only", "go", "--", program.to_str().unwrap()]);
        until("the program's locks are probed", || {
            uprobe_links(ctrace.pid()) == 3
        });
        ctrace.tell("go");
        ctrace.tell("quit");
        let (report, ended) = ctrace.wait_report();
        assert_all(&report, &Truth::of(&ended.stdout), false);
    }
}

/// Links to uprobes that a process holds; with `--only go` no other link is one to an event of perf.
fn uprobe_links(pid: u32) -> usize {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let infos = infos.into_iter().flatten().flatten();
    infos
        .filter_map(|info| fs::read_to_string(info.path()).ok())
        .filter(|text| text.contains("link_type:\tperf"))
        .count()
}

/// Killed at any moment ctrace leaves the program's code as it was.
#[test]
fn sigkill_leaves_a_go_programs_code_as_it_was() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("golocks", go::VERSIONS[3], &[], folder.path()) else {
        return;
    };
    let mut workload = go_workload::started(&program, &[]);
    let before = code(workload.pid);
    let ctrace = Ctrace::attach(workload.pid);
    let probed = changed(&before, &code(workload.pid));
    assert_eq!(probed, 3, "bytes of the code that breakpoints replace");
    ctrace.kill();
    until("the program's code is as before", || {
        changed(&before, &code(workload.pid)) == 0
    });
    workload.go();
    workload.quit();
}

/// The code of a process's program, as it is in memory.
fn code(pid: u32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let map = maps
        .lines()
        .find(|line| line.contains(" r-xp ") && line.ends_with("golocks"));
    let range = map.unwrap().split(' ').next().unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
    let mut bytes = vec![0; (end - start) as usize];
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    memory.read_exact_at(&mut bytes, start).unwrap();
    bytes
}

fn changed(before: &[u8], after: &[u8]) -> usize {
    before
        .iter()
        .zip(after)
        .filter(|(before, after)| before != after)
        .count()
}

const PATHS: [&str; 3] = ["slowPath", "middlePath", "quickPath"];
/// All waits, whatever they cost.
const EVERY_WAIT: [&str; 4] = ["--only", "go", "--budget", "10000%"];

/// Parts of a sum, in percent.
fn shares(parts: [u64; 3]) -> [f64; 3] {
    let sum = parts.iter().sum::<u64>().max(1) as f64;
    parts.map(|part| part as f64 * 100.0 / sum)
}

/// Of a lock, time waited and wakes by path.
fn sides(report: &Report, lock: &Lock, paths: [&str; 3]) -> ([u64; 3], [u64; 3]) {
    let under = |stack: Option<&str>, path: &str| {
        go_workload::functions(report, stack).contains(&&*format!("main.{path}"))
    };
    let waited = paths.map(|path| {
        let rows = lock
            .waiters
            .iter()
            .filter(|row| under(row.stack.as_deref(), path));
        rows.map(|row| row.total_ns).sum()
    });
    let woken = paths.map(|path| {
        let rows = lock.wakers.iter().filter(|row| under(row.stack.as_deref(), path));
        rows.map(|row| row.wakes).sum()
    });
    (waited, woken)
}

/// The same by the runtime's own profiles.
fn profiles(truth: &Truth, paths: [&str; 3]) -> ([u64; 3], [u64; 3]) {
    let of = |name: &str, what: &str| paths.map(|path| truth.get(&format!("{name}.{path}.{what}")));
    (of("block", "cycles"), of("mutex", "count"))
}

/// Under contention, against the runtime's own profiles in the same run: who waited how long, and who was waited for.
#[test]
fn go_locks_have_the_shares_that_the_runtime_measures() {
    let Some(_turn) = can_trace() else { return };
    for version in VERSIONS {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("golocks", version, &[], folder.path()) else {
            continue;
        };
        let (report, truth) = go_workload::traced(&program, &["hard", "3"], &EVERY_WAIT);
        let lock = go_locks(&report)
            .into_iter()
            .filter(|lock| lock.kind == LockKind::GoMutex)
            .max_by_key(|lock| lock.waits)
            .unwrap();
        let (waited, woken) = sides(&report, lock, PATHS);
        let (block, mutex) = profiles(&truth, PATHS);
        println!(
            "Go {version}: {} waits; waiters {:.1?}, by the runtime {:.1?}; releasers {:.1?}, by the runtime {:.1?}",
            lock.waits,
            shares(waited),
            shares(block),
            shares(woken),
            shares(mutex)
        );
        assert!(lock.waits > 1_000, "{lock:#?}");
        for (ours, theirs) in [(waited, block), (woken, mutex)] {
            for (ours, theirs) in shares(ours).into_iter().zip(shares(theirs)) {
                assert!((ours - theirs).abs() < 5.0, "{ours} % and {theirs} %");
            }
        }
        assert!(report.losses.complete, "{:?}", report.losses);
    }
}

/// What the probes on locks cost, in percent of one CPU: the traps by their price, the time in them by the kernel's statistics. And what
/// snapshots cost.
fn cost(report: &Report) -> (f64, f64) {
    let probes = ["go_semacquire", "go_notify_wait", "go_ready"];
    let of_locks = report
        .probes
        .iter()
        .filter(|probe| probes.contains(&&*probe.name));
    let run_ns: u64 = of_locks.map(|probe| probe.run_ns.unwrap_or(0)).sum();
    let locks = report
        .overhead
        .go_probes
        .iter()
        .find(|probes| probes.group == "locks");
    let hits = locks.map_or(0, |locks| locks.hits);
    let snapshots_ns = report.go.as_ref().map_or(0, |go| go.snapshots.cpu_ns);
    let percent = |ns: u64| ns as f64 * 100.0 / report.window.duration_ns as f64;
    println!("  {hits} hits, {run_ns} ns in probes, {snapshots_ns} ns in snapshots; {locks:?}");
    // The kernel's statistics may have met none of the parts.
    let measured = percent(hits * TRAP_NS + run_ns);
    let told = locks.and_then(|locks| locks.cpu_percent).unwrap_or(0.0);
    (measured.max(told), percent(snapshots_ns))
}

/// More than a trap costs here (`docs/probes.md`).
const TRAP_NS: u64 = 1_000;

/// By default a lock that is handed over as fast as it goes costs next to nothing, is found first, and its shares are right though the probes
/// are away most of the time.
#[test]
fn go_locks_that_are_hot_are_found_at_a_bounded_cost() {
    let Some(_turn) = can_trace() else { return };
    let paths = ["oftenPath", "sometimesPath", "seldomPath"];
    for version in ["system", go::VERSIONS[3]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("golocks", version, &[], folder.path()) else {
            continue;
        };
        let (report, truth) = go_workload::traced(&program, &["hot", "20"], &["--only", "go"]);
        let lock = go_locks(&report)
            .into_iter()
            .filter(|lock| lock.kind == LockKind::GoMutex)
            .max_by_key(|lock| lock.waits)
            .unwrap();
        let (waited, woken) = sides(&report, lock, paths);
        let (block, mutex) = profiles(&truth, paths);
        let (probes, snapshots) = cost(&report);
        println!(
            "Go {version}: {} of {} waits; waiters {:.1?}, by the runtime {:.1?}; releasers {:.1?}, by the runtime {:.1?}; {probes:.3} % of a CPU, snapshots {snapshots:.3} %",
            lock.waits,
            mutex.iter().sum::<u64>(),
            shares(waited),
            shares(block),
            shares(woken),
            shares(mutex)
        );
        // Printed above; 0.4 to 0.5 % here, more where a hypervisor takes part of the CPUs. Unbounded it is tens of percent.
        assert!(probes + snapshots < 1.0, "{probes} % and {snapshots} %");
        // Of a hundredth of the time or less: the path that most wait in. Of a single goroutine, and of who releases, so little tells
        // nothing: one does so thousands of times in a row.
        let (ours, theirs) = (shares(waited)[0], shares(block)[0]);
        assert!((ours - theirs).abs() < 30.0, "{ours} % and {theirs} %");
        // Nothing is scaled up, and what was covered is said.
        assert!(lock.waits < mutex.iter().sum::<u64>() / 2, "{lock:#?}");
        let covered_ns = lock.covered_ns.unwrap();
        assert!(covered_ns < report.window.duration_ns / 2, "{lock:#?}");
        // Nine of ten goroutines wait at any time.
        let waiting = lock.wait.total_ns as f64 / covered_ns as f64;
        assert!(
            (4.0..10.0).contains(&waiting),
            "{waiting} goroutines wait on average"
        );
        let first = &report.findings[0];
        assert_eq!(first.id, "lock.contended", "{:#?}", report.findings);
        assert_eq!(first.lock.as_deref(), Some(&*lock.id));
        assert_eq!(first.severity, Severity::High, "{first:#?}");
        assert!(first.title.contains("seen of"), "{}", first.title);
    }
}

/// The probes are there for the one moment in which there is a crowd, and away for the rest: no reason to call the lock contended.
#[test]
fn go_locks_of_a_moment_are_no_finding() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("golocks", go::VERSIONS[3], &[], folder.path()) else {
        return;
    };
    let (report, _) = go_workload::traced(&program, &["burst", "6"], &[]);
    let locks = report
        .overhead
        .go_probes
        .iter()
        .find(|probes| probes.group == "locks");
    println!("{locks:?}; {:#?}", report.findings);
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.severity < Severity::Medium),
        "{:#?}",
        report.findings
    );
}

/// What it costs: printed, as a machine shared with others gives no number to rely on.
#[test]
fn go_locks_cost_little() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("golocks", go::VERSIONS[3], &[], folder.path()) else {
        return;
    };
    let mut alone = go_workload::started(&program, &["bench", "3", "8"]);
    let without = alone.go();
    alone.quit();
    let (report, with) = go_workload::traced(&program, &["bench", "3", "8"], &EVERY_WAIT);
    let per_op = |truth: &Truth, key: &str| truth.get(key) as f64 / truth.get("ops").max(1) as f64;
    for probe in report.probes.iter().filter(|probe| probe.attach == "uprobe") {
        let (hits, run_ns) = (probe.hits.unwrap_or(0), probe.run_ns.unwrap_or(0));
        println!("{}: {hits} hits, {} ns each", probe.name, run_ns / hits.max(1));
    }
    println!(
        "throughput {:.2} of untraced; CPU time for each operation {:.0} ns, untraced {:.0} ns",
        per_op(&without, "wall_ns") / per_op(&with, "wall_ns"),
        per_op(&with, "cpu_ns"),
        per_op(&without, "cpu_ns")
    );
    // A probe on an instruction that the kernel must step over would cost thirty times as much.
    assert!(
        per_op(&with, "wall_ns") < 20.0 * per_op(&without, "wall_ns"),
        "throughput broke down"
    );
}

/// Threads of the scheduler sleep on stacks that begin where a goroutine's was left: they are whole, and no loss.
#[test]
fn go_schedulers_stacks_are_whole() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in [
        ("system", &[][..]),
        (go::VERSIONS[1], &["-tags=cgo"]),
        (go::VERSIONS[3], &["-buildmode=pie", "-ldflags=-s -w"]),
    ] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("golocks", version, args, folder.path()) else {
            continue;
        };
        let (report, _) = go_workload::traced(&program, &["hard", "3"], &["--only", "locks,sched"]);
        let idle = report.locks.iter().flatten();
        let idle: Vec<&Lock> = idle.filter(|lock| lock.kind == LockKind::RuntimeIdle).collect();
        let mut bottoms: Vec<&str> = Vec::new();
        for waiter in idle.iter().flat_map(|lock| &lock.waiters) {
            let functions = go_workload::functions(&report, waiter.stack.as_deref());
            bottoms.extend(functions.last());
        }
        bottoms.sort_unstable();
        bottoms.dedup();
        println!(
            "Go {version} {args:?}: {bottoms:?}; {:?}",
            report.losses.stack_failed_by
        );
        assert!(
            bottoms.contains(&"runtime.mcall"),
            "Go {version}: threads sleep where a goroutine parked: {bottoms:?}"
        );
        assert_eq!(
            report.losses.stack_failed, 0,
            "Go {version} {args:?}: {:?}",
            report.losses
        );
    }
}
