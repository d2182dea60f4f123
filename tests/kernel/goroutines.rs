//! Goroutines read from outside against the runtime's own account of them.
//!
//! The workload stands still; ctrace reads it; then SIGQUIT makes the runtime print all of its goroutines, which must be
//! the very same: every frame with function, file, line and whether it was inlined, the place of the `go` statement, and
//! what is waited for. Nothing that lives is left out, neither the main goroutine nor those of the runtime.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use tracer::report::model::StackFrame;

use super::support::goroutines::{Elided, Frame, Goroutine, parse};
use super::support::snapshot::{Group, Snapshot};
use super::support::{Ctrace, Workload, build, can_trace, go, require};

/// How the workload is built: what a reader from outside stands on is another thing in each.
pub(super) const BUILDS: [(&str, &[&str]); 4] = [
    ("plain", &[]),
    ("stripped", &["-ldflags=-s -w"]),
    ("pie", &["-buildmode=pie"]),
    ("cgo", &["-tags=cgo"]),
];

/// The distribution's Go and all that xtask fetches.
pub(super) fn versions() -> impl Iterator<Item = &'static str> {
    ["system"].into_iter().chain(go::VERSIONS)
}

/// The oldest and the newest.
pub(super) const ENDS: [&str; 2] = ["system", go::VERSIONS[3]];

/// `goroutines MODE`, built that way; `None` (said aloud) where this Go is missing.
pub(super) fn command(version: &str, build: (&str, &[&str]), mode: &str) -> Option<Command> {
    let built = build::go("goroutines", version, build.0, build.1);
    if let Err(why) = &built {
        require(false, why);
    }
    let mut command = Command::new(built.ok()?);
    // Without it, neither frames nor goroutines of the runtime are told; labels are to be passed over.
    command
        .arg(mode)
        .env("GOTRACEBACK", "system")
        .env("GODEBUG", "tracebacklabels=1");
    Some(command)
}

/// What must be equal of a goroutine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Likeness {
    state: String,
    created_by: Option<String>,
    created_at: Option<String>,
    frames: Vec<Frame>,
}

impl Likeness {
    fn told(goroutine: &Goroutine) -> Self {
        let mut frames = goroutine.frames.clone();
        if let Some(elided) = goroutine.elided {
            frames.insert(elided.after, gap(elided));
        }
        let creator = goroutine.created_by.as_ref();
        Self {
            state: goroutine.state.clone(),
            created_by: creator.map(|frame| frame.function.clone()),
            created_at: creator.map(|frame| format!("{}:{}", frame.file, frame.line)),
            frames,
        }
    }

    fn read(group: &Group, frames: &[StackFrame], version: &str) -> Self {
        Self {
            state: group.state().to_owned(),
            created_by: group.created_by.clone(),
            created_at: group.created_at.clone(),
            frames: as_told(frames.iter().map(frame).collect(), version),
        }
    }
}

/// A frame as the runtime has it.
pub(super) fn frame(frame: &StackFrame) -> Frame {
    Frame {
        function: frame.function.clone().unwrap_or_default(),
        file: frame.file.clone().unwrap_or_default(),
        line: frame.line.unwrap_or_default(),
        inlined: frame.inlined,
    }
}

impl Likeness {
    fn show(&self) -> String {
        let mut text = format!("[{}]", self.state);
        for frame in &self.frames {
            let file = frame.file.rsplit('/').next().unwrap_or_default();
            let mark = if frame.inlined { " inlined" } else { "" };
            let _ = write!(text, " {} {file}:{}{mark} <-", frame.function, frame.line);
        }
        let _ = write!(
            text,
            " created by {} at {}",
            self.created_by.as_deref().unwrap_or("nobody"),
            self.created_at.as_deref().unwrap_or("no place")
        );
        text
    }
}

/// Stands where frames are left out.
fn gap(elided: Elided) -> Frame {
    let count = elided.count.map_or("all other".to_owned(), |n| n.to_string());
    Frame {
        function: format!("({count} frames are left out)"),
        file: String::new(),
        line: 0,
        inlined: false,
    }
}

/// The runtime tells a hundred frames of a stack and no more: the innermost, from 1.21 on fifty from either end. ctrace
/// has all of them.
fn as_told(mut frames: Vec<Frame>, version: &str) -> Vec<Frame> {
    const TOLD: usize = 100;
    if frames.len() <= TOLD {
        return frames;
    }
    let count = frames.len() - TOLD;
    let (after, count) = if version == "system" {
        (TOLD, None)
    } else {
        (TOLD / 2, Some(count))
    };
    let left_out = gap(Elided { after, count });
    frames.splice(after..after + (frames.len() - TOLD), [left_out]);
    frames
}

