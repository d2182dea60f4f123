//! What to attach where: a pure plan from the options, made before anything is loaded.

use std::borrow::Cow;

use tracer_ebpf::{births, wire::feature};

use super::btf::Kind;

/// Which collectors run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "a set of switches, each independent of the others"
)]
pub struct Collectors {
    /// Futex waits.
    pub locks: bool,
    /// Descriptors.
    pub fds: bool,
    /// Run-queue delays of preempted threads, and what runs.
    pub sched: bool,
    /// Sleeps other than futex waits.
    pub io: bool,
    /// Go's runtime: goroutines, read from memory, and waits for its locks.
    pub go: bool,
    /// Resident memory, and who touches what is new of it.
    pub memory: bool,
}

impl Collectors {
    /// All of them.
    pub const ALL: Self = Self {
        locks: true,
        fds: true,
        sched: true,
        io: true,
        go: true,
        memory: true,
    };

    /// As the probes read them ([`feature`]).
    #[must_use]
    pub const fn features(self, follow: bool) -> u32 {
        let mut bits = 0;
        if self.locks || self.io {
            bits |= feature::WAITS;
        }
        if self.locks {
            bits |= feature::WAKERS;
        }
        if self.sched {
            bits |= feature::SCHED;
        }
        if follow {
            bits |= feature::FOLLOW;
        }
        if !self.io {
            bits |= feature::FUTEX_ONLY;
        }
        bits
    }
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// BTF tracepoint.
    TpBtf(&'static str),
    /// Classic tracepoint: category and name.
    Tracepoint(&'static str, &'static str),
    /// Task iterator.
    Iter,
    /// In a program, at the beginning of this function.
    Uprobe(&'static str),
    /// Each CPU's clock.
    CpuClock,
    /// Each CPU's page faults.
    PageFaults,
}

impl Hook {
    /// Word of the contract for `probes[].attach`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::TpBtf(_) => "tp_btf",
            Self::Tracepoint(..) => "tracepoint",
            Self::Iter => "iter",
            Self::Uprobe(_) => "uprobe",
            Self::CpuClock | Self::PageFaults => "perf",
        }
    }

    /// The hook's name in the kernel.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf(name) | Self::Tracepoint(_, name) | Self::Uprobe(name) => name,
            Self::Iter => "task",
            Self::CpuClock => "cpu-clock",
            Self::PageFaults => "minor-faults",
        }
    }

    /// The type in the kernel's BTF by which a program is attached to it.
    #[must_use]
    pub fn btf_type(self) -> Option<(Kind, Cow<'static, str>)> {
        match self {
            Self::TpBtf(name) => Some((Kind::Typedef, format!("btf_trace_{name}").into())),
            Self::Tracepoint(..) | Self::Uprobe(_) | Self::CpuClock | Self::PageFaults => None,
            Self::Iter => Some((Kind::Func, "bpf_iter_task".into())),
        }
    }
}

/// One attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Program in the object.
    pub program: &'static str,
    /// Where.
    pub hook: Hook,
    /// Without it there is nothing to trace; a missing optional hook is said in the report.
    pub required: bool,
}

/// In the order of attaching. Threads are known (fork, then the iterator) before their switches are watched, so that no
/// thread falls between.
#[must_use]
pub fn plan(collectors: Collectors) -> Vec<Step> {
    let required = |program, hook| Step {
        program,
        hook,
        required: true,
    };
    let optional = |program, hook| Step {
        program,
        hook,
        required: false,
    };
    let mut steps = vec![
        required("sched_process_fork", Hook::TpBtf("sched_process_fork")),
        required("sched_process_exec", Hook::TpBtf("sched_process_exec")),
        required("sched_process_exit", Hook::TpBtf("sched_process_exit")),
        required("tasks", Hook::Iter),
        required("sched_wakeup_new", Hook::TpBtf("sched_wakeup_new")),
        required("sched_waking", Hook::TpBtf("sched_waking")),
        required("sched_switch", Hook::TpBtf("sched_switch")),
    ];
    if collectors.sched {
        steps.push(optional("cpu_tick", Hook::CpuClock));
    }
    if collectors.memory {
        steps.push(optional("page_fault", Hook::PageFaults));
    }
    if collectors.fds {
        // Deaths first: a death without its birth is harmless, a birth without its death is a false leak.
        steps.push(required(
            "fd_close_enter",
            Hook::Tracepoint("syscalls", "sys_enter_close"),
        ));
        steps.push(optional(
            "fd_close_range_enter",
            Hook::Tracepoint("syscalls", "sys_enter_close_range"),
        ));
        for call in births::CALLS {
            let (program, hook) = match *call {
                "recvmsg" => ("fd_recvmsg_exit", "sys_exit_recvmsg"),
                "recvmmsg" => ("fd_recvmmsg_exit", "sys_exit_recvmmsg"),
                call => ("fd_open_exit", exit_hook(call)),
            };
            steps.push(optional(program, Hook::Tracepoint("syscalls", hook)));
        }
        steps.push(optional(
            "fd_uring_complete",
            Hook::Tracepoint("io_uring", "io_uring_complete"),
        ));
        steps.push(optional(
            "fd_uring_submit",
            Hook::Tracepoint("io_uring", "io_uring_submit_req"),
        ));
    }
    steps
}

/// `sys_exit_CALL` as a static string: the calls are a fixed list, and a plan is made once.
fn exit_hook(call: &'static str) -> &'static str {
    Box::leak(format!("sys_exit_{call}").into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_known_before_their_switches_are_watched() {
        let steps = plan(Collectors::ALL);
        let at = |program| steps.iter().position(|step| step.program == program).unwrap();
        assert!(at("sched_process_fork") < at("tasks"));
        assert!(at("tasks") < at("sched_switch"));
        assert!(at("fd_close_enter") < at("fd_open_exit"));
    }

    #[test]
    fn without_descriptors_no_system_call_is_taxed() {
        let steps = plan(Collectors {
            fds: false,
            ..Collectors::ALL
        });
        assert!(
            steps
                .iter()
                .all(|step| !matches!(step.hook, Hook::Tracepoint(..)))
        );
    }

    #[test]
    fn features_follow_the_collectors() {
        let locks = Collectors {
            locks: true,
            fds: false,
            sched: false,
            io: false,
            go: false,
            memory: false,
        };
        assert_eq!(
            locks.features(false),
            feature::WAITS | feature::WAKERS | feature::FUTEX_ONLY
        );
        assert_eq!(Collectors::ALL.features(true) & feature::FUTEX_ONLY, 0);
    }
}
