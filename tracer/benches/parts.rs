//! The price of each part of the consumer, one record or stack at a time. `cargo bench -p tracer --bench parts`.

#![allow(
    missing_docs,
    reason = "criterion's macros have no documentation, and a bench panics when it cannot measure"
)]

#[path = "support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tracer::{
    capture::decode::decode,
    stacks::{StackId, Stacks, Symbolizer},
};
use tracer_ebpf::wire::{
    CONTROL_MAX, DELAYS, Delays, Exec, Exit, FdClose, FdOpen, FdRights, FdUring, Fork, StackClass, kind,
    stack_ref,
};

use support::{
    load::{Shape, Wire as _, header, stack, wait, word},
    own,
    world::World,
};

/// What issue 3 names.
const STACKS: usize = 10_000;
const LOCKS: usize = 1000;
/// Events gone through again and again: more than the caches hold.
const EVENTS: usize = 100_000;
/// Stacks named at a time.
const NAMED: usize = 100;

/// One record of each kind.
#[allow(clippy::too_many_lines, reason = "a table")]
fn records() -> Vec<(&'static str, Vec<u8>)> {
    let front = |kind| header(kind, 1, 2, 3);
    let mut copied = Vec::new();
    own::each(1, StackClass::Medium, |_, regs, bytes| {
        stack(1, 3, 1, 0, (regs, bytes), StackClass::Medium, &mut copied);
    });
    vec![
        (
            "wait",
            wait(1, 2, word(3), 4_000_000, 50_000, 5_000).bytes().to_vec(),
        ),
        ("stack", copied),
        (
            "delays",
            Delays {
                header: front(kind::DELAYS),
                first: 0,
                len: DELAYS as u32,
                reserved: 0,
                delays: [5; DELAYS],
            }
            .bytes()
            .into(),
        ),
        (
            "fd_open",
            FdOpen {
                header: front(kind::FD_OPEN),
                nr: 2,
                fd: 3,
                fd2: -1,
                args: [0; 4],
                stack: 0,
                goid: 0,
                parent_goid: 0,
                creator: 0,
            }
            .bytes()
            .into(),
        ),
        (
            "fd_close",
            FdClose {
                header: front(kind::FD_CLOSE),
                nr: 3,
                first: 3,
                last: 3,
                flags: 0,
                reserved: 0,
            }
            .bytes()
            .into(),
        ),
        (
            "fd_rights",
            FdRights {
                header: front(kind::FD_RIGHTS),
                nr: 47,
                socket: 3,
                len: 0,
                total: 0,
                stack: 0,
                control: [0; CONTROL_MAX],
            }
            .bytes()
            .into(),
        ),
        (
            "fd_uring",
            FdUring {
                header: front(kind::FD_URING),
                opcode: 13,
                result: 3,
                stack: 0,
                request: 1,
            }
            .bytes()
            .into(),
        ),
        (
            "fork",
            Fork {
                header: front(kind::FORK),
                child_tgid: 4,
                child_tid: 4,
                stack: 0,
            }
            .bytes()
            .into(),
        ),
        (
            "exec",
            Exec {
                header: front(kind::EXEC),
                old_tid: 2,
                reserved: 0,
            }
            .bytes()
            .into(),
        ),
        (
            "exit",
            Exit {
                header: front(kind::EXIT),
                running_total_ns: 5,
                short_count: 0,
                reserved: 0,
                short_ns: 0,
                skipped_ns: 0,
            }
            .bytes()
            .into(),
        ),
    ]
}

fn decoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    for (name, record) in records() {
        assert!(decode(&record).is_some(), "{name}");
        group.bench_with_input(BenchmarkId::from_parameter(name), &record, |b, record| {
            b.iter(|| black_box(decode(black_box(record))).is_some());
        });
    }
}

/// Decoded, recognised and counted.
fn aggregating(c: &mut Criterion) {
    let mut group = c.benchmark_group("aggregate");
    group.throughput(Throughput::Elements(1));
    let mut world = World::new(STACKS, LOCKS);
    let shapes = [
        (
            "waits",
            Shape {
                mixed: false,
                ..world.shape
            },
        ),
        (
            "waits_of_one_stack",
            Shape {
                mixed: false,
                stacks: 1,
                ..world.shape
            },
        ),
        ("everything", world.shape),
    ];
    for (name, shape) in shapes {
        let events = world.events(shape, EVENTS);
        let mut next = events.iter().cycle();
        group.bench_function(name, |b| {
            b.iter(|| {
                next.next()
                    .map(|record| world.pipeline.on_record(black_box(record)))
            });
        });
    }
    let memo = world.known()[0] & stack_ref::VALUE;
    let tgid = world.shape.tgid;
    group.bench_function("recognise", |b| {
        b.iter(|| world.pipeline.stacks.recognised(black_box(memo), tgid, 1 << 41));
    });
}

fn unwinding(c: &mut Criterion) {
    let mut group = c.benchmark_group("unwind");
    let tgid = std::process::id();
    let mut copies = Vec::new();
    own::each(STACKS, StackClass::Large, |_, regs, bytes| {
        copies.push((*regs, bytes.to_vec()));
    });
    let (regs, bytes) = copies.first().expect("a stack");
    let mut stacks = Stacks::new();
    stacks.prime(tgid);
    let first = stacks.unwind(tgid, regs, bytes);
    let frames = stacks.frames(first.id).len();
    assert!((15..=25).contains(&frames), "{frames} frames");
    group.throughput(Throughput::Elements(frames as u64));
    // Mappings, files and tables are read.
    group.sample_size(20);
    group.bench_function(BenchmarkId::new("first_of_a_process", frames), |b| {
        b.iter(|| Stacks::new().unwind(tgid, black_box(regs), black_box(bytes)));
    });
    group.sample_size(100);
    group.bench_function(BenchmarkId::new("again", frames), |b| {
        b.iter(|| stacks.unwind(tgid, black_box(regs), black_box(bytes)));
    });
    // And remembered, as in a session.
    let mut next = copies.iter().cycle();
    stacks.learn();
    group.bench_function(BenchmarkId::new("10000_in_turn", frames), |b| {
        b.iter(|| {
            let unwound = next.next().map(|(regs, bytes)| stacks.unwind(tgid, regs, bytes));
            drop(stacks.take_orders());
            unwound
        });
    });
}

fn symbolizing(c: &mut Criterion) {
    let mut group = c.benchmark_group("symbolize");
    let world = World::new(NAMED, NAMED);
    let stacks = &world.pipeline.stacks;
    let ids = || (1..=stacks.len() as u32).map(StackId);
    let frames: usize = ids().map(|id| stacks.frames(id).len()).sum();
    group.throughput(Throughput::Elements(frames as u64));
    group.sample_size(10);
    let name = |symbolizer: &mut Symbolizer| {
        ids()
            .map(|id| symbolizer.resolve(stacks, id).len())
            .sum::<usize>()
    };
    assert!(name(&mut Symbolizer::new()) >= frames);
    group.bench_function(BenchmarkId::new("first", frames), |b| {
        b.iter(|| name(&mut Symbolizer::new()));
    });
    let mut warm = Symbolizer::new();
    name(&mut warm);
    group.bench_function(BenchmarkId::new("again", frames), |b| {
        b.iter(|| name(&mut warm));
    });
}

criterion_group!(benches, decoding, aggregating, unwinding, symbolizing);
criterion_main!(benches);
