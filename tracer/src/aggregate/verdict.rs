//! What a series of live descriptors means. A wrong finding is worse than none: everything that could also be
//! a pool, a peak, or connections that merely live long is called less.

use super::series::Shape;
use crate::report::model::Verdict;

/// Fewer births than this say nothing.
const MIN_OPENED: u64 = 5;
/// Growth that is less than this is none.
const MIN_GROWTH: u64 = 5;
/// Shorter windows say nothing: quarters of less than 250 ms cannot tell a start-up from a trend.
pub(crate) const MIN_WINDOW_NS: u64 = 1_000_000_000;
/// Confidence from which a series that grows is called a leak in a finding.
pub(crate) const LEAK_CONFIDENCE: f64 = 0.25;
/// A window that takes nothing off a confidence.
const FULL_WINDOW_NS: f64 = 60e9;

/// What is known of the descriptors of one stack.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Evidence {
    /// No record about descriptors was lost.
    pub(crate) complete: bool,
    /// The row mixes stacks (births without one), or is folded.
    pub(crate) mixed: bool,
    /// Births.
    pub(crate) opened: u64,
    /// Deaths.
    pub(crate) closed: u64,
    /// Open at the start.
    pub(crate) at_start: u64,
    /// Open now.
    pub(crate) live: u64,
    /// Over time.
    pub(crate) shape: Shape,
    /// Those open now, by the quarter in which they were born.
    pub(crate) survivors: [u64; 4],
    /// Open now, and at least as old as a suspect must be: `--older`, or a quarter of the window.
    pub(crate) old: u64,
    /// Ended at such an age.
    pub(crate) late_deaths: u64,
    /// Descriptors of the same kinds that were open before the start and ended since.
    pub(crate) before_closed: u64,
}

/// Verdict and how sure it is, 0 to 1.
///
/// `leaking` asks for all of this; `growing` for the first line, growth in the last quarter, and a floor there that
/// reaches the peak of the first quarter, as fluctuations do not:
/// - at least 5 born, live grew by 5 or more, and its floor is higher at the end than at the start;
/// - the floor (lowest number) rises from each quarter of the window to the next, and the last rise is about a
///   quarter of all or more: a pool that fills up, or a load that settles, slows down;
/// - those still open were born in each of the first three quarters, at least half of the growth is old: a load
///   that rises has young descriptors only;
/// - of those that reached that age, at most 5 % were closed later: where some are closed late, the others may be;
/// - what was open before tracing began was not closed meanwhile at half that rate or more: connections that live
///   longer than the window are seen to be opened, but those closed in their place were opened before.
///
/// What no rule can tell: descriptors that all live longer than the window, when tracing began before the first
/// of them. They look like a leak until the first is closed; hence the factor for windows and that for closes.
///
/// Confidence of growth is the product of: `g / (g + 5)` for a growth of `g`; 0.8 + 0.2 × (smallest / largest rise
/// of the floor); 1 when others of the same stack were closed, 0.8 when none was; 0.7 + 0.3 × (window / 60 s, at
/// most 1); 0.6 when the row mixes stacks; 0.5 when `growing`. Of the other verdicts: `n / (n + 5)` for `n` births
/// (1 without any) times the window's factor. 0 when unknown.
pub(crate) fn judge(evidence: &Evidence) -> (Verdict, f64) {
    let Evidence {
        opened,
        closed,
        live,
        at_start,
        shape,
        ..
    } = *evidence;
    if !evidence.complete || !shape.enough || shape.window_ns < MIN_WINDOW_NS {
        return (Verdict::Unknown, 0.0);
    }
    let window = 0.7 + 0.3 * (shape.window_ns as f64 / FULL_WINDOW_NS).min(1.0);
    if opened == 0 {
        return (
            if closed == 0 {
                Verdict::Steady
            } else {
                Verdict::Churn
            },
            window,
        );
    }
    if opened < MIN_OPENED {
        return (Verdict::Unknown, 0.0);
    }
    let other = opened as f64 / (opened as f64 + 5.0) * window;
    let [first, second, third, last] = shape.floors;
    let grew = live.saturating_sub(at_start);
    if grew >= MIN_GROWTH && last > first {
        let rises = [second, third, last].map(|floor| floor as f64);
        let rises = [rises[0] - first as f64, rises[1] - rises[0], rises[2] - rises[1]];
        let most = rises.into_iter().fold(1.0, f64::max);
        let least = rises.into_iter().fold(most, f64::min).max(0.0);
        let sure = grew as f64 / (grew as f64 + 5.0)
            * (0.8 + 0.2 * least / most)
            * if closed > 0 { 1.0 } else { 0.8 }
            * window
            * if evidence.mixed { 0.6 } else { 1.0 };
        if leaks(evidence, grew) {
            return (Verdict::Leaking, sure);
        }
        let half = shape.ends[3].saturating_sub(shape.ends[1]);
        if half * 5 >= grew && shape.ends[3] > shape.ends[2] && last > second && last >= shape.peaks[0] {
            return (Verdict::Growing, sure * 0.5);
        }
    }
    let slack = (third / 10).max(1);
    if last > first && last.abs_diff(third) <= slack && live.abs_diff(last) <= slack.max(opened / 20) {
        return (Verdict::Pool, other);
    }
    let turned_over = closed * 10 >= opened * 9 || (closed * 2 >= opened && last <= first);
    if turned_over {
        (Verdict::Churn, other)
    } else {
        (Verdict::Unknown, 0.0)
    }
}

fn leaks(evidence: &Evidence, grew: u64) -> bool {
    let Evidence {
        shape,
        survivors,
        old,
        late_deaths,
        before_closed,
        ..
    } = *evidence;
    old >= 4
        && old * 2 >= grew
        && rising(&shape)
        && survivors[..3].iter().all(|&born| born > 0)
        && late_deaths * 20 <= old + late_deaths
        && grew.saturating_sub(before_closed) >= MIN_GROWTH.max(grew / 2)
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
