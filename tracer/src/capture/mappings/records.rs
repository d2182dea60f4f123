//! The records of a perf ring that tell of mappings. No length in them is trusted.

use crate::proc::maps::{Change, Map, What};

const MMAP2: u32 = 10;
const COMM: u32 = 3;
const LOST: u32 = 2;
/// In a record of [`COMM`]: the name changed because the program did.
const MISC_COMM_EXEC: u16 = 1 << 13;
/// In a record of [`MMAP2`]: a build id in place of the inode, which is never asked for.
const MISC_BUILD_ID: u16 = 1 << 14;
/// Type, misc and size.
const HEADER: usize = 8;
/// What `sample_id_all` adds at the end: the time.
const TAIL: usize = 8;
/// Where the name in a record of [`MMAP2`] begins, after the header.
const NAME: usize = 64;

/// One record that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Change(Change),
    /// So many records did not fit.
    Lost(u64),
}

/// Hands on what is understood of `bytes`. False when they end within a record, or in none.
pub(super) fn parse(mut bytes: &[u8], mut each: impl FnMut(Record)) -> bool {
    while !bytes.is_empty() {
        let Some((kind, misc, record, rest)) = split(bytes) else {
            return false;
        };
        let record = match kind {
            MMAP2 if misc & MISC_BUILD_ID == 0 => mapped(record),
            COMM if misc & MISC_COMM_EXEC != 0 => executed(record),
            LOST => u64_at(record, 8).map(Record::Lost),
            _ => None,
        };
        if let Some(record) = record {
            each(record);
        }
        bytes = rest;
    }
    true
}

/// Type, misc and body of the first record, and what follows it.
fn split(bytes: &[u8]) -> Option<(u32, u16, &[u8], &[u8])> {
    let kind = u32_at(bytes, 0)?;
    let misc = u16_at(bytes, 4)?;
    let size = usize::from(u16_at(bytes, 6)?);
    let (record, rest) = bytes.split_at_checked(size)?;
    Some((kind, misc, record.get(HEADER..)?, rest))
}

/// `pid, tid, addr, len, pgoff, maj, min, ino, ino_generation, prot, flags, filename[], time`.
fn mapped(record: &[u8]) -> Option<Record> {
    let (start, len) = (u64_at(record, 8)?, u64_at(record, 16)?);
    let (major, minor) = (u32_at(record, 32)?, u32_at(record, 36)?);
    let (prot, flags) = (u32_at(record, 56)?, u32_at(record, 60)?);
    let end = start.checked_add(len).filter(|&end| end > start)?;
    // `/proc/PID/maps` says 0 where there is no file; the kernel's own number is the address.
    let inode = u64_at(record, 40)?;
    let offset = if inode == 0 { 0 } else { u64_at(record, 24)? };
    let has = |bit: libc::c_int| prot & bit as u32 != 0;
    let map = Map {
        start,
        end,
        read: has(libc::PROT_READ),
        write: has(libc::PROT_WRITE),
        exec: has(libc::PROT_EXEC),
        shared: flags & libc::MAP_SHARED as u32 != 0,
        offset,
        device: u64::from(major) << 32 | u64::from(minor),
        inode,
        name: name(record)?.into(),
    };
    change(record, What::Mapped(map))
}

/// As `/proc/PID/maps` would name it.
fn name(record: &[u8]) -> Option<String> {
    let padded = record.get(NAME..record.len().checked_sub(TAIL)?)?;
    let end = padded.iter().position(|&byte| byte == 0)?;
    let name = String::from_utf8_lossy(padded.get(..end)?);
    Some(match &*name {
        "//anon" => String::new(),
        _ => name.into_owned(),
    })
}

/// `pid, tid, comm[], time`.
fn executed(record: &[u8]) -> Option<Record> {
    change(record, What::Exec)
}

