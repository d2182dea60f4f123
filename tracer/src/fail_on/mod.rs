//! `--fail-on`: conditions on a report or a comparison that make the exit status 1, for scripts and CI.
//!
//! `METRIC OPERATOR VALUE`, several joined by commas or by repeating the option; one that holds is enough. A value that is not known
//! makes no condition true, and is told.

mod of_diff;
mod of_report;

use std::fmt;

use anyhow::{Result, bail};

use crate::report::{
    diff::Diff,
    model::{Report, Severity},
    units::{bytes, count, duration, plain, portion},
};

/// What a metric is measured in, and so how its values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// `5ms`.
    Time,
    /// `10`.
    Number,
    /// `3%`.
    Share,
    /// `100kB`.
    Bytes,
    /// `high`.
    Severity,
}

impl Unit {
    const fn example(self) -> &'static str {
        match self {
            Self::Time => "5ms, 250us or 2s",
            Self::Number => "10 or 0.5",
            Self::Share => "3%",
            Self::Bytes => "100kB or 3MB",
            Self::Severity => "info, low, medium, high or critical",
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Time => duration(value.max(0.0) as u64),
            Self::Number if value.fract() == 0.0 && value.abs() < 1e15 && value >= 0.0 => count(value as u64),
            Self::Number => format!("{value:.3}"),
            Self::Share => portion(value),
            Self::Bytes => plain(&bytes(value)),
            Self::Severity => SEVERITIES
                .iter()
                .find(|(_, severity)| rank(*severity) >= value)
                .map_or_else(|| "none".to_owned(), |(name, _)| (*name).to_owned()),
        }
    }
}

const SEVERITIES: [(&str, Severity); 5] = [
    ("info", Severity::Info),
    ("low", Severity::Low),
    ("medium", Severity::Medium),
    ("high", Severity::High),
    ("critical", Severity::Critical),
];

/// Severities as numbers: 0 is none.
fn rank(severity: Severity) -> f64 {
    f64::from(severity as u8) + 1.0
}

/// What a metric is, of a report.
type OfReport = fn(&Report) -> Measured;
/// What a metric is, of a comparison.
type OfDiff = fn(&Diff) -> Measured;

/// Where a metric is found.
#[derive(Clone, Copy, Debug)]
enum Source {
    Report(OfReport),
    Diff(OfDiff),
}

/// A metric that conditions may name.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// As it is typed.
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// What it is, in a few words.
    pub help: &'static str,
    source: Source,
}

/// A number, and of what it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Measured {
    /// The number, and what it belongs to (escaped, may be empty).
    Known(f64, String),
    /// Why there is none.
    Unknown(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    More,
    AtLeast,
    Less,
    AtMost,
    Is,
    IsNot,
}

/// Longer ones first, as they begin with shorter ones.
const OPERATORS: [(&str, Operator); 7] = [
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    ("!=", Operator::IsNot),
    ("==", Operator::Is),
    (">", Operator::More),
    ("<", Operator::Less),
    ("=", Operator::Is),
];

impl Operator {
    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::More => left > right,
            Self::AtLeast => left >= right,
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::Is => (left - right).abs() <= f64::EPSILON * right.abs(),
            Self::IsNot => (left - right).abs() > f64::EPSILON * right.abs(),
        }
    }
}

/// A condition.
#[derive(Clone, Debug)]
pub struct Condition {
    text: String,
    metric: Metric,
    operator: Operator,
    value: f64,
}

/// Which metrics there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Those of a report.
    Report,
    /// Those of a comparison.
    Diff,
}

impl On {
    /// The metrics that may be named.
    #[must_use]
    pub const fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Report => of_report::METRICS,
            Self::Diff => of_diff::METRICS,
        }
    }
}

/// Reads what was given to `--fail-on`, each time.
pub fn parse(given: &[String], on: On) -> Result<Vec<Condition>> {
    let mut conditions = Vec::new();
    for text in given.iter().flat_map(|given| given.split(',')) {
        conditions.push(condition(text.trim(), on)?);
    }
    Ok(conditions)
}

fn condition(text: &str, on: On) -> Result<Condition> {
    let shown = text.escape_debug();
    let example = match on {
        On::Report => "`lock.p99>5ms`",
        On::Diff => "`worse>0`",
    };
    let Some(at) = text.find(['<', '>', '=', '!']) else {
        bail!("--fail-on wants a condition such as {example}, not `{shown}`");
    };
    let (name, rest) = text.split_at(at);
    let operator = OPERATORS
        .iter()
        .find_map(|(sign, operator)| Some((*operator, rest.strip_prefix(sign)?)));
    let Some((operator, value)) = operator else {
        bail!("--fail-on knows the operators > >= < <= = !=, not that of `{shown}`");
    };
    let (name, value) = (name.trim(), value.trim());
    let Some(metric) = on.metrics().iter().find(|metric| metric.name == name) else {
        let known: Vec<&str> = on.metrics().iter().map(|metric| metric.name).collect();
        bail!(
            "--fail-on knows no `{}`: choose from {}",
            name.escape_debug(),
            known.join(", ")
        );
    };
    let Some(number) = number(value, metric.unit) else {
        bail!(
            "--fail-on {} wants a value such as {}, not `{}`",
            metric.name,
            metric.unit.example(),
            value.escape_debug()
        );
    };
    Ok(Condition {
        text: text.to_owned(),
        metric: *metric,
        operator,
        value: number,
    })
}

