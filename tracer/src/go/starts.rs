//! Who made a goroutine, and which goroutine makes a system call: where a program is probed for that, and what the probes must know
//! of it (see [`tracer_ebpf::go_start`]).
//!
//! ```text
//! startDialConnForLocked:  lea  func1(%rip),%rdx   one of its closures: where the goroutine will begin
//!                          mov  %rdx,(%rax)
//!                          call runtime.newproc    emulated; rax has the closure, r14 who asks
//! func1:                   cmp, jbe, push          as every function begins (`go::sites`); rdx has the closure
//! ```

use anyhow::{Context as _, Result, bail, ensure};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use tracer_ebpf::{
    go_start::Cookie,
    wire::{GO_BYTES, GoLayout, NO_FIELD},
};

use super::{
    code::{instructions, references},
    memory::Memory,
    program::Program,
    runtime::find_types,
    sites::{Site, place, site},
};

/// Functions of Go's library whose `go` statements begin a dial: what they make costs forty times what the probes do.
const DIALS: [&str; 3] = [
    // Each request that finds no idle connection; since Go 1.23 through the second.
    "net/http.(*Transport).queueForDial",
    "net/http.(*Transport).startDialConnForLocked",
    // A host with addresses of both kinds.
    "net.(*sysDialer).dialParallel",
];
/// Places of one kind in a program.
const MAX_PLACES: usize = 32;
/// Farthest that a thread's goroutine lies from its `fs` base.
const MAX_TLS: u64 = 1 << 20;

/// A place for a probe, and what it must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where.
    pub site: Site,
    /// For the probe.
    pub cookie: Cookie,
}

/// A pair of lists: where makers come to a `go` statement, and where goroutines begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Makers.
    pub asked: Vec<Place>,
    /// What they made.
    pub started: Vec<Place>,
}

/// What is known of a program.
#[derive(Debug)]
pub struct Starts {
    /// How to tell which goroutine makes a system call.
    pub layout: GoLayout,
    /// The `go` statements of the library that begin a dial; empty in a program that has none of them.
    pub dials: Places,
    /// Dials whose `go` statements cannot be probed, and why.
    pub refused: Vec<String>,
    /// All `go` statements, or why not.
    pub all: Result<Places>,
}

impl Starts {
    /// Finds them; the error says why not even a system call's goroutine can be told.
    pub fn find<M: Memory>(memory: &M, program: &Program) -> Result<Self> {
        let layout = layout(memory, program)?;
        let cookie = Cookie {
            goid: layout.goid,
            m: layout.m,
            curg: layout.curg,
            parent: if layout.parent == NO_FIELD {
                0
            } else {
                layout.parent
            },
            on_check: false,
            all: false,
        };
        let (mut dials, mut refused) = (Places::default(), Vec::new());
        for function in DIALS {
            if program.function(function).is_none() {
                continue;
            }
            match of_function(program, function, cookie) {
                Ok(places) => {
                    dials.asked.extend(places.asked);
                    dials.started.extend(places.started);
                }
                Err(error) => refused.push(format!("{function}: {error:#}")),
            }
        }
        Ok(Self {
            layout,
            dials,
            refused,
            all: all(program, cookie),
        })
    }
}

const fn with(cookie: Cookie, site: Site) -> Place {
    Place {
        site,
        cookie: Cookie {
            on_check: site.on_check,
            ..cookie
        },
    }
}

/// A function's `go` statements, and the functions that they may begin: those of its closures that its code names.
fn of_function(program: &Program, function: &str, cookie: Cookie) -> Result<Places> {
    let newproc = program
        .function("runtime.newproc")
        .context("the program has no runtime.newproc")?;
    let (code, start) = program.code(function).context("its code cannot be read")?;
    let mut places = Places::default();
    for call in calls(&code, start, newproc) {
        let offset = program.file_offset(call).context("it lies outside of the file")?;
        let site = Site {
            offset,
            on_check: false,
        };
        places.asked.push(with(cookie, site));
    }
    // Before Go 1.23 queueForDial had them, since then a function that it calls.
    if places.asked.is_empty() {
        return Ok(places);
    }
    for address in references(&code, start) {
        let Some(name) = program.begins(address) else {
            continue;
        };
        let own = name
            .strip_prefix(function)
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_'));
        if !own {
            continue;
        }
        let (code, start) = program
            .code_at(address)
            .with_context(|| format!("the code of {name} cannot be read"))?;
        // Closures that are deferred or called need not have room for a probe.
        let Ok((at, on_check)) = place(&code, start) else {
            continue;
        };
        let offset = program.file_offset(at).context("it lies outside of the file")?;
        places.started.push(with(cookie, Site { offset, on_check }));
    }
    ensure!(!places.started.is_empty(), "none of its closures can be probed");
    ensure!(
        places.asked.len() <= MAX_PLACES && places.started.len() <= MAX_PLACES,
        "it has too many go statements"
    );
    Ok(places)
}

