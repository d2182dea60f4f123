//! A ring buffer as the kernel's (`kernel/bpf/ringbuf.c`), between two processes.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// Its size is that of a session's.
pub(crate) const BYTES: usize = 16 << 20;
const BUSY: u32 = 1 << 31;
const HEADER: usize = 8;

#[repr(C, align(128))]
struct Position(AtomicU64);

/// Pages that both processes have.
#[repr(C)]
struct Positions {
    consumer: Position,
    producer: Position,
}

/// Memory shared with processes forked later; zeros at first.
pub(crate) fn shared<T>() -> &'static T {
    // SAFETY: a new mapping, of zeros, which lasts as long as the process; only used for types of atomics.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            size_of::<T>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        &*at.cast::<T>()
    }
}

/// The ring; made before the fork, one side each.
pub(crate) struct Ring {
    positions: &'static Positions,
    /// Mapped twice in a row, so that every record lies in one piece.
    data: NonNull<u8>,
    _file: OwnedFd,
}

impl Ring {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a new descriptor that nobody else owns, and mappings of its file at addresses reserved for them.
        unsafe {
            let fd = libc::memfd_create(c"ring".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let file = OwnedFd::from_raw_fd(fd);
            if libc::ftruncate(fd, BYTES as libc::off_t) != 0 {
                return Err(io::Error::last_os_error());
            }
            let map = |at: *mut libc::c_void, len, flags, fd| match libc::mmap(
                at,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                0,
            ) {
                libc::MAP_FAILED => Err(io::Error::last_os_error()),
                at => Ok(at),
            };
            let at = map(
                std::ptr::null_mut(),
                2 * BYTES,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
            )?;
            let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
            map(at, BYTES, fixed, file.as_raw_fd())?;
            map(at.byte_add(BYTES), BYTES, fixed, file.as_raw_fd())?;
            Ok(Self {
                positions: shared(),
                data: NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
                _file: file,
            })
        }
    }

    /// Bytes that are not yet consumed.
    pub(crate) fn used(&self) -> u64 {
        let producer = self.positions.producer.0.load(Ordering::Acquire);
        producer.saturating_sub(self.positions.consumer.0.load(Ordering::Acquire))
    }

    fn header(&self, position: u64) -> &AtomicU32 {
        let at = position as usize % BYTES;
        // SAFETY: inside the first mapping, at a multiple of 8.
        unsafe { self.data.add(at).cast::<AtomicU32>().as_ref() }
    }

    /// Writes a record; false when there is no room. Only one process produces.
    pub(crate) fn send(&self, record: &[u8]) -> bool {
        let room = (HEADER + record.len()).next_multiple_of(8) as u64;
        if self.used() + room > BYTES as u64 {
            return false;
        }
        let position = self.positions.producer.0.load(Ordering::Relaxed);
        let header = self.header(position);
        header.store(record.len() as u32 | BUSY, Ordering::Relaxed);
        self.positions
            .producer
            .0
            .store(position + room, Ordering::Release);
        // SAFETY: the room is the producer's until the header says otherwise, and the second mapping continues the first.
        unsafe {
            let to = self.data.add(position as usize % BYTES + HEADER);
            to.as_ptr()
                .copy_from_nonoverlapping(record.as_ptr(), record.len());
        }
        header.store(record.len() as u32, Ordering::Release);
        true
    }

    /// Hands at most `limit` records to `each`, as aya's ring does; returns how many. Only one process consumes.
    pub(crate) fn drain(&self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut position = self.positions.consumer.0.load(Ordering::Relaxed);
        let mut count = 0;
        while count < limit && position < self.positions.producer.0.load(Ordering::Acquire) {
            let header = self.header(position).load(Ordering::Acquire);
            if header & BUSY != 0 {
                break;
            }
            let len = header as usize;
            // SAFETY: a whole record, which the producer does not touch before the position below has passed it.
            each(unsafe {
                let at = self.data.add(position as usize % BYTES + HEADER);
                std::slice::from_raw_parts(at.as_ptr(), len)
            });
            position += (HEADER + len).next_multiple_of(8) as u64;
            self.positions.consumer.0.store(position, Ordering::Release);
            count += 1;
        }
        count
    }
}
