//! Diagnoses: each with its threshold, its evidence and its remedy. Silent where nothing is wrong.

mod cpu;
mod fd_pool;
mod fd_shared;
mod go_proof;
mod goroutines;
mod growth;
mod in_part;
mod memory;
mod pools;
mod spawned;
mod stuck;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{asked, deadlocks::Stuck, locks::Locks, names::Names};
use crate::aggregate::{go_starts::GoStarts, verdict::LEAK_CONFIDENCE};
use crate::proc::sched::Throttling;
use crate::report::{
    frames::{app_function, cut, without_path},
    model::{
        Cpu, FdStack, Fds, Finding, Go, Holder, Lock, LockKind, Losses, Memory, Reason, RunQueue, Severity,
        Spawns, StackKey, Time, Verdict,
    },
    units::{count, duration, portion},
};

/// What the diagnoses look at.
pub struct Facts<'a> {
    /// Locks.
    pub locks: Option<&'a Locks>,
    /// Threads that wait for what cannot come.
    pub stuck: &'a Stuck,
    /// Go programs.
    pub go: &'a [Go],
    /// Goroutines that were seen to be made.
    pub starts: &'a GoStarts,
    /// Descriptors.
    pub fds: Option<&'a Fds>,
    /// Time.
    pub time: &'a Time,
    /// What ran.
    pub cpu: Option<&'a Cpu>,
    /// Threads by who made them.
    pub threads: Option<&'a Spawns>,
    /// Resident memory.
    pub memory: Option<&'a Memory>,
    /// The runtime of a process, as in the report.
    pub runtime: &'a dyn Fn(u32) -> &'a str,
    /// CPUs of the host.
    pub cpus: u32,
    /// Run queue.
    pub run_queue: Option<&'a RunQueue>,
    /// The cgroup's quota at work, of the process that it held longest.
    pub throttling: Option<Throttling>,
    /// The same of each process.
    pub throttling_of: &'a dyn Fn(u32) -> Option<Throttling>,
    /// Losses.
    pub losses: &'a Losses,
    /// Window.
    pub window_ns: u64,
    /// Waits that the command line asked for were left out to hold a budget.
    pub short_left_out: bool,
}

/// All diagnoses, worst first.
pub fn findings(facts: &Facts<'_>, names: &mut Names<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut of_cpus = Vec::new();
    cpu::all(facts, &mut of_cpus);
    if let Some(fds) = facts.fds {
        leaks(fds, names, &mut found);
        fd_shared::leaks(fds, names, &mut found);
        near_limit(fds, &mut found);
    }
    for go in facts.go {
        // What is proved of one process is said of that one.
        let mut own = Vec::new();
        goroutines::leaks(go, names, &mut own);
        go_proof::leaks(go, names, &mut own);
        found.append(&mut own);
        pools::exhausted(go, facts, names, &mut found);
        if let Some(gc) = &go.gc {
            found.extend(super::gc::findings(gc, facts.window_ns, facts.time.running_ns));
        }
    }
    if let Some(locks) = facts.locks {
        stuck::stuck(facts.stuck, &locks.locks, names, &mut found);
        for lock in &locks.locks {
            contended(
                lock,
                locks,
                (facts, cpu::Shortage::among(&of_cpus)),
                names,
                &mut found,
            );
        }
    }
    if let Some(threads) = facts.threads {
        spawned::leaks(threads, facts, names, &mut found);
    }
    if let Some(memory) = facts.memory {
        memory::growth(memory, facts, names, &mut found);
    }
    found.append(&mut of_cpus);
    found.sort_by(|a, b| {
        b.severity
            .cmp(&a.severity)
            .then(b.confidence.total_cmp(&a.confidence))
    });
    found
}

/// Columns of the function or lock that a title begins with: the rest of it must fit a screen.
const SUBJECT: usize = 32;

