//! Stack memos: what decided an unwinding, in a form that a probe can compare.
//!
//! User space unwinds a copied stack once and notes every input that decided a frame, and nothing else: words of the stack
//! and registers, each either *absolute* (a return address) or *relative to the stack pointer* (a register that was a frame's
//! base). Where all inputs are the same again the frames are the same, because the unwinder is a function of them; so a probe
//! that finds them the same need not copy the stack.
//!
//! A memo is found by its [`Key`] and lies in the map `MEMO_POOL`, at a multiple of 8 bytes:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | its id; 0 while it is being written or after it was dropped |
//! | 8 | number of inputs, and of runs << 16 |
//! | 8 × runs | offset from the stack pointer, and length << 32, of a run of stack to be read; both in bytes, multiples of 8 |
//! | 2 × inputs | where in the scratch the input is, in words, and [`RELATIVE`] |
//! | 8 × inputs | the value, less the stack pointer if relative |
//!
//! The scratch holds the registers by DWARF number in its first [`REGISTERS`] words, then all runs one after the other.

use crate::wire::StackPlace;

/// Size of the pool: room for some five thousand memos of thirty inputs.
pub const POOL_BYTES: usize = 4 << 20;
/// Words of the scratch that hold registers.
pub const REGISTERS: usize = 16;
/// Registers that a probe puts into the scratch, by DWARF number: rbx, rbp, r10, r12–r15. Those that a frame can have as its base.
pub const HELD: u16 = 1 << 3 | 1 << 6 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15;
/// Bytes of stack that the scratch holds.
pub const SCRATCH_STACK: usize = 8 << 10;
/// Bytes of the longest run; also the mask of a length.
pub const RUN_MAX: usize = (4 << 10) - 8;
/// Runs of one memo.
pub const RUNS: usize = 8;
/// Inputs of one memo, made up to a multiple of [`AT_ONCE`] by repeating the last.
pub const INPUTS: usize = 256;
/// Inputs compared at one go.
pub const AT_ONCE: usize = 16;
/// Memos that share a key.
pub const WAYS: usize = 8;
/// Keys.
pub const KEYS: u32 = 16_384;
/// The input is relative to the stack pointer.
pub const RELATIVE: u16 = 1 << 15;
/// Bytes of the stack above the stack pointer that a memo can name.
pub const SPAN: u64 = 256 << 10;
/// Inputs closer together than this, in bytes, are read in one run: so much more of a run costs less than another one.
const GAP: u64 = 512;

/// Key of the map `MEMOS`: where the stack pointer lies in its page makes paths of different depth different, and is the same
/// in all threads, whose stacks lie pages apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Program counter.
    pub ip: u64,
    /// The layout of the address space.
    pub space: u32,
    /// Low 12 bits of the stack pointer.
    pub sp: u32,
}

impl Key {
    /// The key of a place in a space.
    #[inline(always)]
    #[must_use]
    pub const fn new(space: u32, place: StackPlace) -> Self {
        Self {
            ip: place.ip,
            space,
            sp: place.sp as u32 & 0xfff,
        }
    }
}

/// Value of the map `MEMOS`: offsets into the pool, 0 for none.
pub type Ways = [u32; WAYS];

/// One input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A register by DWARF number, as it was at kernel entry.
    Register(u8),
    /// A word of the stack, by its distance from the stack pointer.
    Stack(u32),
}

/// An input and the value that it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Input {
    /// Where from.
    pub source: Source,
    /// The value is a distance from the stack pointer.
    pub relative: bool,
    /// The value.
    pub value: u64,
}

