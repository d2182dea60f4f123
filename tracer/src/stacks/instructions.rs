//! What instructions of x86-64 do to the stack pointer and to the registers that a function must preserve.
//!
//! All that compilers write is known by its length; of what it does, only what moves the stack pointer or a preserved register,
//! and a register that is written in a way that does not matter counts as lost.

use super::row::RBP;

/// No instruction is longer.
pub(super) const MAX_LENGTH: usize = 15;

/// Where a register's value at the return comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Same,
    /// Loaded from this place.
    Slot(Place),
    Lost,
}

/// A register at the beginning, plus a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) base: usize,
    pub(super) by: i64,
}

impl Place {
    pub(super) const fn plus(self, by: i64) -> Self {
        Self {
            base: self.base,
            by: self.by.wrapping_add(by),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) at: u64,
    pub(super) sp: Place,
    pub(super) registers: [Origin; 16],
    /// A function's beginning is part of the way.
    pub(super) entered: bool,
}

/// Processor number (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8…) of a DWARF number, which are each other's inverse.
const ORDER: [usize; 16] = [0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
const SP: u8 = 4;
const BP: u8 = 5;

/// What an instruction does with the flow of control.
pub(super) enum Flow {
    On,
    /// May go there.
    Branch(u64),
    Return,
    /// A system call that does not return: of a thread's, or the program's, first function.
    Bottom,
}

/// An instruction's bytes, read from the front.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        self.0 = self.0.get(len..)?;
        Some(())
    }

    /// A signed number of 1 or 4 bytes.
    fn number(&mut self, len: usize) -> Option<i64> {
        let bytes = self.0.get(..len)?;
        self.skip(len)?;
        Some(match *bytes {
            [byte] => i64::from(byte.cast_signed()),
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
            _ => return None,
        })
    }
}

/// An operand of `ModRM`: registers by processor number.
#[derive(Clone, Copy)]
struct Operands {
    reg: u8,
    /// The other one is a register.
    register: Option<u8>,
    /// Or memory at this register plus a number, if that is all.
    memory: Option<(u8, i64)>,
}

fn operands(bytes: &mut Bytes<'_>, rex: u8) -> Option<Operands> {
    let modrm = bytes.byte()?;
    let (mode, low) = (modrm >> 6, modrm & 7);
    let reg = (modrm >> 3 & 7) | (rex & 4) << 1;
    let high = (rex & 1) << 3;
    if mode == 3 {
        return Some(Operands {
            reg,
            register: Some(low | high),
            memory: None,
        });
    }
    let mut base = Some(low | high);
    if low == 4 {
        let sib = bytes.byte()?;
        let index = (sib >> 3 & 7) | (rex & 2) << 2;
        base = (index == 4 && !(mode == 0 && sib & 7 == 5)).then_some((sib & 7) | high);
        if mode == 0 && sib & 7 == 5 {
            bytes.skip(4)?;
        }
    } else if low == 5 && mode == 0 {
        // Relative to the instruction.
        bytes.skip(4)?;
        base = None;
    }
    let by = match mode {
        1 => bytes.number(1)?,
        2 => bytes.number(4)?,
        _ => 0,
    };
    Some(Operands {
        reg,
        register: None,
        memory: base.map(|base| (base, by)),
    })
}

