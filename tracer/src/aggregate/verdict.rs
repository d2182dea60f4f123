//! What a number of things alive means: descriptors, goroutines, anything that is born and dies. A wrong finding is worse
//! than none: everything that could also be a pool, a peak, or connections that merely live long is called less.
//!
//! The method, its thresholds and its measured errors are in `docs/verdicts.md`.

use super::{
    ages::Ages,
    periods::{self, Period},
    series::{Series, Shape, Timeline},
    stats,
};
use crate::report::model::Verdict;

/// Fewer births than this say nothing.
const MIN_OPENED: u64 = 5;
/// Growth that is less than this is none.
pub(crate) const MIN_GROWTH: u64 = 5;
/// Shorter windows say nothing: quarters of less than 250 ms cannot tell a start-up from a trend.
pub(crate) const MIN_WINDOW_NS: u64 = 1_000_000_000;
/// Confidence from which a series that grows is called a leak in a finding.
pub(crate) const LEAK_CONFIDENCE: f64 = 0.25;
/// A window that takes nothing off a confidence.
const FULL_WINDOW_NS: f64 = 60e9;
/// Share of those that reached an age and yet ended: above it, that age says nothing of who stays.
const LATE: f64 = 0.15;
/// Chance, were growth as steady as a leak's, of gaps as wide as there are: below it growth has stopped.
const QUIET: f64 = 0.01;
/// With fewer that stay, born apart, a confidence is taken down twice.
const FEW: f64 = 16.0;
/// Part of the time since the first that the last of those that stay must reach.
const LAST: f64 = 0.6;
/// Share of those that stay that the second half of their time must bring.
const SECOND_HALF: f64 = 0.15;
/// Mean times between two looks that may pass without a birth being seen.
const BLIND: f64 = 4.0;
/// Births that ended, to tell time by.
const CLOCK: f64 = 30.0;
/// Chance of the trend by Mann and Kendall, were there none.
const TREND: f64 = 0.01;
/// So many that were there before and ended are no chance.
const FEW_ENDED: u64 = 3;
/// Part of the window from which an age is long, and so many that ended at such an age.
const OLD: u64 = 8;
const OLD_ENDED: u64 = 2;
/// Confidence at most where those that stay may just have come to stay for longer than was looked: some of them ended at a long age, or
/// none has ended and it is up to others when.
const UNSURE: f64 = 0.4;
/// Part of those that stay that the steps of the periods found must bring.
const EXPLAINED: f64 = 0.5;
/// Standard errors by which births exceed the ends of what was there before.
const NET: f64 = 2.5;

/// What is known of one series.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence<'a> {
    /// No record was lost.
    pub(crate) complete: bool,
    /// The row mixes stacks (births without one), or is folded.
    pub(crate) mixed: bool,
    /// Numbers over time.
    pub(crate) series: &'a Series,
    /// When they were taken.
    pub(crate) line: &'a Timeline,
    /// End of the window.
    pub(crate) now_ns: u64,
    /// When those alive were born, of those born since the start; sorted.
    pub(crate) births: &'a [u64],
    /// Of those born since the start that ended, how old they were.
    pub(crate) deaths: &'a Ages,
    /// Of those alive at the start that ended, how long after it; and others that may be of the same sort.
    pub(crate) before: &'a Ages,
    /// The age of a suspect, when the user says.
    pub(crate) older_ns: Option<u64>,
    /// Births are seen at times this far apart.
    pub(crate) resolution_ns: u64,
    /// How long they live is up to others, as with connections that were accepted.
    pub(crate) visitors: bool,
}

/// What it means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judgement {
    pub(crate) verdict: Verdict,
    /// Of the verdict, 0 to 1.
    pub(crate) confidence: f64,
    /// Of a leak how many stay per second, otherwise the slope of the number.
    pub(crate) growth_per_s: f64,
    /// Its 95 % interval.
    pub(crate) interval: Option<(f64, f64)>,
    /// Of a leak: the share of births that stay.
    pub(crate) stays: Option<f64>,
    /// Of what leaks or grows: the periods of its steps.
    pub(crate) periods: Vec<Period>,
}

