//! Programs whose stacks are known by construction.

use std::collections::BTreeMap;

use super::rig::{self, Program};
use crate::report::model::StackFrame;
use crate::stacks::{AddressKind, End, Stacks, Symbolizer};

const C: &str = include_str!("truth.c");
const CPP: &str = include_str!("truth.cpp");

/// Functions of the program that every thread must show in this order, from the block to the thread's start.
const CHAINS: [&[&str]; 8] = [
    &["lock_inner", "lock_outer", "t_mutex"],
    &["block", "recurse", "recurse", "t_read"],
    &["block", "vla", "t_vla"],
    &["block", "realigned", "t_realigned"],
    &["block", "handler_inner", "handler", "interrupted", "t_signal"],
    &["block", "handler_inner", "fault_handler", "faults", "t_fault"],
    &["block", "compare", "sorts", "t_sort"],
    &["main_outer", "main"],
];

fn name(frame: &StackFrame) -> &str {
    frame.function.as_deref().unwrap_or("?")
}

/// Whether `chain` is a subsequence of the names.
fn shows(frames: &[StackFrame], chain: &[&str]) -> bool {
    let mut rest = chain.iter().peekable();
    for frame in frames {
        rest.next_if(|&&n| n == name(frame));
    }
    rest.peek().is_none()
}

/// Unwinds every thread from a copy and live, and compares with the known chains and with gdb.
fn check(options: &[&str]) {
    let Some(program) = Program::start("gcc", C, options) else {
        return;
    };
    let (mut stacks, mut symbolizer) = (Stacks::new(), Symbolizer::new());
    let tgid = program.tgid();
    let truth = rig::gdb(tgid);
    let mut seen = BTreeMap::new();
    let (mut frames, mut compared) = (0, 0);
    for (tid, (regs, bytes)) in program.threads(64 << 10) {
        let live = stacks.unwind_live(tgid, &regs);
        assert_eq!(
            live.end,
            End::Complete,
            "{options:?} {tid}: {:#?}",
            symbolizer.resolve(&stacks, live.id)
        );
        let copied = stacks.unwind(tgid, &regs, &bytes);
        let words = symbolizer.resolve(&stacks, live.id);
        let chain = CHAINS
            .iter()
            .find(|c| shows(&words, c))
            .unwrap_or_else(|| panic!("{options:?} {words:#?}"));
        // A handler on its own stack leaves the copy: only the live walk follows.
        if chain.contains(&"faults") {
            assert_eq!(copied.end, End::Unreadable);
        } else {
            assert_eq!((copied.id, copied.needed), (live.id, live.needed));
            assert!(copied.needed <= bytes.len());
            let short = stacks.unwind(tgid, &regs, &bytes[..copied.needed - 1]);
            assert!(matches!(short.end, End::Truncated | End::Unreadable), "{short:?}");
        }
        let pcs: Vec<_> = stacks.frames(live.id).iter().map(|f| f.address).collect();
        frames += pcs.len();
        if let Some(truth) = truth.as_ref().and_then(|t| t.get(&tid)) {
            // gdb stops at main; the frames below it are ours alone.
            assert_eq!(pcs[..truth.len()], truth[..], "{options:?} {chain:?}");
            compared += truth.len();
        }
        seen.insert(*chain, words);
    }
    assert_eq!(seen.len(), CHAINS.len());
    let inner = &seen[CHAINS[0]].iter().find(|f| name(f) == "lock_inner").unwrap();
    if options.contains(&"-g") {
        let line = C.lines().position(|l| l.contains("int lock_inner")).unwrap() as u32 + 1;
        assert_eq!((inner.line, inner.inlined), (Some(line), false));
        assert!(inner.file.as_ref().unwrap().ends_with("truth.c"));
    }
    assert!(inner.offset.unwrap() > 0 && inner.module.as_ref().unwrap().ends_with("truth"));
    // Locks have names, also local ones, also in the part of .bss that no page of the file backs.
    for (address, expected, offset) in [
        (program.addresses[0], "held", 0),
        (program.addresses[1], "big", 2999 * 40),
    ] {
        let symbol = symbolizer.data_symbol(&mut stacks, tgid, address).unwrap();
        assert_eq!((symbol.name.as_str(), symbol.offset), (expected, offset));
    }
    let sp = stacks.frames(crate::stacks::StackId(1)).len();
    assert!(sp > 0);
    println!(
        "{options:?}: {frames} frames, {compared} equal to gdb's, {:?}",
        stacks.failures()
    );
}

