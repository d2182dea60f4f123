//! What reports have to compare: rows by what they are and by the code at them, those that only addresses tell apart taken together.

use std::collections::BTreeMap;

use super::{
    join::{Before, alike, append},
    names::{Chain, symbol},
    stats::{Sample, Slot},
};
use crate::report::model::{Blocked, Hist, Lock, LockKind, Reason, Report, Slices};

/// Slots of a run with many reports: of so many, several share one.
const SLOTS_MAX: usize = 64;
/// Rows of a section that are looked at; a report has fewer.
const ROWS_MAX: usize = 512;
/// Waiters of a lock that are looked at.
const SIDES_MAX: usize = 32;
/// Functions of a waiter that are looked at, beside its whole chain.
const FUNCTIONS_MAX: usize = 16;
/// Buckets of a histogram that are looked at.
const BUCKETS_MAX: usize = 1 << 17;
/// From so many documents on, each is one slot.
const DOCUMENTS_FEW: usize = 16;

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A lock.
    Lock,
    /// Sleeps of one reason.
    Blocked,
    /// All run-queue delays.
    RunQueue,
    /// Pauses of a collector.
    Gc,
}

impl Class {
    /// As the document has it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Blocked => "blocked",
            Self::RunQueue => "run_queue",
            Self::Gc => "gc",
        }
    }
}

/// Parts of a whole by the hash of a name, together 1.
pub type Shares = BTreeMap<u64, f64>;

/// The stacks of a report as they are compared, by key.
type Chains = BTreeMap<String, Chain>;

/// Something whose waits can be compared.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is.
    pub class: Class,
    /// Kind of a lock, or reason.
    pub kind: String,
    /// A kind of lock that something else of the kind may stand in for.
    pub excludes: bool,
    /// Waiting there is not lost time by itself.
    pub neutral: bool,
    /// Symbol, when it has one.
    pub symbol: Option<String>,
    /// What the report calls it.
    pub name: Option<String>,
    /// Whole chains of who waits, by time.
    pub chains: Shares,
    /// The application's nearest functions, by time.
    pub leaves: Shares,
    /// All functions, by time.
    pub functions: Shares,
    /// The chain that most time is waited in.
    pub top: Vec<String>,
    /// Its code has no names.
    pub nameless: bool,
    /// Rows taken together.
    pub rows: u64,
    /// Its waits.
    pub sample: Sample,
}

/// What waits of a kind of lock may be replaced by waits of another.
const fn excludes(kind: LockKind) -> bool {
    matches!(
        kind,
        LockKind::Mutex
            | LockKind::Rwlock
            | LockKind::Monitor
            | LockKind::Sem
            | LockKind::Pi
            | LockKind::Pool
            | LockKind::Parker
            | LockKind::UnknownFutex
            | LockKind::GoMutex
            | LockKind::GoRwmutex
            | LockKind::GoChan
            | LockKind::JavaMonitor
    )
}

/// Waiting for something to do, or for what others send, is not lost by itself.
const fn neutral(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::SocketWrite
            | Reason::Connect
            | Reason::FileIo
            | Reason::PageFault
            | Reason::Ipc
            | Reason::IoUring
    )
}

/// A word of the document, as serde has it.
pub fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Everything comparable of a run, whose reports are those of consecutive windows; and how many things were left out.
#[must_use]
pub fn items(reports: &[Report]) -> (Vec<Item>, u64) {
    let coarse = reports.len() > DOCUMENTS_FEW;
    let total: f64 = reports
        .iter()
        .map(|report| report.window.duration_ns as f64)
        .sum();
    let mut all: Vec<Item> = Vec::new();
    let mut left_out = 0;
    let mut before = Before::default();
    let group = reports.len().div_ceil(SLOTS_MAX);
    for (at, report) in reports.iter().enumerate() {
        let duration = report.window.duration_ns as f64;
        let mut here = Vec::new();
        let stacks = report.stacks.iter();
        let chains: Chains = stacks
            .map(|(key, frames)| (key.clone(), Chain::of(frames)))
            .collect();
        let locks = report.locks.iter().flatten().take(ROWS_MAX);
        here.extend(
            locks
                .filter(|lock| !lock.idle)
                .map(|lock| of_lock(lock, &chains, duration)),
        );
        let rows = report.blocked.iter().flatten().take(ROWS_MAX);
        here.extend(rows.map(|row| of_blocked(row, &chains, duration)));
        if let Some(run_queue) = &report.run_queue {
            here.push(bare(
                Class::RunQueue,
                "run_queue",
                sample(&run_queue.hist, run_queue.slices.as_ref(), duration),
            ));
        }
        if let Some(gc) = report.go.as_ref().and_then(|go| go.gc.as_ref()) {
            here.push(bare(Class::Gc, "gc_pauses", sample(&gc.pauses, None, duration)));
        }
        let mut here = alike(here);
        for item in &mut here {
            if coarse {
                item.sample.slots = vec![Slot {
                    duration_ns: duration,
                    count: item.sample.count,
                    total_ns: item.sample.total_ns,
                }];
            }
        }
        before.opens = at % group == 0;
        if before.opens {
            before.slot_ns = 0.0;
        }
        left_out += append(&mut all, here, before, duration);
        before.all_ns += duration;
        before.slot_ns += duration;
    }
    for item in &mut all {
        item.sample.duration_ns = total;
    }
    (all, left_out)
}

