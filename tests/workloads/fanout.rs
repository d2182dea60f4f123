//! Story 4 in Rust, as `fanout.c`: a `sync_channel` with room for one, whose receiver is kept and forgotten; `fixed`: room for all.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a workload ends where it fails, and its stdout is how tests talk to it"
)]

use std::io::{BufRead as _, stdin};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

const REQUESTS: u64 = 80;
const WORKERS: usize = 3;

#[inline(never)]
fn send_result(to: &SyncSender<u64>) {
    let _ = to.send(3);
}

/// The receiver, of which one answer was taken.
#[inline(never)]
fn serve_request(room: usize) -> Receiver<u64> {
    let (sender, receiver) = sync_channel(room);
    for _ in 0..WORKERS {
        let sender = sender.clone();
        thread::spawn(move || send_result(&sender));
    }
    receiver.recv().unwrap();
    receiver
}

fn main() {
    let fixed = std::env::args().nth(1).as_deref() == Some("fixed");
    let room = if fixed { WORKERS } else { 1 };
    println!("ready {}", std::process::id());
    let mut lines = stdin().lock().lines();
    lines.next();
    let mut kept = Vec::new();
    for _ in 0..REQUESTS {
        kept.push(serve_request(room));
        thread::sleep(Duration::from_millis(120));
    }
    println!("truth kept {}\ndone", if fixed { 0 } else { kept.len() });
    lines.next();
}