/// The application's function in a stack, and the call that leads to it.
fn function(names: &mut Names<'_>, stack: Option<&StackKey>) -> String {
    let Some(id) = stack.and_then(|key| names.id(key)) else {
        return "code whose stack was not taken".into();
    };
    app_function(names.frames(id))
        .and_then(|frame| frame.function.clone())
        .unwrap_or_else(|| "code without a name".into())
}

fn word(kind: impl serde::Serialize) -> String {
    json!(kind).as_str().unwrap_or_default().replace('_', " ")
}

fn evidence(entries: &[(&str, Value)]) -> BTreeMap<String, Value> {
    entries
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect()
}

/// Confidence from which it is what probably hurts.
const SURE: f64 = 0.45;
const HOUR_NS: u64 = 3_600_000_000_000;

fn leaks(fds: &Fds, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    // A pool's connections that leak, and the others of it that may.
    let mut pooled: BTreeMap<u32, [Vec<&FdStack>; 2]> = BTreeMap::new();
    for row in &fds.by_stack {
        let leaks = row.verdict == Verdict::Leaking && row.confidence >= LEAK_CONFIDENCE;
        let may = row.live > 0 && fd_pool::may_leak(row);
        if (leaks || may) && fd_pool::is_one(row, names) {
            pooled.entry(row.pid).or_default()[usize::from(!leaks)].push(row);
            continue;
        }
        if !leaks {
            continue;
        }
        let innocent = asked::innocent(row, fds, names);
        let (function, stack) = asked::answerable(row.stack.as_ref(), &row.asked_by, &innocent, names)
            .unwrap_or_else(|| (function(names, row.stack.as_ref()), row.stack.clone()));
        let way = asked::by_way_of(&row.asked_by)
            .map_or_else(String::new, |way| format!("; asked for by way of {way}"));
        let way = called_by(&function, stack.as_ref(), names) + &way;
        let kind = kind_of(row);
        let limit = limit_reached(fds);
        found.push(Finding {
            id: "fd.leak".into(),
            severity: severity(row.confidence, fds),
            confidence: row.confidence,
            title: format!(
                "{} ({kind}): {} of {} still open, {:+.1}/s",
                subject(row, &cut(without_path(&function), SUBJECT)),
                count(row.live),
                count(row.opened),
                row.growth_per_s
            ),
            detail: format!(
                "{} opened, {} closed, {}{limit}{way}",
                count(row.opened),
                count(row.closed),
                growth::how(&row.steps)
            ),
            evidence: evidence(&[
                ("opened", json!(row.opened)),
                ("closed", json!(row.closed)),
                ("live", json!(row.live)),
                ("growth_per_s", json!(row.growth_per_s)),
                ("growth_interval_per_s", json!(row.growth_interval_per_s)),
                ("stays", json!(row.stays)),
                ("steps", json!(row.steps)),
                ("time_to_limit_ns", json!(fds.time_to_limit_ns)),
                ("opened_in", json!(row.stack)),
            ]),
            remedy: remedy_of(row, &function),
            stack,
            lock: None,
        });
    }
    let leaking = pooled.values();
    found.extend(leaking.filter_map(|[rows, others]| fd_pool::leak(rows, others, fds, names)));
}

/// Who called it: what opens is often a function that many use.
fn called_by(function: &str, stack: Option<&StackKey>, names: &mut Names<'_>) -> String {
    let Some(id) = stack.and_then(|key| names.id(key)) else {
        return String::new();
    };
    let frames = names.frames(id);
    let at = frames
        .iter()
        .position(|frame| frame.function.as_deref() == Some(function));
    let callers = at.and_then(|at| frames.get(at + 1..)).unwrap_or_default();
    let caller = callers.iter().find_map(|frame| frame.function.as_deref());
    caller
        .filter(|name| {
            !["runtime.", "clone", "start_thread", "_start", "__libc_start"]
                .iter()
                .any(|own| name.starts_with(own))
        })
        .map_or_else(String::new, |name| {
            format!("; called by {}", cut(without_path(name), SUBJECT))
        })
}