#[test]
fn position_independent() {
    check(&["-O2", "-g"]);
}

#[test]
fn static_binary() {
    check(&["-O2", "-g", "-static"]);
}

#[test]
fn static_position_independent() {
    check(&["-O2", "-g", "-static-pie"]);
}

#[test]
fn one_segment_for_headers_and_code() {
    check(&["-O1", "-no-pie", "-Wl,-z,noseparate-code"]);
}

#[test]
fn without_search_table() {
    check(&["-O2", "-g", "-Wl,--no-eh-frame-hdr"]);
}

#[test]
fn rules_for_debuggers_only() {
    check(&["-O2", "-g", "-fno-asynchronous-unwind-tables"]);
}

#[test]
fn by_frame_pointer() {
    // The handler chains cross the C library with rules, and come back to code without.
    let options = [
        "-O1",
        "-fno-asynchronous-unwind-tables",
        "-fno-unwind-tables",
        "-fno-omit-frame-pointer",
    ];
    let Some(program) = Program::start("gcc", C, &options) else {
        return;
    };
    let (mut stacks, mut symbolizer) = (Stacks::new(), Symbolizer::new());
    for (regs, _) in program.threads(0).values() {
        let unwound = stacks.unwind_live(program.tgid(), regs);
        let words = symbolizer.resolve(&stacks, unwound.id);
        assert_eq!(unwound.end, End::Complete, "{words:#?}");
        assert!(
            CHAINS.iter().any(|c| shows(&words, c)),
            "{:?}",
            words.iter().map(name).collect::<Vec<_>>()
        );
        assert!(stacks.frames(unwound.id).iter().any(|f| f.guessed));
    }
}

#[test]
fn without_rules_or_frame_pointer_nothing_is_invented() {
    let options = ["-O2", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];
    let Some(program) = Program::start("gcc", C, &options) else {
        return;
    };
    let (mut stacks, mut symbolizer) = (Stacks::new(), Symbolizer::new());
    for (regs, _) in program.threads(0).values() {
        let unwound = stacks.unwind_live(program.tgid(), regs);
        let words = symbolizer.resolve(&stacks, unwound.id);
        // The threads' last frames are libc's: to end without them and say Complete would be a lie.
        let last = words.last().map(name);
        assert_eq!(
            unwound.end == End::Complete,
            matches!(last, Some("clone3" | "_start")),
            "{last:?} {:?}",
            unwound.end
        );
        let frames = stacks.frames(unwound.id);
        println!(
            "{:?} after {} frames, {} guessed",
            unwound.end,
            frames.len(),
            frames.iter().filter(|f| f.guessed).count()
        );
    }
}

#[test]
fn the_first_thread_has_exited() {
    let source = C.replace("for (;;) sink += main_outer();", "pthread_exit(0);");
    let Some(program) = Program::start("gcc", &source, &["-O2"]) else {
        return;
    };
    let (mut stacks, mut symbolizer, tgid) = (Stacks::new(), Symbolizer::new(), program.tgid());
    let threads = rig::threads_but_first(tgid);
    assert_eq!(threads.len(), 7);
    for (regs, _) in threads.values() {
        let unwound = stacks.unwind_live(tgid, regs);
        let words = symbolizer.resolve(&stacks, unwound.id);
        assert_eq!(unwound.end, End::Complete, "{words:#?}");
        assert!(CHAINS.iter().any(|c| shows(&words, c)), "{words:#?}");
    }
}

