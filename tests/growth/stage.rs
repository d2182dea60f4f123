//! A history of births and deaths, as the real table gets it.

use std::{cmp::Reverse, collections::BinaryHeap};

use tracer::{
    aggregate::{
        fds::{FdTable, ReportInput},
        hist::Histogram,
    },
    proc::fd::{FdEntry, FdScan},
    report::model::{FdKind, FdStack, Fds, Hist},
    stacks::StackId,
};
use tracer_ebpf::{
    nr,
    wire::{FdClose, FdOpen, Header},
};

/// Born and died, in seconds from the start of the trace; before it where negative, never where infinite.
pub(crate) type Life = (f64, f64);

const TGID: u32 = 100;
const STACK: StackId = StackId(1);
/// Four per second, as the session takes them.
const SAMPLE: f64 = 0.25;
/// The trace begins at this time of the clock.
const EPOCH_NS: u64 = 5_000_000_000;

fn ns(seconds: f64) -> u64 {
    EPOCH_NS.saturating_add_signed((seconds * 1e9) as i64)
}

fn header(seconds: f64) -> Header {
    Header {
        kind: 0,
        class: 0,
        tgid: TGID,
        tid: TGID,
        cpu: 0,
        ts_ns: ns(seconds),
    }
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Happens {
    Death,
    Birth,
}

/// What the table says after `window` seconds about the one stack that made all of them.
pub(crate) fn judged(lives: &[Life], window: f64) -> FdStack {
    let fds = traced(lives, window);
    fds.by_stack
        .into_iter()
        .find(|row| row.stack.is_some())
        .unwrap_or_else(|| panic!("nothing was born in the window"))
}

/// The whole section.
pub(crate) fn traced(lives: &[Life], window: f64) -> Fds {
    let mut table = FdTable::new(TGID);
    let mut free: BinaryHeap<Reverse<i32>> = BinaryHeap::new();
    let mut most = 2;
    let mut take = |free: &mut BinaryHeap<Reverse<i32>>| {
        free.pop().map_or_else(
            || {
                most += 1;
                most
            },
            |Reverse(fd)| fd,
        )
    };
    let mut fds = vec![-1; lives.len()];
    let mut entries = Vec::new();
    let mut events: Vec<(f64, Happens, usize)> = Vec::new();
    for (at, &(born, died)) in lives.iter().enumerate() {
        if born > window || died <= 0.0 {
            continue;
        }
        if born <= 0.0 {
            fds[at] = take(&mut free);
            entries.push(FdEntry {
                fd: fds[at],
                kind: FdKind::Socket,
                inode: None,
                target: Some(format!("socket:[{at}]")),
            });
        } else {
            events.push((born, Happens::Birth, at));
        }
        if died < window {
            events.push((died, Happens::Death, at));
        }
    }
    entries.sort_by_key(|entry| entry.fd);
    table.seed(&FdScan {
        started_ns: ns(-0.001),
        ended_ns: ns(0.0),
        entries,
        complete: true,
    });
    events.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let mut next_sample = SAMPLE;
    for (when, what, at) in events {
        while next_sample <= when {
            table.snapshot(ns(next_sample));
            next_sample += SAMPLE;
        }
        if what == Happens::Birth {
            fds[at] = take(&mut free);
            let event = FdOpen {
                header: header(when),
                nr: nr::SOCKET,
                fd: fds[at],
                fd2: -1,
                args: [0; 4],
                stack: 0,
                goid: 0,
                parent_goid: 0,
                creator: 0,
            };
            table.on_open(&event, STACK);
        } else {
            let number = fds[at] as u32;
            table.on_close(&FdClose {
                header: header(when),
                nr: nr::CLOSE,
                first: number,
                last: number,
                flags: 0,
                reserved: 0,
            });
            free.push(Reverse(fds[at]));
        }
    }
    while next_sample < window {
        table.snapshot(ns(next_sample));
        next_sample += SAMPLE;
    }
    table.report(&ReportInput {
        now_ns: ns(window),
        limit: Some(100_000),
        older_ns: None,
        scan: None,
        sockets: None,
        unseen_kinds: Vec::new(),
        hist,
        stack_key: &|stack| stack.0.to_string(),
        asked_by: &|_| Vec::new(),
    })
}

fn hist(from: &Histogram) -> Hist {
    tracer::report::hist::hist(from)
}
