//! The memory in which the probes read stack memos.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use tracer_ebpf::memo::POOL_BYTES;

/// The map `MEMO_POOL`, mapped.
pub(super) struct Pool {
    memory: NonNull<u8>,
    /// Programs are loaded after this, and name it.
    _map: MapData,
}

impl Pool {
    /// Maps it.
    pub(super) fn map(map: MapData) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                POOL_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("cannot map the pool of stack memos");
        }
        let memory = NonNull::new(memory.cast()).context("the pool of stack memos is mapped at 0")?;
        Ok(Self { memory, _map: map })
    }

    /// The memo at an offset holds no longer.
    pub(super) fn clear(&self, at: u32) {
        if let Some(word) = self.word(at as usize) {
            word.store(0, Ordering::SeqCst);
        }
    }

    /// Puts a memo at an offset; its id, written last, makes it valid.
    pub(super) fn write(&self, at: u32, words: &[u64], id: u64) {
        let at = at as usize;
        let Some(first) = self.word(at) else { return };
        // A probe that has read the id before finds another one after.
        first.store(0, Ordering::SeqCst);
        for (index, &value) in words.iter().enumerate() {
            let Some(word) = self.word(at + 8 + index * 8) else {
                return;
            };
            word.store(value, Ordering::Release);
        }
        first.store(id, Ordering::SeqCst);
    }

    fn word(&self, at: usize) -> Option<&AtomicU64> {
        if !at.is_multiple_of(8) || at + 8 > POOL_BYTES {
            return None;
        }
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned; the kernel reads whole words too.
        Some(unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(at).cast()) })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, which nobody uses any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), POOL_BYTES) };
    }
}
