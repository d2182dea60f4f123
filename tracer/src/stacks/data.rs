//! What an address of data is: a global variable, heap, a thread's stack, …

use std::fmt::Write as _;
use std::fs::File;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::elf::{Elf, Image as _, Section, text_at, u16_at, u32_at, u64_at};
use super::module::{Module, ModuleId};
use super::{Stacks, Symbolizer};
use crate::proc::maps::{self, Map};

/// Symbols read of one table.
const MAX_SYMBOLS: u64 = 4 << 20;
/// A guard region below a thread's stack is a page by default; a malloc arena's reserve is much larger.
const MAX_GUARD: u64 = 1 << 20;
/// glibc aligns its arenas to this.
const ARENA: u64 = 64 << 20;

/// A global or static variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSymbol {
    /// Demangled.
    pub name: String,
    /// Path of its file.
    pub module: String,
    /// Bytes from the variable's start.
    pub offset: u64,
}

/// What an address belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// A variable with a name.
    Symbol(DataSymbol),
    /// A file's data without a name.
    Module {
        /// Its path.
        path: String,
        /// Offset in the file.
        offset: u64,
    },
    /// The program break's, or an arena of malloc.
    Heap,
    /// A thread's stack, the first thread's included.
    ThreadStack,
    /// Other memory without a file.
    Anonymous,
    /// A shared mapping: other processes may wait there too.
    SharedMemory {
        /// File, or how the kernel names it.
        path: String,
        /// Offset in it.
        offset: u64,
    },
    /// Not mapped when last looked.
    Unmapped,
}

/// (start, size, name), by start.
type Table = Vec<(u64, u64, Box<str>)>;

/// Variables of files, read when first asked for.
#[derive(Default)]
pub(super) struct DataTables {
    tables: FxHashMap<ModuleId, Rc<Table>>,
}

impl Symbolizer {
    /// The variable that holds an address.
    pub fn data_symbol(&mut self, stacks: &mut Stacks, tgid: u32, address: u64) -> Option<DataSymbol> {
        let Stacks {
            spaces,
            modules,
            failures,
            ..
        } = stacks;
        let space = spaces.entry(tgid).or_default();
        space.open_for_data(tgid, address, modules, failures);
        let (id, bias) = space.data_module(address, modules)?;
        let module = modules.get(id)?;
        let vaddr = address.wrapping_sub(bias);
        let table = self
            .data
            .tables
            .entry(id)
            .or_insert_with(|| Rc::new(read(module)));
        let at = table.partition_point(|s| s.0 <= vaddr);
        // Variables may lie inside others (unions of aliases): the nearest start that reaches this far.
        let (start, _, name) = table
            .get(..at)?
            .iter()
            .rev()
            .take(16)
            .find(|s| vaddr - s.0 < s.1)?;
        Some(DataSymbol {
            name: demangle(name),
            module: module.path.to_string(),
            offset: vaddr - start,
        })
    }

    /// What an address belongs to.
    pub fn describe_address(&mut self, stacks: &mut Stacks, tgid: u32, address: u64) -> AddressKind {
        if let Some(symbol) = self.data_symbol(stacks, tgid, address) {
            return AddressKind::Symbol(symbol);
        }
        let Some(space) = stacks.spaces.get(&tgid) else {
            return AddressKind::Unmapped;
        };
        let in_module = || {
            let (id, bias) = space.data_module(address, &stacks.modules)?;
            Some(AddressKind::Module {
                path: stacks.module_path(id).unwrap_or_default().to_owned(),
                offset: address.wrapping_sub(bias),
            })
        };
        let Some((at, map)) = maps::find(&space.maps, address).and_then(|at| Some((at, space.maps.get(at)?)))
        else {
            return in_module().unwrap_or(AddressKind::Unmapped);
        };
        let offset = address - map.start + map.offset;
        if map.shared {
            return AddressKind::SharedMemory {
                path: map.name.to_string(),
                offset,
            };
        }
        if map.is_file() {
            return AddressKind::Module {
                path: map.name.to_string(),
                offset,
            };
        }
        in_module().unwrap_or_else(|| anonymous(&space.maps, at, map))
    }
}

