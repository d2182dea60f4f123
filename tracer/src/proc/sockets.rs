//! Sockets of a network namespace by inode: `/proc/PID/net/{tcp,tcp6,udp,udp6,unix}` (`proc_pid_net(5)`).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustc_hash::{FxHashMap, FxHashSet};

/// Most lines read of one file; what comes after them stays unknown.
pub const MAX_LINES: usize = 1_000_000;
/// Longest line looked at: the longest real one, a unix socket's, has some 50 bytes and a path of 108.
const MAX_LINE: u64 = 512;

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// `tcp`, `udp` or `unix`.
    pub family: &'static str,
    /// Its own end: address and port, or a path (`@` for an abstract name).
    pub local: Option<String>,
    /// The other end; `None` when not connected, and always for unix sockets, whose peer the file does not tell.
    pub peer: Option<String>,
    /// State by name, TCP only (`include/net/tcp_states.h`).
    pub tcp_state: Option<&'static str>,
    /// Bytes received and not read; `None` when listening (there the kernel shows the backlog) and for unix.
    pub unread_bytes: Option<u64>,
}

/// Sockets by inode.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    by_inode: FxHashMap<u64, Socket>,
}

impl Sockets {
    /// All sockets of the network namespace of `pid`. A file that is absent (no IPv6) is no error.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::collect(pid, None)
    }

    /// Only the sockets with these inodes: a host may have a million, a report names a few.
    pub fn of_only(pid: u32, inodes: &FxHashSet<u64>) -> io::Result<Self> {
        if inodes.is_empty() {
            return Ok(Self::default());
        }
        Self::collect(pid, Some(inodes))
    }

    /// The socket with this inode.
    pub fn get(&self, inode: u64) -> Option<&Socket> {
        self.by_inode.get(&inode)
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.by_inode.len()
    }

    /// None is known.
    pub fn is_empty(&self) -> bool {
        self.by_inode.is_empty()
    }

    fn collect(pid: u32, wanted: Option<&FxHashSet<u64>>) -> io::Result<Self> {
        let mut sockets = Self::default();
        for (name, parse) in [
            ("tcp", tcp as fn(&str) -> Option<(u64, Socket)>),
            ("tcp6", tcp),
            ("udp", udp),
            ("udp6", udp),
            ("unix", unix),
        ] {
            match File::open(format!("/proc/{pid}/net/{name}")) {
                Ok(file) => sockets.read(BufReader::with_capacity(64 << 10, file), parse, wanted)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound && name != "tcp" => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sockets)
    }

    fn read(
        &mut self,
        mut from: impl BufRead,
        parse: fn(&str) -> Option<(u64, Socket)>,
        wanted: Option<&FxHashSet<u64>>,
    ) -> io::Result<()> {
        let mut line = Vec::new();
        for _ in 0..MAX_LINES {
            line.clear();
            if from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            // The tail of an overlong line then comes as a line of its own, which does not parse.
            if let Some((inode, socket)) = parse(&String::from_utf8_lossy(&line))
                && inode != 0
                && wanted.is_none_or(|wanted| wanted.contains(&inode))
            {
                self.by_inode.insert(inode, socket);
            }
        }
        Ok(())
    }
}

fn tcp(line: &str) -> Option<(u64, Socket)> {
    let (inode, mut socket, state) = inet(line, "tcp")?;
    socket.tcp_state = Some(tcp_state(state));
    if state == TCP_LISTEN {
        socket.unread_bytes = None;
    }
    Some((inode, socket))
}

fn udp(line: &str) -> Option<(u64, Socket)> {
    let (inode, socket, _) = inet(line, "udp")?;
    Some((inode, socket))
}

const TCP_LISTEN: u8 = 10;

fn tcp_state(state: u8) -> &'static str {
    match state {
        1 => "ESTABLISHED",
        2 => "SYN_SENT",
        3 => "SYN_RECV",
        4 => "FIN_WAIT1",
        5 => "FIN_WAIT2",
        6 => "TIME_WAIT",
        7 => "CLOSE",
        8 => "CLOSE_WAIT",
        9 => "LAST_ACK",
        TCP_LISTEN => "LISTEN",
        11 => "CLOSING",
        12 => "NEW_SYN_RECV",
        13 => "BOUND_INACTIVE",
        _ => "UNKNOWN",
    }
}

/// `sl: local remote st tx:rx tr:when retrnsmt uid timeout inode …`.
fn inet(line: &str, family: &'static str) -> Option<(u64, Socket, u8)> {
    let mut words = line.split_ascii_whitespace();
    words.next()?.strip_suffix(':')?;
    let (local, peer) = (address(words.next()?)?, address(words.next()?)?);
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let unread = u64::from_str_radix(words.next()?.split_once(':')?.1, 16).ok()?;
    let inode = words.nth(4)?.parse().ok()?;
    let peer = (peer.port() != 0 || !peer.ip().is_unspecified()).then(|| peer.to_string());
    let local = Some(local.to_string());
    Some((
        inode,
        Socket {
            family,
            local,
            peer,
            tcp_state: None,
            unread_bytes: Some(unread),
        },
        state,
    ))
}

/// `0100007F:1F90`: words of four bytes as this machine reads them from memory, which holds network order; the port
/// in plain hex. An IPv4 address mapped into IPv6 becomes an IPv4 address.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(host.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match host.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at * 8)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// `address: refcount protocol flags type state inode [path]`; a path may hold blanks.
fn unix(line: &str) -> Option<(u64, Socket)> {
    let mut rest = line.trim_end_matches('\n').trim_start();
    let mut word = || {
        let (head, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = tail.trim_start();
        (!head.is_empty()).then_some(head)
    };
    word()?.strip_suffix(':')?;
    for _ in 0..5 {
        word()?;
    }
    let inode = word()?.parse().ok()?;
    let local = (!rest.is_empty()).then(|| rest.to_owned());
    Some((
        inode,
        Socket {
            family: "unix",
            local,
            peer: None,
            tcp_state: None,
            unread_bytes: None,
        },
    ))
}

#[cfg(test)]
#[path = "sockets_tests.rs"]
mod tests;
