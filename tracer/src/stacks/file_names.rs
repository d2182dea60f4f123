//! Names of a file's code: from its debug information, wherever that is, else from its symbol tables.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};
use rustc_hash::FxHashMap;

use super::data::demangle;
use super::debug_file::{self, DebugFile};
use super::module::{Module, ModuleId};
use super::symbols::{Function, Named};
use super::symtab::Symtab;

/// Symbol tables held in memory, of all files together; beyond, they are read again when needed.
const MAX_TABLES: usize = 128 << 20;
/// Debug information opened at once, of all files together; beyond, it is opened again when needed.
const MAX_DEBUG: u64 = 1 << 30;

/// Names by file.
pub(super) struct FileNames {
    blaze: Symbolizer,
    /// Bytes of the files that `blaze` has open.
    opened: FxHashMap<PathBuf, u64>,
    debug: FxHashMap<ModuleId, Option<DebugFile>>,
    tables: FxHashMap<ModuleId, [Symtab; 3]>,
    table_bytes: usize,
}

impl FileNames {
    /// Has read nothing yet.
    pub(super) fn new() -> Self {
        Self {
            blaze: symbolizer(),
            opened: FxHashMap::default(),
            debug: FxHashMap::default(),
            tables: FxHashMap::default(),
            table_bytes: 0,
        }
    }

    /// The functions at virtual addresses of a file; None where nothing tells.
    pub(super) fn look_up(&mut self, id: ModuleId, module: &Module, offsets: &[u64]) -> Vec<Option<Named>> {
        let debug = self.debug.entry(id).or_insert_with(|| debug_file::find(module));
        let path = debug.as_ref().map(|debug| debug.path.clone());
        let path = path.or_else(|| debug_file::has_own(&module.elf).then(|| module.open_path()));
        let mut found = match path {
            Some(path) => self.by_debug_information(module, &path, offsets),
            None => Vec::new(),
        };
        found.resize_with(offsets.len(), || None);
        for (named, &offset) in found.iter_mut().zip(offsets) {
            if named.is_none() {
                *named = self.by_symbol(id, module, offset);
            }
        }
        found
    }

    /// Names from debug information, and from the symbols beside it. A file that cannot be parsed has none.
    fn by_debug_information(&mut self, module: &Module, path: &Path, offsets: &[u64]) -> Vec<Option<Named>> {
        if !self.opened.contains_key(path) {
            let size = std::fs::metadata(path).map_or(0, |stat| stat.len());
            if self.opened.values().sum::<u64>() + size > MAX_DEBUG {
                self.blaze = symbolizer();
                self.opened.clear();
            }
            self.opened.insert(path.to_owned(), size);
        }
        let source = Source::Elf(Elf::new(path));
        let result = catch_unwind(AssertUnwindSafe(|| {
            self.blaze.symbolize(&source, Input::VirtOffset(offsets))
        }));
        let symbols = match result {
            Ok(Ok(symbols)) => symbols,
            Ok(Err(error)) => {
                log::debug!("no debug information of {}: {error}", module.path);
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
            .map(|(symbol, &offset)| named(module, symbol, offset))
            .collect()
    }

    /// The function by the file's tables: all its symbols, the exported ones, or those packed into it.
    fn by_symbol(&mut self, id: ModuleId, module: &Module, offset: u64) -> Option<Named> {
        if !self.tables.contains_key(&id) {
            let (file, elf) = (&module.file, &module.elf);
            let all = [
                Symtab::read(file, elf, ".symtab"),
                Symtab::read(file, elf, ".dynsym"),
                Symtab::packed(file, elf),
            ];
            let size = all.iter().map(Symtab::size).sum::<usize>();
            if self.table_bytes + size > MAX_TABLES {
                self.tables.clear();
                self.table_bytes = 0;
            }
            self.table_bytes += size;
            self.tables.insert(id, all);
        }
        let tables = self.tables.get(&id)?;
        let symbol = tables.iter().find_map(|table| {
            table
                .find(offset)
                .filter(|found| found.sized || reaches(module, offset, found.start))
        })?;
        Some(Named {
            functions: vec![Function {
                name: demangle(symbol.name).into(),
                file: None,
                line: None,
            }],
            offset: offset.checked_sub(symbol.start),
        })
    }
}

/// Files are held open by descriptor: they do not change under it.
fn symbolizer() -> Symbolizer {
    Symbolizer::builder().enable_auto_reload(false).build()
}

/// Whether a symbol without a size reaches an address: unless the unwind entry there begins after it.
fn reaches(module: &Module, offset: u64, symbol: u64) -> bool {
    module.function_start(offset).is_none_or(|start| start <= symbol)
}

fn named(module: &Module, symbol: &Symbolized<'_>, offset: u64) -> Option<Named> {
    let Symbolized::Sym(symbol) = symbol else {
        return None;
    };
    // It may reach as far as the next one: the unwind entry knows better.
    if symbol.size.is_none() && symbol.code_info.is_none() && !reaches(module, offset, symbol.addr) {
        return None;
    }
    Some(Named {
        functions: functions(symbol),
        offset: Some(symbol.offset as u64),
    })
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
