//! Pools of connections that are too small, or whose connections do not come back.

use serde_json::json;

use super::{SUBJECT, evidence, function};
use crate::{
    analyse::names::Names,
    report::{
        frames::{cut, without_path},
        model::{Finding, Go, GoPool, GoPoolStack, GoPoolUse, Severity},
        units::{count, counted, duration, percent, plain},
    },
};

/// Snapshots that must have shown it.
const MIN_SAMPLES: u64 = 10;
/// Part of the time from which it is worth a word, is felt, and hurts.
const WORTH: f64 = 0.02;
const FELT: f64 = 0.1;
const HURTS: f64 = 0.5;
/// Of the connections, those that a program must be seen to use before it is said which of them it is.
const SEEN: f64 = 0.5;
/// Uses named.
const NAMED: usize = 2;

pub(super) fn exhausted(go: &Go, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    for pool in &go.pools {
        if pool.exhausted_samples < MIN_SAMPLES || pool.exhausted_share < WORTH {
            continue;
        }
        let waiter = pool.waiters.first();
        let who = waiter.map_or_else(
            || "code without a name".into(),
            |row| function(names, row.stack.as_ref()),
        );
        let mean = pool
            .wait_total_ns
            .zip(Some(pool.waits.saturating_sub(pool.waiting)).filter(|&ended| ended > 0))
            .map(|(total, ended)| total / ended);
        let waits = match mean {
            Some(mean) => format!(
                "{}, {} each on average",
                counted(pool.waits, "wait"),
                duration(mean)
            ),
            None => format!("{}, none of which has ended", counted(pool.waits, "wait")),
        };
        let (users, held) = users(pool, names);
        found.push(Finding {
            id: "pool.exhausted".into(),
            severity: if pool.exhausted_share >= HURTS {
                Severity::High
            } else if pool.exhausted_share >= FELT {
                Severity::Medium
            } else {
                Severity::Low
            },
            confidence: if pool.exhausted_samples >= 3 * MIN_SAMPLES { 0.95 } else { 0.8 },
            title: format!(
                "pool of {} exhausted {} of the time: {:.1} goroutines wait in {}",
                counted(pool.max_open, "connection"),
                plain(&percent(pool.exhausted_share)),
                pool.mean_waiting,
                cut(without_path(&who), SUBJECT),
            ),
            detail: format!("in database/sql.(*DB).conn: {waits}; {users}"),
            evidence: evidence(&[
                ("address", json!(pool.address)),
                ("max_open", json!(pool.max_open)),
                ("waits", json!(pool.waits)),
                ("wait_total_ns", json!(pool.wait_total_ns)),
                ("exhausted_share", json!(pool.exhausted_share)),
                ("exhausted_samples", json!(pool.exhausted_samples)),
                ("mean_waiting", json!(pool.mean_waiting)),
                ("in_use", json!(pool.in_use)),
            ]),
            remedy: match held {
                Held::Outside => "Give connections back before doing other work: close Rows and Conns, end transactions; look for a path that forgets it.",
                Held::Left => "Connections are taken and not given back: close Rows (defer rows.Close()), end transactions (defer tx.Rollback()) and close Conns on every path.",
                Held::Rows => "Read Rows to their end and close them at once: each keeps its connection until then.",
                Held::Transactions => "Shorten transactions: each keeps its connection from begin to end. Do no other work inside.",
                Held::Queries | Held::Unknown => "Make what holds connections shorter, or raise SetMaxOpenConns if the database allows it; give requests a timeout.",
            }
            .into(),
            stack: waiter.and_then(|row| row.stack.clone()),
            lock: None,
        });
    }
}

/// What connections are held by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Queries,
    Rows,
    Transactions,
    /// By who does something else with them.
    Outside,
    /// By nobody: none was given back.
    Left,
    Unknown,
}

/// In words.
fn users(pool: &GoPool, names: &mut Names<'_>) -> (String, Held) {
    let Some(rows) = &pool.in_use else {
        return (
            "the program has several pools: what holds this one's connections cannot be told".into(),
            Held::Unknown,
        );
    };
    let mean = |does: GoPoolUse| {
        let of_kind = rows.iter().filter(|row| row.does == does);
        of_kind.map(|row| row.mean).sum::<f64>()
    };
    let (queries, open, transactions) = (
        mean(GoPoolUse::Query),
        mean(GoPoolUse::Rows),
        mean(GoPoolUse::Transaction),
    );
    let connections = pool.max_open as f64 * pool.exhausted_share;
    // Rows within a transaction share its connection.
    let kinds = [
        (queries, Held::Queries),
        (transactions, Held::Transactions),
        (open, Held::Rows),
    ];
    let most = kinds.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
    let Some((_, held)) = most.filter(|(mean, _)| *mean >= SEEN * connections) else {
        let seen = queries.max(open).max(transactions);
        let seen = if seen < 0.05 {
            "none".into()
        } else {
            format!("{seen:.1}")
        };
        let of = count(pool.max_open);
        return if pool.waits > pool.waiting {
            let words = format!(
                "{seen} of the {of} connections are in a call of the database on average: the others are kept while the program does something else"
            );
            (words, Held::Outside)
        } else {
            let words = format!(
                "{seen} of the {of} connections are in a call of the database: the others are not given back"
            );
            (words, Held::Left)
        };
    };
    let held_by = match held {
        Held::Rows => format!("open Rows, {open:.1} on average"),
        Held::Transactions => format!("open transactions, {transactions:.1} on average"),
        _ => {
            let calls = rows.iter().filter(|row| row.does == GoPoolUse::Query);
            let named: Vec<String> = calls
                .take(NAMED)
                .map(|row| {
                    let caller = caller(row, names);
                    format!("{:.1} in {}", row.mean, cut(without_path(&caller), SUBJECT))
                })
                .collect();
            format!("queries, {queries:.1} on average: {}", named.join(", "))
        }
    };
    (format!("the connections are held by {held_by}"), held)
}

/// The function that calls `database/sql`.
fn caller(row: &GoPoolStack, names: &mut Names<'_>) -> String {
    let id = row.stack.as_ref().and_then(|key| names.id(key));
    let frames = id.map_or(&[][..], |id| names.frames(id));
    let functions: Vec<&String> = frames
        .iter()
        .filter_map(|frame| frame.function.as_ref())
        .collect();
    let calls = functions
        .iter()
        .rposition(|name| name.starts_with("database/sql."));
    let caller = calls
        .and_then(|at| functions.get(at + 1))
        .map(|name| (*name).clone());
    caller.unwrap_or_else(|| function(names, row.stack.as_ref()))
}