/// Writes a memo's words behind its id, which the caller writes last; returns how many bytes the whole takes. `None` when it
/// has too many inputs, too far apart, or of registers that no probe reads. `inputs` must be sorted.
pub fn encode(inputs: &[Input], into: &mut [u64]) -> Option<usize> {
    if inputs.len() > INPUTS {
        return None;
    }
    let mut runs = [(0u64, 0u64); RUNS];
    let mut count = 0;
    for input in inputs {
        let Source::Stack(at) = input.source else { continue };
        let at = u64::from(at);
        if at % 8 != 0 || at + 8 > SPAN {
            return None;
        }
        match runs.get_mut(..count)?.last_mut() {
            Some((start, len)) if at < *start + *len + GAP && at + 8 - *start <= RUN_MAX as u64 => {
                *len = (*len).max(at + 8 - *start);
            }
            _ => {
                *runs.get_mut(count)? = (at, 8);
                count += 1;
            }
        }
    }
    let runs = runs.get(..count)?;
    if runs.iter().map(|(_, len)| *len).sum::<u64>() > SCRATCH_STACK as u64 {
        return None;
    }
    let padded = inputs.len().next_multiple_of(AT_ONCE);
    let metas = 2 + count;
    let values = metas + padded / 4;
    let end = values + padded;
    into.get_mut(1..end)?.fill(0);
    *into.get_mut(1)? = padded as u64 | (count as u64) << 16;
    for (slot, (start, len)) in into.get_mut(2..metas)?.iter_mut().zip(runs) {
        *slot = start | len << 32;
    }
    let filling = inputs.last().into_iter().cycle();
    for (index, input) in inputs.iter().chain(filling).take(padded).enumerate() {
        let word = match input.source {
            Source::Register(number) => {
                if u32::from(number) >= u16::BITS || HELD & 1 << number == 0 {
                    return None;
                }
                u64::from(number)
            }
            Source::Stack(at) => {
                let at = u64::from(at);
                let mut before = 0;
                let mut found = None;
                for (start, len) in runs {
                    if (*start..*start + *len).contains(&at) {
                        found = Some(REGISTERS as u64 + (before + at - *start) / 8);
                    }
                    before += *len;
                }
                found?
            }
        };
        let meta = word | if input.relative { u64::from(RELATIVE) } else { 0 };
        *into.get_mut(metas + index / 4)? |= meta << (16 * (index % 4));
        *into.get_mut(values + index)? = input.value;
    }
    Some(end * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(at: u32, value: u64) -> Input {
        Input {
            source: Source::Stack(at),
            relative: false,
            value,
        }
    }

    #[test]
    fn words_close_together_are_one_run() {
        let mut words = [0; 64];
        let inputs = [
            Input {
                source: Source::Register(6),
                relative: true,
                value: 0x40,
            },
            stack(8, 1),
            stack(0x100, 2),
            stack(0x1000, 3),
        ];
        let bytes = encode(&inputs, &mut words).unwrap();
        assert_eq!(words[1], 16 | 2 << 16);
        assert_eq!(words[2], 8 | 0x100 << 32);
        assert_eq!(words[3], 0x1000 | 8 << 32);
        let metas: [u64; 4] = core::array::from_fn(|i| words[4] >> (16 * i) & 0xffff);
        assert_eq!(metas, [6 | u64::from(RELATIVE), 16, 16 + 31, 16 + 32]);
        let last = words[4] >> 48;
        assert_eq!(words[5..8], [last | last << 16 | last << 32 | last << 48; 3]);
        assert_eq!(words[8..12], [0x40, 1, 2, 3]);
        assert_eq!(words[12..24], [3; 12]);
        assert_eq!(bytes, 24 * 8);
    }

    #[test]
    fn what_a_probe_could_not_read_is_no_memo() {
        let mut words = [0; 512];
        assert_eq!(encode(&[stack(4, 1)], &mut words), None, "unaligned");
        assert_eq!(encode(&[stack(SPAN as u32, 1)], &mut words), None, "too far");
        let rax = Input {
            source: Source::Register(0),
            relative: false,
            value: 0,
        };
        assert_eq!(encode(&[rax], &mut words), None, "a register that is not held");
        let far: [Input; RUNS + 1] = core::array::from_fn(|i| stack(i as u32 * 0x1000, 1));
        assert_eq!(encode(&far, &mut words), None, "too many runs");
        let many = [stack(0, 1); INPUTS + 1];
        assert_eq!(encode(&many, &mut words), None, "too many inputs");
        assert!(encode(&many[1..], &mut words).is_some());
        assert_eq!(encode(&many[1..], &mut [0; 16]), None, "no room");
    }

    #[test]
    fn the_scratch_is_not_overrun() {
        let mut words = [0; 512];
        // Three runs of 4 KiB each are more than it holds.
        let inputs: [Input; 48] =
            core::array::from_fn(|i| stack((i as u32 % 16) * 264 + (i as u32 / 16) * 0x10000, 1));
        let mut inputs = inputs;
        inputs.sort_unstable();
        assert_eq!(encode(&inputs, &mut words), None);
    }
}