fn severity(confidence: f64, fds: &Fds) -> Severity {
    let soon = fds.time_to_limit_ns.is_some_and(|ns| ns < HOUR_NS);
    match (confidence >= SURE, soon) {
        (true, true) => Severity::Critical,
        (true, false) => Severity::High,
        (false, _) => Severity::Medium,
    }
}

/// What most of a row's descriptors are.
fn kind_of(row: &FdStack) -> String {
    let most = row.kinds.iter().max_by_key(|(_, count)| **count);
    most.map(|(kind, _)| word(*kind)).unwrap_or_default()
}

fn limit_reached(fds: &Fds) -> String {
    match (fds.time_to_limit_ns, fds.limit) {
        (Some(ns), Some(limit)) => {
            format!("; the limit of {} is reached in {}", count(limit), duration(ns))
        }
        _ => String::new(),
    }
}

/// Dialled by Go's HTTP client.
fn is_http(row: &FdStack) -> bool {
    let mut by = row.asked_by.iter().filter_map(|by| by.created_by.as_deref());
    by.any(|name| name.starts_with("net/http.(*Transport)."))
}

/// Who does what: a connection of an HTTP client is dialled for one caller, and may have come to another one.
fn subject(row: &FdStack, function: &str) -> String {
    if is_http(row) {
        format!("HTTP connections dialled for {function} leak")
    } else {
        format!("{function} leaks descriptors")
    }
}

fn remedy_of(row: &FdStack, function: &str) -> String {
    if is_http(row) {
        format!(
            "Close the body of every response (defer resp.Body.Close()), also where it is not read: in {function}, or in another caller of the same http.Client, which got a connection that was dialled for {function}."
        )
    } else {
        format!(
            "Close what {function} opens on every path, also where it fails; the examples show what they are."
        )
    }
}

/// Share of the limit from which it is worth a word.
const NEAR_LIMIT: f64 = 0.9;

fn near_limit(fds: &Fds, found: &mut Vec<Finding>) {
    let Some(limit) = fds.limit.filter(|&limit| limit > 0) else {
        return;
    };
    let share = fds.open_at_end as f64 / limit as f64;
    if share < NEAR_LIMIT {
        return;
    }
    found.push(Finding {
        id: "fd.limit".into(),
        severity: Severity::High,
        confidence: 1.0,
        title: format!(
            "{} of {} descriptors are in use",
            count(fds.open_at_end),
            count(limit)
        ),
        detail: "When none is left, open, accept and connect fail with EMFILE.".into(),
        evidence: evidence(&[("open", json!(fds.open_at_end)), ("limit", json!(limit))]),
        remedy: "Raise the limit (LimitNOFILE=, ulimit -n) to gain time, and look at who holds them.".into(),
        stack: None,
        lock: None,
    });
}

/// Sleeps below which nothing is said of a lock.
const CONTENDED_WAITS: u64 = 20;
/// Share of the window that fewer waits must have taken.
const FEW: f64 = 0.1;

fn through_python(lock: &Lock, names: &mut Names<'_>) -> bool {
    let key = lock.waiters.first().and_then(|waiter| waiter.stack.as_ref());
    let Some(id) = key.and_then(|key| names.id(key)) else {
        return false;
    };
    names.frames(id).iter().any(|frame| {
        frame
            .function
            .as_deref()
            .is_some_and(|name| name.starts_with("PyThread_acquire_lock"))
    })
}

