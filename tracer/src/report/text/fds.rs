//! Descriptors.

use super::View;
use super::escape::name;
use super::page::Column;
use super::screen::word;
use crate::report::frames::{is_app, without_path};
use crate::report::model::{AskedBy, FdExample, FdStack, Fds, StackKey, Verdict};
use crate::report::units::{count, counted, percent, time};

/// Whether a row may be a leak: it grows, or would be called growing but for what was lost.
pub(super) fn is_suspect(row: &FdStack) -> bool {
    match row.verdict {
        Verdict::Leaking | Verdict::Growing => true,
        Verdict::Unknown => row.growth_per_s > 0.0 && row.live > row.live_at_start,
        Verdict::Pool | Verdict::Steady | Verdict::Churn => false,
    }
}

fn kinds(row: &FdStack) -> String {
    let mut kinds: Vec<_> = row.kinds.iter().collect();
    kinds.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
    let words: Vec<String> = kinds.iter().map(|(kind, _)| word(kind)).collect();
    words.join(" ")
}

/// Whether its stack is worth showing to one who does not ask for all.
fn is_detailed(row: &FdStack) -> bool {
    let accused = matches!(row.verdict, Verdict::Leaking | Verdict::Growing | Verdict::Pool);
    accused || is_suspect(row) || (row.live > 0 && row.stack.is_some())
}

