//! What was not seen, and what that means.

use super::View;
use super::escape::name;
use super::page::{Column, Tone};
use crate::report::units::{count, time};

impl View<'_> {
    /// Causes that occurred: how often, what happened, and what it means.
    fn causes(&self) -> Vec<(u64, &'static str, &'static str)> {
        let lost = &self.report.losses;
        let all = [
            (
                lost.ring_full,
                "records did not fit into the ring",
                "waits are missing, totals too small",
            ),
            (
                lost.fd_ring_full,
                "descriptor records did not fit",
                "births or deaths missed, no leak verdicts",
            ),
            (
                lost.map_full,
                "entries did not fit into a kernel map",
                "some threads or waits were not followed",
            ),
            (
                lost.unmatched,
                "ends of waits without a beginning",
                "those waits are not counted",
            ),
            (
                lost.go_unmatched,
                "ends of goroutines' waits without a beginning",
                "most began before ctrace attached",
            ),
            (
                lost.samples,
                "samples did not fit into the ring",
                "shares of CPU time and memory rest on fewer",
            ),
            (
                lost.stack_failed,
                "stacks could not be unwound",
                "shown up to where they broke",
            ),
            (
                lost.stack_pending.saturating_sub(lost.go_stack_pending),
                "stacks not copied, the ring was too full",
                "counted for the lock, without stack",
            ),
            (
                lost.go_stack_pending,
                "stacks of goroutines' parks not copied",
                "counted for the channel, without stack",
            ),
            (
                lost.folded,
                "rows folded into one, a table was full",
                "totals right, details missing",
            ),
            (lost.compat, "calls by 32-bit code", "counted, without stack"),
            (
                lost.control_truncated,
                "messages with more descriptors than fit",
                "some births unseen until reconciled",
            ),
            (
                lost.user_fault,
                "reads of the target's memory failed",
                "deadlines or addresses unknown there",
            ),
            (
                lost.unknown_record,
                "records were not understood",
                "a fault of ctrace, please report it",
            ),
            (
                u64::from(lost.names.is_some()),
                "process that looks up names broke down",
                "addresses instead of names",
            ),
        ];
        all.into_iter().filter(|(n, _, _)| *n > 0).collect()
    }

    /// For the first screen, with the `most` first causes.
    pub(super) fn loss_lines(&self, most: usize) -> Vec<String> {
        let causes = self.causes();
        let complete = self.report.losses.complete;
        match (causes.is_empty(), complete) {
            (true, true) => return vec![self.page.line(0, "Losses     complete: nothing lost")],
            (true, false) => {
                let text = self
                    .page
                    .line(0, "Losses     INCOMPLETE: verdicts are withheld, see the JSON");
                return vec![self.page.paint(Tone::Yellow, &text)];
            }
            _ => {}
        }
        let title = if complete {
            "complete for every verdict, but:"
        } else {
            "INCOMPLETE: verdicts are withheld"
        };
        let tone = if complete { Tone::Plain } else { Tone::Yellow };
        let mut lines = vec![
            self.page
                .paint(tone, &self.page.line(0, &format!("Losses     {title}"))),
        ];
        for &(n, what, meaning) in causes.iter().take(most) {
            lines.push(self.page.line(2, &format!("{} {what} ({meaning})", count(n))));
        }
        if causes.len() > most {
            lines.push(
                self.page
                    .line(2, &format!("… {} more below", causes.len() - most)),
            );
        }
        lines
    }

    /// All causes: the first screen may not have named them all.
    pub(super) fn loss_details(&self) -> Vec<String> {
        let causes = self.causes();
        let mut lines = Vec::new();
        if causes.len() > 1 {
            lines.push(self.page.heading("Losses"));
            for (n, what, meaning) in causes {
                lines.push(self.page.line(2, &format!("{} {what} ({meaning})", count(n))));
            }
        }
        let by = &self.report.losses.stack_failed_by;
        if !by.is_empty() {
            let reasons: Vec<String> = by
                .iter()
                .map(|(why, n)| format!("{} {}", name(&why.replace('_', " "), 40), count(*n)))
                .collect();
            lines.extend(
                self.page
                    .wrap(2, &format!("stacks failed by reason: {}", reasons.join(", "))),
            );
        }
        lines
    }

    pub(super) fn probe_details(&self) -> Vec<String> {
        if !self.options.verbose || self.report.probes.is_empty() {
            return Vec::new();
        }
        let known = |n: Option<u64>, show: fn(u64) -> String| n.map_or_else(|| "?".to_owned(), show);
        let cells: Vec<Vec<String>> = self
            .report
            .probes
            .iter()
            .map(|probe| {
                let each = probe
                    .run_ns
                    .zip(probe.hits)
                    .filter(|&(_, hits)| hits > 0)
                    .map(|(ns, hits)| ns / hits);
                vec![
                    name(&probe.name, 40),
                    name(&probe.attach, 16),
                    known(probe.hits, count),
                    known(probe.run_ns, time),
                    known(each, time),
                    known(probe.missed, count),
                ]
            })
            .collect();
        let columns = [
            Column::Text(""),
            Column::Word("attach"),
            Column::Number("hits"),
            Column::Number("time"),
            Column::Number("per hit"),
            Column::Number("missed"),
        ];
        self.page.table("Probes", &columns, &cells)
    }
}