/// Every `go` statement: where the runtime is asked, and where it queues what it made.
fn all(program: &Program, cookie: Cookie) -> Result<Places> {
    let cookie = Cookie { all: true, ..cookie };
    let asked = site(program, "runtime.newproc")?;
    let queue = program
        .function("runtime.runqput")
        .context("the program has no runtime.runqput")?;
    // `newproc` does its work on the thread's own stack.
    let mut found = Vec::new();
    for function in program.functions_like("runtime.newproc.") {
        let (code, start) = program
            .code(function)
            .context("the code of runtime.newproc cannot be read")?;
        found.extend(calls(&code, start, queue));
    }
    let &[call] = &found[..] else {
        bail!("runtime.newproc does not queue goroutines at one place");
    };
    let offset = program.file_offset(call).context("it lies outside of the file")?;
    let started = Site {
        offset,
        on_check: false,
    };
    Ok(Places {
        asked: vec![with(cookie, asked)],
        started: vec![with(cookie, started)],
    })
}

/// Addresses of the calls of a function, in the form that the kernel emulates.
pub(super) fn calls(code: &[u8], start: u64, function: u64) -> Vec<u64> {
    instructions(code, start)
        .filter(|instruction| {
            instruction.code() == Code::Call_rel32_64
                && instruction.len() == 5
                && instruction.near_branch_target() == function
        })
        .map(|instruction| instruction.ip())
        .collect()
}

fn layout<M: Memory>(memory: &M, program: &Program) -> Result<GoLayout> {
    let tls = tls(memory, program)?;
    let (types, _) = find_types(memory, program).context("no type descriptors")?;
    let mut structures = types.find(&["runtime.g", "runtime.m"]);
    let g = structures
        .remove("runtime.g")
        .context("no descriptor of runtime.g")?;
    let m = structures
        .remove("runtime.m")
        .context("no descriptor of runtime.m")?;
    let stack = g
        .type_of("stack")
        .and_then(|descriptor| types.structure(descriptor))
        .context("field stack is no structure")?;
    let (Some(low), Some(high)) = (stack.field("lo"), stack.field("hi")) else {
        bail!("runtime.stack has no bounds");
    };
    ensure!(
        high == low + 8,
        "the bounds of runtime.stack are not beside each other"
    );
    let offset = |field: Option<usize>, name: &str| {
        field
            .filter(|offset| offset.is_multiple_of(8))
            .and_then(|offset| u16::try_from(offset).ok())
            .filter(|&offset| u32::from(offset) < u32::from(NO_FIELD) - 8)
            .with_context(|| format!("no field {name}"))
    };
    let mut found = GoLayout {
        tls,
        stack: offset(g.field("stack").map(|at| at + low), "stack")?,
        m: offset(g.field("m"), "m")?,
        goid: offset(g.field("goid"), "goid")?,
        parent: match g.field("parentGoid") {
            None => NO_FIELD,
            parent => offset(parent, "parentGoid")?,
        },
        creator: offset(g.field("gopc"), "gopc")?,
        curg: offset(m.field("curg"), "curg")?,
        bytes: 0,
    };
    let kept = if found.parent == NO_FIELD { 0 } else { found.parent };
    let fields = [found.stack + 8, found.m, found.goid, kept, found.creator];
    let last = fields.into_iter().fold(0, u16::max);
    found.bytes = u32::from(last) + 8;
    ensure!(
        found.bytes < GO_BYTES && u64::from(found.bytes) <= g.size,
        "the descriptor of runtime.g is larger than known"
    );
    Ok(found)
}

/// Where a thread keeps its goroutine, from the code of functions that load it after a change of stacks.
fn tls<M: Memory>(memory: &M, program: &Program) -> Result<u64> {
    let mut found = Vec::new();
    for function in ["runtime.newproc", "runtime.morestack", "runtime.asmcgocall"] {
        if let Some((code, start)) = program.code(function) {
            displacements(&code, start, |at| memory.word(at), &mut found);
        }
    }
    found.sort_unstable();
    found.dedup();
    let &[displacement] = &found[..] else {
        bail!("where threads keep their goroutine was not found");
    };
    // Thread-local storage lies below the base; 0 is a word that the loader has not filled in yet.
    ensure!(
        (1..=MAX_TLS).contains(&displacement.wrapping_neg()),
        "threads keep their goroutine in an unlikely place"
    );
    Ok(displacement)
}

