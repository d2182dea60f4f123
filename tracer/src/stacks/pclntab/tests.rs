//! Tables made by hand, of each layout, and damaged ones. Those that real compilers made are in `stacks/tests/go.rs`.

use proptest::prelude::*;

use super::*;
use crate::stacks::elf::Elf;

/// Where the one segment of the file is mapped.
const BASE: u64 = 0x40_0000;
/// Where the functions begin, and each one's length.
const TEXT: u64 = 0x10_0000;
const LENGTH: u64 = 0x100;

/// A file: `main.outer` at the start, into which `main.middle` is inlined from 0x20 and `main.inner` into that from 0x40 to 0x60;
/// then `main.other`, whose last 0x80 bytes are padding.
struct Made {
    file: Vec<u8>,
    /// Offset of the table, and its length.
    table: (usize, usize),
}

/// Bytes with words appended.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn word(&mut self, size: usize, value: u64) -> &mut Self {
        self.0.extend(&value.to_le_bytes()[..size]);
        self
    }

    fn words(&mut self, size: usize, values: &[u64]) -> &mut Self {
        for &value in values {
            self.word(size, value);
        }
        self
    }

    fn align(&mut self, to: usize) -> &mut Self {
        while !self.0.len().is_multiple_of(to) {
            self.0.push(0);
        }
        self
    }
}

/// Runs of (value, length) as the linker writes them; values change by less than 64.
fn runs(into: &mut Out, runs: &[(i64, u8)]) -> u64 {
    let (at, mut last) = (into.0.len() as u64, -1);
    for &(value, length) in runs {
        let change = value - last;
        let coded = (change << 1 ^ change >> 63) as u64;
        for byte in [
            coded as u8 & 0x7f | if coded > 0x7f { 0x80 } else { 0 },
            (coded >> 7) as u8,
        ] {
            into.0.push(byte);
            if byte & 0x80 == 0 {
                break;
            }
        }
        for byte in [length & 0x7f | 0x80, length >> 7] {
            into.0.push(byte);
        }
        last = value;
    }
    into.0.push(0);
    at
}

