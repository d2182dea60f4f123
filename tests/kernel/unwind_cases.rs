//! Code that is hard to unwind, each with the exact chain of functions that a stack of it must show.
//!
//! The workloads' own functions begin with `u_`: of those a stack must have exactly the expected ones, in order, and what
//! lies between and below them is compared with gdb. Where the end is unknowable, the stack stops, and that is counted.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tracer::report::model::{Reason, Report, StackFrame};

use super::support::stacks::{show, stack_complete};
use super::support::workload::Truth;
use super::support::{Ctrace, Workload, build, can_trace, gdb, require};

/// Threads of `unwind.c` and their functions, from the lock to the thread's start.
const CHAINS: [(&str, &[&str]); 8] = [
    ("signal", &["u_block", "u_handler", "u_raises", "u_thread"]),
    (
        "aside",
        &["u_block", "u_handler", "u_faults", "u_faults_aside", "u_thread"],
    ),
    (
        "varies",
        &["u_block", "u_variable", "u_realigned", "u_varies", "u_thread"],
    ),
    // Code without rules, which says by itself how it returns, or does not: then nothing is said of who called it.
    (
        "byhand",
        &["u_block", "u_by_hand", "u_calls_by_hand", "u_writes", "u_thread"],
    ),
    ("bare", &["u_block", "u_bare"]),
    ("baited", &["u_block", "u_bare"]),
    ("inherits", &["u_block", "u_bare_keeps"]),
    (
        "loads",
        &["u_block", "u_called_back", "u_in_library", "u_loads", "u_thread"],
    ),
];

/// The functions of a workload in a stack.
fn chain(frames: &[StackFrame]) -> Vec<&str> {
    let names = frames.iter().filter_map(|frame| frame.function.as_deref());
    names.filter(|name| name.starts_with("u_")).collect()
}

fn physical(frames: &[StackFrame]) -> Vec<u64> {
    let real = frames.iter().filter(|frame| !frame.inlined);
    real.map(|frame| u64::from_str_radix(frame.address.trim_start_matches("0x"), 16).unwrap())
        .collect()
}

/// All stacks of waits for locks and of other sleeps, with how many there were.
fn happened(report: &Report) -> Vec<(&str, u64)> {
    let waits = report
        .locks
        .iter()
        .flatten()
        .flat_map(|lock| lock.waiters.iter().map(|row| (&row.stack, row.waits)));
    let blocked = report.blocked.iter().flatten().map(|row| (&row.stack, row.count));
    waits
        .chain(blocked)
        .filter_map(|(stack, count)| Some((stack.as_deref()?, count)))
        .collect()
}

/// What to expect of a build of `unwind.c`.
struct Expected {
    /// gdb has rules for all of its C library too.
    rules: bool,
    /// It was given a library to load.
    library: bool,
}

const WHOLE: Expected = Expected {
    rules: true,
    library: true,
};

/// gdb does not find the files.
const BLIND: Expected = Expected {
    rules: false,
    ..WHOLE
};

/// Runs a started `unwind.c` through, and checks every thread: where it waits now, and the same wait once it has happened.
fn check(mut workload: Workload, expected: &Expected) {
    let pid = workload.pid;
    let ctrace = Ctrace::start(&["--only=locks,sched,io", "--pid", &pid.to_string()]);
    workload.go();
    // Stops end all waits, so that each has happened too.
    let truth = gdb::stacks(pid, 2);
    let report = ctrace.interrupted();
    workload.quit();
    let happened = happened(&report);
    let mut faults = Vec::new();
    for (comm, functions) in CHAINS {
        let missing = if expected.library { "" } else { "u_in_library" };
        let functions = functions_without(functions, missing);
        let now = report.waiting_now.iter().find(|now| now.comm == comm);
        let now = now.unwrap_or_else(|| panic!("no thread {comm}: {:#?}", report.waiting_now));
        let id = now.stack.as_deref();
        let frames = &report.stacks[id.unwrap()];
        let cut = comm.starts_with("ba") || comm == "inherits";
        let ends = frames.last().and_then(|frame| frame.function.as_deref()) == functions.last().copied();
        if chain(frames) != functions || stack_complete(&report, id) == cut || ends != cut {
            faults.push(format!("{comm} now: {}", show(&report, id)));
        }
        // gdb guesses its way through code without rules.
        if expected.rules && !cut && comm != "byhand" && physical(frames) != truth[&now.tid] {
            faults.push(format!(
                "{comm} now: {} is not {:x?}",
                show(&report, id),
                truth[&now.tid]
            ));
        }
        // Another stack is not in the copy, which then ends with the interrupted function.
        let found = |id: &str| {
            let of_wait = chain(&report.stacks[id]);
            of_wait == functions || comm == "aside" && of_wait == functions[..3]
        };
        if !happened.iter().any(|(id, _)| found(id)) {
            faults.push(format!("{comm}: no wait has {functions:?}"));
        }
    }
    deep(&report, &mut faults);
    let by = &report.losses.stack_failed_by;
    for reason in ["no_cfi", "too_deep"] {
        if by.get(reason).is_none_or(|&count| count == 0) {
            faults.push(format!("{reason} is not counted: {by:?}"));
        }
    }
    // Nothing but what is expected, in whatever wait: of a thread's own functions some from the lock on, or to its start.
    for (id, _) in &happened {
        let names = chain(&report.stacks[*id]);
        let deep = names
            .iter()
            .all(|name| ["u_block", "u_recurses", "u_deep", "u_thread"].contains(name));
        let known = |functions: &[&str]| functions.starts_with(&names) || functions.ends_with(&names);
        if !deep
            && !CHAINS.iter().any(|(_, functions)| {
                known(functions) || known(&functions_without(functions, "u_in_library"))
            })
        {
            faults.push(format!("invented: {}", show(&report, Some(id))));
        }
    }
    assert!(faults.is_empty(), "{by:?}\n{}", faults.join("\n"));
}

