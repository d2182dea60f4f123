//! Which channels a goroutine waits on, and how full they are.

use super::{
    frames::{Ask, is_pointer, read_standing},
    memory::Memory,
    objects::{CHANNEL, Objects, Structs, TIME},
    snapshot::{Goroutine, Reader},
    sudogs::Sudogs,
};
use crate::stacks::elf::{u32_at, u64_at};

/// Cases of one select that are followed.
const MAX_CASES: usize = 64;

/// What a goroutine does with channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChannelUse {
    /// Waits for somebody to receive.
    Send,
    /// Waits for somebody to send.
    Receive,
    /// Either, on several.
    Select,
}

/// A channel, as its waiter stood there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Address (`*runtime.hchan`).
    pub address: u64,
    /// Values in its buffer.
    pub len: u64,
    /// Values that its buffer takes; 0: it has none.
    pub capacity: u64,
    /// It was closed.
    pub closed: bool,
    /// It carries times: it is that of a timer or a ticker, or of somebody who makes his own.
    pub ticks: bool,
}

/// A goroutine that waits on channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelWaiter {
    /// Its number.
    pub goid: u64,
    /// Its descriptor.
    pub g: u64,
    /// Of [`Reader::groups`].
    pub group: u32,
    /// What it does.
    pub does: ChannelUse,
    /// The channels, for a select in no order that means something. None: it waits on nil channels only, for ever.
    pub channels: Vec<Channel>,
}

/// Offsets in `runtime.hchan`.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    len: usize,
    capacity: usize,
    closed: usize,
    kind: usize,
    /// Descriptor of `time.Time`.
    time: Option<u64>,
    size: usize,
}

impl Layout {
    pub(super) fn find(found: &Structs) -> Option<Self> {
        let channel = found.get(&CHANNEL)?;
        let layout = Self {
            len: channel.field("qcount")?,
            capacity: channel.field("dataqsiz")?,
            closed: channel.field("closed")?,
            kind: channel.field("elemtype")?,
            time: found.get(&TIME).map(|time| time.descriptor),
            size: usize::try_from(channel.size).ok()?,
        };
        let last = layout
            .len
            .max(layout.capacity)
            .max(layout.kind)
            .max(layout.closed);
        (last + 8 <= layout.size && layout.size <= 1024).then_some(layout)
    }

    /// Reads the bytes of one; None when they are no channel's.
    pub(super) fn read(&self, address: u64, bytes: &[u8]) -> Option<Channel> {
        let (len, capacity) = (u64_at(bytes, self.len)?, u64_at(bytes, self.capacity)?);
        let closed = u32_at(bytes, self.closed)?;
        (len <= capacity && capacity < 1 << 40 && closed <= 1).then_some(Channel {
            address,
            len,
            capacity,
            closed: closed == 1,
            ticks: self.time.is_some() && u64_at(bytes, self.kind) == self.time,
        })
    }
}

/// What a stack does with channels, by the names of its functions, leaf first.
pub(super) fn used(names: &[impl AsRef<str>]) -> Option<ChannelUse> {
    names.iter().take(6).find_map(|name| match name.as_ref() {
        "runtime.chansend" => Some(ChannelUse::Send),
        "runtime.chanrecv" => Some(ChannelUse::Receive),
        "runtime.selectgo" => Some(ChannelUse::Select),
        _ => None,
    })
}

/// A waiter whose queue places are being followed.
struct Followed {
    g: u64,
    goroutine: Goroutine,
    does: ChannelUse,
    next: u64,
    addresses: Vec<u64>,
    sound: bool,
}

