//! What the benches, and the test of the consumer's memory, feed the consumer with: real stacks of this very program, and records
//! as the probes write them.

#![allow(dead_code, reason = "each program uses a part of it")]

pub(crate) mod alloc;
pub(crate) mod load;
pub(crate) mod own;
pub(crate) mod ring;
pub(crate) mod world;

use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use tracer::{session::pipeline::Pipeline, stacks::Order};
use tracer_ebpf::wire::StackClass;

/// What the probes know of a stack.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Known {
    /// Its memo, 0 without.
    pub(crate) id: AtomicU64,
    /// The class of its copies, 0 as long as none was told.
    class: AtomicU64,
}

impl Known {
    /// How much of it is copied.
    pub(crate) fn class(&self) -> StackClass {
        match StackClass::from_wire(self.class.load(Ordering::Relaxed) as u16) {
            None | Some(StackClass::None) => StackClass::Medium,
            Some(class) => class,
        }
    }
}

/// Nothing of so many stacks.
pub(crate) fn unknown(stacks: usize) -> Vec<Known> {
    (0..stacks).map(|_| Known::default()).collect()
}

/// The probes' side of recognition.
pub(crate) struct Probes<'a> {
    known: &'a [Known],
    /// Stack by the memo's place in the pool.
    owners: FxHashMap<u32, usize>,
}

impl<'a> Probes<'a> {
    /// Nothing is recognised yet.
    pub(crate) fn new(known: &'a [Known]) -> Self {
        Self {
            known,
            owners: FxHashMap::default(),
        }
    }

    /// Takes what the pipeline has to tell after the copy of that stack.
    pub(crate) fn obey(&mut self, pipeline: &mut Pipeline, stack: usize) {
        for (_, class) in pipeline.take_classes() {
            self.known[stack].class.store(class as u64, Ordering::Relaxed);
        }
        for order in pipeline.stacks.take_orders() {
            match order {
                Order::Clear(at) => {
                    if let Some(owner) = self.owners.remove(&at) {
                        self.known[owner].id.store(0, Ordering::Relaxed);
                    }
                }
                Order::Write { at, id, .. } => {
                    self.owners.insert(at, stack);
                    self.known[stack].id.store(id, Ordering::Relaxed);
                }
                Order::Ways(..) | Order::Space { .. } => {}
            }
        }
    }
}
