//! What happens when things go wrong: losses, sudden ends, wrong arguments.

use std::fs;
use std::io::pipe;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use tempfile::TempDir;
use tracer::report::model::{FdStack, Report, Verdict};

use super::support::build::{self, tool};
use super::support::ctrace::{BINARY, run};
use super::support::process::Process;
use super::support::programs::{Before, held_by, until_gone};
use super::support::stacks::fds_made_in;
use super::support::{Ctrace, Workload, can_trace, require, until};

/// Opened, closed and live of what `open_first` of short.c made.
fn made_first(report: &Report) -> (u64, u64, u64) {
    let rows = fds_made_in(report, &["open_first", "main"]);
    rows.iter().fold((0, 0, 0), |sum, row| {
        (sum.0 + row.opened, sum.1 + row.closed, sum.2 + row.live)
    })
}

/// A ring far too small for the load: every loss is counted and said, and no leak is claimed on what is left.
#[test]
fn losses_are_counted_and_silence_the_verdicts() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("heavy.c", &["3"]) else {
        return;
    };
    let pid = workload.pid.to_string();
    let ctrace = Ctrace::start_with(&["--pid", &pid], &[("CTRACE_RING_BYTES", "65536")]);
    workload.go();
    ctrace.interrupt();
    let (report, ended) = ctrace.wait_report();
    workload.quit();

    let losses = &report.losses;
    assert!(
        losses.ring_full + losses.fd_ring_full > 0,
        "nothing was lost: {losses:?}"
    );
    assert!(!losses.complete);
    let leaking = report
        .fds
        .unwrap()
        .by_stack
        .into_iter()
        .find(|row| row.verdict == Verdict::Leaking);
    assert!(
        leaking.is_none(),
        "a leak claimed on incomplete data: {leaking:?}"
    );
    let text = ended.stdout.to_lowercase();
    assert!(
        text.contains("lost") || text.contains("loss"),
        "the text hides the losses:\n{}",
        ended.stdout
    );
}

/// SIGKILL leaves nothing in the kernel: everything hangs on descriptors of the process.
#[test]
fn sigkill_leaves_nothing_attached() {
    let Some(_turn) = can_trace() else { return };
    let Some(workload) = Workload::start("pool.c", &[]) else {
        return;
    };
    let ctrace = Ctrace::attach(workload.pid);
    let programs = held_by(ctrace.pid());
    assert!(!programs.is_empty(), "ctrace traces without a program");
    ctrace.kill();
    until_gone(&programs);
}

/// So does the normal end.
#[test]
fn ctrl_c_ends_with_the_full_report_and_nothing_attached() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("pool.c", &[]) else {
        return;
    };
    let ctrace = Ctrace::attach(workload.pid);
    let programs = held_by(ctrace.pid());
    workload.go();
    ctrace.interrupt();
    let (report, ended) = ctrace.wait_report();
    assert_eq!(report.targets[0].pid, workload.pid);
    assert!(!report.probes.is_empty());
    assert!(
        report.locks.is_some() && report.fds.is_some() && report.run_queue.is_some() && report.time.is_some()
    );
    assert!(!ended.stdout.trim().is_empty(), "no text report");
    until_gone(&programs);
    workload.quit();
}

/// `--duration` is the other normal end.
#[test]
fn duration_ends_the_trace() {
    let Some(_turn) = can_trace() else { return };
    let Some(workload) = Workload::start("pool.c", &[]) else {
        return;
    };
    let ctrace = Ctrace::start(&["--pid", &workload.pid.to_string(), "--duration", "1s"]);
    let (report, _) = ctrace.wait_report();
    let seconds = report.window.duration_ns as f64 / 1e9;
    assert!(seconds >= 0.9, "asked for 1 s, traced {seconds} s");
}

