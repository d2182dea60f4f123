//! The few parts of an ELF file that unwinding and naming need, read with bounds.
//!
//! Files of a target are hostile input: everything is copied out by offset with checked arithmetic (no mapping, so a file
//! that is truncated under us gives a short read and not SIGBUS), and every count and size has a limit.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use object::elf;

/// Section or table read whole: the `.eh_frame` of the largest browsers is below this.
pub(crate) const MAX_SECTION: u64 = 256 << 20;
/// Program headers read.
const MAX_SEGMENTS: u64 = 512;
/// Section headers read; an object file compiled with one section per function has most.
const MAX_SECTIONS: u64 = 1 << 17;
/// A build id is 20 bytes, or 16, or 8.
const MAX_BUILD_ID: usize = 64;

/// Something that has bytes at offsets.
pub(crate) trait Image {
    /// `len` bytes at `offset`, or none of them.
    fn read_at(&self, offset: u64, len: u64) -> Option<Vec<u8>>;
}

impl Image for File {
    fn read_at(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        // Compared with the size before anything is allocated: a header may claim any length.
        let size = self.metadata().ok()?.len();
        if len > MAX_SECTION || offset.checked_add(len)? > size {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }
}

impl Image for [u8] {
    fn read_at(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        self.get(start..end).map(<[u8]>::to_vec)
    }
}

/// A `PT_LOAD` segment, or the one that holds `.eh_frame_hdr` or the dynamic section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) exec: bool,
    pub(crate) offset: u64,
    pub(crate) vaddr: u64,
    pub(crate) file_size: u64,
    pub(crate) memory_size: u64,
}

/// A section header with its name.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) kind: u32,
    pub(crate) compressed: bool,
    pub(crate) addr: u64,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) link: u32,
}

/// Headers of an x86-64 ELF file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Elf {
    pub(crate) segments: Vec<Segment>,
    pub(crate) sections: Vec<Section>,
    pub(crate) build_id: Vec<u8>,
}

impl Elf {
    /// Reads the headers. None if this is no 64-bit little-endian x86-64 ELF file.
    pub(crate) fn parse(image: &(impl Image + ?Sized)) -> Option<Self> {
        let header = image.read_at(0, 64)?;
        let ident = [
            elf::ELFMAG[0],
            elf::ELFMAG[1],
            elf::ELFMAG[2],
            elf::ELFMAG[3],
            elf::ELFCLASS64,
            elf::ELFDATA2LSB,
        ];
        if header.get(..6)? != ident || u16_at(&header, 18)? != elf::EM_X86_64 {
            return None;
        }
        let mut segments = Vec::new();
        let mut build_id = Vec::new();
        let (phoff, phentsize, phnum) = (u64_at(&header, 32)?, u16_at(&header, 54)?, u16_at(&header, 56)?);
        if phentsize == 56 {
            let table = image.read_at(phoff, u64::from(phnum).min(MAX_SEGMENTS) * 56)?;
            for entry in table.chunks_exact(56) {
                let segment = segment(entry)?;
                if segment.kind == elf::PT_NOTE && build_id.is_empty() && segment.file_size < 1 << 16 {
                    let notes = image.read_at(segment.offset, segment.file_size);
                    build_id = notes.and_then(|n| find_build_id(&n)).unwrap_or_default();
                }
                if [elf::PT_LOAD, elf::PT_GNU_EH_FRAME, elf::PT_DYNAMIC].contains(&segment.kind) {
                    segments.push(segment);
                }
            }
        }
        let sections = sections(image, &header).unwrap_or_default();
        Some(Self {
            segments,
            sections,
            build_id,
        })
    }

    /// The section of that name.
    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    /// Whether Go's linker had a hand in it, as far as sections tell.
    pub(crate) fn is_go(&self) -> bool {
        let go = |name: &str| {
            name.ends_with(".gopclntab") || name.starts_with(".go.") || name == ".note.go.buildid"
        };
        self.sections.iter().any(|s| go(&s.name))
    }

    /// Bytes of a section that has some in the file, uncompressed.
    pub(crate) fn section_data(image: &(impl Image + ?Sized), section: &Section) -> Option<Vec<u8>> {
        if section.kind == elf::SHT_NOBITS || section.compressed || section.size == 0 {
            return None;
        }
        image.read_at(section.offset, section.size.min(MAX_SECTION))
    }