impl View<'_> {
    pub(super) fn suspect_table(&self, heading: &str, rows: &[&FdStack]) -> Vec<String> {
        let columns = [
            Column::Text(""),
            Column::Number("live"),
            Column::Number("growth"),
            Column::Word("kind"),
            Column::Word("call"),
            Column::Text("created by"),
        ];
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                vec![
                    word(&row.verdict),
                    count(row.live),
                    Self::per_s(row.growth_per_s),
                    name(&kinds(row), 20),
                    row.call
                        .as_deref()
                        .map_or_else(|| "?".to_owned(), |call| name(call, 16)),
                    self.origin(row),
                ]
            })
            .collect();
        self.page.table(heading, &columns, &cells)
    }

    fn origin(&self, row: &FdStack) -> String {
        match &row.without_stack {
            Some(why) if row.stack.is_none() => format!("({})", name(&why.replace('_', " "), 24)),
            _ => self.chain(self.answerable(row)),
        }
    }

    /// The stack with the application's function: its own, else that of the nearest goroutine that made the one that it is of.
    fn answerable<'r>(&self, row: &'r FdStack) -> Option<&'r StackKey> {
        let makers = row.asked_by.iter().filter_map(|by| by.stack.as_ref());
        let mut stacks = row.stack.iter().chain(makers);
        let has_app = |key: &&StackKey| {
            self.stack(Some(key))
                .is_some_and(|frames| frames.iter().any(is_app))
        };
        stacks.find(has_app).or(row.stack.as_ref())
    }

    /// Who asked for it, each with its stack.
    pub(super) fn asked_by(&self, indent: usize, asked_by: &[AskedBy]) -> Vec<String> {
        let mut lines = Vec::new();
        for by in asked_by {
            let function = by.created_by.as_deref().map_or("?", without_path);
            let at = match (&by.created_at, &by.stack) {
                (Some(at), None) => format!(" at {}", name(at, NAME)),
                _ => String::new(),
            };
            let said = format!("in a goroutine that {} made{at}", name(function, NAME));
            lines.extend(self.page.wrap(indent - 2, &said));
            if by.stack.is_some() {
                lines.extend(self.frames(indent, by.stack.as_ref()));
            }
        }
        lines
    }

    pub(super) fn fd_details(&self) -> Vec<String> {
        let Some(fds) = &self.report.fds else {
            return Vec::new();
        };
        if fds.by_stack.is_empty() {
            return Vec::new();
        }
        let mut lines = vec![self.page.heading("Descriptors, by the stack that opened them")];
        for row in self.detailed_fds() {
            lines.extend(self.one_fd_stack(row));
        }
        if self.options.verbose {
            lines.extend(self.rest(2, fds.by_stack.len(), self.top(), "stack"));
        } else {
            let detailed = fds.by_stack.iter().filter(|row| is_detailed(row)).count();
            lines.extend(self.rest(2, detailed, self.top(), "stack"));
            lines.extend(self.other_fds(fds));
        }
        lines.extend(self.unseen(fds));
        lines
    }

    /// The rows that are told of with their stacks and examples.
    pub(super) fn detailed_fds(&self) -> Vec<&FdStack> {
        let all = self.report.fds.iter().flat_map(|fds| &fds.by_stack);
        all.filter(|row| self.options.verbose || is_detailed(row))
            .take(self.top())
            .collect()
    }

    /// A line for each that is nothing to worry about; those that read the same are one.
    fn other_fds(&self, fds: &Fds) -> Vec<String> {
        let mut rows: Vec<([String; 3], [u64; 4])> = Vec::new();
        for row in fds.by_stack.iter().filter(|row| !is_detailed(row)) {
            let call = row
                .call
                .as_deref()
                .map_or_else(String::new, |call| name(call, 16));
            let words = [word(&row.verdict), call, self.origin(row)];
            let numbers = [row.opened, row.closed, row.live, 1];
            match rows.iter_mut().find(|(same, _)| *same == words) {
                Some((_, sums)) => sums.iter_mut().zip(numbers).for_each(|(sum, n)| *sum += n),
                None => rows.push((words, numbers)),
            }
        }
        let cells: Vec<Vec<String>> = rows
            .iter()
            .take(self.top())
            .map(|([verdict, call, origin], [opened, closed, live, stacks])| {
                let numbers = format!(
                    "{} opened, {} closed, {} live",
                    count(*opened),
                    count(*closed),
                    count(*live)
                );
                let together = match stacks {
                    1 => String::new(),
                    n => counted(*n, "stack"),
                };
                let (verdict, call, origin) = (verdict.clone(), call.clone(), origin.clone());
                vec![verdict, numbers, call, origin, together]
            })
            .collect();
        let columns = [
            Column::Word(""),
            Column::Word(""),
            Column::Word(""),
            Column::Text(""),
            Column::Word(""),
        ];
        let mut lines: Vec<String> = self
            .page
            .table("", &columns, &cells)
            .into_iter()
            .skip(1)
            .collect();
        lines.extend(self.rest(2, rows.len(), self.top(), "stack"));
        lines
    }

    fn one_fd_stack(&self, row: &FdStack) -> Vec<String> {
        let mut call = row
            .call
            .as_deref()
            .map_or_else(String::new, |call| format!(" by {}", name(call, 16)));
        let kind = kinds(row);
        if !self.options.verbose && row.kinds.len() == 1 && row.call.as_deref() != Some(&kind) {
            call = format!(", {kind}{call}");
        }
        let periods: Vec<String> = row.steps.iter().map(|step| time(step.period_ns)).collect();
        let staircase = if periods.is_empty() {
            String::new()
        } else {
            format!(", in steps every {}", periods.join(" and "))
        };
        let verdict = format!(
            "{} ({} sure): {} live{call}, {} opened, {} closed, {} at start, {}{staircase}",
            word(&row.verdict),
            percent(row.confidence),
            count(row.live),
            count(row.opened),
            count(row.closed),
            count(row.live_at_start),
            Self::per_s(row.growth_per_s)
        );
        let mut lines = self.page.wrap(2, &verdict);
        let each: Vec<String> = row
            .kinds
            .iter()
            .map(|(kind, n)| format!("{} {}", count(*n), word(kind)))
            .collect();
        if !each.is_empty() && (self.options.verbose || each.len() > 1) {
            lines.extend(self.page.wrap(4, &format!("kinds: {}", each.join(", "))));
        }
        if row.age.count > 0 {
            lines.extend(self.page.wrap(4, &format!("age: {}", self.spread(&row.age))));
        }
        if row.stack.is_some() {
            lines.extend(self.frames(8, row.stack.as_ref()));
        } else {
            lines.push(self.page.line(8, &self.origin(row)));
        }
        lines.extend(self.asked_by(8, &row.asked_by));
        lines.extend(self.examples(&row.examples));
        lines
    }

    fn examples(&self, examples: &[FdExample]) -> Vec<String> {
        // What closed meanwhile has no target, and tells nothing.
        let verbose = self.options.verbose;
        let told = examples
            .iter()
            .filter(|example| verbose || example.target.is_some());
        let told: Vec<&FdExample> = told.take(if verbose { self.top() } else { EXAMPLES }).collect();
        if told.is_empty() {
            return Vec::new();
        }
        let columns = [
            Column::Number(""),
            Column::Text("what"),
            Column::Text("ends"),
            Column::Word("state"),
            Column::Number("age"),
        ];
        let cells: Vec<Vec<String>> = told
            .iter()
            .map(|example| {
                let end = |end: &Option<String>| end.as_deref().map(|end| name(end, NAME));
                let ends = match (end(&example.local), end(&example.peer)) {
                    (None, None) => String::new(),
                    (local, peer) => {
                        let or_unknown = |end: Option<String>| end.unwrap_or_else(|| "?".to_owned());
                        format!("{} → {}", or_unknown(local), or_unknown(peer))
                    }
                };
                let unread = example.unread_bytes.filter(|&n| n > 0);
                let unread = unread.map_or_else(String::new, |n| format!(" {} unread", count(n)));
                let state = example
                    .tcp_state
                    .as_deref()
                    .map_or_else(String::new, |state| name(state, 16));
                vec![
                    example.fd.to_string(),
                    example
                        .target
                        .as_deref()
                        .map_or_else(|| "?".to_owned(), |target| name(target, NAME)),
                    ends,
                    format!("{state}{unread}").trim_start().to_owned(),
                    example.age_ns.map_or_else(|| "before tracing".to_owned(), time),
                ]
            })
            .collect();
        self.page.table("    e.g. fd", &columns, &cells)
    }

    fn unseen(&self, fds: &Fds) -> Vec<String> {
        let mut said = Vec::new();
        if fds.unseen_births > 0 {
            said.push(format!(
                "{} found open whose birth was not seen",
                count(fds.unseen_births)
            ));
        }
        if fds.unseen_deaths > 0 {
            said.push(format!(
                "{} found closed whose death was not seen",
                count(fds.unseen_deaths)
            ));
        }
        if !fds.unseen_kinds.is_empty() {
            let kinds = fds
                .unseen_kinds
                .iter()
                .map(|kind| name(kind, 24))
                .collect::<Vec<_>>();
            said.push(format!("this kernel shows no stack for: {}", kinds.join(", ")));
        }
        self.page.wrap(2, &said.join("; "))
    }
}

const NAME: usize = 60;
/// Examples of one stack, for one who does not ask for more.
const EXAMPLES: usize = 3;