/// Verdict, how sure it is, and how fast it grows.
pub(crate) fn judge(evidence: &Evidence<'_>) -> Judgement {
    let shape = evidence.series.shape(evidence.line, evidence.now_ns);
    let trend = evidence.series.trend(evidence.line, evidence.now_ns);
    let mut judged = Judgement {
        verdict: Verdict::Unknown,
        confidence: 0.0,
        growth_per_s: trend.map_or(0.0, |trend| trend.slope),
        interval: trend.map(|trend| trend.interval),
        stays: None,
        periods: Vec::new(),
    };
    if !evidence.complete || !shape.enough || shape.window_ns < MIN_WINDOW_NS {
        return judged;
    }
    let window = 0.7 + 0.3 * (shape.window_ns as f64 / FULL_WINDOW_NS).min(1.0);
    let mixed = if evidence.mixed { 0.6 } else { 1.0 };
    if evidence.series.opened >= MIN_OPENED
        && let Some(leak) = Leak::of(evidence, &shape)
    {
        judged.verdict = Verdict::Leaking;
        judged.confidence = leak.confidence * window * mixed;
        let none_ended = evidence.series.closed == 0 && evidence.before.since(0) == 0;
        // Some end at an age that is long for this window: others may, too, after it.
        let old = evidence.deaths.since(shape.window_ns / OLD);
        if old >= OLD_ENDED || (evidence.visitors && none_ended) {
            judged.confidence = judged.confidence.min(UNSURE);
        }
        judged.growth_per_s = leak.per_s;
        judged.interval = Some(leak.interval);
        judged.stays = Some(leak.stays);
        judged.periods = leak.periods;
        return judged;
    }
    let grows = trend.is_some_and(|trend| trend.rises && trend.p < TREND);
    (judged.verdict, judged.confidence) = other(evidence, &shape, grows, window);
    if judged.verdict == Verdict::Growing {
        judged.confidence *= mixed;
    }
    judged
}

/// A verdict that accuses nobody.
fn other(evidence: &Evidence<'_>, shape: &Shape, grows: bool, window: f64) -> (Verdict, f64) {
    let (opened, closed) = (evidence.series.opened, evidence.series.closed);
    if opened == 0 {
        let verdict = if closed == 0 {
            Verdict::Steady
        } else {
            Verdict::Churn
        };
        return (verdict, window);
    }
    if opened < MIN_OPENED {
        return (Verdict::Unknown, 0.0);
    }
    let live = evidence.series.live();
    let sure = opened as f64 / (opened as f64 + 5.0) * window;
    let [first, second, third, last] = shape.floors;
    let grew = live.saturating_sub(evidence.series.at_start);
    if grows && grew >= MIN_GROWTH && last > first {
        let half = shape.ends[3].saturating_sub(shape.ends[1]);
        if half * 5 >= grew && shape.ends[3] > shape.ends[2] && last > second && last >= shape.peaks[0] {
            return (Verdict::Growing, 0.5 * grew as f64 / (grew as f64 + 5.0) * window);
        }
    }
    let slack = (third / 10).max(1);
    if last > first && last.abs_diff(third) <= slack && live.abs_diff(last) <= slack.max(opened / 20) {
        return (Verdict::Pool, sure);
    }
    if closed * 10 >= opened * 9 || (closed * 2 >= opened && last <= first) {
        (Verdict::Churn, sure)
    } else {
        (Verdict::Unknown, 0.0)
    }
}

/// Those that stay, and how it is known that they do.
struct Leak {
    confidence: f64,
    per_s: f64,
    interval: (f64, f64),
    stays: f64,
    periods: Vec<Period>,
}

