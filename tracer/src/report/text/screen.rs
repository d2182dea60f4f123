//! The first screen: 24 lines that answer.

use super::View;
use super::escape::{clean, name};
use super::fds::is_suspect;
use super::locks::is_of_goroutines;
use super::page::Tone;
use crate::report::model::{Certainty, DeadlockLink, LockKind, Reason, Target, ThreadTime, Time};
use crate::report::units::{GLUE, bytes, count, counted, p99_cell, percent, share, time};

/// Lines of the first screen.
pub(super) const SCREEN: usize = 24;
/// Threads of a deadlock named there.
const CYCLE: usize = 5;
/// Columns of a label before a line of its own.
pub(super) const LABEL: usize = 11;
/// Of its time, a thread that is called bound by the CPU spends this much running or runnable.
const BUSY: f64 = 0.8;
/// CPUs that such threads must have used or wanted on average, to be worth the word.
const WORTH: f64 = 0.5;
/// Runnable over running from which the process is called short of CPU.
const SHORT: f64 = 0.25;

impl View<'_> {
    /// The lines, and how many findings stand in them.
    pub(super) fn screen(&self) -> (Vec<String>, usize) {
        let mut head = self.header();
        head.extend(self.time());
        head.extend(self.deadlock_lines());
        let findings = self.report.findings.len().min(self.top());
        let suspects = self.suspects().len().min(self.top());
        let locks = self.contended().len().min(self.top());
        // One row of each table with its heading (a lock takes two lines, and a table of suspects has two headings).
        let least = 1 + 2 * locks.min(1) + 1 + 2 * suspects.min(1);
        let per_finding = if self.options.verbose { 3 } else { 2 };

        // What gives way first: the line on goroutines, findings, then causes of loss, then the blank lines.
        let fits = |&(findings, causes, blank, go): &(usize, usize, usize, bool)| {
            let taken = head.len() + self.tail(causes, go).len() + 1 + findings * per_finding + blank;
            taken + least <= SCREEN
        };
        let choices = [
            (3, 3, 4, true),
            (3, 3, 4, false),
            (2, 3, 4, false),
            (1, 3, 4, false),
            (2, 1, 4, false),
            (1, 1, 4, false),
            (1, 1, 0, false),
        ];
        let choices = choices.map(|(most, causes, blank, go)| (most.min(findings), causes, blank, go));
        let (findings, causes, blank, go) = choices.into_iter().find(fits).unwrap_or(choices[6]);

        let tail = self.tail(causes, go);
        let taken = head.len() + tail.len() + 1 + findings * per_finding + blank;
        let spare = SCREEN.saturating_sub(taken + least);
        let more_suspects = suspects
            .saturating_sub(1)
            .min(spare.saturating_sub(2 * locks.saturating_sub(1)).max(spare / 2));
        let more_locks = locks.saturating_sub(1).min((spare - more_suspects) / 2);

        let mut lines = head;
        for section in [
            self.findings(findings),
            self.locks(locks.min(1) + more_locks),
            self.descriptors(suspects.min(1) + more_suspects),
            tail,
        ] {
            if blank > 0 {
                lines.push(String::new());
            }
            lines.extend(section);
        }
        (lines, findings)
    }

    /// The lines below the tables, with so many causes of loss; `go`: with those on goroutines and on what computes.
    fn tail(&self, causes: usize, go: bool) -> Vec<String> {
        let mut lines = if go { self.go_line() } else { Vec::new() };
        let window = self.report.window.duration_ns;
        if go
            && self
                .report
                .time
                .as_ref()
                .is_some_and(|spent| cpu_verdict(spent, window).is_some())
        {
            lines.extend(self.cpu_line());
        }
        lines.extend(self.run_queue_line());
        lines.extend(self.hint_line());
        lines.extend(self.loss_lines(causes));
        lines.extend(self.cost_lines());
        lines
    }

    fn header(&self) -> Vec<String> {
        let window = &self.report.window;
        let who = match self.report.targets.split_first() {
            None => "no process".to_owned(),
            Some((first, [])) => target(first),
            Some((first, rest)) => {
                let threads: u64 = rest.iter().map(|target| u64::from(target.threads)).sum();
                let more = counted(rest.len() as u64, "more process").replace("processs", "processes");
                format!("{} and {more} with {}", target(first), counted(threads, "thread"))
            }
        };
        let when = format!(
            "traced {} from {} on {}",
            time(window.duration_ns),
            name(&window.started_at, 30),
            name(&self.report.host.hostname, 24)
        );
        let mut lines = vec![self.page.heading(&who)];
        lines.push(self.page.line(0, &when));
        lines
    }

    fn time(&self) -> Vec<String> {
        let Some(spent) = &self.report.time else {
            return vec![self.page.heading("Where the time went: not measured")];
        };
        let blocked: u64 = spent.blocked_ns.values().sum();
        let all = spent.running_ns + spent.runnable_ns + blocked;
        let part = |ns: u64| format!("{} ({})", percent(share(ns, all)), time(ns));
        let busy = spent.running_ns as f64 / self.report.window.duration_ns.max(1) as f64;
        let cpus = self.report.host.cpus;
        let verdict = cpu_verdict(spent, self.report.window.duration_ns).unwrap_or_default();
        let title = format!(
            "Where the time went: {verdict}{busy:.2} of {cpus} CPUs busy, {} of thread-time",
            time(all)
        );
        let mut sentence = format!(
            "running {}, runnable {}, blocked {}",
            part(spent.running_ns),
            part(spent.runnable_ns),
            part(blocked)
        );
        let mut reasons: Vec<(Reason, u64)> = spent
            .blocked_ns
            .iter()
            .map(|(&reason, &ns)| (reason, ns))
            .collect();
        reasons.sort_by_key(|&(reason, ns)| (std::cmp::Reverse(ns), reason));
        let idle = self.idle_ns();
        let named: Vec<String> = reasons
            .iter()
            .take(3)
            .filter(|&&(_, ns)| ns > 0)
            .map(|&(reason, ns)| {
                let of_it = if reason == Reason::Futex && idle > 0 {
                    format!(", of it {} idle", percent(share(idle.min(ns), ns)))
                } else {
                    String::new()
                };
                format!("{} {}{of_it}", word(&reason), percent(share(ns, all)))
            })
            .collect();
        if !named.is_empty() {
            sentence = format!("{sentence}: {}", named.join("; "));
        }
        let mut lines = vec![self.page.heading(&title)];
        lines.extend(self.page.wrap(2, &sentence));
        lines
    }

    /// Time of all threads in the window.
    pub(super) fn thread_time_ns(&self) -> u64 {
        let threads: u64 = self
            .report
            .targets
            .iter()
            .map(|target| u64::from(target.threads))
            .sum();
        self.report.time.as_ref().map_or_else(
            || self.report.window.duration_ns * threads.max(1),
            |spent| spent.running_ns + spent.runnable_ns + spent.blocked_ns.values().sum::<u64>(),
        )
    }

    /// Blocked time of threads that is known to be idle; while goroutines wait, their threads do something else.
    fn idle_ns(&self) -> u64 {
        let locks = self.report.locks.as_deref().unwrap_or_default();
        locks
            .iter()
            .filter(|lock| lock.idle && !is_of_goroutines(lock))
            .map(|lock| lock.wait.total_ns)
            .sum()
    }

    fn deadlock_lines(&self) -> Vec<String> {
        let Some(first) = self.report.deadlocks.first() else {
            return Vec::new();
        };
        let who = |link: &DeadlockLink| format!("{} {}", link.tid, self.app(link.stack.as_ref()));
        let mut cycle: Vec<String> = first.cycle.iter().take(CYCLE).map(who).collect();
        if first.cycle.len() > CYCLE {
            cycle.push(format!("{} more", first.cycle.len() - CYCLE));
        }
        cycle.push(
            first
                .cycle
                .first()
                .map_or_else(String::new, |link| link.tid.to_string()),
        );
        let more = match self.report.deadlocks.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let (word, tone) = match first.certainty {
            Certainty::Proven => ("DEADLOCK", Tone::Red),
            Certainty::Probable => ("PROBABLE DEADLOCK", Tone::Yellow),
        };
        let text = format!("{word}: {}{more}", cycle.join(" → "));
        let lines = self.page.wrap(0, &text);
        lines
            .into_iter()
            .map(|line| self.page.paint(tone, &line))
            .collect()
    }

    fn run_queue_line(&self) -> Vec<String> {
        let Some(queue) = &self.report.run_queue else {
            return vec!["Run queue  not traced".to_owned()];
        };
        let throttled = match (queue.throttled_ns, queue.throttled_periods) {
            (None, _) => "throttling unknown".to_owned(),
            (Some(0), _) => "not throttled".to_owned(),
            (Some(ns), None) => format!("throttled {}", time(ns)),
            (Some(ns), Some(periods)) => format!("throttled {} in {}", time(ns), counted(periods, "period")),
        };
        let hist = &queue.hist;
        let delays = |p99: &str| match hist.count {
            0 => "no delays".to_owned(),
            _ => format!("p50 {}, p99 {p99}, max {}", time(hist.p50_ns), time(hist.max_ns)),
        };
        let counts = format!(
            "{} woken, {} preempted",
            count(queue.woken),
            count(queue.preempted)
        );
        // One line if it can be: the counts hold the number of samples, and a zero may go unsaid.
        let (interval, bare) = (delays(&p99_cell(hist)), delays(&time(hist.p99_ns)));
        let choices = [
            format!("{interval}; {throttled}; {counts}"),
            format!("{bare}; {throttled}; {counts}"),
            if queue.throttled_ns == Some(0) {
                format!("{bare}; {counts}")
            } else {
                format!("{bare}; {throttled}; {} preempted", count(queue.preempted))
            },
        ];
        let room = self.page.width - LABEL;
        let fits = choices.iter().find(|text| text.chars().count() <= room);
        self.page
            .labelled(LABEL, "Run queue", fits.unwrap_or(&choices[0]))
    }

    /// What would name more, of the process with most to name.
    fn hint_line(&self) -> Vec<String> {
        let most = self.report.hints.iter().max_by_key(|hint| hint.frames);
        most.map_or_else(Vec::new, |hint| {
            self.page.labelled(LABEL, "Names", &clean(&hint.text))
        })
    }

    fn cost_lines(&self) -> Vec<String> {
        let own = &self.report.overhead;
        let user = time(own.user_cpu_ns);
        let cpu = match own.cpu_percent.zip(own.kernel_ns) {
            Some((percent, probes)) => {
                format!(
                    "{percent:.2}{GLUE}% of one CPU (probes {}, user space {user})",
                    time(probes)
                )
            }
            None => format!("user space {user}, probes unknown"),
        };
        let memory = bytes((own.rss_bytes + own.maps_bytes.unwrap_or(0)) as f64);
        let names = own.symbolize_peak_rss_bytes.map_or_else(String::new, |peak| {
            format!("; {} for the report", bytes(peak as f64))
        });
        let (bare, whole) = (format!("{cpu}, {memory}"), format!("{cpu}, {memory}{names}"));
        let fits = whole.chars().count() <= self.page.width - LABEL;
        let mut lines = self
            .page
            .labelled(LABEL, "Own cost", if fits { &whole } else { &bare });
        lines.extend(self.budget_lines());
        lines.extend(self.go_probes_lines());
        lines
    }

    /// What was left out to hold the cost: without it the numbers above would be misread.
    fn budget_lines(&self) -> Vec<String> {
        let Some(budget) = &self.report.overhead.budget else {
            return Vec::new();
        };
        let mut parts = Vec::new();
        if let Some(percent) = budget.percent {
            parts.push(match (budget.held, budget.cpu_percent) {
                (Some(true), Some(cost)) => format!("{percent}{GLUE}% held at {cost:.2}{GLUE}%"),
                (Some(false), Some(cost)) => format!("{percent}{GLUE}% NOT HELD: {cost:.2}{GLUE}%"),
                _ => format!("{percent}{GLUE}% not measured yet"),
            });
        }
        if budget.min_wait_ns > self.report.options.min_wait_ns {
            parts.push(format!("sleeps under {} left out", time(budget.min_wait_ns)));
        }
        if budget.one_in > 1 {
            parts.push(format!(
                "1 sleep in {} recorded, so waits' counts and totals are estimates",
                count(u64::from(budget.one_in))
            ));
        }
        let lines = self.page.labelled(LABEL, "Budget", &parts.join("; "));
        if budget.held == Some(false) {
            return lines
                .iter()
                .map(|line| self.page.paint(Tone::Yellow, line))
                .collect();
        }
        lines
    }

    fn descriptors(&self, rows: usize) -> Vec<String> {
        let Some(fds) = &self.report.fds else {
            return vec![self.page.line(0, "Descriptors  not traced")];
        };
        let limit = fds.limit.map_or_else(
            || "limit unknown".to_owned(),
            |limit| format!("limit {}", count(limit)),
        );
        let when = fds
            .time_to_limit_ns
            .map_or_else(String::new, |ns| format!(" reached in {}", time(ns)));
        let summary = format!(
            "Descriptors: {} → {} open, {} opened, {} closed, {limit}{when}",
            count(fds.open_at_start),
            count(fds.open_at_end),
            count(fds.opened),
            count(fds.closed)
        );
        let suspects = self.suspects();
        if suspects.is_empty() {
            return vec![self.page.heading(&format!("{summary}; no leak suspects"))];
        }
        let mut lines = vec![self.page.heading(&summary)];
        let shown = rows.min(suspects.len());
        let title = match suspects.len() {
            n if n > shown => format!("Leak suspects ({shown} of {n})"),
            _ => "Leak suspects".to_owned(),
        };
        lines.extend(self.suspect_table(&title, &suspects[..shown]));
        lines
    }

    pub(super) fn suspects(&self) -> Vec<&crate::report::model::FdStack> {
        let rows = self
            .report
            .fds
            .as_ref()
            .map(|fds| fds.by_stack.as_slice())
            .unwrap_or_default();
        rows.iter().filter(|row| is_suspect(row)).collect()
    }
}

