//! Pools of connections that are too small, or whose connections do not come back.

use rustc_hash::FxHashSet;
use serde_json::json;

use super::{Facts, SUBJECT, evidence, function, released_in};
use crate::{
    aggregate::go_starts::GoStarts,
    analyse::{
        asked,
        go_shapes::{self, Shape},
        locks::Locks,
        names::Names,
    },
    report::{
        frames::{cut, without_path},
        model::{Finding, Go, GoPool, GoPoolStack, GoPoolUse, Hist, Severity},
        units::{count, counted, duration, modes, percent, plain, portion, share, tail},
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
/// Part of the time that a pool opens connections from which that is why others wait.
const OPENING: f64 = 0.5;
/// Uses named.
const NAMED: usize = 2;

pub(super) fn exhausted(go: &Go, facts: &Facts<'_>, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    let (starts, locks) = (facts.starts, facts.locks);
    for pool in &go.pools {
        if pool.exhausted_samples < MIN_SAMPLES || pool.exhausted_share < WORTH || pool.waits == 0 {
            continue;
        }
        let (held, mut words) = held(pool, names);
        let opened_in = opened_in(go, held, starts, names);
        if let Some(opened_in) = &opened_in {
            words.push_str(&opened_words(opened_in));
        }
        found.push(Finding {
            id: "pool.exhausted".into(),
            severity: if pool.exhausted_share >= HURTS {
                Severity::High
            } else if pool.exhausted_share >= FELT {
                Severity::Medium
            } else {
                Severity::Low
            },
            confidence: if pool.exhausted_samples >= 3 * MIN_SAMPLES {
                0.95
            } else {
                0.8
            },
            title: format!(
                "pool of {} exhausted {} of the time: {}",
                counted(pool.max_open, "connection"),
                portion(pool.exhausted_share),
                suffered(pool).unwrap_or_else(|| waiting(pool, names)),
            ),
            detail: format!(
                "in database/sql.(*DB).conn: {}; {}; {words}{}",
                waits(pool),
                waiting(pool, names),
                given_back(pool, locks, names),
            ),
            evidence: evidence(&[
                ("address", json!(pool.address)),
                ("max_open", json!(pool.max_open)),
                ("waits", json!(pool.waits)),
                ("wait_total_ns", json!(pool.wait_total_ns)),
                ("exhausted_share", json!(pool.exhausted_share)),
                ("exhausted_samples", json!(pool.exhausted_samples)),
                ("mean_waiting", json!(pool.mean_waiting)),
                ("requests", json!(pool.requests)),
                ("requests_waited", json!(pool.requests_waited)),
                ("waits_timed", json!(pool.wait.as_ref().map(|wait| wait.count))),
                ("modes", json!(pool.wait.as_ref().map(|wait| &wait.modes))),
                ("p50_ns", json!(pool.wait.as_ref().map(|wait| wait.p50_ns))),
                ("p99_ns", json!(pool.wait.as_ref().map(|wait| wait.p99_ns))),
                (
                    "p99_ci_ns",
                    json!(pool.wait.as_ref().and_then(|wait| wait.p99_ci_ns)),
                ),
                ("gave_up", json!(pool.gave_up)),
                ("in_use", json!(pool.in_use)),
                ("opened_in", json!(opened_in)),
            ]),
            remedy: held.remedy().into(),
            stack: pool.waiters.first().and_then(|row| row.stack.clone()),
            lock: pool.lock.clone(),
        });
    }
}

/// Waits that tell something of all.
const ENOUGH: u64 = 20;

fn timed(pool: &GoPool) -> Option<&Hist> {
    let wait = pool.wait.as_ref()?;
    (wait.samples.unwrap_or(wait.count) >= ENOUGH).then_some(wait)
}

/// What requests suffer: how many of them, and how long.
fn suffered(pool: &GoPool) -> Option<String> {
    let wait = timed(pool)?;
    let requests = pool.requests.filter(|&requests| requests > 0);
    let of = if requests.is_some() { "of them" } else { "of waits" };
    let long = if wait.modes.len() > 1 {
        let each = wait
            .modes
            .iter()
            .map(|mode| format!("{} {of} about {}", percent(mode.share), duration(mode.center_ns)));
        each.collect::<Vec<_>>().join(", ")
    } else {
        format!("half {of} {} and more", duration(wait.p50_ns))
    };
    let waited = requests
        .zip(pool.requests_waited)
        .map_or_else(String::new, |(requests, waited)| {
            format!("{} of requests wait, ", percent(share(waited, requests).min(1.0)))
        });
    Some(plain(&format!("{waited}{long}")))
}

/// How many wait, and where.
fn waiting(pool: &GoPool, names: &mut Names<'_>) -> String {
    format!(
        "{:.1} goroutines wait then{}",
        pool.mean_waiting,
        place(pool, names)
    )
}

/// By whom those who waited were given a connection.
fn given_back(pool: &GoPool, locks: Option<&Locks>, names: &mut Names<'_>) -> String {
    let lock = locks.and_then(|locks| {
        let id = pool.lock.as_ref()?;
        locks.locks.iter().find(|lock| lock.id == *id)
    });
    let by = lock.map(|lock| released_in(lock, names)).unwrap_or_default();
    let named: Vec<String> = by.iter().map(|name| cut(without_path(name), SUBJECT)).collect();
    if named.is_empty() {
        String::new()
    } else {
        format!("; given back in {}", named.join(" and "))
    }
}

/// Where they wait.
fn place(pool: &GoPool, names: &mut Names<'_>) -> String {
    let Some(first) = pool.waiters.first() else {
        return String::new();
    };
    let caller = caller(first, names);
    let caller = cut(without_path(&caller), SUBJECT);
    if pool.waiters.len() == 1 {
        format!(" in {caller}")
    } else {
        format!(", most ({:.1}) in {caller}", first.mean)
    }
}

fn waits(pool: &GoPool) -> String {
    if let Some(wait) = timed(pool) {
        let kinds = modes(&wait.modes).map_or_else(String::new, |modes| format!(", {modes}"));
        let seen = if wait.count < pool.waits {
            format!(", {} of them timed", count(wait.count))
        } else {
            String::new()
        };
        // Where the probes were away for a while their count is of a part.
        let whole = pool.requests_waited.is_some_and(|waited| waited >= pool.waits);
        let asked = pool
            .requests
            .filter(|_| whole)
            .map_or_else(String::new, |requests| {
                format!(" of {}", counted(requests, "request"))
            });
        let text = format!(
            "{}{asked}{seen}: {}{kinds}",
            counted(pool.waits, "wait"),
            tail(wait)
        );
        return plain(&text);
    }
    let ended = pool.waits.saturating_sub(pool.waiting);
    let mean = pool.wait_total_ns.and_then(|total| total.checked_div(ended));
    match mean {
        Some(mean) => format!(
            "{}, {} each on average",
            counted(pool.waits, "wait"),
            duration(mean)
        ),
        None => format!("{}, none of which has ended", counted(pool.waits, "wait")),
    }
}

/// What connections are held by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Queries,
    Connecting,
    Transactions,
    Rows,
    /// By who does something else with them, or forgot them.
    Outside,
    /// By nobody: none was given back.
    Left,
    Unknown,
}

impl Held {
    const fn remedy(self) -> &'static str {
        match self {
            Self::Queries | Self::Unknown => {
                "Make what holds connections shorter, or raise SetMaxOpenConns if the database allows it; give requests a timeout."
            }
            Self::Connecting => {
                "Keep connections instead of opening new ones: raise SetMaxIdleConns to SetMaxOpenConns (its default is 2), and SetConnMaxLifetime."
            }
            Self::Transactions => {
                "Shorten transactions: each keeps its connection from begin to end, whatever else is done meanwhile."
            }
            Self::Rows => {
                "Read Rows to their end and close them at once: each keeps its connection until then."
            }
            Self::Outside => {
                "Give connections back before doing other work, and on every path: close Rows and Conns, end transactions."
            }
            Self::Left => {
                "Connections are taken and not given back: close Rows (defer rows.Close()), end transactions (defer tx.Rollback()) and close Conns on every path."
            }
        }
    }
}