#[expect(clippy::too_many_lines, reason = "a whole file, in order")]
fn make(version: Version) -> Made {
    let old = version == Version::Go116;
    let table_at = 0x1000u64;
    let (text, trees) = (BASE + TEXT, BASE + 0x800);
    let texts = |list: &[&str]| -> (Vec<u8>, Vec<u64>) {
        let mut bytes = Vec::new();
        let at = list
            .iter()
            .map(|text| {
                let at = bytes.len() as u64;
                bytes.extend(text.bytes().chain([0]));
                at
            })
            .collect();
        (bytes, at)
    };
    let (names, name) = texts(&["main.outer", "main.middle", "main.inner[int]", "main.other"]);
    let (files, file) = texts(&["/src/a.go", "/src/b.go"]);
    let mut values = Out(vec![0]);
    let file_runs = runs(&mut values, &[(0, 0x40), (1, 0x20), (0, 0xa0)]);
    let line_runs = runs(
        &mut values,
        &[(10, 0x20), (20, 0x20), (30, 0x20), (21, 0x20), (11, 0x80)],
    );
    let index_runs = runs(
        &mut values,
        &[(-1, 0x20), (0, 0x20), (1, 0x20), (0, 0x20), (-1, 0x80)],
    );
    let (other_files, other_lines) = (runs(&mut values, &[(1, 0x80)]), runs(&mut values, &[(40, 0x80)]));

    // Records of functions: they follow the list of starts.
    let list = if old { 8 * 5 } else { 4 * 5 };
    let mut records = Out(vec![0; list]);
    let mut record = |start: u64, name: u64, files: u64, lines: u64, index: Option<u64>| {
        records.align(8);
        let at = records.0.len() as u64;
        records
            .word(if old { 8 } else { 4 }, start)
            .words(4, &[name, 0, 0, 0, files, lines]);
        records.word(4, if index.is_some() { 3 } else { 0 }).word(4, 0);
        if version == Version::Go120 {
            records.word(4, 1);
        }
        records
            .word(1, 0)
            .word(1, 0)
            .word(1, 0)
            .word(1, if index.is_some() { 4 } else { 0 });
        if let Some(index) = index {
            records.words(4, &[0, 0, index]);
            let none = u64::from(u32::MAX);
            if old {
                records.align(8).words(8, &[0, 0, 0, trees]);
            } else {
                records.words(4, &[none, none, none, 0]);
            }
        }
        at
    };
    let zero = if old { text } else { 0 };
    let first = record(zero, name[0], file_runs, line_runs, Some(index_runs));
    let second = record(zero + LENGTH, name[3], other_files, other_lines, None);
    let starts = [zero, first, zero + LENGTH, second, zero + 2 * LENGTH];
    let mut head = Out::default();
    head.words(if old { 8 } else { 4 }, &starts);
    records.0[..list].copy_from_slice(&head.0);

    let header = version.header() as u64;
    let mut table = Out::default();
    let magic = match version {
        Version::Go116 => 0xffff_fffa,
        Version::Go118 => 0xffff_fff0,
        Version::Go120 => 0xffff_fff1,
    };
    let units = (header + names.len() as u64).next_multiple_of(4);
    let texts_at = units + 8;
    let values_at = texts_at + files.len() as u64;
    let list_at = (values_at + values.0.len() as u64).next_multiple_of(8);
    table.word(4, magic).words(1, &[0, 0, 1, 8]).words(8, &[2, 2]);
    if !old {
        // As since 1.26: the header does not tell.
        table.word(8, 0);
    }
    table.words(8, &[header, units, texts_at, values_at, list_at]);
    table.0.extend(&names);
    table.align(4).words(4, &file);
    table.0.extend(&files);
    table.0.extend(&values.0);
    table.align(8).0.extend(&records.0);

    // Inlined calls: (parent, …, name, place): `middle` called at 0x10 of outer, `inner` at 0x30, which is in `middle`.
    let mut tree = Out::default();
    for (parent, name, place) in [(0xffffu64, name[1], 0x10u64), (0, name[2], 0x30)] {
        if version == Version::Go120 {
            tree.word(4, 0).words(4, &[name, place, 1]);
        } else {
            tree.word(2, parent).word(2, 0).words(4, &[0, 1, name, place]);
        }
    }

    // What the runtime knows of the program.
    let mut words = [0u64; 56];
    words[0] = BASE + table_at;
    words[1] = BASE + table_at + header;
    (words[20], words[21], words[22]) = (text, text + 2 * LENGTH, text);
    words[39] = BASE + 0x600;
    words[40] = trees;

    let mut file = Out::default();
    file.0.extend([0x7f, b'E', b'L', b'F', 2, 1, 1]);
    file.align(16)
        .words(2, &[2, 62])
        .word(4, 1)
        .words(8, &[0, 64, 0])
        .word(4, 0)
        .words(2, &[64, 56, 1, 64, 0, 0]);
    let size = 0x4000;
    file.words(4, &[1, 4]).words(8, &[0, BASE, BASE, size, size, 8]);
    let mut put = |at: usize, bytes: &[u8]| {
        file.0.resize(size as usize, 0);
        file.0[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let mut described = Out::default();
    described.words(8, &words);
    put(0x400, &described.0);
    put(0x800, &tree.0);
    put(table_at as usize, &table.0);
    Made {
        file: file.0,
        table: (table_at as usize, table.0.len()),
    }
}

fn read(file: &[u8]) -> Option<(Pclntab, Elf)> {
    let elf = Elf::parse(file)?;
    Some((Pclntab::read(file, &elf)?, elf))
}

#[test]
fn each_layout_tells_functions_lines_and_what_was_inlined() {
    for version in [Version::Go116, Version::Go118, Version::Go120] {
        let made = make(version);
        let (table, elf) = read(&made.file).unwrap_or_else(|| panic!("{version:?}"));
        let told = |offset: u64| {
            let code = table.code(&made.file[..], &elf, BASE + TEXT + offset)?;
            assert_eq!(code.start, BASE + TEXT + (offset & !0xff), "{version:?}");
            let frame = |f: &GoFrame| {
                format!(
                    "{} {}:{}",
                    f.name,
                    f.file.as_deref().unwrap_or("?"),
                    f.line.unwrap_or(0)
                )
            };
            Some(code.frames.iter().map(frame).collect::<Vec<_>>().join(" < "))
        };
        let wanted = [
            (0x00, Some("main.outer /src/a.go:10")),
            (0x1f, Some("main.outer /src/a.go:10")),
            (0x20, Some("main.middle /src/a.go:20 < main.outer /src/a.go:10")),
            (
                0x40,
                Some("main.inner[...] /src/b.go:30 < main.middle /src/a.go:20 < main.outer /src/a.go:10"),
            ),
            (0x60, Some("main.middle /src/a.go:21 < main.outer /src/a.go:10")),
            (0x80, Some("main.outer /src/a.go:11")),
            (0x100, Some("main.other /src/b.go:40")),
            // Between functions, and past the last.
            (0x180, None),
            (0x200, None),
            (0x4000, None),
        ];
        for (offset, names) in wanted {
            assert_eq!(told(offset).as_deref(), names, "{version:?} {offset:#x}");
        }
        assert_eq!(table.code(&made.file[..], &elf, BASE + TEXT - 1), None);
        assert_eq!(table.code(&made.file[..], &elf, 0), None);
    }
}

/// Without the runtime's description nothing tells what offsets count from, and so there are no names.
#[test]
fn a_table_that_nothing_refers_to_is_not_believed() {
    let mut made = make(Version::Go120);
    made.file[0x400..0x800].fill(0);
    assert!(read(&made.file).is_none());
    let mut made = make(Version::Go120);
    made.file[0x400 + 20 * 8] ^= 8;
    assert!(read(&made.file).is_none(), "the first function is another");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_tables_are_read_to_an_end(
        version in 0usize..3,
        changes in proptest::collection::vec((0usize..1200, any::<u8>()), 1..12),
        cut in prop_oneof![Just(0usize), 0usize..700],
    ) {
        let mut made = make([Version::Go116, Version::Go118, Version::Go120][version]);
        let (at, len) = made.table;
        for (place, byte) in changes {
            // Anywhere in the table, or in the tree of inlined calls.
            let place = if place < len { at + place } else { 0x800 + place % 40 };
            made.file[place] = byte;
        }
        let file = &made.file[..made.file.len() - cut];
        if let Some((table, elf)) = read(file) {
            for offset in (0..0x300).step_by(7) {
                if let Some(code) = table.code(file, &elf, BASE + TEXT + offset) {
                    prop_assert!(!code.frames.is_empty() && code.frames.len() <= MAX_INLINED + 1);
                }
            }
        }
    }

    #[test]
    fn any_bytes_behind_a_header(bytes in proptest::collection::vec(any::<u8>(), 0..2000), version in 0usize..3) {
        let mut made = make([Version::Go116, Version::Go118, Version::Go120][version]);
        let (at, len) = made.table;
        for (to, from) in made.file[at + 72..at + len].iter_mut().zip(&bytes) {
            *to = *from;
        }
        if let Some((table, elf)) = read(&made.file) {
            for offset in (0..0x300).step_by(7) {
                table.code(&made.file[..], &elf, BASE + TEXT + offset);
            }
        }
    }
}
