//! What grows: descriptors and goroutines by creating stack, and pools. Each report has its own verdict on growth, which rests on
//! more than two numbers; what is compared here is the verdicts, and the rates of what leaks in both.

use std::collections::BTreeMap;

use super::{
    Settings,
    item::word,
    judge::{Draft, Rule, metric},
    names::{Chain, stable},
    run::Run,
    stats::Estimate,
};
use crate::report::{
    diff::{Change, Matched, Metric, Thing},
    model::{FdStack, GoPool, GoStack, Report, Verdict},
};

/// Rows that are looked at.
const ROWS_MAX: usize = 2048;
/// Growth comes in bursts: so many births tell as much as one.
const BURST: f64 = 8.0;

/// What one run says of the growth of something.
#[derive(Clone, Debug, PartialEq)]
struct Growth {
    functions: Vec<String>,
    verdict: Verdict,
    per_s: f64,
    born: f64,
    /// Steps of a staircase within the window.
    steps: Option<f64>,
    rows: u64,
}

/// Worse ones stand for all of a key.
const fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Leaking => 5,
        Verdict::Growing => 4,
        Verdict::Unknown => 3,
        Verdict::Pool => 2,
        Verdict::Steady => 1,
        Verdict::Churn => 0,
    }
}

type Grown = BTreeMap<(String, Vec<u64>), Growth>;

fn add(all: &mut Grown, key: (String, Vec<u64>), growth: Growth) {
    match all.get_mut(&key) {
        None => {
            all.insert(key, growth);
        }
        Some(known) => {
            if rank(growth.verdict) > rank(known.verdict) {
                known.verdict = growth.verdict;
            }
            known.per_s += growth.per_s;
            known.born += growth.born;
            known.steps = known.steps.or(growth.steps);
            known.rows += growth.rows;
        }
    }
}

/// Descriptors by creating stack. With several reports in a file, of the last one, which has seen most.
#[must_use]
pub fn fds(runs: &[Run<'_>; 2], settings: &Settings) -> Vec<Draft> {
    let grown = |run: &Run<'_>| {
        let report = run.reports.last()?;
        let rows = &report.fds.as_ref()?.by_stack;
        let mut all = Grown::new();
        for row in rows.iter().take(ROWS_MAX) {
            let chain = row.stack.as_ref().and_then(|key| report.stacks.get(key));
            let Some(chain) = chain
                .map(|frames| Chain::of(frames))
                .filter(|chain| !chain.nameless)
            else {
                continue;
            };
            let kind = main_kind(row);
            add(
                &mut all,
                (kind, vec![chain.hash]),
                Growth {
                    functions: chain.functions,
                    verdict: row.verdict,
                    per_s: row.growth_per_s,
                    born: row.opened.saturating_sub(row.closed) as f64,
                    steps: row
                        .period_ns
                        .filter(|&period| period > 0)
                        .map(|period| report.window.duration_ns as f64 / period as f64),
                    rows: 1,
                },
            );
        }
        Some(all)
    };
    compare("fds", grown(&runs[0]), grown(&runs[1]), runs, settings)
}

fn main_kind(row: &FdStack) -> String {
    let kind = row.kinds.iter().max_by_key(|(_, count)| **count);
    kind.map_or_else(|| "other".to_owned(), |(kind, _)| word(kind))
}

/// Goroutines by stack and creator, and pools.
#[must_use]
pub fn go(runs: &[Run<'_>; 2], settings: &Settings) -> Vec<Draft> {
    let grown = |run: &Run<'_>| {
        let report = run.reports.last()?;
        let go = report.go.as_ref()?;
        let mut all = Grown::new();
        for row in go.by_stack.iter().take(ROWS_MAX) {
            let chain = row.stack.as_ref().and_then(|key| report.stacks.get(key));
            let Some(chain) = chain.map(|frames| Chain::of(frames)) else {
                continue;
            };
            let (kind, growth) = of_goroutines(row, &chain);
            add(&mut all, (kind, vec![chain.hash]), growth);
        }
        Some(all)
    };
    let mut drafts = compare("goroutines", grown(&runs[0]), grown(&runs[1]), runs, settings);
    drafts.extend(pools(runs, settings));
    drafts
}

fn of_goroutines(row: &GoStack, chain: &Chain) -> (String, Growth) {
    let kind = format!(
        "{} by {}",
        row.wait_reason.as_deref().unwrap_or(&row.status),
        row.created_by.as_deref().map_or_else(|| "?".to_owned(), stable)
    );
    let growth = Growth {
        functions: chain.functions.clone(),
        verdict: row.verdict,
        per_s: row.growth_per_s,
        born: row.opened.saturating_sub(row.closed) as f64,
        steps: None,
        rows: 1,
    };
    (kind, growth)
}

