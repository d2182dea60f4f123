//! Who waits for which semaphore: the runtime's own table, that all of Go's locks wait in.
//!
//! ```text
//! semtable: 251 roots of 64 bytes, by address / 8 % 251; root: lock, tree of waiters (sudogs) by address, number of waiters
//! in the tree: prev lower, next higher addresses; waitlink: others for the same address, in the order in which they came
//! ```
//! Described by `runtime/sema.go` of Go's sources. The table changes while it is read: every waiter found is only a candidate, until it
//! is read again with its goroutine standing still.

use iced_x86::{Mnemonic, OpKind, Register};
use rustc_hash::FxHashSet;

use super::{
    code::{instructions, reference},
    frames::is_pointer,
    memory::{Memory, Piece},
    program::Program,
    sudogs::{Sudog, Sudogs},
};
use crate::stacks::elf::{u32_at, u64_at};

/// Roots, and bytes of one, that a table may have.
const MAX_ROOTS: u64 = 4096;
const MAX_STRIDE: u64 = 256;
/// Waiters followed; goroutines beyond are not found.
const MAX_WAITERS: usize = 1 << 17;
/// Waiters counted at one root.
const MAX_COUNT: u32 = 16 << 20;

/// A goroutine in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Its descriptor.
    pub g: u64,
    /// What it waits for.
    pub semaphore: u64,
    /// How many wait for the same and came, or were put, before it.
    pub position: u32,
    /// When the wait began, in clock ticks of the CPU; 0 unless the program profiles its locks.
    pub acquired: u64,
    /// Its place in the queue (`*runtime.sudog`).
    pub(crate) sudog: u64,
}

/// How far the table could be followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Places in queues that changed while they were read, or made no sense; those behind them are missing.
    pub torn: u64,
    /// There are more waiters than are followed.
    pub cut: bool,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semaphores {
    table: u64,
    roots: u64,
    stride: u64,
    /// In a root: the tree, before the number of waiters.
    tree: usize,
}

impl Semaphores {
    /// By the code that waits: it names the table, how many roots it has and how long they are.
    pub(crate) fn find<M: Memory>(memory: &M, program: &Program) -> Option<Self> {
        let (code, start) = program.code("runtime.semacquire1")?;
        let mut tables = Vec::new();
        let (mut roots, mut stride) = (None, None);
        for instruction in instructions(&code, start) {
            match instruction.mnemonic() {
                Mnemonic::Lea => {
                    let named = reference(&instruction).filter(|at| !tables.contains(at));
                    tables.extend(named);
                }
                // Address / 8 % roots: by multiplication.
                Mnemonic::Imul if instruction.op_count() == 3 => {
                    roots = Some(instruction.immediate(2)).filter(|&roots| roots < MAX_ROOTS);
                }
                Mnemonic::Shl if instruction.op1_kind() == OpKind::Immediate8 => {
                    let by = u32::from(instruction.immediate8());
                    stride = 1u64
                        .checked_shl(by)
                        .filter(|&stride| (24..=MAX_STRIDE).contains(&stride));
                }
                _ => {}
            }
        }
        let (roots, stride) = (roots.filter(|&roots| roots > 1)?, stride?);
        let tree = tree(program)?;
        let mut sound = tables
            .into_iter()
            .map(|table| Self {
                table,
                roots,
                stride,
                tree,
            })
            .filter(|found| {
                found
                    .read(memory)
                    .is_some_and(|bytes| found.has_its_shape(&bytes))
            });
        let found = sound.next()?;
        sound.next().is_none().then_some(found)
    }

    fn read<M: Memory>(&self, memory: &M) -> Option<Vec<u8>> {
        let len = self.roots.checked_mul(self.stride)?;
        memory.read(self.table, usize::try_from(len).ok()?)
    }

    /// Roots are filled up with zeros; where there is a tree somebody waits.
    fn has_its_shape(&self, bytes: &[u8]) -> bool {
        bytes.chunks_exact(self.stride as usize).all(|root| {
            let tree = u64_at(root, self.tree);
            let count = u32_at(root, self.tree + 8);
            let (Some(tree), Some(count)) = (tree, count) else {
                return false;
            };
            let filled = root.get(self.tree + 12..).unwrap_or_default();
            (tree == 0 || is_pointer(tree)) && count <= MAX_COUNT && filled.iter().all(|&byte| byte == 0)
        })
    }

