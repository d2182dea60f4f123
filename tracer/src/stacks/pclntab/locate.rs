//! Where a program keeps the table, and what its offsets are counted from.
//!
//! Offsets count from the start of Go's text, which is not always the start of `.text` (C's start-up code may come first), and which
//! the header has not told since Go 1.26. The runtime's own description of the program (`runtime.firstmoduledata`) does: it
//! begins with the table's address. In a position-independent program the addresses in it are relocations.

use super::{Function, GoCode, Pclntab, Version};
use crate::stacks::elf::{Elf, Image, MAX_SECTION, Segment, u32_at, u64_at};
use object::elf;

/// Bytes searched at once.
const CHUNK: u64 = 1 << 20;
/// Places that may hold the table, or its description, tried.
const MAX_TRIED: usize = 16;
/// Relocations read.
const MAX_RELOCATIONS: u64 = 4 << 20;
/// Words of the description that are of use.
const WORDS: usize = 56;
/// Number of the description's word that points to the names, the first function, past the last, and to the text.
const NAMES: usize = 1;
const FIRST: usize = 20;
const LAST: usize = 21;
const TEXT: usize = 22;
/// Words among which is the one that trees of inlined calls are counted from; it moved with Go 1.20 and 1.27.
const TREES: std::ops::Range<usize> = 36..WORDS;
/// Functions with inlined calls by which that word is known.
const PROOFS: usize = 64;

/// Finds and reads it.
pub(super) fn read(image: &(impl Image + ?Sized), elf: &Elf) -> Option<Pclntab> {
    let named: Vec<_> = elf
        .sections
        .iter()
        .filter(|s| s.name.ends_with(".gopclntab") && s.kind != elf::SHT_NOBITS)
        .map(|s| (s.addr, s.offset, s.size))
        .collect();
    let places = if !named.is_empty() {
        named
    } else if elf.sections.is_empty() || elf.is_go() {
        // Without section headers, and where a linker put it into another section.
        search(image, elf)
    } else {
        return None;
    };
    let relocations = Relocations::of(image, elf);
    places
        .into_iter()
        .take(MAX_TRIED)
        .find_map(|(addr, offset, size)| table(image, elf, &relocations, addr, offset, size))
}

fn table(
    image: &(impl Image + ?Sized),
    elf: &Elf,
    relocations: &Relocations<'_, impl Image + ?Sized>,
    addr: u64,
    offset: u64,
    size: u64,
) -> Option<Pclntab> {
    let mut bytes = image.read_at(offset, size.min(MAX_SECTION))?;
    let mut described = Vec::new();
    relocations.each(|place, to| {
        if to == addr && described.len() < MAX_TRIED {
            described.push(place);
        }
        put(&mut bytes, addr, place, to);
    });
    let mut table = Pclntab::parse(bytes, 0)?;
    described.extend(pointers(image, elf, addr, table.header.names as u64));
    let words = descriptions(image, elf, relocations, &described)
        .into_iter()
        .find(|(_, words)| describes(words, &table, addr));
    match words {
        Some((place, words)) => {
            table.described = Some(place);
            if table.header.version != Version::Go116 {
                table.text = *words.get(TEXT)?;
                table.trees = trees(image, elf, &mut table, &words);
            }
        }
        // The older header tells it too; a list of addresses needs nothing.
        None if table.header.text != 0 => table.text = table.header.text,
        None if table.header.version == Version::Go116 => {}
        None => return None,
    }
    Some(table)
}

/// Whether these words describe a program with this table: the runtime refuses to start unless they agree.
fn describes(words: &[u64], table: &Pclntab, addr: u64) -> bool {
    let word = |at: usize| words.get(at).copied().unwrap_or(0);
    let text = if table.header.version == Version::Go116 {
        0
    } else {
        word(TEXT)
    };
    let is = |listed: usize, address: u64| {
        table
            .listed(listed)
            .and_then(|start| start.checked_add(text))
            .is_some_and(|start| start == address)
    };
    word(0) == addr
        && word(NAMES) == addr.wrapping_add(table.header.names as u64)
        && is(0, word(FIRST))
        && is(2 * table.header.functions, word(LAST))
}

