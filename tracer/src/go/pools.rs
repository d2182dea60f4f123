//! Pools of connections: `database/sql` and the client of `net/http`.

use std::collections::BTreeMap;

use super::{
    frames::{Ask, is_pointer, read_standing},
    memory::Memory,
    objects::{CONNECTION, DATABASE, Objects, Structs},
    snapshot::{Goroutine, Reader},
    types::Types,
};
use crate::stacks::elf::u64_at;

/// Bytes read of a structure.
const MAX_STRUCT: usize = 4096;
/// Connections of one pool; the default has no limit, but the system has.
const MAX_CONNECTIONS: u64 = 1 << 24;
/// Length of a host with its port, or of a proxy's URL.
const MAX_TEXT: u64 = 1024;

/// A `sql.DB` that goroutines wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Address.
    pub address: u64,
    /// Connections that it may open (`SetMaxOpenConns`); 0: any number.
    pub max_open: u64,
    /// Connections that it has open, or is opening.
    pub open: u64,
    /// Those of them that nobody uses.
    pub idle: u64,
    /// How often somebody had to wait, since it was made.
    pub waited: u64,
    /// How long those waited who got one, all together.
    pub waited_ns: Option<u64>,
    /// Who waits.
    pub waiters: Vec<PoolWaiter>,
}

/// A goroutine that waits for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolWaiter {
    /// Number.
    pub goid: u64,
    /// Of [`Reader::groups`].
    pub group: u32,
}

impl Pool {
    /// All that it may have are in use, and somebody wants another.
    #[must_use]
    pub const fn exhausted(&self) -> bool {
        self.max_open > 0 && self.open >= self.max_open && self.idle == 0 && !self.waiters.is_empty()
    }
}

/// Offsets in `sql.DB`.
#[derive(Clone, Debug)]
pub(super) struct Databases {
    max_open: usize,
    open: usize,
    idle: usize,
    waited: usize,
    waited_ns: Option<usize>,
    len: usize,
}

impl Databases {
    pub(super) fn find(found: &Structs) -> Option<Self> {
        let database = found.get(&DATABASE)?;
        let found = Self {
            max_open: database.field("maxOpen")?,
            open: database.field("numOpen")?,
            // A slice: its length is the second word.
            idle: database.field("freeConn")?.checked_add(8)?,
            waited: database.field("waitCount")?,
            waited_ns: database.field("waitDuration"),
            len: usize::try_from(database.size).ok()?,
        };
        (found.len <= MAX_STRUCT).then_some(found)
    }

    fn read(&self, address: u64, bytes: &[u8]) -> Option<Pool> {
        let pool = Pool {
            address,
            max_open: u64_at(bytes, self.max_open)?,
            open: u64_at(bytes, self.open)?,
            idle: u64_at(bytes, self.idle)?,
            waited: u64_at(bytes, self.waited)?,
            waited_ns: self
                .waited_ns
                .and_then(|at| u64_at(bytes, at))
                .filter(|&ns| ns < 1 << 62),
            waiters: Vec::new(),
        };
        let numbers = [pool.max_open, pool.open, pool.idle];
        // Who waits was counted; without a limit nobody waits.
        let sound = numbers.iter().all(|&number| number <= MAX_CONNECTIONS)
            && pool.max_open > 0
            && (1..1 << 48).contains(&pool.waited);
        sound.then_some(pool)
    }
}

/// One of the two goroutines of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HttpLoop {
    /// Reads answers.
    Read,
    /// Writes requests.
    Write,
}

impl HttpLoop {
    pub(super) const fn function(self) -> &'static str {
        match self {
            Self::Read => "net/http.(*persistConn).readLoop",
            Self::Write => "net/http.(*persistConn).writeLoop",
        }
    }
}

/// A client's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConnection {
    /// Address (`*http.persistConn`).
    pub address: u64,
    /// Number of the goroutine.
    pub goid: u64,
    /// Of [`Reader::groups`].
    pub group: u32,
    /// Which of its two it is.
    pub kind: HttpLoop,
    /// `http` or `https`.
    pub scheme: String,
    /// Host and port.
    pub host: String,
    /// URL of the proxy; empty without one.
    pub proxy: String,
}

/// Offsets in `http.persistConn`: the strings of its key.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    proxy: usize,
    scheme: usize,
    host: usize,
    /// Bytes read.
    len: usize,
}

