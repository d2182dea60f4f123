//! `ctrace diff`: a lock for readers and writers in place of a mutex is an improvement, and two runs of one program are no change;
//! `--fail-on`, whose condition is the exit status.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tracer::report::diff::{Change, Diff, Matched};

use super::support::ctrace::{BINARY, Ended, run};
use super::support::{Ctrace, Workload, can_trace};

/// Traces `table MODE`, while it runs, for so long; its report.
fn traced(mode: &str, duration: &str, to: &Path) -> Option<()> {
    let mut table = Workload::start("table.c", &[mode])?;
    table.tell("go");
    table.expect("running", |line| line == "running");
    let ctrace = Ctrace::start(&["--pid", &table.pid.to_string(), "-d", duration]);
    let (report, _) = ctrace.wait_report();
    fs::write(to, serde_json::to_vec(&report).unwrap()).unwrap();
    let truth = table.counts();
    assert!(truth.get("reads") > 0);
    table.quit();
    Some(())
}

fn compared(before: &Path, after: &Path, args: &[&str]) -> (Diff, Ended) {
    let folder = TempDir::new().unwrap();
    let json = folder.path().join("diff.json");
    let ended = run(Command::new(BINARY)
        .arg("diff")
        .args([before, after])
        .arg("--json")
        .arg(&json)
        .args(args));
    let text = fs::read_to_string(&json).unwrap_or_else(|why| panic!("{why}: {}", ended.stderr));
    (serde_json::from_str(&text).unwrap(), ended)
}

#[test]
fn a_lock_for_readers_and_writers_in_place_of_a_mutex_is_improved() {
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let [before, after] = ["mutex", "rwlock"].map(|name| folder.path().join(format!("{name}.json")));
    if traced("mutex", "3s", &before).is_none() {
        return;
    }
    traced("rwlock", "3s", &after).unwrap();

    let (diff, ended) = compared(&before, &after, &["--fail-on", "worse>0", "--only", "locks"]);
    println!("{}", ended.stdout);
    let locks: Vec<_> = diff.things.iter().filter(|thing| thing.class == "lock").collect();
    assert_eq!(locks.len(), 1, "{locks:#?}");
    let lock = locks[0];
    assert_eq!(
        (lock.verdict, lock.matched),
        (Change::Improved, Matched::Replaced),
        "{lock:#?}"
    );
    assert_eq!(
        (lock.was.as_deref(), lock.kind.as_str()),
        (Some("mutex"), "rwlock")
    );
    assert_eq!(lock.name, "table_rwlock");
    let time = &lock.metrics[0];
    assert!(
        time.changed && time.p_adjusted.unwrap() < 0.01 && time.ratio.unwrap() < 0.5,
        "{time:#?}"
    );
    assert_eq!(diff.verdict, Change::Improved, "{}", diff.summary);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout.starts_with("mutex.json (") && ended.stdout.contains("\nImproved: 1 improved"));

    let (diff, ended) = compared(&after, &before, &["--fail-on", "worse>0", "--only", "locks"]);
    assert_eq!(diff.verdict, Change::Worse, "{}", ended.stdout);
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended.stderr.contains("--fail-on worse>0 held: worse is 1"),
        "{}",
        ended.stderr
    );
}

/// Seven runs are 21 pairs, which are not independent: one run in which the machine did something else is in six of them. So all pairs
/// that differ must be of one such run.
#[test]
fn two_runs_of_one_program_are_unchanged() {
    const RUNS: usize = 7;
    let Some(_turn) = can_trace() else { return };
    let folder = TempDir::new().unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    for number in 1..=RUNS {
        let file = folder.path().join(format!("run{number}.json"));
        if traced("mutex", "2s", &file).is_none() {
            return;
        }
        files.push(file);
    }
    let mut changed: Vec<[usize; 2]> = Vec::new();
    println!("pair  verdict    tests  time waited for the mutex: ratio (95 %)");
    for (at, before) in files.iter().enumerate() {
        for (other, after) in files.iter().enumerate().skip(at + 1) {
            let (diff, ended) = compared(before, after, &[]);
            let lock = diff.things.iter().find(|thing| thing.class == "lock").unwrap();
            let time = &lock.metrics[0];
            println!(
                "{}-{}   {:9}  {:5}  {:.3?} {:.3?}",
                at + 1,
                other + 1,
                format!("{:?}", diff.verdict),
                diff.significance.tests,
                time.ratio,
                time.ratio_ci
            );
            if matches!(diff.verdict, Change::Worse | Change::Improved) {
                changed.push([at, other]);
                println!("{}", ended.stdout);
            }
            for note in diff.notes {
                println!("      {note}");
            }
        }
    }
    let outlier = (0..RUNS).any(|run| changed.iter().all(|pair| pair.contains(&run)));
    assert!(outlier, "worse or improved: {changed:?}");
}