/// What trees of inlined calls are counted from: the word with which those of many functions make sense.
fn trees(image: &(impl Image + ?Sized), elf: &Elf, table: &mut Pclntab, words: &[u64]) -> Option<u64> {
    table.trees = Some(0);
    let with_tree = |at: usize| {
        let function = table.nth(at)?;
        table.tree(&function)?;
        let index = table.table(&function, super::INLINE_INDEX).filter(|&t| t != 0)?;
        let from = table.header.values.checked_add(index as usize)?;
        let runs = super::Values::new(table.bytes.get(from..)?);
        let mut runs = runs.scan(0, |start, run| {
            Some((std::mem::replace(start, run.end), run.value))
        });
        let (start, _) = runs.find(|&(_, value)| value >= 0)?;
        function.start.checked_add(start).map(|pc| (function, pc))
    };
    let proofs: Vec<_> = (0..table.header.functions)
        .filter_map(with_tree)
        .take(PROOFS)
        .collect();
    if proofs.is_empty() {
        return None;
    }
    let mut candidates: Vec<u64> = words.get(TREES)?.iter().copied().filter(|&w| w != 0).collect();
    candidates.dedup();
    candidates.into_iter().find(|&candidate| {
        table.trees = Some(candidate);
        let whole = |code: GoCode| {
            code.frames.len() > 1 && code.frames.iter().all(|f| f.file.is_some() && f.line.is_some())
        };
        let sound = |pc: u64| table.code(image, elf, pc).is_some_and(whole);
        // Zeros would pass for the table's first name, called at the function's start.
        let named = |function: &Function, pc: u64| {
            let index = table.inline_index(function, pc)?;
            Some(table.inlined(image, elf, function, index)?.0 != 0)
        };
        let nonzero = proofs
            .iter()
            .filter(|(f, pc)| named(f, *pc) == Some(true))
            .count();
        2 * nonzero > proofs.len() && proofs.iter().all(|&(_, pc)| sound(pc))
    })
}

/// Every place of the file's segments that looks like the table's header: (address, file offset, bytes up to the segment's end).
fn search(image: &(impl Image + ?Sized), elf: &Elf) -> Vec<(u64, u64, u64)> {
    let mut found = Vec::new();
    for segment in loads(elf) {
        each_word(image, segment, |at, bytes, within| {
            let tail = [0, 0, 1, 8];
            if bytes.get(within + 4..within + 8) == Some(&tail)
                && u32_at(bytes, within).and_then(Version::of).is_some()
                && found.len() < MAX_TRIED
                && let Some(header) = image.read_at(segment.offset + at, 72)
                && super::Header::parse(&header).is_some()
            {
                found.push((
                    segment.vaddr.wrapping_add(at),
                    segment.offset + at,
                    segment.file_size - at,
                ));
            }
        });
    }
    found
}

/// Where data holds the table's address, followed by that of its names.
fn pointers(image: &(impl Image + ?Sized), elf: &Elf, addr: u64, names: u64) -> Vec<u64> {
    let mut found = Vec::new();
    for segment in loads(elf).filter(|s| !s.exec) {
        each_word(image, segment, |at, bytes, within| {
            if u64_at(bytes, within) == Some(addr)
                && u64_at(bytes, within + 8) == Some(addr.wrapping_add(names))
                && found.len() < MAX_TRIED
            {
                found.push(segment.vaddr.wrapping_add(at));
            }
        });
    }
    found
}

fn loads(elf: &Elf) -> impl Iterator<Item = &Segment> {
    elf.segments.iter().filter(|s| s.kind == elf::PT_LOAD)
}

