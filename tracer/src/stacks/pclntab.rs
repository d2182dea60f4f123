//! Go's own table of functions and lines, which every Go program carries, stripped or not.
//!
//! The runtime needs it to walk stacks and to print panics, so it is there, and right, where symbols and DWARF are not. Its layout
//! changed with Go 1.18 (offsets from the start of the text instead of addresses) and 1.20 (other records of inlined calls).
//! Described by `runtime/symtab.go` and `cmd/link/internal/ld/pcln.go` of Go's sources.
//!
//! ```text
//! header | function names | file indices of compilation units | file names | tables of values by pc | functions
//! functions: (start, offset of its record) … end; records: name, tables for file and line, tables for inlined calls
//! ```
//! A program is hostile input: every offset is checked, and what does not fit together gives no name.

mod locate;
mod values;

#[cfg(test)]
mod tests;

use super::elf::{Image, u32_at, u64_at};
use values::Values;

/// What a function is to the runtime's own walk of stacks (`abi.FuncFlag`).
const TOP_FRAME: u8 = 1;
const SP_WRITE: u8 = 2;
/// Calls inlined into each other at one place.
const MAX_INLINED: usize = 128;
/// A name or a path is shorter.
const MAX_TEXT: usize = 4096;
/// Which of a function's tables tells the inlined call at a pc (`PCDATA_InlTreeIndex`).
const INLINE_INDEX: usize = 2;
/// Which of its data is the tree of inlined calls (`FUNCDATA_InlTree`).
const INLINE_TREE: usize = 3;

/// Which Go wrote it, as far as the layout differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    Go116,
    Go118,
    Go120,
}

impl Version {
    fn of(magic: u32) -> Option<Self> {
        match magic {
            0xffff_fffa => Some(Self::Go116),
            0xffff_fff0 => Some(Self::Go118),
            0xffff_fff1 => Some(Self::Go120),
            _ => None,
        }
    }

    /// Bytes of the header.
    const fn header(self) -> usize {
        if matches!(self, Self::Go116) { 64 } else { 72 }
    }

    /// Bytes of a start, and of an offset, in the list of functions.
    const fn word(self) -> usize {
        if matches!(self, Self::Go116) { 8 } else { 4 }
    }

    /// Bytes of a function's record before its tables; the last of them is the number of its data.
    const fn record(self) -> usize {
        if matches!(self, Self::Go118) { 40 } else { 44 }
    }

    /// Bytes of an inlined call; where its name is, and where the place it was inlined at.
    const fn inlined(self) -> (usize, usize, usize) {
        if matches!(self, Self::Go120) {
            (16, 4, 8)
        } else {
            (20, 12, 16)
        }
    }
}

/// The header: where the parts begin.
#[derive(Clone, Copy, Debug)]
struct Header {
    version: Version,
    functions: usize,
    text: u64,
    names: usize,
    units: usize,
    files: usize,
    values: usize,
    list: usize,
}

impl Header {
    /// Reads it; of an x86-64 program, so with instructions of any length and pointers of 8 bytes.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let version = Version::of(u32_at(bytes, 0)?)?;
        if bytes.get(4..8)? != [0, 0, 1, 8] {
            return None;
        }
        let word = |at: usize| u64_at(bytes, 8 + 8 * at);
        let size = |at: usize| usize::try_from(word(at)?).ok();
        let parts = if version == Version::Go116 { 2 } else { 3 };
        let header = Self {
            version,
            functions: size(0)?,
            text: if parts == 3 { word(2)? } else { 0 },
            names: size(parts)?,
            units: size(parts + 1)?,
            files: size(parts + 2)?,
            values: size(parts + 3)?,
            list: size(parts + 4)?,
        };
        let order = [
            header.names,
            header.units,
            header.files,
            header.values,
            header.list,
        ];
        let rises = order.is_sorted() && header.names >= version.header();
        (rises && header.functions > 0).then_some(header)
    }
}

