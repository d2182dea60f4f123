//! Where a Go program can be probed for waits for a connection of a pool of `database/sql`, and what the probes there must know
//! (see [`tracer_ebpf::go_pool`]).
//!
//! ```text
//! (*DB).conn:             cmp, jbe, push          as every function begins (`go::sites`): rax has the pool
//!                         mov  %rax,home(%rsp)    kept, and never written again
//!                         mov  $2,%esi            two channels to receive from: a connection, and the end of the context
//!                         mov  $1,%r8d            and wait
//!                         call runtime.selectgo   emulated: the wait begins
//!                         test %rax,%rax
//!                         je   …                  emulated: the wait is over
//! (*DB).putConnDBLocked:  call runtime.chansend1  emulated: one that waits is given a connection
//! ```
//! What the goroutine does between the two may move it to another thread, and its stack to another place: nothing but the goroutine
//! itself is taken from one to the other.

use anyhow::{Context as _, Result, bail, ensure};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use tracer_ebpf::go_pool::Cookie;

use super::{
    code::instructions,
    memory::Memory,
    program::Program,
    runtime::find_types,
    sites::{Site, site, targets},
    starts::calls,
};

const CONN: &str = "database/sql.(*DB).conn";
const PUT: &str = "database/sql.(*DB).putConnDBLocked";
/// Instructions before a call among which its arguments are set.
const ARGUMENTS: usize = 16;
/// `rax` and its parts.
const PARTS: [Register; 5] = [
    Register::RAX,
    Register::EAX,
    Register::AX,
    Register::AL,
    Register::AH,
];

/// The places in a program, and what the probes there must know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSites {
    /// Where `(*DB).conn` begins: `rax` has the pool. None: requests that do not wait are not to be counted.
    pub asked: Option<Site>,
    /// Where it waits: `rax` has the cases, `r14` the goroutine.
    pub wait: Site,
    /// Where it goes on: `rax` has the number of the case, `rbx` whether something was received, `r14` the goroutine.
    pub got: Site,
    /// Where a connection is given to one that waits: `rax` has its channel. Without it nobody knows who gave it.
    pub given: Option<Site>,
    cookie: Cookie,
}

impl PoolSites {
    /// Finds them; `None` in a program without pools. The error says what is missing, or different from what is known to be safe.
    pub fn find<M: Memory>(memory: &M, program: &Program) -> Option<Result<Self>> {
        program.function(CONN)?;
        Some(Self::of(memory, program))
    }

    fn of<M: Memory>(memory: &M, program: &Program) -> Result<Self> {
        let asked = site(program, CONN)?;
        let (code, start) = program.code(CONN).context("its code cannot be read")?;
        let select = program
            .function("runtime.selectgo")
            .context("the program has no runtime.selectgo")?;
        let &[call] = &calls(&code, start, select)[..] else {
            bail!("{CONN} does not wait at one place");
        };
        let size = program
            .step(call)
            .with_context(|| format!("the frame of {CONN} is not described"))?
            .size;
        let home = u64::from(size) + 8;
        let got = after(&code, start, call).with_context(|| format!("{CONN} cannot be probed"))?;
        ensure!(
            keeps(&code, start, home),
            "{CONN} does not keep its receiver where it is known to"
        );
        let at = |address: u64| -> Result<Site> {
            let offset = program.file_offset(address);
            Ok(Site {
                offset: offset.context("it lies outside of the file")?,
                on_check: false,
            })
        };
        let given = given(program).and_then(at);
        if let Err(error) = &given {
            log::info!("who gives connections back is not told: {error:#}");
        }
        Ok(Self {
            asked: Some(asked),
            wait: at(call)?,
            got: at(got)?,
            given: given.ok(),
            cookie: cookie(memory, program, home)?,
        })
    }

    /// What goes with the probe at one of them.
    #[must_use]
    pub const fn cookie(&self, site: Site) -> Cookie {
        Cookie {
            on_check: site.on_check,
            ..self.cookie
        }
    }
}