fn change(record: &[u8], what: What) -> Option<Record> {
    let ts_ns = u64_at(record, record.len().checked_sub(TAIL)?)?;
    let tgid = u32_at(record, 0)?;
    Some(Record::Change(Change { ts_ns, tgid, what }))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(misc.to_ne_bytes());
        bytes.extend(((HEADER + body.len()) as u16).to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    /// A file of 9:2, inode 77, at 0x7f0000001000.
    fn mapping(name: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend([41u32, 42].map(u32::to_ne_bytes).concat());
        body.extend(
            [0x7f00_0000_1000u64, 0x3000, 0x2000]
                .map(u64::to_ne_bytes)
                .concat(),
        );
        body.extend([9u32, 2].map(u32::to_ne_bytes).concat());
        body.extend([77u64, 1].map(u64::to_ne_bytes).concat());
        body.extend([5u32, 2].map(u32::to_ne_bytes).concat());
        body.extend(name);
        body.resize((body.len() + 1).next_multiple_of(8), 0);
        body.extend(5_000u64.to_ne_bytes());
        record(MMAP2, 2, &body)
    }

    fn all(bytes: &[u8]) -> (Vec<Record>, bool) {
        let mut records = Vec::new();
        let whole = parse(bytes, |record| records.push(record));
        (records, whole)
    }

    #[test]
    fn a_record_of_each_kind() {
        let mut comm = [41u32, 41].map(u32::to_ne_bytes).concat();
        comm.extend(*b"short\0\0\0");
        comm.extend(4_000u64.to_ne_bytes());
        let lost = [1u64, 3, 6_000].map(u64::to_ne_bytes).concat();
        let bytes = [
            record(COMM, MISC_COMM_EXEC, &comm),
            record(COMM, 0, &comm),
            record(99, 0, &[1; 24]),
            mapping(b"/usr/lib/a b.so"),
            record(LOST, 0, &lost),
        ]
        .concat();
        let (records, whole) = all(&bytes);
        assert!(whole);
        let [Record::Change(exec), Record::Change(mapped), Record::Lost(3)] = &records[..] else {
            panic!("{records:?}");
        };
        assert_eq!((exec.ts_ns, exec.tgid, &exec.what), (4_000, 41, &What::Exec));
        assert_eq!((mapped.ts_ns, mapped.tgid), (5_000, 41));
        let What::Mapped(map) = &mapped.what else {
            panic!("{mapped:?}")
        };
        assert_eq!((map.start, map.end), (0x7f00_0000_1000, 0x7f00_0000_4000));
        assert_eq!((map.offset, map.device, map.inode), (0x2000, 9 << 32 | 2, 77));
        assert!(map.read && !map.write && map.exec && !map.shared);
        assert_eq!(&*map.name, "/usr/lib/a b.so");
    }

    #[test]
    fn any_name_is_a_name() {
        for (name, expected) in [
            (&b"//anon"[..], ""),
            (b"", ""),
            (b"[vdso]", "[vdso]"),
            (b"/tmp/\xff\n", "/tmp/\u{fffd}\n"),
        ] {
            let (records, whole) = all(&mapping(name));
            assert!(whole);
            let [Record::Change(change)] = &records[..] else {
                panic!("{records:?}")
            };
            assert!(matches!(&change.what, What::Mapped(map) if &*map.name == expected));
        }
    }

    #[test]
    fn a_record_cut_short_ends_it() {
        let bytes = mapping(b"/bin/true");
        for end in 1..bytes.len() {
            assert_eq!(all(&bytes[..end]), (Vec::new(), false));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            all(&bytes);
        }

        #[test]
        fn any_body_parses(bodies in proptest::collection::vec((0u32..12, any::<u16>(), proptest::collection::vec(any::<u8>(), 0..120)), 0..5)) {
            let bytes: Vec<u8> = bodies.iter().flat_map(|(kind, misc, body)| record(*kind, *misc, body)).collect();
            let (_, whole) = all(&bytes);
            prop_assert!(whole);
        }

        #[test]
        fn a_mapping_with_bytes_changed(changes in proptest::collection::vec((0usize..120, any::<u8>()), 1..20)) {
            let mut bytes = mapping(b"/usr/lib/libc.so.6");
            for (at, byte) in changes {
                if let Some(old) = bytes.get_mut(at) {
                    *old = byte;
                }
            }
            all(&bytes);
        }
    }
}