/// All that differs, readable.
fn differences(account: &[Goroutine], snapshot: &Snapshot, version: &str) -> Vec<String> {
    let mut counts: BTreeMap<Likeness, (u64, u64)> = BTreeMap::new();
    for goroutine in account {
        counts.entry(Likeness::told(goroutine)).or_default().0 += 1;
    }
    let mut faults = Vec::new();
    for group in &snapshot.go.by_stack {
        let frames = snapshot.frames(group.stack.as_deref());
        let likeness = Likeness::read(group, frames, version);
        for example in &group.examples {
            let Some(goroutine) = account.iter().find(|g| g.goid == example.goid) else {
                faults.push(format!("goroutine {} does not exist", example.goid));
                continue;
            };
            if Likeness::told(goroutine) != likeness {
                faults.push(format!("goroutine {} is in another group", example.goid));
            }
            // The main goroutine and the first ones of the runtime have no parent, which is told as none or as 0.
            let parents = (
                goroutine.parent_goid,
                example.parent_goid.filter(|&goid| goid != 0),
            );
            if version != "system" && goroutine.created_by.is_some() && parents.0 != parents.1 {
                faults.push(format!(
                    "parent of goroutine {} (told, read): {parents:?}",
                    example.goid
                ));
            }
        }
        counts.entry(likeness).or_default().1 += group.count;
    }
    let unequal = counts.iter().filter(|(_, (told, read))| told != read);
    faults.extend(unequal.map(|(likeness, (told, read))| {
        format!("the runtime has {told}, ctrace has {read} of {}", likeness.show())
    }));
    if snapshot.go.goroutines != account.len() as u64 {
        let read = snapshot.go.goroutines;
        faults.push(format!(
            "the runtime has {}, ctrace has {read} in all",
            account.len()
        ));
    }
    faults
}

/// Every kind of wait, of call and of creation, in every version and build: exactly what the runtime itself says.
#[test]
fn goroutines_are_those_that_the_runtime_has() {
    let Some(_turn) = can_trace() else { return };
    let mut faults = Vec::new();
    for version in versions() {
        for build in BUILDS {
            let Some(workload) = command(version, build, "still").map(Workload::started) else {
                break;
            };
            let ctrace = Ctrace::start(&["--only", "go", "--pid", &workload.pid.to_string()]);
            let snapshot = Snapshot::of(ctrace.interrupted_document());
            let account = parse(&workload.account()).unwrap();
            assert!(account.len() > 300, "the account is not whole: {account:#?}");
            let found = differences(&account, &snapshot, version);
            let name = format!("Go {version} ({}), {}", snapshot.go.version, build.0);
            println!("{name}: {} goroutines, {} faults", account.len(), found.len());
            faults.extend(found.iter().take(20).map(|fault| format!("{name}: {fault}")));
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

/// The workload alone: as many goroutines are in each function as it says, and the account of them can be read. What is
/// waited for has the same name in all versions, but for these.
#[test]
fn goroutines_stand_where_the_workload_says() {
    for version in versions() {
        for build in [BUILDS[0], BUILDS[3]] {
            let Some(mut workload) = command(version, build, "still").map(Workload::started) else {
                break;
            };
            let truth = workload.counts();
            let account = parse(&workload.account()).unwrap();
            let among = |function: &str| {
                let has = |g: &&Goroutine| g.frames.iter().any(|frame| frame.function == function);
                account.iter().filter(has).count() as u64
            };
            let mut functions = 0;
            // The oldest version leaves out where these two begin.
            let told = |key: &str| {
                key.starts_with("main.") && (version != "system" || !key.starts_with("main.dive"))
            };
            for (function, count) in truth.all().filter(|(key, _)| told(key)) {
                assert_eq!(among(function), count, "Go {version}, {}: {function}", build.0);
                functions += 1;
            }
            assert!(functions > 40, "{truth:?}");

            let waiting = |function: &str| {
                let found = account
                    .iter()
                    .find(|g| g.frames.iter().any(|f| f.function == function));
                found.map(|g| (&*g.state, g.locked))
            };
            let since = |newer: bool, reason: &'static str| if newer { reason } else { "semacquire" };
            let of_mutex = since(version != "system", "sync.Mutex.Lock");
            let of_group = since(["1.25.5", "1.27.3"].contains(&version), "sync.WaitGroup.Wait");
            for (function, state, locked) in [
                ("main.sendNobody", "chan send", false),
                ("main.sendNone", "chan send (nil chan)", false),
                ("main.receiveNone", "chan receive (nil chan)", false),
                ("main.selectCases", "select", false),
                ("main.selectNone", "select (no cases)", false),
                ("main.lockMutex", of_mutex, false),
                ("main.waitGroup", of_group, false),
                ("main.waitCond", "sync.Cond.Wait", false),
                ("main.sleep", "sleep", false),
                ("main.sleepLocked", "sleep", true),
                ("main.receiveLocked", "chan receive", true),
                ("main.readSocket", "IO wait", false),
                ("main.writeSocket", "IO wait", false),
                ("main.readBlocking", "syscall", false),
            ] {
                assert_eq!(
                    waiting(function),
                    Some((state, locked)),
                    "Go {version}, {}: {function}",
                    build.0
                );
            }
        }
    }
}
