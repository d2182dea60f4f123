//! Names of Go programs, from the tables that they carry.

use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::module::{Module, ModuleId};
use super::pclntab::Pclntab;
use super::symbols::{Function, Named};

/// Tables held in memory, of all programs together; beyond, those of other programs are let go.
const MAX_BYTES: usize = 192 << 20;

/// Tables of programs, read when first asked for.
#[derive(Default)]
pub(super) struct GoTables {
    /// None: no Go program, or one whose table is damaged.
    tables: FxHashMap<ModuleId, Option<Pclntab>>,
    bytes: usize,
}

impl GoTables {
    /// What a Go program's table says of an address of it.
    pub(super) fn name(&mut self, id: ModuleId, module: &Module, vaddr: u64) -> Option<Named> {
        if !self.tables.contains_key(&id) {
            let table = Pclntab::read(&module.file, &module.elf);
            let size = table.as_ref().map_or(0, Pclntab::size);
            if self.bytes + size > MAX_BYTES {
                self.tables.retain(|_, table| table.is_none());
                self.bytes = 0;
            }
            self.bytes += size;
            self.tables.insert(id, table);
        }
        let table = self.tables.get(&id)?.as_ref()?;
        let code = table.code(&module.file, &module.elf, vaddr)?;
        let function = |frame: super::pclntab::GoFrame| Function {
            name: frame.name.into(),
            file: frame.file.map(Rc::from),
            line: frame.line,
        };
        Some(Named {
            functions: code.frames.into_iter().map(function).collect(),
            offset: vaddr.checked_sub(code.start),
        })
    }
}
