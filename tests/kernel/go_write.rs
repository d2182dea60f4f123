//! `--go-write`: what it brings is right, and whatever happens the target's memory is as it was, and no process stays.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use tracer::report::model::{GoBlocked, GoOutcome, GoProfiles, GoProof, Report, Severity};

use super::support::ctrace::{BINARY, run};
use super::support::process::Process;
use super::support::workload::Truth;
use super::support::{Ctrace, Workload, can_trace, go, go_workload, until};

/// One of each way to count, and the newest.
const VERSIONS: [&str; 4] = ["system", go::VERSIONS[0], go::VERSIONS[1], go::VERSIONS[3]];
/// The newest: it searches for leaks.
const NEWEST: &str = go::VERSIONS[3];
const STRIPPED: &[&str] = &["-ldflags=-s -w"];

fn attach(workload: &Workload, options: &[&str]) -> Ctrace {
    Ctrace::start(&[&["--pid", &workload.pid.to_string(), "--only", "go"], options].concat())
}

/// A variable that is written: where, what it held, what it holds while ctrace traces.
struct Word {
    at: u64,
    len: usize,
    old: u64,
    new: u64,
}

impl Word {
    fn now(&self, pid: u32) -> Option<u64> {
        let mut bytes = [0; 8];
        let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
        memory.read_exact_at(&mut bytes[..self.len], self.at).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}

/// What a line of stderr says, which comes before anything is written: `NAME at ADDRESS: OLD becomes NEW`.
fn announced(line: &str) -> BTreeMap<String, Word> {
    let (_, list) = line.split_once("): ").unwrap_or_else(|| panic!("{line}"));
    let (list, _) = list.split_once(". It is put back").unwrap();
    let word = |text: &str| {
        let (name, rest) = text.split_once(" at 0x").unwrap();
        let (at, rest) = rest.split_once(": ").unwrap();
        let (old, new) = rest.split_once(" becomes ").unwrap();
        let word = Word {
            at: u64::from_str_radix(at, 16).unwrap(),
            len: if name.ends_with("pending") { 1 } else { 8 },
            old: old.parse().unwrap(),
            new: new.parse().unwrap(),
        };
        (name.to_owned(), word)
    };
    list.split(", ").map(word).collect()
}

/// A `ctrace` whose line was read.
fn writing(workload: &Workload, options: &[&str]) -> (Process, BTreeMap<String, Word>) {
    let mut command = Command::new(BINARY);
    command
        .args(["--pid", &workload.pid.to_string(), "--only", "go", "--no-tui"])
        .args(options)
        .process_group(0);
    let mut process = Process::start(&mut command);
    let line = process
        .stderr
        .wait("what is written", |line| line.contains("--go-write writes"))
        .unwrap();
    let words = announced(&line);
    let ready = process
        .stderr
        .wait("Tracing", |line| line.contains("Hit Ctrl-C to end."));
    ready.unwrap_or_else(|why| panic!("{why}"));
    (process, words)
}

/// Watchdogs of a process.
fn watchdogs(pid: u32) -> usize {
    let wanted = format!("go-write-watchdog\0{pid}\0");
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.contains(&wanted))
        .count()
}

fn assert_as_before(pid: u32, words: &BTreeMap<String, Word>) {
    until("the watchdog has ended", || watchdogs(pid) == 0);
    for (name, word) in words {
        assert_eq!(word.now(pid), Some(word.old), "{name}");
    }
}

fn profiles(report: &Report) -> &GoProfiles {
    let found = report.go.as_ref().and_then(|go| go.profiles.as_ref());
    found.unwrap_or_else(|| panic!("no profiles: {:?}", report.hints))
}

fn proof(report: &Report) -> &GoProof {
    let found = report.go.as_ref().and_then(|go| go.proof.as_ref());
    found.unwrap_or_else(|| panic!("no proof: {:?}", report.hints))
}

