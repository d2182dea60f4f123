//! The demo's service: everything ctrace is for, in one small program that runs until it is killed.
//!
//! What is wrong with it, and what ctrace should say:
//! - `CACHE_LOCK` is held by `refresh_cache` for long, so `lookup_price` waits: one contended lock, two call sites;
//! - `load_template` opens a file about seven times a second and never closes it: a descriptor leak.
//!
//! What is right with it, and what ctrace should leave alone:
//! - `serve_file` opens and closes files all the time: churn;
//! - the pool sleeps on a condition variable until there is work, and there is none: idle, not blocked.

use std::{
    collections::HashMap,
    fs::File,
    hint::black_box,
    io::Read as _,
    mem,
    sync::{Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

static CACHE_LOCK: Mutex<Option<HashMap<u64, u64>>> = Mutex::new(None);
static JOBS: (Mutex<u64>, Condvar) = (Mutex::new(0), Condvar::new());

/// Rebuilds the cache under its lock: the long hold.
#[inline(never)]
fn refresh_cache(round: u64) {
    let mut cache = CACHE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let prices = cache.get_or_insert_default();
    let end = Instant::now() + Duration::from_millis(4);
    let mut item = 0;
    while Instant::now() < end {
        prices.insert(item % 997, black_box(round ^ item));
        item += 1;
    }
}

/// Reads one price: a short hold that waits for the long one.
#[inline(never)]
fn lookup_price(item: u64) -> Option<u64> {
    let cache = CACHE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    cache.as_ref()?.get(&(item % 997)).copied()
}

/// Opens a template and forgets to close it: the leak.
#[inline(never)]
fn load_template() {
    if let Ok(file) = File::open("/etc/passwd") {
        mem::forget(file);
    }
}

/// Opens, reads and closes a file: churn, not a leak.
#[inline(never)]
fn serve_file() -> usize {
    let mut text = [0; 256];
    File::open("/etc/hostname")
        .and_then(|mut file| file.read(&mut text))
        .unwrap_or(0)
}

/// Waits for work that never comes.
#[inline(never)]
fn idle_worker() {
    let (jobs, arrived) = &JOBS;
    let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
    while *jobs == 0 {
        jobs = arrived.wait(jobs).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Starts a thread that does `work` every `period`, for ever.
fn every(name: &str, period: Duration, mut work: impl FnMut(u64) + Send + 'static) -> std::io::Result<()> {
    let forever = move || {
        for round in 0.. {
            work(round);
            thread::sleep(period);
        }
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(forever)
        .map(drop)
}

fn main() -> std::io::Result<()> {
    every("refresher", Duration::from_millis(7), refresh_cache)?;
    for _ in 0..3 {
        every("lookup", Duration::from_millis(1), |round| {
            black_box(lookup_price(round));
        })?;
    }
    for _ in 0..3 {
        thread::Builder::new()
            .name("pool".to_owned())
            .spawn(idle_worker)?;
    }
    every("files", Duration::from_millis(3), |_| {
        black_box(serve_file());
    })?;
    // 1,000 / 143 = 7 a second: slow enough to stay under the default limit of 1,024 for two minutes.
    every("templates", Duration::from_millis(143), |_| load_template())?;
    loop {
        thread::park();
    }
}
