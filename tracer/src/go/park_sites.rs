//! Where a Go program can be probed for everything that its goroutines park for, and what the probes must know of it.
//!
//! ```text
//! gopark(unlockf, lock, reason, …)   every wait begins here      lock: rbx, reason: cl, goroutine: r14
//! ready(gp, …)                       and ends here               gp: rax, on the scheduler's stack (g0: r14)
//! netpollready(list, pd, mode)       or here, for descriptors    pd: rbx, mode: ecx
//! ```

use anyhow::{Context as _, Result, ensure};
use iced_x86::{Code, Instruction, Mnemonic};
use tracer_ebpf::go_wait::{Cookie, Layout};

use super::{
    code::instructions,
    memory::Memory,
    program::Program,
    runtime::{Runtime, find_types},
    sites::{Site, is_push, site, targets},
    types::Struct,
};

/// The places in a program, what its probes must know, and why its goroutines wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkSites {
    /// `runtime.gopark`.
    pub park: Site,
    /// `runtime.ready`.
    pub ready: Site,
    /// `runtime.netpollready`: without it the ends of waits for descriptors are not seen. Programs that use none have none.
    pub netpoll: Option<Site>,
    /// For the probes.
    pub layout: Layout,
    /// Reasons by number, as the runtime names them.
    pub reasons: Vec<String>,
}

impl ParkSites {
    /// Finds them; the error says what is missing, or different from what is known to be safe.
    pub fn find<M: Memory>(memory: &M, program: &Program) -> Result<Self> {
        let runtime = Runtime::find(memory, program)?;
        let (types, _) = find_types(memory, program).context("no type descriptors")?;
        let found = types.find(&["runtime.g", "runtime.m", "runtime.hchan", "runtime.pollDesc"]);
        let of = |structure: &str| {
            found
                .get(structure)
                .with_context(|| format!("no descriptor of {structure}"))
        };
        let (g, m) = (of("runtime.g")?, of("runtime.m")?);
        let sched = g.type_of("sched").and_then(|sched| types.structure(sched));
        let sched = sched.context("no registers in the descriptor of runtime.g")?;
        let saved = |name: &str| {
            let at = offset(g, "sched")?.checked_add(offset(&sched, name)?);
            at.with_context(|| format!("{name} lies too far out"))
        };
        let netpoll = netpoll(program, found.get("runtime.pollDesc"));
        let (reader, writer) = netpoll
            .as_ref()
            .map_or((0, 0), |&(_, reader, writer)| (reader, writer));
        let reasons = runtime.reasons;
        let channels = found.get("runtime.hchan").map(|channel| offset(channel, "lock"));
        let layout = Layout {
            skipped: mask(&reasons, is_left_out),
            channels: channels.as_ref().map_or(0, |_| mask(&reasons, is_channel)),
            goid: offset(g, "goid")?,
            m: offset(g, "m")?,
            sp: saved("sp")?,
            pc: saved("pc")?,
            bp: saved("bp")?,
            curg: offset(m, "curg")?,
            channel_lock: channels.transpose()?.unwrap_or(0),
            reader,
            writer,
            reserved: [0; 3],
        };
        // Else a wait for a lock would be told twice.
        ensure!(
            reasons.iter().any(|reason| reason == "semacquire")
                && !reasons.iter().skip(64).any(|reason| is_left_out(reason)),
            "the runtime's reasons to wait for locks were not found"
        );
        Ok(Self {
            park: site(program, "runtime.gopark")?,
            ready: site(program, "runtime.ready")?,
            netpoll: netpoll.map(|(site, ..)| site),
            layout,
            reasons,
        })
    }

    /// What goes with the probe at one of them.
    #[must_use]
    pub const fn cookie(site: Site) -> Cookie {
        Cookie {
            goid: 0,
            sudog_g: 0,
            on_check: site.on_check,
            all: true,
        }
    }
}

/// Offset of a field that is a word.
fn offset(structure: &Struct, field: &str) -> Result<u16> {
    let offset = structure.field(field).filter(|offset| offset.is_multiple_of(8));
    offset
        .and_then(|offset| u16::try_from(offset).ok())
        .with_context(|| format!("no field {field} in a descriptor"))
}

/// Where descriptors become ready, and offsets of who waits to read and to write.
fn netpoll(program: &Program, descriptor: Option<&Struct>) -> Option<(Site, u16, u16)> {
    let descriptor = descriptor?;
    let (reader, writer) = (offset(descriptor, "rg").ok()?, offset(descriptor, "wg").ok()?);
    match site(program, "runtime.netpollready").or_else(|_| unchecked(program, "runtime.netpollready")) {
        Ok(site) => Some((site, reader, writer)),
        Err(error) => {
            log::info!("ends of waits for descriptors are not seen: {error:#}");
            None
        }
    }
}

/// Instructions of a function that are looked at.
const EARLY: usize = 4;

