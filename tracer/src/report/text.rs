//! The report for a person: first one screen that answers, then the details.

mod blocked;
mod cpu;
mod diff;
mod escape;
mod fds;
mod findings;
mod go;
mod go_waits;
mod go_write;
mod locks;
mod losses;
mod memory;
mod page;
mod screen;
mod stack;
mod threads;

pub use diff::render_diff;

use super::model::{Lock, Report, StackFrame, StackKey};
use super::units::{GLUE, counted};
use page::Page;

/// How to render.
#[derive(Clone, Copy, Debug)]
pub struct TextOptions {
    /// Columns to fill; fewer than 60 are taken as 60.
    pub width: usize,
    /// Bold headings and coloured severities, by ANSI escapes.
    pub color: bool,
    /// Rows per table.
    pub top: usize,
    /// Every frame, distribution and example; remedies on the first screen, evidence, run queues, probes.
    pub verbose: bool,
}

/// Renders a report as text.
///
/// The first screen fits 24 lines, and the details without `verbose` a few more. No character of the target's choice reaches the terminal as a control: what is not
/// printable is escaped.
#[must_use]
pub fn render(report: &Report, options: &TextOptions) -> String {
    let view = View {
        report,
        options,
        page: Page::new(options.width, options.color),
    };
    let (mut lines, shown) = view.screen();
    for section in [
        view.finding_details(shown),
        view.deadlock_details(),
        view.lock_details(),
        view.fd_details(),
        view.go_details(),
        view.go_write_details(),
        view.blocked_details(),
        view.waiting_details(),
        view.thread_details(),
        view.cpu_details(),
        view.spawned_details(),
        view.memory_details(),
        view.loss_details(),
        view.probe_details(),
    ] {
        if !section.is_empty() {
            lines.push(String::new());
            lines.extend(section);
        }
    }
    if !options.verbose {
        lines.push(String::new());
        lines.push(view.page.line(0, MORE));
    }
    let mut text = lines.join("\n").replace(GLUE, " ");
    text.push('\n');
    text
}

/// What the short report leaves out.
const MORE: &str = "-v adds whole stacks, distributions, run queues and probes; the JSON has every row.";

/// A report and how to show it; the sections are its methods, each giving finished lines.
struct View<'a> {
    report: &'a Report,
    options: &'a TextOptions,
    page: Page,
}

impl<'a> View<'a> {
    fn top(&self) -> usize {
        self.options.top.max(1)
    }

    fn stack(&self, key: Option<&StackKey>) -> Option<&'a [StackFrame]> {
        self.report
            .stacks
            .get(key?)
            .map(Vec::as_slice)
            .filter(|frames| !frames.is_empty())
    }

    /// `… 3 more locks in the JSON`, when there are more than are `shown`.
    fn rest(&self, indent: usize, all: usize, shown: usize, one: &str) -> Option<String> {
        let more = all.checked_sub(shown).filter(|&more| more > 0)?;
        let text = format!("… {} in the JSON", counted(more as u64, &format!("more {one}")));
        Some(self.page.line(indent, &text))
    }

    fn lock(&self, id: &str) -> Option<&'a Lock> {
        self.report
            .locks
            .as_deref()
            .unwrap_or_default()
            .iter()
            .find(|lock| lock.id == id)
    }
}

#[cfg(test)]
#[expect(clippy::too_many_lines, reason = "whole renderings stand in the tests")]
mod tests;
