//! Pools of connections: how long they were exhausted, and by how many.

use super::{
    Settings,
    judge::{Draft, Rule, metric},
    names::Chain,
    run::Run,
    stats::Estimate,
};
use crate::report::{
    diff::{Change, Matched, Thing},
    model::GoPool,
};

/// Snapshots that follow each other see the same queue: so many tell as much as one.
const BURST: f64 = 8.0;
/// Fewer snapshots in which all connections were in use tell nothing.
const EXHAUSTED_MIN: u64 = 40;
/// Fewer snapshots in all cannot tell that it was never exhausted.
const SNAPSHOTS_MIN: f64 = 20.0;
/// What is as much as in the other run: of its time, of its snapshots.
const AS_MUCH: f64 = 0.8;
/// Of the other run's CPU time, with which a program did something comparable.
const AS_BUSY: f64 = 0.5;

/// The one pool of a run.
struct Seen<'a> {
    /// None: nobody waited for any.
    pool: Option<&'a GoPool>,
    functions: Vec<String>,
    snapshots: f64,
    window_ns: f64,
    complete: bool,
    /// CPU time, of one CPU.
    running: Option<f64>,
}

/// With several reports in a file, of the last one. None: it was not looked for, or there are several, which only addresses tell apart.
fn seen<'a>(run: &Run<'a>) -> Option<Seen<'a>> {
    let report = run.reports.last()?;
    let go = report.go.as_ref()?;
    let (pool, None) = (go.pools.first(), go.pools.get(1)) else {
        return None;
    };
    let stack = pool
        .and_then(|pool| pool.waiters.first())
        .and_then(|row| report.stacks.get(row.stack.as_ref()?));
    Some(Seen {
        pool,
        functions: stack
            .map(|frames| Chain::of(frames).functions)
            .unwrap_or_default(),
        snapshots: go.snapshots.count as f64,
        window_ns: report.window.duration_ns as f64,
        complete: run.complete,
        running: run.running(),
    })
}

impl Seen<'_> {
    fn exhausted(&self) -> u64 {
        self.pool.map_or(0, |pool| pool.exhausted_samples)
    }

    /// Goroutines that waited, on average over the window, as time per second.
    fn waiting(&self) -> Option<Estimate> {
        let pool = self.pool?;
        let value = pool.exhausted_share * pool.mean_waiting * 1e9;
        let effective = (pool.exhausted_samples as f64).min(self.snapshots) / BURST;
        (value > 0.0 && effective >= 1.0).then(|| Estimate {
            value,
            se: (1.0 / effective).sqrt(),
            df: effective,
            effective,
        })
    }

    /// It was watched as well as the other run, in which it was exhausted for long, and never was.
    fn never(&self, other: &Self) -> Result<(), &'static str> {
        if self.exhausted() > 0 || other.exhausted() < EXHAUSTED_MIN {
            return Err("exhausted in too few snapshots");
        }
        if !self.complete || !other.complete {
            return Err("exhausted in one run; a run has losses");
        }
        if self.window_ns < AS_MUCH * other.window_ns
            || self.snapshots < (AS_MUCH * other.snapshots).max(SNAPSHOTS_MIN)
        {
            return Err("exhausted in one run; the other is shorter, or has fewer snapshots");
        }
        let busy = self.running.zip(other.running);
        if busy.is_none_or(|(own, other)| own < AS_BUSY * other) {
            return Err("exhausted in one run; the program did less in the other");
        }
        Ok(())
    }
}

/// The pool of both runs.
#[must_use]
pub fn pools(runs: &[Run<'_>; 2], settings: &Settings, scale: (f64, f64)) -> Option<Draft> {
    let (one, two) = (seen(&runs[0])?, seen(&runs[1])?);
    let waits = [one.waiting(), two.waiting()];
    let decided = |told: Result<(), &'static str>, change, why| match told {
        Ok(()) => (Rule::Decided, change, why),
        Err(why) => (Rule::Decided, Change::NotEnoughData, why),
    };
    let (rule, verdict, why) = match waits {
        [None, None] => return None,
        [Some(_), None] => decided(two.never(&one), Change::Improved, "exhausted no more"),
        [None, Some(_)] => decided(one.never(&two), Change::Worse, "exhausted now"),
        [Some(_), Some(_)] if one.exhausted().min(two.exhausted()) < EXHAUSTED_MIN => {
            decided(Err("exhausted in too few snapshots"), Change::NotEnoughData, "")
        }
        [Some(_), Some(_)] if !one.complete || !two.complete => {
            decided(Err("a run has losses"), Change::NotEnoughData, "")
        }
        [Some(_), Some(_)] => (Rule::Waits, Change::Unchanged, ""),
    };
    let mut metric = metric(
        "time_per_s",
        "ns/s",
        waits,
        waits[0].zip(waits[1]),
        settings.noise,
        scale,
    );
    if rule == Rule::Decided {
        metric.p = None;
    }
    let functions = if two.functions.is_empty() {
        one.functions
    } else {
        two.functions
    };
    let rows = [one.pool, two.pool].map(|pool| u64::from(pool.is_some()));
    Some(Draft {
        too_small: false,
        rule,
        thing: Thing {
            class: "pool".to_owned(),
            kind: "database/sql".to_owned(),
            was: None,
            name: functions.first().cloned().unwrap_or_else(|| "sql.DB".to_owned()),
            functions,
            verdict,
            why: why.to_owned(),
            matched: match rows {
                [1, 0] => Matched::OnlyBefore,
                [0, 1] => Matched::OnlyAfter,
                _ => Matched::Same,
            },
            similarity: None,
            ambiguous: false,
            rows,
            lost_ns_per_s: waits.map(|estimate| estimate.map(|estimate| estimate.value)),
            metrics: vec![metric],
        },
    })
}
