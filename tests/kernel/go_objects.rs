//! What goroutines wait on, read from memory: exactly the locks, channels, descriptors and pools that the program itself knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tracer::analyse::go_shapes::{Shape, Stack, shape};
use tracer::go::{
    channels::ChannelUse,
    connections::HttpLoop,
    held_up::{HeldUp, LockKind},
    memory::{Live, Memory, Piece},
    objects::Objects,
    program::Program,
    runtime::Runtime,
    snapshot::{Group, Reader},
    sockets::{Direction, has_descriptor},
};

use super::support::workload::Truth;
use super::support::{Workload, go, require};

/// Kinds of builds: as they come, and without symbols and DWARF.
const BUILDS: [(&str, &[&str]); 2] = [("plain", &[]), ("stripped", &["-ldflags=-s -w"])];

fn now() -> u64 {
    let mut spec = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `spec` is written to, and lives through the call.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut spec) };
    assert_eq!(failed, 0);
    spec.tv_sec as u64 * 1_000_000_000 + spec.tv_nsec as u64
}

/// Calls with every workload started, of each version and build.
fn each(args: &[&str], versions: &[&str], builds: &[(&str, &[&str])], mut f: impl FnMut(&str, Workload)) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/gosem.go");
    let folder = TempDir::new().unwrap();
    for version in versions {
        let Some(toolchain) = go::toolchain(version) else {
            require(false, &format!("Go {version} is not installed"));
            continue;
        };
        for (build, flags) in builds {
            let program = folder.path().join(format!("gosem-{version}-{build}"));
            go::build(&toolchain, flags, &program, &source).unwrap();
            let mut command = Command::new(&program);
            command.args(args);
            f(&format!("Go {version} {build}"), Workload::started(command));
        }
    }
}

fn reader<M: Memory>(pid: u32, memory: M) -> Reader<M> {
    let program = Program::open(pid).unwrap();
    let runtime = Runtime::find(&Live::new(pid), &program).unwrap();
    Reader::new(memory, program, runtime)
}

/// Takes snapshots until one finds nobody on the move.
fn settled(reader: &mut Reader<Live>) {
    for _ in 0..600 {
        let tally = reader.take(now(), &mut ()).unwrap();
        if tally.moved + tally.inconsistent + tally.unreadable == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the goroutines do not come to rest");
}

/// Which goroutines wait for a kind of thing, and between which times their wait began.
fn began(truth: &Truth, kind: &str) -> BTreeMap<u64, (u64, u64)> {
    let mut found: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (key, number) in truth.all() {
        let Some(rest) = key.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.')) else {
            continue;
        };
        let Some((goid, side)) = rest.split_once('.') else {
            continue;
        };
        let Ok(goid) = goid.parse() else { continue };
        let entry = found.entry(goid).or_default();
        match side {
            "before" => entry.0 = number,
            "after" => entry.1 = number,
            other => panic!("{other}"),
        }
    }
    assert!(!found.is_empty(), "the program waits for no {kind}");
    found
}

