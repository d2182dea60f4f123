//! Debug information that a distribution keeps beside a stripped file.
//!
//! ```text
//! build id ──> /usr/lib/debug/.build-id/ab/cdef….debug       root's, and the same id in it proves that they belong together
//! debug link ─> name in the file's folder, its .debug, or below /usr/lib/debug; proven by a checksum of all of it
//! ```
//! A link comes from the target and is hostile: only a plain name counts, and only regular files are opened.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::elf::{Elf, text_at, u32_at};
use super::module::Module;

/// Where debug packages install.
const DEBUG: &str = "/usr/lib/debug";
/// Bytes of a debug file that a checksum is taken of.
const MAX_CHECKED: u64 = 2 << 30;
/// Sections by which a file leads a reader of DWARF to further files.
const LINKS: [&str; 3] = [".gnu_debuglink", ".gnu_debugaltlink", ".debug_sup"];

/// Where a file's debug information is.
#[derive(Debug)]
pub(super) struct DebugFile {
    pub(super) path: PathBuf,
    /// Holds what a path below `/proc/self/fd` names.
    _file: Option<File>,
}

/// Whether the file itself has debug information that leads nowhere else.
pub(super) fn has_own(elf: &Elf) -> bool {
    let has = |name: &str| elf.section(name).is_some();
    (has(".debug_info") || has(".zdebug_info")) && !LINKS.iter().any(|link| has(link))
}

/// Finds the debug file of a file.
pub(super) fn find(module: &Module) -> Option<DebugFile> {
    by_build_id(&module.elf.build_id).or_else(|| by_link(module))
}

fn by_build_id(build_id: &[u8]) -> Option<DebugFile> {
    let (first, rest) = build_id.split_first()?;
    let mut path = format!("{DEBUG}/.build-id/{first:02x}/");
    for byte in rest {
        write!(path, "{byte:02x}").ok()?;
    }
    path.push_str(".debug");
    let file = regular(Path::new(&path))?;
    (Elf::parse(&file)?.build_id == build_id).then_some(DebugFile {
        // By its path, so that what several debug files share is found from there.
        path: path.into(),
        _file: None,
    })
}

fn by_link(module: &Module) -> Option<DebugFile> {
    let link = Elf::section_data(&module.file, module.elf.section(".gnu_debuglink")?)?;
    let name = text_at(&link, 0).filter(|name| is_plain(name))?;
    let checksum = u32_at(&link, (name.len() + 4) & !3)?;
    // The path is the target's: here it may lead to another file, or none.
    let own = Path::new(&*module.path);
    let (here, there) = (fs::metadata(own).ok()?, module.file.metadata().ok()?);
    if (here.dev(), here.ino()) != (there.dev(), there.ino()) {
        return None;
    }
    let folder = own.parent()?;
    let places = [
        folder.join(&name),
        folder.join(".debug").join(&name),
        Path::new(DEBUG).join(folder.strip_prefix("/").ok()?).join(&name),
    ];
    places.iter().filter(|place| *place != own).find_map(|place| {
        let file = regular(place)?;
        let elf = Elf::parse(&file)?;
        let closed = !LINKS.iter().any(|link| elf.section(link).is_some());
        (closed && sum(&file)? == checksum).then(|| DebugFile {
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            _file: Some(file),
        })
    })
}

/// Whether it names a file of the folder that it is looked for in.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() < 256 && !name.contains('/') && ![".", ".."].contains(&name)
}

/// Opens a regular file, and nothing else: to open a pipe may wait, and a device may do anything.
fn regular(path: &Path) -> Option<File> {
    let options = File::options().read(true).custom_flags(libc::O_PATH).open(path);
    let found = options.ok()?;
    let regular = found.metadata().ok()?.is_file();
    regular
        .then(|| File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok())
        .flatten()
}

fn sum(file: &File) -> Option<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut bytes = vec![0; 1 << 20];
    let mut file = file.take(MAX_CHECKED);
    loop {
        match file.read(&mut bytes).ok()? {
            0 => return Some(hasher.finalize()),
            read => hasher.update(bytes.get(..read)?),
        }
    }
}