/// Count and time of the stacks whose first function of the program's own is this one.
fn of(report: &Report, rows: &[GoBlocked], function: &str) -> (u64, u64) {
    let is = |row: &&GoBlocked| {
        let frames = row.stack.as_ref().and_then(|key| report.stacks.get(key));
        let mut names = frames
            .into_iter()
            .flatten()
            .filter_map(|frame| frame.function.as_deref());
        names.find(|name| name.starts_with("main.")) == Some(function)
    };
    let rows = rows.iter().filter(is);
    rows.fold((0, 0), |sum, row| (sum.0 + row.count, sum.1 + row.total_ns))
}

/// Each part of the whole, which all of them are.
fn shares(parts: &[u64]) -> Vec<f64> {
    let whole: u64 = parts.iter().sum();
    parts
        .iter()
        .map(|&part| part as f64 / whole.max(1) as f64)
        .collect()
}

const WAITS: [(&str, &str); 4] = [
    ("chan", "main.waitForMessage"),
    ("select", "main.waitForEither"),
    ("mutex", "main.waitForCache"),
    ("group", "main.waitForAll"),
];

fn assert_profiles(report: &Report, truth: &Truth) {
    let profiles = profiles(report);
    assert_eq!(profiles.unreadable, 0);
    let (mut own, mut told) = (Vec::new(), Vec::new());
    for (name, function) in WAITS {
        let (count, total_ns) = of(report, &profiles.block, function);
        // Nothing is left out of what lasts longer than the rate, and no two are one.
        assert_eq!(
            count,
            truth.get(&format!("{name}.waits")),
            "{name}: {:#?}",
            profiles.block
        );
        assert_eq!(count, truth.get(&format!("block.{function}.count")), "{name}");
        let least = count * truth.get(&format!("{name}.hold_ns"));
        assert!(
            total_ns as f64 >= 0.99 * least as f64,
            "{name}: {total_ns} of at least {least} ns"
        );
        told.push(total_ns);
        own.push(truth.get(&format!("block.{function}.cycles")));
    }
    // Calls that were inlined are told once, whatever the version keeps of them; nothing here calls itself.
    for row in &profiles.block {
        let frames = row.stack.as_ref().map(|key| &report.stacks[key]);
        let mut names: Vec<_> = frames
            .into_iter()
            .flatten()
            .map(|frame| &frame.function)
            .collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert!(all > 2 && names.len() == all, "{row:?}: {frames:#?}");
    }
    let (own, told) = (shares(&own), shares(&told));
    for ((name, _), (own, told)) in WAITS.into_iter().zip(own.iter().zip(&told)) {
        println!(
            "  {name}: {:.2} % of the time blocked, by the program {:.2} %",
            told * 100.0,
            own * 100.0
        );
        assert!((own - told).abs() < 0.05, "{name}: {told} and {own}");
    }
    let (count, total_ns) = of(report, &profiles.mutex, "main.releaseCache");
    assert_eq!(count, truth.get("mutex.waits"), "{:#?}", profiles.mutex);
    assert_eq!(count, truth.get("mutex.main.releaseCache.count"));
    assert!(
        total_ns as f64 >= 0.99 * (count * truth.get("mutex.hold_ns")) as f64,
        "{total_ns}"
    );
}

/// The runtime's own profile of every build: known waits in known numbers, with the program's own account beside it, which is of
/// the same tables.
#[test]
fn go_write_profiles_count_every_wait_of_a_stripped_program() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in VERSIONS
        .map(|version| (version, STRIPPED))
        .into_iter()
        .chain([(NEWEST, &["-buildmode=pie", "-ldflags=-s -w"][..])])
    {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("gowrite", version, args, folder.path()) else {
            continue;
        };
        println!("Go {version} {args:?}");
        let mut workload = go_workload::started(&program, &[]);
        let ctrace = attach(&workload, &["--go-write=profile"]);
        let truth = workload.go();
        let report = ctrace.interrupted();
        assert_profiles(&report, &truth);
        let profiles = profiles(&report);
        assert!(
            (9_900..=10_100).contains(&profiles.block_rate_ns),
            "{}",
            profiles.block_rate_ns
        );
        assert_eq!((profiles.mutex_fraction, profiles.own_rates), (1, false));
        let go = report.go.as_ref().unwrap();
        assert_eq!(go.written.len(), 2);
        for written in &go.written {
            assert!(written.restored, "{written:?}");
            assert_eq!((written.old, written.outcome), (0, GoOutcome::Restored));
        }
        workload.tell("rate");
        assert_eq!(workload.finish().get("fraction"), 0);
        let pid = workload.pid;
        until("the watchdog has ended", || watchdogs(pid) == 0);
        workload.quit();
    }
}