/// Follows one instruction. None: it is not understood, or no code goes on from it.
#[allow(clippy::too_many_lines, reason = "one table of opcodes")]
pub(super) fn step(state: &mut State, code: &[u8]) -> Option<Flow> {
    let mut bytes = Bytes(code);
    let (mut short, mut rex) = (false, 0);
    let opcode = loop {
        match bytes.byte()? {
            0x66 => short = true,
            0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0xf0 | 0xf2 | 0xf3 => {}
            byte @ 0x40..=0x4f => {
                rex = byte;
                break bytes.byte()?;
            }
            byte => break byte,
        }
    };
    if opcode == 0x0f && bytes.0.starts_with(&[0x05, 0xf4]) {
        return Some(Flow::Bottom);
    }
    let immediate = if short { 2 } else { 4 };
    let wide = rex & 8 != 0;
    let mut jump = None;
    match opcode {
        0xc3 => return Some(Flow::Return),
        0x0f => two_bytes(&mut bytes, state, rex, immediate, &mut jump)?,
        // VEX: two or three bytes, then an opcode and its operands.
        0xc5 | 0xc4 => {
            let map = if opcode == 0xc4 { bytes.byte()? & 0x1f } else { 1 };
            bytes.skip(1)?;
            let opcode = bytes.byte()?;
            if !(map == 1 && opcode == 0x77) {
                operands(&mut bytes, 0)?;
            }
            if map == 3 || (map == 1 && matches!(opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6)) {
                bytes.skip(1)?;
            }
        }
        // A register that must be preserved is saved where a function begins: this is no longer the same one.
        0x53..=0x57
            if !state.entered && (matches!(opcode, 0x53 | 0x55) || (rex & 1 != 0 && opcode != 0x53)) =>
        {
            return None;
        }
        0x50..=0x57 => push(state),
        0x58..=0x5f => pop(state, (opcode & 7) | (rex & 1) << 3)?,
        0x68 => {
            bytes.skip(4)?;
            push(state);
        }
        0x6a => {
            bytes.skip(1)?;
            push(state);
        }
        0xc9 => {
            let Some(Origin::Same) = state.registers.get(RBP) else {
                return None;
            };
            state.sp = Place { base: RBP, by: 0 };
            pop(state, BP)?;
        }
        0x70..=0x7f | 0xe0..=0xe3 => jump = Some((bytes.number(1)?, true)),
        0xeb => jump = Some((bytes.number(1)?, false)),
        0xe9 => jump = Some((bytes.number(4)?, false)),
        // What a call returns from leaves the stack as it was.
        0xe8 => {
            bytes.skip(4)?;
            // But from some it never returns, and padding or another function follows.
            if matches!(
                bytes.0,
                [0xcc | 0x90, ..] | [0x66, 0x90 | 0x66 | 0x2e | 0x0f, ..] | [0x0f, 0x1f, ..]
            ) {
                return None;
            }
        }
        0xff => {
            let to = operands(&mut bytes, rex)?;
            match to.reg & 7 {
                0 | 1 => lose(state, to.register)?,
                2 => {}
                6 => push(state),
                _ => return None,
            }
        }
        0x81 | 0x83 => {
            let to = operands(&mut bytes, rex)?;
            let by = if opcode == 0x83 || !short {
                bytes.number(if opcode == 0x83 { 1 } else { 4 })?
            } else {
                bytes.skip(2).map(|()| 0)?
            };
            match (to.register, to.reg & 7) {
                (Some(SP), 0) if wide => state.sp = state.sp.plus(by),
                // A frame is made: as above.
                (Some(SP), 5) if wide && by > 0 && !state.entered => return None,
                (Some(SP), 5) if wide => state.sp = state.sp.plus(by.checked_neg()?),
                // A comparison.
                (_, 7) => {}
                (register, _) => lose(state, register)?,
            }
        }
        0x89 | 0x8b | 0x8d => {
            let to = operands(&mut bytes, rex)?;
            moved(state, opcode, wide, to)?;
        }
        // Register with operand, in both directions and comparisons (which lose more than they must).
        0x00..=0x3f if opcode & 7 < 4 => {
            let to = operands(&mut bytes, rex)?;
            if opcode < 0x38 {
                lose(
                    state,
                    if opcode & 2 == 0 {
                        to.register
                    } else {
                        Some(to.reg)
                    },
                )?;
            }
        }
        0x04 | 0x0c | 0x14 | 0x1c | 0x24 | 0x2c | 0x34 | 0x3c | 0xa8 | 0xcd => bytes.skip(1)?,
        0x05 | 0x0d | 0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0xa9 => bytes.skip(immediate)?,
        0x69 | 0x6b => {
            let to = operands(&mut bytes, rex)?;
            bytes.skip(if opcode == 0x6b { 1 } else { immediate })?;
            lose(state, Some(to.reg))?;
        }
        0x80 | 0xc0 | 0xc1 | 0xc6 => {
            let to = operands(&mut bytes, rex)?;
            bytes.skip(1)?;
            lose(state, to.register)?;
        }
        0x84 | 0x85 => drop(operands(&mut bytes, rex)?),
        0x86 | 0x87 => {
            let to = operands(&mut bytes, rex)?;
            lose(state, to.register)?;
            lose(state, Some(to.reg))?;
        }
        0x88 | 0xd0..=0xd3 | 0xfe => {
            let to = operands(&mut bytes, rex)?;
            lose(state, to.register)?;
        }
        0x63 | 0x8a => {
            let to = operands(&mut bytes, rex)?;
            lose(state, Some(to.reg))?;
        }
        0xd8..=0xdf => drop(operands(&mut bytes, 0)?),
        0x90 | 0x98 | 0x99 | 0x9b | 0x9e | 0x9f | 0xa4..=0xa7 | 0xaa..=0xaf | 0xf5 | 0xf8..=0xfd => {}
        0x91..=0x97 => lose(state, Some((opcode & 7) | (rex & 1) << 3))?,
        0xb0..=0xb7 => {
            bytes.skip(1)?;
            lose(state, Some((opcode & 7) | (rex & 1) << 3))?;
        }
        0xb8..=0xbf => {
            bytes.skip(if wide { 8 } else { immediate })?;
            lose(state, Some((opcode & 7) | (rex & 1) << 3))?;
        }
        0xc7 => {
            let to = operands(&mut bytes, rex)?;
            bytes.skip(immediate)?;
            lose(state, to.register)?;
        }
        0xf6 | 0xf7 => {
            let to = operands(&mut bytes, rex)?;
            if to.reg & 7 < 2 {
                bytes.skip(if opcode == 0xf6 { 1 } else { immediate })?;
            } else if to.reg & 7 < 4 {
                lose(state, to.register)?;
            }
        }
        _ => return None,
    }
    state.at = state.at.wrapping_add((code.len() - bytes.0.len()) as u64);
    match jump {
        None => Some(Flow::On),
        Some((by, true)) => Some(Flow::Branch(state.at.wrapping_add_signed(by))),
        Some((by, false)) => {
            state.at = state.at.wrapping_add_signed(by);
            Some(Flow::On)
        }
    }
}

