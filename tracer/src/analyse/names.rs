//! Stacks in words, resolved once, and which of them the report refers to.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::{
    report::model::{StackFrame, StackKey},
    stacks::{AddressKind, KernelSymbols, StackId, Stacks, Symbolizer},
};

/// Resolves stacks and addresses.
pub struct Names<'a> {
    stacks: &'a mut Stacks,
    symbolizer: &'a mut Symbolizer,
    kernel: &'a mut KernelSymbols,
    resolved: FxHashMap<StackId, Vec<StackFrame>>,
    used: BTreeMap<StackKey, StackId>,
}

impl<'a> Names<'a> {
    /// Over the stacks of a pipeline.
    pub fn new(
        stacks: &'a mut Stacks,
        symbolizer: &'a mut Symbolizer,
        kernel: &'a mut KernelSymbols,
    ) -> Self {
        Self {
            stacks,
            symbolizer,
            kernel,
            resolved: FxHashMap::default(),
            used: BTreeMap::new(),
        }
    }

    /// Frames, leaf first; empty without a stack.
    pub fn frames(&mut self, id: StackId) -> &[StackFrame] {
        self.resolved.entry(id).or_insert_with(|| {
            if id == StackId::NONE {
                Vec::new()
            } else {
                self.symbolizer.resolve(self.stacks, id)
            }
        })
    }

    /// Refers to a stack: it will be in the report.
    pub fn key(&mut self, id: StackId) -> Option<StackKey> {
        if id == StackId::NONE {
            return None;
        }
        let key = format!("s{}", id.0);
        self.used.insert(key.clone(), id);
        Some(key)
    }

    /// The stack that a key of this report refers to.
    #[must_use]
    pub fn id(&self, key: &str) -> Option<StackId> {
        self.used.get(key).copied()
    }

    /// What lies at an address of a process.
    pub fn describe(&mut self, tgid: u32, address: u64) -> AddressKind {
        self.symbolizer.describe_address(self.stacks, tgid, address)
    }

    /// Kernel functions, leaf first.
    pub fn kernel(&mut self, addresses: &[u64]) -> Vec<String> {
        addresses
            .iter()
            .map(|&address| {
                self.kernel
                    .name(address)
                    .unwrap_or_else(|| format!("{address:#x}"))
            })
            .collect()
    }

    /// All stacks referred to.
    pub fn into_stacks(mut self) -> BTreeMap<StackKey, Vec<StackFrame>> {
        let used = std::mem::take(&mut self.used);
        used.into_iter()
            .map(|(key, id)| (key, self.frames(id).to_vec()))
            .collect()
    }

    /// The unwinder, for threads that are asleep now.
    pub fn stacks_mut(&mut self) -> &mut Stacks {
        self.stacks
    }
}
