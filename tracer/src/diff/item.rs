//! What reports have to compare: rows by what they are and by the code at them, those that only addresses tell apart taken together.

use std::collections::BTreeMap;

use super::{
    names::{Chain, symbol},
    stats::{Sample, Slot},
};
use crate::report::model::{Blocked, Hist, Lock, LockKind, Reason, Report, Slices};

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
            | Reason::Futex
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

/// Everything comparable of a run, whose reports are those of consecutive windows.
#[must_use]
pub fn items(reports: &[Report]) -> Vec<Item> {
    let coarse = reports.len() > DOCUMENTS_FEW;
    let total: f64 = reports
        .iter()
        .map(|report| report.window.duration_ns as f64)
        .sum();
    let mut all: Vec<Item> = Vec::new();
    let mut before_ns = 0.0;
    for report in reports {
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
        append(&mut all, here, before_ns, duration);
        before_ns += duration;
    }
    for item in &mut all {
        item.sample.duration_ns = total;
    }
    all
}

/// Joins the next window's things to those of the windows before, which lasted so long together.
fn append(all: &mut Vec<Item>, next: Vec<Item>, before_ns: f64, duration: f64) {
    let silent = |duration_ns: f64| Slot {
        duration_ns,
        ..Slot::default()
    };
    let mut met = vec![false; all.len()];
    for mut item in next {
        let found = all.iter_mut().enumerate().find(|(at, known)| {
            !met.get(*at).copied().unwrap_or(true)
                && same_kind(known, &item)
                && likeness(known, &item) >= ALIKE
        });
        if let Some((at, known)) = found {
            if let Some(met) = met.get_mut(at) {
                *met = true;
            }
            let told = known.sample.slots.is_empty() || item.sample.slots.is_empty();
            let mut slots = std::mem::take(&mut known.sample.slots);
            slots.append(&mut item.sample.slots);
            merge(known, item);
            known.sample.slots = if told { Vec::new() } else { slots };
        } else {
            // It was not there before, which is as good as told.
            if before_ns > 0.0 && !item.sample.slots.is_empty() {
                item.sample.slots.insert(0, silent(before_ns));
            }
            all.push(item);
        }
    }
    // Those that did not wait in this window.
    for (item, _) in all.iter_mut().zip(&met).filter(|(_, met)| !**met) {
        if !item.sample.slots.is_empty() {
            item.sample.slots.push(silent(duration));
        }
    }
}

/// From here on two things of one run are one: nothing but addresses tells them apart.
const ALIKE: f64 = 0.9;

/// Takes together what only addresses tell apart.
fn alike(items: Vec<Item>) -> Vec<Item> {
    let mut kept: Vec<Item> = Vec::new();
    for item in items {
        let same = kept
            .iter_mut()
            .find(|known| same_kind(known, &item) && likeness(known, &item) >= ALIKE);
        match same {
            Some(known) => merge_slices(known, item),
            None => kept.push(item),
        }
    }
    kept
}

fn same_kind(one: &Item, other: &Item) -> bool {
    one.class == other.class && one.kind == other.kind
}

/// Of one window: slot by slot.
fn merge_slices(into: &mut Item, from: Item) {
    let mut slots = std::mem::take(&mut into.sample.slots);
    if slots.len() == from.sample.slots.len() {
        for (slot, more) in slots.iter_mut().zip(&from.sample.slots) {
            slot.count += more.count;
            slot.total_ns += more.total_ns;
        }
    } else {
        slots.clear();
    }
    let rows = into.rows + from.rows;
    merge(into, from);
    into.sample.slots = slots;
    into.rows = rows;
}

/// All but slots and rows.
fn merge(into: &mut Item, from: Item) {
    let (mine, theirs) = (into.sample.total_ns, from.sample.total_ns);
    let all = (mine + theirs).max(1.0);
    if theirs > mine {
        into.top = from.top;
        into.nameless = from.nameless;
        into.name = from.name;
    }
    let mix = |into: &mut Shares, from: Shares| {
        for share in into.values_mut() {
            *share *= mine / all;
        }
        for (name, share) in from {
            *into.entry(name).or_default() += share * theirs / all;
        }
    };
    mix(&mut into.chains, from.chains);
    mix(&mut into.leaves, from.leaves);
    mix(&mut into.functions, from.functions);
    into.neutral &= from.neutral;
    into.symbol = into
        .symbol
        .take()
        .filter(|symbol| Some(symbol) == from.symbol.as_ref());
    let sample = &mut into.sample;
    let recorded =
        sample.recorded.unwrap_or(sample.count) + from.sample.recorded.unwrap_or(from.sample.count);
    sample.count += from.sample.count;
    sample.total_ns += from.sample.total_ns;
    sample.recorded = (recorded < sample.count).then_some(recorded);
    let mut buckets: BTreeMap<u64, u64> = std::mem::take(&mut sample.buckets).into_iter().collect();
    for (upper, count) in from.sample.buckets {
        let sum = buckets.entry(upper).or_default();
        *sum = sum.saturating_add(count);
    }
    sample.buckets = buckets.into_iter().collect();
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