/// The waiters of each kind are exactly those that wait for it, at its address, in the order in which they came.
fn locks_are_exact(truth: &Truth, held: &HeldUp, what: &str) {
    assert_eq!((held.unknown, held.contradicted), (0, 0), "{what}: {held:#?}");
    assert_eq!(held.followed.torn, 0, "{what}");
    assert!(!held.followed.cut);
    let kinds = [
        ("mutex_a", LockKind::Mutex, 23),
        ("mutex_b", LockKind::Mutex, 7),
        ("rw_read", LockKind::RwRead, 11),
        ("rw_write", LockKind::RwWrite, 3),
        ("wait_group", LockKind::WaitGroup, 13),
        ("cond", LockKind::Cond, 3),
    ];
    let mut all: BTreeSet<u64> = BTreeSet::new();
    for (name, kind, count) in kinds {
        let address = truth.get(&format!("address.{name}"));
        let wanted = began(truth, name);
        let found: Vec<_> = held
            .waiters
            .iter()
            .filter(|waiter| waiter.lock == address && waiter.kind == kind)
            .collect();
        let goids: BTreeSet<u64> = found.iter().map(|waiter| waiter.goid).collect();
        assert_eq!(
            goids,
            wanted.keys().copied().collect(),
            "{what} {name}: {:#?}",
            held.waiters
        );
        assert_eq!((found.len(), wanted.len()), (count, count), "{what} {name}");
        all.extend(goids);
        let mut in_order: Vec<_> = found
            .iter()
            .filter_map(|waiter| Some((waiter.position?, waiter.goid)))
            .collect();
        in_order.sort_unstable();
        let came: Vec<_> = {
            let mut came: Vec<_> = wanted
                .iter()
                .map(|(&goid, &(before, _))| (before, goid))
                .collect();
            came.sort_unstable();
            came.into_iter().map(|(_, goid)| goid).collect()
        };
        match kind {
            // No table lists them.
            LockKind::Cond => assert!(in_order.is_empty(), "{what} {name}"),
            // The first writer waits for the readers, the others for the first.
            LockKind::RwWrite => {
                let positions: Vec<_> = in_order.iter().map(|&(position, _)| position).collect();
                assert_eq!(positions, [0, 0, 1], "{what} {name}");
            }
            _ => {
                let goids: Vec<_> = in_order.iter().map(|&(_, goid)| goid).collect();
                assert_eq!(goids, came, "{what} {name}");
            }
        }
        for waiter in found {
            let (before, after) = wanted[&waiter.goid];
            match waiter.since_ns {
                Some(since) => assert!((before..=after).contains(&since), "{what} {name}: {waiter:?}"),
                // Only mutexes tell.
                None => assert_ne!(kind, LockKind::Mutex, "{what} {name}: {waiter:?}"),
            }
        }
    }
    let others: Vec<_> = held
        .waiters
        .iter()
        .filter(|waiter| !all.contains(&waiter.goid))
        .collect();
    assert!(others.is_empty(), "{what}: {others:#?}");
}

fn channels_are_exact(truth: &Truth, objects: &mut Objects, reader: &Reader<Live>, what: &str) {
    let found = objects.channels(reader, |_| true);
    let of = |name: &str| {
        let wanted = began(truth, name);
        let found: Vec<_> = found
            .iter()
            .filter(|waiter| wanted.contains_key(&waiter.goid))
            .collect();
        assert_eq!(found.len(), wanted.len(), "{what} {name}");
        found
    };
    let (send, receive) = (truth.get("address.chan_send"), truth.get("address.chan_receive"));
    for waiter in of("chan_send") {
        let channel = waiter.channels[0];
        assert!(!channel.ticks);
        assert_eq!(
            (waiter.does, waiter.channels.len()),
            (ChannelUse::Send, 1),
            "{what}"
        );
        assert_eq!(
            (channel.address, channel.len, channel.capacity, channel.closed),
            (send, 19, 19, false),
            "{what}"
        );
    }
    for waiter in of("chan_receive") {
        let channel = waiter.channels[0];
        assert_eq!(
            (waiter.does, waiter.channels.len()),
            (ChannelUse::Receive, 1),
            "{what}"
        );
        assert_eq!(
            (channel.address, channel.len, channel.capacity, channel.closed),
            (receive, 0, 0, false),
            "{what}"
        );
    }
    for waiter in of("select") {
        let channels: BTreeSet<_> = waiter
            .channels
            .iter()
            .map(|channel| (channel.address, channel.len, channel.capacity))
            .collect();
        assert_eq!(waiter.does, ChannelUse::Select, "{what}");
        // A nil channel is no case.
        assert_eq!(
            channels,
            BTreeSet::from([(send, 19, 19), (receive, 0, 0)]),
            "{what}"
        );
    }
    for waiter in of("tick") {
        let channel = waiter.channels[0];
        assert!(channel.ticks && channel.capacity == 1, "{what}: {waiter:?}");
    }
    for waiter in of("chan_nil") {
        assert_eq!(waiter.does, ChannelUse::Receive, "{what}");
        assert!(waiter.channels.is_empty(), "{what}: {waiter:?}");
    }
}

