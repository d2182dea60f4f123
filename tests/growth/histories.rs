//! Histories whose truth is known: programs that leak, and programs that only look as if.
//!
//! Each begins when its service does, which may be long before the trace (time 0) or at its start; so what is open when
//! the trace begins is what such a service has open. A history shows its truth in its first four fifths: a pool that
//! would stop growing after the end of the trace is no fair question. Those that no one can tell are of a kind of their own.

use std::f64::consts::TAU;

use crate::{dice::Dice, stage::Life};

const NEVER: f64 = f64::INFINITY;

/// What is true of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    /// Some are never closed, and it goes on.
    Leak,
    /// It levels off, comes back, or stops.
    Sound,
    /// The trace is too short to tell by any rule; shown, and not counted.
    Untellable,
}

/// A history of a window of so many seconds.
pub(crate) type Make = fn(&mut Dice, f64) -> Vec<Life>;

/// All kinds.
pub(crate) const KINDS: &[(&str, Truth, Make)] = &[
    ("steady pool", Truth::Sound, steady_pool),
    ("pool that renews its members", Truth::Sound, renewed_pool),
    ("warm-up that levels off", Truth::Sound, warm_up),
    ("growth that stops", Truth::Sound, growth_that_stops),
    ("pool that grows once", Truth::Sound, grows_once),
    ("single late step", Truth::Sound, late_step),
    ("pool that wanders", Truth::Sound, wandering_pool),
    ("short requests", Truth::Sound, requests),
    ("heavy-tailed requests", Truth::Sound, heavy_requests),
    ("day and night", Truth::Sound, day_and_night),
    ("load that rises", Truth::Sound, rising_load),
    ("load that doubles", Truth::Sound, doubled_load),
    ("long sessions", Truth::Sound, long_sessions),
    ("long sessions, load that rises", Truth::Sound, rising_sessions),
    ("idle timeout, fresh start", Truth::Sound, idle_timeout),
    ("sawtooth", Truth::Sound, sawtooth),
    ("burst and drain", Truth::Sound, burst_and_drain),
    ("cache of files", Truth::Sound, cache),
    ("leak, nothing closed", Truth::Leak, plain_leak),
    ("leak among requests", Truth::Leak, leak_among_requests),
    ("1 in 1,000", Truth::Leak, one_in_a_thousand),
    ("leak on a pool", Truth::Leak, leak_on_a_pool),
    ("leak among sessions", Truth::Leak, leak_among_sessions),
    ("leak by day and night", Truth::Leak, leak_by_day_and_night),
    ("leak in batches", Truth::Leak, leak_in_batches),
    ("leak that begins late", Truth::Leak, leak_that_begins_late),
    ("staircase", Truth::Leak, staircase),
    ("staircase among requests", Truth::Leak, staircase_among_requests),
    ("sessions beyond the end", Truth::Untellable, untellable_sessions),
];

/// How long something is open.
#[derive(Clone, Copy)]
enum Span {
    Exponential(f64),
    Lognormal(f64, f64),
    Uniform(f64, f64),
    Fixed(f64),
}

impl Span {
    fn draw(self, dice: &mut Dice) -> f64 {
        match self {
            Self::Exponential(mean) => dice.exponential(mean),
            Self::Lognormal(median, sigma) => dice.lognormal(median, sigma),
            Self::Uniform(low, high) => dice.between(low, high),
            Self::Fixed(span) => span,
        }
    }

    /// Of some shape, with a mean of about so much.
    fn about(dice: &mut Dice, mean: f64) -> Self {
        match dice.number(0, 3) {
            0 => Self::Exponential(mean),
            1 => {
                let sigma = dice.between(0.2, 1.0);
                Self::Lognormal(mean * (-sigma * sigma / 2.0).exp(), sigma)
            }
            2 => Self::Uniform(0.2 * mean, 1.8 * mean),
            _ => Self::Fixed(mean),
        }
    }
}

