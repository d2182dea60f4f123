//! Story 3 in Rust, as `prices.c`: a `std::sync::Mutex` held while a price is fetched, by eight threads, 400 times; `fixed`: not held.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a workload ends where it fails, and its stdout is how tests talk to it"
)]

use std::collections::HashMap;
use std::io::{BufRead as _, stdin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

static PRICES: LazyLock<Mutex<HashMap<u64, u64>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU64 = AtomicU64::new(0);
const REQUESTS: u64 = 400;

#[inline(never)]
fn fetch_price(item: u64) -> u64 {
    thread::sleep(Duration::from_millis(3));
    item * 3
}

#[inline(never)]
fn lookup_price(item: u64, fixed: bool) {
    if fixed {
        let price = fetch_price(item);
        PRICES.lock().unwrap().insert(item % 64, price);
    } else {
        let mut prices = PRICES.lock().unwrap();
        let price = fetch_price(item);
        prices.insert(item % 64, price);
    }
}

fn main() {
    let fixed = std::env::args().nth(1).as_deref() == Some("fixed");
    println!("ready {}", std::process::id());
    let mut lines = stdin().lock().lines();
    lines.next();
    let serve = move || {
        loop {
            let item = NEXT.fetch_add(1, Ordering::SeqCst);
            if item >= REQUESTS {
                break;
            }
            lookup_price(item, fixed);
        }
    };
    let threads: Vec<_> = (0..8).map(|_| thread::spawn(serve)).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    println!("truth requests {REQUESTS}\ndone");
    lines.next();
}
