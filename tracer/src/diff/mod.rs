//! `ctrace diff`: what changed between two runs, and whether that is more than two runs of one program differ by anyway.
//!
//! Things are matched by kind and code ([`matching`]), as addresses and process ids differ between runs and lines between builds. Of
//! each, rates and percentiles are compared by their logarithms ([`stats`]). Something changed when it differs by more than the
//! margin, and the difference is significant with all tests of the comparison in mind.

mod doubt;
pub mod environment;
pub mod growth;
pub mod item;
mod join;
pub mod judge;
pub mod matching;
pub mod names;
pub mod pools;
pub mod read;
pub mod run;
pub mod stats;
pub mod stopped;

use crate::report::{
    diff::{Basis, Change, Counts, Diff, SCHEMA, Side, Significance, Thing},
    model::{Ctrace, Report},
};

use doubt::Work;
use judge::Draft;
use read::Saved;
use run::Run;

/// What is called a change.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Probability at most of any false change.
    pub alpha: f64,
    /// Smaller changes are none.
    pub margin: f64,
    /// Standard deviation of a run's logarithm that the run itself does not show.
    pub noise: f64,
    /// Units of work done in either run.
    pub load: Option<[f64; 2]>,
    /// Sections to be compared.
    pub only: Option<Only>,
}

/// Sections to be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "the collectors of --only")]
pub struct Only {
    /// `locks`.
    pub locks: bool,
    /// `fds`.
    pub fds: bool,
    /// `sched`.
    pub sched: bool,
    /// `io`.
    pub io: bool,
    /// `go`.
    pub go: bool,
}

impl Only {
    const ALL: Self = Self {
        locks: true,
        fds: true,
        sched: true,
        io: true,
        go: true,
    };
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            alpha: 0.01,
            margin: 0.2,
            noise: 0.1,
            load: None,
            only: None,
        }
    }
}

/// Accepted connections that make a measure of load.
const LOAD_MIN: f64 = 100.0;
/// Rates of accepted connections that differ by more do not tell how much was done.
const LIKE: f64 = 1.5;
/// Windows must be this long.
const WINDOW_MIN_NS: f64 = 1e9;

