//! Where a Go program can be probed for waits of its locks: instructions that the kernel emulates, which costs half a microsecond,
//! and never one that it has to step over in a copy, which costs thirty times as much here.
//!
//! ```text
//! semacquire1:  cmp  0x10(%r14),%rsp   the check of the stack; that it goes by r14 says that arguments come in registers
//!               jbe  grow              emulated, but reached again after the stack has grown: the probe looks at the flags
//!               push %rbp              emulated, reached once: since Go 1.21
//! ```
//! Both lie before anything is changed: the arguments are in their registers, and the stack pointer is at the return address.

use anyhow::{Context as _, Result, bail, ensure};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use tracer_ebpf::go_wait::Cookie;

use super::{code::instructions, memory::Memory, program::Program, runtime::find_types};

/// Where `stackguard0` is in `runtime.g`: in every version with arguments in registers.
const STACK_GUARD: u64 = 16;

/// A place for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Offset in the program's file.
    pub offset: u64,
    /// The instruction is the jump of the stack's check ([`Cookie::on_check`]).
    pub on_check: bool,
}

/// The places in a program, and what the probes there need to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sites {
    /// `runtime.semacquire1`: `rax` has the semaphore's address, `r14` the goroutine.
    pub semacquire: Site,
    /// `runtime.readyWithTime`: `rax` has the waiter (`*runtime.sudog`), `r14` the goroutine that ends the wait.
    pub ready: Site,
    /// `sync.runtime_notifyListWait`: `rax` has the list's address. Programs without condition variables have none.
    pub notify_wait: Option<Site>,
    /// Waits for condition variables are told.
    pub conditions: bool,
    /// Offset of the number in `runtime.g`.
    goid: u16,
    /// Offset of the goroutine in `runtime.sudog`.
    sudog_g: u16,
}

impl Sites {
    /// Finds them; the error says what is missing, or different from what is known to be safe.
    pub fn find<M: Memory>(memory: &M, program: &Program) -> Result<Self> {
        let (types, _) = find_types(memory, program).context("no type descriptors")?;
        let found = types.find(&["runtime.g", "runtime.sudog"]);
        let offset = |structure: &str, field: &str| {
            let offset = found
                .get(structure)
                .and_then(|found| found.field(field))
                .filter(|offset| offset.is_multiple_of(8));
            offset
                .and_then(|offset| u16::try_from(offset).ok())
                .with_context(|| format!("no field {field} in the descriptor of {structure}"))
        };
        Ok(Self {
            semacquire: site(program, "runtime.semacquire1")?,
            ready: site(program, "runtime.readyWithTime")?,
            notify_wait: if program.function("sync.runtime_notifyListWait").is_some() {
                Some(site(program, "sync.runtime_notifyListWait")?)
            } else {
                None
            },
            conditions: true,
            goid: offset("runtime.g", "goid")?,
            sudog_g: offset("runtime.sudog", "g")?,
        })
    }

    /// What goes with the probe at one of them.
    #[must_use]
    pub const fn cookie(&self, site: Site) -> Cookie {
        Cookie {
            goid: self.goid,
            sudog_g: self.sudog_g,
            on_check: site.on_check,
            all: self.conditions,
        }
    }
}

/// Where a function is probed.
pub(super) fn site(program: &Program, function: &str) -> Result<Site> {
    let (code, start) = program
        .code(function)
        .with_context(|| format!("the program has no {function}"))?;
    let (address, on_check) = place(&code, start).with_context(|| format!("{function} cannot be probed"))?;
    let offset = program
        .file_offset(address)
        .with_context(|| format!("{function} lies outside of the file"))?;
    Ok(Site { offset, on_check })
}

/// The address in a function's code that is to be probed, and whether it is the check's jump.
pub(super) fn place(code: &[u8], start: u64) -> Result<(u64, bool)> {
    let mut prologue = instructions(code, start);
    let mut next = move || prologue.next().context("its code is cut short");
    let mut check = next()?;
    // A large frame: what the stack pointer will be is compared.
    let mut pointer = Register::RSP;
    if check.mnemonic() == Mnemonic::Lea
        && check.memory_base() == Register::RSP
        && check.memory_index() == Register::None
        && check.op0_register() == Register::R12
    {
        pointer = Register::R12;
        check = next()?;
    }
    ensure!(
        is_check(&check, pointer),
        "it does not begin with a check of the stack by the goroutine in r14: no arguments in registers (before Go 1.17), or another compiler"
    );
    let jump = next()?;
    ensure!(
        matches!(jump.code(), Code::Jbe_rel8_64 | Code::Jbe_rel32_64),
        "the check of the stack is not followed by its jump"
    );
    let within = start..start.saturating_add(code.len() as u64);
    ensure!(
        within.contains(&jump.near_branch_target()) && jump.near_branch_target() > jump.ip(),
        "the check of the stack leads out of the function"
    );
    let after = next()?;
    if is_push(&after) {
        // Reached from elsewhere it would count too often.
        if instructions(code, start).any(|other| targets(&other, after.ip())) {
            bail!("its first instruction is the target of a jump");
        }
        return Ok((after.ip(), false));
    }
    Ok((jump.ip(), true))
}

