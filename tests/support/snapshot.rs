//! What a report says of goroutines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;
use tracer::report::model::StackFrame;

/// The `go` section of a report, and what belongs to it.
pub(crate) struct Snapshot {
    pub(crate) go: Go,
    stacks: BTreeMap<String, Vec<StackFrame>>,
    pub(crate) findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Go {
    pub(crate) version: String,
    /// Alive at the last snapshot, the runtime's own included.
    pub(crate) goroutines: u64,
    pub(crate) by_stack: Vec<Group>,
}

/// Goroutines with the same stack, creator and state.
#[derive(Debug, Deserialize)]
pub(crate) struct Group {
    pub(crate) stack: Option<String>,
    pub(crate) created_by: Option<String>,
    pub(crate) created_at: Option<String>,
    pub(crate) count: u64,
    pub(crate) status: String,
    pub(crate) wait_reason: Option<String>,
    pub(crate) verdict: String,
    pub(crate) growth_per_s: Option<f64>,
    pub(crate) examples: Vec<Example>,
}

impl Group {
    /// What is waited for, or else the status: as the runtime tells it.
    pub(crate) fn state(&self) -> &str {
        match (&*self.status, &self.wait_reason) {
            ("waiting", Some(reason)) => reason,
            _ => &self.status,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Example {
    pub(crate) goid: u64,
    pub(crate) parent_goid: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Finding {
    pub(crate) id: String,
    pub(crate) severity: String,
    pub(crate) title: String,
    pub(crate) stack: Option<String>,
    pub(crate) evidence: Value,
}

impl Snapshot {
    pub(crate) fn of(mut report: Value) -> Self {
        fn part<T: for<'a> Deserialize<'a>>(report: &mut Value, name: &str) -> T {
            let part = report.get_mut(name).map(Value::take);
            let part = part.unwrap_or_else(|| panic!("the report has no {name}"));
            serde_json::from_value(part).unwrap_or_else(|why| panic!("{name}: {why}"))
        }
        Self {
            go: part(&mut report, "go"),
            stacks: part(&mut report, "stacks"),
            findings: part(&mut report, "findings"),
        }
    }

    /// Frames of a group or of a finding, innermost first; none of a running goroutine.
    pub(crate) fn frames(&self, stack: Option<&str>) -> &[StackFrame] {
        let Some(key) = stack else { return &[] };
        let frames = self.stacks.get(key);
        frames.unwrap_or_else(|| panic!("stack {key} is not in the report"))
    }

    /// Whether a function of this name is in the stack.
    pub(crate) fn has(&self, stack: Option<&str>, function: &str) -> bool {
        let mut frames = self.frames(stack).iter();
        frames.any(|frame| frame.function.as_deref() == Some(function))
    }

    /// Findings about goroutines that are worth a look.
    pub(crate) fn alarms(&self) -> Vec<&Finding> {
        let about = |finding: &&Finding| {
            finding.id.starts_with("go.") && !matches!(&*finding.severity, "info" | "low")
        };
        self.findings.iter().filter(about).collect()
    }

    /// All groups as text, for messages.
    pub(crate) fn show(&self) -> String {
        let mut text = String::new();
        for group in &self.go.by_stack {
            let _ = writeln!(
                text,
                "{} {} {:?} {} {:?}/s by {:?}: {}",
                group.count,
                group.status,
                group.wait_reason,
                group.verdict,
                group.growth_per_s,
                group.created_by,
                names(self.frames(group.stack.as_deref())).join(" <- ")
            );
        }
        text
    }
}

pub(crate) fn names(frames: &[StackFrame]) -> Vec<&str> {
    let names = frames.iter().map(|frame| frame.function.as_deref());
    names.map(|name| name.unwrap_or("?")).collect()
}