/// A program that profiles itself goes on as it wants, and is read only.
#[test]
fn go_write_leaves_a_program_that_profiles_itself_alone() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("gowrite", NEWEST, STRIPPED, folder.path()) else {
        return;
    };
    let mut workload = go_workload::started(&program, &["own"]);
    let ctrace = attach(&workload, &["--go-write=profile"]);
    let truth = workload.go();
    let report = ctrace.interrupted();
    let profiles = profiles(&report);
    assert_eq!(
        (
            profiles.block_rate_ns,
            profiles.mutex_fraction,
            profiles.own_rates
        ),
        (1, 5, true)
    );
    for (name, function) in WAITS {
        let (count, _) = of(&report, &profiles.block, function);
        assert_eq!(count, truth.get(&format!("{name}.waits")), "{name}");
    }
    assert!(report.go.as_ref().unwrap().written.is_empty());
    workload.tell("rate");
    assert_eq!(workload.finish().get("fraction"), 5);
    workload.quit();
}

type End<'a> = &'a dyn Fn(&Process);

/// However ctrace ends.
#[test]
fn go_write_is_undone_however_ctrace_ends() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("gowrite", NEWEST, STRIPPED, folder.path()) else {
        return;
    };
    let workload = go_workload::started(&program, &[]);
    let pid = workload.pid;
    let group = |process: &Process, signal| {
        // SAFETY: kill(2) of a group that was made for this process.
        assert_eq!(unsafe { libc::kill(-process.pid().cast_signed(), signal) }, 0);
    };
    let ends: [(&str, End<'_>); 6] = [
        ("Ctrl-C", &|ctrace| ctrace.signal(libc::SIGINT)),
        ("Ctrl-C twice, to all of its group", &|ctrace| {
            group(ctrace, libc::SIGINT);
            group(ctrace, libc::SIGINT);
        }),
        ("SIGKILL", &|ctrace| ctrace.signal(libc::SIGKILL)),
        ("SIGKILL of its group", &|ctrace| group(ctrace, libc::SIGKILL)),
        ("a closed terminal", &|ctrace| group(ctrace, libc::SIGHUP)),
        ("an abort", &|ctrace| ctrace.signal(libc::SIGABRT)),
    ];
    for (name, end) in ends {
        let (mut ctrace, words) = writing(&workload, &["--go-write"]);
        println!("{name}");
        assert_eq!(words.len(), 3);
        assert_eq!(watchdogs(pid), 1, "{name}");
        for (what, word) in &words {
            assert_eq!(word.now(pid), Some(word.new), "{name}: {what}");
            assert_ne!(word.old, word.new);
        }
        end(&ctrace);
        ctrace.wait();
        assert_as_before(pid, &words);
    }
    workload.quit();
}

