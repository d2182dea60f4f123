//! Which data a function's code refers to: how the runtime's variables are found in programs without symbols.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind};

/// Code of one function looked at.
const MAX_CODE: usize = 64 << 10;

/// Instructions of a function whose first one is at `start`.
pub(crate) fn instructions(code: &[u8], start: u64) -> impl Iterator<Item = Instruction> {
    let code = code.get(..MAX_CODE).unwrap_or(code);
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
}

/// Addresses of data that a function's instructions name, in the order in which they first do. Targets of calls and jumps are not
/// among them.
pub(crate) fn references(code: &[u8], start: u64) -> Vec<u64> {
    let mut found = Vec::new();
    for instruction in instructions(code, start) {
        if let Some(address) = reference(&instruction)
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// The address that an instruction names relative to itself, or as an absolute 32-bit one (as programs without position
/// independence may).
pub(crate) fn reference(instruction: &Instruction) -> Option<u64> {
    if instruction.is_ip_rel_memory_operand() {
        return Some(instruction.ip_rel_memory_address());
    }
    if instruction.code() == Code::INVALID {
        return None;
    }
    let absolute = (0..instruction.op_count()).any(|at| instruction.op_kind(at) == OpKind::Memory)
        && instruction.memory_base() == iced_x86::Register::None
        && instruction.memory_index() == iced_x86::Register::None
        && instruction.segment_prefix() == iced_x86::Register::None;
    absolute.then(|| instruction.memory_displacement64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_told_from_calls() {
        // mov 0x100(%rip),%rax; call +0; lea -0x17(%rip),%rcx; mov %fs:-8,%rdx; ret; damaged
        let code = [
            0x48, 0x8b, 0x05, 0, 1, 0, 0, 0xe8, 0, 0, 0, 0, 0x48, 0x8d, 0x0d, 0xe9, 0xff, 0xff, 0xff, 0x64,
            0x48, 0x8b, 0x14, 0x25, 0xf8, 0xff, 0xff, 0xff, 0xc3, 0x48,
        ];
        assert_eq!(references(&code, 0x1000), [0x1107, 0xffc]);
        assert!(references(&[], 0).is_empty());
    }
}
