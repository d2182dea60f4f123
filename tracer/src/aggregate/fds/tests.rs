//! Events and scans, one rule at a time; scenarios and random histories beside it.

use tracer_ebpf::nr;
use tracer_ebpf::wire::{CONTROL_MAX, FdClose, FdOpen, FdRights, FdUring, Header, fd_close};

use super::{FdTable, Reconciled, ReportInput};
use crate::aggregate::go_starts::AskerId;
use crate::aggregate::hist::Histogram;
use crate::proc::fd::{FdEntry, FdScan};
use crate::report::model::{AskedBy, FdKind, FdStack, Fds, Hist};
use crate::stacks::StackId;

mod model;
mod scans;
mod scenarios;
mod sums;

const TGID: u32 = 100;
const A: StackId = StackId(1);
const B: StackId = StackId(2);

fn header(tid: u32, ts_ns: u64) -> Header {
    Header {
        kind: 0,
        class: 0,
        tgid: TGID,
        tid,
        cpu: 0,
        ts_ns,
    }
}

fn opened(ts_ns: u64, nr: i64, fd: i32, args: [u64; 4]) -> FdOpen {
    FdOpen {
        header: header(TGID, ts_ns),
        nr,
        fd,
        fd2: -1,
        args,
        stack: 0,
        goid: 0,
        parent_goid: 0,
        creator: 0,
    }
}

fn closing(ts_ns: u64, first: u32, last: u32, flags: u32) -> FdClose {
    let nr = if first == last { nr::CLOSE } else { nr::CLOSE_RANGE };
    FdClose {
        header: header(TGID, ts_ns),
        nr,
        first,
        last,
        flags,
        reserved: 0,
    }
}

fn uring(ts_ns: u64, opcode: u32, result: i32) -> FdUring {
    FdUring {
        header: header(TGID, ts_ns),
        opcode,
        result,
        stack: 0,
        request: 1,
    }
}

fn entry(fd: i32, kind: FdKind, inode: Option<u64>) -> FdEntry {
    let target = inode.map_or_else(
        || "anon_inode:[x]".to_owned(),
        |inode| format!("{kind:?}:[{inode}]"),
    );
    FdEntry {
        fd,
        kind,
        inode,
        target: Some(target),
    }
}

fn scanned(started_ns: u64, entries: Vec<FdEntry>) -> FdScan {
    FdScan {
        started_ns,
        ended_ns: started_ns + 10,
        entries,
        complete: true,
    }
}

fn hist(from: &Histogram) -> Hist {
    Hist {
        count: from.count(),
        min_ns: from.min(),
        max_ns: from.max(),
        mean_ns: 0,
        total_ns: from.total(),
        p50_ns: 0,
        p90_ns: 0,
        p99_ns: 0,
        p999_ns: 0,
        p99_ci_ns: None,
        buckets: Vec::new(),
        modes: Vec::new(),
        samples: None,
    }
}

fn report(table: &FdTable, now_ns: u64, scan: Option<&FdScan>) -> Fds {
    table.report(&ReportInput {
        now_ns,
        limit: Some(1024),
        older_ns: None,
        scan,
        sockets: None,
        unseen_kinds: vec!["ioctl".to_owned()],
        hist,
        stack_key: &|stack| stack.0.to_string(),
        asked_by: &|asker| {
            vec![AskedBy {
                stack: None,
                created_by: Some(asker.0.to_string()),
                created_at: None,
            }]
        },
    })
}

fn row<'a>(fds: &'a Fds, name: &str) -> &'a FdStack {
    fds.by_stack
        .iter()
        .find(|row| row.stack.as_deref().or(row.without_stack.as_deref()) == Some(name))
        .unwrap_or_else(|| panic!("no row {name} in {fds:#?}"))
}

#[test]
fn each_asker_has_a_row_of_its_own() {
    let mut table = FdTable::new(TGID);
    table.seed(&scanned(1, Vec::new()));
    for fd in 3..26 {
        table.on_asked(&opened(20, nr::SOCKET, fd, [0; 4]), A, AskerId(7));
    }
    for fd in 30..127 {
        table.on_asked(&opened(21, nr::SOCKET, fd, [0; 4]), A, AskerId(9));
        table.on_close(&closing(22, fd as u32, fd as u32, 0));
    }
    table.on_open(&opened(23, nr::SOCKET, 200, [0; 4]), A);
    let fds = report(&table, 100, None);
    let of = |asker: Option<&str>| {
        let mut rows = fds
            .by_stack
            .iter()
            .filter(|row| row.asked_by.first().and_then(|by| by.created_by.as_deref()) == asker);
        let row = rows.next().unwrap();
        assert!(rows.next().is_none() && row.stack.as_deref() == Some("1"));
        (row.opened, row.closed, row.live)
    };
    assert_eq!(of(Some("7")), (23, 0, 23));
    assert_eq!(of(Some("9")), (97, 97, 0));
    assert_eq!(of(None), (1, 0, 1));
}

