//! Names and lines of frames, found when asked for and kept.

use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::data::DataTables;
use super::file_names::FileNames;
use super::go::GoTables;
use super::jit::JitNames;
use super::module::{Module, ModuleId};
use super::{Frame, StackId, Stacks};
use crate::report::model::StackFrame;

/// Code addresses whose names are kept.
const MAX_NAMED: usize = 1 << 20;

/// A function at an address, innermost first in a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: Rc<str>,
    pub(super) file: Option<Rc<str>>,
    pub(super) line: Option<u32>,
}

/// What is known about one code address of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct Named {
    /// Innermost first; the last is the physical function.
    pub(super) functions: Vec<Function>,
    /// Bytes from the physical function's start.
    pub(super) offset: Option<u64>,
}

/// Names addresses. Unnamed functions of stripped files are called `file!fn@0x<start>`, so that they group.
pub struct Symbolizer {
    named: FxHashMap<(ModuleId, u64), Rc<Named>>,
    go: GoTables,
    files: FileNames,
    jit: JitNames,
    pub(super) data: DataTables,
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new()
    }
}

impl Symbolizer {
    /// Has read nothing yet.
    pub fn new() -> Self {
        Self {
            named: FxHashMap::default(),
            go: GoTables::default(),
            files: FileNames::new(),
            jit: JitNames::default(),
            data: DataTables::default(),
        }
    }

    /// A stack in words, leaf first; a function inlined into the next one is a frame of its own.
    pub fn resolve(&mut self, stacks: &Stacks, id: StackId) -> Vec<StackFrame> {
        let frames = stacks.frames(id);
        self.load(stacks, id, frames);
        let mut out = Vec::with_capacity(frames.len());
        for frame in frames {
            let address = format!("{:#x}", frame.address);
            let module = frame
                .module
                .and_then(|m| stacks.module_path(m))
                .map(str::to_owned);
            let named = self.named(stacks, id, frame);
            let functions = named.as_ref().map_or(&[][..], |n| &n.functions);
            let Some((physical, inlined)) = functions.split_last() else {
                let (function, file, line, offset) = (None, None, None, None);
                out.push(StackFrame {
                    function,
                    module,
                    file,
                    line,
                    inlined: false,
                    address,
                    offset,
                });
                continue;
            };
            let frame_of = |function: &Function, inlined, offset| StackFrame {
                function: Some(function.name.to_string()),
                module: module.clone(),
                file: function.file.as_deref().map(str::to_owned),
                line: function.line,
                inlined,
                address: address.clone(),
                offset,
            };
            out.extend(inlined.iter().map(|f| frame_of(f, true, None)));
            out.push(frame_of(physical, false, named.as_ref().and_then(|n| n.offset)));
        }
        out
    }

    /// Per physical frame, leaf first, the names of its functions, innermost first; empty where there is none.
    pub fn function_names(&mut self, stacks: &Stacks, id: StackId) -> Vec<Vec<Rc<str>>> {
        let frames = stacks.frames(id);
        self.load(stacks, id, frames);
        let names = |n: Rc<Named>| n.functions.iter().map(|f| Rc::clone(&f.name)).collect();
        frames
            .iter()
            .map(|frame| self.named(stacks, id, frame).map(names).unwrap_or_default())
            .collect()
    }

    /// Whether a process's runtime describes what it compiles; known after its stacks were resolved.
    pub fn has_jit_map(&self, tgid: u32) -> bool {
        self.jit.has_map(tgid)
    }

    fn named(&self, stacks: &Stacks, id: StackId, frame: &Frame) -> Option<Rc<Named>> {
        match key(frame) {
            Some(key) => self.named.get(&key).cloned(),
            None => self.jit.name(stacks, id, frame.code()),
        }
    }

    /// Looks up all frames that have no names yet, one batch per file.
    fn load(&mut self, stacks: &Stacks, id: StackId, frames: &[Frame]) {
        if frames.iter().any(|frame| frame.module.is_none()) {
            self.jit.load(stacks, id);
        }
        if self.named.len() >= MAX_NAMED {
            self.named.clear();
        }
        let mut missing: FxHashMap<ModuleId, Vec<u64>> = FxHashMap::default();
        for key in frames
            .iter()
            .filter_map(key)
            .filter(|k| !self.named.contains_key(k))
        {
            missing.entry(key.0).or_default().push(key.1);
        }
        for (id, mut offsets) in missing {
            offsets.sort_unstable();
            offsets.dedup();
            let Some(module) = stacks.modules.get(id) else {
                continue;
            };
            // Go's own table is right where symbols and DWARF of the same file may be missing; C code is not in it.
            offsets.retain(|&offset| match self.go.name(id, module, offset) {
                Some(named) => {
                    self.named.insert((id, offset), Rc::new(named));
                    false
                }
                None => true,
            });
            if offsets.is_empty() {
                continue;
            }
            let found = self.files.look_up(id, module, &offsets);
            for (offset, named) in offsets.into_iter().zip(found) {
                let named = named.unwrap_or_else(|| unnamed(module, offset));
                self.named.insert((id, offset), Rc::new(named));
            }
        }
    }
}

/// The address that names a frame: of the call, not of what follows it.
fn key(frame: &Frame) -> Option<(ModuleId, u64)> {
    Some((
        frame.module?,
        frame.offset.wrapping_sub(u64::from(frame.return_address)),
    ))
}

/// A stable name for code without a symbol, from where its unwind entry starts.
fn unnamed(module: &Module, offset: u64) -> Named {
    let Some(start) = module.function_start(offset) else {
        return Named::default();
    };
    let file = module.path.rsplit('/').next().unwrap_or_default();
    let name = format!("{file}!fn@{start:#x}").into();
    Named {
        functions: vec![Function {
            name,
            file: None,
            line: None,
        }],
        offset: offset.checked_sub(start),
    }
}
