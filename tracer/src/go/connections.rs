//! Connections of the client of `net/http`.

use super::{
    frames::{Ask, is_pointer, read_standing},
    memory::Memory,
    objects::{CONNECTION, Objects, Structs},
    snapshot::{Goroutine, Reader},
    types::Types,
};
use crate::stacks::elf::u64_at;

/// Bytes read of a structure.
const MAX_STRUCT: usize = 4096;
/// Length of a host with its port, or of a proxy's URL.
const MAX_TEXT: u64 = 1024;

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
    /// URL of the proxy, without the user's name and password; empty without one.
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
        Some((scheme, host, without_user(&proxy)))
    }
}

/// A URL without the name and the password in it.
fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
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

#[cfg(test)]
mod tests {
    use super::without_user;

    #[test]
    fn passwords_of_proxies_are_not_kept() {
        for (url, wanted) in [
            ("http://proxy:3128", "http://proxy:3128"),
            ("http://svc:s3cret@proxy:3128", "http://proxy:3128"),
            ("socks5://a:b@c@proxy/x@y", "socks5://proxy/x@y"),
            ("http://user@proxy?a@b", "http://proxy?a@b"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(without_user(url), wanted);
        }
    }
}