fn sockets_are_exact(truth: &Truth, objects: &mut Objects, reader: &Reader<Live>, pid: u32, what: &str) {
    let found = objects.sockets(reader, |_| true, has_descriptor(pid));
    let wanted: BTreeMap<u64, i32> = truth
        .all()
        .filter_map(|(key, _)| {
            let rest = key.strip_prefix("socket.")?.strip_suffix(".before")?;
            let (fd, goid) = rest.split_once('.')?;
            Some((goid.parse().ok()?, fd.parse().ok()?))
        })
        .collect();
    assert_eq!(wanted.len(), 19, "{what}: {wanted:?}");
    for (goid, fd) in &wanted {
        let told = found.iter().find(|socket| socket.goid == *goid);
        assert_eq!(
            told.map(|socket| socket.fd),
            Some(*fd),
            "{what}: goroutine {goid} {found:#?}"
        );
    }
    let count = |direction| {
        let own = found.iter().filter(|socket| wanted.contains_key(&socket.goid));
        own.filter(|socket| socket.direction == direction).count()
    };
    // Sixteen read, the listener accepts, one writes, and one sleeps in a read of a pipe.
    assert_eq!(
        (
            count(Direction::Read),
            count(Direction::Write),
            count(Direction::Call)
        ),
        (17, 1, 1),
        "{what}"
    );
    // The others are those of the HTTP server and client, and main's read of its input.
    for socket in &found {
        assert!(has_descriptor(pid)(socket.fd), "{what}: {socket:?}");
    }
}

fn pools_are_exact(truth: &Truth, objects: &mut Objects, reader: &Reader<Live>, what: &str) {
    let pools = objects.pools(reader, std::iter::empty());
    assert_eq!(pools.len(), 1, "{what}: {pools:#?}");
    let pool = &pools[0];
    assert_eq!(pool.address, truth.get("address.pool"), "{what}");
    assert_eq!(
        [pool.max_open, pool.open, pool.idle, pool.waited],
        ["max_open", "open", "idle", "wait_count"].map(|name| truth.get(&format!("pool.{name}"))),
        "{what}"
    );
    let waiters: BTreeSet<u64> = pool.asked.iter().copied().collect();
    assert_eq!(waiters, began(truth, "pool").into_keys().collect(), "{what}");
    assert_eq!((pool.asked.len(), pool.waiting()), (30, 30), "{what}");
    // They have waited, and none has got one.
    assert!(pool.exhausted(), "{what}");
    assert_eq!(pool.waited_ns, Some(0), "{what}");
    let again = Objects::find(reader).pools(reader, std::iter::once(pool.address));
    assert_eq!(&again[0], pool, "{what}");

    let connections = objects.http(reader, |_| true);
    let host = format!("127.0.0.1:{}", truth.get("http.port"));
    for connection in &connections {
        assert_eq!(
            (&*connection.scheme, &*connection.host, &*connection.proxy),
            ("http", &*host, ""),
            "{what}"
        );
    }
    // Eight requests at the same time, one of which was read to its end.
    for kind in [HttpLoop::Read, HttpLoop::Write] {
        let addresses: BTreeSet<u64> = connections
            .iter()
            .filter(|connection| connection.kind == kind)
            .map(|connection| connection.address)
            .collect();
        assert_eq!(addresses.len(), 8, "{what} {kind:?}: {connections:#?}");
    }
}

/// The names of a group's functions, leaf first.
fn functions<M: Memory>(reader: &Reader<M>, group: &Group) -> Vec<String> {
    let frames = group.frames.iter();
    frames
        .flat_map(|&(pc, called)| reader.program().names(pc - u64::from(called)))
        .collect()
}

