//! Goroutines of a program that runs as hard as it can: what is read while it moves is whole, or not reported.
//!
//! Which function of the workload may call which is written above each of them (`// by:`). A stack that was put together
//! from two moments, or of two goroutines, breaks that sooner or later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use tracer::report::model::StackFrame;

use super::goroutines::{BUILDS, ENDS, command};
use super::support::snapshot::{Group, Snapshot};
use super::support::{Ctrace, Workload, can_trace, until};

/// Goroutines started and ended between two looks.
const SPAWNED: u64 = 2_300;

/// How often ctrace looks anew.
const RUNS: u64 = 7;

/// Packages of the library that the workload calls. None of them calls back.
const LIBRARY: [&str; 11] = [
    "internal/bytealg",
    "internal/chacha8rand",
    "internal/race",
    "internal/runtime/",
    "internal/sync",
    "math/rand",
    "runtime",
    "sync",
    "time",
    "unique",
    "weak",
];

/// What is waited for by intent, where, and through which function of the library. `semacquire` is what the oldest
/// version calls a wait for a lock. For all else (memory, the collector, a time slice) any function may have to wait.
const WAITS: [(&str, &[&str], &[&str]); 7] = [
    ("chan send", &["hardGive"], &["runtime.chansend1"]),
    (
        "chan receive",
        &["hardTake", "hardCollect"],
        &["runtime.chanrecv1"],
    ),
    ("select", &["hardChoose"], &["runtime.selectgo"]),
    ("sleep", &["hardBottom", "hardGC"], &["time.Sleep"]),
    ("sync.Mutex.Lock", &["hardEnter"], &["sync.(*Mutex).Lock"]),
    ("sync.WaitGroup.Wait", &["hardJoin"], &["sync.(*WaitGroup).Wait"]),
    (
        "semacquire",
        // The oldest version guards its random numbers by a lock.
        &["hardEnter", "hardJoin", "hardGC", "hardDiver", "hardBottom"],
        &[
            "sync.(*Mutex).Lock",
            "sync.(*WaitGroup).Wait",
            "runtime.GC",
            "math/rand.Intn",
        ],
    ),
];

/// What may call what.
struct Grammar {
    text: Vec<String>,
    /// Callers by function, `go CREATOR` among them.
    callers: BTreeMap<String, BTreeSet<String>>,
}

impl Grammar {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/goroutines/hard.go");
        let text: Vec<String> = fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        let mut callers = BTreeMap::new();
        let mut by = None;
        for line in &text {
            if let Some(names) = line.strip_prefix("// by: ") {
                by = Some(names.split(", ").map(str::to_owned).collect());
            } else if let Some(function) = line.strip_prefix("func ") {
                let name = function.split('(').next().unwrap();
                callers.extend(by.take().map(|by| (name.to_owned(), by)));
            }
        }
        Self { text, callers }
    }

    /// What is wrong with a group of goroutines.
    fn fault(&self, group: &Group, frames: &[StackFrame]) -> Result<(), Fault> {
        let creator = group.created_by.as_deref();
        if frames.is_empty() {
            let known = creator
                .is_none_or(|name| library(name) || ["hard", "hardSpawn", "main"].contains(&own(name)));
            return if known && group.status == "running" {
                Ok(())
            } else {
                Err(Fault::Wrong("no stack".to_owned()))
            };
        }
        let mut outwards = frames.iter().rev().peekable();
        let name = |frame: &StackFrame| frame.function.clone().unwrap_or_default();
        if outwards.next().map(name).as_deref() != Some("runtime.goexit") {
            return Err(Fault::Wrong("does not begin in runtime.goexit".to_owned()));
        }
        // The goroutines of the runtime, and the one of main.
        let of_runtime = creator.is_some_and(library);
        if of_runtime || creator.is_none() {
            return frames.iter().map(name).try_for_each(|name| match &*name {
                "main.main" if creator.is_none() => Ok(()),
                name if library(name) => Ok(()),
                name if creator.is_none()
                    && ["bufio", "internal/poll", "os", "syscall"]
                        .iter()
                        .any(|p| within(name, p)) =>
                {
                    Ok(())
                }
                name => Err(Fault::Invented(name.to_owned())),
            });
        }

        // From the outermost inwards: the call that the compiler made of the `go` statement, then the workload's own.
        let creator = own(creator.unwrap_or_default());
        let wrapper = |name: &str| {
            let rest = own(name).strip_prefix(creator).unwrap_or_default();
            rest.starts_with(".gowrap") || rest.starts_with(".func")
        };
        outwards.next_if(|frame| wrapper(&name(frame)));
        let mut caller: Option<&StackFrame> = None;
        while let Some(frame) = outwards.next_if(|frame| name(frame).starts_with("main.")) {
            let (function, by) = (name(frame), caller.map(name));
            let Some(callers) = self.callers.get(own(&function)) else {
                return Err(Fault::Invented(function));
            };
            let by = by.map_or_else(|| format!("go {creator}"), |by| own(&by).to_owned());
            if !callers.contains(&by) {
                return Err(Fault::Wrong(format!("{by} does not call {function}")));
            }
            if let Some(caller) = caller {
                self.line(caller, &format!("{}(", own(&function)))?;
            }
            caller = Some(frame);
        }
        let library_part: Vec<String> = outwards.map(name).collect();
        if let Some(foreign) = library_part.iter().find(|name| !library(name)) {
            let fault = if foreign.starts_with("main.") {
                Fault::Wrong
            } else {
                Fault::Invented
            };
            return Err(fault(foreign.clone()));
        }
        let reason = group.wait_reason.as_deref().filter(|_| group.status == "waiting");
        if let Some((reason, functions, through)) = WAITS.iter().find(|wait| reason == Some(wait.0)) {
            let function = caller.map(name).unwrap_or_default();
            let begins = library_part
                .first()
                .is_some_and(|name| through.contains(&&**name));
            let parked = library_part.last().is_some_and(|name| name == "runtime.gopark");
            if !functions.contains(&own(&function)) || !begins || !parked {
                return Err(Fault::Wrong(format!(
                    "{reason} in {function} through {library_part:?}"
                )));
            }
        }
        Ok(())
    }

    /// Whether the frame is at a line with this text.
    fn line(&self, frame: &StackFrame, what: &str) -> Result<(), Fault> {
        let number = frame.line.unwrap_or_default() as usize;
        let line = number.checked_sub(1).and_then(|index| self.text.get(index));
        let file = frame.file.as_deref().unwrap_or_default();
        if file.ends_with("/hard.go") && line.is_some_and(|line| line.contains(what)) {
            return Ok(());
        }
        Err(Fault::Wrong(format!("no {what} at {file}:{number}: {line:?}")))
    }
}

