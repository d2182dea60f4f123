//! Deadlocks, locks whose holder is gone, and locks that nobody has released for long.

use serde_json::json;

use super::{SUBJECT, evidence, function};
use crate::{
    analyse::{
        deadlocks::{Abandoned, Long, Stuck},
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
    let without = stuck.long.iter().filter(|long| long.holder.is_none()).count();
    for long in &stuck.long {
        found.push(of_long(long, without >= 2, locks, names));
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
            ("threads", json!(deadlock.cycle.iter().map(|link| link.tid).collect::<Vec<_>>())),
            ("waiting_ns", json!(deadlock.waiting_ns)),
            ("behind", json!(deadlock.behind)),
            ("certainty", json!(deadlock.certainty)),
        ]),
        remedy: match threads {
            1 => "Release it before it is taken again, or use a recursive lock. These threads go on only when the process is restarted.".into(),
            _ => "Take these locks in the same order everywhere, or both at once (std::scoped_lock, try-lock and step back). These threads go on only when the process is restarted.".to_owned(),
        },
        stack: first.and_then(|link| link.stack.clone()),
        lock: first.map(|link| link.waits_for.clone()),
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
        severity: Severity::High,
        confidence: 0.95,
        title: format!(
            "{}: held by thread {}, which is gone",
            called(&abandoned.lock, locks),
            abandoned.owner
        ),
        detail: format!(
            "{} in {waiter} for a thread that the process does not have: it ended while it held the lock, or the process was forked while another thread held it",
            match abandoned.threads.len() {
                1 => "1 thread waits".to_owned(),
                n => format!("{} threads wait", count(n as u64)),
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
        Some((tid, stack)) => {
            let place = stack.as_ref().map_or_else(
                || "which runs".to_owned(),
                |stack| format!("which sleeps in {}", function(names, Some(stack))),
            );
            (format!("held by thread {tid}, {place}"), Severity::Low)
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
