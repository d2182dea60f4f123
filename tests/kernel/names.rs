//! Names: exactly the functions that were called, in every language, and none where nothing tells.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tracer::report::model::{Report, StackFrame};

use super::support::build::{self, tool};
use super::support::stacks::show;
use super::support::{Ctrace, Workload, can_trace, go, require};

/// Source of a workload.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/workloads")
        .join(name)
}

/// Traces one run of a started workload; `before_end` may still do something to it.
fn traced(mut workload: Workload, before_end: impl FnOnce(u32)) -> Report {
    // Descriptors are left out: without their probes a run ends sooner.
    let ctrace = Ctrace::start(&["--only", "locks", "--pid", &workload.pid.to_string()]);
    workload.go();
    before_end(workload.pid);
    let report = ctrace.interrupted();
    let map = format!("/tmp/perf-{}.map", workload.pid);
    workload.quit();
    // Maps outlive their processes; most have none.
    let _ = fs::remove_file(map);
    report
}

/// Stacks of waiters in which some function satisfies this, whatever they wait for.
fn waiters(report: &Report, wanted: impl Fn(&StackFrame) -> bool) -> Vec<&Vec<StackFrame>> {
    let rows = report.locks.iter().flatten().flat_map(|lock| &lock.waiters);
    rows.filter_map(|row| report.stacks.get(row.stack.as_deref()?))
        .filter(|stack| stack.iter().any(&wanted))
        .collect()
}

fn named(frame: &StackFrame) -> &str {
    frame.function.as_deref().unwrap_or("?")
}

/// Every stack with `chain[0]` has exactly this chain there: nothing between, nothing missing. At least one has it.
fn assert_chain(report: &Report, chain: &[&str]) {
    let stacks = waiters(report, |frame| named(frame) == chain[0]);
    assert!(
        !stacks.is_empty(),
        "nobody waits in {}: {}",
        chain[0],
        all(report)
    );
    for stack in stacks {
        let names: Vec<&str> = stack.iter().map(named).collect();
        let from = names.iter().position(|name| *name == chain[0]).unwrap();
        assert_eq!(names.get(from..from + chain.len()), Some(chain), "{names:#?}");
    }
}

/// All stacks of waiters, for messages.
fn all(report: &Report) -> String {
    let rows = report.locks.iter().flatten().flat_map(|lock| &lock.waiters);
    let stacks: Vec<String> = rows.map(|row| show(report, row.stack.as_deref())).collect();
    stacks.join("\n  ")
}

/// Frames of code that is in no file.
fn outside_files(report: &Report) -> Vec<&StackFrame> {
    report
        .stacks
        .values()
        .flatten()
        .filter(|frame| frame.module.is_none())
        .collect()
}

/// Number of the line with this text.
fn line_of(text: &str, what: &str) -> u32 {
    let found: Vec<_> = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(what))
        .collect();
    assert_eq!(found.len(), 1, "lines with {what}");
    found[0].0 as u32 + 1
}

/// Functions, lines and what was inlined, with and without symbols, by the oldest and the newest layout at hand.
#[test]
fn go_functions_are_named_even_in_a_stripped_program() {
    let Some(_turn) = can_trace() else { return };
    let text = fs::read_to_string(source("names.go")).unwrap();
    for version in ["system", go::VERSIONS[3]] {
        let toolchain = go::toolchain(version);
        if !require(
            toolchain.is_some(),
            &format!("no Go {version}: cargo xtask test fetches it"),
        ) {
            continue;
        }
        for args in [
            &[][..],
            &["-ldflags=-s -w"],
            &["-buildmode=pie", "-ldflags=-s -w"],
        ] {
            let folder = TempDir::new().unwrap();
            let program = folder.path().join("names");
            go::build(toolchain.as_ref().unwrap(), args, &program, &source("names.go")).unwrap();
            let report = traced(Workload::started(Command::new(&program)), |_| ());
            let wanted = [
                ("main.waitForCache", false, line_of(&text, "&cacheWord)), 128,")),
                ("main.lookUp", true, line_of(&text, "func lookUp")),
                ("main.handleRequest", false, line_of(&text, "\tlookUp(round)")),
                ("main.workerMain", false, line_of(&text, "\thandleRequest(round)")),
            ];
            let names: Vec<&str> = wanted.iter().map(|w| w.0).chain(["runtime.goexit"]).collect();
            assert_chain(&report, &names);
            for stack in waiters(&report, |frame| named(frame) == "main.waitForCache") {
                let frames = stack.iter().filter(|frame| named(frame).starts_with("main."));
                for (frame, (name, inlined, line)) in frames.zip(wanted) {
                    // What is inlined comes before the function that it is in: the flag is the inner one's.
                    let told = (named(frame), frame.inlined, frame.line);
                    assert_eq!(told, (name, inlined, Some(line)), "Go {version} {args:?}");
                    assert!(
                        frame
                            .file
                            .as_deref()
                            .is_some_and(|file| file.ends_with("names.go")),
                        "{frame:?}"
                    );
                }
            }
            assert!(report.hints.is_empty(), "{:?}", report.hints);
        }
    }
}

