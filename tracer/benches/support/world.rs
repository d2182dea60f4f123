//! A consumer in this process that has seen every stack of this process once, and recognises them.

use std::sync::atomic::Ordering;

use tracer::{aggregate::fds::FdTable, session::pipeline::Pipeline};
use tracer_ebpf::wire::{StackClass, stack_ref};

use super::{
    Known, Probes,
    load::{self, Load, Shape, Wire as _, stack_of},
    own, unknown,
};

/// Pipeline and memos.
pub(crate) struct World {
    pub(crate) pipeline: Pipeline,
    pub(crate) shape: Shape,
    known: Vec<Known>,
}

impl World {
    /// Sees each stack once, and what sleeps in it.
    pub(crate) fn new(stacks: usize, locks: usize) -> Self {
        let shape = Shape {
            tgid: std::process::id(),
            stacks,
            locks,
            threads: 64,
            shadow: 0,
            crossed: false,
            mixed: true,
        };
        let mut pipeline = Pipeline::new(0, true, false, 0);
        pipeline.stacks.prime(shape.tgid);
        pipeline.stacks.learn();
        pipeline.fds.insert(shape.tgid, FdTable::new(shape.tgid));
        let known = unknown(stacks);
        let mut probes = Probes::new(&known);
        let mut record = Vec::new();
        own::each(stacks, StackClass::Large, |stack, regs, copied| {
            let (token, ts_ns) = (stack as u64, 1 + stack as u64);
            load::stack(
                shape.tgid,
                ts_ns,
                token,
                0,
                (regs, copied),
                StackClass::Large,
                &mut record,
            );
            pipeline.on_record(&record);
            probes.obey(&mut pipeline, stack_of(token));
            let mut wait = load::wait(
                shape.tgid,
                shape.tgid,
                load::word(stack % locks),
                1 << 40,
                50_000,
                5_000,
            );
            wait.stack = token | stack_ref::COPY;
            pipeline.on_record(wait.bytes());
        });
        Self {
            pipeline,
            shape,
            known,
        }
    }

    /// So many events of a load; all stacks are recognised.
    pub(crate) fn events(&self, shape: Shape, count: usize) -> Vec<Vec<u8>> {
        let known: Vec<Known> = self
            .known()
            .into_iter()
            .map(|id| Known {
                id: id.into(),
                ..Known::default()
            })
            .collect();
        let shape = Shape {
            stacks: shape.stacks.min(known.len()),
            ..shape
        };
        let mut load = Load::new(shape, &known, &[]);
        let mut events = Vec::with_capacity(count);
        for at in 0..count {
            load.event((2 << 40) + at as u64 * 1000, false, |record| {
                events.push(record.to_vec());
            });
        }
        events
    }

    /// The memos there are: the pool may be too small for all stacks.
    pub(crate) fn known(&self) -> Vec<u64> {
        let ids = self.known.iter().map(|known| known.id.load(Ordering::Relaxed));
        ids.filter(|&id| id != 0).collect()
    }
}