/// Instructions of two opcode bytes; most are of registers that are no matter here.
fn two_bytes(
    bytes: &mut Bytes<'_>,
    state: &mut State,
    rex: u8,
    immediate: usize,
    jump: &mut Option<(i64, bool)>,
) -> Option<()> {
    match bytes.byte()? {
        0x05 | 0x31 | 0x77 | 0xa2 | 0xc8..=0xcf => {}
        0x38 => {
            bytes.skip(1)?;
            operands(bytes, rex)?;
        }
        0x3a => {
            bytes.skip(1)?;
            operands(bytes, rex)?;
            bytes.skip(1)?;
        }
        0x80..=0x8f if immediate == 4 => *jump = Some((bytes.number(4)?, true)),
        0x70..=0x73 | 0xc2 | 0xc4..=0xc6 => {
            operands(bytes, rex)?;
            bytes.skip(1)?;
        }
        0xa4 | 0xac | 0xba => {
            let to = operands(bytes, rex)?;
            bytes.skip(1)?;
            lose(state, to.register)?;
        }
        // Conditional moves, extensions, products, scans of bits: into the first operand.
        0x40..=0x4f | 0xaf | 0xb6..=0xb8 | 0xbc..=0xbf => {
            let to = operands(bytes, rex)?;
            lose(state, Some(to.reg))?;
        }
        0x90..=0x9f | 0xa5 | 0xab | 0xad | 0xb0 | 0xb1 | 0xb3 | 0xbb | 0xc0 | 0xc1 => {
            let to = operands(bytes, rex)?;
            lose(state, to.register)?;
        }
        0x0d
        | 0x10..=0x1f
        | 0x28..=0x2f
        | 0x50..=0x6f
        | 0x74..=0x76
        | 0x7c..=0x7f
        | 0xa3
        | 0xae
        | 0xc3
        | 0xc7
        | 0xd0..=0xfe => {
            operands(bytes, rex)?;
        }
        _ => return None,
    }
    Some(())
}

fn push(state: &mut State) {
    state.sp = state.sp.plus(-8);
}

fn pop(state: &mut State, register: u8) -> Option<()> {
    load(state, register, state.sp)?;
    state.sp = state.sp.plus(8);
    Some(())
}

/// A register gets the word at a place.
fn load(state: &mut State, register: u8, from: Place) -> Option<()> {
    if register == SP {
        return None;
    }
    let dwarf = ORDER.get(usize::from(register))?;
    *state.registers.get_mut(*dwarf)? = Origin::Slot(from);
    Some(())
}

/// A register gets a value that nothing here follows; of the stack pointer that is the end.
fn lose(state: &mut State, register: Option<u8>) -> Option<()> {
    let Some(register) = register else { return Some(()) };
    if register == SP {
        return None;
    }
    let dwarf = ORDER.get(usize::from(register))?;
    *state.registers.get_mut(*dwarf)? = Origin::Lost;
    Some(())
}

/// The place that a register holds now, if it is one of the frame.
fn place(state: &State, register: u8) -> Option<Place> {
    match register {
        SP => Some(state.sp),
        BP if state.registers.get(RBP) == Some(&Origin::Same) => Some(Place { base: RBP, by: 0 }),
        _ => None,
    }
}

/// `mov` of words and `lea`: the stack pointer from the frame pointer, and registers from the stack.
fn moved(state: &mut State, opcode: u8, wide: bool, to: Operands) -> Option<()> {
    if opcode == 0x89 {
        if to.register == Some(SP) {
            state.sp = place(state, to.reg).filter(|_| wide)?;
            return Some(());
        }
        return lose(state, to.register);
    }
    let source = match (opcode, to.register, to.memory) {
        (0x8b, Some(register), _) => place(state, register),
        (_, None, Some((base, by))) => place(state, base).map(|place| place.plus(by)),
        _ => None,
    };
    let address = opcode == 0x8d || to.register.is_some();
    match (to.reg, source) {
        (SP, Some(place)) if wide && address => state.sp = place,
        (register, Some(place)) if wide && !address => load(state, register, place)?,
        (register, _) => lose(state, Some(register))?,
    }
    Some(())
}
