//! The CPUs: too few, taken by others, or burnt.

use serde_json::json;

use super::{Facts, SUBJECT, evidence};
use crate::{
    analyse::cpu::TELLING,
    proc::sched::Throttling,
    report::{
        frames::{cut, without_path},
        model::{Cpu, Finding, RunQueue, Severity, ThreadTime},
        units::{count, duration, plain, portion, share},
    },
};

/// All of it.
pub(super) fn all(facts: &Facts<'_>, found: &mut Vec<Finding>) {
    if let Some(run_queue) = facts.run_queue {
        if let Some(throttling) = facts.throttling {
            throttled(throttling, found);
        }
        starved(run_queue, facts, found);
        stolen(facts, found);
    }
    if let Some(cpu) = facts.cpu {
        let before = found.len();
        spinning(cpu, facts, found);
        // Who spins never waits, either.
        if found.len() == before {
            bound(cpu, facts, found);
        }
    }
}

/// Why threads that want to run are kept from it, most of the time.
#[derive(Clone, Copy)]
pub(super) enum Shortage {
    /// The cgroup's quota runs out.
    Quota,
    /// Others run.
    Crowd,
}

impl Shortage {
    /// Among these diagnoses.
    pub(super) fn among(found: &[Finding]) -> Option<Self> {
        let is = |id: &str, least| found.iter().any(|one| one.id == id && one.severity >= least);
        if is(THROTTLED, Severity::High) {
            Some(Self::Quota)
        } else {
            is(STARVED, Severity::Medium).then_some(Self::Crowd)
        }
    }

    /// Whether it is that of this process: another target may be held by a quota of its own.
    pub(super) fn is_of(self, pid: u32, facts: &Facts<'_>) -> bool {
        match self {
            Self::Quota => (facts.throttling_of)(pid).is_some_and(|throttling| ran_out(throttling) >= MOSTLY),
            Self::Crowd => true,
        }
    }

    /// The diagnosis.
    pub(super) const fn id(self) -> &'static str {
        match self {
            Self::Quota => THROTTLED,
            Self::Crowd => STARVED,
        }
    }
}

const THROTTLED: &str = "cpu.throttled";
const STARVED: &str = "cpu.starved";

/// Share of the quota's periods that ran out, from which it is felt.
const RAN_OUT: f64 = 0.05;
/// Periods below which a share says nothing.
const PERIODS: u64 = 5;

/// From which it is what is to be seen to first.
const MOSTLY: f64 = 0.25;

/// Share of the periods in which it ran out.
fn ran_out(throttling: Throttling) -> f64 {
    throttling.periods as f64 / throttling.of.max(1) as f64
}