/// Distances from `fs` of the words that code loads: `mov %fs:-8,%r14`, or, position-independent, `mov word(%rip),%rcx` (or
/// `mov $-8,%rcx` once linked), `mov %fs:(%rcx),%r14`.
fn displacements(code: &[u8], start: u64, word: impl Fn(u64) -> Option<u64>, found: &mut Vec<u64>) {
    let mut before = Instruction::default();
    for instruction in instructions(code, start) {
        if let Some(displacement) = displacement(&before, &instruction, &word) {
            found.push(displacement);
        }
        before = instruction;
    }
}

fn displacement(before: &Instruction, load: &Instruction, word: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    let is_load = load.mnemonic() == Mnemonic::Mov
        && load.op0_kind() == OpKind::Register
        && (Register::RAX..=Register::R15).contains(&load.op0_register())
        && load.op1_kind() == OpKind::Memory
        && load.segment_prefix() == Register::FS
        && load.memory_index() == Register::None;
    if !is_load {
        return None;
    }
    if load.memory_base() == Register::None {
        return Some(load.memory_displacement64());
    }
    let sets_base = before.mnemonic() == Mnemonic::Mov
        && before.op0_kind() == OpKind::Register
        && before.op0_register() == load.memory_base();
    if !sets_base {
        return None;
    }
    let base = match before.op1_kind() {
        OpKind::Immediate32to64 => before.immediate32to64() as u64,
        OpKind::Immediate64 => before.immediate64(),
        OpKind::Memory if before.is_ip_rel_memory_operand() => word(before.ip_rel_memory_address())?,
        _ => return None,
    };
    Some(base.wrapping_add(load.memory_displacement64()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUS_8: u64 = 8u64.wrapping_neg();

    fn found(code: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        let word = |at| (at == 0x1107).then(|| 16u64.wrapping_neg());
        displacements(code, 0x1000, word, &mut found);
        found
    }

    #[test]
    fn a_threads_goroutine_is_found_in_each_way_of_loading_it() {
        // mov %fs:-8,%r14
        assert_eq!(
            found(&[0x64, 0x4c, 0x8b, 0x34, 0x25, 0xf8, 0xff, 0xff, 0xff]),
            [MINUS_8]
        );
        // mov $-8,%rcx; mov %fs:(%rcx),%rax
        let linked = [0x48, 0xc7, 0xc1, 0xf8, 0xff, 0xff, 0xff, 0x64, 0x48, 0x8b, 0x01];
        assert_eq!(found(&linked), [MINUS_8]);
        // mov 0x100(%rip),%rcx; mov %fs:(%rcx),%rax
        let relative = [0x48, 0x8b, 0x0d, 0, 1, 0, 0, 0x64, 0x48, 0x8b, 0x01];
        assert_eq!(found(&relative), [16u64.wrapping_neg()]);
    }

    #[test]
    fn what_is_not_loaded_from_there_is_not_believed() {
        // mov %rsi,%fs:-8
        assert!(found(&[0x64, 0x48, 0x89, 0x34, 0x25, 0xf8, 0xff, 0xff, 0xff]).is_empty());
        // mov $-8,%rdx; mov %fs:(%rcx),%rax
        let other = [0x48, 0xc7, 0xc2, 0xf8, 0xff, 0xff, 0xff, 0x64, 0x48, 0x8b, 0x01];
        assert!(found(&other).is_empty());
        // mov -8,%r14
        assert!(found(&[0x4c, 0x8b, 0x34, 0x25, 0xf8, 0xff, 0xff, 0xff]).is_empty());
    }

    #[test]
    fn calls_of_a_function_are_told_from_others() {
        // call 0x1010; jmp 0x1010; call 0x2000
        let code = [0xe8, 0x0b, 0, 0, 0, 0xe9, 0x06, 0, 0, 0, 0xe8, 0xf1, 0x0f, 0, 0];
        assert_eq!(calls(&code, 0x1000, 0x1010), [0x1000]);
    }

    proptest! {
        #[test]
        fn no_code_panics(code in proptest::collection::vec(any::<u8>(), 0..64), start: u64, function: u64) {
            let mut found = Vec::new();
            displacements(&code, start, Some, &mut found);
            let _ = calls(&code, start, function);
        }
    }
}