/// JavaScript with the map that Node writes; and without it no name at all, but the way to have one.
#[test]
fn javascript_functions_are_named_with_a_map() {
    let Some(_turn) = can_trace() else { return };
    let node = tool("node");
    if !require(node.is_some(), "names.js needs node") {
        return;
    }
    let start = |flags: &[&str]| {
        let mut command = Command::new(node.as_ref().unwrap());
        command.args(flags).arg(source("names.js"));
        Workload::started(command)
    };
    let report = traced(
        start(&["--perf-basic-prof", "--interpreted-frames-native-stack"]),
        |_| (),
    );
    assert_chain(&report, &["waitForCache", "handleRequest", "workerMain"]);
    for stack in waiters(&report, |frame| named(frame) == "waitForCache") {
        let frame = stack.iter().find(|frame| named(frame) == "waitForCache").unwrap();
        let text = fs::read_to_string(source("names.js")).unwrap();
        // V8 tells where a function begins.
        assert_eq!(frame.line, Some(line_of(&text, "function waitForCache")));
        assert!(
            frame
                .file
                .as_deref()
                .is_some_and(|file| file.ends_with("/names.js")),
            "{frame:?}"
        );
    }
    assert!(report.hints.is_empty(), "{:?}", report.hints);

    let report = traced(start(&[]), |_| ());
    let invented: Vec<_> = outside_files(&report)
        .into_iter()
        .filter(|f| f.function.is_some())
        .collect();
    assert!(invented.is_empty(), "{invented:#?}");
    assert_eq!(report.hints.len(), 1, "{:?}", report.hints);
    assert!(report.hints[0].text.contains("--perf-basic-prof") && report.hints[0].frames > 0);
}

/// Java with the map that a JVM writes when told to; and without it the way to have one.
#[test]
fn java_methods_are_named_with_a_map() {
    let Some(_turn) = can_trace() else { return };
    let Some(jcmd) = tool("jcmd").or_else(|| tool("java").and_then(|java| sibling(&java, "jcmd"))) else {
        require(false, "Java names need jcmd");
        return;
    };
    let start = || {
        let built = build::workload("Locks.java").ok()?;
        let mut command = Command::new(tool("java")?);
        // All code is compiled before it runs, with frame pointers, which this JVM's own tools need as well.
        command.args([
            "-Xcomp",
            "-XX:TieredStopAtLevel=1",
            "-XX:+PreserveFramePointer",
            "-cp",
        ]);
        command.arg(built).arg("Locks");
        Some(Workload::started(command))
    };
    let Some(workload) = start() else {
        require(false, "Locks.java cannot be built or run");
        return;
    };
    let report = traced(workload, |pid| {
        let told = Command::new(&jcmd)
            .args([&pid.to_string(), "Compiler.perfmap"])
            .output();
        assert!(told.unwrap().status.success());
    });
    assert_chain(
        &report,
        &[
            "monitorenter Runtime1 stub",
            "void Locks.waitForCache()",
            "void Locks.workerMain()",
        ],
    );
    let monitor = report.locks.iter().flatten().find(|lock| {
        lock.name
            .as_deref()
            .is_some_and(|name| name.contains("void Locks.waitForCache()"))
    });
    assert!(
        monitor.is_some(),
        "{:#?}",
        report.locks.iter().flatten().map(|l| &l.name).collect::<Vec<_>>()
    );

    let report = traced(start().unwrap(), |_| ());
    let invented: Vec<_> = outside_files(&report)
        .into_iter()
        .filter(|f| f.function.is_some())
        .collect();
    assert!(invented.is_empty(), "{invented:#?}");
    assert_eq!(report.hints.len(), 1, "{:?}", report.hints);
    assert!(report.hints[0].text.contains("Compiler.perfmap"));
}

fn sibling(program: &Path, name: &str) -> Option<PathBuf> {
    let path = fs::canonicalize(program).ok()?.with_file_name(name);
    path.is_file().then_some(path)
}

/// An interpreter that can name its functions to tools: 3.12 or newer.
fn new_python() -> Option<PathBuf> {
    let installed = ["python3.14", "python3.13", "python3.12"]
        .into_iter()
        .filter_map(tool);
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let own = fs::read_dir(home.join(".pyenv/versions"));
    let own = own
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin/python3"));
    let able = |python: &PathBuf| {
        let check =
            "import sys; sys.exit(sys.version_info < (3, 12) or not sys.is_stack_trampoline_active())";
        let status = Command::new(python).args(["-X", "perf", "-c", check]).output();
        status.is_ok_and(|output| output.status.success())
    };
    installed.chain(own).find(able)
}

