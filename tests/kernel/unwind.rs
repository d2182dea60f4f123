//! The truth table: stock programs under load, their stacks as ctrace has them against gdb's.
//!
//! A program works while it is traced and is left blocked. gdb then stops it twice, which ends every wait, so that ctrace takes
//! each stack as one of a wait that happened, and reads every physical frame of every thread. At the end ctrace reads the
//! threads where they wait now, and then gdb once more: of those that did not move, both must be what gdb saw.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::thread;
use std::time::Duration;

use tracer::report::model::{Reason, Report, StackFrame};

use super::support::gdb::{self, Code};
use super::support::{Ctrace, can_trace, require};
use super::unwind_programs::{PROGRAMS, Subject};

/// A stack as ctrace has it: physical frames only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stack(Vec<Physical>);

/// Address, whether it lies in a file, and the function.
type Physical = (u64, bool, String);

impl Stack {
    fn of(frames: &[StackFrame]) -> Self {
        let frame = |frame: &StackFrame| {
            let address = frame.address.trim_start_matches("0x");
            let function = frame.function.clone().unwrap_or_default();
            (
                u64::from_str_radix(address, 16).unwrap(),
                frame.module.is_some(),
                function,
            )
        };
        Self(frames.iter().filter(|frame| !frame.inlined).map(frame).collect())
    }

    fn addresses(&self) -> Vec<u64> {
        self.0.iter().map(|frame| frame.0).collect()
    }
}

/// What came of one program.
#[derive(Debug, Default)]
pub(crate) struct Row {
    name: String,
    threads: usize,
    /// Frames of native code from the leaf to the bottom or to code made at run time, by gdb.
    frames: usize,
    right: usize,
    /// Frames that ctrace has and gdb has not.
    invented: usize,
    /// Threads whose first frame outside the C library is right.
    callers: usize,
    /// Threads whose stack was that of a wait that happened, too, and those for which it was cut short.
    waited: usize,
    cut: usize,
    /// Frames beyond those that gdb can find, each where a call returns to.
    beyond: usize,
    /// Different stacks of waits and wake-ups whose every return address was checked to follow a call.
    checked: usize,
    moving: usize,
    /// Threads that stood still for gdb and not for ctrace.
    unread: usize,
    /// What is wrong, for the message.
    faults: Vec<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            threads,
            frames,
            right,
            invented,
            callers,
            waited,
            cut,
            beyond,
            checked,
            moving,
            ..
        } = self;
        let share = 100.0 * *right as f64 / (*frames).max(1) as f64;
        write!(
            f,
            "| {name} | {threads} | {frames} | {right} ({share:.1} %) | {invented} | {callers} | {waited} + {cut} | {beyond} | {checked} | {moving} |"
        )
    }
}

const HEAD: &str = "\
| program | threads | true frames | right | invented | callers right | also of waits, + cut | beyond gdb | stacks checked | moving |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

