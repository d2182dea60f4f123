use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;

use proptest::prelude::*;

use super::*;

#[test]
fn lines_of_each_family() {
    let (inode, socket) = tcp(
        "   1: 0100007F:1F90 0200000A:D431 08 00000000:00000007 00:00000000 00000000  1000  0 4711 1 0 20\n",
    )
    .unwrap();
    assert_eq!(inode, 4711);
    assert_eq!(socket.local.as_deref(), Some("127.0.0.1:8080"));
    assert_eq!(socket.peer.as_deref(), Some("10.0.0.2:54321"));
    assert_eq!(
        (socket.tcp_state, socket.unread_bytes),
        (Some("CLOSE_WAIT"), Some(7))
    );

    let (_, socket) = tcp(
        "  0: 0000000000000000FFFF00000100007F:0016 00000000000000000000000000000000:0000 0A 00000000:00000003 \
         00:00000000 00000000 0 0 9 1",
    )
    .unwrap();
    assert_eq!(socket.local.as_deref(), Some("127.0.0.1:22"));
    assert_eq!(
        (socket.peer, socket.tcp_state, socket.unread_bytes),
        (None, Some("LISTEN"), None)
    );

    let (inode, socket) =
        unix("0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/a b.sock\n").unwrap();
    assert_eq!((inode, socket.local.as_deref()), (12345, Some("/run/a b.sock")));
    let (_, socket) = unix("0000000000000000: 00000003 00000000 00000000 0001 03 12346\n").unwrap();
    assert_eq!(socket.local, None);
}

#[test]
fn headings_and_scraps_are_no_sockets() {
    for line in [
        "",
        "\n",
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
        "Num       RefCount Protocol Flags    Type St Inode Path",
        "1: 0100007F:1F90",
    ] {
        assert_eq!(tcp(line), None, "{line}");
        assert_eq!(unix(line), None, "{line}");
    }
    assert_eq!(
        tcp("1: é00007F:1F90 0100007F:1F90 01 0:0 0:0 0 0 0 1"),
        None,
        "cut within a letter"
    );
}

#[test]
fn an_endless_line_is_cut() {
    let mut text = vec![b'x'; 100_000];
    text.extend_from_slice(b"\n0: 00000002 0 0 0001 01 77 /run/x\n");
    let mut sockets = Sockets::default();
    sockets.read(&text[..], unix, None).unwrap();
    assert_eq!(sockets.get(77).unwrap().local.as_deref(), Some("/run/x"));
    assert_eq!(sockets.len(), 1);
}

#[test]
fn own_sockets_are_found() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    io::Write::write_all(&mut client, b"unread").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let named = UnixListener::bind(&path).unwrap();

    let all = Sockets::of(std::process::id()).unwrap();
    let inode = |fd: &dyn std::os::fd::AsRawFd| {
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .unwrap()
            .to_str()
            .and_then(|link| {
                link.strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .parse::<u64>()
                    .ok()
            })
            .unwrap()
    };
    let accepted = all.get(inode(&server)).unwrap();
    assert_eq!(accepted.peer, Some(client.local_addr().unwrap().to_string()));
    assert_eq!(
        (accepted.tcp_state, accepted.unread_bytes),
        (Some("ESTABLISHED"), Some(6))
    );
    assert_eq!(all.get(inode(&listener)).unwrap().tcp_state, Some("LISTEN"));
    assert_eq!(
        all.get(inode(&udp)).unwrap().local,
        Some(udp.local_addr().unwrap().to_string())
    );
    assert_eq!(all.get(inode(&named)).unwrap().local.as_deref(), path.to_str());

    let only = Sockets::of_only(std::process::id(), &FxHashSet::from_iter([inode(&udp)])).unwrap();
    assert_eq!(only.len(), 1);
}

proptest! {
    #[test]
    fn no_line_panics(line in "\\PC{0,200}") {
        let _ = (tcp(&line), udp(&line), unix(&line));
    }

    #[test]
    fn no_line_of_the_right_letters_panics(line in "[0-9A-Fa-f: @/é]{0,200}") {
        let _ = (tcp(&line), udp(&line), unix(&line));
    }
}
