//! Periods of staircases: the true ones, and none where there is none.

use crate::{
    dice::{self, Dice},
    stage::{self, Life},
};

const NEVER: f64 = f64::INFINITY;
/// Histories of each kind with a period, and of each kind without.
const WITH: usize = 100;
const WITHOUT: usize = 500;

/// How the steps of a job stray: each by itself, or the sum of all before.
#[derive(Clone, Copy)]
enum Jitter {
    Each(f64),
    Adds(f64),
}

/// A job's steps, from before the trace to its end.
fn job(dice: &mut Dice, window: f64, period: f64, size: usize, jitter: Jitter) -> Vec<Life> {
    let takes = period * dice.scale(0.0002, 0.03);
    let mut at = -period * dice.between(1.0, 3.0);
    let mut lives = Vec::new();
    while at < window {
        let when = match jitter {
            Jitter::Each(share) => at + period * share * dice.normal(),
            Jitter::Adds(share) => {
                at += period * share * dice.normal();
                at
            }
        };
        lives.extend((0..size).map(|_| (when + takes * dice.unit(), NEVER)));
        at += period;
    }
    lives
}

/// Connections that come and go in the same place.
fn noise(dice: &mut Dice, window: f64) -> Vec<Life> {
    let (rate, mean) = (dice.scale(2.0, 50.0), dice.scale(0.01, 1.0));
    dice.poisson(-5.0, window, rate)
        .into_iter()
        .map(|at| (at, at + dice.exponential(mean)))
        .collect()
}

fn periods(lives: &[Life], window: f64) -> Vec<f64> {
    let row = stage::judged(lives, window);
    assert_eq!(row.period_ns, row.steps.first().map(|step| step.period_ns));
    row.steps.iter().map(|step| step.period_ns as f64 / 1e9).collect()
}

fn near(found: f64, truth: f64) -> bool {
    (found / truth - 1.0).abs() <= 0.02
}

#[test]
fn one_job_has_one_period() {
    let seed = dice::seed("one job");
    println!(
        "{:<34} {:>6} {:>8} {:>8} {:>6}",
        "job", "of", "right", "wrong", "none"
    );
    let kinds: [(&str, Jitter, bool); 5] = [
        ("to the millisecond", Jitter::Each(0.0), false),
        ("each strays by 3 %", Jitter::Each(0.03), false),
        ("each strays by 2 %, among requests", Jitter::Each(0.02), true),
        ("2 % that add up", Jitter::Adds(0.02), false),
        ("1 % that add up, among requests", Jitter::Adds(0.01), true),
    ];
    for (kind, &(name, jitter, noisy)) in kinds.iter().enumerate() {
        let (mut right, mut wrong, mut none) = (0, 0, 0);
        for at in 0..WITH {
            let mut dice = Dice::of(seed, kind, at);
            let period = dice.scale(2.0, 9.0);
            let window = period * dice.between(10.0, 30.0);
            let size = dice.number(1, 60);
            let mut lives = job(&mut dice, window, period, size, jitter);
            if noisy {
                lives.extend(noise(&mut dice, window));
            }
            match &periods(&lives, window)[..] {
                [] => none += 1,
                // A period is what was kept on average, and jitter that adds up moves the average itself.
                [found] if near(*found, truth(&lives, period, window)) => right += 1,
                found => {
                    wrong += 1;
                    println!("  {name} {at}: {period:.3} s in {window:.0} s, found {found:?}");
                }
            }
        }
        println!("{name:<34} {WITH:>6} {right:>8} {wrong:>8} {none:>6}");
        assert!(wrong * 100 <= WITH * 2, "{name}: {wrong}");
        assert!(right * 100 >= WITH * 85, "{name}: {right}");
    }
}

/// The mean distance of the steps in the window.
fn truth(lives: &[Life], period: f64, window: f64) -> f64 {
    let mut born: Vec<f64> = lives
        .iter()
        .filter(|life| life.1 == NEVER && life.0 > 0.0 && life.0 < window)
        .map(|life| life.0)
        .collect();
    born.sort_by(f64::total_cmp);
    let steps: Vec<f64> = born
        .chunk_by(|a, b| b - a < period * 0.3)
        .map(|step| step[0])
        .collect();
    (steps[steps.len() - 1] - steps[0]) / (steps.len() - 1) as f64
}

