use std::os::fd::AsRawFd as _;
use std::time::Instant;

use super::*;

fn monotonic() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
}

#[test]
fn links_tell_the_kind() {
    for (link, kind, inode) in [
        ("socket:[4711]", FdKind::Socket, Some(4711)),
        ("pipe:[1]", FdKind::Pipe, Some(1)),
        ("anon_inode:[eventfd]", FdKind::Eventfd, None),
        ("anon_inode:[eventpoll]", FdKind::Epoll, None),
        ("anon_inode:[timerfd]", FdKind::Timerfd, None),
        ("anon_inode:[signalfd]", FdKind::Signalfd, None),
        ("anon_inode:inotify", FdKind::Inotify, None),
        ("anon_inode:[fanotify]", FdKind::Fanotify, None),
        ("anon_inode:[pidfd]", FdKind::Pidfd, None),
        ("pidfd:[77]", FdKind::Pidfd, Some(77)),
        ("anon_inode:[perf_event]", FdKind::PerfEvent, None),
        ("anon_inode:bpf-map", FdKind::Bpf, None),
        ("anon_inode:bpf_link", FdKind::Bpf, None),
        ("anon_inode:btf", FdKind::Bpf, None),
        ("anon_inode:[userfaultfd]", FdKind::Userfaultfd, None),
        ("anon_inode:[io_uring]", FdKind::IoUring, None),
        ("anon_inode:[fscontext]", FdKind::Mount, None),
        ("anon_inode:[landlock-ruleset]", FdKind::Other, None),
        ("/memfd:x (deleted)", FdKind::Memfd, None),
        ("/secretmem (deleted)", FdKind::Memfd, None),
        ("/dev/mqueue/q", FdKind::Mqueue, None),
        ("/tmp/socket:[3]", FdKind::File, None),
        ("mnt:[4026531841]", FdKind::Other, Some(4_026_531_841)),
        ("socket:[99999999999999999999]", FdKind::Socket, None),
        ("", FdKind::Other, None),
        (":[", FdKind::Other, None),
    ] {
        assert_eq!(kind_of(link), kind, "{link}");
        if !link.starts_with('/') {
            assert_eq!(inode_of(link), inode, "{link}");
        }
    }
}

#[test]
fn directory_entries_are_bounded_by_their_bytes() {
    assert_eq!(dirent(&[]), None);
    assert_eq!(dirent(&[0; 18]), None);
    let mut record = [0_u8; 24];
    record[16] = 24;
    record[19..21].copy_from_slice(b"17");
    assert_eq!(dirent(&record), Some((Some(17), &[][..])));
    record[16] = 25;
    assert_eq!(dirent(&record), None, "a record longer than its buffer");
    record[16] = 3;
    assert_eq!(dirent(&record), None, "a record shorter than its head");
    record[16] = 24;
    record[19..21].copy_from_slice(b"..");
    assert_eq!(dirent(&record), Some((None, &[][..])));
}

#[test]
fn own_descriptors_are_seen() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let path = file.path().with_extension("fifo");
    let name = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: `name` is NUL-terminated.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let fifo = File::options().read(true).write(true).open(&path).unwrap();
    let scan = scan(std::process::id(), monotonic).unwrap();
    std::fs::remove_file(path).unwrap();
    assert!(scan.complete && scan.started_ns <= scan.ended_ns);
    let find = |fd: RawFd| scan.entries.iter().find(|entry| entry.fd == fd).unwrap();
    let found = find(file.as_file().as_raw_fd());
    assert_eq!(
        (found.kind, found.target.as_deref()),
        (FdKind::File, file.path().to_str())
    );
    assert_eq!(
        found.inode,
        Some(std::os::unix::fs::MetadataExt::ino(
            &file.as_file().metadata().unwrap()
        ))
    );
    assert_eq!(find(socket.as_raw_fd()).kind, FdKind::Socket);
    assert!(find(socket.as_raw_fd()).inode.is_some());
    assert_eq!(find(fifo.as_raw_fd()).kind, FdKind::Pipe);
}

#[test]
fn numbers_that_come_and_go_are_no_error() {
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = stop.clone();
    let churn = std::thread::spawn(move || {
        while !flag.load(std::sync::atomic::Ordering::Relaxed) {
            drop(File::open("/proc/self/stat"));
        }
    });
    for _ in 0..200 {
        assert!(scan(std::process::id(), monotonic).unwrap().complete);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    churn.join().unwrap();
}

#[test]
fn a_process_that_does_not_exist_is_an_error() {
    assert!(scan(u32::MAX, monotonic).is_err());
}