/// Whether the file is the C library or the loader.
fn is_libc(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    ["libc.so", "libc-", "ld-", "libpthread", "[vdso]"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// All stacks of the process that some wait or wake-up had.
fn happened(report: &Report, pid: u32) -> BTreeSet<Stack> {
    let locks = report.locks.iter().flatten();
    let waits = locks
        .clone()
        .filter(|lock| lock.pid == pid)
        .flat_map(|lock| lock.waiters.iter().map(|w| &w.stack));
    let wakes = locks
        .flat_map(|lock| &lock.wakers)
        .filter(|waker| waker.pid == pid)
        .map(|waker| &waker.stack);
    let blocked = report.blocked.iter().flatten();
    // A stop is gdb's doing, not a wait.
    let blocked = blocked
        .filter(|row| row.pid == pid && row.reason != Reason::Stopped)
        .map(|row| &row.stack);
    let all = waits.chain(wakes).chain(blocked).flatten();
    all.map(|id| Stack::of(&report.stacks[id])).collect()
}

/// Compares the threads of a process.
fn compare(row: &mut Row, report: &Report, pid: u32, truth: &gdb::Stacks) {
    let code = Code::of(pid);
    let happened = happened(report, pid);
    row.checked += happened.len();
    for stack in &happened {
        no_call(row, &code, stack);
    }
    for (&tid, all) in truth {
        let known = all.iter().take_while(|&&pc| code.file(pc).is_some()).count();
        // A debugger without rules for code made at run time guesses: what it says from there on is no truth.
        let (native, jit) = (&all[..known], known < all.len());
        let now = report
            .waiting_now
            .iter()
            .find(|now| now.pid == pid && now.tid == tid);
        let stack = now
            .and_then(|now| now.stack.as_ref())
            .map(|id| Stack::of(&report.stacks[id]));
        let Some(stack) = stack else {
            // It ran, or its registers moved while it was read: it sleeps for a moment only, as a JVM's timer does.
            row.unread += 1;
            row.faults
                .push(format!("{pid}/{tid}: no stack, gdb {}", show(&code, native)));
            continue;
        };
        row.threads += 1;
        row.frames += native.len();
        let ours = stack.addresses();
        let right = same(native, &ours);
        row.right += right;
        let caller = native
            .iter()
            .position(|&pc| code.file(pc).is_some_and(|file| !is_libc(file)));
        row.callers += usize::from(caller.is_none_or(|at| at < right));
        if right < native.len() {
            let wrong = ours[right..].iter().filter(|pc| !native.contains(pc)).count();
            row.invented += if jit { 0 } else { wrong };
            let (ours, gdb) = (show(&code, &ours), show(&code, native));
            row.faults.push(format!(
                "{pid}/{tid}: {right} right\n   ours {ours}\n    gdb {gdb}"
            ));
        } else {
            row.beyond += ours.len() - right;
        }
        no_call(row, &code, &stack);
        // The longest that is its beginning.
        let of_wait = happened
            .iter()
            .map(Stack::addresses)
            .filter(|stack| ours.starts_with(stack));
        let of_wait = of_wait.max_by_key(Vec::len).unwrap_or_default();
        if of_wait == ours {
            row.waited += 1;
        } else if of_wait.len() > caller.unwrap_or(0) {
            row.cut += 1;
            println!(
                "{}: {tid}: {} of {} frames of a wait",
                row.name,
                of_wait.len(),
                ours.len()
            );
        } else {
            let ours = show(&code, &ours);
            row.faults.push(format!(
                "{pid}/{tid}: of no wait, {} frames cut: {ours}",
                of_wait.len()
            ));
        }
    }
}

/// How many frames from the leaf are the same.
fn same(left: &[u64], right: &[u64]) -> usize {
    left.iter()
        .zip(right)
        .take_while(|(left, right)| left == right)
        .count()
}

/// Counts as invented what is said to be a frame but is not where a call returns to.
fn no_call(row: &mut Row, code: &Code, stack: &Stack) {
    for (at, (pc, in_file, function)) in stack.0.iter().enumerate().skip(1) {
        // A handler returns to the C library's trampoline, and an interrupted function is not where it called; Go puts the
        // address of its last function under a goroutine's first.
        let called = !code.is_sigreturn(*pc)
            && !code.is_sigreturn(stack.0[at - 1].0)
            && !function.starts_with("runtime.goexit");
        if *in_file && called && !code.follows_call(*pc) {
            row.invented += 1;
            row.faults.push(format!(
                "frame {at} follows no call: {}",
                show(code, &stack.addresses())
            ));
        }
    }
}

fn show(code: &Code, pcs: &[u64]) -> String {
    let one = |pc: &u64| {
        let file = code.file(*pc).and_then(|path| path.rsplit('/').next());
        format!("{pc:x}@{}", file.unwrap_or("-"))
    };
    pcs.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// Waits until nothing changes where the threads sleep; those that never rest are left to gdb to find moving.
fn settle(pids: &[u32]) {
    let reading = || {
        let tasks = pids.iter().flat_map(|pid| {
            fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
                .flatten()
        });
        let calls: Vec<_> = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("syscall")).ok())
            .collect();
        calls
    };
    let (mut last, mut same) = (reading(), 0);
    for _ in 0..60 {
        thread::sleep(Duration::from_millis(50));
        let now = reading();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        if same >= 6 {
            break;
        }
    }
}

/// Traces a program under load and compares it with gdb.
fn measure(name: &str, subject: Subject) -> Row {
    let mut args = vec!["--only=locks,sched,io".to_owned()];
    args.extend(subject.pids.iter().map(|pid| format!("--pid={pid}")));
    let ctrace = Ctrace::start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    (subject.load)();
    settle(&subject.pids);
    let before: Vec<_> = subject
        .pids
        .iter()
        .map(|&pid| (pid, gdb::stacks(pid, 2)))
        .collect();
    settle(&subject.pids);
    let report = ctrace.interrupted();
    let mut row = Row {
        name: name.to_owned(),
        ..Row::default()
    };
    for (pid, mut truth) in before {
        let (all, after) = (truth.len(), gdb::stacks(pid, 1));
        truth.retain(|tid, pcs| after.get(tid) == Some(pcs));
        row.moving += all - truth.len();
        compare(&mut row, &report, pid, &truth);
    }
    println!("{name}: {:?}", report.losses.stack_failed_by);
    row
}

/// At least 99 % of native frames are right, the application's caller of the C library in every thread, and not one frame is
/// invented; `CTRACE_TRUTH_ONLY` names one program to look at.
#[test]
fn unwind_truth_table() {
    let Some(_turn) = can_trace() else { return };
    if !require(
        super::support::build::tool("gdb").is_some(),
        "gdb is not installed",
    ) {
        return;
    }
    let only = std::env::var("CTRACE_TRUTH_ONLY").ok();
    let mut rows = Vec::new();
    for (name, start) in PROGRAMS
        .iter()
        .filter(|p| only.as_ref().is_none_or(|only| p.0 == only))
    {
        let Some(subject) = start() else { continue };
        let row = measure(name, subject);
        for fault in &row.faults {
            println!("{name}: {fault}");
        }
        println!("{row}");
        rows.push(row);
    }
    println!("{HEAD}");
    let mut total = Row {
        name: "all".to_owned(),
        ..Row::default()
    };
    for row in &rows {
        println!("{row}");
        total.threads += row.threads;
        total.frames += row.frames;
        total.right += row.right;
        total.invented += row.invented;
        total.callers += row.callers;
        total.waited += row.waited;
        total.cut += row.cut;
        total.moving += row.moving;
        total.beyond += row.beyond;
        total.checked += row.checked;
    }
    println!("{total}");
    for row in rows.iter().chain([&total]) {
        assert!(row.threads > 0, "{row}: nothing compared");
        assert!(
            row.unread * 10 <= row.threads,
            "{row}: threads without a stack\n{:#?}",
            row.faults
        );
        assert!(
            row.right * 100 >= row.frames * 99,
            "{row}: under 99 % right\n{:#?}",
            row.faults
        );
        assert_eq!(
            row.callers, row.threads,
            "{row}: application callers\n{:#?}",
            row.faults
        );
        assert_eq!(row.invented, 0, "{row}: frames invented\n{:#?}", row.faults);
        assert_eq!(
            row.waited + row.cut,
            row.threads,
            "{row}: stacks of waits\n{:#?}",
            row.faults
        );
    }
}