/// A function's place.
#[derive(Clone, Copy, Debug)]
struct Function {
    /// Its first address.
    start: u64,
    /// The next one's.
    end: u64,
    /// Of its record.
    at: usize,
}

/// One frame, as Go would print it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GoFrame {
    pub(crate) name: String,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
}

/// What lies at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GoCode {
    /// Innermost first; the last is the function that was compiled, the others were inlined into it.
    pub(crate) frames: Vec<GoFrame>,
    /// First address of that function.
    pub(crate) start: u64,
}

/// The table of one file.
#[derive(Debug)]
pub(crate) struct Pclntab {
    bytes: Vec<u8>,
    header: Header,
    /// What starts are counted from; 0 where they are addresses.
    text: u64,
    /// What trees of inlined calls are counted from; 0 where they are addresses. None: not found.
    trees: Option<u64>,
    /// Where the runtime's description of the program lies.
    described: Option<u64>,
}

/// How the runtime walks on from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes between the stack pointer there and the return address.
    pub(crate) size: u32,
    /// Nobody called it.
    pub(crate) top: bool,
    /// It moves the stack pointer in ways that are not described: only a leaf can be walked on from.
    pub(crate) moves_sp: bool,
    /// First address of the function.
    pub(crate) start: u64,
}

impl Pclntab {
    /// How the runtime walks on from an address; None where there is no function, or no table of its frame.
    pub(crate) fn step(&self, pc: u64) -> Option<Step> {
        let function = self.function(pc)?;
        // `funcID`, `flag`, padding and the number of its data end the record.
        let flags = *self
            .bytes
            .get(function.at.checked_add(self.header.version.record() - 3)?)?;
        let table = self.field(&function, 4)?;
        let size = if table == 0 {
            0
        } else {
            self.value(&function, table, pc)?
        };
        Some(Step {
            size: u32::try_from(size).ok()?,
            top: flags & TOP_FRAME != 0,
            moves_sp: flags & SP_WRITE != 0,
            start: function.start,
        })
    }

    /// Calls with every function's name, first address and end, in the order of addresses.
    pub(crate) fn each_function(&self, mut f: impl FnMut(&[u8], u64, u64)) {
        let Some(names) = self.bytes.get(self.header.names..self.header.units) else {
            return;
        };
        for at in 0..self.header.functions {
            let name = self.nth(at).and_then(|function| {
                let from = self.field(&function, 1)? as usize;
                let rest = names.get(from..)?;
                let end = rest.iter().take(MAX_TEXT).position(|&b| b == 0)?;
                Some((rest.get(..end)?, function))
            });
            if let Some((name, function)) = name {
                f(name, function.start, function.end);
            }
        }
    }

    /// Name of the function that holds an address, without what was inlined there.
    pub(crate) fn function_name(&self, pc: u64) -> Option<String> {
        let function = self.function(pc)?;
        self.name(self.field(&function, 1)?)
    }

    /// First address and end of the function that holds an address.
    pub(crate) fn bounds(&self, pc: u64) -> Option<(u64, u64)> {
        let function = self.function(pc)?;
        Some((function.start, function.end))
    }

    /// Where the runtime's own description of the program lies (`runtime.firstmoduledata`).
    pub(crate) const fn described(&self) -> Option<u64> {
        self.described
    }

    /// The table of a Go program; None for any other, and for one that is damaged.
    pub(crate) fn read(image: &(impl Image + ?Sized), elf: &super::elf::Elf) -> Option<Self> {
        locate::read(image, elf)
    }

    /// Takes the table's bytes, in which relocations have been applied.
    fn parse(bytes: Vec<u8>, text: u64) -> Option<Self> {
        let header = Header::parse(&bytes)?;
        let table = Self {
            bytes,
            header,
            text,
            trees: None,
            described: None,
        };
        let room = table.bytes.len().checked_sub(header.list)?;
        let needed = header
            .functions
            .checked_mul(2)?
            .checked_add(1)?
            .checked_mul(header.version.word())?;
        (needed <= room).then_some(table)
    }