fn lives(dice: &mut Dice, born: Vec<f64>, span: Span) -> Vec<Life> {
    born.into_iter().map(|at| (at, at + span.draw(dice))).collect()
}

/// When the service began: with the trace, or up to three windows earlier.
fn beginning(dice: &mut Dice, window: f64) -> f64 {
    if dice.chance(0.3) {
        0.0
    } else {
        -window * dice.between(0.05, 3.0)
    }
}

/// A rate for so many births in a window.
fn rate(dice: &mut Dice, window: f64, least: f64, most: f64) -> f64 {
    dice.scale(least, most) / window
}

fn steady_pool(dice: &mut Dice, window: f64) -> Vec<Life> {
    let from = beginning(dice, window);
    let size = dice.number(5, 400);
    let ramp = window * dice.between(0.001, 0.08);
    let mut all: Vec<Life> = (0..size)
        .map(|_| (from + dice.between(0.001, ramp), NEVER))
        .collect();
    // A pool that was there before is asked for a few more now and then.
    let few = dice.number(0, 4);
    all.extend((0..few).map(|_| (dice.between(0.0, window), NEVER)));
    all.push((window * 0.01, window * 0.02));
    all
}

fn renewed_pool(dice: &mut Dice, window: f64) -> Vec<Life> {
    let from = beginning(dice, window);
    let size = dice.number(5, 100);
    let mean = window * dice.scale(0.03, 0.7);
    let span = Span::about(dice, mean);
    let mut all = Vec::new();
    for _ in 0..size {
        let mut at = from + window * dice.between(0.0, 0.05) + 0.001;
        while at < window {
            let end = at + span.draw(dice);
            all.push((at, end));
            at = end + 0.001;
        }
    }
    all
}

fn warm_up(dice: &mut Dice, window: f64) -> Vec<Life> {
    let size = dice.number(10, 500) as f64;
    let pace = window * dice.between(0.02, 0.25);
    let mut all: Vec<Life> = (0..size as usize)
        .map(|_| dice.exponential(pace))
        .filter(|&at| at < window * 0.8)
        .map(|at| (at, NEVER))
        .collect();
    if dice.chance(0.5) {
        all.extend(short(dice, 0.0, window));
    }
    all
}

/// Requests beside something else.
fn short(dice: &mut Dice, from: f64, window: f64) -> Vec<Life> {
    let rate = rate(dice, window, 50.0, 5000.0);
    let mean = window * dice.scale(0.0003, 0.03);
    let span = Span::about(dice, mean);
    let born = dice.poisson(from.max(-5.0 * mean), window, rate);
    lives(dice, born, span)
}

fn growth_that_stops(dice: &mut Dice, window: f64) -> Vec<Life> {
    let from = if dice.chance(0.5) {
        0.0
    } else {
        -window * dice.unit()
    };
    let end = window * dice.between(0.1, 0.7);
    let rate = rate(dice, window, 20.0, 1000.0);
    let mut all: Vec<Life> = dice
        .poisson(from, end, rate)
        .into_iter()
        .map(|at| (at, NEVER))
        .collect();
    if dice.chance(0.5) {
        all.extend(short(dice, from, window));
    }
    all.push((end, NEVER));
    all
}

fn grows_once(dice: &mut Dice, window: f64) -> Vec<Life> {
    let at = window * dice.between(0.02, 0.7);
    let takes = window * dice.scale(0.0001, 0.05);
    let (before, more) = (dice.number(0, 200), dice.number(5, 300));
    let mut all: Vec<Life> = (0..before).map(|_| (-1.0, NEVER)).collect();
    all.extend((0..more).map(|_| (at + dice.between(0.0, takes), NEVER)));
    if dice.chance(0.5) {
        all.extend(short(dice, -window, window));
    }
    all
}

