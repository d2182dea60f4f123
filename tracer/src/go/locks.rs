//! Which lock a semaphore belongs to: the runtime waits on a word inside a lock, not on the lock.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use rustc_hash::FxHashMap;

use super::{
    code::instructions,
    memory::Memory,
    program::Program,
    runtime::find_types,
    types::{Struct, Types},
};

/// Where the words that goroutines wait on lie in the locks of package `sync`; `None` where the program has no description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockLayout {
    /// In `sync.Mutex`.
    pub mutex: Option<u64>,
    /// In `sync.RWMutex`: its mutex's, which writers wait on for each other.
    pub writers: Option<u64>,
    /// In `sync.RWMutex`: what a writer waits on for readers.
    pub writer: Option<u64>,
    /// In `sync.RWMutex`: what readers wait on for a writer.
    pub reader: Option<u64>,
    /// In `sync.WaitGroup`.
    pub wait_group: Option<u64>,
    /// The list in `sync.Cond`.
    pub condition: Option<u64>,
}

/// A lock is no larger.
const MAX_LOCK: u64 = 256;

impl LockLayout {
    /// Of a program. What it never makes by `new` has no description: there the code of the lock's own functions may tell.
    #[must_use]
    pub fn find<M: Memory>(memory: &M, program: &Program) -> Self {
        let passed = |callers: &[(&str, &str)]| {
            callers
                .iter()
                .find_map(|(caller, callee)| passed(program, caller, callee))
        };
        let described = Self::described(memory, program).unwrap_or_default();
        Self {
            writer: described.writer.or_else(|| {
                passed(&[
                    ("sync.(*RWMutex).Lock", "sync.runtime_SemacquireRWMutex"),
                    ("sync.(*RWMutex).Lock", "sync.runtime_SemacquireMutex"),
                    ("sync.(*RWMutex).rUnlockSlow", "sync.runtime_Semrelease"),
                ])
            }),
            reader: described.reader.or_else(|| {
                passed(&[
                    ("sync.(*RWMutex).RLock", "sync.runtime_SemacquireRWMutexR"),
                    ("sync.(*RWMutex).RLock", "sync.runtime_SemacquireMutex"),
                    ("sync.(*RWMutex).Unlock", "sync.runtime_Semrelease"),
                ])
            }),
            condition: described
                .condition
                .or_else(|| passed(&[("sync.(*Cond).Wait", "sync.runtime_notifyListAdd")])),
            ..described
        }
    }

    fn described<M: Memory>(memory: &M, program: &Program) -> Option<Self> {
        let (types, _) = find_types(memory, program)?;
        let found = types.find(&["sync.Mutex", "sync.RWMutex", "sync.WaitGroup", "sync.Cond"]);
        let of = |name: &str| found.get(name).filter(|structure| structure.size <= MAX_LOCK);
        let word = |structure: &str, field: &str| Some(of(structure)?.field(field)? as u64);
        let inner = of("sync.RWMutex").and_then(|outer| {
            let mutex = types.structure(outer.type_of("w")?)?;
            Some(outer.field("w")? as u64 + semaphore(&types, &mutex)?)
        });
        Some(Self {
            // Embedded in another lock it is described as well.
            mutex: of("sync.Mutex")
                .and_then(|mutex| semaphore(&types, mutex))
                .or(inner),
            writers: inner,
            writer: word("sync.RWMutex", "writerSem"),
            reader: word("sync.RWMutex", "readerSem"),
            // Before Go 1.20 one of two words, by alignment: on machines of 64 bits always this one.
            wait_group: word("sync.WaitGroup", "sema").or_else(|| word("sync.WaitGroup", "state2")),
            condition: word("sync.Cond", "notify"),
        })
    }
}

/// What a function adds to an address, its receiver's if it is a method, to pass it to another: the same in all its calls.
fn passed(program: &Program, caller: &str, callee: &str) -> Option<u64> {
    let target = program.function(callee)?;
    let (code, start) = program.code(caller)?;
    offset_passed(instructions(&code, start), target)
}

/// Registers of 32 bits, and those that they are the lower half of; the upper one is zeroed with each write.
const HALVES: [(Register, Register); 15] = [
    (Register::EAX, Register::RAX),
    (Register::ECX, Register::RCX),
    (Register::EDX, Register::RDX),
    (Register::EBX, Register::RBX),
    (Register::EBP, Register::RBP),
    (Register::ESI, Register::RSI),
    (Register::EDI, Register::RDI),
    (Register::R8D, Register::R8),
    (Register::R9D, Register::R9),
    (Register::R10D, Register::R10),
    (Register::R11D, Register::R11),
    (Register::R12D, Register::R12),
    (Register::R13D, Register::R13),
    (Register::R14D, Register::R14),
    (Register::R15D, Register::R15),
];