impl Leak {
    /// Whether some of what is born stays for ever, and goes on to:
    /// - there is an age, at most half the window, from which on at most 10 % end: they are settled;
    /// - the settled were born all over the window, and no quiet end of it says that this is over;
    /// - they are more, by chance's measure too, than those that were there before and ended at such an age.
    fn of(evidence: &Evidence<'_>, shape: &Shape) -> Option<Self> {
        let settled_ns = settled(evidence, shape.window_ns)?;
        let until_ns = evidence.now_ns.saturating_sub(settled_ns);
        let births = evidence.births;
        let stay = births.get(..births.partition_point(|&born| born <= until_ns))?;
        let number = stay.len() as u64;
        if number < MIN_GROWTH {
            return None;
        }
        let replaced = evidence.before.since(settled_ns);
        let net = number.checked_sub(replaced)?;
        // Those from before end, and hardly a young one does: a population of long lives, which may well be growing.
        let young = evidence.deaths.since(settled_ns);
        if replaced >= FEW_ENDED && replaced * 10 >= number && young * 4 <= replaced {
            return None;
        }
        let by_chance = if replaced > 0 {
            NET * ((number + replaced) as f64).sqrt()
        } else {
            0.0
        };
        if net < MIN_GROWTH.max(number / 2) || (net as f64) < by_chance {
            return None;
        }
        let start_ns = evidence.now_ns.saturating_sub(shape.window_ns);
        let steps = steps(stay, shape.window_ns);
        let first = steps.first()?.0;
        let span = until_ns.saturating_sub(first);
        let place = |at: u64| at.saturating_sub(first) as f64 / span.max(1) as f64;
        if span < shape.window_ns * 2 / 5 || place(steps.last()?.0) < LAST {
            return None;
        }
        // Births that snapshots alone see come at their times, some of which are far apart by chance.
        let blind = BLIND * evidence.resolution_ns as f64 / span.max(1) as f64;
        let goes_on = even(&steps, place, blind).max(even_by_load(evidence, &steps, until_ns).unwrap_or(0.0));
        if goes_on < QUIET {
            return None;
        }
        let seconds = (until_ns.saturating_sub(start_ns) as f64 / 1e9).max(1e-9);
        let per_s = number as f64 / seconds;
        let mut found = periods::find(stay, start_ns, until_ns, evidence.resolution_ns);
        // What comes more often than can be told has a multiple of its period, too, which explains a part of it only.
        let by_period = |period: &Period| period.step as f64 * 1e9 / period.every_ns.max(1) as f64;
        if found.iter().map(by_period).sum::<f64>() < EXPLAINED * per_s {
            found.clear();
        }
        let late = late(evidence, settled_ns).unwrap_or(0.0);
        let units = if found.is_empty() {
            steps.len() as f64
        } else {
            number as f64
        };
        let near = evidence
            .deaths
            .since(settled_ns / 4)
            .saturating_sub(evidence.deaths.since(settled_ns));
        let apart = number as f64 / (number as f64 + near as f64 / 2.0);
        let reach = 1.96
            * steps
                .iter()
                .map(|step| (step.1 as f64).powi(2))
                .sum::<f64>()
                .sqrt()
            / seconds;
        Some(Self {
            confidence: units / (units + 6.0)
                * (units / FEW).min(1.0)
                * if evidence.series.closed > 0 { 1.0 } else { 0.8 }
                * (0.4 + 0.6 * (goes_on * 5.0).min(1.0))
                * (1.0 - 5.0 * late)
                * apart.max(0.3)
                * if replaced > 0 {
                    (net as f64 / ((number + replaced) as f64).sqrt() / 5.0).min(1.0)
                } else {
                    1.0
                }
                * (1.05 - settled_ns as f64 / shape.window_ns as f64).min(1.0),
            per_s,
            interval: ((per_s - reach).max(0.0), per_s + reach),
            stays: number as f64
                / evidence.series.births_at(evidence.line, evidence.now_ns)(until_ns).max(number as f64),
            periods: found,
        })
    }
}