/// By what, and that in words.
fn held(pool: &GoPool, names: &mut Names<'_>) -> (Held, String) {
    let Some(uses) = &pool.in_use else {
        let words = "the program has several pools: what holds this one's connections cannot be told";
        return (Held::Unknown, words.into());
    };
    let all = pool.max_open as f64;
    let enough = SEEN * all;
    // Transactions last longer than the queries in them, and Rows longer than the reading of them.
    let busy = uses.query + uses.connect;
    // What its one opener has not come to yet counts as open.
    if busy < enough && uses.opener >= OPENING {
        let words = format!(
            "connections are opened anew {} of the time, one after the other",
            portion(uses.opener.min(1.0))
        );
        return (Held::Connecting, words);
    }
    if busy >= enough && uses.connect > uses.query {
        let words = format!(
            "{:.1} of the connections are being opened or closed",
            uses.connect
        );
        return (Held::Connecting, words);
    }
    if busy >= enough {
        let mut callers: Vec<(String, f64)> = Vec::new();
        for row in uses.by_stack.iter().filter(|row| row.does == GoPoolUse::Query) {
            let name = caller(row, names);
            match callers.iter_mut().find(|(known, _)| *known == name) {
                Some((_, mean)) => *mean += row.mean,
                None => callers.push((name, row.mean)),
            }
        }
        callers.sort_by(|a, b| b.1.total_cmp(&a.1));
        let named: Vec<String> = callers
            .iter()
            .take(NAMED)
            .map(|(name, mean)| format!("{mean:.1} in {}", cut(without_path(name), SUBJECT)))
            .collect();
        let inside = if uses.transaction >= enough {
            ", most of them inside transactions"
        } else {
            ""
        };
        let words = format!(
            "the connections are held by queries{inside}, {:.1} on average: {}",
            uses.query,
            named.join(", ")
        );
        return (Held::Queries, words);
    }
    if uses.transaction >= enough {
        let words = format!(
            "the connections are held by {:.1} open transactions, {:.1} of them in a query",
            uses.transaction, uses.query
        );
        return (Held::Transactions, words);
    }
    if uses.rows.min(all) >= enough {
        let words = format!(
            "the connections are held by {:.1} open Rows, {:.1} of them in a query",
            uses.rows, uses.query
        );
        return (Held::Rows, words);
    }
    let seen = busy.max(uses.transaction).max(uses.rows.min(all));
    if seen + uses.unseen >= enough {
        let words = format!(
            "what holds the connections cannot be told: {:.1} goroutines were running, or could not be read",
            uses.unseen
        );
        return (Held::Unknown, words);
    }
    let few = if seen < 0.05 {
        "none".to_owned()
    } else {
        format!("{seen:.1}")
    };
    let of = counted(pool.max_open, "connection");
    if pool.waits > pool.waiting {
        let words = format!(
            "{few} of {of} in a call of the database: the others are kept meanwhile, or were not given back"
        );
        (Held::Outside, words)
    } else {
        let words = format!("{few} of {of} in a call of the database: the others are not given back");
        (Held::Left, words)
    }
}

