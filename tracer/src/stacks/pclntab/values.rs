//! Tables of values by pc: differences of the value and of the pc in turn, as varints.

/// A value and the offset, from the function's start, up to which it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) value: i32,
    pub(super) end: u64,
}

/// The runs of one table.
pub(super) struct Values<'a> {
    bytes: &'a [u8],
    value: i32,
    end: u64,
}

impl<'a> Values<'a> {
    /// Of the table that begins `bytes`.
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            value: -1,
            end: 0,
        }
    }

    /// At most 32 bits of 7 in a byte, the lowest first.
    fn varint(&mut self) -> Option<u32> {
        let mut number = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let (&byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            number |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

impl Iterator for Values<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let change = self.varint()?;
        // No change ends the table; the first value may be the one that all begin with.
        if change == 0 && self.end != 0 {
            self.bytes = &[];
            return None;
        }
        // The lowest bit is the sign.
        let change = (change >> 1) as i32 ^ -((change & 1) as i32);
        self.value = self.value.wrapping_add(change);
        let length = self.varint()?;
        if length == 0 {
            // Runs are never empty: this is no table.
            self.bytes = &[];
            return None;
        }
        self.end = self.end.checked_add(u64::from(length))?;
        Some(Run {
            value: self.value,
            end: self.end,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn varint(mut number: u32, into: &mut Vec<u8>) {
        while number > 0x7f {
            into.push(number as u8 | 0x80);
            number >>= 7;
        }
        into.push(number as u8);
    }

    /// As the linker writes it.
    fn written(runs: &[(i32, u32)]) -> Vec<u8> {
        let (mut bytes, mut last) = (Vec::new(), -1);
        for &(value, length) in runs {
            let change = value.wrapping_sub(last);
            varint((change << 1 ^ change >> 31) as u32, &mut bytes);
            varint(length, &mut bytes);
            last = value;
        }
        bytes.push(0);
        bytes
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(runs in proptest::collection::vec((-1i32..5000, 1u32..5000), 1..40)) {
            let mut runs = runs;
            // The linker joins equal neighbours: a change of nothing would end the table.
            runs.dedup_by_key(|run| run.0);
            let mut bytes = written(&runs);
            bytes.extend([7; 9]);
            let read: Vec<_> = Values::new(&bytes).collect();
            let mut end = 0;
            let wanted: Vec<_> = runs.iter().map(|&(value, length)| {
                end += u64::from(length);
                Run { value, end }
            }).collect();
            prop_assert_eq!(read, wanted);
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let runs: Vec<_> = Values::new(&bytes).collect();
            prop_assert!(runs.len() <= bytes.len() / 2);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].end));
        }
    }
}
