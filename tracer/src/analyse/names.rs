//! Stacks in words, resolved once, and which of them the report refers to.

use std::collections::BTreeMap;

use super::hints::Naming;
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
    nameless: bool,
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
            nameless: false,
        }
    }

    /// Looks into no file of the target: frames have their addresses and files, variables nothing.
    #[must_use]
    pub fn nameless(mut self) -> Self {
        self.nameless = true;
        self
    }

    /// Frames, leaf first; empty without a stack.
    pub fn frames(&mut self, id: StackId) -> &[StackFrame] {
        self.resolved.entry(id).or_insert_with(|| {
            if id == StackId::NONE {
                Vec::new()
            } else if self.nameless {
                nameless(self.stacks, id)
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
        if self.nameless {
            return AddressKind::Unmapped;
        }
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

    /// How far the frames of the stacks referred to have names, by process.
    pub fn naming(&mut self) -> BTreeMap<u32, Naming> {
        let mut naming: BTreeMap<u32, Naming> = BTreeMap::new();
        let used: Vec<StackId> = self.used.values().copied().collect();
        for id in used {
            if let Some(tgid) = self.stacks.tgid(id) {
                naming.entry(tgid).or_default().add(self.frames(id));
            }
        }
        for (tgid, naming) in &mut naming {
            naming.mapped = self.symbolizer.has_jit_map(*tgid);
        }
        naming
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

fn nameless(stacks: &Stacks, id: StackId) -> Vec<StackFrame> {
    stacks
        .frames(id)
        .iter()
        .map(|frame| StackFrame {
            function: None,
            module: frame
                .module
                .and_then(|module| stacks.module_path(module))
                .map(str::to_owned),
            file: None,
            line: None,
            inlined: false,
            address: format!("{:#x}", frame.address),
            offset: None,
        })
        .collect()
}
