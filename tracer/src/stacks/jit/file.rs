//! Finding, opening and reading a process's map.

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use super::line;
use crate::proc::target::read;
use crate::stacks::symbols::Named;

/// Bytes read of a map: of a longer one the last, as they hold what is newest.
const MAX_READ: u64 = 256 << 20;
/// A line is shorter, or is no line.
const MAX_LINE: u64 = 16 << 10;

/// Where a process's map is, when there is one. Held by descriptor, so it outlives the process.
#[derive(Debug)]
pub(in crate::stacks) struct Place {
    /// The process's root folder.
    root: File,
    /// Below it.
    path: CString,
    /// Who the process runs as.
    owners: [u32; 2],
}

/// A map's state when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl State {
    /// Whether it may say something else than when it was `known`.
    pub(super) fn differs(&self, known: &Self) -> bool {
        self != known
    }
}

impl Place {
    /// Below any folder, as a process of this user.
    #[cfg(test)]
    pub(super) fn below(root: File, path: &str) -> Self {
        // SAFETY: getuid only reads.
        let own = unsafe { libc::getuid() };
        let path = CString::new(path).unwrap();
        Self {
            root,
            path,
            owners: [own; 2],
        }
    }

    /// Of a process that lives: in its own mount namespace and root, under the pid that it knows itself by.
    pub(in crate::stacks) fn of(tgid: u32) -> Option<Self> {
        let status = read(&format!("/proc/{tgid}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let inner: u32 = field("NSpid:")?
            .split_ascii_whitespace()
            .next_back()?
            .parse()
            .ok()?;
        let mut ids = field("Uid:")?
            .split_ascii_whitespace()
            .filter_map(|id| id.parse().ok());
        let root = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(format!("/proc/{tgid}/root"))
            .ok()?;
        Some(Self {
            root,
            path: CString::new(format!("tmp/perf-{inner}.map")).ok()?,
            owners: [ids.next()?, ids.next()?],
        })
    }

    /// Opens the map, if it is a regular file of the process's user or of root; nothing that the process can put there leads
    /// anywhere else.
    pub(super) fn open(&self) -> Option<(File, State)> {
        // SAFETY: all zeros is a value of this plain struct of integers.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        // Only its path, until it is known to be no device and no pipe.
        how.flags = (libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        // SAFETY: the path is a C string, `how` is as long as said; both outlive the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                self.root.as_raw_fd(),
                self.path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        if fd < 0 {
            return None;
        }
        // SAFETY: a descriptor that was just made, owned by nobody else.
        let found = unsafe { File::from_raw_fd(fd as i32) };
        let stat = found.metadata().ok()?;
        let trusted = stat.is_file() && (stat.uid() == 0 || self.owners.contains(&stat.uid()));
        if !trusted {
            log::warn!("{:?} is no file of the process's user: not read", self.path);
            return None;
        }
        let state = State {
            inode: stat.ino(),
            size: stat.size(),
            modified: (stat.mtime(), stat.mtime_nsec()),
        };
        Some((File::open(format!("/proc/self/fd/{fd}")).ok()?, state))
    }
}

/// For each of the addresses, in rising order, what the last line that covers it says.
pub(super) fn find(mut file: File, addresses: &[u64]) -> Vec<Option<Named>> {
    let mut found: Vec<Option<(u64, Vec<u8>)>> = vec![None; addresses.len()];
    let size = file.metadata().map_or(0, |stat| stat.len());
    let skipped = size.saturating_sub(MAX_READ);
    if skipped > 0 && file.seek(SeekFrom::Start(skipped)).is_err() {
        return addresses.iter().map(|_| None).collect();
    }
    // It may grow while it is read.
    let mut text = BufReader::with_capacity(1 << 18, file.take(size.min(MAX_READ)));
    let (mut line, mut bad, mut whole) = (Vec::new(), 0u64, skipped == 0);
    loop {
        line.clear();
        match (&mut text).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(1..) => {}
            _ => break,
        }
        let ended = line.last() == Some(&b'\n');
        // The rest of a line whose beginning was passed over, or was too long, is none.
        let begins = std::mem::replace(&mut whole, ended);
        match line::parse(&line).filter(|_| begins && ended) {
            Some(piece) => {
                let first = addresses.partition_point(|&a| a < piece.start);
                let last = addresses.partition_point(|&a| a < piece.end);
                for found in found.get_mut(first..last).into_iter().flatten() {
                    *found = Some((piece.start, piece.name.to_vec()));
                }
            }
            None => bad += 1,
        }
    }
    if bad > 0 || skipped > 0 {
        log::info!("map of compiled code: {bad} lines are none, the first {skipped} bytes were not read");
    }
    let named = |(found, &address): (Option<(u64, Vec<u8>)>, &u64)| {
        let (start, name) = found?;
        Some(Named {
            functions: vec![line::function(&name)],
            offset: address.checked_sub(start),
        })
    };
    found.into_iter().zip(addresses).map(named).collect()
}