#[test]
fn two_jobs_have_two_periods() {
    let seed = dice::seed("two jobs");
    println!(
        "{:<34} {:>6} {:>8} {:>8} {:>8}",
        "jobs", "of", "both", "one", "wrong"
    );
    for (kind, (name, jitter, noisy)) in [
        ("5.3 s and 7.1 s", 0.0, false),
        ("5.3 s and 7.1 s, jitter of 2 %", 0.02, false),
        ("5.3 s and 7.1 s, among requests", 0.01, true),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut both, mut one, mut wrong) = (0, 0, 0);
        for at in 0..WITH {
            let mut dice = Dice::of(seed, kind, at);
            let window = dice.between(60.0, 120.0);
            let (few, many) = (dice.number(1, 30), dice.number(1, 30));
            let mut lives = job(&mut dice, window, 5.3, few, Jitter::Each(jitter));
            lives.extend(job(&mut dice, window, 7.1, many, Jitter::Each(jitter)));
            if noisy {
                lives.extend(noise(&mut dice, window));
            }
            let found = periods(&lives, window);
            let known = |truth| found.iter().filter(|&&found| near(found, truth)).count();
            let (first, second) = (known(5.3), known(7.1));
            if first + second < found.len() || first > 1 || second > 1 {
                wrong += 1;
                println!("  {name} {at}: {few} and {many} in {window:.0} s, found {found:?}");
            } else if first + second == 2 {
                both += 1;
            } else {
                one += 1;
                println!("  {name} {at}: {few} and {many} in {window:.0} s, found {found:?}");
            }
        }
        println!("{name:<34} {WITH:>6} {both:>8} {one:>8} {wrong:>8}");
        assert!(wrong * 100 <= WITH * 3, "{name}: {wrong}");
        // A minute has eight steps of 7.1 s: with jitter that is too few for this much certainty.
        let least = [90, 45, 65][kind];
        assert!(both * 100 >= WITH * least, "{name}: {both}");
    }
}

/// A leak without a period.
fn without(kind: usize, dice: &mut Dice, window: f64) -> Vec<Life> {
    let rate = dice.scale(8.0, 3000.0) / window;
    let leaked = |born: Vec<f64>| born.into_iter().map(|at| (at, NEVER)).collect::<Vec<Life>>();
    match kind {
        0 => {
            let born = dice.poisson(-window, window, rate);
            leaked(born)
        }
        // Load that goes up and down, at most four times in the window: more would be a period indeed.
        1 => {
            let (long, phase) = (
                window * dice.scale(0.26, 4.0),
                dice.between(0.0, std::f64::consts::TAU),
            );
            let born = dice.arrivals(-window, window, rate, |at| {
                rate * (0.52 + 0.48 * (std::f64::consts::TAU * at / long + phase).sin())
            });
            leaked(born)
        }
        2 => {
            let born = dice.arrivals(-window, window, rate, |at| {
                rate * (0.2 + 0.8 * (at / window).clamp(0.0, 1.0))
            });
            leaked(born)
        }
        // Batches at random times.
        3 => {
            let batches = dice.scale(8.0, 60.0) / window;
            let takes = dice.scale(0.001, 0.3);
            let mut lives = Vec::new();
            for at in dice.poisson(-window, window, batches) {
                for _ in 0..dice.number(1, 40) {
                    lives.push((at + takes * dice.unit(), NEVER));
                }
            }
            lives
        }
        // A client that asks by a clock, and some of the answers leak.
        4 => {
            let (tick, share) = (dice.scale(0.02, 0.4), dice.scale(0.01, 0.3));
            (0..(window / tick) as usize)
                .map(|at| {
                    (
                        tick * at as f64 + 1e-4,
                        if dice.chance(share) {
                            NEVER
                        } else {
                            tick * at as f64 + 0.01
                        },
                    )
                })
                .collect()
        }
        // Users who think a while between requests.
        _ => {
            let mut lives = Vec::new();
            for _ in 0..dice.number(1, 6) {
                let (mean, mut at) = (window / dice.scale(6.0, 60.0), 0.0);
                while at < window {
                    at += mean * dice.between(0.3, 1.7);
                    lives.push((at, NEVER));
                }
            }
            lives
        }
    }
}

#[test]
fn where_no_period_is_none_is_told() {
    let seed = dice::seed("no period");
    println!("{:<34} {:>6} {:>8} {:>8}", "leak", "of", "leaking", "periods");
    let mut all = 0;
    for (kind, name) in [
        "Poisson",
        "by a load that waves",
        "by a load that rises",
        "batches",
        "by a clock, some",
        "users who think",
    ]
    .into_iter()
    .enumerate()
    {
        let (mut told, mut leaking) = (0, 0);
        for at in 0..WITHOUT {
            let mut dice = Dice::of(seed, kind, at);
            let window = dice.scale(20.0, 150.0);
            let mut lives = without(kind, &mut dice, window);
            if dice.chance(0.3) {
                lives.extend(noise(&mut dice, window));
            }
            lives.push((0.01, 0.02));
            let row = stage::judged(&lives, window);
            leaking += usize::from(row.verdict == tracer::report::model::Verdict::Leaking);
            if !row.steps.is_empty() {
                told += 1;
                println!(
                    "  {name} {at} of {window:.0} s, {} born: {:?}",
                    row.opened, row.steps
                );
            }
        }
        println!("{name:<34} {WITHOUT:>6} {leaking:>8} {told:>8}");
        all += told;
    }
    // 3e-5 for each by construction, less by measurement: two of 3,000 are no chance.
    assert!(all <= 1, "periods told of what has none");
}
