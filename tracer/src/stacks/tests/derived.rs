//! Rules derived from code, against those that the compiler wrote for the same code.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Command;

use crate::stacks::cfi::Cfi;
use crate::stacks::code::derive;
use crate::stacks::elf::{Elf, Image as _};
use crate::stacks::instructions::MAX_LENGTH;
use crate::stacks::row::{RSP, Row, Rule};
use crate::testing::skip;

/// Where the C library is on Debian.
const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

/// Addresses that calls return to, by the disassembler, and whether what is called never returns.
fn returns(path: &str) -> Option<Vec<u64>> {
    let output = Command::new("objdump")
        .args(["-d", "-w", "--no-show-raw-insn", path])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut called = false;
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((address, instruction)) = line.trim_start().split_once(":\t") else {
            called = false;
            continue;
        };
        if called && let Ok(address) = u64::from_str_radix(address, 16) {
            found.push(address);
        }
        let never = [
            "abort",
            "exit",
            "fail",
            "fatal",
            "assert",
            "throw",
            "Unwind_Resume",
            "terminate",
        ];
        called = instruction.starts_with("call") && !never.iter().any(|name| instruction.contains(name));
    }
    (!found.is_empty()).then_some(found)
}

/// At every return address of the C library, wherever both say where the caller's frame lies from the stack pointer: the same,
/// and the same places of the registers that it saved.
#[test]
fn derived_rules_are_those_of_the_compiler() {
    let (Ok(file), Some(returns)) = (File::open(LIBC), returns(LIBC)) else {
        skip(&"no libc or no objdump to compare with");
        return;
    };
    let elf = Elf::parse(&file).unwrap();
    let mut cfi = Cfi::read(&file, &elf);
    let (start, len) = {
        let text = elf.section(".text").unwrap();
        (text.addr, text.size)
    };
    let text = file.read_at(elf.file_offset(start).unwrap().0, len).unwrap();
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut wrong = Vec::new();
    for at in returns
        .into_iter()
        .filter(|&at| at >= start && at - start < len - 64)
    {
        let Some(row) = cfi.find(at - 1).and_then(|found| found.row) else {
            continue;
        };
        let fetch = |at: u64| {
            let from = (at.wrapping_sub(start)).min(len) as usize;
            text[from..(from + MAX_LENGTH).min(text.len())].to_vec()
        };
        // Callers keep the stack aligned; who uses the rules checks it.
        let aligned = |row: &Row| !matches!(row.cfa, Rule::Register(7, by) if by % 16 != 0);
        let Some(derived) = derive(at, fetch).filter(aligned) else {
            *counts.entry("not derived").or_default() += 1;
            continue;
        };
        let Rule::Register(7, cfa) = row.cfa else {
            *counts.entry("by another register").or_default() += 1;
            continue;
        };
        assert_eq!(RSP, 7);
        let places = |register: u8, rules: &[(u8, Rule)], cfa: i32| match rules
            .iter()
            .find(|(r, _)| *r == register)
            .map(|(_, rule)| rule)
        {
            Some(Rule::AtCfa(by)) => Some(cfa + by),
            Some(Rule::AtRegister(7, by)) => Some(*by),
            _ => None,
        };
        // A register that the code does not restore is either the caller's still or nobody's on that way.
        let saved = [3, 6, 12, 13, 14, 15].into_iter().all(|register| {
            let theirs = places(register, &row.saved, cfa);
            let ours = places(register, &derived.saved, cfa);
            ours.is_none() || ours == theirs
        });
        let right = derived.cfa == Rule::Register(7, cfa) && saved;
        *counts.entry(if right { "right" } else { "wrong" }).or_default() += 1;
        if !right {
            wrong.push(format!("{at:x}: {derived:?} is not {row:?}"));
        }
    }
    println!(
        "{counts:?}\n{}",
        wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
    );
    let count = |what| counts.get(what).copied().unwrap_or_default();
    assert!(count("right") > 5000, "{counts:?}");
    assert_eq!(count("wrong"), 0, "{counts:?}");
}
