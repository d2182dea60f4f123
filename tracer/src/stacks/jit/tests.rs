//! Maps as files: what is read of them, and when.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{chown, symlink};
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::stacks::{End, Frame};

/// A folder as a process's root, with its map.
struct Root {
    folder: TempDir,
    place: Place,
}

impl Root {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        let place = Place::below(File::open(folder.path()).unwrap(), "tmp/perf-7.map");
        Self { folder, place }
    }

    fn map(&self) -> PathBuf {
        self.folder.path().join("tmp/perf-7.map")
    }
}

fn frame(address: u64) -> Frame {
    Frame {
        module: None,
        address,
        offset: 0,
        return_address: false,
        guessed: false,
    }
}

/// Names of addresses by a map's text.
fn names(text: &[u8], addresses: &[u64]) -> Vec<Option<(String, u64)>> {
    let root = Root::new();
    fs::write(root.map(), text).unwrap();
    let (file, _) = root.place.open().unwrap();
    let told = |named: Named| (named.functions[0].name.to_string(), named.offset.unwrap());
    file::find(file, addresses)
        .into_iter()
        .map(|named| named.map(told))
        .collect()
}

#[test]
fn the_last_line_that_covers_an_address_counts() {
    let text = b"1000 100 a\nnonsense\n3000 10 far\n1040 20 b\n0x1000 0x10 c\n2000 10 cut short by the en";
    let found = names(
        text,
        &[
            0xfff, 0x1000, 0x1010, 0x1040, 0x105f, 0x1060, 0x10ff, 0x1100, 0x2000, 0x3008,
        ],
    );
    let some = |name: &str, offset| Some((name.to_owned(), offset));
    assert_eq!(
        found,
        [
            None,
            some("c", 0),
            some("a", 0x10),
            some("b", 0),
            some("b", 0x1f),
            some("a", 0x60),
            some("a", 0xff),
            None,
            // A line without an end may go on.
            None,
            some("far", 8),
        ]
    );
    let mut long = vec![b'x'; 70_000];
    long.extend(b"1000 10 hidden in a line too long\n1000 10 shown\n");
    assert_eq!(names(&long, &[0x1000]), [some("shown", 0)]);
}

/// Only a regular file of the process's user or of root, inside the process's own root.
#[test]
fn what_lies_in_the_maps_place_is_not_trusted() {
    let root = Root::new();
    assert!(root.place.open().is_none(), "there is none");
    let outside = TempDir::new().unwrap();
    let target = outside.path().join("secret");
    fs::write(&target, "1000 10 secret\n").unwrap();
    symlink(&target, root.map()).unwrap();
    assert!(root.place.open().is_none(), "a link");
    fs::remove_file(root.map()).unwrap();
    let piped = Command::new("mkfifo").arg(root.map()).status();
    if piped.is_ok_and(|status| status.success()) {
        assert!(root.place.open().is_none(), "a pipe");
        fs::remove_file(root.map()).unwrap();
    }
    fs::write(root.map(), "1000 10 own\n").unwrap();
    assert!(root.place.open().is_some(), "its own file");
    if chown(root.map(), Some(65534), None).is_ok() {
        assert!(root.place.open().is_none(), "another user's");
    }
    // A link of a folder is followed within the root alone.
    fs::remove_dir_all(root.folder.path().join("tmp")).unwrap();
    fs::create_dir_all(root.folder.path().join("var/tmp")).unwrap();
    fs::write(root.folder.path().join("var/tmp/perf-7.map"), "1000 10 own\n").unwrap();
    symlink("/var/tmp", root.folder.path().join("tmp")).unwrap();
    assert!(root.place.open().is_some(), "/tmp is a link");
    fs::remove_file(root.folder.path().join("tmp")).unwrap();
    symlink("../../../../../../..", root.folder.path().join("tmp")).unwrap();
    assert!(root.place.open().is_none(), "out of the root");
}

/// A stack keeps the name that the map had when it was first read after the stack was seen.
#[test]
fn code_that_replaces_other_code_does_not_rename_old_stacks() {
    let root = Root::new();
    let mut stacks = Stacks::new();
    let mut process = Process::default();
    let mut read = |stacks: &Stacks, new| {
        process.read(stacks, 7, Some(&root.place), new);
        let name = |id: u32, address| {
            let reading = process.readings.partition_point(|&upto| upto < id);
            let named = process.names.get(&(address, reading));
            named.map_or_else(|| "-".to_owned(), |named| named.functions[0].name.to_string())
        };
        [(1, 0x1008), (1, 0x2008), (2, 0x1008), (3, 0x1008)]
            .map(|(id, address)| name(id, address))
            .join(" ")
    };
    let write = |text: &str| {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(root.map())
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    stacks
        .interned
        .intern(7, &[frame(0x1008), frame(0x2008)], End::Jit);
    assert_eq!(read(&stacks, true), "- - - -", "no map yet");
    write("1000 10 first\n");
    assert_eq!(read(&stacks, false), "first - - -");
    write("1000 10 second\n");
    stacks.interned.intern(7, &[frame(0x1008)], End::Jit);
    assert_eq!(read(&stacks, true), "first - second -");
    // Written late: a name for what had none, and no other for what has.
    write("2000 10 late\n1000 10 third\n");
    stacks.interned.intern(8, &[frame(0x1008)], End::Jit);
    assert_eq!(
        read(&stacks, false),
        "first late second -",
        "the third stack is another process's"
    );
}

proptest! {
    #[test]
    fn any_file_is_read_to_its_end(text in proptest::collection::vec(any::<u8>(), 0..2000), addresses in proptest::collection::vec(any::<u64>(), 0..20)) {
        let mut addresses = addresses;
        addresses.sort_unstable();
        prop_assert_eq!(names(&text, &addresses).len(), addresses.len());
    }

    #[test]
    fn as_a_plain_search_would_have_it(lines in proptest::collection::vec((0u64..64, 1u64..32), 0..40)) {
        let line = |(at, &(start, size)): (usize, &(u64, u64))| format!("{start:x} {size:x} f{at}\n");
        let text: String = lines.iter().enumerate().map(line).collect();
        let addresses: Vec<u64> = (0..100).collect();
        let found = names(text.as_bytes(), &addresses);
        for (address, found) in addresses.into_iter().zip(found) {
            let last = lines.iter().rposition(|&(start, size)| (start..start + size).contains(&address));
            let wanted = last.map(|at| (format!("f{at}"), address - lines[at].0));
            prop_assert_eq!(found, wanted);
        }
    }
}
