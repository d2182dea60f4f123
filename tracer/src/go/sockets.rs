//! Which descriptor a goroutine waits for.
//!
//! Every read, write, accept and connect of Go's `net` and `os` is a method of `internal/poll.FD`, whose receiver holds the number. For
//! one that waits in the poller, the runtime's own record of the descriptor names the goroutine: that proves it.

use rustc_hash::FxHashMap;

use super::{
    frames::{Ask, is_pointer, read_standing},
    memory::Memory,
    objects::{FD, Objects, POLLED, Structs},
    snapshot::{Goroutine, Reader, Status},
    types::{Struct, Types},
};
use crate::stacks::elf::u64_at;

/// Descriptors are below (`NR_OPEN` may be raised to 2^30).
const MAX_FD: u64 = 1 << 30;

/// What a goroutine waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To be readable, or for somebody who connects.
    Read,
    /// To be writable, or to be connected.
    Write,
    /// In the call itself, or for another goroutine that uses it.
    Call,
}

/// A goroutine that waits for a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its number.
    pub goid: u64,
    /// Its descriptor in memory (`*runtime.g`).
    pub g: u64,
    /// Of [`Reader::groups`].
    pub group: u32,
    /// The file descriptor.
    pub fd: i32,
    /// What for.
    pub direction: Direction,
}

/// Offsets in `internal/poll.FD` and in the runtime's record.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    number: usize,
    record: usize,
    /// Bytes read of an FD.
    len: usize,
    polled: Option<Polled>,
}

#[derive(Clone, Debug)]
struct Polled {
    number: usize,
    reader: usize,
    writer: usize,
    len: usize,
}

impl Layout {
    pub(super) fn find<M: Memory + ?Sized>(types: &Types<'_, M>, found: &Structs) -> Option<Self> {
        let descriptor = found.get(&FD)?;
        let held = types.structure(descriptor.type_of("pd")?)?;
        let (number, record) = (
            descriptor.field("Sysfd")?,
            descriptor.field("pd")?.checked_add(held.field("runtimeCtx")?)?,
        );
        let polled = found.get(&POLLED).and_then(Polled::of);
        let len = number.max(record).checked_add(8)?;
        (len <= 1024).then_some(Self {
            number,
            record,
            len,
            polled,
        })
    }
}

impl Polled {
    fn of(polled: &Struct) -> Option<Self> {
        let (number, reader, writer) = (polled.field("fd")?, polled.field("rg")?, polled.field("wg")?);
        let len = number.max(reader).max(writer).checked_add(8)?;
        (len <= 1024).then_some(Self {
            number,
            reader,
            writer,
            len,
        })
    }
}

/// One that is being found out.
#[derive(Clone, Copy)]
struct Pending {
    g: u64,
    goroutine: Goroutine,
    fd: i32,
}

impl Objects {
    /// Which descriptors those goroutines of the last snapshot wait for that are `wanted`. `exists` tells whether the process has a
    /// descriptor, for those that nothing else proves.
    pub fn sockets<M: Memory>(
        &mut self,
        reader: &Reader<M>,
        wanted: impl Fn(&Goroutine) -> bool,
        exists: impl Fn(i32) -> bool,
    ) -> Vec<Socket> {
        self.learn(reader);
        let Some(layout) = &self.sockets else {
            return Vec::new();
        };
        let receivers = self.receivers(reader, wanted, |sites| sites.socket);
        let asks: Vec<Ask> = receivers
            .iter()
            .map(|&(g, goroutine, receiver)| Ask {
                g,
                goroutine,
                at: receiver,
                len: layout.len,
            })
            .collect();
        let (mut plain, mut polled) = (Vec::new(), Vec::new());
        read_standing(reader, &asks, |at, bytes| {
            let fd = u64_at(bytes, layout.number).filter(|&fd| fd < MAX_FD);
            let (Some(&(g, goroutine, _)), Some(fd)) = (receivers.get(at), fd) else {
                return;
            };
            let pending = Pending {
                g,
                goroutine,
                fd: fd as i32,
            };
            match u64_at(bytes, layout.record).filter(|&record| is_pointer(record)) {
                Some(record) => polled.push((pending, record)),
                None => plain.push(pending),
            }
        });
        let mut sockets: Vec<Socket> = plain
            .into_iter()
            .filter(|pending| exists(pending.fd))
            .map(|pending| pending.socket(Direction::Call))
            .collect();
        match &layout.polled {
            Some(layout) => in_poller(reader, layout, &polled, exists, &mut sockets),
            None => sockets.extend(
                polled
                    .iter()
                    .filter(|(pending, _)| exists(pending.fd))
                    .map(|(pending, _)| pending.socket(Direction::Call)),
            ),
        }
        sockets.sort_by_key(|socket| socket.goid);
        sockets
    }

