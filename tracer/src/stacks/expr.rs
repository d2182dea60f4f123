//! DWARF expressions of unwind rules: translated once, evaluated often.

use gimli::{Encoding, Expression, Operation};

use super::cfi::Slice;
use super::log::{Origin, Reader, Value};
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
    initial: Value,
    reader: &mut Reader<'_, impl Memory>,
) -> Result<Value, Fault> {
    let mut stack = vec![initial];
    let mut at = 0usize;
    for _ in 0..MAX_STEPS {
        let Some(&op) = ops.get(at) else {
            return stack.pop().ok_or(Fault::Rules);
        };
        at += 1;
        let mut pop = || stack.pop().ok_or(Fault::Rules);
        let push = match op {
            Op::Constant(value) => Value::fixed(value),
            Op::Register(register, by) => from.get(usize::from(register))?.plus(by),
            Op::PlusConstant(by) => pop()?.plus(by.cast_signed()),
            Op::Deref(size) => {
                let word = reader.word(pop()?)?;
                if size >= 8 {
                    word
                } else {
                    let mask = (1 << (8 * u32::from(size))) - 1;
                    Value::fixed(reader.decide(word).value & mask)
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
            Op::Abs => Value::fixed((decided(pop()?, reader) as i64).unsigned_abs()),
            Op::Neg => Value::fixed(decided(pop()?, reader).wrapping_neg()),
            Op::Not => Value::fixed(!decided(pop()?, reader)),
            Op::Skip(to) => {
                at = usize::from(to);
                continue;
            }
            Op::Bra(to) => {
                if decided(pop()?, reader) != 0 {
                    at = usize::from(to);
                }
                continue;
            }
            Op::Nop => continue,
            _ => {
                let (right, left) = (pop()?, pop()?);
                let value = binary(op, left.value, right.value).ok_or(Fault::Rules)?;
                match (op, left.origin, right.origin) {
                    // Still this plus a constant.
                    (Op::Plus | Op::Minus, origin, Origin::Fixed) | (Op::Plus, Origin::Fixed, origin) => {
                        Value { value, origin }
                    }
                    _ => {
                        decided(left, reader);
                        decided(right, reader);
                        Value::fixed(value)
                    }
                }
            }
        };
        stack.push(push);
    }
    Err(Fault::Rules)
}

/// A value that an operation makes into something else than itself plus a constant.
fn decided(value: Value, reader: &mut Reader<'_, impl Memory>) -> u64 {
    reader.decide(value).value
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
    use super::super::log::Log;
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
        let sp = Value {
            value: 0x1000,
            origin: Origin::Sp,
        };
        let mut registers = Registers {
            value: [Value::fixed(0); 17],
            known: u32::MAX,
        };
        registers.value[RSP] = sp;
        for (ip, cfa) in [(0x406u64, 8), (0x40b, 16)] {
            registers.value[RIP] = Value::fixed(ip);
            let mut log = Log::default();
            let mut nothing = Nothing;
            let mut reader = Reader::new(&mut nothing, &mut log, 0x1000);
            let got = evaluate(&ops, &registers, Value::fixed(0), &mut reader);
            assert_eq!(got, Ok(sp.plus(cfa)));
            assert_eq!(log.inputs(), Some(&[][..]), "the program counter is in the key");
        }
    }

    #[test]
    fn an_endless_expression_ends() {
        let registers = Registers {
            value: [Value::fixed(0); 17],
            known: 0,
        };
        let run = |ops: &[Op], initial| {
            let mut log = Log::default();
            let mut nothing = Nothing;
            let mut reader = Reader::new(&mut nothing, &mut log, 0);
            evaluate(ops, &registers, Value::fixed(initial), &mut reader)
        };
        assert_eq!(run(&[Op::Nop, Op::Skip(0)], 0), Err(Fault::Rules));
        assert_eq!(run(&[Op::Register(7, 0)], 0), Err(Fault::Rules));
        assert_eq!(run(&[Op::Constant(0), Op::Div], 1), Err(Fault::Rules));
    }
}
