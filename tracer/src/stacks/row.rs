//! Unwind rules in a compact form, and their evaluation.
//!
//! A row says how the caller's registers follow from the callee's at one address. Rows repeat (the 19 million of a whole
//! Debian disk are 4,774 different ones), so they are interned and a cache entry is a number.

use std::sync::Arc;

use rustc_hash::FxHashMap;

/// Operations evaluated in one expression; the longest seen, in the PLT, has 8.
const MAX_STEPS: usize = 64;
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
    /// The word at an address.
    fn word(&mut self, address: u64) -> Result<u64, Fault>;
}

/// One frame's registers; bit n of `known` says that register n has its value.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    pub(super) value: [u64; 17],
    pub(super) known: u32,
}

impl Registers {
    pub(super) fn get(&self, register: usize) -> Result<u64, Fault> {
        match self.value.get(register) {
            Some(&value) if self.known & 1 << register != 0 => Ok(value),
            _ => Err(Fault::Rules),
        }
    }

    pub(super) fn set(&mut self, register: usize, value: Option<u64>) {
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
        cfa: u64,
        memory: &mut impl Memory,
    ) -> Result<Option<u64>, Fault> {
        let plus = |base: u64, by: i32| base.wrapping_add_signed(i64::from(by));
        Ok(Some(match self {
            Self::Undefined => return Ok(None),
            Self::Same => return Ok(from.get(register).ok()),
            Self::AtCfa(by) => memory.word(plus(cfa, *by))?,
            Self::Cfa(by) => plus(cfa, *by),
            Self::Register(base, by) => plus(from.get(usize::from(*base))?, *by),
            Self::AtRegister(base, by) => memory.word(plus(from.get(usize::from(*base))?, *by))?,
            Self::At(ops) => {
                let address = evaluate(ops, from, cfa, memory)?;
                memory.word(address)?
            }
            Self::Value(ops) => evaluate(ops, from, cfa, memory)?,
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

/// An operation of a DWARF expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names of the DWARF standard")]
pub(super) enum Op {
    Constant(u64),
    Register(u8, i64),
    PlusConstant(u64),
    Deref(u8),
    Pick(u8),
    Drop,
    Swap,
    Rot,
    Abs,
    Neg,
    Not,
    And,
    Or,
    Xor,
    Plus,
    Minus,
    Mul,
    Div,
    Mod,
    Shl,
    Shr,
    Shra,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// To the operation of that index.
    Skip(u16),
    Bra(u16),
    Nop,
}

/// Runs an expression on a stack that holds `initial`.
fn evaluate(ops: &[Op], from: &Registers, initial: u64, memory: &mut impl Memory) -> Result<u64, Fault> {
    let mut stack = vec![initial];
    let mut at = 0usize;
    for _ in 0..MAX_STEPS {
        let Some(&op) = ops.get(at) else {
            return stack.pop().ok_or(Fault::Rules);
        };
        at += 1;
        let mut pop = || stack.pop().ok_or(Fault::Rules);
        let push = match op {
            Op::Constant(value) => value,
            Op::Register(register, by) => from.get(usize::from(register))?.wrapping_add_signed(by),
            Op::PlusConstant(by) => pop()?.wrapping_add(by),
            Op::Deref(size) => {
                let word = memory.word(pop()?)?;
                if size >= 8 {
                    word
                } else {
                    word & ((1 << (8 * u32::from(size))) - 1)
                }
            }
            Op::Pick(index) => {
                let at = stack
                    .len()
                    .checked_sub(1 + usize::from(index))
                    .ok_or(Fault::Rules)?;
                *stack.get(at).ok_or(Fault::Rules)?
            }
            Op::Drop => {
                pop()?;
                continue;
            }
            Op::Swap => {
                let (top, second) = (pop()?, pop()?);
                stack.push(top);
                second
            }
            Op::Rot => {
                let (top, second, third) = (pop()?, pop()?, pop()?);
                stack.extend([top, third]);
                second
            }
            Op::Abs => (pop()? as i64).unsigned_abs(),
            Op::Neg => pop()?.wrapping_neg(),
            Op::Not => !pop()?,
            Op::Skip(to) => {
                at = usize::from(to);
                continue;
            }
            Op::Bra(to) => {
                if pop()? != 0 {
                    at = usize::from(to);
                }
                continue;
            }
            Op::Nop => continue,
            _ => {
                let (right, left) = (pop()?, pop()?);
                binary(op, left, right).ok_or(Fault::Rules)?
            }
        };
        stack.push(push);
    }
    Err(Fault::Rules)
}

fn binary(op: Op, left: u64, right: u64) -> Option<u64> {
    let signed = (left as i64, right as i64);
    let shift = u32::try_from(right).ok();
    Some(match op {
        Op::And => left & right,
        Op::Or => left | right,
        Op::Xor => left ^ right,
        Op::Plus => left.wrapping_add(right),
        Op::Minus => left.wrapping_sub(right),
        Op::Mul => left.wrapping_mul(right),
        Op::Div => signed.0.checked_div(signed.1)? as u64,
        Op::Mod => left.checked_rem(right)?,
        Op::Shl => shift.and_then(|s| left.checked_shl(s)).unwrap_or(0),
        Op::Shr => shift.and_then(|s| left.checked_shr(s)).unwrap_or(0),
        Op::Shra => (signed.0 >> right.min(63)) as u64,
        Op::Eq => u64::from(left == right),
        Op::Ne => u64::from(left != right),
        Op::Lt => u64::from(signed.0 < signed.1),
        Op::Le => u64::from(signed.0 <= signed.1),
        Op::Gt => u64::from(signed.0 > signed.1),
        Op::Ge => u64::from(signed.0 >= signed.1),
        _ => return None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    impl Memory for Nothing {
        fn word(&mut self, _: u64) -> Result<u64, Fault> {
            Err(Fault::Unreadable)
        }
    }

    #[test]
    fn the_expression_of_the_plt() {
        // CFA = rsp + 8 + (((rip & 15) >= 11) << 3)
        let ops = [
            Op::Register(7, 8),
            Op::Register(16, 0),
            Op::Constant(15),
            Op::And,
            Op::Constant(11),
            Op::Ge,
            Op::Constant(3),
            Op::Shl,
            Op::Plus,
        ];
        let mut registers = Registers {
            value: [0; 17],
            known: u32::MAX,
        };
        registers.value[RSP] = 0x1000;
        for (ip, cfa) in [(0x406u64, 0x1008), (0x40b, 0x1010)] {
            registers.value[RIP] = ip;
            assert_eq!(evaluate(&ops, &registers, 0, &mut Nothing), Ok(cfa));
        }
    }

    #[test]
    fn an_endless_expression_ends() {
        let registers = Registers {
            value: [0; 17],
            known: 0,
        };
        assert_eq!(
            evaluate(&[Op::Nop, Op::Skip(0)], &registers, 0, &mut Nothing),
            Err(Fault::Rules)
        );
        assert_eq!(
            evaluate(&[Op::Register(7, 0)], &registers, 0, &mut Nothing),
            Err(Fault::Rules)
        );
        assert_eq!(
            evaluate(&[Op::Constant(0), Op::Div], &registers, 1, &mut Nothing),
            Err(Fault::Rules)
        );
    }
}
