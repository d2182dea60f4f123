//! The CPUs: too few, taken by others, or burnt.

use serde_json::json;

use super::{Facts, SUBJECT, evidence, function};
use crate::{
    analyse::names::Names,
    proc::sched::Throttling,
    report::{
        frames::{cut, without_path},
        model::{Cpu, CpuStack, Finding, RunQueue, Severity, ThreadTime},
        units::{count, duration, percent, plain, share},
    },
};

/// All of it.
pub(super) fn cpus(facts: &Facts<'_>, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    if let Some(run_queue) = facts.run_queue {
        if let Some(throttling) = facts.throttling {
            throttled(throttling, found);
        }
        starved(run_queue, facts, found);
        stolen(facts, found);
    }
    if let Some(cpu) = facts.cpu {
        spinning(cpu, facts, names, found);
        bound(cpu, facts, names, found);
    }
}

/// Share of the quota's periods that ran out, from which it is felt.
const THROTTLED: f64 = 0.05;
/// Periods below which a share says nothing.
const PERIODS: u64 = 5;

/// The time is summed over CPUs and may exceed the window: the share of periods says how often work had to wait.
fn throttled(throttling: Throttling, found: &mut Vec<Finding>) {
    let share = throttling.periods as f64 / throttling.of.max(1) as f64;
    if throttling.of < PERIODS || share < THROTTLED {
        return;
    }
    found.push(Finding {
        id: "cpu.throttled".into(),
        severity: if share >= 0.25 {
            Severity::High
        } else {
            Severity::Medium
        },
        confidence: 1.0,
        title: format!(
            "the cgroup's CPU quota ran out in {:.0} % of its periods",
            share * 100.0
        ),
        detail: format!(
            "tasks were held for {} in {} of {} periods; latency comes from waiting for the next one",
            duration(throttling.ns),
            throttling.periods,
            throttling.of
        ),
        evidence: evidence(&[
            ("throttled_ns", json!(throttling.ns)),
            ("throttled_periods", json!(throttling.periods)),
            ("periods", json!(throttling.of)),
        ]),
        remedy: "Raise the CPU limit, or bound the number of threads to what the quota can run.".into(),
        stack: None,
        lock: None,
    });
}

/// Share of runnable time among running and runnable from which CPUs are short.
const STARVED: f64 = 0.3;
/// Delays shorter than this are the price of starting and waking threads, however many there are.
const FELT_NS: u64 = 1_000_000;

fn starved(run_queue: &RunQueue, facts: &Facts<'_>, found: &mut Vec<Finding>) {
    let (time, window_ns) = (facts.time, facts.window_ns);
    let wanted = time.running_ns + time.runnable_ns;
    let share = time.runnable_ns as f64 / wanted.max(1) as f64;
    // Less than a tenth of one CPU wanted in all is no shortage that anybody feels.
    if share < STARVED
        || wanted < window_ns / 10
        || run_queue.hist.count < 20
        || run_queue.hist.p90_ns < FELT_NS
    {
        return;
    }
    let others = facts.cpu.map(|cpu| Others::of(cpu, facts)).unwrap_or_default();
    let own = time.running_ns as f64 / window_ns.max(1) as f64;
    let crowded = others.cpus > own;
    let mut title = format!(
        "threads that want to run wait for a CPU {:.0} % of that time",
        share * 100.0
    );
    if crowded {
        title = format!("{title}: others use {:.1} of {} CPUs", others.cpus, facts.cpus);
    }
    let mut detail = format!(
        "{} times after losing the CPU, {} times after waking up; of {} CPUs this program used {own:.1}",
        count(run_queue.preempted),
        count(run_queue.woken),
        facts.cpus
    );
    if !others.named.is_empty() {
        detail = format!("{detail}, others {:.1}: {}", others.cpus, others.named);
    }
    found.push(Finding {
        id: "cpu.starved".into(),
        severity: Severity::Medium,
        confidence: 0.9,
        title,
        detail,
        evidence: evidence(&[
            ("runnable_ns", json!(time.runnable_ns)),
            ("running_ns", json!(time.running_ns)),
            ("others_cpus", json!(facts.cpu.map(|_| others.cpus))),
            ("p99_ns", json!(run_queue.hist.p99_ns)),
        ]),
        remedy: if crowded {
            "Move the neighbours away, give this program a larger share (cpu.weight, cpuset), or add CPUs."
                .into()
        } else {
            "The CPUs are oversubscribed: fewer threads, fewer neighbours, or more CPUs.".into()
        },
        stack: None,
        lock: None,
    });
}

/// Other processes named.
const NEIGHBOURS: usize = 3;
/// CPUs that one of them must have used.
const NEIGHBOUR: f64 = 0.1;

/// Who else used the CPUs.
#[derive(Default)]
struct Others {
    /// How many CPUs on average.
    cpus: f64,
    /// Those who used most.
    named: String,
}

impl Others {
    fn of(cpu: &Cpu, facts: &Facts<'_>) -> Self {
        let cpus = |ns: u64| ns as f64 / facts.window_ns.max(1) as f64;
        let named: Vec<String> = cpu
            .others
            .iter()
            .filter(|other| cpus(other.cpu_ns) >= NEIGHBOUR)
            .take(NEIGHBOURS)
            .map(|other| {
                format!(
                    "{} (pid {}) {:.1}",
                    plain(&other.comm),
                    other.pid,
                    cpus(other.cpu_ns)
                )
            })
            .collect();
        Self {
            cpus: cpus(cpu.others.iter().map(|other| other.cpu_ns).sum()),
            named: named.join(", "),
        }
    }
}

/// Part of the host's CPU time taken by the hypervisor from which it is worth a word, and felt.
const STOLEN: f64 = 0.05;
const STOLEN_FELT: f64 = 0.15;