/// Compares two runs.
#[must_use]
pub fn diff(before: &Saved, after: &Saved, settings: &Settings) -> Diff {
    let only = settings.only.unwrap_or(Only::ALL);
    let sides = [side(before, settings, 0), side(after, settings, 1)];
    let basis = basis(&sides, settings);
    let scale = match (basis.unit == UNIT_OF_LOAD, sides[0].load, sides[1].load) {
        (true, Some(one), Some(two)) => {
            let per_s = |load: f64, side: &Side| load / (side.duration_ns as f64).max(1.0);
            // Loads come in bursts too, unless they were counted by who knows.
            let burst = if settings.load.is_some() { 0.0 } else { 4.0 };
            let se = (burst / one.max(1.0) + burst / two.max(1.0)).sqrt();
            (per_s(two, &sides[1]) / per_s(one, &sides[0]), se)
        }
        _ => (1.0, 0.0),
    };
    let runs = [Run::new(&before.reports), Run::new(&after.reports)];
    let mut notes = notes(before, after, &sides);
    notes.extend(left_out(&runs));
    if settings.load.is_none() {
        notes.extend(other_accepts(&sides));
    }
    let mut drafts = judge::waits(&runs, settings, scale, &only);
    if only.fds {
        drafts.extend(growth::fds(&runs, settings, scale));
    }
    if only.go {
        drafts.extend(growth::goroutines(&runs, settings, scale));
        drafts.extend(pools::pools(&runs, settings, scale));
    }
    if only.locks {
        drafts.extend(stopped::deadlocks(&runs));
    }
    let work = Work::of(&runs, &basis);
    let tests = judge::adjust(&mut drafts, settings, &work);
    notes.extend(environment::environment(&mut drafts));
    let (things, counts) = settle(drafts);
    let verdict = overall(&things, &counts);
    Diff {
        schema: SCHEMA.to_owned(),
        ctrace: Ctrace {
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        verdict,
        summary: summary(verdict, &counts),
        basis,
        significance: Significance {
            alpha: settings.alpha,
            correction: "holm".to_owned(),
            tests: tests as u64,
            margin: settings.margin,
            run_to_run: settings.noise,
        },
        counts,
        notes,
        things,
        before: sides[0].clone(),
        after: sides[1].clone(),
    }
}

const UNIT_OF_LOAD: &str = "unit of load";

fn side(saved: &Saved, settings: &Settings, which: usize) -> Side {
    let reports = &saved.reports;
    let first = reports.first();
    let duration_ns = reports
        .iter()
        .map(|report| report.window.duration_ns)
        .fold(0, u64::saturating_add);
    let running: Option<f64> = reports
        .iter()
        .map(|report| Some(report.time.as_ref()?.running_ns as f64))
        .sum();
    Side {
        file: saved.path.to_string_lossy().into_owned(),
        documents: reports.len() as u64,
        started_at: first
            .map(|report| report.window.started_at.clone())
            .unwrap_or_default(),
        duration_ns,
        comm: first
            .and_then(|report| report.targets.first())
            .map(|target| target.comm.clone()),
        cpus: first.map_or(0, |report| report.host.cpus),
        cpu_share: running.map(|running| running / (duration_ns as f64).max(1.0)),
        load: settings
            .load
            .and_then(|load| load.get(which).copied())
            .or_else(|| accepted(reports)),
        complete: reports.iter().all(|report| report.losses.complete),
    }
}

/// Connections that were accepted and, for the most part, ended: of a program that serves one request with each. Of the last report,
/// as each has what was seen since attach.
fn accepted(reports: &[Report]) -> Option<f64> {
    let (mut opened, mut closed) = (0.0, 0.0);
    for row in &reports.last()?.fds.as_ref()?.by_stack {
        if row.call.as_deref().is_some_and(|call| call.contains("accept")) {
            opened += row.opened as f64;
            closed += row.closed as f64;
        }
    }
    (opened >= LOAD_MIN && closed >= 0.9 * opened).then_some(opened)
}

/// Connections accepted per second, second run to first.
fn accepts_ratio(sides: &[Side; 2]) -> Option<f64> {
    let per_s = |side: &Side| Some(side.load? / (side.duration_ns as f64).max(1.0));
    Some(per_s(&sides[1])? / per_s(&sides[0])?)
}

/// Where connections are as frequent as this, they are taken to carry as much as before.
fn is_like(ratio: f64) -> bool {
    (1.0 / LIKE..=LIKE).contains(&ratio)
}

fn other_accepts(sides: &[Side; 2]) -> Option<String> {
    let ratio = accepts_ratio(sides).filter(|&ratio| !is_like(ratio))?;
    Some(format!(
        "{ratio:.2} times as many connections were accepted per second in the second run: requests may share connections (keep-alive) in one run only, so rates are per second"
    ))
}

fn left_out(runs: &[Run<'_>; 2]) -> Option<String> {
    let [one, two] = runs.each_ref().map(|run| run.left_out);
    (one + two > 0).then(|| {
        format!("too many different things to compare: {one} rows of the first run and {two} of the second were left out")
    })
}

fn basis(sides: &[Side; 2], settings: &Settings) -> Basis {
    let (unit, why) = match (sides[0].load, sides[1].load) {
        (Some(_), Some(_)) if settings.load.is_some() => {
            (UNIT_OF_LOAD, "as --load says what was done".to_owned())
        }
        (Some(one), Some(two)) if accepts_ratio(sides).is_some_and(is_like) => (
            UNIT_OF_LOAD,
            format!("connections accepted and ended: {one:.0} and {two:.0}"),
        ),
        (Some(_), Some(_)) => (
            "second",
            "connections do not tell the load: --load N,M does".to_owned(),
        ),
        _ => (
            "second",
            "no measure of load is in both reports: --load N,M gives one".to_owned(),
        ),
    };
    Basis {
        unit: unit.to_owned(),
        why,
    }
}

fn notes(before: &Saved, after: &Saved, sides: &[Side; 2]) -> Vec<String> {
    let mut notes = Vec::new();
    let (Some(one), Some(two)) = (before.reports.first(), after.reports.first()) else {
        return notes;
    };
    for (name, side) in [("first", &sides[0]), ("second", &sides[1])] {
        if !side.complete {
            notes.push(format!(
                "the {name} run has losses: its counts and times are too small"
            ));
        }
        if (side.duration_ns as f64) < WINDOW_MIN_NS {
            notes.push(format!(
                "the {name} run is shorter than a second: too short to compare"
            ));
        }
    }
    if one.options.min_wait_ns != two.options.min_wait_ns {
        notes.push("--min-wait differs: short waits are in one run only, compare with the same".to_owned());
    }
    if one.options.only != two.options.only {
        notes.push("--only differs: what one run did not collect is not compared".to_owned());
    }
    if one.host.cpus != two.host.cpus {
        notes.push(format!(
            "the machines differ: {} and {} CPUs",
            one.host.cpus, two.host.cpus
        ));
    }
    if one.host.kernel != two.host.kernel {
        notes.push("the kernels differ".to_owned());
    }
    if one.host.hostname != two.host.hostname {
        notes.push("the runs are of different hosts".to_owned());
    }
    let old = |saved: &Saved| {
        let locks = saved
            .reports
            .iter()
            .flat_map(|report| report.locks.iter().flatten());
        locks.clone().count() > 0 && locks.into_iter().all(|lock| lock.slices.is_none())
    };
    if old(before) || old(after) {
        notes.push(
            "a report tells no slices (an older ctrace?): waits are taken to come in bursts of ten"
                .to_owned(),
        );
    }
    notes
}

/// Those worth a row, by verdict and lost time.
fn settle(drafts: Vec<Draft>) -> (Vec<Thing>, Counts) {
    let mut counts = Counts::default();
    let mut things = Vec::new();
    for draft in drafts {
        if draft.too_small {
            counts.too_small += 1;
            continue;
        }
        *match draft.thing.verdict {
            Change::Improved => &mut counts.improved,
            Change::Worse => &mut counts.worse,
            Change::Differs => &mut counts.differs,
            Change::Unchanged => &mut counts.unchanged,
            Change::NotEnoughData => &mut counts.not_enough_data,
        } += 1;
        things.push(draft.thing);
    }
    let changed = |thing: &Thing| matches!(thing.verdict, Change::Worse | Change::Improved);
    let lost = |thing: &Thing| {
        let [before, after] = thing.lost_ns_per_s.map(Option::unwrap_or_default);
        (before - after).abs()
    };
    things.sort_by(|a, b| {
        let rank = |thing: &Thing| {
            (
                !changed(thing),
                !changed(thing) && thing.verdict != Change::Differs,
            )
        };
        rank(a).cmp(&rank(b)).then(lost(b).total_cmp(&lost(a)))
    });
    (things, counts)
}

fn overall(things: &[Thing], counts: &Counts) -> Change {
    // How long it waits for CPUs that others use is no property of a program.
    let others = things
        .iter()
        .any(|thing| thing.class == "run_queue" && thing.verdict == Change::Differs);
    let differs = counts.differs - u64::from(others);
    if counts.worse > 0 {
        Change::Worse
    } else if counts.improved > 0 {
        Change::Improved
    } else if differs > 0 {
        Change::Differs
    } else if counts.unchanged > 0 || (things.is_empty() && counts.too_small > 0) {
        Change::Unchanged
    } else {
        Change::NotEnoughData
    }
}

fn summary(verdict: Change, counts: &Counts) -> String {
    let word = match verdict {
        Change::Worse => "worse",
        Change::Improved => "improved",
        Change::Differs => "differs, neither better nor worse",
        Change::Unchanged => "unchanged",
        Change::NotEnoughData => "not enough data",
    };
    let parts = [
        (counts.worse, "worse"),
        (counts.improved, "improved"),
        (counts.differs, "different"),
        (counts.unchanged, "unchanged"),
        (counts.not_enough_data, "with too little data"),
    ];
    let told: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if told.is_empty() {
        return format!("{word}: nothing in either run costs enough to be compared");
    }
    format!("{word}: {}", told.join(", "))
}

#[cfg(test)]
mod careful_tests;
#[cfg(test)]
mod tests;
