//! What changed between two reports, as data: the JSON document `ctrace.diff/1`, described by `ctrace schema --diff`.
//!
//! Rates are per second of the window, or per unit of load where [`Basis::unit`] says so; what is not known is `null`.
//! Fields are only ever added.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::{Ctrace, document, words};

/// Value of [`Diff::schema`].
pub const SCHEMA: &str = "ctrace.diff/1";

document! {
    /// What changed from one run to another.
    pub struct Diff {
        /// Always `ctrace.diff/1`.
        pub schema: String,
        /// The program that wrote it.
        pub ctrace: Ctrace,
        /// The first run.
        pub before: Side,
        /// The second run.
        pub after: Side,
        /// Of all together: worse when anything is, else improved when anything is.
        pub verdict: Change,
        /// The verdict in one line.
        pub summary: String,
        /// What rates are compared by.
        pub basis: Basis,
        /// What is called a change.
        pub significance: Significance,
        /// How many things there are of each verdict.
        pub counts: Counts,
        /// What the comparison suffers from.
        pub notes: Vec<String>,
        /// Changed ones first, most lost time first.
        pub things: Vec<Thing>,
    }

    /// One of the two runs.
    pub struct Side {
        /// The file.
        pub file: String,
        /// Its reports: more than one with `-i`.
        pub documents: u64,
        /// When it began, RFC 3339.
        pub started_at: String,
        /// Length of all its windows.
        pub duration_ns: u64,
        /// Name of the first process.
        pub comm: Option<String>,
        /// CPUs of the machine.
        pub cpus: u32,
        /// CPU time of the targets, of one CPU.
        pub cpu_share: Option<f64>,
        /// Connections that were accepted and ended, or what `--load` says; null when neither is known.
        pub load: Option<f64>,
        /// Nothing was lost.
        pub complete: bool,
    }

    /// What rates are compared by.
    pub struct Basis {
        /// `second`, or `unit of load`.
        pub unit: String,
        /// Why.
        pub why: String,
    }

    /// What is called a change.
    pub struct Significance {
        /// Probability at most of calling anything at all changed when nothing is.
        pub alpha: f64,
        /// How that is held over many tests: `holm`.
        pub correction: String,
        /// Number of tests.
        pub tests: u64,
        /// Smaller changes are none, however certain: 0.2 is 20 %.
        pub margin: f64,
        /// By how much two runs of one program are taken to differ (standard deviation of the logarithm), beside what the slices
        /// of each run tell.
        pub run_to_run: f64,
    }

    /// How many things there are of each verdict.
    #[derive(Default)]
    pub struct Counts {
        /// Less time is lost.
        pub improved: u64,
        /// More time is lost, or a leak is new.
        pub worse: u64,
        /// It changed, and that is neither good nor bad by itself.
        pub differs: u64,
        /// No change could be shown.
        pub unchanged: u64,
        /// There is too little to tell.
        pub not_enough_data: u64,
        /// They cost so little in both runs that they were not looked at.
        pub too_small: u64,
    }

    /// Something that is in both runs, or in one.
    pub struct Thing {
        /// `lock`, `blocked`, `run_queue`, `fds`, `goroutines`, `pool`, `gc` or `deadlock`.
        pub class: String,
        /// What it is in the second run, else in the first: the kind of a lock, the reason of a sleep.
        pub kind: String,
        /// What it was in the first run, where that is something else.
        pub was: Option<String>,
        /// Its name, else the function.
        pub name: String,
        /// The application's functions, the nearest first.
        pub functions: Vec<String>,
        /// What became of it.
        pub verdict: Change,
        /// Why this verdict.
        pub why: String,
        /// How its counterpart was found.
        pub matched: Matched,
        /// How alike they are, 0 to 1.
        pub similarity: Option<f64>,
        /// Another counterpart was as likely.
        pub ambiguous: bool,
        /// Rows of each report compared as one, as nothing but addresses tells them apart.
        pub rows: [u64; 2],
        /// Time lost: per second of each window.
        pub lost_ns_per_s: [Option<f64>; 2],
        /// What was compared.
        pub metrics: Vec<Metric>,
    }

    /// One number of a thing.
    pub struct Metric {
        /// `time_per_s`, `count_per_s`, `p50`, `p99`, `growth_per_s`, `exhausted_share`.
        pub name: String,
        /// `ns/s`, `1/s`, `ns`, `1`.
        pub unit: String,
        /// In the first run.
        pub before: Option<f64>,
        /// In the second run.
        pub after: Option<f64>,
        /// Second to first, by [`Basis`]; null when one of them is nothing.
        pub ratio: Option<f64>,
        /// 95 % confidence interval of it.
        pub ratio_ci: Option<[f64; 2]>,
        /// Probability of such a difference without a change.
        pub p: Option<f64>,
        /// The same with all tests of this comparison in mind.
        pub p_adjusted: Option<f64>,
        /// It changed.
        pub changed: bool,
        /// Samples that count in each run, less than there are where they come in bursts.
        pub effective: [Option<f64>; 2],
    }
}

words! {
    /// What became of something.
    pub enum Change {
        /// More time is lost, or a leak is new.
        Worse,
        /// Less time is lost.
        Improved,
        /// It changed, and that is neither good nor bad by itself.
        Differs,
        /// There is too little to tell.
        NotEnoughData,
        /// No change could be shown.
        Unchanged,
    }

    /// How a counterpart was found.
    pub enum Matched {
        /// The same kind and functions.
        Same,
        /// The same kind, and functions that are mostly the same.
        Similar,
        /// Another kind in the same functions.
        Replaced,
        /// There is none in the second run.
        OnlyBefore,
        /// There is none in the first run.
        OnlyAfter,
    }
}