enum Fault {
    /// A function that exists but cannot be there.
    Wrong(String),
    /// A function that nothing here can ever be in.
    Invented(String),
}

fn own(function: &str) -> &str {
    function.strip_prefix("main.").unwrap_or(function)
}

fn within(function: &str, package: &str) -> bool {
    function
        .strip_prefix(package)
        .is_some_and(|rest| package.ends_with('/') || rest.starts_with(['.', '/']))
}

fn library(function: &str) -> bool {
    LIBRARY.iter().any(|package| within(function, package))
}

/// At least 999 goroutines of 1,000 are where they can be, none is in a function that it cannot ever be in, and nothing of
/// all that coming and going is called a leak.
#[test]
fn goroutines_that_move_are_read_whole() {
    let Some(_turn) = can_trace() else { return };
    let grammar = Grammar::read();
    assert!(grammar.callers.len() > 15, "{:?}", grammar.callers);
    for version in ENDS {
        let Some(command) = command(version, BUILDS[0], "hard") else {
            continue;
        };
        let mut workload = Workload::started(command);
        workload.tell("go");
        let (mut all, mut wrong, mut invented) = (0, 0, Vec::new());
        let mut faults = Vec::new();
        let mut seen = BTreeSet::new();
        for _ in 0..RUNS {
            let begun = workload.counts();
            let ctrace = Ctrace::start(&["--only", "go", "--pid", &workload.pid.to_string()]);
            until("goroutines came and went", || {
                let now = workload.counts();
                let more = |key| now.get(key) - begun.get(key);
                more("spawned") >= SPAWNED && more("turns") > 0
            });
            let snapshot = Snapshot::of(ctrace.interrupted_document());
            let alarms = snapshot.alarms();
            assert!(alarms.is_empty(), "{alarms:#?}\n{}", snapshot.show());
            for group in &snapshot.go.by_stack {
                let frames = snapshot.frames(group.stack.as_deref());
                all += group.count;
                seen.extend(frames.iter().filter_map(|frame| frame.function.clone()));
                match grammar.fault(group, frames) {
                    Ok(()) => {}
                    Err(Fault::Invented(name)) => invented.push(name),
                    Err(Fault::Wrong(why)) => {
                        wrong += group.count;
                        faults.push(format!("{} of {:?}: {why}", group.count, group.created_by));
                    }
                }
            }
        }
        println!("Go {version}: {all} goroutines, {wrong} in impossible places: {faults:#?}");
        assert!(
            invented.is_empty(),
            "Go {version}: nothing can be in {invented:#?}"
        );
        assert!(
            wrong * 1_000 <= all,
            "Go {version}: {wrong} of {all}: {faults:#?}"
        );
        // What was looked at was not the same few that stand still.
        for function in ["hardGive", "hardTake", "hardEnter", "hardDive", "hardBottom"] {
            let name = format!("main.{function}");
            assert!(
                seen.contains(&name),
                "Go {version}: nobody seen in {name}: {seen:?}"
            );
        }
        workload.quit();
    }
}
