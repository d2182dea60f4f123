//! Resident memory.

use super::View;
use super::page::Column;
use crate::report::model::{MemoryProcess, MemoryStack, Verdict};
use crate::report::units::{bytes, count, percent};

/// The share that a stack must have for one who does not ask for all.
const WORTH: f64 = 0.05;

impl View<'_> {
    /// Who touches new memory, when it grows.
    pub(super) fn memory_details(&self) -> Vec<String> {
        let Some(memory) = &self.report.memory else {
            return Vec::new();
        };
        let growing = |process: &&MemoryProcess| process.verdict == Verdict::Growing;
        let grows = memory.by_process.iter().any(|process| growing(&process));
        if !grows && !self.options.verbose {
            return Vec::new();
        }
        let growth = |per_s: f64| format!("{}{}/s", if per_s > 0.0 { "+" } else { "" }, bytes(per_s));
        let heading = format!(
            "Memory: {} → {} resident, {}",
            bytes(memory.rss_start as f64),
            bytes(memory.rss_end as f64),
            growth(memory.growth_bytes_per_s)
        );
        let few = |row: &&MemoryStack| self.options.verbose || row.share >= WORTH;
        let shown: Vec<&MemoryStack> = memory.by_stack.iter().filter(few).take(self.top()).collect();
        let rows: Vec<Vec<String>> = shown
            .iter()
            .map(|row| {
                vec![
                    self.chain(row.stack.as_ref()),
                    bytes(row.bytes as f64),
                    percent(row.share),
                    count(row.samples),
                ]
            })
            .collect();
        if rows.is_empty() {
            return vec![self.page.heading(&heading)];
        }
        let columns = [
            Column::Text(""),
            Column::Number("still there"),
            Column::Number("share"),
            Column::Number("samples"),
        ];
        let mut lines = vec![self.page.heading(&heading)];
        lines.extend(self.page.table("  First touched in", &columns, &rows));
        if self.options.verbose {
            for row in &shown {
                lines.push(self.page.line(2, &format!("{}:", percent(row.share))));
                lines.extend(self.frames(4, row.stack.as_ref()));
            }
        }
        lines.extend(self.rest(2, memory.by_stack.len(), rows.len(), "stack"));
        lines
    }
}