/// Share of those that reached an age and ended since; None when nobody did.
fn late(evidence: &Evidence<'_>, age_ns: u64) -> Option<f64> {
    let until_ns = evidence.now_ns.saturating_sub(age_ns);
    let alive = evidence.births.partition_point(|&born| born <= until_ns) as f64;
    let ended = evidence.deaths.since(age_ns) as f64;
    (alive + ended > 0.0).then(|| ended / (alive + ended))
}

/// The least age from which on those that reach it stay, up to half the window.
fn settled(evidence: &Evidence<'_>, window_ns: u64) -> Option<u64> {
    let least = evidence.older_ns.unwrap_or(window_ns / 20).max(1);
    let most = (window_ns / 2).max(least);
    let stays = |age: u64| late(evidence, age).is_some_and(|late| late <= LATE);
    if !stays(most) {
        return None;
    }
    let mut settled = most;
    for age in Ages::borders(least, most).chain([least]) {
        if !stays(age) {
            break;
        }
        settled = age;
    }
    Some(settled)
}

/// Births close together are one step: when it began, and how many. None takes longer than a hundredth of the window.
fn steps(births: &[u64], window_ns: u64) -> Vec<(u64, usize)> {
    let mut steps: Vec<(u64, usize)> = Vec::new();
    let mut last = 0;
    for &at in births {
        match steps.last_mut() {
            Some(step)
                if at.saturating_sub(last) <= window_ns / 500
                    && at.saturating_sub(step.0) <= window_ns / 100 =>
            {
                step.1 += 1;
            }
            _ => steps.push((at, 1)),
        }
        last = at;
    }
    steps
}

/// How likely gaps as wide as those of these steps are, were they spread evenly over 0 to 1: by the number in the last
/// 30 %, by the time since the last one, by the widest gap; the least likely, thrice. Impossible when the second half
/// holds hardly any: many at first and a few later are a pool.
fn even(steps: &[(u64, usize)], place: impl Fn(u64) -> f64, blind: f64) -> f64 {
    let number = steps.len() as f64;
    let (mut all, mut second, mut late, mut born_late) = (0, 0, 0, 0);
    let (mut last, mut widest) = (0.0, 0.0_f64);
    for &(at, size) in steps {
        let at = place(at).clamp(0.0, 1.0);
        all += size;
        second += if at > 0.5 { size } else { 0 };
        late += u64::from(at > 0.7);
        born_late += if at > 0.7 { size } else { 0 };
        widest = widest.max(at - last);
        last = at;
    }
    if (second as f64) < SECOND_HALF * all as f64 {
        return 0.0;
    }
    // Looks become rarer where they are dear: then it is not their number that tells, but what they find.
    let few = if blind > 0.0 && born_late * 10 >= all {
        1.0
    } else {
        stats::binomial_below(late, steps.len() as u64, 0.3)
    };
    let end = (last + blind).min(1.0).powf(number);
    let gap = number * (1.0 - (widest - blind).max(0.0)).powf(number - 1.0);
    (3.0 * few.min(end).min(gap)).min(1.0)
}

/// The same by the clock of births that ended: a load that goes down takes its leak along. None with hardly any.
fn even_by_load(evidence: &Evidence<'_>, steps: &[(u64, usize)], until_ns: u64) -> Option<f64> {
    let births = evidence.series.births_at(evidence.line, evidence.now_ns);
    let ended = |at: u64| births(at) - evidence.births.partition_point(|&born| born <= at) as f64;
    let (begin, end) = (ended(steps.first()?.0), ended(until_ns));
    (end - begin >= CLOCK).then(|| even(steps, |at| (ended(at) - begin) / (end - begin), 0.0))
}

/// The floor rises from quarter to quarter, and has not slowed down by much.
pub(crate) fn rising(shape: &Shape) -> bool {
    let [first, second, third, last] = shape.floors;
    shape.enough
        && shape.window_ns >= MIN_WINDOW_NS
        && first < second
        && second < third
        && third < last
        && (last - third) * 4 + 3 >= last - first
}