fn given(program: &Program) -> Result<u64> {
    let (code, start) = program
        .code(PUT)
        .with_context(|| format!("the program has no {PUT}"))?;
    let send = program
        .function("runtime.chansend1")
        .context("the program has no runtime.chansend1")?;
    match calls(&code, start, send)[..] {
        [call] => Ok(call),
        _ => bail!("{PUT} does not send at one place"),
    }
}

fn cookie<M: Memory>(memory: &M, program: &Program, home: u64) -> Result<Cookie> {
    let (types, _) = find_types(memory, program).context("no type descriptors")?;
    let found = types.find(&["runtime.g", "runtime.sudog", "runtime.hchan"]);
    let structure = |name: &str| {
        let found = found.get(name);
        found.with_context(|| format!("no descriptor of {name}"))
    };
    let word = |offset: Option<u64>, what: &str| {
        let offset = offset.filter(|offset| offset.is_multiple_of(8));
        offset
            .and_then(|offset| u16::try_from(offset).ok())
            .with_context(|| format!("no field {what} in a descriptor"))
    };
    let field = |name: &str, field: &str| -> Result<u16> {
        word(structure(name)?.field(field).map(|at| at as u64), field)
    };
    let channel = structure("runtime.hchan")?;
    let first = channel
        .type_of("recvq")
        .and_then(|queue| types.structure(queue))
        .and_then(|queue| Some(channel.field("recvq")?.checked_add(queue.field("first")?)? as u64));
    Ok(Cookie {
        goid: field("runtime.g", "goid")?,
        sudog_g: field("runtime.sudog", "g")?,
        receivers: word(first, "recvq")?,
        home: word(Some(home), "for the receiver")?,
        on_check: false,
    })
}

/// The jump after a call of `selectgo` that waits for two channels, where nothing else leads to.
fn after(code: &[u8], start: u64, call: u64) -> Result<u64> {
    let all: Vec<Instruction> = instructions(code, start).collect();
    let (before, rest) = all.split_at(all.partition_point(|instruction| instruction.ip() < call));
    let arguments = before
        .get(before.len().saturating_sub(ARGUMENTS)..)
        .unwrap_or(before);
    let sets = |register: Register, number: u32| {
        let mut set = arguments.iter().rev();
        set.find(|instruction| instruction.op0_register() == register)
            .is_some_and(|instruction| {
                instruction.code() == Code::Mov_r32_imm32 && instruction.immediate32() == number
            })
    };
    ensure!(
        sets(Register::ESI, 2) && sets(Register::R8D, 1),
        "it does not wait for two channels"
    );
    let mut rest = rest
        .iter()
        .skip(1)
        .filter(|instruction| instruction.mnemonic() != Mnemonic::Nop);
    let (test, jump) = (rest.next(), rest.next());
    let (Some(test), Some(jump)) = (test, jump) else {
        bail!("its code is cut short");
    };
    ensure!(
        test.code() == Code::Test_rm64_r64
            && test.op0_register() == Register::RAX
            && test.op1_register() == Register::RAX
            && matches!(
                jump.code(),
                Code::Je_rel8_64 | Code::Je_rel32_64 | Code::Jne_rel8_64 | Code::Jne_rel32_64
            ),
        "what it waited for is not looked at at once"
    );
    // Reached from elsewhere it would be no end of a wait.
    let within = call..=jump.ip();
    ensure!(
        !all.iter()
            .any(|other| within.clone().any(|address| targets(other, address))),
        "there is another way to where it waits"
    );
    Ok(jump.ip())
}

