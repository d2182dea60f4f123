//! From things and their waits to verdicts.

use super::{
    Only, Settings, WINDOW_MIN_NS,
    doubt::{Work, alone, renamed},
    item::{Class, Item},
    matching::{Pair, pairs},
    run::Run,
    stats::{Estimate, Of, Sample, compare, holm, nothing_like},
};
use crate::report::diff::{Change, Matched, Metric, Thing};

/// What costs less than this in both runs is not looked at, in ns per second.
pub(super) const SMALL: f64 = 1e6;
/// Pauses of a collector stop everything: less is enough.
const SMALL_PAUSES: f64 = 1e5;
/// Fewer waits in both runs tell nothing.
const WAITS_MIN: f64 = 20.0;
/// An interval of a ratio wider than this tells nothing.
const WIDEST: f64 = 9.0;
/// From this part of the machine's CPUs on, a program's threads may wait for each other's.
const BUSY: f64 = 0.5;

/// A thing whose verdict is not yet known, or is.
pub struct Draft {
    /// What goes into the document.
    pub thing: Thing,
    /// It costs too little in both runs.
    pub too_small: bool,
    /// What its waits are.
    pub rule: Rule,
}

/// How metrics become a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Less time is better.
    Waits,
    /// Any change is neither good nor bad.
    Neutral,
    /// Less is better when the program's own CPU time changed as well, as it says: +1, −1; else it is the others' doing.
    RunQueue(i8),
    /// It is decided already.
    Decided,
}