/// A reader that went away is no error: status 0, no complaint, and the JSON file complete.
#[test]
fn closed_stdout_is_no_error() {
    let Some(_turn) = can_trace() else { return };
    let Some(workload) = Workload::start("pool.c", &[]) else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let json = folder.path().join("report.json");
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut command = Command::new(BINARY);
    command
        .args([
            "--no-tui",
            "--duration",
            "1s",
            "--pid",
            &workload.pid.to_string(),
            "--json",
        ])
        .arg(&json);
    let mut process = Process::start_into(&mut command, writer.into());
    let status = process.wait();
    let stderr = process.stderr.all().join("\n");
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(
        !stderr.contains("panicked") && !stderr.to_lowercase().contains("broken pipe"),
        "{stderr}"
    );
    let report: Report = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(report.targets[0].pid, workload.pid);
}

/// The target ends: so does the trace, with a report on all it did.
#[test]
fn target_that_ends_is_reported() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("short.c", &["die"]) else {
        return;
    };
    let ctrace = Ctrace::attach(workload.pid);
    workload.tell("go");
    workload.wait();
    let (report, _) = ctrace.wait_report();
    assert!(report.targets[0].exited);
    assert_eq!(made_first(&report), (23, 23, 0), "exit closes what was open");
}

/// The target becomes another program: what it opened is closed by CLOEXEC, and the new program's stacks resolve.
#[test]
fn exec_during_the_trace() {
    let Some(_turn) = can_trace() else { return };
    let path = build::workload("short.c").unwrap();
    let Some(mut workload) = Workload::start("short.c", &["exec", path.to_str().unwrap()]) else {
        return;
    };
    let ctrace = Ctrace::attach(workload.pid);
    workload.go();
    let report = ctrace.interrupted();
    workload.quit();
    assert!(!report.targets[0].exited);
    assert_eq!(made_first(&report), (23 + 97, 23, 97));
}

/// `-- COMMAND` passes its status on and sees it from the first instruction: what the dynamic loader opens and
/// what `main` opens before anything else.
#[test]
fn command_is_traced_from_its_first_instruction() {
    let Some(_turn) = can_trace() else { return };
    let path = build::workload("short.c").unwrap();
    let mut ctrace = Ctrace::start(&["--", path.to_str().unwrap(), "run", "23"]);
    let ended = ctrace.wait();
    assert_eq!(ended.status.code(), Some(7), "{}", ended.stderr);
    let report = ctrace.report();
    assert_eq!(made_first(&report), (23, 23, 0));
    let in_loader = |row: &&FdStack| {
        let frames = row.stack.as_ref().and_then(|id| report.stacks.get(id));
        let leaf = frames.and_then(|frames| frames.first());
        leaf.and_then(|frame| frame.module.as_deref())
            .is_some_and(|module| module.contains("/ld-"))
    };
    let rows: Vec<_> = report
        .fds
        .as_ref()
        .unwrap()
        .by_stack
        .iter()
        .filter(in_loader)
        .collect();
    assert!(
        !rows.is_empty(),
        "the dynamic loader opened libc before main; no row says so"
    );
}

/// The traced command has the terminal's stdin, and its success is ours.
#[test]
fn command_reads_stdin_and_passes_success_on() {
    let Some(_turn) = can_trace() else { return };
    let path = build::workload("short.c").unwrap();
    let mut ctrace = Ctrace::start(&["--", path.to_str().unwrap(), "die"]);
    ctrace.tell("go");
    let (report, ended) = ctrace.wait_report();
    assert!(
        ended.stdout.contains("ready "),
        "the command's own output is kept:\n{}",
        ended.stdout
    );
    assert_eq!(made_first(&report), (23, 23, 0));
}

/// Status 2 and one line that has every one of `words`; nothing attached.
fn assert_refused(what: &str, command: &mut Command, words: &[&str], wrong: &mut Vec<String>) {
    let ended = run(command);
    let lines = ended.stderr.lines().count();
    println!("{what}: {:?} {}", ended.status.code(), ended.stderr);
    let said = words.iter().all(|word| ended.stderr.contains(word));
    if ended.status.code() != Some(2) || lines != 1 || !said || ended.stderr.contains("panicked") {
        wrong.push(format!(
            "{what}: wanted status 2 and one line with {words:?}; {}: {}",
            ended.status, ended.stderr
        ));
    }
}

