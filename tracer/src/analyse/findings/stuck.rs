//! Deadlocks, locks whose holder is gone, and locks that nobody has released for long.

use serde_json::json;

use super::{SUBJECT, evidence, function};
use crate::{
    analyse::{
        deadlocks::{Abandoned, Does, Long, Stuck},
        names::Names,
    },
    report::{
        frames::{cut, without_path},
        model::{Certainty, Deadlock, Finding, Lock, LockKind, Severity},
        units::{count, duration},
    },
};

/// Functions of one cycle that a title names.
const NAMED: usize = 3;

pub(super) fn stuck(stuck: &Stuck, locks: &[Lock], names: &mut Names<'_>, found: &mut Vec<Finding>) {
    for deadlock in &stuck.deadlocks {
        found.push(of_cycle(deadlock, locks, names));
    }
    for abandoned in &stuck.abandoned {
        found.push(of_gone(abandoned, locks, names));
    }
    // Several locks that nobody releases and nobody is known to hold may be a deadlock; one may be held over something slow.
    for long in &stuck.long {
        let beside = |other: &&Long| other.pid == long.pid && other.holder.is_none();
        let several = stuck.long.iter().filter(beside).count() >= 2;
        found.push(of_long(long, several, locks, names));
    }
}

/// What a lock is called.
fn called(id: &str, locks: &[Lock]) -> String {
    let lock = locks.iter().find(|lock| lock.id == id);
    match lock {
        Some(lock) if lock.kind == LockKind::Join => "the end of a thread".to_owned(),
        Some(lock) => match (&lock.name, &lock.address) {
            // Named for who waits, which is said beside it.
            (Some(name), Some(address)) if name.contains(", waited for in ") => {
                format!("the lock at {address}")
            }
            (Some(name), _) => cut(name, SUBJECT),
            (None, Some(address)) => format!("the lock at {address}"),
            (None, None) => "a lock".to_owned(),
        },
        None => "a lock".to_owned(),
    }
}

fn of_cycle(deadlock: &Deadlock, locks: &[Lock], names: &mut Names<'_>) -> Finding {
    let threads = deadlock.cycle.len();
    let steps: Vec<String> = deadlock
        .cycle
        .iter()
        .take(NAMED)
        .map(|link| {
            let function = function(names, link.stack.as_ref());
            let holds = link.holds.as_deref().map(|id| called(id, locks));
            let holds = holds.filter(|_| !is_join(link.holds.as_deref(), locks));
            let holding = holds.map_or_else(String::new, |name| format!(" holds {name} and"));
            format!(
                "{} (thread {}){holding} waits for {}",
                cut(without_path(&function), SUBJECT),
                link.tid,
                called(&link.waits_for, locks)
            )
        })
        .collect();
    let more = threads.saturating_sub(NAMED);
    let more = if more > 0 {
        format!("; and {more} more")
    } else {
        String::new()
    };
    let behind = match deadlock.behind {
        0 => String::new(),
        n => format!("; {} more threads wait behind them", count(n)),
    };
    let (severity, confidence, word, how) = match deadlock.certainty {
        Certainty::Proven => (
            Severity::Critical,
            1.0,
            "deadlock",
            "the locks say who holds them",
        ),
        Certainty::Probable => (
            Severity::Medium,
            0.6,
            "probable deadlock",
            "who holds is inferred from what threads have on their stacks",
        ),
    };
    let title = match threads {
        1 => format!("{word}: a thread waits for a lock that it holds itself"),
        n => format!("{word}: {n} threads wait for each other"),
    };
    let first = deadlock.cycle.first();
    Finding {
        id: "deadlock".into(),
        severity,
        confidence,
        title,
        detail: format!(
            "{}{more}; for {} at least{behind}; {how}",
            steps.join("; "),
            duration(deadlock.waiting_ns)
        ),
        evidence: evidence(&[
            (
                "threads",
                json!(deadlock.cycle.iter().map(|link| link.tid).collect::<Vec<_>>()),
            ),
            ("waiting_ns", json!(deadlock.waiting_ns)),
            ("behind", json!(deadlock.behind)),
            ("certainty", json!(deadlock.certainty)),
        ]),
        remedy: remedy(deadlock, locks),
        stack: first.and_then(|link| link.stack.clone()),
        lock: first.map(|link| link.waits_for.clone()),
    }
}

