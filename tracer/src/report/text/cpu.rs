//! What ran on the CPUs.

use super::View;
use super::escape::name;
use super::page::Column;
use super::screen::LABEL;
use crate::analyse::cpu::TELLING;
use crate::report::model::{Cpu, CpuStack};
use crate::report::units::{count, percent, share, time};

/// Functions named there, and the share that one of them must have.
const NAMED: usize = 3;
const WORTH: f64 = 0.05;
/// Stacks listed for one who does not ask for all, of a program that uses so much of one CPU.
const FEW: usize = 3;
const COMPUTES: f64 = 0.3;
/// Other processes named, and the part of one CPU that one of them must have used.
const OTHERS: usize = 5;
const BUSY: f64 = 0.05;

impl View<'_> {
    /// For the first screen of a program that computes: which functions did.
    pub(super) fn cpu_line(&self) -> Vec<String> {
        let Some(cpu) = self.report.cpu.as_ref().filter(|cpu| cpu.taken >= TELLING) else {
            return Vec::new();
        };
        let named: Vec<String> = cpu
            .by_function
            .iter()
            .map(|row| (row, share(row.samples, cpu.samples)))
            .filter(|(_, part)| *part >= WORTH)
            .take(NAMED)
            .map(|(row, part)| format!("{} {}", percent(part), self.app(row.stack.as_ref())))
            .collect();
        if named.is_empty() {
            return Vec::new();
        }
        let mut lines = self.page.labelled(LABEL, "On CPU", &named.join(", "));
        lines.truncate(1);
        lines
    }

    pub(super) fn cpu_details(&self) -> Vec<String> {
        let least = if self.options.verbose { 1 } else { TELLING };
        let Some(cpu) = self.report.cpu.as_ref().filter(|cpu| cpu.taken >= least) else {
            return Vec::new();
        };
        let busy = self.report.time.as_ref().map_or(0, |spent| spent.running_ns);
        if !self.options.verbose && share(busy, self.report.window.duration_ns) < COMPUTES {
            return Vec::new();
        }
        let few = |row: &&CpuStack| self.options.verbose || (row.share >= WORTH && row.stack.is_some());
        let most = if self.options.verbose { self.top() } else { FEW };
        let rows: Vec<&CpuStack> = cpu.by_stack.iter().filter(few).take(most).collect();
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                vec![
                    self.chain(row.stack.as_ref()),
                    count(row.samples),
                    percent(row.share),
                    percent(share(row.in_kernel, row.samples)),
                ]
            })
            .collect();
        if cells.is_empty() {
            return Vec::new();
        }
        let columns = [
            Column::Text(""),
            Column::Number("samples"),
            Column::Number("share"),
            Column::Number("in kernel"),
        ];
        let mut lines = self.page.table("On CPU", &columns, &cells);
        if self.options.verbose {
            for row in &rows {
                lines.push(self.page.line(2, &format!("{}:", percent(row.share))));
                lines.extend(self.frames(4, row.stack.as_ref()));
            }
        }
        lines.extend(self.rest(2, cpu.by_stack.len(), rows.len(), "stack"));
        lines.extend(self.others_line(cpu));
        lines
    }

    /// Who else used the CPUs.
    fn others_line(&self, cpu: &Cpu) -> Vec<String> {
        let window = self.report.window.duration_ns;
        let others: Vec<String> = cpu
            .others
            .iter()
            .filter(|other| share(other.cpu_ns, window) >= BUSY)
            .take(OTHERS)
            .map(|other| {
                format!(
                    "{} (pid {}) {}",
                    name(&other.comm, 16),
                    other.pid,
                    time(other.cpu_ns)
                )
            })
            .collect();
        if others.is_empty() {
            return Vec::new();
        }
        self.page
            .wrap(2, &format!("other processes on this host: {}", others.join(", ")))
    }
}