/// Drafts of everything that waits.
#[must_use]
pub fn waits(runs: &[Run<'_>; 2], settings: &Settings, scale: (f64, f64), only: &Only) -> Vec<Draft> {
    let wanted = |class: Class| match class {
        Class::Lock => only.locks || only.go,
        Class::Blocked => only.io,
        Class::RunQueue => only.sched,
        Class::Gc => only.go,
    };
    let [before, after] = runs;
    let pairs = pairs(&before.items, &after.items);
    let alone = alone(runs, &pairs);
    pairs
        .iter()
        .filter_map(|pair| {
            let one = pair.before.and_then(|at| before.items.get(at));
            let two = pair.after.and_then(|at| after.items.get(at));
            let class = one.or(two)?.class;
            (wanted(class) && before.has(class) && after.has(class))
                .then(|| {
                    let mut draft = draft(runs, pair, (one, two), settings, scale)?;
                    if draft.rule != Rule::Decided && renamed(runs, (one, two), &alone) {
                        withhold(
                            &mut draft,
                            "something like it is in the other run only: may be the same, renamed",
                        );
                    }
                    Some(draft)
                })
                .flatten()
        })
        .collect()
}

fn draft(
    runs: &[Run<'_>; 2],
    pair: &Pair,
    (one, two): (Option<&Item>, Option<&Item>),
    settings: &Settings,
    scale: (f64, f64),
) -> Option<Draft> {
    let shown = shown(one, two)?;
    let lost = |item: Option<&Item>, run: &Run<'_>| {
        item.map_or(0.0, |item| item.sample.total_ns / run.duration_ns.max(1.0) * 1e9)
    };
    let lost = [lost(one, &runs[0]), lost(two, &runs[1])];
    let small = if shown.class == Class::Gc {
        SMALL_PAUSES
    } else {
        SMALL
    };
    // A program that uses little of the machine does not take the CPUs from itself.
    let busy = |run: &Run<'_>, share: f64| share >= BUSY * run.cpus();
    let own = runs[0].running().zip(runs[1].running()).map_or(0, |(one, two)| {
        if !busy(&runs[0], one) && !busy(&runs[1], two) {
            return 0;
        }
        let log = (two.max(1e-9) / one.max(1e-9)).ln();
        if log.abs() < settings.margin.ln_1p() {
            0
        } else {
            log.signum() as i8
        }
    });
    let rule = match shown.class {
        Class::RunQueue => Rule::RunQueue(own),
        Class::Blocked | Class::Lock if [one, two].into_iter().flatten().any(|item| item.neutral) => {
            Rule::Neutral
        }
        _ => Rule::Waits,
    };
    let was = one
        .zip(two)
        .filter(|(one, two)| one.kind != two.kind)
        .map(|(one, _)| one.kind.clone());
    let name = shown
        .symbol
        .clone()
        .or_else(|| shown.top.first().cloned())
        .or_else(|| shown.name.clone())
        .unwrap_or_else(|| shown.kind.clone());
    let thing = Thing {
        class: shown.class.word().to_owned(),
        kind: shown.kind.clone(),
        was,
        name,
        functions: shown.top.clone(),
        verdict: Change::Unchanged,
        why: String::new(),
        matched: pair.matched,
        similarity: (one.is_some() && two.is_some()).then_some(pair.likeness),
        ambiguous: pair.ambiguous,
        rows: [one, two].map(|item| item.map_or(0, |item| item.rows)),
        lost_ns_per_s: [one.map(|_| lost[0]), two.map(|_| lost[1])],
        metrics: metrics(runs, pair, (one, two), settings, scale),
    };
    let mut draft = Draft {
        too_small: lost[0] < small && lost[1] < small,
        thing,
        rule,
    };
    if let Some(why) = withheld(runs, pair, (one, two)) {
        withhold(&mut draft, why);
    }
    Some(draft)
}

fn withhold(draft: &mut Draft, why: &str) {
    draft.rule = Rule::Decided;
    draft.thing.verdict = Change::NotEnoughData;
    why.clone_into(&mut draft.thing.why);
    for metric in &mut draft.thing.metrics {
        metric.p = None;
    }
}

fn shown<'a>(one: Option<&'a Item>, two: Option<&'a Item>) -> Option<&'a Item> {
    two.or(one)
}

/// Why nothing can be said, whatever the numbers are.
fn withheld(
    runs: &[Run<'_>; 2],
    pair: &Pair,
    (one, two): (Option<&Item>, Option<&Item>),
) -> Option<&'static str> {
    if runs.iter().any(|run| run.duration_ns < WINDOW_MIN_NS) {
        return Some("a run is shorter than a second");
    }
    let waits = [one, two].map(|item| item.map_or(0.0, |item| item.sample.count));
    if waits.iter().all(|&waits| waits < WAITS_MIN) {
        return Some("fewer than 20 waits in either run");
    }
    // A deadlock ends no waits: it would look like an improvement.
    if shown(one, two).is_some_and(|item| item.class == Class::Lock) {
        let stuck = |run: &Run<'_>, other: Option<&Item>| other.is_some_and(|other| run.is_stuck(other));
        if stuck(&runs[0], two) != stuck(&runs[1], one) {
            return Some("threads of one run still waited there at its end, and had for most of it");
        }
    }
    let (alone, other) = match pair.matched {
        Matched::OnlyBefore => (one?, &runs[1]),
        Matched::OnlyAfter => (two?, &runs[0]),
        _ => {
            return pair
                .ambiguous
                .then_some("another counterpart is as likely: their functions are the same");
        }
    };
    if alone.nameless || alone.top.is_empty() {
        return Some("its code has no names: whether it is in the other run cannot be told");
    }
    if other.left_out > 0 {
        return Some("the other run has too many things to compare: it may have been there");
    }
    (!other.complete).then_some("the other run has losses: it may have been there")
}

fn metrics(
    runs: &[Run<'_>; 2],
    pair: &Pair,
    (one, two): (Option<&Item>, Option<&Item>),
    settings: &Settings,
    scale: (f64, f64),
) -> Vec<Metric> {
    let mut metrics = Vec::new();
    let samples = [one, two].map(|item| item.map(|item| &item.sample));
    for (name, unit, of) in [
        ("time_per_s", "ns/s", Of::Total),
        ("count_per_s", "1/s", Of::Count),
    ] {
        let seen = samples.map(|sample| sample.and_then(|sample| sample.rate(of)));
        let estimates = match (seen, samples) {
            ([Some(one), Some(two)], _) => Some((one, two)),
            ([Some(one), None], [Some(sample), _]) => {
                Some((one, nothing_like(sample, of, runs[1].duration_ns)))
            }
            ([None, Some(two)], [_, Some(sample)]) => {
                Some((nothing_like(sample, of, runs[0].duration_ns), two))
            }
            _ => None,
        };
        let mut metric = metric(name, unit, seen, estimates, settings.noise, scale);
        // What is nothing in one run has no ratio.
        if seen.iter().any(Option::is_none) {
            metric.ratio = None;
            metric.ratio_ci = None;
            metric.before = metric.before.or(one.is_none().then_some(0.0));
            metric.after = metric.after.or(two.is_none().then_some(0.0));
        }
        metrics.push(metric);
    }
    // Those who wait for another kind of lock are others.
    if pair.matched != Matched::Replaced
        && let [Some(one), Some(two)] = samples
    {
        for (name, q) in [("p50", 0.5), ("p99", 0.99)] {
            let seen = [one, two].map(|sample: &Sample| sample.percentile(q));
            let estimates = seen[0].zip(seen[1]);
            metrics.push(metric(name, "ns", seen, estimates, settings.noise, (1.0, 0.0)));
        }
    }
    metrics
}

/// Compares two estimates, where there are two.
pub(super) fn metric(
    name: &str,
    unit: &str,
    seen: [Option<Estimate>; 2],
    estimates: Option<(Estimate, Estimate)>,
    noise: f64,
    scale: (f64, f64),
) -> Metric {
    let told = |estimate: &Estimate| estimate.value.is_finite() && estimate.value > 0.0;
    let estimates = estimates.filter(|(one, two)| told(one) && told(two));
    let tested = estimates
        .map(|(one, two)| compare(&one, &two, noise, scale))
        .filter(|tested| tested.ratio.is_finite() && tested.ratio > 0.0);
    let finite = |value: &f64| value.is_finite();
    Metric {
        name: name.to_owned(),
        unit: unit.to_owned(),
        before: seen[0].map(|estimate| estimate.value).filter(finite),
        after: seen[1].map(|estimate| estimate.value).filter(finite),
        ratio: tested.map(|tested| tested.ratio),
        ratio_ci: tested.map(|tested| tested.ci).filter(|ci| ci.iter().all(finite)),
        p: tested.map(|tested| tested.p),
        p_adjusted: None,
        changed: false,
        effective: seen.map(|estimate| estimate.map(|estimate| estimate.effective).filter(finite)),
    }
}

/// Adjusts all tests and decides; how many tests there are.
pub fn adjust(drafts: &mut [Draft], settings: &Settings, work: &Work) -> usize {
    let mut tests: Vec<&mut Metric> = drafts
        .iter_mut()
        .filter(|draft| !draft.too_small)
        .flat_map(|draft| draft.thing.metrics.iter_mut())
        .filter(|metric| metric.p.is_some())
        .collect();
    let adjusted = holm(&tests.iter().filter_map(|metric| metric.p).collect::<Vec<_>>());
    for (metric, adjusted) in tests.iter_mut().zip(&adjusted) {
        metric.p_adjusted = Some(*adjusted);
        let large = metric
            .ratio
            .is_none_or(|ratio| ratio.ln().abs() >= settings.margin.ln_1p());
        metric.changed = *adjusted <= settings.alpha && large;
    }
    let count = tests.len();
    for draft in drafts.iter_mut().filter(|draft| !draft.too_small) {
        decide(draft, work);
    }
    count
}

/// −1: less, 1: more, 0: no change.
pub(super) fn direction(metric: Option<&Metric>) -> i8 {
    let Some(metric) = metric.filter(|metric| metric.changed) else {
        return 0;
    };
    let less = match metric.ratio {
        Some(ratio) => ratio < 1.0,
        None => metric.before.unwrap_or(0.0) > metric.after.unwrap_or(0.0),
    };
    if less { -1 } else { 1 }
}

fn decide(draft: &mut Draft, work: &Work) {
    if draft.rule == Rule::Decided {
        return;
    }
    let thing = &mut draft.thing;
    let of = |name: &str| direction(thing.metrics.iter().find(|metric| metric.name == name));
    let (time, count, p50, p99) = (
        of("time_per_s") + of("growth_per_s"),
        of("count_per_s"),
        of("p50"),
        of("p99"),
    );
    let better = |direction: i8| {
        if direction < 0 {
            Change::Improved
        } else {
            Change::Worse
        }
    };
    let (mut verdict, mut why) = match (time, p99, p50, count) {
        (0, 0, 0, 0) => (Change::Unchanged, "no change could be shown"),
        (0, 0, 0, _) => (Change::Differs, "another number of waits, and as much time"),
        (time, tail, _, _) if time * tail < 0 => {
            (Change::Differs, "less time and a longer tail, or the reverse")
        }
        (0, 0, middle, _) => (better(middle), "the median wait"),
        (0, tail, _, _) => (better(tail), "the longest waits (p99)"),
        (time, ..) => (
            better(time),
            match thing.matched {
                Matched::OnlyBefore => "no waits any more",
                Matched::OnlyAfter => "no waits before",
                _ => "the time waited",
            },
        ),
    };
    match draft.rule {
        Rule::Neutral if verdict != Change::Unchanged => {
            verdict = Change::Differs;
            why = "waiting for work or for others, neither good nor bad by itself";
        }
        Rule::RunQueue(own) if matches!(verdict, Change::Worse | Change::Improved) => {
            let wanted = if verdict == Change::Worse { 1 } else { -1 };
            if own == wanted {
                why = "with the CPU time that the program itself uses";
            } else {
                verdict = Change::Differs;
                why = "not by the CPU time that the program uses: others of the machine may";
            }
        }
        _ => {}
    }
    if matches!(verdict, Change::Worse | Change::Improved)
        && let Some(did) = work.explains(thing)
    {
        verdict = Change::NotEnoughData;
        why = did;
    }
    if verdict == Change::Unchanged {
        // The first is what is lost.
        let time = thing.metrics.first();
        let wide = time
            .and_then(|metric| metric.ratio_ci)
            .is_none_or(|[low, high]| high > WIDEST * low);
        if wide {
            verdict = Change::NotEnoughData;
            why = if time.is_some_and(|metric| metric.name == "growth_per_s") {
                "leaks in both runs, too little to compare the rates"
            } else {
                "too few waits, or in too few bursts"
            };
        }
    }
    thing.verdict = verdict;
    why.clone_into(&mut thing.why);
}