fn remedy(deadlock: &Deadlock, locks: &[Lock]) -> String {
    let joins = deadlock
        .cycle
        .iter()
        .any(|link| is_join(Some(&link.waits_for), locks));
    let what = match deadlock.cycle.len() {
        1 => "Release it before it is taken again, or use a recursive lock.",
        _ if joins => "Release the lock before waiting for a thread that needs it to end.",
        _ => {
            "Take these locks in the same order everywhere, or both at once (std::scoped_lock, try-lock and step back)."
        }
    };
    match deadlock.certainty {
        Certainty::Proven => format!("{what} Now only a restart makes these threads go on."),
        Certainty::Probable => format!("{what} Look at the stacks first: who holds is inferred."),
    }
}

fn is_join(id: Option<&str>, locks: &[Lock]) -> bool {
    locks
        .iter()
        .any(|lock| Some(lock.id.as_str()) == id && lock.kind == LockKind::Join)
}

fn of_gone(abandoned: &Abandoned, locks: &[Lock], names: &mut Names<'_>) -> Finding {
    let waiter = function(names, abandoned.stack.as_ref());
    Finding {
        id: "lock.abandoned".into(),
        // The thread that forked has another id than the lock remembers: it may hold it still.
        severity: if abandoned.forked { Severity::Medium } else { Severity::High },
        confidence: if abandoned.forked { 0.6 } else { 0.95 },
        title: format!(
            "{}: held by thread {}, which is gone",
            called(&abandoned.lock, locks),
            abandoned.owner
        ),
        detail: format!(
            "{} in {waiter} for a thread that the process does not have: {}",
            match abandoned.threads.len() {
                1 => "1 thread waits".to_owned(),
                n => format!("{} threads wait", count(n as u64)),
            },
            if abandoned.forked {
                "the process was forked while one of its parent's threads held the lock"
            } else {
                "it ended while it held the lock"
            }
        ),
        evidence: evidence(&[
            ("owner", json!(abandoned.owner)),
            ("threads", json!(abandoned.threads)),
        ]),
        remedy: "Release locks on every way out of a thread (guards, cleanup handlers); after fork() in a program with threads call only what is async-signal-safe, then exec.".into(),
        stack: abandoned.stack.clone(),
        lock: Some(abandoned.lock.clone()),
    }
}

fn of_long(long: &Long, several: bool, locks: &[Lock], names: &mut Names<'_>) -> Finding {
    let waiter = function(names, long.stack.as_ref());
    let (by, severity) = match &long.holder {
        Some((tid, does)) => {
            let does = match does {
                Does::Sleeps(stack) => format!(", which sleeps in {}", function(names, Some(stack))),
                Does::Runs => ", which runs".to_owned(),
                Does::Unknown => String::new(),
            };
            (format!("held by thread {tid}{does}"), Severity::Low)
        }
        None if several => (
            "who holds it cannot be told; other locks stand still, too".to_owned(),
            Severity::Medium,
        ),
        None => ("who holds it cannot be told".to_owned(), Severity::Low),
    };
    Finding {
        id: "lock.stuck".into(),
        severity,
        confidence: 0.5,
        title: format!(
            "{}: {} waited for {} and still {}",
            called(&long.lock, locks),
            match long.threads.len() {
                1 => "1 thread has".to_owned(),
                n => format!("{} threads have", count(n as u64)),
            },
            duration(long.since_ns),
            if long.threads.len() == 1 { "waits" } else { "wait" }
        ),
        detail: format!("in {waiter}; {by}"),
        evidence: evidence(&[
            ("threads", json!(long.threads)),
            ("waiting_ns", json!(long.since_ns)),
            ("holder", json!(long.holder.as_ref().map(|(tid, _)| tid))),
        ]),
        remedy: "See what its holder does (section \"Waiting now\"): I/O or a wait under a lock stops all who need it; threads that take the same locks in different orders never go on.".into(),
        stack: long.stack.clone(),
        lock: Some(long.lock.clone()),
    }
}
