//! Where stack words come from: copied bytes, or a live process.

use super::row::{Fault, Memory};
use crate::proc::maps;

const PAGE: u64 = 4096;
/// Bytes read of one live stack at most.
const MAX_LIVE: usize = 256 << 10;
/// Farther above a copy than this is not the same stack.
const MAX_STACK: u64 = 64 << 20;

/// The top of a stack as the probe copied it.
pub(super) struct Copied<'a> {
    base: u64,
    bytes: &'a [u8],
    /// The copy ends at a page that could not be read, so a longer one would not help.
    ends: bool,
    /// Pages within it that could not be read, from the base's on.
    missing: u32,
    /// Bytes above the base that were used.
    pub(super) needed: usize,
}

impl<'a> Copied<'a> {
    pub(super) fn new(base: u64, bytes: &'a [u8], ends: bool, missing: u32) -> Self {
        Self {
            base,
            bytes,
            ends,
            missing,
            needed: 0,
        }
    }
}

impl Memory for Copied<'_> {
    fn word(&mut self, address: u64) -> Result<u64, Fault> {
        let offset = address
            .checked_sub(self.base)
            .filter(|&o| o < MAX_STACK)
            .ok_or(Fault::Unreadable)? as usize;
        let end = offset + 8;
        let page = |at: u64| (at / PAGE).wrapping_sub(self.base / PAGE);
        let void = |at: u64| page(at) < 32 && self.missing & 1 << page(at) != 0;
        if self.missing != 0 && (void(address) || void(address.saturating_add(7))) {
            return Err(Fault::Unreadable);
        }
        match self.bytes.get(offset..end).and_then(|b| b.try_into().ok()) {
            Some(word) => {
                self.needed = self.needed.max(end);
                Ok(u64::from_le_bytes(word))
            }
            None if self.ends => Err(Fault::Unreadable),
            None => Err(Fault::Beyond),
        }
    }
}

/// The memory of a process that runs on.
pub(super) struct Live {
    /// The process, or one of its threads.
    tgid: u32,
    base: u64,
    /// Pages read so far, the latest last; few, and mostly asked for in order.
    pages: Vec<(u64, Option<Box<[u8]>>)>,
    pub(super) needed: usize,
}

impl Live {
    pub(super) fn new(tgid: u32, base: u64) -> Self {
        Self {
            tgid,
            base,
            pages: Vec::new(),
            needed: 0,
        }
    }

    fn byte_run(&mut self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        let page = address & !(PAGE - 1);
        let known = self.pages.iter().rposition(|p| p.0 == page);
        let at = match known {
            Some(at) => at,
            None if self.pages.len() * PAGE as usize >= MAX_LIVE => return Err(Fault::Beyond),
            None => {
                let mut bytes = read(self.tgid, page, PAGE as usize);
                if bytes.is_none() && self.pages.is_empty() {
                    bytes = maps::other_threads(self.tgid).into_iter().find_map(|tid| {
                        let bytes = read(tid, page, PAGE as usize)?;
                        self.tgid = tid;
                        Some(bytes)
                    });
                }
                self.pages.push((page, bytes.map(Into::into)));
                self.pages.len() - 1
            }
        };
        let bytes = self
            .pages
            .get(at)
            .and_then(|p| p.1.as_ref())
            .ok_or(Fault::Unreadable)?;
        let from = (address - page) as usize;
        into.copy_from_slice(bytes.get(from..from + into.len()).ok_or(Fault::Unreadable)?);
        Ok(())
    }
}

impl Memory for Live {
    const OTHERS: bool = true;

    fn word(&mut self, address: u64) -> Result<u64, Fault> {
        let end = address.checked_add(8).ok_or(Fault::Unreadable)?;
        let mut word = [0; 8];
        let first = (PAGE - address % PAGE).min(8) as usize;
        let (head, tail) = word.split_at_mut(first);
        self.byte_run(address, head)?;
        if !tail.is_empty() {
            self.byte_run(address + first as u64, tail)?;
        }
        if let Some(above) = end.checked_sub(self.base).filter(|&a| a < MAX_STACK) {
            self.needed = self.needed.max(above as usize);
        }
        Ok(u64::from_le_bytes(word))
    }
}

/// `len` bytes of a process at an address, or none of them.
pub(crate) fn read(tgid: u32, address: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0u8; len];
    let local = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: len,
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: len,
    };
    // SAFETY: `local` describes `bytes`, which outlives the call; `remote` is an address in the other process only.
    let got =
        unsafe { libc::process_vm_readv(tgid as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0) };
    (got == len as isize).then_some(bytes)
}
