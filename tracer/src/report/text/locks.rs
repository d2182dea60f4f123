//! Locks: the table of the first screen, and each with its waiters and wakers.

use super::View;
use super::escape::name;
use super::page::Column;
use super::screen::kind;
use crate::report::model::{Lock, Outcomes, StackKey};
use crate::report::units::{count, counted, distribution, modes, p99_cell, percent, time};

/// Stacks of one lock and side, at most.
const STACKS: usize = 5;
const NAME: usize = 40;

impl View<'_> {
    /// Locks whose waits are contention, longest total first.
    pub(super) fn contended(&self) -> Vec<&Lock> {
        let locks = self.report.locks.as_deref().unwrap_or_default();
        let mut found: Vec<&Lock> = locks.iter().filter(|lock| !lock.idle).collect();
        found.sort_by_key(|lock| std::cmp::Reverse(lock.wait.total_ns));
        found
    }

    pub(super) fn locks(&self, rows: usize) -> Vec<String> {
        if self.report.locks.is_none() {
            return vec![self.page.line(0, "Locks  not traced")];
        }
        let all = self.contended();
        if all.is_empty() {
            return vec![self.page.heading("Locks: no contention")];
        }
        let shown = &all[..rows.min(all.len())];
        let heading = match all.len() {
            n if n > shown.len() => format!("Locks ({} of {n})", shown.len()),
            _ => "Locks".to_owned(),
        };
        let columns = [
            Column::Text(""),
            Column::Word("kind"),
            Column::Number("waits"),
            Column::Number("total"),
            Column::Number("p50"),
            Column::Number(if shown.iter().any(|lock| lock.wait.count < 1000) {
                "p99 (95 %)"
            } else {
                "p99"
            }),
            Column::Number("max"),
        ];
        let cells: Vec<Vec<String>> = shown
            .iter()
            .map(|lock| {
                let wait = &lock.wait;
                vec![
                    self.label(lock),
                    kind(lock.kind),
                    count(lock.waits),
                    time(wait.total_ns),
                    time(wait.p50_ns),
                    p99_cell(wait),
                    time(wait.max_ns),
                ]
            })
            .collect();
        let mut table = self.page.table(&heading, &columns, &cells).into_iter();
        let mut lines: Vec<String> = table.next().into_iter().collect();
        for (row, lock) in table.zip(shown) {
            lines.push(row);
            lines.push(self.page.line(4, &self.who(lock)));
        }
        lines
    }

    /// Where the waits happen and who ends them, in a line.
    fn who(&self, lock: &Lock) -> String {
        let top = |stack: Option<Option<&StackKey>>, none: &str| {
            stack.map_or_else(|| none.to_owned(), |stack| self.app(stack))
        };
        let waiter = top(lock.waiters.first().map(|row| row.stack.as_ref()), "?");
        let waker = top(lock.wakers.first().map(|row| row.stack.as_ref()), "?");
        let held = lock.utilisation.map_or_else(String::new, |held| {
            format!(", held {} of the time", percent(held))
        });
        format!("waits in {waiter} → woken by {waker}{held}")
    }

    /// Its name; without one, its kind and address, or where it is waited for.
    pub(super) fn label(&self, lock: &Lock) -> String {
        match (
            lock.name.as_deref().filter(|name| !name.is_empty()),
            &lock.address,
        ) {
            (Some(text), _) => name(text, NAME),
            (None, Some(address)) => format!("{} at {}", kind(lock.kind), name(address, 20)),
            (None, None) => self.app(lock.waiters.first().and_then(|row| row.stack.as_ref())),
        }
    }

    /// [`Self::label`] of the lock with this id, or the id.
    pub(super) fn lock_name(&self, id: &str) -> String {
        self.lock(id)
            .map_or_else(|| name(id, NAME), |lock| self.label(lock))
    }

    pub(super) fn lock_details(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let contended = self.contended();
        if !contended.is_empty() {
            lines.push(self.page.heading("Locks, by time waited for them"));
        }
        for lock in contended.iter().take(self.top()) {
            lines.extend(self.one_lock(lock));
        }
        if contended.len() > self.top() {
            let rest = counted((contended.len() - self.top()) as u64, "more lock");
            lines.push(self.page.line(2, &format!("… {rest} in the JSON")));
        }
        lines.extend(self.idle_lines());
        lines
    }

    fn one_lock(&self, lock: &Lock) -> Vec<String> {
        let at = lock
            .address
            .as_deref()
            .map_or_else(String::new, |address| format!(" at {}", name(address, 20)));
        let title = format!("{}: {}{at}, pid {}", self.label(lock), kind(lock.kind), lock.pid);
        let mut lines = vec![self.page.line(2, &title)];
        let total = time(lock.wait.total_ns);
        let wait = format!(
            "{}, {total} blocked: {}",
            counted(lock.waits, "wait"),
            distribution(&lock.wait)
        );
        lines.extend(self.page.wrap(4, &wait));
        if let Some(populations) = modes(&lock.wait.modes) {
            lines.extend(self.page.wrap(4, &populations));
        }
        if lock.run_queue.count > 0 {
            lines.extend(
                self.page
                    .wrap(4, &format!("then for a CPU: {}", distribution(&lock.run_queue))),
            );
        }
        if let Some(hold) = &lock.hold {
            let held = lock
                .utilisation
                .map_or_else(String::new, |part| format!(" {} of the time", percent(part)));
            lines.extend(self.page.wrap(4, &format!("held{held}: {}", distribution(hold))));
        }
        lines.extend(
            self.page
                .wrap(4, &format!("ended by: {}", outcomes(&lock.outcomes))),
        );
        for row in lock.waiters.iter().take(STACKS) {
            let what = counted(row.waits, "wait");
            let heading = format!(
                "waited in, {what}, {}, longest {}",
                time(row.total_ns),
                time(row.max_ns)
            );
            lines.push(self.page.line(4, &heading));
            lines.extend(self.frames(8, row.stack.as_ref()));
        }
        for row in lock.wakers.iter().take(STACKS) {
            let process = if row.pid == lock.pid {
                String::new()
            } else {
                format!(" from pid {}", row.pid)
            };
            lines.push(
                self.page
                    .line(4, &format!("woken {}{process} by", counted(row.wakes, "time"))),
            );
            lines.extend(self.frames(8, row.stack.as_ref()));
        }
        for row in lock.holders.iter().take(STACKS) {
            let state = name(&row.state, 16);
            let heading = format!(
                "held {} by thread {}, now {state}, in",
                time(row.total_ns),
                row.tid
            );
            lines.push(self.page.line(4, &heading));
            lines.extend(self.frames(8, row.stack.as_ref()));
        }
        lines
    }

    /// One line for each that only idle threads wait on.
    fn idle_lines(&self) -> Vec<String> {
        let locks = self.report.locks.as_deref().unwrap_or_default();
        let idle: Vec<&Lock> = locks.iter().filter(|lock| lock.idle).collect();
        let mut lines: Vec<String> = idle
            .iter()
            .take(self.top())
            .map(|lock| {
                let asleep = self
                    .report
                    .waiting_now
                    .iter()
                    .filter(|row| row.lock.as_deref() == Some(&lock.id))
                    .count();
                let threads = match asleep {
                    0 => String::new(),
                    n => format!("{} in ", counted(n as u64, "thread")),
                };
                let (waits, total) = (counted(lock.waits, "wait"), time(lock.wait.total_ns));
                let text = format!(
                    "idle: {threads}{} ({}), {waits}, {total}",
                    self.label(lock),
                    kind(lock.kind)
                );
                self.page.line(2, &text)
            })
            .collect();
        if idle.len() > self.top() {
            lines.push(
                self.page
                    .line(2, &format!("idle: … {} more", idle.len() - self.top())),
            );
        }
        if !lines.is_empty() {
            lines.insert(0, self.page.heading("Threads without work"));
        }
        lines
    }
}

fn outcomes(ended: &Outcomes) -> String {
    let named = [
        (ended.handed_over, "another thread"),
        (ended.timed_out, "time-out"),
        (ended.interrupted, "signal"),
        (ended.unknown, "cannot be told"),
    ];
    let said: Vec<String> = named
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{what} {}", count(*n)))
        .collect();
    if said.is_empty() {
        "nothing yet".to_owned()
    } else {
        said.join(", ")
    }
}