/// `cmp 0x10(%r14),%rsp`
fn is_check(instruction: &Instruction, pointer: Register) -> bool {
    instruction.code() == Code::Cmp_r64_rm64
        && instruction.op0_register() == pointer
        && instruction.op1_kind() == OpKind::Memory
        && instruction.memory_base() == Register::R14
        && instruction.memory_index() == Register::None
        && instruction.segment_prefix() == Register::None
        && instruction.memory_displacement64() == STACK_GUARD
}

/// `push %rbp`, as the compiler writes it: the kernel emulates the short form only.
pub(super) fn is_push(instruction: &Instruction) -> bool {
    instruction.code() == Code::Push_r64
        && instruction.op0_register() == Register::RBP
        && instruction.len() == 1
}

/// Whether it is a jump or call to an address.
pub(super) fn targets(instruction: &Instruction, address: u64) -> bool {
    let branches = matches!(
        instruction.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    );
    branches && instruction.near_branch_target() == address
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CMP: [u8; 4] = [0x49, 0x3b, 0x66, 0x10];
    /// `jbe` to the `ret` at the end.
    const JBE: [u8; 2] = [0x76, 0x04];
    const PUSH: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];
    const SUB: [u8; 4] = [0x48, 0x83, 0xec, 0x60];

    fn of(parts: &[&[u8]]) -> Result<(u64, bool)> {
        place(&parts.concat(), 0x1000)
    }

    #[test]
    fn the_push_after_the_check_is_taken_else_the_checks_jump() {
        assert_eq!(of(&[&CMP, &JBE, &PUSH, &[0xc3]]).unwrap(), (0x1006, false));
        assert_eq!(of(&[&CMP, &JBE, &SUB, &[0xc3]]).unwrap(), (0x1004, true));
        let long = [0x0f, 0x86, 0x04, 0, 0, 0];
        assert_eq!(of(&[&CMP, &long, &PUSH, &[0xc3]]).unwrap(), (0x100a, false));
        // lea -0x80(%rsp),%r12; cmp 0x10(%r14),%r12
        let large = [0x4c, 0x8d, 0x64, 0x24, 0x80, 0x4d, 0x3b, 0x66, 0x10];
        assert_eq!(of(&[&large, &JBE, &PUSH, &[0xc3]]).unwrap(), (0x100b, false));
    }

    #[test]
    fn other_prologues_are_refused() {
        // Go 1.16: mov %fs:-8,%rcx; cmp 0x10(%rcx),%rsp
        let stack_abi = [
            0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff, 0x48, 0x3b, 0x61, 0x10,
        ];
        let refused: [&[&[u8]]; 7] = [
            &[&stack_abi, &JBE, &PUSH, &[0xc3]],
            &[&PUSH, &[0xc3]],
            &[&CMP, &PUSH, &[0xc3]],
            // Another offset, another register.
            &[&[0x49, 0x3b, 0x66, 0x18], &JBE, &PUSH, &[0xc3]],
            &[&[0x49, 0x3b, 0x65, 0x10], &JBE, &PUSH, &[0xc3]],
            // The jump leads out of the function.
            &[&CMP, &[0x76, 0x70], &PUSH, &[0xc3]],
            &[&CMP],
        ];
        for parts in refused {
            assert!(of(parts).is_err(), "{parts:x?}");
        }
        // jmp back to the push
        assert!(of(&[&CMP, &JBE, &PUSH, &[0xeb, 0xfa]]).is_err());
    }

    proptest! {
        #[test]
        fn no_code_panics(code in proptest::collection::vec(any::<u8>(), 0..64), start: u64, sound: bool) {
            let code = if sound { [&CMP[..], &code].concat() } else { code };
            let _ = place(&code, start);
        }
    }
}
