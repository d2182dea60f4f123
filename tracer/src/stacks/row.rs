//! Unwind rules in a compact form, and their evaluation.
//!
//! A row says how the caller's registers follow from the callee's at one address. Rows repeat (the 19 million of a whole
//! Debian disk are 4,774 different ones), so they are interned and a cache entry is a number.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::expr::{Op, evaluate};
use super::log::{Reader, Value};

/// Rows kept. Only hostile files have more.
const MAX_ROWS: usize = 1 << 18;

/// DWARF numbers of x86-64 registers that need a name.
pub(super) const RBP: usize = 6;
/// Stack pointer.
pub(super) const RSP: usize = 7;
/// Return address column.
pub(super) const RIP: usize = 16;
/// Registers that a callee preserves: rbx, rbp, rsp, r12–r15.
pub(super) const PRESERVED: u32 = 1 << 3 | 1 << RBP | 1 << RSP | 0xf << 12 | 1 << RIP;

/// Why a word could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It lies above the bytes that were copied.
    Beyond,
    /// It is not on the copied stack, or its page is unreadable.
    Unreadable,
    /// The rules make no sense: an unknown register, an unsupported operation.
    Rules,
}

/// Where the words of a stack come from.
pub(super) trait Memory {
    /// Other stacks than the one that the walk begins on can be read, too: wherever they are, and not by chance.
    const OTHERS: bool = false;

    /// The word at an address.
    fn word(&mut self, address: u64) -> Result<u64, Fault>;
}

/// One frame's registers; bit n of `known` says that register n has its value.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    pub(super) value: [Value; 17],
    pub(super) known: u32,
}

impl Registers {
    pub(super) fn get(&self, register: usize) -> Result<Value, Fault> {
        match self.value.get(register) {
            Some(&value) if self.known & 1 << register != 0 => Ok(value),
            _ => Err(Fault::Rules),
        }
    }

    pub(super) fn set(&mut self, register: usize, value: Option<Value>) {
        let (Some(slot), bit) = (self.value.get_mut(register), 1 << (register & 31)) else {
            return;
        };
        match value {
            Some(value) => (*slot, self.known) = (value, self.known | bit),
            None => self.known &= !bit,
        }
    }
}

/// How one register of the caller, or the CFA, is had.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Rule {
    /// Lost; for the return address: this is the outermost frame.
    Undefined,
    /// As in the callee.
    Same,
    /// Saved at CFA + n.
    AtCfa(i32),
    /// Is CFA + n.
    Cfa(i32),
    /// Is register + n.
    Register(u8, i32),
    /// Saved at register + n.
    AtRegister(u8, i32),
    /// Saved where the expression says.
    At(Arc<[Op]>),
    /// What the expression says.
    Value(Arc<[Op]>),
}

impl Rule {
    /// The value; None when undefined. `cfa` is what expressions begin with.
    pub(super) fn apply(
        &self,
        register: usize,
        from: &Registers,
        cfa: Value,
        reader: &mut Reader<'_, impl Memory>,
    ) -> Result<Option<Value>, Fault> {
        Ok(Some(match self {
            Self::Undefined => return Ok(None),
            Self::Same => return Ok(from.get(register).ok()),
            Self::AtCfa(by) => reader.word(cfa.plus(i64::from(*by)))?,
            Self::Cfa(by) => cfa.plus(i64::from(*by)),
            Self::Register(base, by) => from.get(usize::from(*base))?.plus(i64::from(*by)),
            Self::AtRegister(base, by) => reader.word(from.get(usize::from(*base))?.plus(i64::from(*by)))?,
            Self::At(ops) => {
                let address = evaluate(ops, from, cfa, reader)?;
                reader.word(address)?
            }
            Self::Value(ops) => evaluate(ops, from, cfa, reader)?,
        }))
    }
}

/// All rules at one address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) cfa: Rule,
    pub(super) return_address: Rule,
    /// Registers that have a rule.
    pub(super) saved: Box<[(u8, Rule)]>,
    /// A signal trampoline: the caller was interrupted, it did not call.
    pub(super) signal: bool,
}

/// All different rows, of all files.
#[derive(Debug, Default)]
pub(super) struct Rows {
    rows: Vec<Arc<Row>>,
    ids: FxHashMap<Arc<Row>, u32>,
}

impl Rows {
    /// The number of a row. None when there are too many.
    pub(super) fn intern(&mut self, row: Row) -> Option<u32> {
        if let Some(&id) = self.ids.get(&row) {
            return Some(id);
        }
        if self.rows.len() >= MAX_ROWS {
            return None;
        }
        let (id, row) = (self.rows.len() as u32, Arc::new(row));
        self.rows.push(Arc::clone(&row));
        self.ids.insert(row, id);
        Some(id)
    }

    pub(super) fn get(&self, id: u32) -> Option<&Row> {
        self.rows.get(id as usize).map(AsRef::as_ref)
    }
}
