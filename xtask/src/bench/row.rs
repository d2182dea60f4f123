//! What was measured, and its figures.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    loads::{Load, Tracer},
    stats::{Window, added, get, ratio},
};

/// A load with all its tracers.
pub(super) struct Measured {
    pub(super) load: &'static Load,
    /// Quiet windows that each row should have.
    pub(super) wanted: usize,
    pub(super) rows: Vec<Row>,
}

/// All windows of one tracer on one load.
pub(super) struct Row {
    pub(super) tracer: Tracer,
    pub(super) pairs: Vec<Pair>,
    /// Windows that came to nothing, and why the last one did.
    pub(super) failures: usize,
    pub(super) failed: Option<String>,
}

/// An "on" window between two "off" ones.
pub(super) struct Pair {
    pub(super) before: Window,
    /// With the tracer's own figures.
    pub(super) on: Window,
    pub(super) after: Window,
    pub(super) losses: BTreeMap<String, u64>,
    /// Others that had probes attached.
    pub(super) tracers: Vec<String>,
    /// ctrace's.
    pub(super) report: Value,
}

impl Measured {
    pub(super) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.tracer.name() == name)
    }
}

impl Row {
    /// Windows beside which nobody else was at work.
    pub(super) fn quiet(&self, disturbed: f64) -> usize {
        self.pairs.iter().filter(|pair| pair.is_quiet(disturbed)).count()
    }

    /// The quiet windows; all when there are none.
    pub(super) fn used(&self, disturbed: f64) -> impl Iterator<Item = &Pair> + Clone {
        let any = self.quiet(disturbed) > 0;
        self.pairs
            .iter()
            .filter(move |pair| !any || pair.is_quiet(disturbed))
    }
}

impl Pair {
    pub(super) fn throughput(&self) -> f64 {
        self.ratio(|window| get(window, "operations") / get(window, "wall_ns"))
    }

    /// Of the process that the load is.
    pub(super) fn cpu(&self) -> f64 {
        self.ratio(|window| get(window, "cpu_ns") / get(window, "operations"))
    }

    /// With the tracer's own; there is none of that in an "off" window.
    pub(super) fn cpu_of_both(&self) -> f64 {
        self.ratio(|window| {
            let tracer = window.get("tracer_cpu_ns").copied().unwrap_or(0.0);
            (get(window, "cpu_ns") + tracer) / get(window, "operations")
        })
    }

    /// CPU time that an operation takes more.
    pub(super) fn added_ns(&self) -> f64 {
        let of = |window| get(window, "cpu_ns") / get(window, "operations");
        added(of(&self.before), of(&self.on), of(&self.after))
    }

    fn ratio(&self, of: impl Fn(&Window) -> f64) -> f64 {
        ratio(of(&self.before), of(&self.on), of(&self.after))
    }

    /// CPUs of others, in the worst of the three.
    pub(super) fn others(&self) -> f64 {
        let of = |window| get(window, "others_cpus") + get(window, "stolen_cpus");
        of(&self.before).max(of(&self.on)).max(of(&self.after))
    }

    fn is_quiet(&self, disturbed: f64) -> bool {
        self.others() < disturbed && self.tracers.is_empty()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An "off" or "on" window of so many operations a second at so many ns of CPU.
    pub(in super::super) fn window(rate: f64, cpu_ns: f64, tracer: f64, others: f64) -> Window {
        [
            ("wall_ns", 1e9),
            ("operations", rate),
            ("cpu_ns", rate * cpu_ns),
            ("tracer_cpu_ns", rate * tracer),
            ("others_cpus", others),
            ("stolen_cpus", 0.0),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    pub(in super::super) fn pair(before: Window, on: Window, after: Window) -> Pair {
        Pair {
            before,
            on,
            after,
            losses: BTreeMap::new(),
            tracers: Vec::new(),
            report: Value::Null,
        }
    }

    fn near(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-9, "{value} is not {expected}");
    }

    #[test]
    fn a_window_is_held_against_those_beside_it() {
        let pair = pair(
            window(900.0, 1000.0, 0.0, 0.0),
            window(950.0, 1100.0, 110.0, 0.0),
            window(1100.0, 1000.0, 0.0, 0.0),
        );
        near(pair.throughput(), 0.95);
        near(pair.cpu(), 1.1);
        near(pair.cpu_of_both(), 1.21);
        near(pair.added_ns(), 100.0);
    }

    #[test]
    fn disturbed_windows_are_left_out_unless_there_are_no_others() {
        let with = |others| {
            pair(
                window(1.0, 1.0, 0.0, others),
                window(1.0, 1.0, 0.0, 0.0),
                window(1.0, 1.0, 0.0, 0.0),
            )
        };
        let row = |pairs| Row {
            tracer: Tracer::Nothing,
            pairs,
            failures: 0,
            failed: None,
        };
        let mixed = row(vec![with(0.5), with(0.01), with(0.2)]);
        assert_eq!((mixed.quiet(0.1), mixed.used(0.1).count()), (1, 1));
        let noisy = row(vec![with(0.5), with(0.2)]);
        assert_eq!((noisy.quiet(0.1), noisy.used(0.1).count()), (0, 2));

        let mut beside_a_tracer = with(0.0);
        beside_a_tracer.tracers.push("bpftrace".to_owned());
        assert!(!beside_a_tracer.is_quiet(0.1));
    }
}
