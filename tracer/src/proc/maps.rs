//! `/proc/PID/maps`, read tolerantly: a line that does not parse is skipped, never an error.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;

/// Text read of one process: a name may be 4 KiB, and `vm.max_map_count` is 65,530 by default.
const MAX_TEXT: u64 = 64 << 20;
/// Mappings kept of one process.
pub(crate) const MAX_MAPS: usize = 1 << 18;

/// Threads tried in place of a leader that has exited.
const MAX_TRIED: usize = 8;

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "the four letters of the permissions column"
)]
pub struct Map {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
    /// Shared rather than private.
    pub shared: bool,
    /// Offset in the file of `start`.
    pub offset: u64,
    /// Device of the file, major << 32 | minor.
    pub device: u64,
    /// Inode of the file; 0 is anonymous.
    pub inode: u64,
    /// Path, `[heap]` and the like, or empty; ` (deleted)` is kept.
    pub name: Arc<str>,
}

impl Map {
    /// Backed by a file with a path (shared memory and memfds included).
    pub fn is_file(&self) -> bool {
        self.inode != 0 && self.name.starts_with('/')
    }

    /// Whether `address` lies in it.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// A change of a process's mappings, told by the kernel as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When, by `CLOCK_MONOTONIC`.
    pub ts_ns: u64,
    /// Whose.
    pub tgid: u32,
    /// What it was.
    pub what: What,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// All mappings are gone: another program takes the place of this one.
    Exec,
    /// This one is new, and lies over those that were there.
    Mapped(Map),
}

/// Parses the text of a maps file into mappings in rising order of address.
pub fn parse(text: &[u8]) -> Vec<Map> {
    let mut last: Option<Arc<str>> = None;
    let mut maps = Vec::new();
    for line in text.split(|&b| b == b'\n') {
        if maps.len() >= MAX_MAPS {
            break;
        }
        let Some(mut map) = parse_line(line) else { continue };
        // Segments of one file follow each other: they share one name.
        match &last {
            Some(name) if **name == *map.name => map.name = Arc::clone(name),
            _ => last = Some(Arc::clone(&map.name)),
        }
        maps.push(map);
    }
    // The kernel writes them sorted; a search must not depend on it.
    maps.sort_by_key(|m| m.start);
    maps
}

/// Reads and parses the maps of a process or thread. They are empty when that thread has exited, as a leader may before
/// its process does.
pub fn read(id: u32) -> io::Result<Vec<Map>> {
    let mut text = Vec::new();
    File::open(format!("/proc/{id}/maps"))?
        .take(MAX_TEXT)
        .read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// Threads of a process other than its leader: through any of them its memory can be read when the leader has exited.
pub fn other_threads(tgid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{tgid}/task"))
        .into_iter()
        .flatten();
    let tids = tasks.filter_map(|t| t.ok()?.file_name().to_str()?.parse().ok());
    tids.filter(|&tid| tid != tgid).take(MAX_TRIED).collect()
}

/// The mapping that holds `address`, by index.
pub fn find(maps: &[Map], address: u64) -> Option<usize> {
    let at = maps.partition_point(|m| m.start <= address).checked_sub(1)?;
    maps.get(at)?.contains(address).then_some(at)
}

/// `start-end perms offset major:minor inode   name`.
fn parse_line(line: &[u8]) -> Option<Map> {
    let mut rest = line;
    let range = field(&mut rest)?;
    let perms = field(&mut rest)?.as_bytes();
    let offset = hex(field(&mut rest)?)?;
    let (major, minor) = field(&mut rest)?.split_once(':')?;
    let inode = field(&mut rest)?.parse().ok()?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (hex(start)?, hex(end)?);
    let name = String::from_utf8_lossy(rest.trim_ascii_start()).replace("\\012", "\n");
    let has = |at: usize, letter: u8| perms.get(at) == Some(&letter);
    (start < end).then(|| Map {
        start,
        end,
        read: has(0, b'r'),
        write: has(1, b'w'),
        exec: has(2, b'x'),
        shared: has(3, b's'),
        offset,
        device: hex(major).unwrap_or(0) << 32 | hex(minor).unwrap_or(0),
        inode,
        name: name.into(),
    })
}

/// Takes one blank-separated field off the front.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let text = rest.trim_ascii_start();
    let end = text.iter().position(|&b| b == b' ').unwrap_or(text.len());
    let (head, tail) = text.split_at_checked(end)?;
    *rest = tail;
    std::str::from_utf8(head).ok().filter(|s| !s.is_empty())
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_of_each_kind() {
        let text =
            b"55d0c000-55d0d000 r-xp 00001000 fe:01 1234                       /usr/bin/a b (deleted)\n\
            nonsense\n\
            7ffc1000-7ffc2000 rw-p 00000000 00:00 0                          [stack]\n\
            7f000000-7f001000 ---p 00000000 00:00 0 \n";
        let maps = parse(text);
        assert_eq!(maps.len(), 3);
        assert_eq!(&*maps[0].name, "/usr/bin/a b (deleted)");
        assert_eq!(
            (maps[0].offset, maps[0].inode, maps[0].device),
            (0x1000, 1234, 0xfe << 32 | 1)
        );
        assert!(maps[0].exec && maps[0].is_file() && !maps[0].write);
        assert_eq!(&*maps[1].name, "");
        assert_eq!(&*maps[2].name, "[stack]");
        assert_eq!(find(&maps, 0x7ffc_1fff), Some(2));
        assert_eq!(find(&maps, 0x7ffc_2000), None);
        assert_eq!(find(&maps, 0), None);
    }

    #[test]
    fn our_own_maps_hold_this_function() {
        let maps = read(std::process::id()).unwrap();
        let at = find(&maps, parse as *const () as u64).unwrap();
        assert!(maps[at].exec);
    }

    proptest! {
        #[test]
        fn any_text_parses(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            parse(&text);
        }

        #[test]
        fn any_line_like_text_parses(text in "([0-9a-f-]{1,20} [rwxps-]{0,5} [0-9a-f]{0,20} [0-9a-f:]{0,9} [0-9]{0,22} .{0,20}\n){0,5}") {
            parse(text.as_bytes());
        }
    }
}