/// Whoever ends the watchdog: ctrace puts everything back at once.
#[test]
fn go_write_is_undone_when_the_watchdog_is_killed() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("gowrite", NEWEST, STRIPPED, folder.path()) else {
        return;
    };
    let workload = go_workload::started(&program, &[]);
    let json = folder.path().join("report.json");
    let (mut ctrace, words) = writing(&workload, &["--go-write", "--json", json.to_str().unwrap()]);
    let wanted = format!("go-write-watchdog\0{}\0", workload.pid);
    let watchdog = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        line.contains(&wanted).then_some(pid)
    });
    // SAFETY: kill(2) of the process that was just found.
    assert_eq!(unsafe { libc::kill(watchdog.unwrap(), libc::SIGKILL) }, 0);
    until("ctrace has put everything back", || {
        words
            .values()
            .all(|word| word.now(workload.pid) == Some(word.old))
    });
    ctrace.signal(libc::SIGINT);
    assert_eq!(ctrace.wait().code(), Some(0));
    let report: Report = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert!(report.go.unwrap().written.iter().all(|written| written.restored));
    assert!(
        report.hints.iter().any(|hint| hint.text.contains("watchdog")),
        "{:?}",
        report.hints
    );
    workload.quit();
}

/// The target ends, or becomes another program: that is no error, nothing is written there, and nothing stays.
#[test]
fn go_write_ends_with_the_program_that_it_began_with() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("gowrite", NEWEST, STRIPPED, folder.path()) else {
        return;
    };
    let mut workload = go_workload::started(&program, &[]);
    let pid = workload.pid;
    let mut ctrace = attach(&workload, &["--go-write"]);
    assert_eq!(watchdogs(pid), 1);
    workload.go();
    workload.quit();
    let ended = ctrace.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(!ended.stdout.contains("NOT"), "{}", ended.stdout);
    let report = ctrace.report();
    let go = report.go.as_ref().unwrap();
    assert_eq!(go.written.len(), 3);
    assert!(
        go.written
            .iter()
            .all(|written| written.outcome == GoOutcome::Gone),
        "{:?}",
        go.written
    );
    until("the watchdog has ended", || watchdogs(pid) == 0);

    for killed in [false, true] {
        let mut workload = go_workload::started(&program, &[]);
        let pid = workload.pid;
        let (mut ctrace, words) = writing(&workload, &["--go-write"]);
        workload.tell("exec");
        workload.expect("ready", |line| line == format!("ready {pid}"));
        // The same file at the same addresses, another image.
        let untouched = |moment: &str| {
            for (what, word) in &words {
                assert_eq!(word.now(pid), Some(word.old), "{moment}: {what}");
            }
        };
        untouched("after exec");
        workload.go();
        untouched("at work");
        ctrace.signal(if killed { libc::SIGKILL } else { libc::SIGINT });
        ctrace.wait();
        until("the watchdog has ended", || watchdogs(pid) == 0);
        untouched("at the end");
        workload.tell("rate");
        assert_eq!(workload.finish().get("fraction"), 0);
        workload.quit();
    }
}

/// `--go-write=leaks` until a collection has searched.
fn searched(program: &Path, args: &[&str], options: &[&str]) -> (Report, Truth) {
    let mut workload = go_workload::started(program, args);
    let folder = TempDir::new().unwrap();
    let json = folder.path().join("report.json");
    let options = [&["--go-write=leaks", "--json", json.to_str().unwrap()], options].concat();
    let (mut ctrace, words) = writing(&workload, &options);
    let truth = workload.go();
    let pending = &words["runtime.work.goroutineLeak.pending"];
    // The order is taken when the collection begins; the byte after it stays set until it ends.
    let enabled = Word {
        at: pending.at + 1,
        ..*pending
    };
    until("a collection has searched", || {
        pending.now(workload.pid) == Some(0) && enabled.now(workload.pid) == Some(0)
    });
    ctrace.signal(libc::SIGINT);
    assert_eq!(ctrace.wait().code(), Some(0));
    assert_as_before(workload.pid, &words);
    let report = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    workload.quit();
    (report, truth)
}

const LEAKS: [(&str, u64); 5] = [
    ("main.abandonSend", 23),
    ("main.abandonReceive", 13),
    ("main.abandonSelect", 7),
    ("main.abandonLock", 5),
    ("main.abandonGroup", 3),
];

