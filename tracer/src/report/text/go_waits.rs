//! Everything that goroutines waited for (`--go-waits`), and how much of the time the probes in Go programs covered.

use super::View;
use super::escape::name;
use super::locks::is_channel;
use super::page::Column;
use super::screen::{LABEL, kind};
use crate::report::model::{Go, GoProbes, GoWait, Hist, Lock};
use crate::report::units::{GLUE, count, counted, time};

/// Below this part of the window what was seen is not all that there was.
const WHOLE: f64 = 0.95;

fn numbers(wait: &Hist) -> Vec<String> {
    vec![
        count(wait.count),
        time(wait.total_ns),
        time(wait.p50_ns),
        time(wait.p99_ns),
        time(wait.max_ns),
    ]
}

fn columns(first: &'static str, last: &'static str) -> [Column; 7] {
    [
        Column::Text(first),
        Column::Number("waits"),
        Column::Number("total"),
        Column::Number("p50"),
        Column::Number("p99"),
        Column::Number("max"),
        Column::Text(last),
    ]
}

impl View<'_> {
    /// Exact waits by place, then by channel and who ended them.
    pub(super) fn exact_waits(&self, go: &Go) -> Vec<String> {
        let mut exact: Vec<(&GoWait, &Hist)> = go
            .waits
            .iter()
            .filter_map(|row| Some((row, row.wait.as_ref()?)))
            .collect();
        if exact.is_empty() {
            return Vec::new();
        }
        exact.sort_by_key(|(_, wait)| std::cmp::Reverse(wait.total_ns));
        let cells: Vec<Vec<String>> = exact
            .iter()
            .take(self.top())
            .map(|(row, wait)| {
                let reason = name(row.wait_reason.as_deref().unwrap_or(&row.status), 28);
                let mut cells = vec![reason];
                cells.extend(numbers(wait));
                cells.push(self.chain(row.stack.as_ref()));
                cells
            })
            .collect();
        let mut lines = self.page.table("  Every wait", &columns("", "where"), &cells);
        lines.extend(self.rest(4, exact.len(), self.top(), "place"));
        let locks = self.report.locks.iter().flatten();
        let channels: Vec<&Lock> = locks
            .filter(|lock| lock.pid == go.pid && is_channel(lock) && !lock.idle)
            .collect();
        let cells: Vec<Vec<String>> = channels
            .iter()
            .take(self.top())
            .map(|lock| {
                let mut cells = vec![kind(lock.kind)];
                cells.extend(numbers(&lock.wait));
                let first = |stack: Option<Option<&String>>| {
                    stack.map_or_else(|| "?".to_owned(), |stack| self.app(stack))
                };
                let waiter = first(lock.waiters.first().map(|row| row.stack.as_ref()));
                let waker = first(lock.wakers.first().map(|row| row.stack.as_ref()));
                cells.push(format!("{waiter} → {waker}"));
                cells
            })
            .collect();
        if !cells.is_empty() {
            let heading = "  Channels that were waited for, but by who was idle";
            lines.extend(
                self.page
                    .table(heading, &columns("", "waits in → woken by"), &cells),
            );
            lines.extend(self.rest(4, channels.len(), self.top(), "channel"));
        }
        lines
    }

    /// What probes in Go programs did not cover: without it the waits would be misread.
    pub(super) fn go_probes_lines(&self) -> Vec<String> {
        let window_ns = self.report.window.duration_ns;
        let part = |probes: &&GoProbes| (probes.covered_ns as f64) < window_ns as f64 * WHOLE;
        let in_part = self.report.overhead.go_probes.iter().filter(part);
        in_part
            .flat_map(|probes| {
                let what = match &*probes.group {
                    "locks" => "waits for Go's locks",
                    "dials" => "who asks for connections",
                    "creators" => "who makes goroutines",
                    _ => "waits of goroutines",
                };
                let mut text = format!(
                    "{what} seen for {} of {}, in {}",
                    time(probes.covered_ns),
                    time(window_ns),
                    counted(u64::from(probes.parts), "part")
                );
                if let Some(percent) = probes.percent {
                    text = format!("{text}, to cost no more than {percent}{GLUE}%; not scaled up");
                }
                if let Some(cut) = probes.cut.filter(|&cut| cut > 0) {
                    text = format!("{text}; {} cut off at a part's end", count(cut));
                }
                self.page.labelled(LABEL, "Probes", &text)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::aggregate::hist::Histogram;
    use crate::report::hist::hist;
    use crate::report::model::{GoProbes, LockKind};
    use crate::report::sample::contended;
    use crate::report::text::{TextOptions, render};

    #[test]
    fn exact_waits_and_what_they_cover_are_told() {
        let mut report = contended();
        let mut waits = Histogram::default();
        for _ in 0..23 {
            waits.record(7_000_000);
        }
        let go = report.go.as_mut().unwrap();
        let pid = go.pid;
        go.waits[0].wait = Some(hist(&waits));
        go.waits[0].count = Some(23);
        let window = report.window.duration_ns;
        report.overhead.go_probes = vec![GoProbes {
            group: "waits".into(),
            covered_ns: window / 10,
            parts: 3,
            percent: Some(2.0),
            cpu_percent: Some(1.9),
            hits: 46,
            cut: Some(5),
            unended: Some(0),
            unmatched: Some(0),
        }];
        let locks = report.locks.as_mut().unwrap();
        let mut channel = locks[0].clone();
        channel.kind = LockKind::GoChan;
        channel.pid = pid;
        channel.idle = false;
        channel.name = Some("a channel".into());
        locks.push(channel);
        let options = TextOptions {
            width: 110,
            color: false,
            top: 10,
            verbose: false,
        };
        let text = render(&report, &options);
        for part in [
            "Every wait",
            "Channels that were waited for",
            "go chan",
            "in 3 parts",
            "5 cut off at",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("a channel"), "no lock of the first screen: {text}");
    }
}
