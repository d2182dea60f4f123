//! Descriptors that leak in the sum over those who asked for them, too slowly in each for a verdict.

use serde_json::json;

use super::{SUBJECT, evidence, is_http, kind_of, limit_reached, remedy_of, severity, subject};
use crate::{
    aggregate::{fds::is_judged_alone, verdict::LEAK_CONFIDENCE},
    analyse::{asked, names::Names},
    report::{
        frames::{cut, without_path},
        model::{FdShared, FdStack, Fds, Finding, StackKey, Verdict},
        units::{count, counted, portion},
    },
};

/// Functions named in words, and in the evidence.
const NAMED: usize = 3;
const LISTED: usize = 16;
/// An asker that leaves a so much smaller share open than all of them together is not to blame.
const SPARED: u64 = 4;

/// What a function's askers left open.
struct Share {
    function: String,
    stack: Option<StackKey>,
    live: u64,
    by_quarter: [u64; 4],
}

pub(super) fn leaks(fds: &Fds, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    for sum in &fds.shared {
        if sum.verdict != Verdict::Leaking || sum.confidence < LEAK_CONFIDENCE {
            continue;
        }
        let same = |row: &&FdStack| row.pid == sum.pid && row.stack == sum.stack && !is_judged_alone(row);
        let mut rows: Vec<&FdStack> = fds.by_stack.iter().filter(same).collect();
        // `stack` is null for other reasons, too.
        rows.retain(|row| row.stack.is_some() || row.without_stack.as_deref() == Some("stack_lost"));
        let shares = shares(sum, &rows, names);
        if let ([first, ..], Some(row)) = (&shares[..], rows.iter().max_by_key(|row| row.live))
            && goes_on(&shares)
        {
            found.push(finding(fds, sum, row, first, &shares));
        }
    }
}

/// By the application's function that is to answer, most first.
fn shares(sum: &FdShared, rows: &[&FdStack], names: &mut Names<'_>) -> Vec<Share> {
    let spared = |row: &&&FdStack| row.closed > 0 && row.live * sum.opened * SPARED <= sum.live * row.opened;
    let closing: Vec<&FdStack> = rows.iter().filter(spared).copied().collect();
    let innocent = asked::on_the_way(&closing, names);
    let mut shares: Vec<Share> = Vec::new();
    for row in rows.iter().filter(|row| row.live > 0) {
        let (function, stack) = asked::answerable(row.stack.as_ref(), &row.asked_by, &innocent, names)
            .unwrap_or_else(|| ("code that is not known".to_owned(), row.stack.clone()));
        let at = shares.iter().position(|share| share.function == function);
        let at = at.unwrap_or_else(|| {
            shares.push(Share {
                function,
                stack,
                live: 0,
                by_quarter: [0; 4],
            });
            shares.len() - 1
        });
        shares[at].live += row.live;
        for (all, own) in shares[at].by_quarter.iter_mut().zip(row.born_by_quarter) {
            *all += own;
        }
    }
    shares.sort_by(|a, b| b.live.cmp(&a.live).then_with(|| a.function.cmp(&b.function)));
    shares
}

/// Functions that each keep something, one after the other, look like a leak in the sum. It is one only where the same
/// functions go on leaving some open: most of it is of those who did in quarters of the window that do not touch.
fn goes_on(shares: &[Share]) -> bool {
    let again = |share: &&Share| {
        let [first, second, third, last] = share.by_quarter.map(|born| born > 0);
        (first && (third || last)) || (second && last)
    };
    let live = |share: &Share| share.live;
    let of_these: u64 = shares.iter().filter(again).map(live).sum();
    of_these * 2 >= shares.iter().map(live).sum()
}

fn finding(fds: &Fds, sum: &FdShared, row: &FdStack, first: &Share, shares: &[Share]) -> Finding {
    let name = |share: &Share| cut(without_path(&share.function), SUBJECT);
    let share_of = |share: &Share| share.live as f64 / sum.live.max(1) as f64;
    let functions = counted(shares.len() as u64, "function");
    let (who, most, remedy) = if shares.len() == 1 {
        (
            subject(row, &name(first)),
            String::new(),
            remedy_of(row, &first.function),
        )
    } else {
        let top: Vec<String> = shares
            .iter()
            .take(NAMED)
            .map(|share| {
                format!(
                    "{} ({}, {})",
                    name(share),
                    count(share.live),
                    portion(share_of(share))
                )
            })
            .collect();
        let (who, remedy) = if is_http(row) {
            (
                format!("HTTP connections dialled for {functions} leak"),
                "Close the body of every response (defer resp.Body.Close()), also where it is not read: in these functions, or in other callers of the same http.Client, which got a connection that was dialled for them.",
            )
        } else {
            (
                format!("descriptors opened for {functions} leak"),
                "Close what these functions open on every path, also where it fails: what they have in common is the first place to look.",
            )
        };
        (who, format!(", most for {}", top.join(", ")), remedy.to_owned())
    };
    let top: Vec<_> = shares
        .iter()
        .take(LISTED)
        .map(|share| json!({"function": share.function, "live": share.live, "share": share_of(share)}))
        .collect();
    Finding {
        id: "fd.leak".into(),
        severity: severity(sum.confidence, fds),
        confidence: sum.confidence,
        title: format!(
            "{who} ({}): {} of {} still open, {:+.1}/s",
            kind_of(row),
            count(sum.live),
            count(sum.opened),
            sum.growth_per_s
        ),
        detail: format!(
            "{} opened, {} closed, growing all the time{}; asked for in {} ways, each too slow to be judged alone{most}",
            count(sum.opened),
            count(sum.closed),
            limit_reached(fds),
            count(sum.askers)
        ),
        evidence: evidence(&[
            ("opened", json!(sum.opened)),
            ("closed", json!(sum.closed)),
            ("live", json!(sum.live)),
            ("growth_per_s", json!(sum.growth_per_s)),
            ("time_to_limit_ns", json!(fds.time_to_limit_ns)),
            ("opened_in", json!(sum.stack)),
            ("askers", json!(sum.askers)),
            ("functions", json!(shares.len())),
            ("most", json!(top)),
        ]),
        remedy,
        stack: first.stack.clone(),
        lock: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(by_quarter: [u64; 4]) -> Share {
        Share {
            function: "main.f".into(),
            stack: None,
            live: by_quarter.iter().sum(),
            by_quarter,
        }
    }

    #[test]
    fn those_that_keep_something_once_are_no_leak() {
        let once: Vec<Share> = (0..4)
            .map(|at| {
                let mut by_quarter = [0; 4];
                by_quarter[at] = 23;
                share(by_quarter)
            })
            .collect();
        assert!(!goes_on(&once));
        // A pool that is being filled while one quarter ends.
        assert!(!goes_on(&[share([0, 20, 3, 0]), share([23, 0, 0, 0])]));
        assert!(goes_on(&[
            share([1, 0, 1, 0]),
            share([0, 1, 0, 1]),
            share([0, 0, 0, 3])
        ]));
        assert!(!goes_on(&[share([1, 0, 1, 0]), share([0, 0, 0, 3])]));
    }
}
