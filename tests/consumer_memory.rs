//! What the consumer keeps of a program with 10,000 stacks and 1,000 locks, and that an event costs it no memory.
//!
//! `cargo bench -p tracer --bench consumer` has the time, and what is resident.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../tracer/benches/support/mod.rs"]
mod support;

use support::{
    alloc::{Counting, taken},
    load::{Shape, Wire as _, wait, word},
    world::World,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const STACKS: usize = 10_000;
const LOCKS: usize = 1000;
const EVENTS: usize = 97_000;
/// Rows that are kept; further waits go to one for each process and reason.
const ROWS_MAX: usize = 32_768;

#[test]
fn an_event_takes_no_memory() {
    let mut world = World::new(STACKS, LOCKS);
    let events = world.events(world.shape, EVENTS);
    // Every length and every descriptor is seen, and as many ends of descriptors as are remembered.
    for record in events.iter().cycle().take(EVENTS * 10) {
        world.pipeline.on_record(record);
    }
    let before = taken();
    for record in &events {
        world.pipeline.on_record(record);
    }
    assert_eq!(taken() - before, 0, "allocations for {EVENTS} events");
    assert_eq!(world.pipeline.unknown_records(), 0);
    assert_eq!(world.pipeline.unmatched(), 0);
}

#[test]
fn there_is_a_row_for_each_place_of_a_lock() {
    let mut world = World::new(STACKS, LOCKS);
    assert_eq!(world.pipeline.stacks.len(), STACKS);
    let waits = &world.pipeline.waits;
    assert_eq!((waits.rows().count(), waits.folded()), (STACKS, 0));
    assert_eq!(
        waits.rows().map(|(_, row)| row.wait.count()).sum::<u64>(),
        STACKS as u64
    );
    let recognition = world.pipeline.stacks.recognition();
    assert_eq!((recognition.unwound, recognition.unfit), (STACKS as u64, 0));
    assert_eq!(
        world.pipeline.stacks.failures(),
        std::collections::BTreeMap::new()
    );
    // The pool of memos is bounded too: what was dropped is known to be.
    assert_eq!(world.known().len() as u64, recognition.memos);
    assert!(recognition.memos == STACKS as u64 || recognition.dropped > 0);
    // More places than rows: what finds no room is counted, and no wait is lost.
    let shape = Shape {
        mixed: false,
        crossed: true,
        ..world.shape
    };
    for record in world.events(shape, EVENTS) {
        world.pipeline.on_record(&record);
    }
    let waits = &world.pipeline.waits;
    let rows = waits.rows().count();
    assert!((ROWS_MAX..=ROWS_MAX + 1).contains(&rows), "{rows} rows");
    assert!(waits.folded() > 0);
    let counted: u64 = waits.rows().map(|(_, row)| row.wait.count()).sum();
    assert_eq!(counted, (STACKS + EVENTS) as u64);
    assert_eq!(world.pipeline.stacks.len(), STACKS);
}

/// Lengths of every size in every row: what the histograms keep is bounded by their room, not by what is seen.
#[test]
fn no_lengths_are_too_many() {
    let mut world = World::new(1, 1);
    let memo = world.known()[0] | tracer_ebpf::wire::stack_ref::MEMO;
    let (tgid, mut blocked) = (world.shape.tgid, 1u64);
    let mut round = |world: &mut World, rounds: u64| {
        for at in 0..rounds * LOCKS as u64 {
            // Steps of 0.7 %, from a microsecond to a minute and round again.
            if at % LOCKS as u64 == 0 {
                blocked = if blocked > 60_000_000_000 {
                    1000
                } else {
                    blocked + blocked / 137 + 1
                };
            }
            let mut record = wait(
                tgid,
                tgid,
                word(at as usize % LOCKS),
                1 << 42,
                blocked,
                blocked / 7,
            );
            record.stack = memo;
            world.pipeline.on_record(record.bytes());
        }
    };
    round(&mut world, 6000);
    let before = taken();
    round(&mut world, 300);
    assert_eq!(taken() - before, 0, "allocations once all octaves were seen");
    let widest = world.pipeline.waits.rows().map(|(_, row)| row.wait.error());
    let widest = widest.fold(0.0, f64::max);
    assert!(widest < 0.07, "buckets of {widest}");
}