/// Python with the map that it writes with `-X perf`; an older one has none, and the report says so.
#[test]
fn python_functions_are_named_with_a_map() {
    let Some(_turn) = can_trace() else { return };
    let python = new_python();
    if require(
        python.is_some(),
        "Python names need Python 3.12 or newer with perf support",
    ) {
        let mut command = Command::new(python.as_ref().unwrap());
        command.args(["-X", "perf"]).arg(source("locks.py"));
        let report = traced(Workload::started(command), |_| ());
        let stacks = waiters(&report, |frame| named(frame) == "PyThread_acquire_lock_timed");
        assert!(!stacks.is_empty(), "{}", all(&report));
        for stack in stacks {
            let python: Vec<_> = stack.iter().filter(|frame| frame.module.is_none()).collect();
            let names: Vec<_> = python.iter().map(|frame| named(frame)).collect();
            let thread = ["Thread.run", "Thread._bootstrap_inner", "Thread._bootstrap"];
            assert_eq!(names[..2], ["wait_for", "worker_main"], "{stack:#?}");
            assert_eq!(names[2..], thread, "{stack:#?}");
            assert!(
                python[0]
                    .file
                    .as_deref()
                    .is_some_and(|file| file.ends_with("/locks.py"))
            );
            assert!(
                python[2]
                    .file
                    .as_deref()
                    .is_some_and(|file| file.ends_with("/threading.py"))
            );
        }
        assert!(report.hints.is_empty(), "{:?}", report.hints);

        let mut command = Command::new(python.as_ref().unwrap());
        command.arg(source("locks.py"));
        let report = traced(Workload::started(command), |_| ());
        assert_eq!(outside_files(&report), Vec::<&StackFrame>::new());
        assert!(
            report.hints[0].text.contains("start python with -X perf"),
            "{:?}",
            report.hints
        );
    }
}

/// `strip`ped programs: frames are named by where their functions begin, which are those of the program as it was built.
#[test]
fn stripped_functions_are_told_apart_by_their_start() {
    let Some(_turn) = can_trace() else { return };
    for (workload, waits_in) in [
        (
            "locks.c",
            &["wait_for_cache", "handle_request", "worker_main"][..],
        ),
        ("locks.rs", &["wait_for_cache", "handle_request"]),
    ] {
        let Ok(built) = build::workload(workload) else {
            require(false, &format!("{workload} cannot be built"));
            continue;
        };
        let folder = TempDir::new().unwrap();
        let program = folder.path().join("bare");
        let status = Command::new("strip").arg("-o").arg(&program).arg(&built).status();
        if !require(
            status.is_ok_and(|status| status.success()),
            "strip (binutils) is missing",
        ) {
            return;
        }
        let report = traced(Workload::started(Command::new(&program)), |_| ());
        let symbols = symbols(&built);
        let stacks: Vec<Vec<String>> = waiters(&report, |frame| named(frame).starts_with("bare!fn@0x"))
            .into_iter()
            .map(|stack| {
                let bare = stack
                    .iter()
                    .filter_map(|frame| named(frame).strip_prefix("bare!fn@0x"));
                bare.map(|start| {
                    let start = u64::from_str_radix(start, 16).unwrap();
                    symbols
                        .iter()
                        .find(|s| s.0 == start)
                        .map_or_else(|| format!("{start:#x}"), |s| s.1.clone())
                })
                .collect()
            })
            .collect();
        let calls = |stack: &&Vec<String>| {
            let mut wanted = waits_in.iter().peekable();
            for name in *stack {
                wanted.next_if(|wanted| name.contains(**wanted));
            }
            wanted.peek().is_none()
        };
        assert!(stacks.iter().find(calls).is_some(), "{workload}: {stacks:#?}");
        let nowhere: Vec<_> = stacks
            .iter()
            .flatten()
            .filter(|name| name.starts_with("0x"))
            .collect();
        assert!(
            nowhere.is_empty(),
            "{workload}: no function begins at {nowhere:?}"
        );
    }
}

/// Functions of a file by where they begin.
fn symbols(program: &Path) -> Vec<(u64, String)> {
    let output = Command::new("nm").arg("-C").arg(program).output().unwrap();
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let start = u64::from_str_radix(words.next()?, 16).ok()?;
        matches!(words.next()?, "t" | "T" | "w" | "W").then_some((start, words.next()?.to_owned()))
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(line)
        .collect()
}

/// A map that another user put in the way is not believed.
#[test]
fn a_map_of_another_user_is_not_read() {
    let Some(_turn) = can_trace() else { return };
    let node = tool("node");
    if !require(node.is_some(), "names.js needs node") {
        return;
    }
    let mut command = Command::new(node.as_ref().unwrap());
    command.arg(source("names.js"));
    let workload = Workload::started(command);
    let path = PathBuf::from(format!("/tmp/perf-{}.map", workload.pid));
    // Half of all addresses: those of user space.
    fs::write(&path, "0 7fffffffffffffff JS:*liar /tmp/x.js:1:1\n").unwrap();
    let nobody = 65534;
    std::os::unix::fs::chown(&path, Some(nobody), Some(nobody)).unwrap();
    let report = traced(workload, |_| ());
    let lies: Vec<_> = report
        .stacks
        .values()
        .flatten()
        .filter(|frame| named(frame) == "liar")
        .collect();
    assert!(lies.is_empty(), "{lies:#?}");
    assert!(
        !outside_files(&report).is_empty(),
        "nothing that could have been lied about"
    );
}
