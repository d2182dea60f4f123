//! What grows: descriptors and goroutines by creating stack. Each report has its own verdict on growth, which rests on more than two
//! numbers; what is compared here is the verdicts, and the rates of what leaks in both. That something leaks no more is said only of
//! what was made often enough to have left some, and did not.

use std::collections::BTreeMap;

use super::{
    Settings,
    item::word,
    judge::{Draft, Rule, metric},
    names::{Chain, stable},
    run::Run,
    stats::Estimate,
};
use crate::{
    aggregate::verdict::LEAK_CONFIDENCE,
    analyse::go_shapes::{self, Shape},
    report::{
        diff::{Change, Matched, Metric, Thing},
        model::{FdStack, GoStack, Report, Verdict},
    },
};

/// Rows that are looked at.
const ROWS_MAX: usize = 2048;
/// Growth comes in bursts: so many births tell as much as one.
const BURST: f64 = 8.0;
/// By the other run's share of those that stay, so many would have stayed: fewer tell nothing.
const EXPECTED_MIN: f64 = 10.0;
/// Of those, at most this part may have stayed where nothing leaks.
const STAYED_MOST: f64 = 0.2;
/// Functions this much the same may be one place that was renamed.
const RENAMED: f64 = 0.3;

/// What one run says of the growth of something.
#[derive(Clone, Debug, Default, PartialEq)]
struct Growth {
    functions: Vec<String>,
    /// All functions, hashed.
    hashes: Vec<u64>,
    /// A row leaks, as surely as a finding wants it.
    leaks: bool,
    /// A row grows, surely or not.
    grows: bool,
    /// Growth of all rows, and of those that leak.
    per_s: f64,
    leaked_per_s: f64,
    opened: f64,
    /// Of these, how many have not ended.
    kept: f64,
    /// Of those that leak: how many of all that were made stay.
    stayed: f64,
    /// Steps of a staircase within the run.
    steps: Option<f64>,
    rows: u64,
}

impl Growth {
    fn per_s(&self) -> f64 {
        if self.leaks { self.leaked_per_s } else { self.per_s }
    }

    /// Share of all made that stay, where it leaks.
    fn stays(&self) -> f64 {
        (self.stayed / self.opened.max(1.0)).clamp(0.0, 1.0)
    }

    /// As much was made here as leaked in the other run, and it ended.
    fn mended(&self, leaking: &Self) -> bool {
        let expected = leaking.stays() * self.opened;
        !self.grows && expected >= EXPECTED_MIN && self.kept <= STAYED_MOST * expected
    }

    fn alike(&self, other: &Self) -> f64 {
        let most = self.hashes.len().max(other.hashes.len()).max(1);
        let shared = self.hashes.iter().filter(|hash| other.hashes.contains(hash));
        shared.count() as f64 / most as f64
    }
}

type Key = (String, u64);
type Grown = BTreeMap<Key, Growth>;

fn add(all: &mut Grown, key: Key, growth: Growth) {
    let known = all.entry(key).or_insert_with(|| Growth {
        functions: growth.functions,
        hashes: growth.hashes,
        ..Growth::default()
    });
    known.leaks |= growth.leaks;
    known.grows |= growth.grows;
    known.per_s += growth.per_s;
    known.leaked_per_s += growth.leaked_per_s;
    known.opened += growth.opened;
    known.kept += growth.kept;
    known.stayed += growth.stayed;
    known.steps = known.steps.or(growth.steps);
    known.rows += growth.rows;
}

/// What a row says, whose births are since attach.
struct Row {
    verdict: Verdict,
    confidence: f64,
    per_s: f64,
    opened: u64,
    kept: u64,
    stays: Option<f64>,
}

fn growth(row: &Row, chain: &Chain) -> Growth {
    let leaks = row.verdict == Verdict::Leaking && row.confidence >= LEAK_CONFIDENCE;
    let (opened, kept) = (row.opened as f64, row.kept as f64);
    let stayed = row.stays.map_or(kept, |stays| stays * opened);
    Growth {
        functions: chain.functions.clone(),
        hashes: chain.hashes.clone(),
        leaks,
        grows: matches!(row.verdict, Verdict::Leaking | Verdict::Growing),
        per_s: row.per_s,
        leaked_per_s: if leaks { row.per_s } else { 0.0 },
        opened,
        kept,
        stayed: if leaks { stayed } else { 0.0 },
        steps: None,
        rows: 1,
    }
}

fn named(report: &Report, key: Option<&String>) -> Option<Chain> {
    let chain = Chain::of(report.stacks.get(key?)?);
    (!chain.nameless).then_some(chain)
}

