//! What has to be known of a program's runtime to read it: layouts of its structures, and where its variables are.

use anyhow::{Context as _, Result, ensure};

use super::{
    code::{instructions, reference, references},
    memory::Memory,
    program::Program,
    types::{Struct, Types},
};
use crate::stacks::elf::u64_at;

/// Words of the runtime's description of the program that may hold the bounds of the type descriptors; they moved with Go 1.20 and
/// 1.27.
const TYPES: std::ops::Range<usize> = 30..56;
/// Words of it that are read.
const DESCRIBED: usize = 64;
/// Reasons to wait: there are about 50.
const MAX_REASONS: usize = 128;
/// Length of a reason's text.
const MAX_REASON: u64 = 96;
/// Goroutines that a process can have: 16 million take 6 GB for their descriptors alone.
pub(crate) const MAX_GOROUTINES: u64 = 16 << 20;

/// Offsets in `runtime.g` and what it refers to. Optional ones came with later versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of `runtime.g`.
    pub size: usize,
    /// `stack.lo`.
    pub stack_lo: usize,
    /// `stack.hi`.
    pub stack_hi: usize,
    /// Its thread (`*runtime.m`).
    pub m: usize,
    /// Stack pointer while it does not run.
    pub sp: usize,
    /// Program counter while it does not run.
    pub pc: usize,
    /// Stack pointer in a system call; 0 when in none.
    pub syscall_sp: usize,
    /// Program counter in a system call.
    pub syscall_pc: usize,
    /// Status (32 bits).
    pub status: usize,
    /// Number.
    pub goid: usize,
    /// When the collector first found it waiting; 0 when not.
    pub wait_since: usize,
    /// Number of the reason that it waits for (8 bits).
    pub wait_reason: usize,
    /// Counts how often it stopped running (8 bits).
    pub tracking_seq: usize,
    /// Thread that it is locked to.
    pub locked_m: usize,
    /// The goroutine that made it; since 1.21.
    pub parent: Option<usize>,
    /// After the `go` statement that made it.
    pub creator: usize,
    /// Its first function.
    pub start: usize,
    /// What it waits on (`*runtime.sudog`).
    pub waiting: usize,
    /// In `runtime.m`: the thread's number.
    pub m_procid: usize,
}

impl Layout {
    fn new<M: Memory + ?Sized>(types: &Types<'_, M>) -> Result<Self> {
        let mut found = types.find(&["runtime.g", "runtime.m"]);
        let g = found.remove("runtime.g").context("no descriptor of runtime.g")?;
        let m = found.remove("runtime.m").context("no descriptor of runtime.m")?;
        let of = |structure: &Struct, name: &str| {
            structure
                .field(name)
                .with_context(|| format!("the runtime's structure has no field {name}"))
        };
        let within = |name: &str, inner: &str| -> Result<usize> {
            let nested = g.type_of(name).and_then(|descriptor| types.structure(descriptor));
            let nested = nested.with_context(|| format!("field {name} is no structure"))?;
            Ok(of(&g, name)? + of(&nested, inner)?)
        };
        let layout = Self {
            size: usize::try_from(g.size)?,
            stack_lo: within("stack", "lo")?,
            stack_hi: within("stack", "hi")?,
            m: of(&g, "m")?,
            sp: within("sched", "sp")?,
            pc: within("sched", "pc")?,
            syscall_sp: of(&g, "syscallsp")?,
            syscall_pc: of(&g, "syscallpc")?,
            status: of(&g, "atomicstatus")?,
            goid: of(&g, "goid")?,
            wait_since: of(&g, "waitsince")?,
            wait_reason: of(&g, "waitreason")?,
            tracking_seq: of(&g, "trackingSeq")?,
            locked_m: of(&g, "lockedm")?,
            parent: g.field("parentGoid"),
            creator: of(&g, "gopc")?,
            start: of(&g, "startpc")?,
            waiting: of(&g, "waiting")?,
            m_procid: of(&m, "procid")?,
        };
        let fields = [
            layout.stack_lo,
            layout.stack_hi,
            layout.m,
            layout.sp,
            layout.pc,
            layout.syscall_sp,
            layout.syscall_pc,
            layout.status,
            layout.goid,
            layout.wait_since,
            layout.wait_reason,
            layout.tracking_seq,
            layout.locked_m,
            layout.parent.unwrap_or(0),
            layout.creator,
            layout.start,
            layout.waiting,
        ];
        ensure!(
            layout.size <= 4096 && fields.iter().all(|&at| at + 8 <= layout.size + 7),
            "the descriptor of runtime.g contradicts itself"
        );
        Ok(layout)
    }
}