/// Every stack is one that is known, but for those of the workload's own functions that wait on channels and descriptors.
fn shapes_are_exact(objects: &mut Objects, reader: &Reader<Live>, what: &str) {
    let ticking: BTreeSet<u64> = objects
        .channels(reader, |_| true)
        .into_iter()
        .filter(|waiter| waiter.channels.iter().any(|channel| channel.ticks))
        .map(|waiter| waiter.goid)
        .collect();
    let mut counts: BTreeMap<Option<Shape>, usize> = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    for (_, goroutine) in reader.goroutines() {
        let group = &reader.groups()[goroutine.group as usize];
        let functions = functions(reader, group);
        let functions: Vec<&str> = functions.iter().map(|name| &**name).collect();
        let reason = group.status.reason().map(usize::from);
        let shape = shape(&Stack {
            functions: &functions,
            reason: reason
                .and_then(|reason| reader.runtime().reasons.get(reason))
                .map(|reason| &**reason),
            ticks: ticking.contains(&goroutine.goid),
        });
        *counts.entry(shape).or_default() += 1;
        if shape.is_none() {
            unknown.insert(functions.join(" "));
        }
    }
    let count = |shape| counts.get(&Some(shape)).copied().unwrap_or(0);
    let exact = [
        (Shape::Mutex, 23 + 7 + 11 + 3),
        (Shape::WaitGroup, 13),
        (Shape::Cond, 3),
        (Shape::PoolWait, 30),
        (Shape::OpenDatabase, 1),
        (Shape::UnreadBody, 7),
        (Shape::IdleClient, 1),
        (Shape::Forever, 2),
        (Shape::Ticker, 2),
        (Shape::Main, 1),
        // The HTTP server's listener, and the one that a goroutine accepts from.
        (Shape::Accepts, 2),
    ];
    for (shape, wanted) in exact {
        assert_eq!(count(shape), wanted, "{what} {shape:?}: {counts:?}");
    }
    // One connection is idle; what was written to the others may all be in the sockets.
    let idle = count(Shape::IdleServer) + count(Shape::SlowRequest);
    assert!((1..=8).contains(&idle), "{what}: {counts:?}");
    assert!(count(Shape::HttpPair) >= 8, "{what}: {counts:?}");
    assert!(
        count(Shape::Runtime) >= 3 && count(Shape::Finalizers) <= 2,
        "{what}: {counts:?}"
    );
    assert!(
        unknown
            .iter()
            .all(|stack| stack.contains(" main.") || stack.contains("ServeHTTP")),
        "{what}: {unknown:#?}"
    );
}

