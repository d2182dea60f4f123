//! Locks: the table of the first screen, and each with its waiters and wakers.

use super::View;
use super::escape::name;
use super::page::Column;
use super::screen::{kind, word};
use crate::report::model::{Hist, Lock, LockKind, Outcomes, StackKey};
use crate::report::units::{count, counted, distribution, modes, p99_cell, percent, share, tail, time};

/// Stacks of one lock that waited, and that woke or held, at most; fewer for one who does not ask for more.
const STACKS: [usize; 2] = [5, 5];
const FEW_STACKS: [usize; 2] = [3, 2];
/// Of the time of all threads, what a lock is waited for that is worth more than a row of a table.
const WORTH: f64 = 0.01;
/// Locks told of when none is worth it.
const FEW: usize = 3;
/// Columns from which the table of the others has a median.
const WIDE: usize = 100;
/// Of the time waited for the lock, what was then waited for a CPU and is worth a line.
const WORTH_QUEUE: f64 = 0.1;
const NAME: usize = 40;

/// What only goroutines wait for, and tell elsewhere.
pub(super) const fn is_channel(lock: &Lock) -> bool {
    matches!(lock.kind, LockKind::GoChan | LockKind::GoSelect)
}

/// What goroutines wait for, not threads.
pub(super) const fn is_of_goroutines(lock: &Lock) -> bool {
    is_channel(lock)
        || matches!(
            lock.kind,
            LockKind::GoMutex | LockKind::GoRwmutex | LockKind::GoWaitgroup | LockKind::GoCond
        )
}