fn assert_leaks(report: &Report, truth: &Truth) {
    let proof = proof(report);
    assert_eq!(
        (proof.searches, proof.goroutines),
        (1, truth.get("leaked")),
        "{proof:#?}"
    );
    for (creator, count) in LEAKS {
        let rows = proof
            .by_stack
            .iter()
            .filter(|row| row.created_by.as_deref() == Some(creator));
        assert_eq!(
            rows.map(|row| row.count).sum::<u64>(),
            count,
            "{creator}: {proof:#?}"
        );
        // They are no more than they were: a finding all the same, and sure.
        let finding = report.findings.iter().find(|finding| {
            finding.id == "go.leak" && finding.evidence["created_by"].as_str() == Some(creator)
        });
        let finding = finding.unwrap_or_else(|| panic!("{creator}: {:#?}", report.findings));
        assert!(
            finding.severity >= Severity::Medium && finding.confidence >= 1.0,
            "{finding:#?}"
        );
        assert!(
            finding.title.contains("proved by the collector"),
            "{}",
            finding.title
        );
    }
    assert_eq!(report.go.as_ref().unwrap().written[0].outcome, GoOutcome::Taken);
}

fn accused(report: &Report) -> Vec<&str> {
    let leaks = report.findings.iter().filter(|finding| finding.id == "go.leak");
    leaks.map(|finding| &*finding.title).collect()
}

/// Exactly those that nobody can wake, and none of those that somebody can.
#[test]
fn go_write_proves_leaks_and_nothing_else() {
    let Some(_turn) = can_trace() else { return };
    for args in [STRIPPED, &["-buildmode=pie"]] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("goproof", NEWEST, args, folder.path()) else {
            return;
        };
        let (report, truth) = searched(&program, &[], &[]);
        assert_leaks(&report, &truth);
        let (report, _) = searched(&program, &["clean"], &[]);
        let proof = proof(&report);
        assert_eq!((proof.searches, proof.goroutines), (1, 0), "{proof:#?}");
        assert!(accused(&report).is_empty(), "{:?}", accused(&report));
    }
}

/// The search stops the world for as long as there are goroutines to look at.
#[test]
fn go_write_stops_no_program_of_many_goroutines_unless_forced() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let Some(program) = go_workload::built("goproof", NEWEST, STRIPPED, folder.path()) else {
        return;
    };
    let many = ["many", "10007"];
    let workload = go_workload::started(&program, &many);
    let ctrace = attach(&workload, &["--go-write=leaks"]);
    assert_eq!(watchdogs(workload.pid), 0);
    let report = ctrace.interrupted();
    let go = report.go.as_ref().unwrap();
    assert!(go.proof.is_none() && go.written.is_empty());
    let said = |text: &str| report.hints.iter().any(|hint| hint.text.contains(text));
    assert!(
        said("--go-write-force") && said("goroutines are blocked"),
        "{:?}",
        report.hints
    );
    workload.quit();
    let (report, truth) = searched(&program, &many, &["--go-write-force"]);
    assert_leaks(&report, &truth);
    assert!(proof(&report).blocked > 10_000);
}

/// Where it cannot be done, that is said.
#[test]
fn go_write_says_what_it_cannot_do() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    if let Some(program) = go_workload::built("goproof", go::VERSIONS[2], STRIPPED, folder.path()) {
        let workload = go_workload::started(&program, &[]);
        let ctrace = attach(&workload, &["--go-write"]);
        let report = ctrace.interrupted();
        let go = report.go.as_ref().unwrap();
        assert!(go.proof.is_none() && go.profiles.is_some());
        assert!(
            go.written.iter().all(|written| written.restored),
            "{:?}",
            go.written
        );
        let said = report
            .hints
            .iter()
            .any(|hint| hint.text.contains("came with Go 1.26"));
        assert!(said, "{:?}", report.hints);
        workload.quit();
    }
    let mut sleep = Command::new("sleep").arg("600").spawn().unwrap();
    let ended = run(Command::new(BINARY).args(["--go-write", "--pid", &sleep.id().to_string()]));
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert!(
        ended.stderr.contains("writes into Go programs only"),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
}