fn contended(
    lock: &Lock,
    locks: &Locks,
    (facts, shortage): (&Facts<'_>, Option<cpu::Shortage>),
    names: &mut Names<'_>,
    found: &mut Vec<Finding>,
) {
    if lock.idle || !lock.kind.is_contention() {
        return;
    }
    let Some(users) = locks.users.get(&lock.id) else {
        return;
    };
    let window_ns = facts.window_ns;
    let at_least = facts.short_left_out || lock.covered_ns.is_some();
    let share = users.inside_ns as f64 / lock.covered_ns.unwrap_or(window_ns).max(1) as f64;
    // Few waits count when they are long; of a sample one may stand for a thousand, and says nothing alone.
    let seen = lock.wait.samples.unwrap_or(lock.waits);
    let sampled = lock.wait.samples.is_some();
    if seen < CONTENDED_WAITS && (sampled || share < FEW || lock.waits < 2) {
        return;
    }
    // Waiting for one's turn at a lock means that more than one thread uses it.
    let all = users.waiters.union(&users.wakers).count();
    if all < 2 {
        return;
    }
    // CPython's queues and conditions sleep on locks of their own; only what is both waited for and released by the same
    // threads is a lock that they take turns at.
    if through_python(lock, names) && users.waiters.intersection(&users.wakers).count() == 0 {
        return;
    }
    let (p99, p50) = (lock.wait.p99_ns, lock.wait.p50_ns);
    let Some((severity, sure)) = in_part::severity(lock, share, facts.go, names) else {
        return;
    };
    // It is the CPUs that are to be seen to, and the lock afterwards.
    let shortage = shortage.filter(|shortage| shortage.is_of(lock.pid, facts));
    let of_ns = lock.covered_ns.unwrap_or(window_ns);
    let (severity, shortage) = less_for_want_of_cpus(severity, shortage, lock, (all, of_ns));
    let without = shortage.map_or_else(String::new, |shortage| {
        format!(
            "; its holders are kept from the CPUs: see to {} first",
            shortage.id()
        )
    });
    let (total, window) = (
        duration(lock.wait.total_ns),
        in_part::window(lock.covered_ns, window_ns),
    );
    let who = if matches!(lock.kind, LockKind::GoMutex | LockKind::GoRwmutex) {
        "goroutines"
    } else {
        "threads"
    };
    let took = if share < 1.0 {
        format!("took {total} of {window} ({})", portion(share))
    } else {
        format!("took {total} in {window} ({share:.1} {who} waiting on average)")
    };
    let name = lock
        .name
        .clone()
        .or_else(|| lock.address.clone())
        .unwrap_or_else(|| "a lock".into());
    // Some stacks are not taken in the first moments.
    let stack = lock.waiters.iter().find_map(|waiter| waiter.stack.clone());
    let waiter = function(names, stack.as_ref());
    let released = releasers(lock, names);
    found.push(Finding {
        id: "lock.contended".into(),
        severity,
        confidence: match (sure, seen) {
            (false, _) => 0.5,
            (true, 1000..) => 0.95,
            (true, _) => 0.8,
        },
        title: format!(
            "{}: {}{} waits {took}",
            cut(&name, SUBJECT),
            match (sampled, at_least) {
                (true, true) => "at least about ",
                (true, false) => "about ",
                (false, true) => "at least ",
                (false, false) => "",
            },
            count(lock.waits)
        ),
        detail: format!(
            "waited for in {waiter}{}{released}; p50 {}, p99 {}{}{without}",
            taken(lock),
            duration(p50),
            duration(p99),
            held(lock, names)
        ),
        evidence: evidence(&[
            ("waits", json!(lock.waits)),
            ("total_wait_ns", json!(lock.wait.total_ns)),
            ("p50_ns", json!(p50)),
            ("p99_ns", json!(p99)),
            ("max_ns", json!(lock.wait.max_ns)),
            ("covered_ns", json!(lock.covered_ns.unwrap_or(window_ns))),
            ("utilisation", json!(lock.utilisation)),
            ("hold_p50_ns", json!(lock.hold.as_ref().map(|hold| hold.p50_ns))),
            (who, json!(all)),
        ]),
        remedy: remedy(lock.kind).into(),
        stack,
        lock: Some(lock.id.clone()),
    });
}

/// How bad the lock is where want of CPUs may be what its waits come from, and that want, if it is.
fn less_for_want_of_cpus(
    severity: Severity,
    shortage: Option<cpu::Shortage>,
    lock: &Lock,
    (users, of_ns): (usize, u64),
) -> (Severity, Option<cpu::Shortage>) {
    let Some(found) = shortage else {
        return (severity, None);
    };
    match (by_holds(lock, users, found), found) {
        (Some(ns), _) if (ns as f64) < FEW * of_ns as f64 => (severity.min(Severity::Low), shortage),
        // A quota stops all threads at once, in the midst of holds too.
        (None, cpu::Shortage::Quota) => (a_step_less(severity), shortage),
        _ => (severity, None),
    }
}

/// Holds that must have been seen for what they say of the waits.
const HOLDS: u64 = 5;
/// A wait may be so many times as long as all its users together would hold it for.
const FAR: u64 = 4;

/// How much of its waits may come from how long it is held, and not from want of CPUs: of each wait as much as `users` threads could make it, that
/// hold it one after the other. `None` where that is not known, or holders sleep: that a CPU would not help.
///
/// Holds are seen from one hand-over to the next, and one in which the holder loses its CPU is hardly ever among them; a quota stops all threads
/// at once, also in the midst of holds, so there half of the holds decide.
fn by_holds(lock: &Lock, users: usize, shortage: cpu::Shortage) -> Option<u64> {
    let hold = lock.hold.as_ref().filter(|hold| hold.count >= HOLDS)?;
    // For another lock they may wait for want of CPUs, too.
    let asleep = |row: &&Holder| row.state == "blocked" && row.reason != Some(Reason::Futex);
    let asleep_ns: u64 = lock.holders.iter().filter(asleep).map(|row| row.total_ns).sum();
    if asleep_ns as f64 >= HELD_OVER * hold.total_ns as f64 {
        return Some(u64::MAX);
    }
    let turn_ns = match shortage {
        cpu::Shortage::Quota => hold.p50_ns,
        cpu::Shortage::Crowd => hold.p99_ns,
    };
    let most_ns = turn_ns.saturating_mul(users as u64).saturating_mul(FAR);
    let waits = lock.wait.buckets.iter();
    Some(waits.fold(0, |sum: u64, &(upper_ns, waits)| {
        sum.saturating_add(upper_ns.min(most_ns).saturating_mul(waits))
    }))
}

const fn a_step_less(severity: Severity) -> Severity {
    match severity {
        Severity::Critical | Severity::High => Severity::Medium,
        Severity::Medium | Severity::Low => Severity::Low,
        Severity::Info => Severity::Info,
    }
}

/// Utilisation from which waits grow faster than the load.
const KNEE: f64 = 0.8;
/// Share of the time held from which what its holders slept for is worth a word.
const HELD_OVER: f64 = 0.3;

/// How much of the time it is taken.
fn taken(lock: &Lock) -> String {
    let Some(taken) = lock.utilisation.filter(|taken| *taken >= 0.1) else {
        return String::new();
    };
    let knee = if taken >= KNEE { ", past the knee" } else { "" };
    format!("; taken at least {} of the time{knee}", portion(taken))
}

/// What its holders do.
fn held(lock: &Lock, names: &mut Names<'_>) -> String {
    let Some(hold) = &lock.hold else {
        return String::new();
    };
    let mut text = format!("; held for {} (p50)", duration(hold.p50_ns));
    let over = lock.holders.iter().find(|row| row.state == "blocked");
    if let Some((row, reason)) = over.and_then(|row| Some((row, row.reason?))) {
        let share = row.total_ns as f64 / hold.total_ns.max(1) as f64;
        if share >= HELD_OVER {
            let reason = json!(reason).as_str().unwrap_or_default().replace('_', " ");
            let place = function(names, row.stack.as_ref());
            let share = portion(share);
            text = format!("{text}, {share} of it asleep in {place} ({reason})");
        }
    }
    text
}

/// Share of the wakes from which a function is named beside the first.
const NAMED: u64 = 10;
/// Functions named.
const RELEASERS: usize = 3;

/// The functions that released it, most often first: who held it long is among them, and need not be the first.
fn releasers(lock: &Lock, names: &mut Names<'_>) -> String {
    let named = released_in(lock, names);
    if named.is_empty() {
        String::new()
    } else {
        format!(", released by {}", named.join(" and "))
    }
}

/// Those.
fn released_in(lock: &Lock, names: &mut Names<'_>) -> Vec<String> {
    let mut wakes: Vec<(String, u64)> = Vec::new();
    for waker in &lock.wakers {
        let function = function(names, waker.stack.as_ref());
        match wakes.iter_mut().find(|(name, _)| *name == function) {
            Some((_, sum)) => *sum += waker.wakes,
            None => wakes.push((function, waker.wakes)),
        }
    }
    wakes.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
    let all: u64 = wakes.iter().map(|(_, sum)| sum).sum();
    wakes
        .into_iter()
        .take(RELEASERS)
        .filter(|(_, sum)| sum * NAMED >= all)
        .map(|(name, _)| name)
        .collect()
}

const fn remedy(kind: LockKind) -> &'static str {
    match kind {
        LockKind::Gil => {
            "Threads compete for CPython's interpreter lock: move CPU work to processes, or to native code that releases it."
        }
        LockKind::Rwlock | LockKind::GoRwmutex => {
            "See who holds it for long: a writer makes all readers wait. Shorten what is done under it, or split it."
        }
        _ => {
            "Do less while holding it (no I/O, no allocation), split it by key, or use a reader-writer lock if most only read."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::{lock, times};

    const USERS: usize = 4;

    /// Held for 20 us to `longest`, and waited for 10 us to `waited`, both in us.
    fn held(longest: u64, waited: u64) -> Lock {
        let mut lock = lock("l1", "table", LockKind::Mutex, times(100, 10, waited));
        lock.hold = Some(times(20, 20, longest));
        lock.holders.clear();
        lock
    }

    /// Of the waits of such a lock, in us.
    fn by(lock: &Lock, shortage: cpu::Shortage) -> Option<u64> {
        by_holds(lock, USERS, shortage).map(|ns| ns / 1000)
    }

    #[test]
    fn a_lock_is_blamed_for_as_much_as_it_is_held() {
        use cpu::Shortage::{Crowd, Quota};
        // A hundred waits, of which most are longer than four threads four times.
        let short = held(30, 60_000);
        assert!(by(&short, Crowd).unwrap() <= 100 * 30 * 16);
        assert!(by(&short, Quota).unwrap() <= by(&short, Crowd).unwrap());
        let all_ns = short.wait.total_ns / 1000;
        let long = held(30_000, 60_000);
        assert!(by(&long, Crowd).unwrap() >= all_ns / 100 * 99);
        // Nothing is known of it.
        let mut few = short.clone();
        few.hold = Some(times(2, 20, 30));
        assert_eq!((by(&few, Crowd), by(&few, Quota)), (None, None));
        few.hold = None;
        assert_eq!(by(&few, Quota), None);
        // Its holders sleep, for a disk or a peer: a CPU would not help. For another lock they may for want of one.
        for (reason, own) in [(Reason::SocketRead, true), (Reason::Futex, false)] {
            let mut asleep = short.clone();
            asleep.holders = vec![Holder {
                stack: None,
                tid: 7,
                total_ns: asleep.hold.as_ref().unwrap().total_ns,
                state: "blocked".into(),
                reason: Some(reason),
            }];
            assert_eq!(by(&asleep, Quota).unwrap() > all_ns, own, "{reason:?}");
        }
    }
}