    /// Bytes held.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Functions, and what was inlined, at a virtual address; `image` is the file that it was read from. Between functions
    /// there is nothing.
    pub(crate) fn code(
        &self,
        image: &(impl Image + ?Sized),
        elf: &super::elf::Elf,
        pc: u64,
    ) -> Option<GoCode> {
        let function = self.function(pc)?;
        // Every byte of a function has a line; bytes that fill up to the next one have none.
        // Marks that the linker makes have none either.
        let line = self
            .value(&function, self.field(&function, 6)?, pc)
            .filter(|&line| line > 0)?;
        let name = self.name(self.field(&function, 1)?)?;
        let mut code = GoCode {
            frames: Vec::new(),
            start: function.start,
        };
        let place = |pc: u64, line: i32| {
            (
                self.file(&function, pc),
                u32::try_from(line).ok().filter(|&line| line > 0),
            )
        };
        let (mut file, mut line) = place(pc, line);
        let mut at = pc;
        while let Some(index) = self.inline_index(&function, at) {
            let inlined = self.inlined(image, elf, &function, index);
            let Some((inlined, parent)) = inlined.and_then(|(name, parent)| Some((self.name(name)?, parent)))
            else {
                // The line is one of a function whose name is not known.
                (file, line) = (None, None);
                break;
            };
            code.frames.push(GoFrame {
                name: inlined,
                file,
                line,
            });
            if code.frames.len() >= MAX_INLINED {
                return None;
            }
            at = parent;
            let table = self.field(&function, 6)?;
            (file, line) = place(at, self.value(&function, table, at)?);
        }
        code.frames.push(GoFrame { name, file, line });
        Some(code)
    }