fn compare(
    class: &str,
    before: Option<Grown>,
    after: Option<Grown>,
    runs: &[Run<'_>; 2],
    settings: &Settings,
) -> Vec<Draft> {
    let (Some(mut before), Some(mut after)) = (before, after) else {
        return Vec::new();
    };
    let keys: Vec<(String, Vec<u64>)> = before.keys().chain(after.keys()).cloned().collect();
    let mut drafts = Vec::new();
    for key in keys {
        let (one, two) = (before.remove(&key), after.remove(&key));
        // The second time that a key of both comes.
        if one.is_none() && two.is_none() {
            continue;
        }
        let leaks = |growth: &Option<Growth>| {
            growth
                .as_ref()
                .is_some_and(|growth| growth.verdict == Verdict::Leaking)
        };
        // Nothing is said of what leaks in neither: there is no loss to compare.
        if leaks(&one) || leaks(&two) {
            drafts.push(draft(class, &key.0, one.as_ref(), two.as_ref(), runs, settings));
        }
    }
    drafts
}

fn draft(
    class: &str,
    kind: &str,
    one: Option<&Growth>,
    two: Option<&Growth>,
    runs: &[Run<'_>; 2],
    settings: &Settings,
) -> Draft {
    let leaking = |growth: Option<&Growth>| growth.is_some_and(|growth| growth.verdict == Verdict::Leaking);
    let functions = two
        .or(one)
        .map(|growth| growth.functions.clone())
        .unwrap_or_default();
    let metric = growth_metric(one, two, settings);
    // As long as the other run, so that it would have shown.
    let long = |run: &Run<'_>, other: &Run<'_>| run.duration_ns >= 0.5 * other.duration_ns && run.complete;
    let calm = |growth: Option<&Growth>| {
        growth.is_none_or(|growth| {
            matches!(growth.verdict, Verdict::Steady | Verdict::Churn | Verdict::Pool) || growth.born <= 0.0
        })
    };
    let (rule, verdict, why) = match (leaking(one), leaking(two)) {
        (true, true) => (Rule::Waits, Change::Unchanged, "leaks in both runs"),
        (true, false) if calm(two) && long(&runs[1], &runs[0]) => {
            (Rule::Decided, Change::Improved, "leaks no more")
        }
        (false, true) if calm(one) && long(&runs[0], &runs[1]) => (Rule::Decided, Change::Worse, "leaks now"),
        _ => (
            Rule::Decided,
            Change::NotEnoughData,
            "leaks in one run; the other is too short, or does not tell",
        ),
    };
    let mut draft = Draft {
        thing: Thing {
            class: class.to_owned(),
            kind: kind.to_owned(),
            was: None,
            name: functions.first().cloned().unwrap_or_else(|| kind.to_owned()),
            functions,
            verdict,
            why: why.to_owned(),
            matched: match (one, two) {
                (Some(_), None) => Matched::OnlyBefore,
                (None, Some(_)) => Matched::OnlyAfter,
                _ => Matched::Same,
            },
            similarity: one.and(two).map(|_| 1.0),
            ambiguous: false,
            rows: [one, two].map(|growth| growth.map_or(0, |growth| growth.rows)),
            lost_ns_per_s: [None, None],
            metrics: vec![metric],
        },
        too_small: false,
        rule,
    };
    if rule == Rule::Decided {
        for metric in &mut draft.thing.metrics {
            metric.p = None;
        }
    }
    draft
}

fn growth_metric(one: Option<&Growth>, two: Option<&Growth>, settings: &Settings) -> Metric {
    let estimate = |growth: Option<&Growth>| {
        let growth = growth.filter(|growth| growth.per_s > 0.0)?;
        let effective = growth.steps.unwrap_or(growth.born / BURST).max(1.0);
        Some(Estimate {
            value: growth.per_s,
            se: (1.0 / effective).sqrt(),
            df: effective,
            effective,
        })
    };
    let seen = [estimate(one), estimate(two)];
    let mut metric = metric(
        "time_per_s",
        "1/s",
        seen,
        seen[0].zip(seen[1]),
        settings.noise,
        (1.0, 0.0),
    );
    "growth_per_s".clone_into(&mut metric.name);
    let told = |growth: Option<&Growth>| {
        growth
            .map(|growth| growth.per_s)
            .filter(|per_s| per_s.is_finite())
    };
    metric.before = told(one);
    metric.after = told(two);
    metric
}

/// Deadlocks that one run has and the other has not.
#[must_use]
pub fn deadlocks(runs: &[Run<'_>; 2]) -> Option<Draft> {
    let number = |run: &Run<'_>| run.reports.last().map_or(0, |report| report.deadlocks.len());
    let (verdict, why, matched) = match (number(&runs[0]), number(&runs[1])) {
        (0, 0) => return None,
        (0, _) => (
            Change::Worse,
            "threads wait for each other now",
            Matched::OnlyAfter,
        ),
        (_, 0) => (
            Change::Improved,
            "no threads wait for each other any more",
            Matched::OnlyBefore,
        ),
        _ => (
            Change::Unchanged,
            "threads wait for each other in both runs",
            Matched::Same,
        ),
    };
    let mut thing = empty("deadlock", "deadlock");
    thing.verdict = verdict;
    why.clone_into(&mut thing.why);
    thing.matched = matched;
    Some(Draft {
        thing,
        too_small: false,
        rule: Rule::Decided,
    })
}

fn empty(class: &str, kind: &str) -> Thing {
    Thing {
        class: class.to_owned(),
        kind: kind.to_owned(),
        was: None,
        name: kind.to_owned(),
        functions: Vec::new(),
        verdict: Change::Unchanged,
        why: String::new(),
        matched: Matched::Same,
        similarity: None,
        ambiguous: false,
        rows: [1, 1],
        lost_ns_per_s: [None, None],
        metrics: Vec::new(),
    }
}

/// Pools: how long they were exhausted, and by how many.
fn pools(runs: &[Run<'_>; 2], settings: &Settings) -> Vec<Draft> {
    let found = |run: &Run<'_>| -> Option<(GoPool, f64, Vec<String>)> {
        let report: &Report = run.reports.last()?;
        let mut pools = report.go.as_ref()?.pools.iter();
        // Several cannot be told apart but by address.
        let (pool, None) = (pools.next()?, pools.next()) else {
            return None;
        };
        let stack = pool
            .waiters
            .first()
            .and_then(|row| report.stacks.get(row.stack.as_ref()?));
        let functions = stack
            .map(|frames| Chain::of(frames).functions)
            .unwrap_or_default();
        let samples = report.go.as_ref()?.snapshots.count as f64;
        Some((pool.clone(), samples, functions))
    };
    let (Some(one), Some(two)) = (found(&runs[0]), found(&runs[1])) else {
        return Vec::new();
    };
    let waiting = |(pool, samples, _): &(GoPool, f64, Vec<String>)| {
        let value = pool.exhausted_share * pool.mean_waiting * 1e9;
        // Snapshots that follow each other see the same queue.
        let effective = (pool.exhausted_samples as f64).min(*samples) / BURST;
        (value > 0.0 && effective >= 1.0).then(|| Estimate {
            value,
            se: (1.0 / effective).sqrt(),
            df: effective,
            effective,
        })
    };
    let seen = [waiting(&one), waiting(&two)];
    let never =
        |(pool, samples, _): &(GoPool, f64, Vec<String>)| pool.exhausted_samples == 0 && *samples >= 20.0;
    let (rule, verdict, why) = match seen {
        [None, None] => return Vec::new(),
        [Some(_), None] if never(&two) => (Rule::Decided, Change::Improved, "exhausted no more"),
        [None, Some(_)] if never(&one) => (Rule::Decided, Change::Worse, "exhausted now"),
        [Some(_), Some(_)] => (Rule::Waits, Change::Unchanged, ""),
        _ => (Rule::Decided, Change::NotEnoughData, "too few snapshots"),
    };
    let metric = metric(
        "time_per_s",
        "ns/s",
        seen,
        seen[0].zip(seen[1]),
        settings.noise,
        (1.0, 0.0),
    );
    vec![Draft {
        too_small: false,
        rule,
        thing: Thing {
            class: "pool".to_owned(),
            kind: "database/sql".to_owned(),
            was: None,
            name: two.2.first().cloned().unwrap_or_else(|| "sql.DB".to_owned()),
            functions: two.2.clone(),
            verdict,
            why: why.to_owned(),
            matched: Matched::Same,
            similarity: None,
            ambiguous: false,
            rows: [1, 1],
            lost_ns_per_s: seen.map(|estimate| estimate.map(|estimate| estimate.value)),
            metrics: vec![metric],
        },
    }]
}