/// Everything that waits, in programs of every version, with and without symbols.
#[test]
fn go_objects_are_those_of_the_program() {
    let versions = ["system", "1.21.13", "1.23.9", "1.25.5", "1.27.3"];
    let exact = |what: &str, mut workload: Workload| {
        let truth = workload.go();
        let mut reader = reader(workload.pid, Live::new(workload.pid));
        settled(&mut reader);
        let begun = std::time::Instant::now();
        let mut objects = Objects::find(&reader);
        let found = begun.elapsed();
        let held = objects.held_up(&reader, |_| true, now());
        let first = begun.elapsed();
        let held_again = objects.held_up(&reader, |_| true, now());
        println!(
            "{what}: found in {found:?}, asked in {:?}, again in {:?}",
            first.saturating_sub(found),
            begun.elapsed().saturating_sub(first)
        );
        assert_eq!(held, held_again, "{what}");
        locks_are_exact(&truth, &held, what);
        channels_are_exact(&truth, &mut objects, &reader, what);
        sockets_are_exact(&truth, &mut objects, &reader, workload.pid, what);
        pools_are_exact(&truth, &mut objects, &reader, what);
        shapes_are_exact(&mut objects, &reader, what);
        workload.quit();
    };
    each(&[], &versions, &BUILDS, exact);
    each(&[], &["system", "1.27.3"], &[("pie", &["-buildmode=pie"])], exact);
    // Not optimised: the code of the table looks different, so only mutexes tell, and they tell the truth.
    each(
        &[],
        &["1.27.3"],
        &[("debug", &["-gcflags=all=-N -l"])],
        |what, mut workload| {
            let truth = workload.go();
            let mut reader = reader(workload.pid, Live::new(workload.pid));
            settled(&mut reader);
            let held = Objects::find(&reader).held_up(&reader, |_| true, now());
            assert_eq!((held.waiters.len(), held.unknown), (23 + 7 + 2, 28), "{what}");
            for waiter in &held.waiters {
                let kind = ["mutex_a", "mutex_b", "rw_write"]
                    .into_iter()
                    .find(|kind| truth.get(&format!("address.{kind}")) == waiter.lock)
                    .unwrap_or_else(|| panic!("{what}: {waiter:?}"));
                let (before, after) = began(&truth, kind)[&waiter.goid];
                let since = waiter.since_ns.unwrap();
                assert!((before..=after).contains(&since), "{what}: {waiter:?}");
            }
            workload.quit();
        },
    );
}

/// Locks that are fought for: whoever is said to wait for one is a goroutine that can, and for a lock that there is.
#[test]
fn go_objects_of_a_program_that_runs_hard() {
    each(
        &["hard"],
        &["system", "1.23.9", "1.27.3"],
        &BUILDS[1..],
        |what, mut workload| {
            let truth = workload.go();
            let started = now();
            let mut reader = reader(workload.pid, Live::new(workload.pid));
            let mut objects = Objects::find(&reader);
            let address = |name: &str| truth.get(&format!("address.{name}"));
            let (mut waits, mut on_channels, mut moved, mut torn, mut rounds) = (0, 0, 0, 0, 0);
            while (waits < 5_000 || on_channels < 2_000) && rounds < 20_000 {
                rounds += 1;
                reader.take(now(), &mut ()).unwrap();
                let held = objects.held_up(&reader, |_| true, now());
                assert_eq!(held.contradicted, 0, "{what}: {held:#?}");
                moved += held.unknown;
                torn += held.followed.torn;
                for waiter in &held.waiters {
                    let group = &reader.groups()[waiter.group as usize];
                    let stack = functions(&reader, group).join(" ");
                    let (lock, by) = match waiter.kind {
                        LockKind::Mutex if stack.contains("main.waitForA") => (address("mutex_a"), ""),
                        LockKind::Mutex => (address("mutex_b"), "main.waitForB"),
                        LockKind::RwRead => (address("rw_read"), "main.readConfig"),
                        LockKind::RwWrite => (address("rw_write"), "main.hard.func"),
                        // The collector's own.
                        LockKind::Semaphore => (waiter.lock, "runtime."),
                        other => panic!("{what}: nobody waits for a {other:?}: {stack}"),
                    };
                    assert!(
                        waiter.lock == lock && stack.contains(by),
                        "{what}: {waiter:?} {stack}"
                    );
                    assert!(
                        waiter.kind == LockKind::Semaphore
                            || waiter.since_ns.is_none_or(|since| {
                                // Nobody waits for minutes, and nobody before the program began.
                                since < now() && since > started.saturating_sub(10_000_000_000)
                            }),
                        "{what}: {waiter:?}"
                    );
                }
                waits += held.waiters.len();
                for waiter in objects.channels(&reader, |_| true) {
                    let group = &reader.groups()[waiter.group as usize];
                    let stack = functions(&reader, group).join(" ");
                    if !stack.contains("main.") {
                        continue;
                    }
                    on_channels += 1;
                    let buffered = address("chan_send");
                    for channel in &waiter.channels {
                        let capacity = if channel.address == buffered { 2 } else { 0 };
                        assert_eq!(
                            (channel.capacity, channel.closed),
                            (capacity, false),
                            "{what}: {waiter:?} {stack}"
                        );
                    }
                    let known = if stack.contains("main.offer") {
                        Some(buffered)
                    } else if stack.contains("main.take") {
                        Some(address("chan_receive"))
                    } else {
                        None
                    };
                    if let Some(known) = known {
                        assert_eq!(waiter.channels.len(), 1, "{what}: {waiter:?} {stack}");
                        assert_eq!(waiter.channels[0].address, known, "{what}: {waiter:?} {stack}");
                    }
                }
            }
            println!(
                "{what}: {waits} waits for locks ({moved} moved, {torn} torn), {on_channels} on channels, {rounds} rounds"
            );
            assert!(
                waits >= 5_000 && on_channels >= 2_000,
                "{what}: {waits} {on_channels}"
            );
            workload.quit();
        },
    );
}