fn late_step(dice: &mut Dice, window: f64) -> Vec<Life> {
    let at = window * dice.between(0.7, 0.98);
    let more = dice.number(5, 300);
    let mut all: Vec<Life> = (0..more).map(|n| (at + n as f64 * 1e-4, NEVER)).collect();
    if dice.chance(0.5) {
        all.extend(short(dice, -window, window));
    }
    all
}

fn wandering_pool(dice: &mut Dice, window: f64) -> Vec<Life> {
    let (least, most) = (dice.number(2, 20), dice.number(30, 80));
    let steps = dice.scale(100.0, 5000.0);
    let from = -window * 2.0;
    // Which one is closed: the newest, the oldest, any.
    let which = dice.number(0, 2);
    let (mut open, mut all): (Vec<f64>, Vec<Life>) = (vec![from; usize::midpoint(least, most)], Vec::new());
    for at in dice.poisson(from, window, steps / window) {
        let up = if open.len() <= least {
            true
        } else if open.len() >= most {
            false
        } else {
            dice.chance(0.5)
        };
        if up {
            open.push(at);
        } else {
            let born = match which {
                0 => open.pop().unwrap(),
                1 => open.remove(0),
                _ => {
                    let any = dice.number(0, open.len() - 1);
                    open.swap_remove(any)
                }
            };
            all.push((born, at));
        }
    }
    all.extend(open.into_iter().map(|born| (born, NEVER)));
    all.push((window * 0.01, window * 0.02));
    all
}

fn requests(dice: &mut Dice, window: f64) -> Vec<Life> {
    let from = beginning(dice, window);
    short(dice, from, window)
}

fn heavy_requests(dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = rate(dice, window, 200.0, 3000.0);
    let (least, alpha) = (window * dice.scale(0.0005, 0.005), dice.between(1.1, 2.5));
    // Nothing is open for longer than three windows: then the service of twenty windows is at rest.
    dice.poisson(-window * 20.0, window, rate)
        .into_iter()
        .map(|at| (at, at + dice.pareto(least, alpha).min(window * 3.0)))
        .filter(|&(_, died)| died > 0.0)
        .collect()
}

/// The rate over a day, 0 to 1.
fn day(at: f64, long: f64, phase: f64) -> f64 {
    (0.52 + 0.48 * (TAU * at / long + phase).sin()).max(0.0)
}

fn day_and_night(dice: &mut Dice, window: f64) -> Vec<Life> {
    let (long, phase) = (window * dice.scale(0.2, 8.0), dice.between(0.0, TAU));
    let rate = rate(dice, window, 200.0, 5000.0);
    let mean = window * dice.scale(0.001, 0.12);
    let span = Span::about(dice, mean);
    let born = dice.arrivals(-window, window, rate, |at| rate * day(at, long, phase));
    lives(dice, born, span)
}

fn rising_load(dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = rate(dice, window, 200.0, 5000.0);
    let base = dice.between(0.02, 0.4);
    let mean = window * dice.scale(0.002, 0.12);
    let span = Span::about(dice, mean);
    let born = dice.arrivals(-window, window, rate, |at| {
        rate * (base + (1.0 - base) * (at / window).clamp(0.0, 1.0))
    });
    lives(dice, born, span)
}

fn doubled_load(dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = rate(dice, window, 200.0, 5000.0);
    let (when, base) = (window * dice.between(0.1, 0.7), dice.between(0.1, 0.6));
    let mean = window * dice.scale(0.005, 0.15);
    let span = Span::about(dice, mean);
    let born = dice.arrivals(
        -window,
        window,
        rate,
        |at| if at < when { rate * base } else { rate },
    );
    lives(dice, born, span)
}

fn long_sessions(dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = rate(dice, window, 20.0, 600.0);
    let mean = window * dice.scale(0.2, 4.0);
    let span = Span::about(dice, mean);
    let mut all = {
        let born = dice.poisson(-mean * 8.0, window, rate);
        lives(dice, born, span)
    };
    if dice.chance(0.4) {
        all.extend(short(dice, -window, window));
    }
    all
}