#[test]
fn births_and_deaths_by_stack() {
    let mut table = FdTable::new(TGID);
    table.seed(&scanned(
        0,
        vec![entry(0, FdKind::File, Some(1)), entry(1, FdKind::Pipe, Some(2))],
    ));
    let mut pair = opened(20, nr::SOCKETPAIR, 3, [0; 4]);
    pair.fd2 = 4;
    table.on_open(&pair, A);
    table.on_open(&opened(21, nr::OPENAT, 5, [0; 4]), B);
    table.on_close(&closing(22, 3, 3, 0));
    table.on_close(&closing(23, 99, 99, 0));
    table.on_close(&closing(24, 1, 1, 0));
    let fds = report(&table, 30, None);
    assert_eq!((fds.open_at_start, fds.opened, fds.closed), (2, 3, 2));
    assert_eq!((fds.unseen_births, fds.unseen_deaths), (0, 0));
    let a = row(&fds, "1");
    assert_eq!(
        (a.opened, a.closed, a.live, a.call.as_deref()),
        (2, 1, 1, Some("socketpair"))
    );
    assert_eq!(a.kinds.get(&FdKind::Socket), Some(&2));
    assert_eq!(
        (a.age.count, a.age.max_ns, a.examples[0].age_ns),
        (1, 10, Some(10))
    );
    let before = row(&fds, "before_attach");
    assert_eq!(
        (before.live_at_start, before.opened, before.closed, before.live),
        (2, 0, 1, 1)
    );
    assert_eq!((before.examples[0].fd, before.examples[0].age_ns), (0, None));
}

#[test]
fn a_birth_on_a_number_in_use_ends_the_one_before() {
    let mut table = FdTable::new(TGID);
    table.on_open(&opened(1, nr::SOCKET, 3, [0; 4]), A);
    table.on_open(&opened(2, nr::EVENTFD2, 4, [0; 4]), A);
    table.on_open(&opened(3, nr::DUP2, 3, [4, 3, 0, 0]), B);
    table.on_open(&opened(4, nr::DUP2, 3, [3, 3, 0, 0]), B);
    table.on_open(&opened(5, nr::OPENAT, 4, [0; 4]), A);
    let fds = report(&table, 9, None);
    assert_eq!((fds.opened, fds.closed, fds.unseen_deaths), (4, 1, 1));
    assert_eq!((row(&fds, "2").opened, row(&fds, "2").live), (1, 1));
    assert_eq!(
        row(&fds, "2").kinds.get(&FdKind::Eventfd),
        Some(&1),
        "copied from the source"
    );
    assert_eq!((row(&fds, "1").live, row(&fds, "1").closed), (1, 2));
}

#[test]
fn results_that_are_no_descriptors() {
    let mut table = FdTable::new(TGID);
    for (call, args) in [
        (nr::SIGNALFD4, [7, 0, 0, 0]),
        (nr::FCNTL, [3, 1, 0, 0]),
        (nr::FCNTL, [3, 3, 0, 0]),
        (nr::BPF, [1, 0, 0, 0]),
        (nr::BPF, [20, 0, 0, 0]),
        (nr::LANDLOCK_CREATE_RULESET, [0, 0, 1, 0]),
        (nr::SECCOMP, [1, 0, 0, 0]),
        (nr::IOCTL, [3, 0, 0, 0]),
    ] {
        table.on_open(&opened(1, call, 7, args), A);
        assert_eq!(table.live(), 0, "{call}");
    }
    for (at, (call, args)) in [
        (nr::SIGNALFD4, [u64::from(u32::MAX), 0, 0, 0]),
        (nr::FCNTL, [3, 0, 0, 0]),
        (nr::FCNTL, [3, 1030, 0, 0]),
        (nr::BPF, [0, 0, 0, 0]),
        (nr::LANDLOCK_CREATE_RULESET, [1, 8, 0, 0]),
        (nr::SECCOMP, [1, 8, 0, 0]),
    ]
    .into_iter()
    .enumerate()
    {
        table.on_open(&opened(1, call, at as i32, args), A);
        assert_eq!(table.live(), at + 1, "{call}");
    }
    table.on_open(&opened(1, nr::OPENAT, -13, [0; 4]), A);
    assert_eq!(table.live(), 6);
}

#[test]
fn ranges() {
    let mut table = FdTable::new(TGID);
    for fd in 3..20 {
        table.on_open(&opened(1, nr::OPENAT, fd, [0; 4]), A);
    }
    table.on_close(&closing(2, 3, 9, fd_close::CLOEXEC));
    table.on_close(&closing(2, 9, 3, 0));
    table.on_close(&closing(2, 3, 9, 64));
    assert_eq!(table.live(), 17);
    table.on_close(&closing(3, 5, 6, 0));
    assert_eq!(table.live(), 15);
    table.on_close(&closing(4, 10, u32::MAX, 0));
    assert_eq!(table.live(), 5);
    assert_eq!(report(&table, 5, None).closed, 12);
}