/// How alike the code at two things is, 0 to 1.
fn code(one: &Item, other: &Item) -> f64 {
    let overlap = |one: &Shares, other: &Shares| -> f64 {
        one.iter()
            .filter_map(|(name, share)| Some(share.min(*other.get(name)?)))
            .sum()
    };
    if one.chains.is_empty() && other.chains.is_empty() {
        // No stack on either side: the kind is all there is.
        return 1.0;
    }
    overlap(&one.chains, &other.chains)
        .max(0.8 * overlap(&one.leaves, &other.leaves))
        .max(0.6 * overlap(&one.functions, &other.functions))
}

/// How alike two things of one kind are, 0 to 1.
#[must_use]
pub fn likeness(one: &Item, other: &Item) -> f64 {
    let code = code(one, other);
    match (&one.symbol, &other.symbol) {
        (Some(a), Some(b)) if a == b => f64::midpoint(code, 1.0),
        // Two globals may well be taken in one function.
        (Some(_), Some(_)) => code / 2.0,
        _ => code,
    }
}

/// How likely a lock of another kind stands in for the first, 0 to 1: by their code, or by the part of its time that is waited in
/// functions in which the first is waited for too, as of a lock for readers and writers only some of the waiters are left.
#[must_use]
pub fn stands_in(one: &Item, other: &Item) -> f64 {
    let leaves = other.leaves.iter();
    let contained: f64 = leaves
        .filter(|(leaf, _)| one.leaves.contains_key(leaf))
        .map(|(_, share)| share)
        .sum();
    let code = code(one, other).max(0.8 * contained);
    // A variable of another type mostly has another name, but the same name leaves no doubt.
    match (&one.symbol, &other.symbol) {
        (Some(a), Some(b)) if a == b => f64::midpoint(code, 1.0),
        _ => code,
    }
}

fn bare(class: Class, kind: &str, sample: Sample) -> Item {
    Item {
        class,
        kind: kind.to_owned(),
        excludes: false,
        neutral: false,
        symbol: None,
        name: None,
        chains: Shares::new(),
        leaves: Shares::new(),
        functions: Shares::new(),
        top: Vec::new(),
        nameless: false,
        rows: 1,
        sample,
    }
}

fn of_lock(lock: &Lock, chains: &Chains, duration: f64) -> Item {
    let mut item = bare(
        Class::Lock,
        &word(&lock.kind),
        sample(&lock.wait, lock.slices.as_ref(), duration),
    );
    item.excludes = excludes(lock.kind);
    // Threads wait for the others also when there is nothing to do.
    item.neutral = !lock.kind.is_contention() && lock.kind != LockKind::Pool;
    item.symbol = lock.name.as_deref().and_then(symbol);
    item.name.clone_from(&lock.name);
    let waiters = lock.waiters.iter().take(SIDES_MAX);
    let stacks: Vec<(&Chain, f64)> = waiters
        .filter_map(|waiter| Some((chains.get(waiter.stack.as_ref()?)?, waiter.total_ns as f64)))
        .collect();
    share_out(&mut item, stacks);
    item
}

fn of_blocked(row: &Blocked, chains: &Chains, duration: f64) -> Item {
    let mut item = bare(
        Class::Blocked,
        &word(&row.reason),
        sample(&row.wait, row.slices.as_ref(), duration),
    );
    item.neutral = neutral(row.reason);
    let chain = row.stack.as_ref().and_then(|key| chains.get(key));
    share_out(&mut item, chain.map(|chain| (chain, 1.0)).into_iter().collect());
    item
}

fn share_out(item: &mut Item, stacks: Vec<(&Chain, f64)>) {
    let all: f64 = stacks.iter().map(|(_, weight)| weight).sum();
    let top = stacks
        .iter()
        .filter(|(chain, _)| !chain.functions.is_empty())
        .max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((chain, _)) = top {
        item.top.clone_from(&chain.functions);
        item.nameless = chain.nameless;
    }
    for (chain, weight) in stacks {
        let share = if all > 0.0 { weight / all } else { 0.0 };
        let Some(&leaf) = chain.hashes.first() else {
            continue;
        };
        *item.leaves.entry(leaf).or_default() += share;
        let functions = chain.hashes.iter().take(FUNCTIONS_MAX);
        let each = share / functions.len() as f64;
        for &function in functions {
            *item.functions.entry(function).or_default() += each;
        }
        *item.chains.entry(chain.hash).or_default() += share;
    }
}

/// Waits as statistics want them.
#[must_use]
pub fn sample(hist: &Hist, slices: Option<&Slices>, duration_ns: f64) -> Sample {
    let mut buckets: Vec<(u64, u64)> = hist.buckets.iter().take(BUCKETS_MAX).copied().collect();
    buckets.sort_unstable();
    Sample {
        count: hist.count as f64,
        total_ns: hist.total_ns as f64,
        duration_ns,
        buckets,
        recorded: hist.samples.map(|samples| samples as f64),
        slots: slices
            .map(|slices| slots(slices, duration_ns))
            .unwrap_or_default(),
    }
}

fn slots(slices: &Slices, duration_ns: f64) -> Vec<Slot> {
    let long = slices.slice_ns as f64;
    if long <= 0.0 {
        return Vec::new();
    }
    let mut slots = Vec::new();
    for (at, (&count, &total)) in slices.counts.iter().zip(&slices.totals_ns).take(64).enumerate() {
        let left = duration_ns - at as f64 * long;
        slots.push(Slot {
            duration_ns: left.clamp(0.0, long),
            count: count as f64,
            total_ns: total as f64,
        });
    }
    slots
}