#[test]
fn cpp_mutex() {
    let Some(program) = Program::start("g++", CPP, &["-O2", "-g"]) else {
        return;
    };
    let (mut stacks, mut symbolizer) = (Stacks::new(), Symbolizer::new());
    let tgid = program.tgid();
    let truth = rig::gdb(tgid).unwrap_or_default();
    let mut found = false;
    for (tid, (regs, bytes)) in program.threads(16 << 10) {
        let unwound = stacks.unwind(tgid, &regs, &bytes);
        assert_eq!(unwound.end, End::Complete);
        let words = symbolizer.resolve(&stacks, unwound.id);
        let pcs: Vec<_> = stacks.frames(unwound.id).iter().map(|f| f.address).collect();
        let truth = truth.get(&tid).map_or(&[][..], Vec::as_slice);
        assert_eq!(pcs[..truth.len()], truth[..]);
        let Some(at) = words.iter().position(|f| name(f) == "app::Queue<int>::take(int)") else {
            continue;
        };
        // lock_guard, mutex::lock and gthread's wrapper were inlined into it, innermost first, each with its line.
        let inlined: Vec<_> = words[..at].iter().filter(|f| f.inlined).map(name).collect();
        assert!(inlined.iter().any(|n| n.contains("mutex::lock")), "{inlined:?}");
        assert!(inlined.last().unwrap().contains("lock_guard"), "{inlined:?}");
        let line = CPP.lines().position(|l| l.contains("lock_guard")).unwrap() as u32 + 1;
        assert_eq!(words[at].line, Some(line));
        let names = symbolizer.function_names(&stacks, unwound.id);
        assert_eq!(names.iter().map(Vec::len).sum::<usize>(), words.len());
        found = true;
    }
    assert!(found);
    let kind = symbolizer.describe_address(&mut stacks, tgid, program.addresses[0]);
    assert!(
        matches!(&kind, AddressKind::Symbol(s) if s.name == "app::pool"),
        "{kind:?}"
    );
}

#[test]
fn names_after_the_file_and_the_process_have_gone() {
    let Some(program) = Program::start("gcc", C, &["-O2", "-g"]) else {
        return;
    };
    let (mut stacks, tgid) = (Stacks::new(), program.tgid());
    std::fs::remove_file(std::fs::read_link(format!("/proc/{tgid}/exe")).unwrap()).unwrap();
    let ids: Vec<_> = program
        .threads(64 << 10)
        .values()
        .map(|(r, b)| stacks.unwind(tgid, r, b).id)
        .collect();
    let held = program.addresses[0];
    drop(program);
    stacks.process_exit(tgid);
    let mut symbolizer = Symbolizer::new();
    let all: Vec<_> = ids.iter().map(|&id| symbolizer.resolve(&stacks, id)).collect();
    for chain in CHAINS.iter().filter(|c| !c.contains(&"faults")) {
        assert!(all.iter().any(|words| shows(words, chain)), "{chain:?}");
    }
    assert_eq!(
        symbolizer.data_symbol(&mut stacks, tgid, held).unwrap().name,
        "held"
    );
}

#[test]
fn stripped_functions_have_stable_names() {
    let Some(program) = Program::start("gcc", C, &["-O2", "-s"]) else {
        return;
    };
    let (mut stacks, mut symbolizer) = (Stacks::new(), Symbolizer::new());
    for (regs, bytes) in program.threads(64 << 10).values() {
        let unwound = stacks.unwind(program.tgid(), regs, bytes);
        for frame in symbolizer.resolve(&stacks, unwound.id) {
            assert!(frame.function.is_some(), "{frame:?}");
        }
    }
}

#[test]
fn a_forked_child_needs_no_reading() {
    let Some(program) = Program::start("gcc", C, &["-O2"]) else {
        return;
    };
    let mut stacks = Stacks::new();
    let threads = program.threads(64 << 10);
    let (regs, bytes) = threads.values().next().unwrap();
    let parent = stacks.unwind(program.tgid(), regs, bytes);
    // No process has that number: only what was inherited can serve.
    stacks.process_fork(program.tgid(), u32::MAX - 7, 0);
    let child = stacks.unwind(u32::MAX - 7, regs, bytes);
    assert_eq!((parent.end, child.end), (End::Complete, End::Complete));
    assert_eq!(stacks.frames(parent.id), stacks.frames(child.id));
    assert_ne!(parent.id, child.id);
    stacks.process_exec(u32::MAX - 7, 1);
    assert_eq!(stacks.unwind(u32::MAX - 7, regs, bytes).end, End::NoCfi);
}