/// What memory without a file is used for, from its neighbours.
fn anonymous(maps: &[Map], at: usize, map: &Map) -> AddressKind {
    let closed = |m: &&Map| !m.read && !m.write && !m.exec && m.inode == 0;
    let below = at
        .checked_sub(1)
        .and_then(|b| maps.get(b))
        .filter(|m| m.end == map.start)
        .filter(closed);
    let above = maps.get(at + 1).filter(|m| m.start == map.end).filter(closed);
    if &*map.name == "[heap]" {
        AddressKind::Heap
    } else if map.name.starts_with("[stack") || map.name.starts_with("[anon:stack") {
        AddressKind::ThreadStack
    } else if map.start.is_multiple_of(ARENA) && above.is_some_and(|m| m.end - map.start <= ARENA) {
        AddressKind::Heap
    } else if map.write && below.is_some_and(|m| m.end - m.start <= MAX_GUARD) {
        AddressKind::ThreadStack
    } else {
        AddressKind::Anonymous
    }
}

/// All variables of a file, local ones too; those of its separate debug file if it is stripped.
fn read(module: &Module) -> Table {
    let mut table = Vec::new();
    collect(&module.file, &module.elf, ".symtab", &mut table);
    if table.is_empty()
        && let Some(file) = debug_file(&module.elf.build_id)
        && let Some(elf) = Elf::parse(&file)
    {
        collect(&file, &elf, ".symtab", &mut table);
    }
    collect(&module.file, &module.elf, ".dynsym", &mut table);
    table.sort_by_key(|s| (s.0, s.1));
    table.dedup_by_key(|s| (s.0, s.1));
    table
}

/// The file that a distribution's debug package puts there.
fn debug_file(build_id: &[u8]) -> Option<File> {
    let (first, rest) = build_id.split_first()?;
    let mut path = format!("/usr/lib/debug/.build-id/{first:02x}/");
    for byte in rest {
        write!(path, "{byte:02x}").ok()?;
    }
    File::open(path + ".debug").ok()
}

fn collect(file: &File, elf: &Elf, name: &str, into: &mut Table) {
    let Some(section) = elf.section(name) else { return };
    let strings = elf.sections.get(section.link as usize);
    let Some(strings) = strings.and_then(|s: &Section| Elf::section_data(file, s)) else {
        return;
    };
    let Some(symbols) = file.read_at(section.offset, section.size.min(MAX_SYMBOLS * 24)) else {
        return;
    };
    for entry in symbols.chunks_exact(24) {
        into.extend(variable(entry, &strings));
    }
}

/// A defined symbol of type OBJECT.
fn variable(entry: &[u8], strings: &[u8]) -> Option<(u64, u64, Box<str>)> {
    let kind = entry.get(4)? & 0xf;
    if kind != object::elf::STT_OBJECT || u16_at(entry, 6)? == object::elf::SHN_UNDEF {
        return None;
    }
    let (start, size) = (u64_at(entry, 8)?, u64_at(entry, 16)?);
    let name = text_at(strings, u32_at(entry, 0)? as usize)?;
    (size != 0 && !name.is_empty()).then(|| (start, size, name.into()))
}

/// Rust and C++ names as their authors wrote them.
pub(super) fn demangle(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    if name.starts_with("_Z")
        && name.len() < 4096
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
        && let Ok(plain) = symbol.demangle()
    {
        return plain;
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_by_its_neighbours() {
        let text = b"7f0000000000-7f0000021000 rw-p 00000000 00:00 0\n\
            7f0000021000-7f0004000000 ---p 00000000 00:00 0\n\
            7f1000000000-7f1000001000 ---p 00000000 00:00 0\n\
            7f1000001000-7f1000801000 rw-p 00000000 00:00 0\n\
            7f2000000000-7f2000001000 rw-p 00000000 00:00 0\n\
            7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0    [stack]\n";
        let maps = maps::parse(text);
        let kind = |address| maps::find(&maps, address).map(|at| anonymous(&maps, at, &maps[at]));
        assert_eq!(kind(0x7f00_0000_1000), Some(AddressKind::Heap));
        assert_eq!(kind(0x7f10_0000_2000), Some(AddressKind::ThreadStack));
        assert_eq!(kind(0x7f20_0000_0000), Some(AddressKind::Anonymous));
        assert_eq!(kind(0x7ffd_0000_0000), Some(AddressKind::ThreadStack));
    }

    #[test]
    fn names_of_three_languages() {
        assert_eq!(demangle("_ZN3app4POOL17h0123456789abcdefE"), "app::POOL");
        assert_eq!(demangle("_ZL5mutex"), "mutex");
        assert_eq!(demangle("plain_c"), "plain_c");
    }
}