fn number(text: &str, unit: Unit) -> Option<f64> {
    if unit == Unit::Severity {
        let (_, severity) = SEVERITIES.iter().find(|(name, _)| *name == text)?;
        return Some(rank(*severity));
    }
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (value, suffix) = text.split_at(digits);
    let value = value.parse::<f64>().ok().filter(|value| value.is_finite())?;
    let factor = match (unit, suffix.trim()) {
        (Unit::Time, "ns") | (Unit::Number, "") | (Unit::Bytes, "" | "B") => 1.0,
        // A bare number would be seconds to one and milliseconds to another.
        (Unit::Time, "us" | "µs") | (Unit::Bytes, "kB" | "KB") => 1e3,
        (Unit::Time, "ms") | (Unit::Bytes, "MB") => 1e6,
        (Unit::Time, "s") | (Unit::Bytes, "GB") => 1e9,
        (Unit::Time, "m" | "min") => 60e9,
        (Unit::Time, "h") => 3600e9,
        (Unit::Share, "" | "%") => 0.01,
        _ => return None,
    };
    Some(value * factor)
}

/// What became of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It does not hold.
    Fine,
    /// It holds; a line that says so.
    Held(String),
    /// Its value is not known; a line that says so.
    Unknown(String),
}

impl Condition {
    /// Of a report.
    #[must_use]
    pub fn of_report(&self, report: &Report) -> Outcome {
        match self.metric.source {
            Source::Report(measure) => self.judge(measure(report)),
            Source::Diff(_) => Outcome::Fine,
        }
    }

    /// Of a comparison.
    #[must_use]
    pub fn of_diff(&self, diff: &Diff) -> Outcome {
        match self.metric.source {
            Source::Diff(measure) => self.judge(measure(diff)),
            Source::Report(_) => Outcome::Fine,
        }
    }

    fn judge(&self, measured: Measured) -> Outcome {
        match measured {
            Measured::Unknown(why) => Outcome::Unknown(format!(
                "--fail-on {self}: {} is not known ({why}), so it does not hold",
                self.metric.name
            )),
            Measured::Known(value, _) if !self.operator.holds(value, self.value) => Outcome::Fine,
            Measured::Known(value, of) => {
                let of = if of.is_empty() { of } else { format!(", {of}") };
                Outcome::Held(format!(
                    "--fail-on {self} held: {} is {}{of}",
                    self.metric.name,
                    self.metric.unit.show(value)
                ))
            }
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.text.escape_debug())
    }
}

/// All conditions over a run of one report or many.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    conditions: Vec<Condition>,
    /// By condition: it held.
    held: Vec<bool>,
    /// By condition: it was said not to be known.
    told: Vec<bool>,
}

impl Watch {
    /// Over these.
    #[must_use]
    pub fn new(conditions: Vec<Condition>) -> Self {
        Self {
            held: vec![false; conditions.len()],
            told: vec![false; conditions.len()],
            conditions,
        }
    }

    /// One more report; the lines to say, those about what is not known apart. Each condition is told of once.
    pub fn report(&mut self, report: &Report) -> (Vec<String>, Vec<String>) {
        self.take(|condition| condition.of_report(report))
    }

    /// The same of a comparison.
    pub fn diff(&mut self, diff: &Diff) -> (Vec<String>, Vec<String>) {
        self.take(|condition| condition.of_diff(diff))
    }

    fn take(&mut self, judge: impl Fn(&Condition) -> Outcome) -> (Vec<String>, Vec<String>) {
        let (mut held, mut unknown) = (Vec::new(), Vec::new());
        let each = self
            .conditions
            .iter()
            .zip(self.held.iter_mut().zip(&mut self.told));
        for (condition, (has_held, told)) in each {
            match judge(condition) {
                Outcome::Held(line) if !*has_held => {
                    *has_held = true;
                    held.push(line);
                }
                Outcome::Unknown(line) if !*told => {
                    *told = true;
                    unknown.push(line);
                }
                Outcome::Held(_) | Outcome::Unknown(_) | Outcome::Fine => {}
            }
        }
        (held, unknown)
    }

    /// One of them held.
    #[must_use]
    pub fn has_held(&self) -> bool {
        self.held.contains(&true)
    }
}

/// The metrics for `--help`, a line each.
#[must_use]
pub fn help(on: On) -> String {
    let metrics = on.metrics().iter();
    let lines: Vec<String> = metrics
        .map(|metric| format!("  {:<20} {}", metric.name, metric.help))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests;
