//! Bytes that nobody meant well with.

use proptest::prelude::*;
use tracer_ebpf::wire::Regs;

use crate::stacks::cfi::Cfi;
use crate::stacks::code;
use crate::stacks::elf::Elf;
use crate::stacks::instructions;
use crate::stacks::{End, Frame, Stacks, Symbolizer, memory};

fn try_all(bytes: &[u8], addresses: &[u64]) {
    let Some(elf) = Elf::parse(bytes) else { return };
    let mut cfi = Cfi::read(bytes, &elf);
    for &address in addresses {
        elf.bias(address, address ^ 0x1000, true);
        elf.file_offset(address);
        cfi.find(address);
    }
}

/// A small real file: the vdso.
fn vdso() -> Vec<u8> {
    let id = std::process::id();
    let maps = crate::proc::maps::read(id).unwrap();
    let map = maps.iter().find(|m| &*m.name == "[vdso]").unwrap();
    memory::read(id, map.start, (map.end - map.start) as usize).unwrap()
}

#[test]
fn the_vdso_has_rules() {
    let image = vdso();
    let elf = Elf::parse(&image[..]).unwrap();
    let mut cfi = Cfi::read(&image[..], &elf);
    let text = elf.section(".text").unwrap();
    assert!((text.addr..text.addr + text.size).any(|a| cfi.find(a).is_some_and(|f| f.row.is_some())));
    assert!(!elf.build_id.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_as_elf(bytes in proptest::collection::vec(any::<u8>(), 0..600), addresses: [u64; 4]) {
        try_all(&bytes, &addresses);
        let mut bytes = bytes;
        let head = [0x7f, b'E', b'L', b'F', 2, 1];
        for (to, from) in bytes.iter_mut().zip(head) {
            *to = from;
        }
        if let Some(machine) = bytes.get_mut(18..20) {
            machine.copy_from_slice(&[62, 0]);
        }
        try_all(&bytes, &addresses);
    }

    #[test]
    fn any_bytes_as_code(bytes in proptest::collection::vec(any::<u8>(), 0..400), near: u64, far: u64) {
        for base in [near, 0, u64::MAX - 200] {
            let fetch = |at: u64| bytes.iter().copied().cycle().skip((at.wrapping_sub(base) % 400) as usize).take(instructions::MAX_LENGTH).collect::<Vec<u8>>();
            if let Some(row) = code::derive(base, fetch) {
                code::comes_to(far, base, &row.cfa, fetch);
                code::comes_to(base, base.wrapping_add(far % 400), &row.cfa, fetch);
            }
        }
    }

    #[test]
    fn a_real_file_with_bytes_changed(changes in proptest::collection::vec((0usize..8192, any::<u8>()), 1..60), addresses in proptest::collection::vec(0u64..8192, 64)) {
        let mut image = vdso();
        for (at, byte) in changes {
            if let Some(b) = image.get_mut(at) {
                *b = byte;
            }
        }
        try_all(&image, &addresses);
    }

    #[test]
    fn names_of_a_real_file_with_bytes_changed(changes in proptest::collection::vec((0usize..8192, any::<u8>()), 1..30), offset in 0u64..4096) {
        let mut image = vdso();
        for (at, byte) in changes {
            // The identification stays, so that the rest is read at all.
            if let Some(b) = image.get_mut(at).filter(|_| at >= 20) {
                *b = byte;
            }
        }
        let mut stacks = Stacks::new();
        if let Some(module) = stacks.modules.add_vdso(image).unwrap() {
            let frame = Frame { module: Some(module), address: offset, offset, return_address: false, guessed: false };
            let id = stacks.interned.intern(1, &[frame], End::NoCfi);
            prop_assert!(!Symbolizer::new().resolve(&stacks, id).is_empty());
        }
    }

    #[test]
    fn any_stack_bytes(gp: [u64; 16], near in 0u64..0x2000, bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut stacks = Stacks::new();
        let code = Stacks::unwind as *const () as u64;
        for (ip, sp) in [(gp[0], gp[7]), (code + near, gp[7]), (code + near, u64::MAX - 3)] {
            let mut regs = Regs { ip, sp, gp, stack_len: bytes.len() as u32, fault: 0, missing: 0, reserved: 0 };
            regs.gp[6] = sp.wrapping_add(near & !7);
            let unwound = stacks.unwind(std::process::id(), &regs, &bytes);
            prop_assert!(unwound.needed <= bytes.len());
            stacks.unwind_live(std::process::id(), &regs);
        }
    }
}