    /// The receivers of a method in the stacks of goroutines.
    pub(super) fn receivers<M: Memory>(
        &self,
        reader: &Reader<M>,
        wanted: impl Fn(&Goroutine) -> bool,
        site: impl Fn(&super::objects::Sites) -> Option<super::frames::Receiver>,
    ) -> Vec<(u64, Goroutine, u64)> {
        let waiting: Vec<_> = reader
            .goroutines()
            .filter(|(_, goroutine)| wanted(goroutine))
            .filter_map(|(g, goroutine)| Some((g, *goroutine, site(self.sites(goroutine)?)?)))
            .collect();
        let asks: Vec<Ask> = waiting
            .iter()
            .map(|(g, goroutine, receiver)| receiver.ask(*g, goroutine))
            .collect();
        let mut found = Vec::with_capacity(asks.len());
        read_standing(reader, &asks, |at, bytes| {
            let told = waiting
                .get(at)
                .and_then(|(g, goroutine, receiver)| Some((*g, *goroutine, receiver.take(bytes)?)));
            found.extend(told);
        });
        found
    }
}

/// Those that the runtime has a record of, which must have the same number, and who waits in it.
fn in_poller<M: Memory>(
    reader: &Reader<M>,
    layout: &Polled,
    polled: &[(Pending, u64)],
    exists: impl Fn(i32) -> bool,
    sockets: &mut Vec<Socket>,
) {
    let asks: Vec<Ask> = polled
        .iter()
        .map(|&(pending, record)| Ask {
            g: pending.g,
            goroutine: pending.goroutine,
            at: record,
            len: layout.len,
        })
        .collect();
    let mut known: FxHashMap<i32, bool> = FxHashMap::default();
    read_standing(reader, &asks, |at, bytes| {
        let word = |at: usize| u64_at(bytes, at);
        let (Some((pending, _)), Some(number)) = (polled.get(at), word(layout.number)) else {
            return;
        };
        if number != pending.fd as u64 {
            return;
        }
        let direction = if word(layout.reader) == Some(pending.g) {
            Direction::Read
        } else if word(layout.writer) == Some(pending.g) {
            Direction::Write
        } else if matches!(pending.goroutine.status, Status::Runnable) {
            // It was just woken.
            return;
        } else if *known.entry(pending.fd).or_insert_with(|| exists(pending.fd)) {
            Direction::Call
        } else {
            return;
        };
        sockets.push(pending.socket(direction));
    });
}

impl Pending {
    const fn socket(&self, direction: Direction) -> Socket {
        Socket {
            goid: self.goroutine.goid,
            g: self.g,
            group: self.goroutine.group,
            fd: self.fd,
            direction,
        }
    }
}

/// Whether a process has a descriptor now.
pub fn has_descriptor(pid: u32) -> impl Fn(i32) -> bool {
    move |fd| std::fs::symlink_metadata(format!("/proc/{pid}/fd/{fd}")).is_ok()
}
