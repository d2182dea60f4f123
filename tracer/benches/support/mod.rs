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
use tracer::stacks::Order;

/// The kernel's side of recognition: which memo stands for which stack, 0 for none.
pub(crate) struct Recognised<'a> {
    ids: &'a [AtomicU64],
    /// Stack by the memo's place in the pool.
    owners: FxHashMap<u32, usize>,
}

impl<'a> Recognised<'a> {
    /// Nothing is recognised yet.
    pub(crate) fn new(ids: &'a [AtomicU64]) -> Self {
        Self {
            ids,
            owners: FxHashMap::default(),
        }
    }

    /// Does what the probes would be told; `stack` is the one whose copy came last.
    pub(crate) fn obey(&mut self, orders: Vec<Order>, stack: usize) {
        for order in orders {
            match order {
                Order::Clear(at) => {
                    if let Some(owner) = self.owners.remove(&at) {
                        self.ids[owner].store(0, Ordering::Relaxed);
                    }
                }
                Order::Write { at, id, .. } => {
                    self.owners.insert(at, stack);
                    self.ids[stack].store(id, Ordering::Relaxed);
                }
                Order::Ways(..) | Order::Space { .. } => {}
            }
        }
    }
}

/// Room for the ids of that many stacks.
pub(crate) fn ids(stacks: usize) -> Vec<AtomicU64> {
    (0..stacks).map(|_| AtomicU64::new(0)).collect()
}