fn functions_without<'a>(functions: &[&'a str], missing: &str) -> Vec<&'a str> {
    functions
        .iter()
        .copied()
        .filter(|&name| name != missing)
        .collect()
}

/// Of 600 frames 512 are shown, and the rest said to be missing.
fn deep(report: &Report, faults: &mut Vec<String>) {
    let now = report.waiting_now.iter().find(|now| now.comm == "deep").unwrap();
    let frames = &report.stacks[now.stack.as_deref().unwrap()];
    let names = chain(frames);
    let recursing = names.iter().filter(|&&name| name == "u_recurses").count();
    // All but the lock's own.
    if physical(frames).len() != 512
        || names.first() != Some(&"u_block")
        || recursing + 1 != names.len()
        || recursing < 500
    {
        faults.push(format!(
            "deep: {} frames, {recursing} recursing: {:?}",
            frames.len(),
            &names[..names.len().min(5)]
        ));
    }
}

/// The turn, if there is also gdb.
fn ready() -> Option<super::support::turn::Turn> {
    let turn = can_trace()?;
    require(build::tool("gdb").is_some(), "gdb is not installed").then_some(turn)
}

/// A build of a workload; None (said aloud) without its compiler.
fn built(source: &str, variant: &str, compiler: &str, flags: &[&str]) -> Option<PathBuf> {
    let path = build::variant(source, variant, compiler, flags);
    require(path.is_ok(), &format!("{compiler}: {path:?}")).then(|| path.unwrap())
}

/// The library to load, with its function of that name.
fn library(name: &str) -> Option<PathBuf> {
    built(
        "unwind_library.c",
        name,
        "gcc",
        &["-shared", "-fPIC", &format!("-DNAME={name}")],
    )
}

fn plain() -> Option<PathBuf> {
    built("unwind.c", "plain", "gcc", &[])
}

fn start(program: &Path, args: &[&Path]) -> Workload {
    let mut command = Command::new(program);
    command.args(args);
    Workload::started(command)
}

/// Handlers, another stack, variable frames, recursion, code without rules, a library loaded while traced.
#[test]
fn unwind_cases() {
    let Some(_turn) = ready() else { return };
    let (Some(program), Some(library)) = (plain(), library("u_in_library")) else {
        return;
    };
    check(start(&program, &[&library]), &WHOLE);
}

/// The same without a loader, at a fixed address and at any.
#[test]
fn unwind_static() {
    let Some(_turn) = ready() else { return };
    for flag in ["-static", "-static-pie"] {
        let Some(program) = built("unwind.c", flag, "gcc", &[flag]) else {
            return;
        };
        check(
            start(&program, &[]),
            &Expected {
                library: false,
                ..WHOLE
            },
        );
    }
}

/// A program whose file was replaced by another, or deleted, while it ran: the names are of the old one.
#[test]
fn unwind_replaced() {
    let Some(_turn) = ready() else { return };
    let (Some(program), Some(other)) = (plain(), built("zoo.c", "plain", "gcc", &[])) else {
        return;
    };
    let Some(library) = library("u_in_library") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let place = |from: &Path, name: &str| {
        let (to, fresh) = (folder.path().join(name), folder.path().join("fresh"));
        fs::copy(from, &fresh).unwrap();
        fs::rename(&fresh, &to).unwrap();
        to
    };
    let path = place(&program, "program");
    let workload = start(&path, &[&library]);
    place(&other, "program");
    // gdb finds no rules either.
    check(workload, &BLIND);
    // Deleted, not replaced.
    let path = place(&program, "program");
    let workload = start(&path, &[&library]);
    fs::remove_file(path).unwrap();
    check(workload, &BLIND);
}