/// Whether a function keeps what it got in `rax` at one place in its caller's part of the stack, and writes nothing else there.
fn keeps(code: &[u8], start: u64, home: u64) -> bool {
    let writes_home = |instruction: &Instruction| {
        instruction.op0_kind() == OpKind::Memory
            && instruction.memory_base() == Register::RSP
            && instruction.memory_index() == Register::None
            && instruction.memory_displacement64() == home
            && !matches!(
                instruction.mnemonic(),
                Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push
            )
    };
    let changes = |instruction: &Instruction| {
        instruction.mnemonic() == Mnemonic::Call
            || (instruction.op0_kind() == OpKind::Register
                && PARTS.contains(&instruction.op0_register())
                && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test))
    };
    let mut writes = instructions(code, start).filter(writes_home);
    let (Some(write), None) = (writes.next(), writes.next()) else {
        return false;
    };
    let intact = instructions(code, start)
        .take_while(|instruction| instruction.ip() < write.ip())
        .all(|instruction| !changes(&instruction));
    intact && write.code() == Code::Mov_rm64_r64 && write.op1_register() == Register::RAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ESI: [u8; 5] = [0xbe, 2, 0, 0, 0];
    const R8D: [u8; 6] = [0x41, 0xb8, 1, 0, 0, 0];
    const CALL: [u8; 5] = [0xe8, 0, 1, 0, 0];
    const TEST: [u8; 3] = [0x48, 0x85, 0xc0];
    const JE: [u8; 2] = [0x74, 0x10];

    fn of(parts: &[&[u8]]) -> Result<u64> {
        let call: usize = parts
            .iter()
            .take_while(|part| **part != CALL)
            .map(|part| part.len())
            .sum();
        after(&parts.concat(), 0x1000, 0x1000 + call as u64)
    }

    #[test]
    fn the_jump_after_the_wait_is_taken() {
        assert_eq!(of(&[&ESI, &R8D, &CALL, &TEST, &JE]).unwrap(), 0x1013);
        // Aligned with a long nop, and a long jump.
        let nop = [0x0f, 0x1f, 0x80, 0, 0, 0, 0];
        let je = [0x0f, 0x84, 0x27, 1, 0, 0];
        assert_eq!(of(&[&ESI, &R8D, &CALL, &nop, &TEST, &je]).unwrap(), 0x101a);
    }

    #[test]
    fn other_code_is_refused() {
        let refused: [&[&[u8]]; 6] = [
            // Three channels; no wait.
            &[&[0xbe, 3, 0, 0, 0], &R8D, &CALL, &TEST, &JE],
            &[&ESI, &[0x45, 0x31, 0xc0], &CALL, &TEST, &JE],
            // mov %rax,8(%rsp)
            &[&ESI, &R8D, &CALL, &[0x48, 0x89, 0x44, 0x24, 8], &TEST, &JE],
            // test %rcx,%rcx
            &[&ESI, &R8D, &CALL, &[0x48, 0x85, 0xc9], &JE],
            &[&ESI, &R8D, &CALL, &TEST],
            // Back to the test.
            &[&ESI, &R8D, &CALL, &TEST, &JE, &[0xeb, 0xf9]],
        ];
        for parts in refused {
            assert!(of(parts).is_err(), "{parts:x?}");
        }
    }

    #[test]
    fn a_receiver_is_kept_before_it_is_lost() {
        // mov %rax,0x40(%rsp)
        const KEEP: [u8; 5] = [0x48, 0x89, 0x44, 0x24, 0x40];
        assert!(keeps(&KEEP, 0, 0x40));
        assert!(!keeps(&KEEP, 0, 0x48));
        // xor %eax,%eax before; written again; another register.
        assert!(!keeps(&[&[0x31, 0xc0][..], &KEEP].concat(), 0, 0x40));
        assert!(!keeps(&[KEEP, KEEP].concat(), 0, 0x40));
        assert!(!keeps(&[0x48, 0x89, 0x4c, 0x24, 0x40], 0, 0x40));
        assert!(!keeps(&[&CALL[..], &KEEP].concat(), 0, 0x40));
    }

    proptest! {
        #[test]
        fn no_code_panics(code in proptest::collection::vec(any::<u8>(), 0..64), start: u64, call: u64, home: u64) {
            let _ = after(&code, start, call);
            let _ = keeps(&code, start, home);
        }
    }
}