/// The report's own word for a variant, with spaces.
pub(super) fn word(of: &impl serde::Serialize) -> String {
    match serde_json::to_value(of) {
        Ok(serde_json::Value::String(text)) => text.replace('_', " "),
        _ => "?".to_owned(),
    }
}

/// The word for a kind of lock that stands in a table.
pub(super) fn kind(kind: LockKind) -> String {
    match kind {
        LockKind::UnknownFutex => "futex".to_owned(),
        kind => word(&kind),
    }
}

fn target(target: &Target) -> String {
    let exited = if target.exited { ", exited" } else { "" };
    format!(
        "{} (pid {}), {}, {}{exited}",
        name(&target.comm, 24),
        target.pid,
        clean(&name(&target.runtime, 16)),
        counted(u64::from(target.threads), "thread")
    )
}

/// `CPU-BOUND …` when threads compute nearly all the time.
fn cpu_verdict(spent: &Time, window_ns: u64) -> Option<String> {
    let on_cpu = |thread: &&ThreadTime| {
        let blocked: u64 = thread.blocked_ns.values().sum();
        let wants = thread.running_ns + thread.runnable_ns;
        share(wants, wants + blocked) >= BUSY && wants > 0
    };
    let threads = |rows: &[&ThreadTime]| -> u64 { rows.iter().map(|row| u64::from(row.threads)).sum() };
    let all: Vec<&ThreadTime> = spent.by_thread.iter().collect();
    let hot: Vec<&ThreadTime> = spent.by_thread.iter().filter(on_cpu).collect();
    let blocked: u64 = spent.blocked_ns.values().sum();
    let wants = spent.running_ns + spent.runnable_ns;
    if hot.is_empty() && (!all.is_empty() || wants == 0 || share(wants, wants + blocked) < BUSY) {
        return None;
    }
    let (running, runnable) = if hot.is_empty() {
        (spent.running_ns, spent.runnable_ns)
    } else {
        let sum = |of: fn(&ThreadTime) -> u64| hot.iter().map(|row| of(row)).sum::<u64>();
        (sum(|row| row.running_ns), sum(|row| row.runnable_ns))
    };
    // A thread that computed for its short life says nothing about the window.
    if ((running + runnable) as f64) < WORTH * window_ns as f64 {
        return None;
    }
    let short = if runnable as f64 >= SHORT * running as f64 {
        " and SHORT OF CPU"
    } else {
        ""
    };
    let who = if all.is_empty() {
        String::new()
    } else {
        format!(" ({} of {} threads)", count(threads(&hot)), count(threads(&all)))
    };
    Some(format!("CPU-BOUND{short}{who}, "))
}