/// A runtime that can be read.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Where its structures' fields are.
    pub layout: Layout,
    /// Address of the list of all goroutines (`runtime.allgs`).
    pub goroutines: u64,
    /// Why goroutines wait, by number.
    pub reasons: Vec<String>,
    /// Bounds of the type descriptors.
    pub types: (u64, u64),
}

impl Runtime {
    /// Looks for all that is needed; the error says what was not found.
    pub fn find<M: Memory>(memory: &M, program: &Program) -> Result<Self> {
        let (types, bounds) = find_types(memory, program).context("no type descriptors")?;
        Ok(Self {
            layout: Layout::new(&types)?,
            goroutines: goroutines(memory, program).context("runtime.allgs was not found")?,
            reasons: reasons(memory, program).context("the reasons to wait were not found")?,
            types: bounds,
        })
    }
}

/// The bounds of the descriptors are the two words of the description between which they are found.
pub(crate) fn find_types<'m, M: Memory>(
    memory: &'m M,
    program: &Program,
) -> Option<(Types<'m, M>, (u64, u64))> {
    let words = memory.read(program.described()?, 8 * DESCRIBED)?;
    let word = |at: usize| u64_at(&words, 8 * at);
    TYPES
        .flat_map(|at| [(at, at + 1), (at, at + 2)])
        .find_map(|(from, to)| {
            let bounds = (word(from)?, word(to)?);
            Some((Types::read(memory, bounds.0, bounds.1)?, bounds))
        })
}

/// `runtime.allgadd` appends to a slice: of the data that it names, the only address followed by the next two words.
fn goroutines<M: Memory>(memory: &M, program: &Program) -> Option<u64> {
    let (code, start) = program.code("runtime.allgadd")?;
    let named = references(&code, start);
    let slices: Vec<u64> = named
        .iter()
        .copied()
        .filter(|&at| named.contains(&(at + 8)) && named.contains(&(at + 16)))
        .collect();
    let &[slice] = &slices[..] else { return None };
    let (list, len, capacity) = (
        memory.word(slice)?,
        memory.word(slice + 8)?,
        memory.word(slice + 16)?,
    );
    (list % 8 == 0 && (1..=MAX_GOROUTINES).contains(&len) && len <= capacity).then_some(slice)
}

/// `runtime.waitReason.String` looks them up in an array of strings.
fn reasons<M: Memory>(memory: &M, program: &Program) -> Option<Vec<String>> {
    let (code, start) = program.code("runtime.waitReason.String")?;
    let mut arrays = instructions(&code, start).filter_map(|instruction| reference(&instruction));
    arrays.find_map(|array| {
        let entries = memory
            .read(array, MAX_REASONS * 16)
            .or_else(|| memory.read(array, 40 * 16))?;
        let text = |entry: &[u8]| {
            let (at, len) = (u64_at(entry, 0)?, u64_at(entry, 8)?);
            if at == 0 && len == 0 {
                return Some(String::new());
            }
            let bytes = memory.read(at, usize::try_from(len.min(MAX_REASON + 1)).ok()?)?;
            let plain = |b: &u8| b.is_ascii_graphic() || *b == b' ';
            (len <= MAX_REASON && bytes.iter().all(plain)).then(|| String::from_utf8(bytes).ok())?
        };
        let reasons: Vec<String> = entries.chunks_exact(16).map_while(text).collect();
        let known = |wanted: &str| reasons.iter().any(|reason| reason == wanted);
        (known("chan receive") && known("select") && known("sleep")).then_some(reasons)
    })
}