/// The functions in which the oldest `Rows` or transactions were opened that are open now, most first: each is watched over by a goroutine,
/// and whose `go` statement made that one may be known. `None`: none of them watches over what holds the connections.
fn opened_in(go: &Go, held: Held, starts: &GoStarts, names: &mut Names<'_>) -> Option<Vec<(String, u64)>> {
    let watches = match held {
        Held::Rows => Shape::OpenRows,
        Held::Transactions => Shape::OpenTransaction,
        _ => return None,
    };
    let mut functions: Vec<(String, u64)> = Vec::new();
    for row in &go.by_stack {
        let id = row.stack.as_ref().and_then(|key| names.id(key));
        let shape = id.and_then(|id| go_shapes::of(names.frames(id), None, false));
        if shape != Some(watches) {
            continue;
        }
        for example in &row.examples {
            let makers = asked::steps(&starts.path(go.pid, example.goid), names);
            let Some((function, _)) = asked::answerable(None, &makers, &FxHashSet::default(), names) else {
                continue;
            };
            match functions.iter_mut().find(|(known, _)| *known == function) {
                Some((_, count)) => *count += 1,
                None => functions.push((function, 1)),
            }
        }
    }
    functions.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Some(functions)
}

fn opened_words(functions: &[(String, u64)]) -> String {
    let name = |function: &str| cut(without_path(function), SUBJECT);
    let all: u64 = functions.iter().map(|(_, count)| count).sum();
    match functions {
        [] => "; --go-creators tells which functions open them, of those opened while it traces".into(),
        [(only, _)] => format!("; the oldest that are open were opened in {}", name(only)),
        _ => {
            let named = functions.iter().take(NAMED);
            let named: Vec<String> = named
                .map(|(function, count)| format!("{} ({count} of {all})", name(function)))
                .collect();
            format!("; the oldest that are open were opened in {}", named.join(", "))
        }
    }
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