    /// File offset of a virtual address, and how many bytes of its segment the file holds from there.
    pub(crate) fn file_offset(&self, vaddr: u64) -> Option<(u64, u64)> {
        self.segments
            .iter()
            .filter(|s| s.kind == elf::PT_LOAD)
            .find_map(|s| {
                let within = vaddr.checked_sub(s.vaddr).filter(|&w| w < s.file_size)?;
                Some((s.offset.checked_add(within)?, s.file_size - within))
            })
    }

    /// What to subtract from an address in a mapping to get its virtual address in the file.
    ///
    /// Per segment, as a linker may give each its own distance between file offset and address (LLD does).
    pub(crate) fn bias(&self, start: u64, offset: u64, exec: bool) -> Option<u64> {
        let page = |s: &Segment| s.offset & !0xfff;
        let loads = || self.segments.iter().filter(|s| s.kind == elf::PT_LOAD);
        let holds = |s: &Segment| page(s) <= offset && offset < s.offset.saturating_add(s.file_size);
        let segment = loads()
            .find(|s| s.exec == exec && page(s) == offset)
            .or_else(|| loads().find(|s| s.exec == exec && holds(s)))
            .or_else(|| loads().find(|s| holds(s)))?;
        Some(start.wrapping_sub(segment.vaddr.wrapping_add(offset).wrapping_sub(segment.offset)))
    }
}

fn segment(entry: &[u8]) -> Option<Segment> {
    Some(Segment {
        kind: u32_at(entry, 0)?,
        exec: u32_at(entry, 4)? & elf::PF_X != 0,
        offset: u64_at(entry, 8)?,
        vaddr: u64_at(entry, 16)?,
        file_size: u64_at(entry, 32)?,
        memory_size: u64_at(entry, 40)?,
    })
}

fn sections(image: &(impl Image + ?Sized), header: &[u8]) -> Option<Vec<Section>> {
    let (shoff, shentsize) = (u64_at(header, 40)?, u16_at(header, 58)?);
    if shoff == 0 || shentsize != 64 {
        return None;
    }
    let (mut count, mut names_at) = (u64::from(u16_at(header, 60)?), u32::from(u16_at(header, 62)?));
    let first = image.read_at(shoff, 64)?;
    if count == 0 {
        count = u64_at(&first, 32)?;
    }
    if names_at == u32::from(elf::SHN_XINDEX) {
        names_at = u32_at(&first, 40)?;
    }
    let table = image.read_at(shoff, count.min(MAX_SECTIONS) * 64)?;
    let raw: Vec<_> = table.chunks_exact(64).collect();
    let names_header = raw.get(names_at as usize)?;
    let names = image.read_at(u64_at(names_header, 24)?, u64_at(names_header, 32)?.min(16 << 20))?;
    raw.iter()
        .map(|entry| {
            Some(Section {
                name: text_at(&names, u32_at(entry, 0)? as usize).unwrap_or_default(),
                kind: u32_at(entry, 4)?,
                compressed: u64_at(entry, 8)? & u64::from(elf::SHF_COMPRESSED) != 0,
                addr: u64_at(entry, 16)?,
                offset: u64_at(entry, 24)?,
                size: u64_at(entry, 32)?,
                link: u32_at(entry, 40)?,
            })
        })
        .collect()
}

/// The `NT_GNU_BUILD_ID` among notes.
fn find_build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    loop {
        let (name, desc) = (u32_at(notes, 0)? as usize, u32_at(notes, 4)? as usize);
        let kind = u32_at(notes, 8)?;
        let padded = |n: usize| n.checked_add(3).map(|n| n & !3);
        let desc_at = 12usize.checked_add(padded(name)?)?;
        if kind == elf::NT_GNU_BUILD_ID && notes.get(12..16) == Some(b"GNU\0") && desc <= MAX_BUILD_ID {
            return notes.get(desc_at..desc_at.checked_add(desc)?).map(<[u8]>::to_vec);
        }
        notes = notes.get(desc_at.checked_add(padded(desc)?)?..)?;
    }
}

/// A NUL-terminated text in a string table; at most 16 KiB of it.
pub(crate) fn text_at(table: &[u8], at: usize) -> Option<String> {
    let rest = table.get(at..)?;
    let rest = rest.get(..16 << 10).unwrap_or(rest);
    let end = rest.iter().position(|&b| b == 0)?;
    Some(String::from_utf8_lossy(rest.get(..end)?).into_owned())
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}