#[test]
fn a_thread_that_takes_a_table_of_its_own_is_left_out() {
    let mut table = FdTable::new(TGID);
    table.on_open(&opened(1, nr::OPENAT, 3, [0; 4]), A);
    let mut unshare = closing(2, 0, u32::MAX, fd_close::UNSHARE);
    unshare.header.tid = TGID + 1;
    table.on_close(&unshare);
    let mut foreign = opened(3, nr::OPENAT, 4, [0; 4]);
    foreign.header.tid = TGID + 1;
    table.on_open(&foreign, A);
    assert_eq!((table.live(), table.incomplete()), (1, &[][..]));
    table.on_thread_exit(TGID + 1);
    table.on_open(&foreign, A);
    assert_eq!(table.live(), 2);
    table.on_close(&closing(4, 0, u32::MAX, fd_close::UNSHARE));
    assert_eq!(
        (table.live(), table.incomplete().len()),
        (0, 1),
        "the leader left the others behind"
    );
}

#[test]
fn control_data() {
    let mut control = Vec::new();
    let mut message = |level: i32, kind: i32, length: u64, data: &[i32]| {
        control.extend(length.to_ne_bytes());
        control.extend(level.to_ne_bytes());
        control.extend(kind.to_ne_bytes());
        control.extend(data.iter().flat_map(|number| number.to_ne_bytes()));
        control.resize(control.len().next_multiple_of(8), 0xff);
    };
    message(1, 2, 28, &[1, 2, 3]);
    message(1, 1, 28, &[10, 11, 12]);
    message(1, 4, 20, &[20]);
    message(41, 1, 20, &[30]);
    message(1, 1, 24, &[40, -1]);
    message(1, 1, 16 + 4 * 100, &[50, 51]);
    let record = |control: &[u8], len: u32| {
        let mut event = FdRights {
            header: header(TGID, 1),
            nr: nr::RECVMSG,
            socket: 3,
            len,
            total: u64::from(len),
            stack: 0,
            control: [0; CONTROL_MAX],
        };
        event.control[..control.len()].copy_from_slice(control);
        event
    };
    let mut table = FdTable::new(TGID);
    table.on_rights(&record(&control, control.len() as u32), A);
    let mut live: Vec<i32> = table.live.keys().copied().collect();
    live.sort_unstable();
    assert_eq!(live, [10, 11, 12, 20, 40, 50, 51]);
    assert_eq!(table.live[&20].kind, FdKind::Pidfd);
    for hostile in [[0_u8; 32], [0xff; 32], [1; 32]] {
        FdTable::new(TGID).on_rights(&record(&hostile, u32::MAX), A);
    }
}

#[test]
fn uring_requests() {
    let mut table = FdTable::new(TGID);
    table.on_uring(&uring(1, 18, 5), A);
    table.on_uring(&uring(3, 28, -2), A);
    table.on_uring(&uring(4, 13, 7), A);
    table.on_uring(&uring(5, 13, 8), A);
    table.on_uring(&uring(6, 45, 9), A);
    // IORING_OP_PIPE writes its pair to memory: its result is no descriptor.
    table.on_uring(&uring(7, 62, 0), A);
    assert_eq!(table.live(), 4);
    table.on_close(&closing(8, 9, 9, 0));
    table.on_close(&closing(9, 8, 8, 0));
    table.on_open(&opened(10, nr::OPENAT, 8, [0; 4]), B);
    let fds = report(&table, 12, None);
    assert_eq!((row(&fds, "2").live, fds.unseen_deaths, fds.closed), (1, 0, 2));
    assert_eq!(row(&fds, "1").call.as_deref(), Some("io_uring accept"));
}

#[test]
fn rows_and_deaths_are_bounded() {
    let mut table = FdTable::new(TGID);
    for at in 0..super::MAX_ROWS as i32 + 50 {
        table.on_open(&opened(at as u64, nr::OPENAT, at, [0; 4]), StackId(at as u32 + 1));
    }
    assert_eq!((table.rows.len(), table.folded()), (super::MAX_ROWS + 1, 50));
    assert_eq!(row(&report(&table, 9999, None), "folded").live, 50);
    for at in 0..super::MAX_RECENT as u64 + 50 {
        table.on_close(&closing(10_000 + at, 1, 1, 0));
    }
    assert_eq!(
        (table.recent.deaths.len(), table.recent.forgot_ns),
        (super::MAX_RECENT, Some(10_049))
    );
}
