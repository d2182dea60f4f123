//! Reading another process's memory in many pieces at once, without stopping it.

use std::io;

/// Pieces that one call of `process_vm_readv` takes (`UIO_MAXIOV`).
pub(crate) const PIECES: usize = 1024;

/// A piece of memory asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins.
    pub address: u64,
    /// Bytes.
    pub len: usize,
    /// It was read whole.
    pub whole: bool,
}

impl Piece {
    /// One to be read.
    #[must_use]
    pub const fn new(address: u64, len: usize) -> Self {
        Self {
            address,
            len,
            whole: false,
        }
    }
}

/// Something that has the memory of a process.
pub trait Memory {
    /// Reads the pieces one after the other, in this order, into consecutive parts of `into`, which is as long as all of them.
    /// What cannot be read whole is left as it is, and marked so.
    fn read_pieces(&self, pieces: &mut [Piece], into: &mut [u8]);

    /// One piece, or none of it.
    fn read(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut piece = [Piece::new(address, len)];
        self.read_pieces(&mut piece, &mut bytes);
        piece[0].whole.then_some(bytes)
    }

    /// A word.
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let mut piece = [Piece::new(address, 8)];
        self.read_pieces(&mut piece, &mut bytes);
        piece[0].whole.then_some(u64::from_le_bytes(bytes))
    }
}

/// A live process.
#[derive(Debug)]
pub struct Live {
    pid: libc::pid_t,
}

impl Live {
    /// Of that process.
    #[must_use]
    pub const fn new(pid: u32) -> Self {
        Self {
            pid: pid as libc::pid_t,
        }
    }
}

impl Memory for Live {
    fn read_pieces(&self, pieces: &mut [Piece], into: &mut [u8]) {
        let mut rest = into;
        for pieces in pieces.chunks_mut(PIECES) {
            let len: usize = pieces.iter().map(|piece| piece.len).sum();
            let Some((part, after)) = rest.split_at_mut_checked(len) else {
                return;
            };
            self.read_chunk(pieces, part);
            rest = after;
        }
    }
}

impl Live {
    /// At most [`PIECES`]; begins anew after each that cannot be read.
    fn read_chunk(&self, mut pieces: &mut [Piece], mut into: &mut [u8]) {
        while !pieces.is_empty() {
            let remote: Vec<libc::iovec> = pieces
                .iter()
                .map(|piece| libc::iovec {
                    iov_base: piece.address as *mut libc::c_void,
                    iov_len: piece.len,
                })
                .collect();
            let local = libc::iovec {
                iov_base: into.as_mut_ptr().cast(),
                iov_len: into.len(),
            };
            // SAFETY: `local` describes `into`, which is borrowed for the call; `remote` are addresses in the other process only.
            let got = unsafe {
                libc::process_vm_readv(
                    self.pid,
                    &raw const local,
                    1,
                    remote.as_ptr(),
                    remote.len() as libc::c_ulong,
                    0,
                )
            };
            let mut got = match usize::try_from(got) {
                Ok(got) => got,
                Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT) => 0,
                // It is gone, or was never ours to read.
                Err(_) => return,
            };
            let (mut whole, mut read) = (0, 0);
            for piece in pieces.iter_mut() {
                if got < piece.len {
                    break;
                }
                piece.whole = true;
                got -= piece.len;
                read += piece.len;
                whole += 1;
            }
            // The one after those cannot be read.
            let skipped = pieces.get(whole).map_or(0, |piece| piece.len);
            let next = (whole + 1).min(pieces.len());
            pieces = pieces.split_at_mut(next).1;
            into = into.split_at_mut((read + skipped).min(into.len())).1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_cannot_be_read_are_told_from_the_others() {
        let me = Live::new(std::process::id());
        let words: Vec<u64> = (0..3000).map(|number| number * 97).collect();
        let at = |number: usize| &raw const words[number] as u64;
        let mut pieces: Vec<Piece> = (0..3000)
            .map(|number| Piece::new(if number % 23 == 22 { 8 } else { at(number) }, 8))
            .collect();
        let mut bytes = vec![0; 8 * 3000];
        me.read_pieces(&mut pieces, &mut bytes);
        for (number, (piece, word)) in pieces.iter().zip(bytes.chunks_exact(8)).enumerate() {
            assert_eq!(piece.whole, number % 23 != 22, "{number}");
            let wanted = if piece.whole { words[number] } else { 0 };
            assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), wanted);
        }
        assert_eq!(me.word(at(97)), Some(97 * 97));
        assert_eq!(me.word(16), None);
        assert_eq!(me.read(at(1), 16).map(|bytes| bytes.len()), Some(16));
    }

    #[test]
    fn of_a_process_that_is_not_there_nothing_is_read() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = Live::new(child.id());
        child.wait().unwrap();
        assert_eq!(gone.word(&raw const child as u64), None);
    }
}