/// Where a function is probed that needs so little stack that it does not check it.
fn unchecked(program: &Program, function: &str) -> Result<Site> {
    let (code, start) = program
        .code(function)
        .with_context(|| format!("the program has no {function}"))?;
    let address = early(&code, start).with_context(|| format!("{function} cannot be probed"))?;
    let offset = program
        .file_offset(address)
        .with_context(|| format!("{function} lies outside of the file"))?;
    Ok(Site {
        offset,
        on_check: false,
    })
}

/// The first instruction that the kernel emulates, when those before it only compare, and nothing leads back to it: it is reached once,
/// with the arguments in their registers.
fn early(code: &[u8], start: u64) -> Option<u64> {
    let compares = |instruction: &Instruction| {
        matches!(
            instruction.mnemonic(),
            Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Nop
        )
    };
    let first = instructions(code, start)
        .take(EARLY)
        .find(|instruction| !compares(instruction))?;
    let jumps = matches!(
        first.code(),
        Code::Je_rel8_64 | Code::Je_rel32_64 | Code::Jne_rel8_64 | Code::Jne_rel32_64
    );
    let emulated = is_push(&first) || jumps;
    let alone = !instructions(code, start).any(|other| targets(&other, first.ip()));
    (emulated && alone).then(|| first.ip())
}

/// Those among the first 64 reasons, a bit each; there are about 50.
fn mask(reasons: &[String], is: impl Fn(&str) -> bool) -> u64 {
    let chosen = reasons
        .iter()
        .take(64)
        .enumerate()
        .filter(|(_, reason)| is(reason));
    chosen.fold(0, |mask, (at, _)| mask | 1 << at)
}

/// What the probes on locks record; what the runtime's own goroutines wait for when they have no work; and waits for the collector,
/// which ends them without the function that is probed: the next time that a goroutine is made runnable may be long after.
fn is_left_out(reason: &str) -> bool {
    const OWN: [&str; 8] = [
        "wait for GC cycle",
        "wait until GC ends",
        "force gc (idle)",
        "finalizer wait",
        "cleanup wait",
        "GOMAXPROCS updater (idle)",
        "trace reader (blocked)",
        "preempted",
    ];
    reason == "semacquire"
        || reason.starts_with("sync.")
        || reason.starts_with("GC ")
        || OWN.contains(&reason)
}

/// A send to or receive from one channel.
#[must_use]
pub fn is_channel(reason: &str) -> bool {
    (reason.starts_with("chan send") || reason.starts_with("chan receive")) && !reason.ends_with("(nil chan)")
}

/// A select, of any number of channels.
#[must_use]
pub fn is_select(reason: &str) -> bool {
    reason.starts_with("select")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_apart_by_their_names() {
        for channel in [
            "chan send",
            "chan receive",
            "chan receive (synctest)",
            "chan send (durable)",
        ] {
            assert!(
                is_channel(channel) && !is_select(channel) && !is_left_out(channel),
                "{channel}"
            );
        }
        for other in [
            "chan receive (nil chan)",
            "chan send (nil chan)",
            "sleep",
            "IO wait",
            "select",
            "",
        ] {
            assert!(!is_channel(other) && !is_left_out(other), "{other}");
        }
        assert!(is_select("select") && is_select("select (no cases)"));
        for lock in [
            "semacquire",
            "sync.Mutex.Lock",
            "sync.Cond.Wait",
            "sync.WaitGroup.Wait",
            "GC assist wait",
            "GC worker (idle)",
        ] {
            assert!(is_left_out(lock), "{lock}");
        }
        assert!(!is_left_out("synctest.Wait"));
    }

    #[test]
    fn a_function_without_a_check_is_probed_where_its_arguments_are() {
        let of = |code: &[u8]| early(code, 0x1000);
        // push %rbp; mov %rsp,%rbp; ret
        assert_eq!(of(&[0x55, 0x48, 0x89, 0xe5, 0xc3]), Some(0x1000));
        // cmp $0x72,%ecx; je +2; ret; ret
        assert_eq!(of(&[0x83, 0xf9, 0x72, 0x74, 0x01, 0xc3, 0xc3]), Some(0x1003));
        // The same, and later a jump back to it.
        assert_eq!(of(&[0x83, 0xf9, 0x72, 0x74, 0x02, 0xeb, 0xfc, 0xc3]), None);
        // sub $0x18,%rsp
        assert_eq!(of(&[0x48, 0x83, 0xec, 0x18, 0xc3]), None);
        // mov (%rbx),%rbx comes before.
        assert_eq!(of(&[0x48, 0x8b, 0x1b, 0x55, 0xc3]), None);
        assert_eq!(of(&[]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_code_panics(code in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64), start: u64) {
            let _ = early(&code, start);
        }
    }

    #[test]
    fn masks_have_the_reasons_numbers() {
        let reasons = ["", "chan send", "sleep", "chan receive"].map(str::to_owned);
        assert_eq!(mask(&reasons, is_channel), 0b1010);
        let many = vec!["chan send".to_owned(); 70];
        assert_eq!(mask(&many, is_channel), u64::MAX);
    }
}
