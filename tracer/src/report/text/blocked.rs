//! Sleeps by reason, and threads asleep at the end.

use std::collections::BTreeMap;

use super::View;
use super::escape::{clean, name};
use super::page::Column;
use super::screen::word;
use crate::report::model::{Blocked, Reason, StackKey, WaitingNow};
use crate::report::units::{count, counted, distribution, time};

/// Kernel frames in one line, at most.
const KERNEL: usize = 8;

impl View<'_> {
    pub(super) fn blocked_details(&self) -> Vec<String> {
        let rows = self.report.blocked.as_deref().unwrap_or_default();
        let mut by_reason: BTreeMap<Reason, Vec<&Blocked>> = BTreeMap::new();
        for row in rows {
            by_reason.entry(row.reason).or_default().push(row);
        }
        let mut reasons: Vec<(Reason, Vec<&Blocked>)> = by_reason.into_iter().collect();
        let total = |rows: &[&Blocked]| rows.iter().map(|row| row.total_ns).sum::<u64>();
        reasons.sort_by_key(|(_, rows)| std::cmp::Reverse(total(rows)));
        let mut lines = Vec::new();
        if !reasons.is_empty() {
            lines.push(self.page.heading("Blocked, by reason"));
        }
        for (reason, mut rows) in reasons {
            rows.sort_by_key(|row| std::cmp::Reverse(row.total_ns));
            let sleeps = rows.iter().map(|row| row.count).sum();
            let longest = rows.iter().map(|row| row.max_ns).max().unwrap_or(0);
            let heading = format!(
                "{}: {}, {}, longest {}",
                word(&reason),
                counted(sleeps, "sleep"),
                time(total(&rows)),
                time(longest)
            );
            lines.push(self.page.line(2, &heading));
            for row in rows.iter().take(self.top()) {
                lines.extend(self.one_blocked(row));
            }
            if rows.len() > self.top() {
                let rest = counted((rows.len() - self.top()) as u64, "more stack");
                lines.push(self.page.line(4, &format!("… {rest} in the JSON")));
            }
        }
        lines
    }

    fn one_blocked(&self, row: &Blocked) -> Vec<String> {
        let peer = row
            .peer
            .as_deref()
            .map_or_else(String::new, |peer| format!(" for {}", name(peer, 60)));
        let text = format!(
            "{}, {}{peer}: {}",
            counted(row.count, "sleep"),
            time(row.total_ns),
            distribution(&row.wait)
        );
        let mut lines = self.page.wrap(4, &text);
        lines.extend(self.frames(8, row.stack.as_ref()));
        if let Some(kernel) = &row.kernel_stack {
            let frames: Vec<String> = kernel.iter().take(KERNEL).map(|frame| clean(frame)).collect();
            lines.extend(self.page.wrap(8, &format!("kernel: {}", frames.join(" ← "))));
        }
        lines
    }

    /// Threads that sleep in the same place are one row.
    pub(super) fn waiting_details(&self) -> Vec<String> {
        type Place<'a> = (u32, Reason, Option<&'a str>, Option<&'a StackKey>);
        let mut places: BTreeMap<Place<'_>, Vec<&WaitingNow>> = BTreeMap::new();
        for row in &self.report.waiting_now {
            let place = (row.pid, row.reason, row.lock.as_deref(), row.stack.as_ref());
            places.entry(place).or_default().push(row);
        }
        let mut rows: Vec<Vec<&WaitingNow>> = places.into_values().collect();
        rows.sort_by_key(|threads| std::cmp::Reverse(threads.len()));
        let cells: Vec<Vec<String>> = rows
            .iter()
            .take(self.top())
            .map(|threads| {
                let first = threads[0];
                let others = if threads.len() > 1 {
                    format!(" + {}", threads.len() - 1)
                } else {
                    String::new()
                };
                let on = match (&first.lock, &first.address) {
                    (Some(id), _) => self.lock_name(id),
                    (None, Some(address)) => name(address, 20),
                    (None, None) => String::new(),
                };
                // One that slept before ctrace looked has slept longest.
                let since = if threads.iter().any(|row| row.since_ns.is_none()) {
                    "before tracing".to_owned()
                } else {
                    threads
                        .iter()
                        .filter_map(|row| row.since_ns)
                        .max()
                        .map_or_else(String::new, time)
                };
                vec![
                    format!("{} ({}){others}", name(&first.comm, 24), first.tid),
                    count(threads.len() as u64),
                    word(&first.reason),
                    on,
                    since,
                    self.app(first.stack.as_ref()),
                ]
            })
            .collect();
        if cells.is_empty() {
            return Vec::new();
        }
        let columns = [
            Column::Text(""),
            Column::Number("threads"),
            Column::Word("reason"),
            Column::Text("on"),
            Column::Word("since"),
            Column::Text("in"),
        ];
        let mut lines = self.page.table("Asleep at the end", &columns, &cells);
        if rows.len() > self.top() {
            let rest = counted((rows.len() - self.top()) as u64, "more place");
            lines.push(self.page.line(2, &format!("… {rest} in the JSON")));
        }
        lines
    }
}
