//! Rust locks with a known number of sleeps: 23 on a `std::sync::Mutex`, 97 on a `parking_lot::Mutex`.
//!
//! One waiter at a time, as in `locks.c`. Threads hand turns to each other through pipes: a sleep there is a
//! read, never a futex wait.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a workload ends where it fails, and its stdout is how tests talk to it"
)]

use std::fs;
use std::hint::black_box;
use std::io::{BufRead as _, PipeReader, PipeWriter, Read as _, Write as _, pipe, stdin};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const STD_WAITS: u64 = 23;
const PARKING_LOT_WAITS: u64 = 97;

static CACHE: Mutex<u64> = Mutex::new(0);
static SESSIONS: parking_lot::Mutex<u64> = parking_lot::Mutex::new(0);
static STD_SLEEPS: AtomicU64 = AtomicU64::new(0);
static PARKING_LOT_SLEEPS: AtomicU64 = AtomicU64::new(0);

/// One side's end of the two pipes.
struct Turns {
    mine: PipeReader,
    theirs: PipeWriter,
}

impl Turns {
    fn pair() -> (Self, Self) {
        let (read_a, write_a) = pipe().unwrap();
        let (read_b, write_b) = pipe().unwrap();
        (
            Self {
                mine: read_a,
                theirs: write_b,
            },
            Self {
                mine: read_b,
                theirs: write_a,
            },
        )
    }

    fn take(&mut self) {
        self.mine.read_exact(&mut [0]).unwrap();
    }

    fn give(&mut self) {
        self.theirs.write_all(&[0]).unwrap();
    }
}

#[inline(never)]
fn wait_for_cache() {
    let mut cache = CACHE.lock().unwrap();
    *cache += 1;
    black_box(&mut *cache);
}

#[inline(never)]
fn wait_for_sessions() {
    let mut sessions = SESSIONS.lock();
    *sessions += 1;
    black_box(&mut *sessions);
}

#[inline(never)]
fn handle_request(turns: &mut Turns, wait: fn()) {
    turns.take();
    wait();
    turns.give();
}

#[inline(never)]
fn worker_main(mut turns: Turns) {
    for _ in 0..STD_WAITS {
        handle_request(&mut turns, wait_for_cache);
    }
    for _ in 0..PARKING_LOT_WAITS {
        handle_request(&mut turns, wait_for_sessions);
    }
    thread::sleep(Duration::from_mins(10));
}

#[inline(never)]
fn refresh_cache(turns: &mut Turns, waiter: i32) {
    let cache = CACHE.lock().unwrap();
    turns.give();
    until_asleep(waiter);
    STD_SLEEPS.fetch_add(1, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(20));
    drop(cache);
    turns.take();
}

#[inline(never)]
fn refresh_sessions(turns: &mut Turns, waiter: i32) {
    let sessions = SESSIONS.lock();
    turns.give();
    until_asleep(waiter);
    PARKING_LOT_SLEEPS.fetch_add(1, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(5));
    drop(sessions);
    turns.take();
}

#[inline(never)]
fn holder_main(turns: &mut Turns, waiter: i32) {
    for _ in 0..STD_WAITS {
        refresh_cache(turns, waiter);
    }
    for _ in 0..PARKING_LOT_WAITS {
        refresh_sessions(turns, waiter);
    }
}

/// Returns once the thread sleeps in futex. The kernel fills in this file only after it has waited for the thread
/// to be inactive; a running thread reads `running`.
fn until_asleep(tid: i32) {
    let path = format!("/proc/self/task/{tid}/syscall");
    let futex = format!("{} ", libc::SYS_futex);
    while !fs::read_to_string(&path).unwrap().starts_with(&futex) {
        thread::sleep(Duration::from_micros(200));
    }
}

fn expect(word: &str) {
    let mut line = String::new();
    stdin().lock().read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), word);
}

fn main() {
    let (mut holder, worker) = Turns::pair();
    let (mut tid_reader, mut tid_writer) = pipe().unwrap();
    thread::spawn(move || {
        // SAFETY: gettid has no arguments and cannot fail.
        let tid = unsafe { libc::gettid() };
        tid_writer.write_all(&tid.to_ne_bytes()).unwrap();
        worker_main(worker);
    });
    let mut tid = [0; 4];
    tid_reader.read_exact(&mut tid).unwrap();

    println!("ready {}", std::process::id());
    expect("go");
    holder_main(&mut holder, i32::from_ne_bytes(tid));
    println!("truth std_mutex {}", STD_SLEEPS.load(Ordering::Relaxed));
    println!("truth parking_lot {}", PARKING_LOT_SLEEPS.load(Ordering::Relaxed));
    println!("done");
    expect("quit");
}