    fn root_of(&self, semaphore: u64) -> u64 {
        (semaphore >> 3) % self.roots
    }

    /// Follows the whole table.
    pub(crate) fn walk<M: Memory>(&self, memory: &M, sudogs: &Sudogs) -> (Vec<Waiter>, Followed) {
        let mut followed = Followed::default();
        let Some(roots) = self.read(memory) else {
            return (Vec::new(), followed);
        };
        let mut next: Vec<Step> = (0..self.roots)
            .zip(roots.chunks_exact(self.stride as usize))
            .filter_map(|(root, bytes)| {
                let sudog = u64_at(bytes, self.tree)?;
                (sudog != 0).then_some(Step {
                    sudog,
                    root,
                    queue: None,
                })
            })
            .collect();
        let mut waiters = Vec::new();
        let mut seen = FxHashSet::default();
        // Each round goes one further in every tree and queue.
        while !next.is_empty() {
            let mut steps = std::mem::take(&mut next);
            steps.retain(|step| {
                let sound = is_pointer(step.sudog) && seen.insert(step.sudog);
                followed.torn += u64::from(!sound);
                sound
            });
            if seen.len() > MAX_WAITERS {
                followed.cut = true;
                break;
            }
            let mut pieces: Vec<Piece> = steps
                .iter()
                .map(|step| Piece::new(step.sudog, sudogs.len))
                .collect();
            let mut bytes = vec![0; steps.len() * sudogs.len];
            memory.read_pieces(&mut pieces, &mut bytes);
            let read = steps.iter().zip(&pieces).zip(bytes.chunks_exact(sudogs.len));
            for ((step, piece), bytes) in read {
                let sudog = sudogs.read(bytes).filter(|_| piece.whole);
                match sudog.filter(|sudog| self.belongs(step, sudog)) {
                    Some(sudog) => {
                        waiters.push(step.waiter(&sudog));
                        step.onwards(&sudog, &mut next);
                    }
                    None => followed.torn += 1,
                }
            }
        }
        (waiters, followed)
    }

    fn belongs(&self, step: &Step, sudog: &Sudog) -> bool {
        is_pointer(sudog.g)
            && sudog.channel == 0
            && sudog.elem != 0
            && sudog.elem.is_multiple_of(4)
            && self.root_of(sudog.elem) == step.root
            && step.queue.is_none_or(|(semaphore, _)| semaphore == sudog.elem)
    }
}

/// A place in a queue that is to be read.
struct Step {
    sudog: u64,
    root: u64,
    /// The semaphore and how many are before it; None in the tree.
    queue: Option<(u64, u32)>,
}

impl Step {
    fn waiter(&self, sudog: &Sudog) -> Waiter {
        Waiter {
            g: sudog.g,
            semaphore: sudog.elem,
            position: self.queue.map_or(0, |(_, before)| before),
            acquired: sudog.acquired,
            sudog: self.sudog,
        }
    }

    fn onwards(&self, sudog: &Sudog, next: &mut Vec<Self>) {
        let before = self.queue.map_or(0, |(_, before)| before);
        let mut push = |sudog: u64, queue| {
            if sudog != 0 {
                next.push(Self {
                    sudog,
                    root: self.root,
                    queue,
                });
            }
        };
        push(sudog.waitlink, Some((sudog.elem, before.saturating_add(1))));
        if self.queue.is_none() {
            push(sudog.prev, None);
            push(sudog.next, None);
        }
    }
}

/// `runtime.(*semaRoot).queue` gets the root in rax; the first field that it uses is the tree.
fn tree(program: &Program) -> Option<usize> {
    let (code, start) = program.code("runtime.(*semaRoot).queue")?;
    for instruction in instructions(&code, start) {
        let uses = (0..instruction.op_count()).any(|at| instruction.op_kind(at) == OpKind::Memory)
            && instruction.memory_base() == Register::RAX
            && instruction.memory_index() == Register::None;
        if uses && matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea) {
            let at = instruction.memory_displacement64();
            return (at.is_multiple_of(8) && (8..=MAX_STRIDE - 12).contains(&at)).then_some(at as usize);
        }
        let overwritten = instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && matches!(
                instruction.op0_register(),
                Register::RAX | Register::EAX | Register::AX | Register::AL | Register::AH
            )
            && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
        if overwritten {
            return None;
        }
    }
    None
}

#[cfg(test)]
#[path = "semaphores_tests.rs"]
mod tests;
