//! What a probe must know of the program that it is in, packed into the 64 bits that the kernel carries with each attachment: offsets
//! differ from one version of Go to the next.
//!
//! ```text
//! bits 0–12, 13–25, 26–38, 39–51: four offsets, in words         52: ON_CHECK     53: ALL
//! ```

/// An offset in words: those of 16 bits in bytes.
const WORD_BITS: u32 = 13;
const WORD: u64 = (1 << WORD_BITS) - 1;
/// First bit of the flags.
const FLAGS: u32 = 4 * WORD_BITS;

/// The probe is on the jump of the stack's check: where that is taken the function begins anew, on a larger stack.
pub const ON_CHECK: u64 = 1;
/// The probe is in the runtime, at all `go` statements; or where waits begin that are told, too.
pub const ALL: u64 = 2;

/// The carry and zero flags: an unsigned jump "below or equal" is taken when one of them is set.
const CARRY_OR_ZERO: u64 = 1 | 1 << 6;

/// Four offsets, multiples of 8, and flags.
#[inline(always)]
#[must_use]
pub const fn pack(offsets: [u16; 4], flags: u64) -> u64 {
    let [a, b, c, d] = offsets;
    (a as u64 / 8)
        | (b as u64 / 8) << WORD_BITS
        | (c as u64 / 8) << (2 * WORD_BITS)
        | (d as u64 / 8) << (3 * WORD_BITS)
        | flags << FLAGS
}

/// From [`pack`].
#[inline(always)]
#[must_use]
pub const fn unpack(cookie: u64) -> ([u16; 4], u64) {
    (
        [
            (cookie & WORD) as u16 * 8,
            (cookie >> WORD_BITS & WORD) as u16 * 8,
            (cookie >> (2 * WORD_BITS) & WORD) as u16 * 8,
            (cookie >> (3 * WORD_BITS) & WORD) as u16 * 8,
        ],
        cookie >> FLAGS,
    )
}

/// Whether a hit with these processor flags is not the function's beginning.
#[inline(always)]
#[must_use]
pub const fn is_repeated(on_check: bool, flags: u64) -> bool {
    on_check && flags & CARRY_OR_ZERO != 0
}

/// A flag when it holds.
#[inline(always)]
pub(crate) const fn flag(holds: bool, flag: u64) -> u64 {
    if holds { flag } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_flags_come_back() {
        for (offsets, flags) in [
            ([152, 48, 184, 272], 0),
            ([u16::MAX - 7; 4], ON_CHECK | ALL),
            ([0, 8, 0, u16::MAX - 7], ALL),
            ([8, 0, 16, 0], ON_CHECK),
        ] {
            assert_eq!(unpack(pack(offsets, flags)), (offsets, flags));
        }
    }

    #[test]
    fn a_function_that_begins_anew_is_told_by_the_flags() {
        assert!(!is_repeated(false, CARRY_OR_ZERO));
        assert!(is_repeated(true, 1) && is_repeated(true, 1 << 6));
        assert!(!is_repeated(true, 0x202));
    }
}