/// A process's memory in which some words are not what they were: always the same ones.
struct Damaged {
    live: Live,
    seed: u64,
    /// One word of so many.
    rate: u64,
}

impl Damaged {
    fn word(&self, address: u64, word: u64) -> u64 {
        let mut mixed =
            (address ^ self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^= mixed >> 29;
        mixed = mixed.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^= mixed >> 32;
        if !mixed.is_multiple_of(self.rate) {
            return word;
        }
        match (mixed >> 8) % 6 {
            0 => 0,
            1 => u64::MAX,
            2 => mixed,
            3 => word ^ (1 << ((mixed >> 16) % 64)),
            // Itself: lists and trees that bite their tails.
            4 => address & !63,
            _ => word.wrapping_add(8),
        }
    }
}

impl Memory for Damaged {
    fn read_pieces(&self, pieces: &mut [Piece], into: &mut [u8]) {
        self.live.read_pieces(pieces, into);
        let mut rest = into;
        for piece in pieces {
            let (part, after) = rest.split_at_mut(piece.len);
            for (number, bytes) in part.chunks_exact_mut(8).enumerate() {
                let word = u64::from_le_bytes(bytes.try_into().unwrap());
                let address = piece.address.wrapping_add(8 * number as u64);
                bytes.copy_from_slice(&self.word(address, word).to_le_bytes());
            }
            rest = after;
        }
    }
}

/// Memory that was damaged gives fewer answers, or other ones, but neither a panic nor a question without end.
#[test]
fn go_objects_of_damaged_memory() {
    each(&[], &["system", "1.27.3"], &BUILDS[1..], |what, mut workload| {
        workload.go();
        let (mut read, mut held, mut answers) = (0, 0, 0);
        for seed in 0..120 {
            let damaged = || Damaged {
                live: Live::new(workload.pid),
                seed,
                rate: [40, 400, 4000][seed as usize % 3],
            };
            let program = Program::open(workload.pid).unwrap();
            // Half of them begin with damage, the others meet it later.
            let runtime = if seed % 2 == 0 {
                Runtime::find(&damaged(), &program)
            } else {
                Runtime::find(&Live::new(workload.pid), &program)
            };
            let Ok(runtime) = runtime else { continue };
            let mut reader = Reader::new(damaged(), program, runtime);
            if reader.take(now(), &mut ()).is_none() {
                continue;
            }
            read += 1;
            let mut objects = Objects::find(&reader);
            held += objects.held_up(&reader, |_| true, now()).waiters.len();
            answers += objects.channels(&reader, |_| true).len();
            answers += objects.sockets(&reader, |_| true, |_| true).len();
            answers +=
                objects.pools(&reader, std::iter::empty()).len() + objects.http(&reader, |_| true).len();
        }
        println!("{what}: {read} of 120 could be read: {held} waits for locks, {answers} other answers");
        assert!(
            read >= 20 && held > 0 && answers > 0,
            "{what}: {read} {held} {answers}"
        );
        workload.quit();
    });
}