impl View<'_> {
    /// Locks whose waits are contention, longest total first. Who waits for a channel mostly waits for work: they have a table of
    /// their own. Those that were waited for without an end are told by findings.
    pub(super) fn contended(&self) -> Vec<&Lock> {
        let locks = self.report.locks.as_deref().unwrap_or_default();
        let mut found: Vec<&Lock> = locks
            .iter()
            .filter(|lock| !lock.idle && !is_channel(lock) && lock.waits > 0)
            .collect();
        found.sort_by(|a, b| self.whole_ns(b).total_cmp(&self.whole_ns(a)));
        found
    }

    /// What was seen for a part of the window is as long as it was in that part: to be put in order, not to be told.
    fn whole_ns(&self, lock: &Lock) -> f64 {
        let window_ns = self.report.window.duration_ns as f64;
        let part = lock
            .covered_ns
            .map(|covered_ns| window_ns / covered_ns.max(1) as f64);
        lock.wait.total_ns as f64 * part.unwrap_or(1.0)
    }

    /// For how long its waits were seen, where that was not all the time.
    fn seen(&self, lock: &Lock) -> String {
        lock.covered_ns.map_or_else(String::new, |covered_ns| {
            let window = time(self.report.window.duration_ns);
            format!(", seen for {} of {window}", time(covered_ns))
        })
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
            format!(", taken at least {} of the time", percent(held))
        });
        format!("waits in {waiter} → woken by {waker}{held}{}", self.seen(lock))
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
        let detailed = self.detailed_locks();
        for lock in &detailed {
            lines.extend(self.one_lock(lock));
        }
        let listed = contended.iter().take(self.top());
        let others: Vec<&Lock> = listed
            .filter(|lock| !detailed.iter().any(|told| std::ptr::eq(*told, **lock)))
            .copied()
            .collect();
        lines.extend(self.other_locks(&others));
        lines.extend(self.rest(2, contended.len(), self.top(), "lock"));
        lines.extend(self.idle_lines());
        lines
    }

    /// Those of the contended locks that are told of with their stacks.
    pub(super) fn detailed_locks(&self) -> Vec<&Lock> {
        let mut listed = self.contended();
        listed.truncate(self.top());
        if self.options.verbose {
            return listed;
        }
        let all = self.thread_time_ns();
        let worth = |lock: &&&Lock| share(self.whole_ns(lock) as u64, all) >= WORTH;
        // They come longest first.
        match listed.iter().filter(worth).count() {
            0 => listed.truncate(FEW),
            n => listed.truncate(n),
        }
        listed
    }

    /// A row for each, with its exact counts.
    fn other_locks(&self, locks: &[&Lock]) -> Vec<String> {
        if locks.is_empty() {
            return Vec::new();
        }
        let columns = [
            Column::Text(""),
            Column::Text("kind"),
            Column::Number("waits"),
            Column::Number("total"),
            Column::Number("p50"),
            Column::Number("p99"),
            Column::Number("max"),
            Column::Number("woken"),
            Column::Number("time-out"),
            Column::Number("signal"),
            Column::Number("unknown"),
        ];
        let row = |lock: &&Lock| {
            let (wait, ended) = (&lock.wait, &lock.outcomes);
            let some = |n: u64| if n > 0 { count(n) } else { String::new() };
            // What does not fit beside the outcomes is the least of the numbers.
            let p50 = if self.page.width < WIDE {
                String::new()
            } else {
                time(wait.p50_ns)
            };
            vec![
                self.label(lock),
                kind(lock.kind),
                count(lock.waits),
                time(wait.total_ns),
                p50,
                time(wait.p99_ns),
                time(wait.max_ns),
                some(ended.handed_over),
                some(ended.timed_out),
                some(ended.interrupted),
                some(ended.unknown),
            ]
        };
        let rows: Vec<Vec<String>> = locks.iter().map(row).collect();
        self.page.table("Other locks", &columns, &rows)
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
            "{}, {total} blocked{}: {}",
            counted(lock.waits, "wait"),
            self.seen(lock),
            self.spread(&lock.wait)
        );
        lines.extend(self.page.wrap(4, &wait));
        if let Some(populations) = modes(&lock.wait.modes) {
            lines.extend(self.page.wrap(4, &populations));
        }
        let queued = share(lock.run_queue.total_ns, lock.wait.total_ns);
        if lock.run_queue.count > 0 && (self.options.verbose || queued >= WORTH_QUEUE) {
            lines.extend(
                self.page
                    .wrap(4, &format!("then for a CPU: {}", self.spread(&lock.run_queue))),
            );
        }
        if let Some(hold) = &lock.hold {
            let seen = format!(
                "held, {} that were seen: {}",
                counted(hold.count, "time"),
                self.spread(hold)
            );
            lines.extend(self.page.wrap(4, &seen));
        }
        lines.extend(
            self.page
                .wrap(4, &format!("ended by: {}", outcomes(&lock.outcomes))),
        );
        lines.extend(self.lock_stacks(lock));
        lines
    }

    /// A distribution, whole for one who asks for it.
    pub(super) fn spread(&self, hist: &Hist) -> String {
        if self.options.verbose {
            distribution(hist)
        } else {
            tail(hist)
        }
    }

    /// Where it is waited for, who wakes and who holds.
    fn lock_stacks(&self, lock: &Lock) -> Vec<String> {
        let [waiters, others] = if self.options.verbose { STACKS } else { FEW_STACKS };
        let mut lines = Vec::new();
        for row in lock.waiters.iter().take(waiters) {
            let what = counted(row.waits, "wait");
            let heading = format!(
                "waited in, {what}, {}, longest {}",
                time(row.total_ns),
                time(row.max_ns)
            );
            lines.push(self.page.line(4, &heading));
            lines.extend(self.frames(8, row.stack.as_ref()));
        }
        lines.extend(self.rest(4, lock.waiters.len(), waiters, "waiter stack"));
        for row in lock.wakers.iter().take(others) {
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
        lines.extend(self.rest(4, lock.wakers.len(), others, "waker stack"));
        for row in lock.holders.iter().take(others) {
            let state = name(&row.state, 16);
            let why = row
                .reason
                .as_ref()
                .map_or_else(String::new, |why| format!(" ({})", word(why)));
            let last = row.tid;
            let heading = match row.state.as_str() {
                "running" => format!(
                    "held {} without a sleep, last by thread {last}, until",
                    time(row.total_ns)
                ),
                _ => format!(
                    "held {} while {state}{why}, last by thread {last}, in",
                    time(row.total_ns)
                ),
            };
            lines.push(self.page.line(4, &heading));
            lines.extend(self.frames(8, row.stack.as_ref()));
        }
        lines.extend(self.rest(4, lock.holders.len(), others, "holder"));
        lines
    }

    /// One line for each that only idle threads wait on.
    fn idle_lines(&self) -> Vec<String> {
        let locks = self.report.locks.as_deref().unwrap_or_default();
        let idle: Vec<&Lock> = locks
            .iter()
            .filter(|lock| lock.idle && !is_channel(lock))
            .collect();
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