/// A program that no path leads to.
#[test]
fn unwind_memfd() {
    let Some(_turn) = ready() else { return };
    let (Some(program), Some(library)) = (plain(), library("u_in_library")) else {
        return;
    };
    let Some(memfd) = built("memfd.c", "plain", "gcc", &[]) else {
        return;
    };
    check(start(&memfd, &[&program, &library]), &BLIND);
}

/// A program in a mount namespace and a root of its own: its files are nowhere else, and others lie at their paths.
#[test]
fn unwind_in_another_root() {
    let Some(_turn) = ready() else { return };
    let (Some(program), Some(library)) = (plain(), library("u_in_library")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("enter.sh");
    let text = format!(
        "set -e\nroot={}\nmount -t tmpfs none $root\nmkdir -p $root/lib/x86_64-linux-gnu $root/lib64\n\
         cp {} $root/program\ncp {} $root/library.so\n\
         cp -L /lib/x86_64-linux-gnu/libc.so.6 $root/lib/x86_64-linux-gnu/\ncp -L /lib64/ld-linux-x86-64.so.2 $root/lib64/\n\
         mkdir $root/proc\nmount --bind /proc $root/proc\n\
         exec chroot $root /program /library.so\n",
        folder.path().display(),
        program.display(),
        library.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh"])
        .arg(&script);
    let workload = Workload::started(command);
    assert!(
        !folder.path().join("program").exists(),
        "the namespace is not its own"
    );
    check(workload, &BLIND);
}

/// musl, dynamic and static: Debian's has no rules, so its part of each stack is derived from its code.
#[test]
fn unwind_musl() {
    let Some(_turn) = ready() else { return };
    for (variant, flags) in [("musl", &[][..]), ("musl-static", &["-static"])] {
        let Some(program) = built("unwind.c", variant, "musl-gcc", flags) else {
            return;
        };
        let expected = Expected {
            library: false,
            ..BLIND
        };
        check(start(&program, &[]), &expected);
    }
}

/// Counts of waits by their chain of functions.
fn counts(report: &Report) -> std::collections::BTreeMap<Vec<&str>, u64> {
    let mut counts = std::collections::BTreeMap::new();
    for (id, count) in happened(report) {
        let chain = chain(&report.stacks[id]);
        if !chain.is_empty() {
            *counts.entry(chain).or_default() += count;
        }
    }
    counts
}

/// Runs `step.c` over one part of it: a stack through every instruction there, each whole.
fn stepped(part: &str) -> Option<(Report, Truth)> {
    let _turn = can_trace()?;
    let mut workload = Workload::start("step.c", &[part])?;
    let ctrace = Ctrace::start(&["--only=locks,sched,io", "--pid", &workload.pid.to_string()]);
    let truth = workload.go();
    let report = ctrace.interrupted();
    workload.quit();
    let through: Vec<_> = happened(&report)
        .into_iter()
        .filter(|(id, _)| chain(&report.stacks[*id]).first() == Some(&"u_trap"))
        .collect();
    for (id, _) in &through {
        assert!(stack_complete(&report, Some(id)), "{}", show(&report, Some(id)));
    }
    let stacks: u64 = through.iter().map(|(_, count)| count).sum();
    assert_eq!(stacks, truth.get("steps"), "{part}: {:#?}", counts(&report));
    assert_eq!(
        through.len() as u64,
        truth.get("steps"),
        "each interrupted instruction is a stack of its own"
    );
    Some((report, truth))
}

/// Every instruction of functions with many saved registers and variable frames.
#[test]
fn unwind_through_every_instruction() {
    let Some((report, truth)) = stepped("own") else {
        return;
    };
    let counts = counts(&report);
    let of = |functions: &[&str]| counts.get(functions).copied().unwrap_or_default();
    let below = ["u_outer", "u_calls_outer", "u_steps"];
    let inner = of(&[&["u_trap", "u_inner"], &below[..]].concat());
    let leaf = of(&[&["u_trap", "u_leaf", "u_inner"], &below[..]].concat());
    let outer = of(&[&["u_trap"], &below[..]].concat());
    assert_eq!(
        (inner, leaf),
        (truth.get("inner"), truth.get("leaf")),
        "{counts:#?}"
    );
    assert_eq!(inner + leaf + outer, truth.get("steps"), "{counts:#?}");
}

/// Every instruction of a stub of the linker and of the one that they share, on the way to the loader.
#[test]
fn unwind_through_stubs() {
    let Some((report, truth)) = stepped("plt") else {
        return;
    };
    let counts = counts(&report);
    assert_eq!(truth.get("steps"), 5, "two stubs of three and two instructions");
    assert_eq!(
        counts.get(&["u_trap", "u_calls_stub", "u_steps"][..]),
        Some(&5),
        "{counts:#?}"
    );
}

/// Every instruction that reading the clock takes in the vdso.
#[test]
fn unwind_through_the_vdso() {
    let Some((report, truth)) = stepped("vdso") else {
        return;
    };
    let counts = counts(&report);
    let steps = truth.get("steps");
    assert!(steps > 20, "{steps} instructions in the vdso");
    assert_eq!(
        counts.get(&["u_trap", "u_calls_vdso", "u_steps"][..]),
        Some(&steps),
        "{counts:#?}"
    );
}

/// A parent waits in vfork, whose return address is in a register then, and in `posix_spawn`.
#[test]
fn unwind_vfork_and_spawn() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("spawn.c", &[]) else {
        return;
    };
    let ctrace = Ctrace::start(&["--only=locks,sched,io", "--pid", &workload.pid.to_string()]);
    let truth = workload.go();
    let report = ctrace.interrupted();
    workload.quit();
    let counts = counts(&report);
    assert_eq!((truth.get("vforks"), truth.get("spawns")), (23, 23));
    // vfork's and waitpid's; of the latter some find the child dead already.
    let (vforks, spawns) = (counts[&["u_vforks"][..]], counts[&["u_spawns"][..]]);
    assert!(
        (23..=46).contains(&vforks) && (23..=46).contains(&spawns),
        "{counts:#?}"
    );
    assert_eq!(counts.len(), 2, "{counts:#?}");
    for (id, _) in happened(&report) {
        let frames = &report.stacks[id];
        if !chain(frames).is_empty() {
            assert!(stack_complete(&report, Some(id)), "{}", show(&report, Some(id)));
            let names: Vec<_> = frames.iter().filter_map(|f| f.function.as_deref()).collect();
            assert!(names.contains(&"main"), "{names:?}");
        }
    }
}

/// Two libraries that take turns at one address: no wait in one may be said to be in the other. A wait without a stack is no
/// lie, but many must have theirs.
fn reloaded(attach: impl FnOnce(&[&str]) -> Option<(Report, Truth)>) {
    let (Some(first), Some(second)) = (library("u_in_first"), library("u_in_second")) else {
        return;
    };
    let arguments = [first.to_str().unwrap(), second.to_str().unwrap()];
    let Some((report, truth)) = attach(&arguments) else {
        return;
    };
    let turns = truth.get("turns");
    assert_eq!(truth.get("same_address"), turns, "the loader put them elsewhere");
    for (reason, name) in [(Reason::Sleep, "u_in_first"), (Reason::Poll, "u_in_second")] {
        let rows = report.blocked.iter().flatten().filter(|row| row.reason == reason);
        let mut named = 0;
        for row in rows {
            let chain = row
                .stack
                .as_ref()
                .map(|id| chain(&report.stacks[id]))
                .unwrap_or_default();
            println!("{reason:?}: {} of {chain:?}", row.count);
            if chain.iter().any(|name| name.starts_with("u_in_")) {
                assert_eq!(chain, ["u_naps", name, "u_turn"], "{reason:?}");
                named += row.count;
            }
        }
        assert!(
            named <= turns && 4 * named >= turns,
            "{named} of {turns} waits in {name} are named"
        );
    }
}

/// Of a process that ran already.
#[test]
fn unwind_reloaded_of_a_process() {
    let Some(_turn) = can_trace() else { return };
    reloaded(|arguments| {
        let mut workload = Workload::start("reload.c", arguments)?;
        let ctrace = Ctrace::start(&["--only=locks,sched,io", "--pid", &workload.pid.to_string()]);
        let truth = workload.go();
        let report = ctrace.interrupted();
        workload.quit();
        Some((report, truth))
    });
}

/// Of a command, which is heard from its first mapping.
#[test]
fn unwind_reloaded_of_a_command() {
    let Some(_turn) = can_trace() else { return };
    reloaded(|arguments| {
        let path = build::workload("reload.c").ok()?;
        let mut all = vec!["--only=locks,sched,io", "--", path.to_str()?];
        all.extend(arguments);
        let mut ctrace = Ctrace::start(&all);
        ctrace.tell("go");
        ctrace.tell("quit");
        let (report, ended) = ctrace.wait_report();
        let truth = Truth::of(&ended.stdout);
        Some((report, truth))
    });
}
