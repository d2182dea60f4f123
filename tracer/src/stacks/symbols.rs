//! Names and lines of frames, found when asked for and kept.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized};
use rustc_hash::FxHashMap;

use super::data::DataTables;
use super::module::{Module, ModuleId};
use super::{Frame, StackId, Stacks};
use crate::report::model::StackFrame;

/// Code addresses whose names are kept.
const MAX_NAMED: usize = 1 << 20;

/// A function at an address, innermost first in a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Function {
    name: Rc<str>,
    file: Option<Rc<str>>,
    line: Option<u32>,
}

/// What is known about one code address of one file.
#[derive(Debug, Default)]
struct Named {
    /// Innermost first; the last is the physical function.
    functions: Vec<Function>,
    /// Bytes from the physical function's start.
    offset: Option<u64>,
}

/// Names addresses. Unnamed functions of stripped files are called `file!fn@0x<start>`, so that they group.
pub struct Symbolizer {
    blaze: blazesym::symbolize::Symbolizer,
    named: FxHashMap<(ModuleId, u64), Rc<Named>>,
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
        // Files are held open by descriptor: they cannot change under it.
        let blaze = blazesym::symbolize::Symbolizer::builder()
            .enable_auto_reload(false)
            .build();
        Self {
            blaze,
            named: FxHashMap::default(),
            data: DataTables::default(),
        }
    }

    /// A stack in words, leaf first; a function inlined into the next one is a frame of its own.
    pub fn resolve(&mut self, stacks: &Stacks, id: StackId) -> Vec<StackFrame> {
        let frames = stacks.frames(id);
        self.load(stacks, frames);
        let mut out = Vec::with_capacity(frames.len());
        for frame in frames {
            let address = format!("{:#x}", frame.address);
            let module = frame
                .module
                .and_then(|m| stacks.module_path(m))
                .map(str::to_owned);
            let named = self.named(frame);
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
        self.load(stacks, frames);
        let names = |n: Rc<Named>| n.functions.iter().map(|f| Rc::clone(&f.name)).collect();
        frames
            .iter()
            .map(|frame| self.named(frame).map(names).unwrap_or_default())
            .collect()
    }

    fn named(&self, frame: &Frame) -> Option<Rc<Named>> {
        self.named.get(&key(frame)?).cloned()
    }

    /// Looks up all frames that have no names yet, one batch per file.
    fn load(&mut self, stacks: &Stacks, frames: &[Frame]) {
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
            let mut found = self.look_up(module, &offsets);
            found.resize_with(offsets.len(), Named::default);
            for (offset, mut named) in offsets.into_iter().zip(found) {
                if named.functions.is_empty() {
                    named = unnamed(module, offset);
                }
                self.named.insert((id, offset), Rc::new(named));
            }
        }
    }

    /// Names from symbols and debug information. A file that cannot be parsed has none.
    fn look_up(&self, module: &Module, offsets: &[u64]) -> Vec<Named> {
        let source = Source::Elf(Elf::new(module.open_path()));
        let result = catch_unwind(AssertUnwindSafe(|| {
            self.blaze.symbolize(&source, Input::VirtOffset(offsets))
        }));
        let symbols = match result {
            Ok(Ok(symbols)) => symbols,
            Ok(Err(error)) => {
                log::debug!("no symbols of {}: {error}", module.path);
                return Vec::new();
            }
            Err(_) => {
                log::warn!(
                    "{} cannot be symbolized: its symbols or debug information are malformed",
                    module.path
                );
                return Vec::new();
            }
        };
        symbols
            .iter()
            .zip(offsets)
            .map(|(symbol, &offset)| Self::name(module, symbol, offset))
            .collect()
    }

    fn name(module: &Module, symbol: &Symbolized<'_>, offset: u64) -> Named {
        let Symbolized::Sym(symbol) = symbol else {
            return Named::default();
        };
        // A symbol without a size reaches as far as the next one: the unwind entry knows better.
        if symbol.size.is_none()
            && symbol.code_info.is_none()
            && module
                .function_start(offset)
                .is_some_and(|start| start > symbol.addr)
        {
            return Named::default();
        }
        Named {
            functions: functions(symbol),
            offset: Some(symbol.offset as u64),
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

/// Innermost first.
fn functions(symbol: &Sym<'_>) -> Vec<Function> {
    let outer = function(&symbol.name, symbol.code_info.as_deref());
    let inlined = symbol
        .inlined
        .iter()
        .map(|f| function(&f.name, f.code_info.as_ref()));
    let mut all: Vec<_> = std::iter::once(outer).chain(inlined).collect();
    all.reverse();
    all
}

fn function(name: &str, code: Option<&CodeInfo<'_>>) -> Function {
    let file = code.map(|c| c.to_path().to_string_lossy().as_ref().into());
    Function {
        name: name.into(),
        file,
        line: code.and_then(|c| c.line),
    }
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
