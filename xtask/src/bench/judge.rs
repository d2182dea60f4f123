//! Whether the bounds hold, by ratios of this run.

use super::{
    bounds::{ALL, BOUNDS, Bound, CALL_NS, EMPTY, Figure, OWN, Own, added},
    ctrace,
    loads::Tracer,
    outcome::{Limit, Outcome, hold, unnoticed},
    row::{Measured, Pair, Row},
    stats::{Spread, number},
};

/// A bound, what was measured, and whether it holds.
pub(super) struct Verdict {
    /// `hot, ctrace locks: throughput 0.963 ≥ 0.95`
    pub(super) text: String,
    pub(super) outcome: Outcome,
}

impl Verdict {
    pub(super) fn failed(&self) -> bool {
        self.outcome == Outcome::Fail
    }
}

/// Every bound of the loads measured.
pub(super) fn all(measured: &[Measured], disturbed: f64) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for load in measured {
        let judge = Judge { load, disturbed };
        let bounds = BOUNDS.iter().filter(|bound| bound.load == load.load.name);
        verdicts.extend(bounds.map(|bound| judge.bound(bound)));
        match load.load.name {
            "hot" => verdicts.extend(judge.peers("ctrace locks")),
            "syscall" => {
                verdicts.extend(["ctrace locks", "ctrace sched"].map(|row| judge.unnoticed(row)));
                verdicts.extend(["ctrace fds", "ctrace all"].map(|row| judge.system_calls(row)));
            }
            _ => {}
        }
    }
    verdicts.extend(OWN.iter().filter_map(|bound| own(measured, disturbed, bound)));
    verdicts
}

/// Judges one load.
struct Judge<'a> {
    load: &'a Measured,
    disturbed: f64,
}

impl Judge<'_> {
    fn bound(&self, bound: &Bound) -> Verdict {
        let subject = format!("{}, {}: {}", bound.load, bound.row, bound.what);
        let (row, spread) = match self.spread(bound.row, bound.figure) {
            Ok(found) => found,
            Err(why) => return missing(&subject, &why),
        };
        let outcome = self.unless_disturbed(row, || {
            hold(
                spread.median,
                bound.limit,
                self.noise(bound.figure, bound.nothing),
            )
        });
        let digits = bound.digits;
        let (sign, limit) = match bound.limit {
            Limit::AtLeast(limit) => ("≥", limit),
            Limit::AtMost(limit) => ("≤", limit),
        };
        let measured = number(spread.median, digits);
        Verdict {
            text: format!(
                "{subject} {measured} {sign} {limit}{}",
                self.floor(bound.figure, digits)
            ),
            outcome,
        }
    }

    /// Nothing that can be told from A/A.
    fn unnoticed(&self, name: &str) -> Verdict {
        let subject = format!("{}, {name}: ns added to a call", self.load.load.name);
        let (row, spread) = match self.spread(name, Pair::added_ns) {
            Ok(found) => found,
            Err(why) => return missing(&subject, &why),
        };
        let Some(noise) = self.noise(Pair::added_ns, 0.0) else {
            return missing(&subject, "no A/A");
        };
        let outcome = self.unless_disturbed(row, || unnoticed(spread.median, noise));
        let measured = number(spread.median, 1);
        Verdict {
            text: format!("{subject} {measured} ≤ {noise:.1}, how far A/A strays"),
            outcome,
        }
    }

    /// By the way on which descriptors are seen: tracepoints of system calls cost every call of every process.
    fn system_calls(&self, name: &'static str) -> Verdict {
        let row = self.load.row(name);
        let mut reports = row.iter().flat_map(|row| &row.pairs).map(|pair| &pair.report);
        if !reports.any(ctrace::on_tracepoints) {
            return self.unnoticed(name);
        }
        self.bound(&added(
            self.load.load.name,
            name,
            "ns added to a call",
            CALL_NS,
            1,
        ))
    }

    /// Each peer that takes stacks must lose twice what `own` loses.
    fn peers(&self, own: &str) -> Vec<Verdict> {
        let stacks = |row: &&Row| matches!(row.tracer, Tracer::Peer(peer) if peer.stacks);
        let rows = self.load.rows.iter().filter(stacks);
        let lost: [(&str, Figure); 2] = [
            ("throughput lost", |pair| 1.0 - pair.throughput()),
            ("CPU per operation added", |pair| pair.cpu() - 1.0),
        ];
        rows.flat_map(|row| lost.map(|(what, figure)| self.twice(row, own, what, figure)))
            .collect()
    }

    fn twice(&self, row: &Row, own: &str, what: &str, figure: Figure) -> Verdict {
        let peer = row.tracer.name();
        let subject = format!("{}, {peer}: {what}", self.load.load.name);
        let found = self.spread(&peer, figure).and_then(|(_, peer)| {
            let (own_row, own) = self.spread(own, figure)?;
            Ok((peer.median, own_row, own.median))
        });
        let (theirs, own_row, ours) = match found {
            Ok(found) => found,
            Err(why) => {
                return Verdict {
                    text: subject,
                    outcome: Outcome::Inconclusive(why),
                };
            }
        };
        let twice = 2.0 * ours.max(0.0);
        let outcome = self.unless_disturbed(row, || {
            self.unless_disturbed(own_row, || {
                hold(theirs, Limit::AtLeast(twice), self.noise(figure, 0.0))
            })
        });
        Verdict {
            text: format!("{subject} {} ≥ 2 × {}", number(theirs, 3), number(ours, 3)),
            outcome,
        }
    }

    /// A row and its figures, or why there are none.
    fn spread(&self, name: &str, figure: Figure) -> Result<(&Row, Spread), String> {
        let row = self.load.row(name).ok_or("not measured")?;
        Spread::of(row.used(self.disturbed).map(figure))
            .map(|spread| (row, spread))
            .ok_or_else(|| format!("did not run: {}", row.failed.as_deref().unwrap_or("no figures")))
    }

    /// What probes cost that do nothing: absolute bounds were set on another machine.
    fn floor(&self, figure: Figure, digits: usize) -> String {
        self.spread(EMPTY, figure).map_or_else(
            |_| String::new(),
            |(_, spread)| format!(" ({EMPTY}: {})", number(spread.median, digits)),
        )
    }

    /// How far a window without any tracer strays.
    fn noise(&self, figure: Figure, nothing: f64) -> Option<f64> {
        let (_, spread) = self.spread(&Tracer::Nothing.name(), figure).ok()?;
        Some(spread.farthest_from(nothing))
    }

    /// The outcome when this row and A/A have at least half of the quiet windows that they should.
    fn unless_disturbed(&self, row: &Row, outcome: impl FnOnce() -> Outcome) -> Outcome {
        let nothing = self.load.row(&Tracer::Nothing.name());
        let worst = [Some(row), nothing]
            .into_iter()
            .flatten()
            .map(|row| (row.quiet(self.disturbed), row.pairs.len()))
            .min_by_key(|(quiet, _)| *quiet);
        match worst {
            Some((quiet, windows)) if quiet * 2 < self.load.wanted => {
                Outcome::Inconclusive(format!("{quiet} of {windows} windows were undisturbed"))
            }
            _ => outcome(),
        }
    }
}

