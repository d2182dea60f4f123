//! What decided an unwinding.
//!
//! Every value that the unwinder handles knows where it came from: it is a constant, or the stack pointer, a register or a word of
//! the stack plus a constant. Only where a value *decides* something is its origin noted as an input: as it is (a return
//! address), or by its distance from the stack pointer (a base of a frame). What is merely carried along, such as the saved
//! registers that no frame needs, is not. The frames are a function of these inputs, which is what a memo rests on.
//!
//! What this cannot express (a comparison of registers in an expression, memory that is no stack) makes the unwinding
//! unfit for a memo: it is right, and done anew each time.

use tracer_ebpf::memo::{INPUTS, Input, SPAN, Source};

use super::row::{Fault, Memory};

/// Where a value comes from; it is this plus a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nothing: the same whenever the inputs noted so far are.
    Fixed,
    /// The stack pointer.
    Sp,
    /// An input not yet noted, and its value.
    Input(Source, u64),
    /// Something that no memo can compare.
    Opaque,
}

/// A value and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) value: u64,
    pub(super) origin: Origin,
}

impl Value {
    pub(super) const fn fixed(value: u64) -> Self {
        Self {
            value,
            origin: Origin::Fixed,
        }
    }

    /// A constant farther.
    pub(super) const fn plus(self, by: i64) -> Self {
        Self {
            value: self.value.wrapping_add_signed(by),
            origin: self.origin,
        }
    }
}

/// Inputs noted so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    inputs: Vec<Input>,
    opaque: bool,
}

impl Log {
    pub(super) fn clear(&mut self) {
        self.inputs.clear();
        self.opaque = false;
    }

    /// The inputs, sorted and each once; None when they do not tell all.
    pub(super) fn inputs(&mut self) -> Option<&[Input]> {
        if self.opaque {
            return None;
        }
        self.inputs.sort_unstable();
        self.inputs.dedup();
        Some(&self.inputs)
    }

    fn note(&mut self, source: Source, value: u64, relative: bool) {
        if self.opaque {
            return;
        }
        // Each may be noted both ways, and repeatedly.
        if self.inputs.len() >= 4 * INPUTS {
            self.opaque = true;
            return;
        }
        self.inputs.push(Input {
            source,
            relative,
            value,
        });
    }
}

/// The stack, and the log of what is read of it.
pub(super) struct Reader<'a, M> {
    memory: &'a mut M,
    log: &'a mut Log,
    sp: u64,
}

impl<'a, M: Memory> Reader<'a, M> {
    pub(super) const fn new(memory: &'a mut M, log: &'a mut Log, sp: u64) -> Self {
        Self { memory, log, sp }
    }

    /// The word at an address; where it lies becomes an input, what it is not yet.
    pub(super) fn word(&mut self, at: Value) -> Result<Value, Fault> {
        let at = self.place(at);
        let value = self.memory.word(at.value)?;
        let offset = at.value.wrapping_sub(self.sp);
        let origin = if at.origin == Origin::Sp && offset < SPAN {
            Origin::Input(Source::Stack(offset as u32), value)
        } else {
            Origin::Opaque
        };
        Ok(Value { value, origin })
    }

    /// The value decides by where it lies on the stack.
    pub(super) fn place(&mut self, value: Value) -> Value {
        match value.origin {
            Origin::Sp => return value,
            Origin::Input(source, input) => self.log.note(source, input.wrapping_sub(self.sp), true),
            Origin::Fixed | Origin::Opaque => self.log.opaque = true,
        }
        Value {
            value: value.value,
            origin: Origin::Sp,
        }
    }

    /// The value decides by what it is.
    pub(super) fn decide(&mut self, value: Value) -> Value {
        match value.origin {
            Origin::Fixed => {}
            Origin::Input(source, input) => self.log.note(source, input, false),
            Origin::Sp | Origin::Opaque => self.log.opaque = true,
        }
        Value::fixed(value.value)
    }

    /// The value is, or is not, null, and then decides by where it lies.
    pub(super) fn place_or_null(&mut self, value: Value) -> Value {
        if value.value == 0 {
            self.decide(value)
        } else {
            self.place(value)
        }
    }

    /// What happened depends on more than the inputs.
    pub(super) fn opaque(&mut self) {
        self.log.opaque = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Words(Vec<u64>);

    impl Memory for Words {
        fn word(&mut self, address: u64) -> Result<u64, Fault> {
            self.0
                .get((address as usize - 0x1000) / 8)
                .copied()
                .ok_or(Fault::Beyond)
        }
    }

    #[test]
    fn only_what_decides_is_an_input() {
        let mut memory = Words(vec![7, 0x1018, 9, 11]);
        let mut log = Log::default();
        let mut reader = Reader::new(&mut memory, &mut log, 0x1000);
        let sp = Value {
            value: 0x1000,
            origin: Origin::Sp,
        };
        let _carried = reader.word(sp).unwrap();
        let base = reader.word(sp.plus(8)).unwrap();
        let word = reader.word(base).unwrap();
        assert_eq!(word.value, 11);
        reader.decide(word.plus(1));
        let expected = [
            Input {
                source: Source::Stack(8),
                relative: true,
                value: 0x18,
            },
            Input {
                source: Source::Stack(0x18),
                relative: false,
                value: 11,
            },
        ];
        assert_eq!(log.inputs(), Some(&expected[..]));
    }

    #[test]
    fn memory_that_is_no_stack_makes_no_memo() {
        let mut memory = Words(vec![7]);
        let mut log = Log::default();
        let mut reader = Reader::new(&mut memory, &mut log, 0x1000);
        reader.word(Value::fixed(0x1000)).unwrap();
        assert_eq!(log.inputs(), None);
        log.clear();
        assert_eq!(log.inputs(), Some(&[][..]));
    }
}