    /// The function that holds an address, by the list.
    fn function(&self, pc: u64) -> Option<Function> {
        let pc = pc.checked_sub(self.text)?;
        let (mut low, mut high) = (0, self.header.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.listed(2 * middle)? <= pc {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let at = low.checked_sub(1)?;
        let function = self.nth(at)?;
        (function.start - self.text <= pc && pc < function.end - self.text).then_some(function)
    }

    /// The function of that number.
    fn nth(&self, at: usize) -> Option<Function> {
        let start = self.listed(2 * at)?;
        let record = self
            .header
            .list
            .checked_add(usize::try_from(self.listed(2 * at + 1)?).ok()?)?;
        let end = self.listed(2 * at + 2)?;
        let own = if self.header.version == Version::Go116 {
            u64_at(&self.bytes, record)?
        } else {
            u64::from(u32_at(&self.bytes, record)?)
        };
        // The record repeats the start: a list that points elsewhere is damaged.
        (own == start && start < end).then_some(Function {
            start: self.text.checked_add(start)?,
            end: self.text.checked_add(end)?,
            at: record,
        })
    }

    /// The word of that number in the list of functions.
    fn listed(&self, at: usize) -> Option<u64> {
        let word = self.header.version.word();
        let at = self.header.list.checked_add(at.checked_mul(word)?)?;
        if word == 8 {
            u64_at(&self.bytes, at)
        } else {
            u32_at(&self.bytes, at).map(u64::from)
        }
    }

    /// A 32-bit field of a function's record: 1 its name, 5 the table of files, 6 of lines, 7 how many tables follow, 8 its
    /// compilation unit.
    fn field(&self, function: &Function, number: usize) -> Option<u32> {
        // The start was one word longer before 1.18.
        let longer = self.header.version.word() - 4;
        u32_at(&self.bytes, function.at.checked_add(4 * number + longer)?)
    }

    /// Offset of a further table's values.
    fn table(&self, function: &Function, number: usize) -> Option<u32> {
        let count = self.field(function, 7)? as usize;
        let at = function
            .at
            .checked_add(self.header.version.record() + 4 * number)?;
        (number < count).then(|| u32_at(&self.bytes, at))?
    }

    /// Address of the tree of inlined calls.
    fn tree(&self, function: &Function) -> Option<u64> {
        let record = self.header.version.record();
        let count = *self.bytes.get(function.at.checked_add(record - 1)?)?;
        if usize::from(count) <= INLINE_TREE {
            return None;
        }
        let tables = (self.field(function, 7)? as usize).checked_mul(4)?;
        let data = function.at.checked_add(record)?.checked_add(tables)?;
        if self.header.version == Version::Go116 {
            let data = data.checked_add(7)? & !7;
            return u64_at(&self.bytes, data.checked_add(8 * INLINE_TREE)?).filter(|&tree| tree != 0);
        }
        let offset = u32_at(&self.bytes, data.checked_add(4 * INLINE_TREE)?)?;
        // All ones: none.
        (offset != u32::MAX).then(|| self.trees?.checked_add(u64::from(offset)))?
    }

    /// A table's value at an address; None outside what it covers.
    fn value(&self, function: &Function, table: u32, pc: u64) -> Option<i32> {
        let from = self.header.values.checked_add(table as usize)?;
        let bytes = self.bytes.get(..self.header.list)?.get(from..)?;
        let within = pc.checked_sub(function.start)?;
        Values::new(bytes)
            .find(|run| within < run.end)
            .map(|run| run.value)
    }

    /// Which inlined call an address belongs to.
    fn inline_index(&self, function: &Function, pc: u64) -> Option<u32> {
        let table = self.table(function, INLINE_INDEX).filter(|&table| table != 0)?;
        u32::try_from(self.value(function, table, pc)?).ok()
    }

    /// Offset of an inlined function's name, and an address in its caller that stands for the call.
    fn inlined(
        &self,
        image: &(impl Image + ?Sized),
        elf: &super::elf::Elf,
        function: &Function,
        index: u32,
    ) -> Option<(u32, u64)> {
        let (size, name, place) = self.header.version.inlined();
        let at = self
            .tree(function)?
            .checked_add(u64::from(index).checked_mul(size as u64)?)?;
        let (offset, have) = elf.file_offset(at)?;
        let record = image
            .read_at(offset, size as u64)
            .filter(|_| have >= size as u64)?;
        let parent = function.start.checked_add(u64::from(u32_at(&record, place)?))?;
        (parent < function.end).then_some((u32_at(&record, name)?, parent))
    }

    fn name(&self, offset: u32) -> Option<String> {
        let names = self.bytes.get(self.header.names..self.header.units)?;
        text(names, offset as usize).map(printed)
    }

    fn file(&self, function: &Function, pc: u64) -> Option<String> {
        let index = self.value(function, self.field(function, 5)?, pc)?;
        let unit = self.field(function, 8)?.checked_add(u32::try_from(index).ok()?)? as usize;
        let units = self.bytes.get(self.header.units..self.header.files)?;
        let offset = u32_at(units, unit.checked_mul(4)?)?;
        text(
            self.bytes.get(self.header.files..self.header.values)?,
            offset as usize,
        )
    }
}

/// A name as Go itself prints it: type arguments, which may be long and tell little, are left out.
fn printed(name: String) -> String {
    match (name.find('['), name.rfind(']')) {
        (Some(open), Some(close)) if open < close => {
            let (head, tail) = (name.get(..open), name.get(close + 1..));
            format!("{}[...]{}", head.unwrap_or_default(), tail.unwrap_or_default())
        }
        _ => name,
    }
}

/// The text that begins there; not in the middle of another.
fn text(texts: &[u8], at: usize) -> Option<String> {
    let begins = at == 0 || texts.get(at.checked_sub(1)?) == Some(&0);
    let rest = texts.get(at..).filter(|_| begins)?;
    let end = rest.iter().take(MAX_TEXT).position(|&b| b == 0)?;
    let text = rest.get(..end).filter(|text| !text.is_empty())?;
    Some(String::from_utf8_lossy(text).into_owned())
}
