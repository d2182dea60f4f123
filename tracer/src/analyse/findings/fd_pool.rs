//! Connections of a `database/sql` pool that never come back.
//!
//! A pool opens a connection for who finds none free, and who keeps one need not be who it was opened for: all that leak are told together,
//! and nobody is blamed for what only became visible in its code.

use serde_json::json;

use super::{SUBJECT, evidence, function, limit_reached, severity};
use crate::{
    analyse::names::Names,
    report::{
        frames::{cut, without_path},
        model::{FdStack, Fds, Finding, Verdict},
        units::{count, portion},
    },
};

/// Functions named in words.
const NAMED: usize = 3;

/// Opened by a pool of `database/sql`, for who wants a connection.
pub(super) fn is_one(row: &FdStack, names: &mut Names<'_>) -> bool {
    let Some(id) = row.stack.as_ref().and_then(|key| names.id(key)) else {
        return false;
    };
    let mut functions = names
        .frames(id)
        .iter()
        .filter_map(|frame| frame.function.as_deref());
    functions.any(|name| name == "database/sql.(*DB).conn" || name == "database/sql.(*DB).openNewConnection")
}

/// The function that calls `database/sql`: what opens the connection lies nearer to the leaf.
fn wanted_by(row: &FdStack, names: &mut Names<'_>) -> String {
    let id = row.stack.as_ref().and_then(|key| names.id(key));
    let frames = id.map(|id| names.frames(id)).unwrap_or_default();
    let of_sql = |name: &str| name.starts_with("database/sql.");
    let last = frames
        .iter()
        .rposition(|frame| frame.function.as_deref().is_some_and(of_sql));
    let caller = last.and_then(|last| frames.get(last + 1)?.function.clone());
    caller.unwrap_or_else(|| function(names, row.stack.as_ref()))
}

/// Whether too little was seen of a row to say that its connections come back.
pub(super) fn may_leak(row: &FdStack) -> bool {
    matches!(
        row.verdict,
        Verdict::Leaking | Verdict::Growing | Verdict::Unknown
    )
}

/// All leaking rows of one process that are such. `others` may leak, too: a connection that they opened may be kept by the same code.
pub(super) fn leak(
    rows: &[&FdStack],
    others: &[&FdStack],
    fds: &Fds,
    names: &mut Names<'_>,
) -> Option<Finding> {
    let first = rows.iter().max_by_key(|row| row.live)?;
    let sum = |of: fn(&FdStack) -> u64| rows.iter().map(|row| of(row)).sum::<u64>();
    let (live, opened, closed) = (sum(|row| row.live), sum(|row| row.opened), sum(|row| row.closed));
    let per_s: f64 = rows.iter().map(|row| row.growth_per_s).sum();
    let confidence = rows.iter().map(|row| row.confidence).fold(0.0, f64::max);
    let mut functions: Vec<(String, u64)> = Vec::new();
    let unsure: u64 = others.iter().map(|row| row.live).sum();
    for row in rows.iter().chain(others) {
        let name = wanted_by(row, names);
        match functions.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += row.live,
            None => functions.push((name, row.live)),
        }
    }
    functions.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let all: u64 = functions.iter().map(|(_, live)| live).sum();
    let named: Vec<String> = functions
        .iter()
        .take(NAMED)
        .map(|(name, of)| {
            let share = portion(*of as f64 / all.max(1) as f64);
            format!("{} ({})", cut(without_path(name), SUBJECT), share)
        })
        .collect();
    let also = match unsure {
        0 => String::new(),
        _ => format!(" ({} of them may yet come back)", count(unsure)),
    };
    Some(Finding {
        id: "fd.leak".into(),
        severity: severity(confidence, fds),
        confidence,
        title: format!(
            "connections of a database/sql pool are not given back: {} of {} still open, {per_s:+.1}/s",
            count(live),
            count(opened)
        ),
        detail: format!(
            "opened for {}{also}; {} closed{}; a connection is kept by Rows, a transaction or a Conn that is not closed, in these functions or in others that use the pool",
            named.join(", "),
            count(closed),
            limit_reached(fds)
        ),
        evidence: evidence(&[
            ("opened", json!(opened)),
            ("closed", json!(closed)),
            ("live", json!(live)),
            ("growth_per_s", json!(per_s)),
            ("time_to_limit_ns", json!(fds.time_to_limit_ns)),
            ("opened_for", json!(functions)),
        ]),
        remedy: "Close Rows (defer rows.Close()) on every path, also where an error is returned; end transactions (defer tx.Rollback()), and close Conns. SetMaxOpenConns and a timeout for each request keep the database alive meanwhile.".into(),
        stack: first.stack.clone(),
        lock: None,
    })
}
