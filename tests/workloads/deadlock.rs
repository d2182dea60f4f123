//! Two threads that take two `std::sync::Mutex` in opposite orders; `ordered`: in one order, often; `crowd`: many threads wait for
//! two mutexes that one sleeping thread holds, each with both at hand; `busy crowd`: one that computes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a workload ends where it fails, and its stdout is how tests talk to it"
)]

use std::hint::black_box;
use std::io::{BufRead as _, stdin};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

struct Shop {
    orders: Mutex<u64>,
    stock: Mutex<u64>,
    both_hold: Barrier,
}

static TIDS: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];

fn own_tid() -> u32 {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[inline(never)]
fn place_order(shop: &Shop) {
    let mut orders = shop.orders.lock().unwrap();
    shop.both_hold.wait();
    let mut stock = shop.stock.lock().unwrap();
    *orders += 1;
    *stock -= black_box(1);
}

#[inline(never)]
fn restock(shop: &Shop) {
    let mut stock = shop.stock.lock().unwrap();
    shop.both_hold.wait();
    let mut orders = shop.orders.lock().unwrap();
    *stock += 1;
    *orders += black_box(1);
}

#[inline(never)]
fn in_order(shop: &Shop) {
    let mut orders = shop.orders.lock().unwrap();
    let mut stock = shop.stock.lock().unwrap();
    *orders += 1;
    *stock += black_box(1);
    thread::sleep(Duration::from_micros(300));
}

#[inline(never)]
fn wait_for(first: &Mutex<u64>, other: &Mutex<u64>) {
    *first.lock().unwrap() += 1;
    *black_box(other).lock().unwrap() += 1;
}

#[inline(never)]
fn hold_both(shop: &Shop, busy: bool) {
    let orders = shop.orders.lock().unwrap();
    let stock = shop.stock.lock().unwrap();
    shop.both_hold.wait();
    while busy {
        black_box(&orders);
    }
    thread::sleep(Duration::from_secs(600));
    drop((black_box(orders), black_box(stock)));
}

fn asleep_in_futex(tid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).unwrap_or_default();
    text.starts_with("202 ")
}

fn main() {
    let kind = std::env::args().nth(1).unwrap_or_default();
    let shop = Arc::new(Shop {
        orders: Mutex::new(0),
        stock: Mutex::new(0),
        both_hold: Barrier::new(2),
    });
    println!("ready {}", process::id());
    let mut lines = stdin().lock().lines();
    let _ = lines.next();
    let busy = kind == "busy crowd";
    if busy || kind == "crowd" {
        let held = Arc::clone(&shop);
        thread::spawn(move || hold_both(&held, busy));
        shop.both_hold.wait();
    }
    for side in 0..2usize {
        let shop = Arc::clone(&shop);
        let kind = kind.clone();
        thread::spawn(move || {
            TIDS[side].store(own_tid(), Ordering::SeqCst);
            match (kind.as_str(), side) {
                ("ordered", _) => loop {
                    in_order(&shop);
                },
                ("crowd" | "busy crowd", 0) => wait_for(&shop.orders, &shop.stock),
                ("crowd" | "busy crowd", _) => wait_for(&shop.stock, &shop.orders),
                (_, 0) => place_order(&shop),
                _ => restock(&shop),
            }
        });
    }
    for tid in &TIDS {
        while tid.load(Ordering::SeqCst) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        while kind != "ordered" && !asleep_in_futex(tid.load(Ordering::SeqCst)) {
            thread::sleep(Duration::from_millis(1));
        }
    }
    println!("truth tid0 {}", TIDS[0].load(Ordering::SeqCst));
    println!("truth tid1 {}", TIDS[1].load(Ordering::SeqCst));
    println!("done");
    let _ = lines.next();
    process::exit(0);
}
