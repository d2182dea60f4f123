//! Goroutines of a program that runs as hard as it can: what is read while it moves is whole, or not reported.
//!
//! Which function of the workload may call which is written above each of them (`// by:`). A stack that was put together
//! from two moments, or of two goroutines, breaks that sooner or later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::goroutines::{BUILDS, ENDS, command, frame};
use super::support::goroutines::{Frame, parse};
use super::support::snapshot::Snapshot;
use super::support::{Ctrace, Workload, can_trace, until};

/// Goroutines started and ended between two looks.
const SPAWNED: u64 = 2_300;

/// How often ctrace looks anew.
const RUNS: u64 = 11;

/// Packages of the library that the workload calls. None of them calls back.
const LIBRARY: [&str; 12] = [
    "internal/bytealg",
    "internal/chacha8rand",
    "internal/godebug",
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

/// Packages and functions through which main reads its stdin and answers.
const MAIN: [&str; 15] = [
    "bufio",
    "errors",
    "fmt",
    "internal/poll",
    "io",
    "main.counted.func1",
    "main.main",
    "main.sayCounts",
    "os",
    "reflect",
    "slices",
    "sort",
    "strconv",
    "syscall",
    "unicode/utf8",
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
    ("sleep", &["hardBottom", "hardGC", "hardRest"], &["time.Sleep"]),
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

    /// What is wrong with goroutines of this creator and state that have these frames, innermost first.
    fn fault(&self, creator: Option<&str>, state: &str, frames: &[Frame]) -> Result<(), Fault> {
        let Some((outermost, inner)) = frames.split_last() else {
            let known =
                creator.is_none_or(|name| library(name) || ["hard", "hardSpawn"].contains(&own(name)));
            let running = known && state == "running";
            return running.then_some(()).ok_or_else(|| wrong("no stack"));
        };
        if outermost.function != "runtime.goexit" {
            return Err(wrong("does not begin in runtime.goexit"));
        }
        let mut outwards = inner.iter().rev().peekable();

        // The goroutine of main, and those of the runtime.
        let Some(creator) = creator.filter(|name| !library(name)) else {
            let of_main = |name: &str| MAIN.iter().any(|part| name == *part || within(name, part));
            let foreign = outwards
                .find(|frame| !(library(&frame.function) || creator.is_none() && of_main(&frame.function)));
            return foreign.map_or(Ok(()), |frame| Err(Fault::Invented(frame.function.clone())));
        };

        // From the outermost inwards: the call that the compiler made of the `go` statement, then the workload's own.
        let wrapper = |frame: &&Frame| {
            let rest = frame.function.strip_prefix(creator).unwrap_or_default();
            rest.starts_with(".gowrap") || rest.starts_with(".func")
        };
        outwards.next_if(wrapper);
        let mut caller: Option<&Frame> = None;
        while let Some(frame) = outwards.next_if(|frame| frame.function.starts_with("main.")) {
            let function = own(&frame.function);
            let callers = self.callers.get(function);
            let callers = callers.ok_or_else(|| Fault::Invented(function.to_owned()))?;
            let by = caller.map_or_else(
                || format!("go {}", own(creator)),
                |by| own(&by.function).to_owned(),
            );
            if !callers.contains(&by) {
                return Err(wrong(&format!("{by} does not call {function}")));
            }
            if let Some(caller) = caller {
                self.line(caller, &format!("{function}("))?;
            }
            caller = Some(frame);
        }
        let rest: Vec<&str> = outwards.map(|frame| &*frame.function).collect();
        if let Some(foreign) = rest.iter().find(|name| !library(name)) {
            return Err(if foreign.starts_with("main.") {
                wrong(&format!("{foreign} is called by {rest:?}"))
            } else {
                Fault::Invented((*foreign).to_owned())
            });
        }
        if let Some((_, functions, through)) = WAITS.iter().find(|wait| state == wait.0) {
            let function = caller.map_or("nobody", |frame| own(&frame.function));
            // The runtime guards the collector by the same means, which any allocation may have to wait for.
            let of_runtime = rest.contains(&"runtime.semacquire");
            let begins = of_runtime || rest.first().is_some_and(|name| through.contains(name));
            let functions = if of_runtime { &[function][..] } else { functions };
            if !functions.contains(&function) || !begins || rest.last() != Some(&"runtime.gopark") {
                return Err(wrong(&format!("{state} in {function} through {rest:?}")));
            }
        }
        Ok(())
    }

    /// Whether the frame is at a line with this text.
    fn line(&self, frame: &Frame, what: &str) -> Result<(), Fault> {
        let line = (frame.line as usize).checked_sub(1);
        let line = line.and_then(|index| self.text.get(index));
        if frame.file.ends_with("/hard.go") && line.is_some_and(|line| line.contains(what)) {
            return Ok(());
        }
        Err(wrong(&format!(
            "no {what} at {}:{}: {line:?}",
            frame.file, frame.line
        )))
    }
}

fn wrong(why: &str) -> Fault {
    Fault::Wrong(why.to_owned())
}

#[derive(Debug)]
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

/// What was found in several looks at one program.
#[derive(Debug, Default)]
struct Tally {
    all: u64,
    wrong: u64,
    faults: Vec<String>,
    invented: BTreeSet<String>,
    seen: BTreeSet<String>,
}

impl Tally {
    fn add(&mut self, grammar: &Grammar, count: u64, creator: Option<&str>, state: &str, frames: &[Frame]) {
        self.all += count;
        self.seen
            .extend(frames.iter().map(|frame| frame.function.clone()));
        match grammar.fault(creator, state, frames) {
            Ok(()) => {}
            Err(Fault::Invented(name)) => {
                self.invented.insert(name);
            }
            Err(Fault::Wrong(why)) => {
                self.wrong += count;
                self.faults
                    .push(format!("{count} by {creator:?}, {state}: {why}"));
            }
        }
    }

    /// All goroutines of a report.
    fn look(&mut self, grammar: &Grammar, snapshot: &Snapshot) {
        for group in &snapshot.go.by_stack {
            let frames = snapshot.frames(group.stack.as_deref());
            let frames: Vec<Frame> = frames.iter().map(frame).collect();
            self.add(
                grammar,
                group.count,
                group.created_by.as_deref(),
                group.state(),
                &frames,
            );
        }
    }

    /// At least `of` in 1,000 are where they can be.
    fn judge(&self, context: &str, of: u64) {
        println!(
            "{context}: {} goroutines, {} misplaced {:?}",
            self.all, self.wrong, self.faults
        );
        assert!(
            self.invented.is_empty(),
            "{context}: nothing can be in {:#?}",
            self.invented
        );
        assert!(
            (self.all - self.wrong) * 1_000 >= self.all * of,
            "{context}: {} of {} misplaced: {:#?}",
            self.wrong,
            self.all,
            self.faults
        );
    }

    /// What was looked at was not the same few that stand still.
    fn everywhere(&self, context: &str) {
        for function in ["hardGive", "hardTake", "hardEnter", "hardDive", "hardBottom"] {
            let name = format!("main.{function}");
            assert!(
                self.seen.contains(&name),
                "{context}: nobody seen in {name}: {:?}",
                self.seen
            );
        }
    }
}

/// Waits until so many goroutines of the workload have come and gone.
fn until_spawned(workload: &mut Workload, number: u64) {
    let begun = workload.counts();
    until("goroutines came and went", || {
        let now = workload.counts();
        let more = |key| now.get(key) - begun.get(key);
        more("spawned") >= number && more("turns") > 0
    });
}

/// At least 999 goroutines of 1,000 are where they can be, none is in a function that it cannot ever be in, and nothing of
/// all that coming and going is called a leak.
#[test]
fn goroutines_that_move_are_read_whole() {
    let Some(_turn) = can_trace() else { return };
    let grammar = Grammar::read();
    for version in ENDS {
        let Some(command) = command(version, BUILDS[0], "hard") else {
            continue;
        };
        let mut workload = Workload::started(command);
        workload.tell("go");
        let (mut tally, mut alive) = (Tally::default(), 0);
        for _ in 0..RUNS {
            let ctrace = Ctrace::start(&["--only", "go", "--pid", &workload.pid.to_string()]);
            until_spawned(&mut workload, SPAWNED);
            let snapshot = Snapshot::of(ctrace.interrupted_document());
            let alarms = snapshot.alarms();
            assert!(alarms.is_empty(), "{alarms:#?}\n{}", snapshot.show());
            alive += snapshot.go.goroutines;
            tally.look(&grammar, &snapshot);
        }
        let context = format!("Go {version}, {alive} alive");
        tally.judge(&context, 999);
        tally.everywhere(&context);
        // Those that move on and on are left out; they are few.
        assert!(
            tally.all * 4 >= alive * 3,
            "Go {version}: {} of {alive} are shown",
            tally.all
        );
        workload.quit();
    }
}

/// Programs that one puts in the place of another.
const IMAGES: u64 = 7;

/// Another program takes the place of one that runs hard, again and again, each time elsewhere in memory; in the end it is killed. At
/// no moment is anything of one image told of another, and no stack is put together of two.
#[test]
fn goroutines_of_a_program_that_execs_and_is_killed() {
    let Some(_turn) = can_trace() else { return };
    let grammar = Grammar::read();
    for version in ENDS {
        let Some(command) = command(version, ("pie", &["-buildmode=pie"]), "hard") else {
            continue;
        };
        let mut workload = Workload::started(command);
        let (pid, mut tally) = (workload.pid.to_string(), Tally::default());
        for last in [false, true] {
            let ctrace = Ctrace::start(&["--only", "go", "--pid", &pid]);
            for _ in 0..IMAGES {
                workload.tell("go");
                until_spawned(&mut workload, SPAWNED / 10);
                workload.tell("exec");
                workload.expect("the next program", |line| line.starts_with("ready "));
            }
            workload.tell("go");
            until_spawned(&mut workload, SPAWNED * 700);
            let document = if last {
                // In the midst of its work.
                workload.kill();
                ctrace.ended_document()
            } else {
                let document = ctrace.interrupted_document();
                workload.tell("exec");
                workload.expect("the next program", |line| line.starts_with("ready "));
                document
            };
            if last && document["go"].is_null() {
                println!("Go {version}: killed before the last program was first read");
                continue;
            }
            let snapshot = Snapshot::of(document);
            let alarms = snapshot.alarms();
            assert!(alarms.is_empty(), "{alarms:#?}\n{}", snapshot.show());
            tally.look(&grammar, &snapshot);
        }
        // Two looks, each at one moment.
        tally.judge(&format!("Go {version}"), 1_000);
        assert!(tally.all > 30, "{tally:?}");
    }
}

/// The workload alone: by the runtime's own account every goroutine is where the grammar has it.
#[test]
fn goroutines_keep_to_the_grammar() {
    let grammar = Grammar::read();
    assert!(grammar.callers.len() > 15, "{:?}", grammar.callers);
    for version in ENDS {
        let mut tally = Tally::default();
        for _ in 0..RUNS {
            let Some(command) = command(version, BUILDS[0], "hard") else {
                return;
            };
            let mut workload = Workload::started(command);
            workload.tell("go");
            until_spawned(&mut workload, SPAWNED);
            for goroutine in parse(&workload.account()).unwrap() {
                // Not told whole: stacks deeper than a hundred frames, which the oldest version does not always say, and
                // the one on which the signal came, at whatever instruction; a worker of the collector at work runs, too.
                let whole = goroutine.elided.is_none() && goroutine.frames.len() < 100;
                if whole && !["running", "GC worker (active)"].contains(&&*goroutine.state) {
                    let creator = goroutine.created_by.map(|frame| frame.function);
                    tally.add(
                        &grammar,
                        1,
                        creator.as_deref(),
                        &goroutine.state,
                        &goroutine.frames,
                    );
                }
            }
        }
        // Two looks, each at one moment.
        tally.judge(&format!("Go {version}"), 1_000);
        tally.everywhere(version);
        assert!(tally.all > 30, "{tally:?}");
    }
}