/// More and more come, and stay for longer than anybody looks; those of yesterday leave.
fn rising_sessions(dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = rate(dice, window, 60.0, 600.0);
    let mean = window * dice.scale(1.0, 30.0);
    let (rises, base) = (window * dice.between(0.2, 1.0), dice.between(0.2, 0.8));
    let span = Span::about(dice, mean);
    let born = dice.arrivals(-mean * 8.0, window, rate, |at| {
        rate * (base + (1.0 - base) * (at / rises).clamp(0.0, 1.0))
    });
    lives(dice, born, span)
}

fn idle_timeout(dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = rate(dice, window, 40.0, 600.0);
    let timeout = window * dice.between(0.1, 0.7);
    let from = -window * dice.between(0.0, 0.05);
    let born = dice.poisson(from, window, rate);
    born.into_iter()
        .map(|at| (at, at + timeout * dice.between(1.0, 1.05)))
        .collect()
}

fn sawtooth(dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = rate(dice, window, 50.0, 2000.0);
    let tooth = window * dice.between(0.05, 0.8);
    let from = -tooth * dice.between(0.0, 3.0);
    let jitter = dice.between(0.0, 0.1);
    // All are closed together, or all but the newest.
    let keeps = if dice.chance(0.5) {
        0.0
    } else {
        tooth * dice.between(0.0, 0.2)
    };
    let mut drains = Vec::new();
    let mut at = from;
    while at < window {
        at += tooth * dice.between(1.0 - jitter, 1.0 + jitter);
        drains.push(at);
    }
    dice.poisson(from, window, rate)
        .into_iter()
        .map(|born| {
            let died = drains.iter().copied().find(|&drain| drain > born + keeps);
            (born, died.unwrap_or(NEVER))
        })
        .collect()
}

fn burst_and_drain(dice: &mut Dice, window: f64) -> Vec<Life> {
    let bursts = dice.number(1, 8);
    let pace = window * dice.between(0.01, 0.15);
    let mut all = Vec::new();
    for _ in 0..bursts {
        let (at, size) = (window * dice.between(-0.3, 0.95), dice.number(20, 400));
        let takes = window * dice.scale(0.0005, 0.05);
        for _ in 0..size {
            let born = at + dice.between(0.0, takes);
            all.push((born, born + dice.exponential(pace)));
        }
    }
    all.push((window * 0.01, window * 0.02));
    all
}

fn cache(dice: &mut Dice, window: f64) -> Vec<Life> {
    let size = dice.number(10, 400);
    let fills = dice.between(0.03, 0.7);
    let rate = size as f64 / (fills * window);
    let from = if dice.chance(0.6) {
        0.0
    } else {
        -window * dice.between(0.0, 2.0)
    };
    let born = dice.poisson(from, window, rate);
    let mut open: std::collections::VecDeque<f64> = std::collections::VecDeque::new();
    let any = dice.chance(0.3);
    let mut all = Vec::new();
    for at in born {
        open.push_back(at);
        if open.len() > size {
            let old = if any {
                let which = dice.number(0, open.len() - 2);
                open.remove(which).unwrap()
            } else {
                open.pop_front().unwrap()
            };
            all.push((old, at));
        }
    }
    all.extend(open.into_iter().map(|at| (at, NEVER)));
    all.push((window * 0.01, window * 0.02));
    all
}

/// Leaked, at one rate: so many in the window.
fn leaked(dice: &mut Dice, from: f64, window: f64, least: f64, most: f64) -> Vec<Life> {
    let rate = rate(dice, window, least, most);
    dice.poisson(from, window, rate)
        .into_iter()
        .map(|at| (at, NEVER))
        .collect()
}