impl Objects {
    /// On which channels those goroutines of the last snapshot wait that are `wanted`. One that has moved is not in the answer.
    pub fn channels<M: Memory>(
        &mut self,
        reader: &Reader<M>,
        wanted: impl Fn(&Goroutine) -> bool,
    ) -> Vec<ChannelWaiter> {
        self.learn(reader);
        let (Some(layout), Some(sudogs)) = (&self.channels, &self.sudogs) else {
            return Vec::new();
        };
        let waiting: Vec<(u64, &Goroutine, ChannelUse)> = reader
            .goroutines()
            .filter(|(_, goroutine)| wanted(goroutine))
            .filter_map(|(g, goroutine)| Some((g, goroutine, self.sites(goroutine)?.channel?)))
            .filter(|(_, goroutine, _)| goroutine.status.reason().is_some())
            .collect();
        let within = reader.runtime().layout.waiting as u64;
        let asks: Vec<Ask> = waiting
            .iter()
            .map(|&(g, goroutine, _)| Ask {
                g,
                goroutine: *goroutine,
                at: g.wrapping_add(within),
                len: 8,
            })
            .collect();
        let mut followed = Vec::new();
        read_standing(reader, &asks, |at, bytes| {
            if let (Some(&(g, goroutine, does)), Some(next)) = (waiting.get(at), u64_at(bytes, 0)) {
                followed.push(Followed {
                    g,
                    goroutine: *goroutine,
                    does,
                    next,
                    addresses: Vec::new(),
                    sound: next == 0,
                });
            }
        });
        for _ in 0..MAX_CASES {
            if !follow(reader, sudogs, &mut followed) {
                break;
            }
        }
        followed.retain(|waiter| waiter.sound && waiter.next == 0);
        read_channels(reader, layout, &followed)
    }
}

/// Goes one further in each queue; whether any has more.
fn follow<M: Memory>(reader: &Reader<M>, sudogs: &Sudogs, followed: &mut [Followed]) -> bool {
    let (numbers, asks): (Vec<usize>, Vec<Ask>) = followed
        .iter()
        .enumerate()
        .filter(|(_, waiter)| waiter.next != 0)
        .map(|(number, waiter)| {
            let ask = Ask {
                g: waiter.g,
                goroutine: waiter.goroutine,
                at: waiter.next,
                len: sudogs.len,
            };
            (number, ask)
        })
        .unzip();
    for &number in &numbers {
        if let Some(waiter) = followed.get_mut(number) {
            waiter.sound = false;
            waiter.next = 0;
        }
    }
    let mut more = false;
    read_standing(reader, &asks, |at, bytes| {
        let waiter = numbers.get(at).and_then(|&number| followed.get_mut(number));
        let (Some(waiter), Some(sudog)) = (waiter, sudogs.read(bytes)) else {
            return;
        };
        waiter.sound = sudog.g == waiter.g && is_pointer(sudog.channel);
        if waiter.sound {
            waiter.next = sudog.waitlink;
            waiter.addresses.push(sudog.channel);
            more |= sudog.waitlink != 0;
        }
    });
    more
}

/// Reads the channels of waiters; those of which one cannot be read are left out.
fn read_channels<M: Memory>(
    reader: &Reader<M>,
    layout: &Layout,
    followed: &[Followed],
) -> Vec<ChannelWaiter> {
    let mut owners = Vec::new();
    let mut asks = Vec::new();
    for (number, waiter) in followed.iter().enumerate() {
        for &address in &waiter.addresses {
            owners.push((number, address));
            asks.push(Ask {
                g: waiter.g,
                goroutine: waiter.goroutine,
                at: address,
                len: layout.size,
            });
        }
    }
    let mut channels: Vec<Vec<Channel>> = vec![Vec::new(); followed.len()];
    read_standing(reader, &asks, |at, bytes| {
        let Some(&(number, address)) = owners.get(at) else {
            return;
        };
        if let (Some(of), Some(channel)) = (channels.get_mut(number), layout.read(address, bytes)) {
            of.push(channel);
        }
    });
    followed
        .iter()
        .zip(channels)
        .filter(|(waiter, channels)| channels.len() == waiter.addresses.len())
        .map(|(waiter, channels)| ChannelWaiter {
            goid: waiter.goroutine.goid,
            g: waiter.g,
            group: waiter.goroutine.group,
            does: waiter.does,
            channels,
        })
        .collect()
}