fn offset_passed(code: impl Iterator<Item = Instruction>, target: u64) -> Option<u64> {
    let mut found = None;
    // What was added to an address that is in a register.
    let mut offsets: FxHashMap<Register, u64> = FxHashMap::default();
    for instruction in code {
        if instruction.code() == Code::Call_rel32_64 {
            if instruction.near_branch_target() == target {
                let offset = offsets
                    .get(&Register::RAX)
                    .copied()
                    .filter(|&offset| offset < MAX_LOCK)?;
                if found.is_some_and(|found| found != offset) {
                    return None;
                }
                found = Some(offset);
            }
            offsets.clear();
            continue;
        }
        let to = instruction.op0_register();
        if let Some((_, whole)) = HALVES.iter().find(|(half, _)| *half == to) {
            offsets.remove(whole);
            continue;
        }
        let offset = if instruction.code() == Code::Mov_r64_rm64 || instruction.code() == Code::Mov_rm64_r64 {
            offsets.get(&instruction.op1_register()).copied()
        } else {
            added(&instruction)
        };
        match offset {
            Some(offset) => offsets.insert(to, offset),
            None => offsets.remove(&to),
        };
    }
    found
}

/// `add $N,%rax` or `lea N(%reg),%rax`, or another register.
fn added(instruction: &Instruction) -> Option<u64> {
    match instruction.mnemonic() {
        Mnemonic::Add
            if matches!(
                instruction.op1_kind(),
                OpKind::Immediate8to64 | OpKind::Immediate32to64
            ) =>
        {
            Some(instruction.immediate(1))
        }
        Mnemonic::Lea
            if instruction.memory_index() == Register::None
                && !matches!(
                    instruction.memory_base(),
                    Register::None | Register::RSP | Register::RIP
                ) =>
        {
            Some(instruction.memory_displacement64())
        }
        _ => None,
    }
}

/// Where a mutex has its semaphore. Since Go 1.24 `sync.Mutex` has another one inside, whose name begins with the same package.
fn semaphore<M: Memory + ?Sized>(types: &Types<'_, M>, mutex: &Struct) -> Option<u64> {
    if let Some(offset) = mutex.field("sema") {
        return Some(offset as u64);
    }
    let inner = types.structure(mutex.type_of("mu")?)?;
    Some(mutex.field("mu")? as u64 + inner.field("sema")? as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &[u8]) -> Option<u64> {
        offset_passed(instructions(code, 0x1000), 0x2000)
    }

    /// A call at that offset.
    fn call(at: u32) -> Vec<u8> {
        let mut call = vec![0xe8];
        call.extend((0x2000u32 - 0x1000 - at - 5).to_le_bytes());
        call
    }

    #[test]
    fn what_is_added_before_the_call_is_found() {
        // add $0xc,%rax; xor %ebx,%ebx; call
        let add = [&[0x48, 0x83, 0xc0, 0x0c, 0x31, 0xdb][..], &call(6)].concat();
        assert_eq!(of(&add), Some(12));
        // lea 0x8(%rcx),%rax; call
        let lea = [&[0x48, 0x8d, 0x41, 0x08][..], &call(4)].concat();
        assert_eq!(of(&lea), Some(8));
        // lea 0xc(%rax),%rdx; mov %rdx,%rax; call
        let moved = [&[0x48, 0x8d, 0x50, 0x0c, 0x48, 0x89, 0xd0][..], &call(7)].concat();
        assert_eq!(of(&moved), Some(12));
        // lea 0xc(%rax),%rdx; xor %edx,%edx; mov %rdx,%rax; call
        let zeroed = [
            &[0x48, 0x8d, 0x50, 0x0c, 0x31, 0xd2, 0x48, 0x89, 0xd0][..],
            &call(9),
        ]
        .concat();
        assert_eq!(of(&zeroed), None);
        // lea 0x8(%rsp),%rax; call
        let stack = [&[0x48, 0x8d, 0x44, 0x24, 0x08][..], &call(5)].concat();
        assert_eq!(of(&stack), None);
        // lea 0x8(%rcx),%rax; mov %rbx,%rax; call
        let other = [&[0x48, 0x8d, 0x41, 0x08, 0x48, 0x89, 0xd8][..], &call(7)].concat();
        assert_eq!(of(&other), None);
        // Two calls that do not agree.
        let both = [&add[..], &[0x48, 0x8d, 0x41, 0x08], &call(15)].concat();
        assert_eq!(of(&both), None);
        assert_eq!(of(&[]), None);
    }
}
