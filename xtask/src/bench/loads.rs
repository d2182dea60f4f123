//! Which loads there are, and which tracers each is measured with.

use super::peers::{
    BLOCKED, EMPTY_FDS, EMPTY_SWITCH, FDS, FUTEX, OFF_CPU, PERF_SCHED, PERF_TRACE, Peer, STRACE,
};

/// What is on in the "on" windows.
#[derive(Clone, Copy)]
pub(super) enum Tracer {
    /// Tells how far to trust the other rows.
    Nothing,
    /// ctrace with `--only`.
    Only(&'static str),
    Everything,
    Peer(&'static Peer),
}

impl Tracer {
    pub(super) fn name(self) -> String {
        match self {
            Self::Nothing => "nothing (A/A)".to_owned(),
            Self::Only(collector) => format!("ctrace {collector}"),
            Self::Everything => "ctrace all".to_owned(),
            Self::Peer(peer) => peer.name.to_owned(),
        }
    }
}

/// A load: what `tests/workloads/loads.c` does when it is given the name.
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) operation: &'static str,
    /// The tracers trace another process, which sleeps.
    pub(super) bystander: bool,
    pub(super) tracers: &'static [Tracer],
}

static LOADS: [Load; 6] = [
    Load {
        name: "hot",
        title: "8 threads on 4 mutexes, all CPUs busy",
        operation: "a mutex taken",
        bystander: false,
        tracers: &[
            Tracer::Nothing,
            Tracer::Peer(&EMPTY_SWITCH),
            Tracer::Only("locks"),
            Tracer::Only("sched"),
            Tracer::Everything,
            Tracer::Peer(&OFF_CPU),
            Tracer::Peer(&BLOCKED),
            Tracer::Peer(&FUTEX),
            Tracer::Peer(&PERF_SCHED),
            Tracer::Peer(&PERF_TRACE),
            Tracer::Peer(&STRACE),
        ],
    },
    Load {
        name: "svc",
        title: "a service: 16 threads, a request every 3 ms, one mutex, CPUs mostly idle",
        operation: "a request",
        bystander: false,
        tracers: &[
            Tracer::Nothing,
            Tracer::Peer(&EMPTY_SWITCH),
            Tracer::Only("locks"),
            Tracer::Only("sched"),
            Tracer::Everything,
            Tracer::Peer(&OFF_CPU),
            Tracer::Peer(&BLOCKED),
            Tracer::Peer(&FUTEX),
            Tracer::Peer(&PERF_SCHED),
            Tracer::Peer(&PERF_TRACE),
        ],
    },
    Load {
        name: "fds",
        title: "open and close of /dev/null, nothing else",
        operation: "an open and its close",
        bystander: false,
        tracers: &DESCRIPTORS,
    },
    Load {
        name: "accept",
        title: "connections over loopback",
        operation: "socket, connect, accept, 2 × close",
        bystander: false,
        tracers: &DESCRIPTORS,
    },
    Load {
        name: "syscall",
        title: "bystander: getppid in a process that is not traced",
        operation: "a call",
        bystander: true,
        tracers: &[
            Tracer::Nothing,
            Tracer::Peer(&EMPTY_FDS),
            Tracer::Only("locks"),
            Tracer::Only("sched"),
            Tracer::Only("fds"),
            Tracer::Everything,
            Tracer::Peer(&OFF_CPU),
            Tracer::Peer(&FUTEX),
            Tracer::Peer(&FDS),
            Tracer::Peer(&PERF_SCHED),
            Tracer::Peer(&PERF_TRACE),
        ],
    },
    Load {
        name: "switch",
        title: "bystander: 2 threads on one CPU that hand a byte to and fro, not traced",
        operation: "to and fro: 2 switches, 4 calls",
        bystander: true,
        tracers: &[
            Tracer::Nothing,
            Tracer::Peer(&EMPTY_SWITCH),
            Tracer::Only("locks"),
            Tracer::Only("sched"),
            Tracer::Only("fds"),
            Tracer::Everything,
            Tracer::Peer(&OFF_CPU),
            Tracer::Peer(&FUTEX),
            Tracer::Peer(&FDS),
            Tracer::Peer(&PERF_SCHED),
        ],
    },
];

/// For a target that never waits.
const DESCRIPTORS: [Tracer; 7] = [
    Tracer::Nothing,
    Tracer::Peer(&EMPTY_FDS),
    Tracer::Only("locks"),
    Tracer::Only("fds"),
    Tracer::Everything,
    Tracer::Peer(&FDS),
    Tracer::Peer(&PERF_TRACE),
];

pub(super) fn names() -> [&'static str; 6] {
    LOADS.each_ref().map(|load| load.name)
}

/// Those asked for, or all.
pub(super) fn chosen(names: &[String]) -> impl Iterator<Item = &'static Load> {
    LOADS
        .iter()
        .filter(|load| names.is_empty() || names.iter().any(|name| name == load.name))
}