/// What ctrace itself takes with everything on, on the load where that is most. It is no ratio, and A/A says nothing of it.
fn own(measured: &[Measured], disturbed: f64, bound: &Own) -> Option<Verdict> {
    let judges = measured.iter().map(|load| Judge { load, disturbed });
    let found = judges.filter_map(|judge| {
        let (row, spread) = judge.spread(ALL, bound.figure).ok()?;
        let outcome = || hold(spread.median, Limit::AtMost(bound.limit), Some(0.0));
        let outcome = if bound.minds_neighbours {
            judge.unless_disturbed(row, outcome)
        } else {
            outcome()
        };
        Some((judge.load.load.name, spread.median, outcome))
    });
    let (load, most, outcome) = found.max_by(|(_, a, _), (_, b, _)| a.total_cmp(b))?;
    let (unit, digits) = (bound.unit, bound.digits);
    Some(Verdict {
        text: format!(
            "{ALL}, {} {:.digits$} ≤ {}, most on {load}",
            bound.what,
            most / unit,
            bound.limit / unit
        ),
        outcome,
    })
}

/// A bound of ctrace that could not be measured does not hold.
fn missing(subject: &str, why: &str) -> Verdict {
    Verdict {
        text: format!("{subject}: {why}"),
        outcome: Outcome::Fail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        loads,
        row::tests::{pair, window},
    };

    fn row(tracer: Tracer, ons: &[(f64, f64)], others: f64) -> Row {
        let off = || window(1000.0, 1000.0, 0.0, 0.0);
        Row {
            tracer,
            pairs: ons
                .iter()
                .map(|&(rate, cpu)| pair(off(), window(1000.0 * rate, 1000.0 * cpu, 0.0, others), off()))
                .collect(),
            failures: 0,
            failed: None,
        }
    }

    fn hot(rows: Vec<Row>) -> Measured {
        let load = loads::chosen(&["hot".to_owned()]).next().unwrap();
        Measured {
            load,
            wanted: 1,
            rows,
        }
    }

    const QUIET: &[(f64, f64)] = &[(0.995, 1.002), (1.004, 0.998), (1.0, 1.0)];

    fn texts(measured: Measured) -> Vec<String> {
        let verdicts = all(&[measured], 0.1);
        verdicts
            .iter()
            .map(|verdict| format!("{}: {:?}", verdict.text, verdict.outcome))
            .collect()
    }

    #[test]
    fn lines_of_the_hot_load() {
        let lines = texts(hot(vec![
            row(Tracer::Nothing, QUIET, 0.0),
            row(
                Tracer::Only("locks"),
                &[(0.963, 1.03), (0.97, 1.031), (0.96, 1.02)],
                0.0,
            ),
            row(Tracer::Everything, &[(0.91, 1.13)], 0.0),
            row(Tracer::Peer(&crate::bench::peers::OFF_CPU), &[(0.87, 1.05)], 0.0),
        ]));
        assert_eq!(
            lines[..5],
            [
                "hot, ctrace locks: throughput 0.963 ≥ 0.95: Pass",
                "hot, ctrace locks: CPU per operation 1.030 ≤ 1.05: Pass",
                "hot, ctrace all: CPU per operation 1.130 ≤ 1.1: Fail",
                "hot, bpftrace off-CPU: throughput lost 0.130 ≥ 2 × 0.037: Pass",
                "hot, bpftrace off-CPU: CPU per operation added 0.050 ≥ 2 × 0.030: Fail",
            ]
        );
    }

    #[test]
    fn a_disturbed_row_decides_nothing_and_a_missing_one_fails() {
        let mut failed = row(Tracer::Everything, &[], 0.0);
        failed.failed = Some("no BTF".to_owned());
        let lines = texts(hot(vec![
            row(Tracer::Nothing, QUIET, 0.0),
            row(Tracer::Only("locks"), &[(0.5, 2.0), (0.5, 2.0)], 0.7),
            failed,
        ]));
        assert_eq!(
            lines[0],
            "hot, ctrace locks: throughput 0.500 ≥ 0.95: Inconclusive(\"0 of 2 windows were undisturbed\")"
        );
        assert_eq!(
            lines[2],
            "hot, ctrace all: CPU per operation: did not run: no BTF: Fail"
        );
    }
}