/// Calls with each aligned place of a segment: its offset there, bytes that hold it, and where in them. 16 bytes follow it, unless
/// the segment ends.
fn each_word(image: &(impl Image + ?Sized), segment: &Segment, mut f: impl FnMut(u64, &[u8], usize)) {
    let size = segment.file_size.min(MAX_SECTION);
    let mut from = segment.vaddr.wrapping_neg() & 7;
    while from < size {
        let len = (size - from).min(CHUNK + 16);
        let Some(bytes) = segment
            .offset
            .checked_add(from)
            .and_then(|at| image.read_at(at, len))
        else {
            return;
        };
        for within in (0..bytes.len().min(CHUNK as usize)).step_by(8) {
            f(from + within as u64, &bytes, within);
        }
        from += CHUNK;
    }
}

/// The words at these addresses, as they are when the program runs at its own addresses.
fn descriptions(
    image: &(impl Image + ?Sized),
    elf: &Elf,
    relocations: &Relocations<'_, impl Image + ?Sized>,
    places: &[u64],
) -> Vec<(u64, Vec<u64>)> {
    let mut all: Vec<(u64, Vec<u8>)> = places
        .iter()
        .filter_map(|&place| {
            let (offset, have) = elf.file_offset(place)?;
            Some((place, image.read_at(offset, have.min(8 * WORDS as u64))?))
        })
        .collect();
    relocations.each(|place, to| {
        for (start, bytes) in &mut all {
            put(bytes, *start, place, to);
        }
    });
    let words = |bytes: Vec<u8>| {
        (0..bytes.len() / 8)
            .filter_map(|at| u64_at(&bytes, 8 * at))
            .collect()
    };
    all.into_iter()
        .map(|(place, bytes)| (place, words(bytes)))
        .collect()
}

/// Writes a relocated word into bytes that are at `start`.
fn put(bytes: &mut [u8], start: u64, place: u64, to: u64) {
    let at = place.checked_sub(start).and_then(|at| usize::try_from(at).ok());
    if let Some(at) = at
        && let Some(word) = at.checked_add(8).and_then(|end| bytes.get_mut(at..end))
    {
        word.copy_from_slice(&to.to_le_bytes());
    }
}

/// A program's list of addresses to add its place in memory to.
struct Relocations<'a, I: ?Sized> {
    image: &'a I,
    offset: u64,
    count: u64,
}

impl<'a, I: Image + ?Sized> Relocations<'a, I> {
    fn of(image: &'a I, elf: &Elf) -> Self {
        let find = || {
            let dynamic = elf.segments.iter().find(|s| s.kind == elf::PT_DYNAMIC)?;
            let bytes = image.read_at(dynamic.offset, dynamic.file_size.min(64 << 10))?;
            let value = |tag: u64| {
                let mut entries = bytes.chunks_exact(16);
                entries
                    .find(|e| u64_at(e, 0) == Some(tag))
                    .and_then(|e| u64_at(e, 8))
            };
            let (table, size) = (value(elf::DT_RELA as u64)?, value(elf::DT_RELASZ as u64)?);
            Some((elf.file_offset(table)?.0, size / 24))
        };
        let (offset, count) = find().unwrap_or((0, 0));
        Self {
            image,
            offset,
            count: count.min(MAX_RELOCATIONS),
        }
    }

    /// Calls with each place and what it points to.
    fn each(&self, mut f: impl FnMut(u64, u64)) {
        const AT_ONCE: u64 = 32 << 10;
        for from in (0..self.count).step_by(AT_ONCE as usize) {
            let len = (self.count - from).min(AT_ONCE) * 24;
            let Some(bytes) = self
                .offset
                .checked_add(from * 24)
                .and_then(|at| self.image.read_at(at, len))
            else {
                return;
            };
            for entry in bytes.chunks_exact(24) {
                if u32_at(entry, 8) == Some(elf::R_X86_64_RELATIVE)
                    && let (Some(place), Some(to)) = (u64_at(entry, 0), u64_at(entry, 16))
                {
                    f(place, to);
                }
            }
        }
    }
}