/// Descriptors by creating stack. With several reports in a file, of the last one, which has seen most.
#[must_use]
pub fn fds(runs: &[Run<'_>; 2], settings: &Settings, scale: (f64, f64)) -> Vec<Draft> {
    compare("fds", runs.each_ref().map(fds_of), runs, settings, scale)
}

fn fds_of(run: &Run<'_>) -> Option<Grown> {
    let report = run.reports.last()?;
    let fds = report.fds.as_ref()?;
    let mut all = Grown::new();
    for row in fds.by_stack.iter().take(ROWS_MAX) {
        let Some(chain) = named(report, row.stack.as_ref()) else {
            continue;
        };
        // Ends are also of those that were open before; of those still open some were made before the last interval.
        let born: u64 = row.born_by_quarter.iter().copied().fold(0, u64::saturating_add);
        let period = row.period_ns.filter(|&period| period > 0);
        let grown = Growth {
            steps: period.map(|period| run.duration_ns / period as f64),
            ..growth(
                &Row {
                    verdict: row.verdict,
                    confidence: row.confidence,
                    per_s: row.growth_per_s,
                    opened: row.opened,
                    kept: row.opened.saturating_sub(row.closed).max(born),
                    stays: row.stays,
                },
                &chain,
            )
        };
        add(&mut all, (main_kind(row), chain.hash), grown);
    }
    // Of many askers, each too slow to be told to leak.
    for sum in fds.shared.iter().take(ROWS_MAX) {
        let Some(chain) = named(report, sum.stack.as_ref()) else {
            continue;
        };
        let rows = fds.by_stack.iter().take(ROWS_MAX);
        let same = rows.filter(|row| row.pid == sum.pid && row.stack == sum.stack);
        let kind = same
            .max_by_key(|row| row.live)
            .map_or_else(|| "other".to_owned(), main_kind);
        let mut grown = growth(
            &Row {
                verdict: sum.verdict,
                confidence: sum.confidence,
                per_s: sum.growth_per_s,
                opened: sum.opened,
                kept: sum.opened.saturating_sub(sum.closed),
                stays: None,
            },
            &chain,
        );
        // They are counted in the askers' rows.
        if all.contains_key(&(kind.clone(), chain.hash)) {
            (grown.opened, grown.kept, grown.per_s, grown.rows) = (0.0, 0.0, 0.0, 0);
        }
        add(&mut all, (kind, chain.hash), grown);
    }
    Some(all)
}

fn main_kind(row: &FdStack) -> String {
    let kind = row.kinds.iter().max_by_key(|(_, count)| **count);
    kind.map_or_else(|| "other".to_owned(), |(kind, _)| word(kind))
}

/// Goroutines by stack and creator.
#[must_use]
pub fn goroutines(runs: &[Run<'_>; 2], settings: &Settings, scale: (f64, f64)) -> Vec<Draft> {
    compare(
        "goroutines",
        runs.each_ref().map(goroutines_of),
        runs,
        settings,
        scale,
    )
}

fn goroutines_of(run: &Run<'_>) -> Option<Grown> {
    let report = run.reports.last()?;
    let go = report.go.iter().chain(&report.go_others);
    report.go.as_ref()?;
    let mut all = Grown::new();
    for row in go.flat_map(|go| &go.by_stack).take(ROWS_MAX) {
        let Some(chain) = named(report, row.stack.as_ref()) else {
            continue;
        };
        if !never_leaks(report, row) {
            add(&mut all, (kind_of(row), chain.hash), of_goroutines(row, &chain));
        }
    }
    Some(all)
}

/// What libraries keep, as findings see it.
fn never_leaks(report: &Report, row: &GoStack) -> bool {
    let frames = row.stack.as_ref().and_then(|key| report.stacks.get(key));
    let ticks = row.waits_on.as_ref().is_some_and(|on| on.ticks);
    let shape = frames.and_then(|frames| go_shapes::of(frames, row.wait_reason.as_deref(), ticks));
    shape.is_some_and(Shape::never_leaks)
}

fn kind_of(row: &GoStack) -> String {
    format!(
        "{} by {}",
        row.wait_reason.as_deref().unwrap_or(&row.status),
        row.created_by.as_deref().map_or_else(|| "?".to_owned(), stable)
    )
}

fn of_goroutines(row: &GoStack, chain: &Chain) -> Growth {
    growth(
        &Row {
            verdict: row.verdict,
            confidence: row.confidence,
            per_s: row.growth_per_s,
            opened: row.opened,
            kept: row.opened.saturating_sub(row.closed),
            stays: row.stays,
        },
        chain,
    )
}

fn compare(
    class: &str,
    [before, after]: [Option<Grown>; 2],
    runs: &[Run<'_>; 2],
    settings: &Settings,
    scale: (f64, f64),
) -> Vec<Draft> {
    let (Some(before), Some(after)) = (before, after) else {
        return Vec::new();
    };
    let leaks = |grown: &Grown, key: &Key| grown.get(key).is_some_and(|growth| growth.leaks);
    let mut keys: Vec<&Key> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    // Nothing is said of what leaks in neither: there is no loss to compare.
    keys.retain(|key| leaks(&before, key) || leaks(&after, key));
    let mut drafts = Vec::new();
    for key in keys {
        let pair = [before.get(key), after.get(key)];
        // Something like it, under another name, leaks in the other run only.
        let renamed = |growth: Option<&Growth>, other: &Grown, own: &Grown| {
            growth.is_some_and(|growth| {
                let mut rivals = other
                    .iter()
                    .filter(|(key, rival)| rival.leaks && !leaks(own, key));
                rivals.any(|(_, rival)| growth.alike(rival) >= RENAMED)
            })
        };
        let renamed = match pair.map(|growth| growth.is_some_and(|growth| growth.leaks)) {
            [true, false] => renamed(pair[0], &after, &before),
            [false, true] => renamed(pair[1], &before, &after),
            _ => false,
        };
        let decided = verdict(pair, renamed, runs);
        drafts.push(draft(class, &key.0, pair, decided, settings, scale));
    }
    drafts
}

fn verdict(
    [one, two]: [Option<&Growth>; 2],
    renamed: bool,
    runs: &[Run<'_>; 2],
) -> (Rule, Change, &'static str) {
    let decided = |change, why| (Rule::Decided, change, why);
    let unknown = |why| decided(Change::NotEnoughData, why);
    let leaking = |growth: Option<&Growth>| growth.is_some_and(|growth| growth.leaks);
    // As long as the other run, so that it would have shown.
    let tells = |run: &Run<'_>, other: &Run<'_>| run.duration_ns >= 0.5 * other.duration_ns && run.complete;
    let (told, first) = match (leaking(one), leaking(two)) {
        (true, true) => return (Rule::Waits, Change::Unchanged, "leaks in both runs"),
        (true, false) => (tells(&runs[1], &runs[0]), true),
        _ => (tells(&runs[0], &runs[1]), false),
    };
    if !told {
        return unknown("leaks in one run; the other is too short, or has losses");
    }
    if renamed {
        return unknown("leaks in one run; something like it leaks in the other: may be the same, renamed");
    }
    match (one, two) {
        (Some(one), Some(two)) if first && two.mended(one) => decided(Change::Improved, "leaks no more"),
        (Some(one), Some(two)) if !first && one.mended(two) => decided(Change::Worse, "leaks now"),
        (Some(_), Some(_)) => unknown("leaks in one run; in the other too few were made and ended to tell"),
        (Some(_), None) => unknown("leaks in the first run; the second made none there, leaking or not"),
        _ => decided(
            Change::Differs,
            "leaks in the second run; the first made none there, leaking or not",
        ),
    }
}

fn draft(
    class: &str,
    kind: &str,
    [one, two]: [Option<&Growth>; 2],
    (rule, verdict, why): (Rule, Change, &str),
    settings: &Settings,
    scale: (f64, f64),
) -> Draft {
    let functions = two
        .or(one)
        .map(|growth| growth.functions.clone())
        .unwrap_or_default();
    let mut metric = growth_metric(one, two, settings, scale);
    if rule == Rule::Decided {
        metric.p = None;
    }
    Draft {
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
    }
}

fn growth_metric(
    one: Option<&Growth>,
    two: Option<&Growth>,
    settings: &Settings,
    scale: (f64, f64),
) -> Metric {
    let estimate = |growth: Option<&Growth>| {
        let growth = growth.filter(|growth| growth.per_s() > 0.0)?;
        let effective = growth.steps.unwrap_or(growth.kept / BURST).max(1.0);
        Some(Estimate {
            value: growth.per_s(),
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
        scale,
    );
    "growth_per_s".clone_into(&mut metric.name);
    let told = |growth: Option<&Growth>| growth.map(Growth::per_s).filter(|per_s| per_s.is_finite());
    metric.before = told(one);
    metric.after = told(two);
    metric
}
