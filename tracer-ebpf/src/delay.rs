//! Run-queue delays in 32 bits: exact to the ns up to a second, to 1,024 ns up to 18 minutes.

/// It began with a wake-up, not with losing the CPU.
const WOKEN: u32 = 1 << 31;
/// The unit is 1,024 ns.
const COARSE: u32 = 1 << 30;
const VALUE: u32 = COARSE - 1;
const SHIFT: u32 = 10;

/// A delay as it crosses the wire; longer ones than fit become the longest.
#[inline(always)]
#[must_use]
pub const fn encode(ns: u64, woken: bool) -> u32 {
    let flag = if woken { WOKEN } else { 0 };
    if ns <= VALUE as u64 {
        flag | ns as u32
    } else if ns >> SHIFT <= VALUE as u64 {
        flag | COARSE | (ns >> SHIFT) as u32
    } else {
        flag | COARSE | VALUE
    }
}

/// The delay in ns, and whether it began with a wake-up.
#[must_use]
pub const fn decode(delay: u32) -> (u64, bool) {
    let value = (delay & VALUE) as u64;
    let ns = if delay & COARSE == 0 {
        value
    } else {
        value << SHIFT
    };
    (ns, delay & WOKEN != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back() {
        for ns in [0, 1, 999_999_999, (1 << 30) - 1] {
            assert_eq!(decode(encode(ns, false)), (ns, false));
            assert_eq!(decode(encode(ns, true)), (ns, true));
        }
        let (ns, woken) = decode(encode(5_000_000_123, true));
        assert!(woken && (4_999_999_000..=5_000_000_123).contains(&ns), "{ns}");
        assert_eq!(decode(encode(u64::MAX, false)).0, u64::from(VALUE) << SHIFT);
    }
}
