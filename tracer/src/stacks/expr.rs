//! DWARF expressions of unwind rules: translated once, evaluated often.

use gimli::{Encoding, Expression, Operation};

use super::cfi::Slice;
use super::row::{Fault, Memory, RIP, Registers};

/// Operations evaluated in one expression; the longest seen, in the PLT, has 8.
const MAX_STEPS: usize = 64;

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
pub(super) fn evaluate(
    ops: &[Op],
    from: &Registers,
    initial: u64,
    memory: &mut impl Memory,
) -> Result<u64, Fault> {
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

/// Translates an expression. None if it has operations that CFI has no use for, or too many.
pub(super) fn compile(expression: &Expression<Slice<'_>>, encoding: Encoding) -> Option<Vec<Op>> {
    let bytes = expression.0;
    let mut rest = bytes;
    let mut ops = Vec::new();
    // Byte offset of each operation, to turn branches into indices.
    let mut offsets = Vec::new();
    let mut branches = Vec::new();
    while !rest.is_empty() {
        if ops.len() >= MAX_STEPS {
            return None;
        }
        offsets.push(bytes.len() - rest.len());
        let operation = Operation::parse(&mut rest, encoding).ok()?;
        if let Operation::Skip { target } | Operation::Bra { target } = operation {
            branches.push((
                ops.len(),
                (bytes.len() - rest.len()).checked_add_signed(isize::from(target))?,
            ));
        }
        ops.push(translate(&operation)?);
    }
    offsets.push(bytes.len());
    for (at, to) in branches {
        let target = u16::try_from(offsets.iter().position(|&o| o == to)?).ok()?;
        let op = ops.get_mut(at)?;
        *op = if matches!(op, Op::Skip(_)) {
            Op::Skip(target)
        } else {
            Op::Bra(target)
        };
    }
    Some(ops)
}

fn translate(operation: &Operation<Slice<'_>>) -> Option<Op> {
    Some(match *operation {
        Operation::UnsignedConstant { value } => Op::Constant(value),
        Operation::SignedConstant { value } => Op::Constant(value as u64),
        Operation::RegisterOffset { register, offset, .. } if usize::from(register.0) <= RIP => {
            Op::Register(u8::try_from(register.0).ok()?, offset)
        }
        Operation::PlusConstant { value } => Op::PlusConstant(value),
        Operation::Deref {
            size, space: false, ..
        } if (1..=8).contains(&size) => Op::Deref(size),
        Operation::Pick { index } => Op::Pick(index),
        Operation::Drop => Op::Drop,
        Operation::Swap => Op::Swap,
        Operation::Rot => Op::Rot,
        Operation::Abs => Op::Abs,
        Operation::Neg => Op::Neg,
        Operation::Not => Op::Not,
        Operation::And => Op::And,
        Operation::Or => Op::Or,
        Operation::Xor => Op::Xor,
        Operation::Plus => Op::Plus,
        Operation::Minus => Op::Minus,
        Operation::Mul => Op::Mul,
        Operation::Div => Op::Div,
        Operation::Mod => Op::Mod,
        Operation::Shl => Op::Shl,
        Operation::Shr => Op::Shr,
        Operation::Shra => Op::Shra,
        Operation::Eq => Op::Eq,
        Operation::Ne => Op::Ne,
        Operation::Lt => Op::Lt,
        Operation::Le => Op::Le,
        Operation::Gt => Op::Gt,
        Operation::Ge => Op::Ge,
        Operation::Skip { .. } => Op::Skip(0),
        Operation::Bra { .. } => Op::Bra(0),
        Operation::Nop => Op::Nop,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::row::RSP;
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
