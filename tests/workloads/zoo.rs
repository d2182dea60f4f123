//! Rust as `cargo build --release` makes it: each usual way to wait, after a round of contention.
//!
//! `go`: four threads take one mutex 2,000 times each; `done`: every thread sleeps where it began.

use std::hint::black_box;
use std::io::{BufRead as _, Read as _, stdin};
use std::net::TcpListener;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier, Condvar, Mutex, Once, RwLock};
use std::thread;
use std::time::Duration;

static HELD: Mutex<u64> = Mutex::new(0);
static HOT: Mutex<u64> = Mutex::new(0);
static WRITTEN: RwLock<u64> = RwLock::new(0);
static STUCK: Once = Once::new();
static NEVER: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());

trait Work {
    fn work(&self, depth: u32) -> u64;
}

struct Deep;

impl Work for Deep {
    #[inline(never)]
    fn work(&self, depth: u32) -> u64 {
        if depth == 0 {
            return *black_box(&HELD).lock().unwrap();
        }
        let next: Box<dyn Work> = Box::new(Self);
        black_box(next).work(depth - 1) + u64::from(depth)
    }
}

#[inline(never)]
fn wait_sorting() -> u64 {
    let mut numbers = [3, 1, 2];
    numbers.sort_by_key(|&n| *black_box(&HELD).lock().unwrap() + n);
    numbers[0]
}

#[inline(never)]
fn wait_panic_caught() -> u64 {
    struct Waits;
    impl Drop for Waits {
        fn drop(&mut self) {
            black_box(Deep.work(3));
        }
    }
    let caught = std::panic::catch_unwind(|| {
        let _waits = Waits;
        std::panic::resume_unwind(Box::new(1));
    });
    u64::from(caught.is_err())
}

#[inline(never)]
fn wait_once() -> u64 {
    STUCK.call_once(|| {
        black_box(Deep.work(1));
    });
    1
}

#[inline(never)]
fn wait_cond() -> u64 {
    let guard = NEVER.0.lock().unwrap();
    drop(NEVER.1.wait_while(guard, |()| black_box(true)));
    1
}

#[inline(never)]
fn contend(done: &Sender<()>) {
    for _ in 0..2000 {
        let mut hot = HOT.lock().unwrap();
        *hot += 1;
        thread::yield_now();
    }
    done.send(()).unwrap();
}

fn main() {
    let _held = HELD.lock().unwrap();
    let _written = WRITTEN.write().unwrap();
    let (silent, messages) = channel::<()>();
    let (done, ended) = channel();
    let start = Arc::new(Barrier::new(5));
    let waits: [fn() -> u64; 9] = [
        || Deep.work(20),
        wait_sorting,
        wait_panic_caught,
        wait_once,
        wait_once,
        wait_cond,
        || *WRITTEN.read().unwrap(),
        || TcpListener::bind("127.0.0.1:0").unwrap().accept().map_or(0, |_| 1),
        || {
            thread::sleep(Duration::from_secs(600));
            1
        },
    ];
    let mut threads: Vec<_> = waits.map(|wait| thread::spawn(move || black_box(wait()))).into();
    threads.push(thread::spawn(move || u64::from(messages.recv().is_err())));
    for _ in 0..4 {
        let (start, done) = (Arc::clone(&start), done.clone());
        threads.push(thread::spawn(move || {
            start.wait();
            contend(&done);
            thread::park();
            1
        }));
    }
    thread::spawn(|| {
        thread::sleep(Duration::from_secs(600));
        std::process::exit(3);
    });
    println!("ready {}", std::process::id());
    let mut lines = stdin().lock().lines();
    let mut expect = |word: &str| match lines.next() {
        Some(Ok(line)) => assert_eq!(line, word),
        _ => std::process::exit(0),
    };
    expect("go");
    start.wait();
    for _ in 0..4 {
        ended.recv().unwrap();
    }
    println!("done");
    expect("quit");
    drop(silent);
    drop(std::io::empty().read(&mut []));
    std::process::exit(0);
}