#[test]
fn a_condition_that_holds_is_status_1() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut table) = Workload::start("table.c", &["mutex"]) else {
        return;
    };
    table.tell("go");
    table.expect("running", |line| line == "running");
    let pid = table.pid.to_string();
    let ended = |args: &[&str]| {
        let all: Vec<&str> = ["--pid", &pid].iter().chain(args).copied().collect();
        Ctrace::start(&all).wait()
    };

    let held = ended(&[
        "-d",
        "1s",
        "--fail-on",
        "finding>critical,lock.max>1h",
        "--fail-on",
        "lock.p99>10us",
    ]);
    assert_eq!(held.status.code(), Some(1), "{}", held.stderr);
    let said: Vec<&str> = held
        .stderr
        .lines()
        .filter(|line| line.contains("--fail-on"))
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("--fail-on lock.p99>10us held: lock.p99 is ") && said[0].contains("table_mutex"),
        "{said:?}"
    );

    let fine = ended(&["-d", "1s", "--fail-on", "lock.p99>1h"]);
    assert_eq!(fine.status.code(), Some(0), "{}", fine.stderr);

    let unknown = ended(&["-d", "1s", "--only", "sched", "--fail-on", "lock.p99>1us"]);
    assert_eq!(unknown.status.code(), Some(0), "{}", unknown.stderr);
    assert!(
        unknown
            .stderr
            .contains("lock.p99 is not known (locks were not watched)"),
        "{}",
        unknown.stderr
    );

    // Of any interval, told once.
    let any = ended(&["-d", "2s", "-i", "500ms", "--fail-on", "lock.waits>=1"]);
    assert_eq!(any.status.code(), Some(1), "{}", any.stderr);
    assert_eq!(
        any.stderr.matches("held: lock.waits is").count(),
        1,
        "{}",
        any.stderr
    );

    let mut ctrace = Ctrace::start(&["--pid", &pid, "--fail-on", "lock.waits>=0"]);
    ctrace.interrupt();
    let interrupted = ctrace.wait();
    assert_eq!(interrupted.status.code(), Some(1), "{}", interrupted.stderr);
    table.tell("count");
    table.finish();
    table.quit();
}

#[test]
fn a_condition_goes_before_the_status_of_a_command() {
    let Some(_turn) = can_trace() else { return };
    let status = |expr: &str| {
        let mut ctrace = Ctrace::start(&["--fail-on", expr, "--", "sh", "-c", "sleep 0.2; exit 7"]);
        ctrace.wait().status.code()
    };
    assert_eq!(status("findings<100000"), Some(1));
    assert_eq!(status("findings>100000"), Some(7));
}

/// Without root, and before anything is traced.
#[test]
fn conditions_and_files_are_checked_first() {
    let folder = TempDir::new().unwrap();
    let garbage = folder.path().join("garbage.json");
    fs::write(&garbage, "{\"schema\": \"other/1\"}").unwrap();
    let garbage = garbage.to_str().unwrap();
    let cases: [&[&str]; 7] = [
        &["--pid", "1", "--fail-on", "lock.p98>5ms"],
        &["--fail-on", "lock.p99>5", "--", "true"],
        &["report", garbage],
        &["report", garbage, "--fail-on", "lock.p99"],
        &["diff", garbage, garbage],
        &["diff", "/nonexistent", garbage],
        &["diff", garbage, garbage, "--fail-on", "lock.p99>5ms"],
    ];
    for args in cases {
        let ended = run(Command::new(BINARY).args(args));
        assert_eq!(ended.status.code(), Some(2), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{args:?}: {}", ended.stderr);
        assert!(ended.stdout.is_empty(), "{args:?}: {}", ended.stdout);
    }
}
