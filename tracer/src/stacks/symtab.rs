//! Functions by the symbol tables of a file, read with bounds.

use std::io::Read as _;

use object::elf;

use super::elf::{Elf, Image, u16_at, u32_at, u64_at};

/// Symbols read of one table.
const MAX_SYMBOLS: u64 = 4 << 20;
/// Symbols looked back at for one that reaches an address: aliases, and functions inside others.
const MAX_BACK: usize = 32;
/// Bytes that a packed table may unpack to, and memory that unpacking may take, in KiB.
const MAX_UNPACKED: u64 = 128 << 20;
const MAX_UNPACKING: u32 = 80 << 10;

/// One symbol.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: u64,
    size: u64,
    name: u32,
}

/// What a table says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found<'a> {
    pub(super) name: &'a str,
    pub(super) start: u64,
    /// The symbol says how long it is, and reaches the address.
    pub(super) sized: bool,
}

/// Functions by where they begin; of several names of one the best comes first.
#[derive(Debug, Default)]
pub(super) struct Symtab {
    symbols: Vec<Symbol>,
    strings: Vec<u8>,
}

impl Symtab {
    /// The functions of `.symtab` or `.dynsym`; none where there is no such table.
    pub(super) fn read(image: &(impl Image + ?Sized), elf: &Elf, table: &str) -> Self {
        Self::try_read(image, elf, table).unwrap_or_default()
    }

    /// Those of the table that a distribution packs into a stripped file (MiniDebugInfo): functions that are not exported.
    pub(super) fn packed(image: &(impl Image + ?Sized), elf: &Elf) -> Self {
        let unpack = || {
            let section = elf.section(".gnu_debugdata")?;
            let packed = Elf::section_data(image, section)?;
            let mut unpacked = Vec::new();
            let reader = lzma_rust2::XzReader::new_mem_limit(&packed[..], false, MAX_UNPACKING);
            reader.take(MAX_UNPACKED).read_to_end(&mut unpacked).ok()?;
            let elf = Elf::parse(&unpacked[..])?;
            Some(Self::read(&unpacked[..], &elf, ".symtab"))
        };
        unpack().unwrap_or_default()
    }

    fn try_read(image: &(impl Image + ?Sized), elf: &Elf, table: &str) -> Option<Self> {
        let section = elf.section(table)?;
        if section.kind == elf::SHT_NOBITS {
            return None;
        }
        let strings = Elf::section_data(image, elf.sections.get(section.link as usize)?)?;
        let bytes = image.read_at(section.offset, section.size.min(MAX_SYMBOLS * 24))?;
        let mut symbols: Vec<_> = bytes.chunks_exact(24).filter_map(function).collect();
        let rank = |symbol: &(Symbol, u8)| {
            let name = name_at(&strings, symbol.0.name).unwrap_or_default();
            let underscores = name.len() - name.trim_start_matches('_').len();
            (symbol.0.start, symbol.1, underscores, name.len(), name.to_owned())
        };
        // Few share a start: most are decided by it.
        symbols.sort_unstable_by(|a, b| a.0.start.cmp(&b.0.start).then_with(|| rank(a).cmp(&rank(b))));
        let symbols = symbols.into_iter().map(|s| s.0).collect();
        Some(Self { symbols, strings })
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.symbols.len() * size_of::<Symbol>() + self.strings.len()
    }

    /// The function that holds an address: the innermost whose size reaches it, else one without a size right below.
    pub(super) fn find(&self, vaddr: u64) -> Option<Found<'_>> {
        let upto = self.symbols.partition_point(|s| s.start <= vaddr);
        let below = self.symbols.get(..upto)?;
        let reaches = |s: &&Symbol| vaddr - s.start < s.size;
        let nearest = below.iter().rev().take(MAX_BACK).find(reaches);
        let (symbol, sized) = match nearest {
            Some(symbol) => (symbol, true),
            None => (below.last().filter(|s| s.size == 0)?, false),
        };
        // The best of its names.
        let first = below.partition_point(|s| s.start < symbol.start);
        let same = |s: &&Symbol| (vaddr - s.start < s.size) == sized;
        let symbol = below.get(first..)?.iter().find(same)?;
        Some(Found {
            name: name_at(&self.strings, symbol.name)?,
            start: symbol.start,
            sized,
        })
    }
}

/// A defined function, and how good its name is: exported, weak, local.
fn function(entry: &[u8]) -> Option<(Symbol, u8)> {
    let info = *entry.get(4)?;
    let (binding, kind) = (info >> 4, info & 15);
    let symbol = Symbol {
        start: u64_at(entry, 8)?,
        size: u64_at(entry, 16)?,
        name: u32_at(entry, 0)?,
    };
    // Labels of hand-written code have no type; with a size they are functions nevertheless.
    let code =
        kind == elf::STT_FUNC || kind == elf::STT_GNU_IFUNC || (kind == elf::STT_NOTYPE && symbol.size > 0);
    let defined = u16_at(entry, 6)? != elf::SHN_UNDEF && symbol.start != 0 && symbol.name != 0;
    let rank = match binding {
        elf::STB_GLOBAL => 0,
        elf::STB_WEAK => 1,
        _ => 2,
    };
    (code && defined).then_some((symbol, rank))
}

/// A name of a string table.
fn name_at(strings: &[u8], at: u32) -> Option<&str> {
    let rest = strings.get(at as usize..)?;
    let rest = rest.get(..16 << 10).unwrap_or(rest);
    let end = rest.iter().position(|&b| b == 0)?;
    std::str::from_utf8(rest.get(..end)?)
        .ok()
        .filter(|name| !name.is_empty())
}
