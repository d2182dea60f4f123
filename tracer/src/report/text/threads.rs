//! Threads: where the time of each went, and how long each was runnable without a CPU.

use super::View;
use super::escape::name;
use super::page::Column;
use super::screen::word;
use crate::aggregate::verdict::LEAK_CONFIDENCE;
use crate::report::model::{SpawnStack, ThreadTime, Verdict};
use crate::report::units::{count, p99_cell, percent, share, time};

/// `worker-3 (4250)`, and `thread 4250` without a name.
pub(super) fn thread(comm: &str, tid: u32) -> String {
    if comm.is_empty() {
        format!("thread {tid}")
    } else {
        format!("{} ({tid})", name(comm, 24))
    }
}

impl View<'_> {
    pub(super) fn thread_details(&self) -> Vec<String> {
        let mut lines = self.time_by_thread();
        if !self.options.verbose {
            return lines;
        }
        let queue = self.queue_by_thread();
        if !lines.is_empty() && !queue.is_empty() {
            lines.push(String::new());
        }
        lines.extend(queue);
        lines
    }

    fn time_by_thread(&self) -> Vec<String> {
        let Some(spent) = &self.report.time else {
            return Vec::new();
        };
        let cells: Vec<Vec<String>> = spent
            .by_thread
            .iter()
            .take(self.top())
            .map(|row| {
                let blocked: u64 = row.blocked_ns.values().sum();
                let all = row.running_ns + row.runnable_ns + blocked;
                let longest = row.blocked_ns.iter().max_by_key(|&(_, ns)| *ns);
                let who = row.tid.map_or_else(
                    || format!("{} other threads", count(u64::from(row.threads))),
                    |tid| thread(&row.comm, tid),
                );
                let part = |ns| percent(share(ns, all));
                vec![
                    who,
                    time(row.running_ns),
                    part(row.running_ns),
                    part(row.runnable_ns),
                    part(blocked),
                    longest
                        .filter(|&(_, &ns)| ns > 0)
                        .map_or_else(String::new, |(reason, ns)| {
                            format!("{} {}", word(reason), time(*ns))
                        }),
                ]
            })
            .collect();
        if cells.is_empty() {
            return Vec::new();
        }
        let columns = [
            Column::Text(""),
            Column::Number("on CPU"),
            Column::Number("running"),
            Column::Number("runnable"),
            Column::Number("blocked"),
            Column::Word("mostly on"),
        ];
        let mut lines = self.page.table("Time by thread", &columns, &cells);
        let threads = |rows: &[ThreadTime]| rows.iter().map(|row| row.threads as usize).sum();
        let shown = &spent.by_thread[..cells.len()];
        lines.extend(self.rest(2, threads(&spent.by_thread), threads(shown), "thread"));
        if let Some(steal) = spent.steal_ns.filter(|&ns| ns > 0) {
            lines.push(self.page.line(
                2,
                &format!("the hypervisor took {} from this host's CPUs", time(steal)),
            ));
        }
        lines
    }

    /// Who made threads: those that stay, or all when verbose.
    pub(super) fn spawned_details(&self) -> Vec<String> {
        let Some(threads) = &self.report.threads else {
            return Vec::new();
        };
        let suspect =
            |row: &&SpawnStack| row.verdict == Verdict::Leaking && row.confidence >= LEAK_CONFIDENCE;
        let rows: Vec<&SpawnStack> = threads
            .by_stack
            .iter()
            .filter(|row| self.options.verbose || suspect(row))
            .collect();
        let shown = &rows[..rows.len().min(self.top())];
        let cells: Vec<Vec<String>> = shown
            .iter()
            .map(|row| {
                vec![
                    self.chain(row.stack.as_ref()),
                    word(&row.verdict),
                    count(row.created),
                    count(row.ended),
                    count(row.live),
                    row.asleep_in.first().map_or_else(String::new, |sleep| {
                        format!("{} in {}", count(sleep.count), self.app(sleep.stack.as_ref()))
                    }),
                ]
            })
            .collect();
        if cells.is_empty() {
            return Vec::new();
        }
        let columns = [
            Column::Text(""),
            Column::Word(""),
            Column::Number("made"),
            Column::Number("ended"),
            Column::Number("live"),
            Column::Text("asleep"),
        ];
        let mut lines = self.page.table("Threads by who made them", &columns, &cells);
        lines.extend(self.rest(2, rows.len(), shown.len(), "stack"));
        lines
    }

    fn queue_by_thread(&self) -> Vec<String> {
        let rows = self
            .report
            .run_queue
            .as_ref()
            .map(|queue| queue.by_thread.as_slice())
            .unwrap_or_default();
        let cells: Vec<Vec<String>> = rows
            .iter()
            .take(self.top())
            .map(|row| {
                let hist = &row.hist;
                vec![
                    thread(&row.comm, row.tid),
                    count(hist.count),
                    time(hist.total_ns),
                    time(hist.p50_ns),
                    p99_cell(hist),
                    time(hist.max_ns),
                ]
            })
            .collect();
        if cells.is_empty() {
            return Vec::new();
        }
        let columns = [
            Column::Text(""),
            Column::Number("delays"),
            Column::Number("total"),
            Column::Number("p50"),
            Column::Number(if rows.iter().any(|row| row.hist.count < 1000) {
                "p99 (95 %)"
            } else {
                "p99"
            }),
            Column::Number("max"),
        ];
        self.page.table("Run queue by thread", &columns, &cells)
    }
}
