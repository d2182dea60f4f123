//! Findings and deadlocks.

use super::View;
use super::escape::{clean, head, name};
use super::page::Tone;
use super::screen::word;
use crate::report::model::{Certainty, Finding, LockKind, Severity};
use crate::report::units::{count, duration, percent, rate};

const SEVERITY: usize = 10;
/// Threads of one cycle that are told with their stacks.
const CYCLE: usize = 16;

fn tone(severity: Severity) -> Tone {
    match severity {
        Severity::Critical | Severity::High => Tone::Red,
        Severity::Medium => Tone::Yellow,
        Severity::Low | Severity::Info => Tone::Plain,
    }
}

impl View<'_> {
    /// The first of them, for the first screen.
    pub(super) fn findings(&self, rows: usize) -> Vec<String> {
        let all = &self.report.findings;
        if all.is_empty() {
            let seen = if self.report.losses.complete {
                ""
            } else {
                " in what was seen, which is not all"
            };
            return vec![self.page.heading(&format!("Findings: nothing wrong found{seen}"))];
        }
        let more = if rows < all.len() {
            format!(", {rows} shown here")
        } else {
            String::new()
        };
        let mut lines = vec![self.page.heading(&format!("Findings ({}{more})", all.len()))];
        for finding in all.iter().take(rows) {
            lines.push(self.finding_title(finding));
            lines.push(self.page.prose(SEVERITY + 2, &clean(&finding.detail)));
            if self.options.verbose {
                lines.push(
                    self.page
                        .prose(SEVERITY + 2, &format!("→ {}", clean(&finding.remedy))),
                );
            }
        }
        lines
    }

    fn finding_title(&self, finding: &Finding) -> String {
        self.severity_and(finding, &clean(&finding.title))
    }

    fn severity_and(&self, finding: &Finding, text: &str) -> String {
        let severity = format!("{:SEVERITY$}", word(&finding.severity).to_uppercase());
        let title = head(text, self.page.width - SEVERITY - 2);
        format!(
            "  {}{}",
            self.page.paint(tone(finding.severity), &severity),
            self.page.paint(Tone::Bold, &title)
        )
    }

    /// What to do about each; those that stand whole among the `shown` of the first screen are not told again.
    pub(super) fn finding_details(&self, shown: usize) -> Vec<String> {
        if self.report.findings.is_empty() {
            return Vec::new();
        }
        let mut lines = vec![self.page.heading("Findings, and what to do")];
        if !self.options.verbose {
            let mut before = None;
            for (at, finding) in self.report.findings.iter().take(self.top()).enumerate() {
                lines.extend(self.one_finding(finding, at < shown, before));
                before = Some(finding.remedy.as_str());
            }
            lines.extend(self.rest(2, self.report.findings.len(), self.top(), "finding"));
            return lines;
        }
        for finding in &self.report.findings {
            lines.push(self.finding_title(finding));
            lines.extend(self.page.wrap(4, &clean(&finding.detail)));
            lines.extend(self.page.wrap(4, &format!("→ {}", clean(&finding.remedy))));
            let about = format!("{}, {} sure", name(&finding.id, 40), percent(finding.confidence));
            let evidence: Vec<String> = finding
                .evidence
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            let evidence = if self.options.verbose && !evidence.is_empty() {
                format!("{about}: {}", clean(&evidence.join(" ")))
            } else {
                about
            };
            lines.extend(self.page.wrap(4, &evidence));
            if finding.stack.is_some() {
                lines.extend(self.frames(6, finding.stack.as_ref()));
            }
        }
        lines
    }

    fn one_finding(&self, finding: &Finding, shown: bool, remedy_before: Option<&str>) -> Vec<String> {
        let room = self.page.width - SEVERITY - 2;
        let (title, detail) = (clean(&finding.title), clean(&finding.detail));
        let whole = title.chars().count() <= room && detail.chars().count() <= room;
        let about = format!("{}, {} sure", name(&finding.id, 40), percent(finding.confidence));
        let subject = match (&finding.lock, &finding.stack) {
            (Some(lock), _) => format!("{}: ", self.lock_name(lock)),
            (None, Some(stack)) => format!("{}: ", self.app(Some(stack))),
            (None, None) => String::new(),
        };
        let mut lines = vec![self.severity_and(finding, &format!("{subject}{about}"))];
        if !shown || !whole {
            lines.extend(self.page.wrap(4, &format!("{title}; {detail}")));
        }
        let remedy = if remedy_before == Some(finding.remedy.as_str()) {
            "as above".to_owned()
        } else {
            clean(&finding.remedy)
        };
        let told_at = self.told_at(finding);
        let remedy = told_at.map_or_else(
            || format!("→ {remedy}"),
            |place| format!("→ {} (stacks: {place}, below)", remedy.trim_end_matches('.')),
        );
        lines.extend(self.page.wrap(4, &remedy));
        if told_at.is_none() && finding.stack.is_some() {
            lines.extend(self.frames(6, finding.stack.as_ref()));
        }
        lines
    }

    /// The section below in which the stack of the finding stands.
    fn told_at(&self, finding: &Finding) -> Option<&'static str> {
        if let Some(id) = &finding.lock {
            let told = self.detailed_locks().iter().any(|lock| lock.id == *id);
            return told.then_some("Locks");
        }
        let stack = finding.stack.as_ref()?;
        let told = self
            .detailed_fds()
            .iter()
            .any(|row| row.stack.as_ref() == Some(stack));
        told.then_some("Descriptors")
    }

    /// Cycles, with all their stacks.
    pub(super) fn deadlock_details(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for deadlock in &self.report.deadlocks {
            let known = match deadlock.certainty {
                Certainty::Proven => "Deadlock",
                Certainty::Probable => "Probable deadlock",
            };
            let behind = match deadlock.behind {
                0 => String::new(),
                n => format!("; {} more behind", count(n)),
            };
            lines.push(self.page.heading(&format!(
                "{known} for {}: each waits for what the next holds{behind}",
                duration(deadlock.waiting_ns)
            )));
            for link in deadlock.cycle.iter().take(CYCLE) {
                let holds = link
                    .holds
                    .as_deref()
                    .map_or_else(|| "?".to_owned(), |id| self.lock_name(id));
                let waits_for = self.lock_name(&link.waits_for);
                let holds = match link.holds.as_deref().and_then(|id| self.lock(id)) {
                    Some(lock) if lock.kind == LockKind::Join => "is waited for".to_owned(),
                    _ => format!("holds {holds}"),
                };
                let line = format!("{} {holds}, waits for {waits_for}", link.tid);
                lines.push(self.page.line(2, &line));
                lines.extend(self.frames(6, link.stack.as_ref()));
            }
            if deadlock.cycle.len() > CYCLE {
                let more = format!("and {} more threads (JSON)", deadlock.cycle.len() - CYCLE);
                lines.push(self.page.line(2, &more));
            }
        }
        lines
    }

    /// `+4.10/s`.
    pub(super) fn per_s(per_s: f64) -> String {
        format!("{}/s", rate(per_s))
    }
}