/// Pids, files and values that cannot work: each says in one line what, why and what to do, and attaches nothing.
#[test]
fn bad_input_is_refused_in_one_line() {
    let Some(_turn) = can_trace() else { return };
    let Some(workload) = Workload::start("pool.c", &[]) else {
        return;
    };
    let before = Before::now();
    let leader = workload.pid.to_string();
    let tasks = fs::read_dir(format!("/proc/{leader}/task")).unwrap().flatten();
    let tids = tasks.map(|task| task.file_name().into_string().unwrap());
    let thread = tids.into_iter().find(|tid| *tid != leader).unwrap();
    let dead = {
        let mut process = Process::start(&mut Command::new("true"));
        process.wait();
        process.pid().to_string()
    };

    let table: [(&str, &[&str], &[&str]); 11] = [
        ("pid that is no number", &["--pid", "abc"], &["abc"]),
        ("pid 0", &["--pid", "0"], &["0"]),
        ("negative pid", &["--pid", "-1"], &["-1"]),
        ("pid beyond any", &["--pid", "99999999999"], &["99999999999"]),
        ("dead pid", &["--pid", &dead], &[&dead]),
        ("kernel thread", &["--pid", "2"], &["2", "kernel thread"]),
        (
            "thread that leads nothing",
            &["--pid", &thread],
            &[&thread, "thread", &leader],
        ),
        (
            "json into nowhere",
            &["--pid", &leader, "--json", "/nonexistent/x.json"],
            &["/nonexistent/x.json"],
        ),
        (
            "duration that is none",
            &["--pid", &leader, "--duration", "soon"],
            &["soon"],
        ),
        ("no target", &["--no-tui"], &["--pid"]),
        (
            "command that is not there",
            &["--", "/nonexistent/command"],
            &["/nonexistent/command"],
        ),
    ];
    let mut wrong = Vec::new();
    for (what, args, words) in table {
        assert_refused(
            what,
            Command::new(BINARY).arg("--duration").arg("1s").args(args),
            words,
            &mut wrong,
        );
    }
    let own = r#"exec "$0" --duration 1s --pid $$"#;
    assert_refused(
        "own pid",
        Command::new("sh").args(["-c", own, BINARY]),
        &["itself"],
        &mut wrong,
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    before.nothing_left();
}

/// Without privileges: status 2, one line with the mending command.
#[test]
fn without_privileges_says_what_mends_it() {
    let Some(_turn) = can_trace() else { return };
    let setpriv = tool("setpriv");
    if !require(setpriv.is_some(), "needs setpriv (util-linux)") {
        return;
    }
    let Some(workload) = Workload::start("pool.c", &[]) else {
        return;
    };
    let before = Before::now();
    // The build may lie where nobody may look.
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("ctrace");
    fs::copy(BINARY, &copy).unwrap();

    let mut command = Command::new(setpriv.unwrap());
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
        ])
        .arg(copy);
    command.args(["--no-tui", "--duration", "1s", "--pid", &workload.pid.to_string()]);
    let mut wrong = Vec::new();
    assert_refused("no privileges", &mut command, &["sudo"], &mut wrong);
    assert!(wrong.is_empty(), "{wrong:#?}");
    before.nothing_left();
}

/// The process that is traced goes on as if nothing had been: it answers after `ctrace` was killed.
#[test]
fn target_survives_a_killed_ctrace() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("locks.c", &[]) else {
        return;
    };
    let ctrace = Ctrace::attach(workload.pid);
    workload.tell("go");
    let waiting = || {
        let syscalls = fs::read_dir(format!("/proc/{}/task", workload.pid))
            .unwrap()
            .flatten();
        let futex = format!("{} ", libc::SYS_futex);
        syscalls
            .into_iter()
            .any(|t| fs::read_to_string(t.path().join("syscall")).is_ok_and(|s| s.starts_with(&futex)))
    };
    until("a thread waits for a lock", waiting);
    ctrace.kill();
    assert_eq!(workload.finish().get("cache_lock"), 23);
    workload.quit();
}