fn stolen(facts: &Facts<'_>, found: &mut Vec<Finding>) {
    let Some(stolen_ns) = facts.time.steal_ns else {
        return;
    };
    let all = facts.window_ns.saturating_mul(u64::from(facts.cpus));
    let part = share(stolen_ns, all);
    if part < STOLEN || facts.time.running_ns + facts.time.runnable_ns < facts.window_ns / 10 {
        return;
    }
    found.push(Finding {
        id: "cpu.stolen".into(),
        severity: if part >= STOLEN_FELT {
            Severity::Medium
        } else {
            Severity::Low
        },
        confidence: 0.9,
        title: format!("the hypervisor takes {} of this host's CPU time", said(part)),
        detail: format!(
            "{} of {} CPUs in {}: a thread stands still meanwhile and seems to run",
            duration(stolen_ns),
            facts.cpus,
            duration(facts.window_ns)
        ),
        evidence: evidence(&[("steal_ns", json!(stolen_ns)), ("share", json!(part))]),
        remedy: "The machine shares its CPUs with others: ask for dedicated ones, or a less crowded host."
            .into(),
        stack: None,
        lock: None,
    });
}

/// A share in ordinary characters.
fn said(share: f64) -> String {
    plain(&percent(share))
}

/// Samples below which no share is told.
const SAMPLES: u64 = 50;
/// CPUs burnt by spinning from which it is felt.
const BURNT: f64 = 0.25;
/// And part of what the program runs.
const SPINS: f64 = 0.2;

fn spinning(cpu: &Cpu, facts: &Facts<'_>, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    let spinning: u64 = cpu.by_stack.iter().map(|row| row.spinning).sum();
    let part = share(spinning, cpu.samples);
    let cpus = part * facts.time.running_ns as f64 / facts.window_ns.max(1) as f64;
    let most = cpu.by_stack.iter().max_by_key(|row| row.spinning);
    let Some(most) = most.filter(|_| cpu.taken >= SAMPLES && part >= SPINS && cpus >= BURNT) else {
        return;
    };
    let name = function(names, most.stack.as_ref());
    let short = cut(without_path(&name), SUBJECT);
    found.push(Finding {
        id: "cpu.spin".into(),
        severity: Severity::Medium,
        confidence: 0.9,
        title: format!("{short} spins: {cpus:.1} CPUs are burnt in waiting"),
        detail: format!(
            "{} of {} samples of running threads are in functions that wait without sleeping, or in sched_yield, {} of them below {name}",
            count(spinning),
            count(cpu.samples),
            said(share(most.spinning, spinning)),
        ),
        evidence: evidence(&[
            ("samples", json!(cpu.samples)),
            ("spinning", json!(spinning)),
            ("cpus", json!(cpus)),
        ]),
        remedy: "Wait where the kernel can help: a mutex, a condition variable or a futex; spin for microseconds at most.".into(),
        stack: most.stack.clone(),
        lock: None,
    });
}

/// Part of the window that a thread wants a CPU from which it is all of its time.
const ALWAYS: f64 = 0.95;

/// Threads that never wait: nothing but their own code makes them slow.
fn bound(cpu: &Cpu, facts: &Facts<'_>, names: &mut Names<'_>, found: &mut Vec<Finding>) {
    let wants = |thread: &ThreadTime| thread.running_ns + thread.runnable_ns;
    let always = |thread: &&ThreadTime| {
        thread.tid.is_some() && wants(thread) as f64 >= ALWAYS * facts.window_ns as f64
    };
    let threads: Vec<&ThreadTime> = facts.time.by_thread.iter().filter(always).collect();
    let Some(first) = threads.iter().max_by_key(|thread| wants(thread)) else {
        return;
    };
    if cpu.taken < SAMPLES {
        return;
    }
    let tops = functions(cpu, names);
    let Some((name, samples, row)) = tops.first() else {
        return;
    };
    let part = share(*samples, cpu.samples);
    let short = cut(without_path(name), SUBJECT);
    let who = match threads.len() {
        1 => format!(
            "thread {} ({})",
            plain(&first.comm),
            first.tid.unwrap_or_default()
        ),
        n => format!("{n} threads"),
    };
    let parts: Vec<String> = tops
        .iter()
        .take(3)
        .map(|(name, samples, _)| format!("{} in {name}", said(share(*samples, cpu.samples))))
        .collect();
    found.push(Finding {
        id: "cpu.bound".into(),
        severity: Severity::Low,
        confidence: 0.9,
        title: format!(
            "{short} is what runs in {} of samples: {who} never waits",
            said(part)
        ),
        detail: format!(
            "{who} ran or wanted to run all the time; of {} samples of all threads {}",
            count(cpu.samples),
            parts.join(", ")
        ),
        evidence: evidence(&[
            ("threads", json!(threads.len())),
            ("samples", json!(cpu.samples)),
            ("share", json!(part)),
        ]),
        remedy:
            "What waits for this thread waits for this code: do less there, or spread it over more threads."
                .into(),
        stack: row.stack.clone(),
        lock: None,
    });
}

/// The application's functions by samples, most first, each with the row that has most of them.
fn functions<'a>(cpu: &'a Cpu, names: &mut Names<'_>) -> Vec<(String, u64, &'a CpuStack)> {
    let mut functions: Vec<(String, u64, &CpuStack)> = Vec::new();
    for row in cpu.by_stack.iter().filter(|row| row.stack.is_some()) {
        let name = function(names, row.stack.as_ref());
        match functions.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, samples, _)) => *samples += row.samples,
            None => functions.push((name, row.samples, row)),
        }
    }
    functions.sort_by_key(|(_, samples, _)| std::cmp::Reverse(*samples));
    functions
}