impl Connections {
    pub(super) fn find<M: Memory + ?Sized>(types: &Types<'_, M>, found: &Structs) -> Option<Self> {
        let connection = found.get(&CONNECTION)?;
        let held = types.structure(connection.type_of("cacheKey")?)?;
        let base = connection.field("cacheKey")?;
        let within = |name: &str| base.checked_add(held.field(name)?);
        let (proxy, scheme, host) = (within("proxy")?, within("scheme")?, within("addr")?);
        let len = proxy.max(scheme).max(host).checked_add(16)?;
        (len <= MAX_STRUCT).then_some(Self {
            proxy,
            scheme,
            host,
            len,
        })
    }

    fn read<M: Memory>(&self, memory: &M, bytes: &[u8]) -> Option<(String, String, String)> {
        let scheme = text(memory, bytes, self.scheme)?;
        let host = text(memory, bytes, self.host)?;
        let sound = matches!(&*scheme, "http" | "https") && !host.is_empty();
        let proxy = text(memory, bytes, self.proxy).filter(|_| sound)?;
        Some((scheme, host, proxy))
    }
}

/// A string whose two words lie there: short, and printable.
fn text<M: Memory>(memory: &M, bytes: &[u8], at: usize) -> Option<String> {
    let (start, len) = (u64_at(bytes, at)?, u64_at(bytes, at.checked_add(8)?)?);
    if len == 0 {
        return Some(String::new());
    }
    let text = memory.read(start, usize::try_from(len.min(MAX_TEXT + 1)).ok()?)?;
    let printable = len <= MAX_TEXT && text.iter().all(u8::is_ascii_graphic);
    printable.then(|| String::from_utf8(text).ok())?
}

impl Objects {
    /// The pools that goroutines of the last snapshot wait for a connection of, and those `known` from before.
    pub fn pools<M: Memory>(&mut self, reader: &Reader<M>, known: impl Iterator<Item = u64>) -> Vec<Pool> {
        self.learn(reader);
        let Some(layout) = self.databases.as_ref().filter(|_| self.any_database) else {
            return Vec::new();
        };
        let receivers = self.receivers(reader, waits, |sites| sites.database);
        let mut pools: BTreeMap<u64, Pool> = BTreeMap::new();
        for_each(reader, &receivers, layout.len, |goroutine, address, bytes| {
            if let Some(pool) = layout.read(address, bytes) {
                let pool = pools.entry(address).or_insert(pool);
                pool.waiters.push(PoolWaiter {
                    goid: goroutine.goid,
                    group: goroutine.group,
                });
            }
        });
        for address in known {
            let free = || layout.read(address, &reader.memory().read(address, layout.len)?);
            if !pools.contains_key(&address)
                && let Some(pool) = free()
            {
                pools.insert(address, pool);
            }
        }
        pools.into_values().collect()
    }

    /// The connections of HTTP clients that goroutines of the last snapshot serve and which are `wanted`.
    pub fn http<M: Memory>(
        &mut self,
        reader: &Reader<M>,
        wanted: impl Fn(&Goroutine) -> bool,
    ) -> Vec<HttpConnection> {
        self.learn(reader);
        let Some(layout) = &self.connections else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for kind in [HttpLoop::Read, HttpLoop::Write] {
            let receivers = self.receivers(reader, &wanted, |sites| {
                sites.http.filter(|site| site.0 == kind).map(|site| site.1)
            });
            for_each(reader, &receivers, layout.len, |goroutine, address, bytes| {
                if let Some((scheme, host, proxy)) = layout.read(reader.memory(), bytes) {
                    found.push(HttpConnection {
                        address,
                        goid: goroutine.goid,
                        group: goroutine.group,
                        kind,
                        scheme,
                        host,
                        proxy,
                    });
                }
            });
        }
        found
    }
}

fn waits(goroutine: &Goroutine) -> bool {
    goroutine.status.reason().is_some()
}

/// Reads what receivers point to.
fn for_each<M: Memory>(
    reader: &Reader<M>,
    receivers: &[(u64, Goroutine, u64)],
    len: usize,
    mut each: impl FnMut(&Goroutine, u64, &[u8]),
) {
    let asks: Vec<Ask> = receivers
        .iter()
        .filter(|receiver| is_pointer(receiver.2))
        .map(|&(g, goroutine, at)| Ask {
            g,
            goroutine,
            at,
            len,
        })
        .collect();
    read_standing(reader, &asks, |at, bytes| {
        if let Some(ask) = asks.get(at) {
            each(&ask.goroutine, ask.at, bytes);
        }
    });
}