/// The time is summed over CPUs and may exceed the window: the share of periods says how often work had to wait.
fn throttled(throttling: Throttling, found: &mut Vec<Finding>) {
    let share = ran_out(throttling);
    if throttling.of < PERIODS || share < RAN_OUT {
        return;
    }
    found.push(Finding {
        id: THROTTLED.into(),
        severity: if share >= MOSTLY {
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
const SHORT: f64 = 0.3;
/// Delays shorter than this are the price of starting and waking threads, however many there are.
const FELT_NS: u64 = 1_000_000;

fn starved(run_queue: &RunQueue, facts: &Facts<'_>, found: &mut Vec<Finding>) {
    let (time, window_ns) = (facts.time, facts.window_ns);
    let wanted = time.running_ns + time.runnable_ns;
    let share = time.runnable_ns as f64 / wanted.max(1) as f64;
    // Less than a tenth of one CPU wanted in all is no shortage that anybody feels.
    if share < SHORT
        || wanted < window_ns / 10
        || run_queue.hist.count < 20
        || run_queue.hist.p90_ns < FELT_NS
    {
        return;
    }
    let crowd = facts.cpu.and_then(|cpu| Crowd::of(cpu, facts));
    let own = cpus(time.running_ns, facts);
    let mut title = format!(
        "threads that want to run wait for a CPU {:.0} % of that time",
        share * 100.0
    );
    let mut detail = format!(
        "{} times after losing the CPU, {} times after waking up; this program used {own:.1} of {} CPUs",
        count(run_queue.preempted),
        count(run_queue.woken),
        facts.cpus
    );
    if let Some(crowd) = &crowd {
        title = format!("{title}: others use {:.1} of {} CPUs", crowd.cpus, facts.cpus);
        detail = format!("{detail}, others {:.1}{}", crowd.cpus, crowd.named);
    }
    found.push(Finding {
        id: STARVED.into(),
        severity: Severity::Medium,
        confidence: 0.9,
        title,
        detail,
        evidence: evidence(&[
            ("runnable_ns", json!(time.runnable_ns)),
            ("running_ns", json!(time.running_ns)),
            ("others_ns", json!(facts.cpu.map(|cpu| cpu.others_ns))),
            ("p99_ns", json!(run_queue.hist.p99_ns)),
        ]),
        remedy: if crowd.is_some() {
            "Move the neighbours away, give this program a larger share (cpu.weight, cpuset), or add CPUs."
        } else {
            "The CPUs that it may use are oversubscribed: fewer threads, fewer neighbours, or more CPUs."
        }
        .into(),
        stack: None,
        lock: None,
    });
}

/// Time as a number of CPUs that were busy with it all through the window.
fn cpus(ns: u64, facts: &Facts<'_>) -> f64 {
    ns as f64 / facts.window_ns.max(1) as f64
}

/// Of all CPUs, so many must have been busy for others to be in the way: else something else keeps the program from them, such as a quota
/// or a set of CPUs of its own.
const FULL: f64 = 0.85;
/// Other processes named.
const NEIGHBOURS: usize = 3;
/// CPUs that one of them must have used.
const NEIGHBOUR: f64 = 0.1;

/// Others who use more of the CPUs than this program does, and leave none of them.
struct Crowd {
    /// How many CPUs on average.
    cpus: f64,
    /// Those who use most.
    named: String,
}

impl Crowd {
    fn of(cpu: &Cpu, facts: &Facts<'_>) -> Option<Self> {
        let (own, others) = (cpus(facts.time.running_ns, facts), cpus(cpu.others_ns, facts));
        let throttled = facts.throttling.is_some_and(|throttling| throttling.periods > 0);
        if throttled || others <= own || own + others < FULL * f64::from(facts.cpus) {
            return None;
        }
        let named: Vec<String> = cpu
            .others
            .iter()
            .map(|other| (other, cpus(other.cpu_ns, facts)))
            .filter(|(_, used)| *used >= NEIGHBOUR)
            .take(NEIGHBOURS)
            .map(|(other, used)| format!("{} (pid {}) {used:.1}", plain(&other.comm), other.pid))
            .collect();
        let named = if named.is_empty() {
            String::new()
        } else {
            format!(", of it {}", named.join(", "))
        };
        Some(Self { cpus: others, named })
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
        title: format!("the hypervisor takes {} of this host's CPU time", portion(part)),
        detail: format!(
            "{:.2} of {} CPUs on average: a thread stands still meanwhile and seems to run",
            cpus(stolen_ns, facts),
            facts.cpus
        ),
        evidence: evidence(&[("steal_ns", json!(stolen_ns)), ("share", json!(part))]),
        remedy: "The machine shares its CPUs with others, or has used up what it may take: ask for dedicated ones, or for more."
            .into(),
        stack: None,
        lock: None,
    });
}

/// CPUs burnt by spinning from which it is felt.
const BURNT: f64 = 0.25;
/// And part of what the program runs.
const SPINS: f64 = 0.2;

fn spinning(cpu: &Cpu, facts: &Facts<'_>, found: &mut Vec<Finding>) {
    let spinning: u64 = cpu.by_function.iter().map(|row| row.spinning).sum();
    let part = share(spinning, cpu.samples);
    let burnt = part * cpus(facts.time.running_ns, facts);
    let most = cpu.by_function.iter().max_by_key(|row| row.spinning);
    let Some((most, name)) = most.and_then(|most| Some((most, most.function.as_ref()?))) else {
        return;
    };
    if cpu.taken < TELLING || part < SPINS || burnt < BURNT {
        return;
    }
    found.push(Finding {
        id: "cpu.spin".into(),
        severity: Severity::Medium,
        confidence: 0.9,
        title: format!(
            "{} spins: {burnt:.1} CPUs are burnt in waiting",
            cut(without_path(name), SUBJECT)
        ),
        detail: format!(
            "{} of {} samples of running threads are in functions that wait without sleeping, or in sched_yield, {} of them below {name}",
            portion(part),
            count(cpu.taken),
            portion(share(most.spinning, spinning)),
        ),
        evidence: evidence(&[
            ("samples", json!(cpu.samples)),
            ("taken", json!(cpu.taken)),
            ("spinning", json!(spinning)),
            ("cpus", json!(burnt)),
        ]),
        remedy: "Wait where the kernel can help: a mutex, a condition variable or a futex; spin for microseconds at most.".into(),
        stack: most.stack.clone(),
        lock: None,
    });
}

/// Part of the window that a thread wants a CPU from which it is all of its time.
const ALWAYS: f64 = 0.95;

/// The thread that never waits, and has most samples: nothing but its own code makes it slow.
fn bound(cpu: &Cpu, facts: &Facts<'_>, found: &mut Vec<Finding>) {
    let always = |thread: &&ThreadTime| {
        let wants = thread.running_ns + thread.runnable_ns;
        thread.tid.is_some() && wants as f64 >= ALWAYS * facts.window_ns as f64
    };
    let threads: Vec<&ThreadTime> = facts.time.by_thread.iter().filter(always).collect();
    // Of all ticks one in so many was looked at.
    let looked = |samples: u64| share(samples * cpu.taken, cpu.samples);
    let first = cpu.by_thread.iter().find_map(|row| {
        let thread = threads
            .iter()
            .find(|thread| (thread.pid, thread.tid) == (row.pid, Some(row.tid)))?;
        (looked(row.samples) >= TELLING as f64).then_some((row, thread))
    });
    let Some((row, thread)) = first else { return };
    let Some((most, name)) = row
        .by_function
        .first()
        .and_then(|most| Some((most, most.function.as_ref()?)))
    else {
        return;
    };
    let part = share(most.samples, row.samples);
    let who = format!("thread {} ({})", plain(&thread.comm), row.tid);
    let parts: Vec<String> = row
        .by_function
        .iter()
        .map(|of| {
            let name = of.function.as_deref().unwrap_or("code without a name");
            format!("{} in {name}", portion(share(of.samples, row.samples)))
        })
        .collect();
    let more = match threads.len() {
        1 => String::new(),
        n => format!("; so do {} other threads", n - 1),
    };
    found.push(Finding {
        id: "cpu.bound".into(),
        severity: Severity::Info,
        confidence: 0.9,
        title: format!(
            "{} is what runs in {} of the samples of {who}, which never waits",
            cut(without_path(name), SUBJECT),
            portion(part)
        ),
        detail: format!(
            "{who} ran or wanted to run all the time{more}; of its samples {}",
            parts.join(", ")
        ),
        evidence: evidence(&[
            ("threads", json!(threads.len())),
            ("samples", json!(row.samples)),
            ("share", json!(part)),
        ]),
        remedy:
            "What waits for this thread waits for this code: do less there, or spread it over more threads."
                .into(),
        stack: most.stack.clone(),
        lock: None,
    });
}