fn plain_leak(dice: &mut Dice, window: f64) -> Vec<Life> {
    let from = beginning(dice, window);
    if dice.chance(0.5) {
        return leaked(dice, from, window, 15.0, 2000.0);
    }
    let gap = window / dice.scale(15.0, 2000.0);
    let number = ((window - from) / gap) as usize;
    (0..number)
        .map(|n| (from + gap * (n as f64 + dice.between(0.3, 0.7)), NEVER))
        .collect()
}

fn leak_among_requests(dice: &mut Dice, window: f64) -> Vec<Life> {
    let from = beginning(dice, window);
    let mut all = leaked(dice, from, window, 15.0, 500.0);
    all.extend(short(dice, from, window));
    all
}

fn one_in_a_thousand(dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = dice.scale(15_000.0, 40_000.0) / window;
    let mean = window * dice.scale(0.0001, 0.003);
    let span = Span::about(dice, mean);
    let mut all = {
        let born = dice.poisson(-5.0 * mean, window, rate);
        lives(dice, born, span)
    };
    for life in &mut all {
        if dice.chance(0.001) {
            life.1 = NEVER;
        }
    }
    all
}

fn leak_on_a_pool(dice: &mut Dice, window: f64) -> Vec<Life> {
    let mut all = renewed_pool(dice, window);
    all.extend(leaked(dice, -window, window, 25.0, 500.0));
    all
}

fn leak_among_sessions(dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = rate(dice, window, 50.0, 1000.0);
    let mean = window * dice.scale(0.01, 0.15);
    let span = Span::about(dice, mean);
    let mut all = {
        let born = dice.poisson(-mean * 8.0, window, rate);
        lives(dice, born, span)
    };
    let least = (rate * window * 0.1).max(20.0);
    all.extend(leaked(dice, -window, window, least, least * 8.0));
    all
}

fn leak_by_day_and_night(dice: &mut Dice, window: f64) -> Vec<Life> {
    let mut all = day_and_night(dice, window);
    let in_window = all.iter().filter(|life| life.0 > 0.0).count() as f64;
    let share = (dice.scale(20.0, 200.0) / in_window.max(1.0)).min(0.5);
    for life in &mut all {
        if dice.chance(share) {
            life.1 = NEVER;
        }
    }
    all
}

fn leak_in_batches(dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = rate(dice, window, 14.0, 60.0);
    let takes = window * dice.scale(0.0001, 0.005);
    let mut all = Vec::new();
    for at in dice.poisson(-window, window, rate) {
        for _ in 0..dice.number(1, 30) {
            all.push((at + dice.between(0.0, takes), NEVER));
        }
    }
    if dice.chance(0.5) {
        all.extend(short(dice, -window, window));
    }
    all
}

fn leak_that_begins_late(dice: &mut Dice, window: f64) -> Vec<Life> {
    let from = window * dice.between(0.0, 0.2);
    let mut all = leaked(dice, from, window, 25.0, 500.0);
    if dice.chance(0.7) {
        all.extend(short(dice, -window, window));
    }
    all
}

/// Steps of one job; at least six in the window.
fn staircase(dice: &mut Dice, window: f64) -> Vec<Life> {
    let period = window / dice.between(6.0, 25.0);
    let jitter = period * dice.between(0.0, 0.03);
    let (size, takes) = (dice.number(2, 60), period * dice.scale(0.0005, 0.05));
    let mut at = -period * dice.between(0.0, 9.0);
    let mut all = Vec::new();
    while at < window {
        let when = at + jitter * dice.normal();
        all.extend((0..size).map(|_| (when + takes * dice.unit(), NEVER)));
        at += period;
    }
    all
}

fn staircase_among_requests(dice: &mut Dice, window: f64) -> Vec<Life> {
    let mut all = staircase(dice, window);
    all.extend(short(dice, -window, window));
    all
}

fn untellable_sessions(dice: &mut Dice, window: f64) -> Vec<Life> {
    let mut all = leaked(dice, 0.0, window, 20.0, 600.0);
    for life in &mut all {
        life.1 = life.0 + window * dice.between(1.0, 2.0);
    }
    all
}
