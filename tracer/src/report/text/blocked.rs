//! Sleeps by reason, and threads asleep at the end.

use std::collections::BTreeMap;

use super::View;
use super::escape::{clean, name};
use super::page::Column;
use super::screen::word;
use super::threads::thread;
use crate::report::model::{Blocked, Reason, StackKey, WaitingNow};
use crate::report::units::{count, counted, distribution, share, time};

/// Kernel frames in one line, at most.
const KERNEL: usize = 8;

/// Stacks of a reason, and what of its time one must have, for one who does not ask for all.
const FEW: usize = 3;
const WORTH: f64 = 0.01;

/// Several rows together.
struct Sums {
    count: u64,
    total_ns: u64,
    max_ns: u64,
}

impl Sums {
    fn of(rows: &[&Blocked]) -> Self {
        Self {
            count: rows.iter().map(|row| row.count).sum(),
            total_ns: rows.iter().map(|row| row.total_ns).sum(),
            max_ns: rows.iter().map(|row| row.max_ns).max().unwrap_or(0),
        }
    }
}

fn kernel_chain(frames: &[String]) -> String {
    let frames: Vec<String> = frames.iter().take(KERNEL).map(|frame| clean(frame)).collect();
    frames.join(" ← ")
}

impl View<'_> {
    pub(super) fn blocked_details(&self) -> Vec<String> {
        let reasons = self.by_reason();
        if reasons.is_empty() {
            return Vec::new();
        }
        if !self.options.verbose {
            return self.blocked_table(&reasons);
        }
        let mut lines = vec![self.page.heading("Blocked, by reason")];
        for (reason, rows) in reasons {
            let sums = Sums::of(&rows);
            let heading = format!(
                "{}: {}, {}, longest {}",
                word(&reason),
                counted(sums.count, "sleep"),
                time(sums.total_ns),
                time(sums.max_ns)
            );
            lines.push(self.page.line(2, &heading));
            for row in rows.iter().take(self.top()) {
                lines.extend(self.one_blocked(row));
            }
            lines.extend(self.rest(4, rows.len(), self.top(), "stack"));
        }
        lines
    }

    /// The reasons and the stacks of each, longest total first.
    fn by_reason(&self) -> Vec<(Reason, Vec<&Blocked>)> {
        let rows = self.report.blocked.as_deref().unwrap_or_default();
        let mut by_reason: BTreeMap<Reason, Vec<&Blocked>> = BTreeMap::new();
        for row in rows {
            by_reason.entry(row.reason).or_default().push(row);
        }
        let mut reasons: Vec<(Reason, Vec<&Blocked>)> = by_reason.into_iter().collect();
        for (_, rows) in &mut reasons {
            rows.sort_by_key(|row| std::cmp::Reverse(row.total_ns));
        }
        reasons.sort_by_key(|(_, rows)| std::cmp::Reverse(Sums::of(rows).total_ns));
        reasons
    }

    /// A line for each reason, and one for each of its stacks that matters.
    fn blocked_table(&self, reasons: &[(Reason, Vec<&Blocked>)]) -> Vec<String> {
        let columns = [
            Column::Word(""),
            Column::Number("sleeps"),
            Column::Number("total"),
            Column::Number("p50"),
            Column::Number("p99"),
            Column::Number("max"),
            Column::Text("in"),
        ];
        let mut cells = Vec::new();
        for (reason, rows) in reasons {
            if let [row] = rows[..] {
                cells.push(self.blocked_cells(&word(reason), row));
                continue;
            }
            let sums = Sums::of(rows);
            let worth = |row: &&&Blocked| share(row.total_ns, sums.total_ns) >= WORTH;
            let shown: Vec<&&Blocked> = rows.iter().filter(worth).take(FEW).collect();
            let stacks = counted(rows.len() as u64, "stack");
            let which = if shown.len() < rows.len() {
                format!("{stacks}, {} shown", shown.len())
            } else {
                stacks
            };
            cells.push(vec![
                word(reason),
                count(sums.count),
                time(sums.total_ns),
                String::new(),
                String::new(),
                time(sums.max_ns),
                which,
            ]);
            cells.extend(shown.into_iter().map(|row| self.blocked_cells("", row)));
        }
        self.page.table("Blocked, by reason", &columns, &cells)
    }

    fn blocked_cells(&self, reason: &str, row: &Blocked) -> Vec<String> {
        let mut place = match (&row.stack, &row.kernel_stack) {
            (None, Some(kernel)) => format!("kernel: {}", kernel_chain(kernel)),
            _ => self.chain(row.stack.as_ref()),
        };
        if let Some(peer) = &row.peer {
            // In front, where no cut of the chain reaches.
            place = format!("({}) {place}", name(peer, 40));
        }
        vec![
            reason.to_owned(),
            count(row.count),
            time(row.total_ns),
            time(row.wait.p50_ns),
            time(row.wait.p99_ns),
            time(row.max_ns),
            place,
        ]
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
            lines.extend(self.page.wrap(8, &format!("kernel: {}", kernel_chain(kernel))));
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
        let verbose = self.options.verbose;
        let cells: Vec<Vec<String>> = rows
            .iter()
            .take(self.top())
            .map(|threads| {
                let first = threads[0];
                let who = thread(&first.comm, first.tid);
                let (who, number) = match threads.len() {
                    1 => (who, verbose.then_some(1)),
                    n if verbose => (format!("{who} + {}", n - 1), Some(n)),
                    n => (counted(n as u64, "thread"), None),
                };
                let on = match (&first.lock, &first.address) {
                    (Some(id), _) => self.lock_name(id),
                    (None, Some(address)) => name(address, 20),
                    (None, None) => String::new(),
                };
                let place = if verbose {
                    self.app(first.stack.as_ref())
                } else {
                    self.chain(first.stack.as_ref())
                };
                vec![
                    who,
                    number.map_or_else(String::new, |n| count(n as u64)),
                    word(&first.reason),
                    // A lock without a name is called by the place.
                    if place.split(' ').next() == Some(&*on) && !verbose {
                        String::new()
                    } else {
                        on
                    },
                    since(threads),
                    place,
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
        lines.extend(self.rest(2, rows.len(), self.top(), "place"));
        lines
    }
}

/// How long the one has slept that slept longest.
fn since(threads: &[&WaitingNow]) -> String {
    // One that slept before ctrace looked has slept longest.
    if threads.iter().any(|row| row.since_ns.is_none()) {
        return "before tracing".to_owned();
    }
    let longest = threads.iter().filter_map(|row| row.since_ns).max();
    longest.map_or_else(String::new, time)
}
