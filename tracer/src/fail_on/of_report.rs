//! Metrics of a report. Of several locks, pools or Go programs, the largest value counts, and the condition says whose it is.

use super::{Measured, Metric, Source, Unit, rank};
use crate::report::model::{Fds, Go, GoGc, Hist, Lock, Report, RunQueue, Verdict};

/// All of them.
pub(super) const METRICS: &[Metric] = &[
    metric(
        "finding",
        Unit::Severity,
        "severity of the worst finding: `finding>=high`",
        finding,
    ),
    metric("findings", Unit::Number, "number of findings", |report| {
        Measured::Known(report.findings.len() as f64, String::new())
    }),
    metric("deadlocks", Unit::Number, "deadlocks", |report| {
        let looked = report.options.only.iter().any(|only| only == "locks");
        known(looked.then_some(report.deadlocks.len() as f64), NO_LOCKS)
    }),
    metric(
        "lock.p50",
        Unit::Time,
        "longest median wait of a lock that threads take turns at, as in all lock.*",
        |report| lock(report, |lock| lock.wait.p50_ns as f64),
    ),
    metric("lock.p90", Unit::Time, "the same, 90th percentile", |report| {
        lock(report, |lock| lock.wait.p90_ns as f64)
    }),
    metric("lock.p99", Unit::Time, "the same, 99th percentile", |report| {
        lock(report, |lock| lock.wait.p99_ns as f64)
    }),
    metric("lock.p999", Unit::Time, "the same, 99.9th percentile", |report| {
        lock(report, |lock| lock.wait.p999_ns as f64)
    }),
    metric("lock.max", Unit::Time, "longest wait for a lock", |report| {
        lock(report, |lock| lock.wait.max_ns as f64)
    }),
    metric("lock.waits", Unit::Number, "most waits for one lock", |report| {
        lock(report, |lock| lock.waits as f64)
    }),
    metric(
        "lock.waits_per_s",
        Unit::Number,
        "the same per second",
        |report| {
            let Some(seconds) = seconds(report) else {
                return Measured::Unknown(SHORT);
            };
            largest(report, |lock| lock.waits as f64 / seconds)
        },
    ),
    metric(
        "lock.time_per_s",
        Unit::Time,
        "most time waited for one lock, of all threads together, per second",
        |report| {
            let Some(seconds) = seconds(report) else {
                return Measured::Unknown(SHORT);
            };
            largest(report, |lock| lock.wait.total_ns as f64 / seconds)
        },
    ),
    metric(
        "runqueue.p50",
        Unit::Time,
        "time runnable without a CPU, median",
        |report| run_queue(report, |queue| queue.hist.p50_ns),
    ),
    metric(
        "runqueue.p90",
        Unit::Time,
        "the same, 90th percentile",
        |report| run_queue(report, |queue| queue.hist.p90_ns),
    ),
    metric(
        "runqueue.p99",
        Unit::Time,
        "the same, 99th percentile",
        |report| run_queue(report, |queue| queue.hist.p99_ns),
    ),
    metric(
        "runqueue.p999",
        Unit::Time,
        "the same, 99.9th percentile",
        |report| run_queue(report, |queue| queue.hist.p999_ns),
    ),
    metric(
        "runqueue.max",
        Unit::Time,
        "longest time runnable without a CPU",
        |report| run_queue(report, |queue| queue.hist.max_ns),
    ),
    metric(
        "runqueue.throttled",
        Unit::Share,
        "part of the window in which the cgroup's quota held it",
        |report| {
            let throttled = report.run_queue.as_ref().and_then(|queue| queue.throttled_ns);
            let seconds = report.window.duration_ns.max(1) as f64 / 1e9;
            known(
                throttled.map(|ns| ns as f64 / 1e9 / seconds),
                "the run queue was not watched, or the cgroup does not tell",
            )
        },
    ),
    metric("fd.live", Unit::Number, "descriptors open at the end", |report| {
        fds(report, |fds| fds.open_at_end as f64)
    }),
    metric(
        "fd.leaks",
        Unit::Number,
        "findings of leaking descriptors",
        |report| {
            if report.fds.is_none() {
                return Measured::Unknown(NO_FDS);
            }
            leaks(report, "fd.leak")
        },
    ),
    metric(
        "fd.growing",
        Unit::Number,
        "stacks whose descriptors grow, which may be a warm-up",
        |report| fd_verdicts(report, Verdict::Growing),
    ),
    metric(
        "fd.growth_per_s",
        Unit::Number,
        "growth of open descriptors per second, end less start",
        |report| {
            let Some(fds) = &report.fds else {
                return Measured::Unknown(NO_FDS);
            };
            // Of an interval's report the start is that of the trace.
            let window_ns = fds.window_ns.unwrap_or(report.window.duration_ns);
            let grown = fds.open_at_end as f64 - fds.open_at_start as f64;
            let per_s = (window_ns >= WINDOW_MIN_NS).then(|| grown * 1e9 / window_ns as f64);
            known(per_s, SHORT)
        },
    ),
    metric(
        "fd.limit",
        Unit::Share,
        "part of the limit on descriptors that is in use",
        |report| {
            let share = report.fds.as_ref().and_then(|fds| {
                let limit = fds.limit.filter(|&limit| limit > 0)?;
                Some(fds.open_at_end as f64 / limit as f64)
            });
            known(
                share,
                "descriptors were not watched, or their limit could not be read",
            )
        },
    ),
    metric(
        "fd.time_to_limit",
        Unit::Time,
        "time until the limit at the present growth: `fd.time_to_limit<1h`",
        |report| {
            let time = report.fds.as_ref().and_then(|fds| fds.time_to_limit_ns);
            known(
                time.map(|ns| ns as f64),
                "descriptors do not grow, or were not watched",
            )
        },
    ),
    metric("go.goroutines", Unit::Number, "goroutines at the end", |report| {
        go(report, |go| Some(go.goroutines as f64), NO_GO)
    }),
    metric(
        "go.leaks",
        Unit::Number,
        "findings of leaking goroutines",
        |report| {
            if report.go.is_none() {
                return Measured::Unknown(NO_GO);
            }
            leaks(report, "go.leak")
        },
    ),
    metric(
        "gc.pause_p99",
        Unit::Time,
        "pauses of Go's collector, 99th percentile",
        |report| gc(report, |gc| Some(gc.pauses.p99_ns as f64)),
    ),
    metric("gc.pause_max", Unit::Time, "the longest of them", |report| {
        gc(report, |gc| Some(gc.pauses.max_ns as f64))
    }),
    metric(
        "gc.pause_share",
        Unit::Share,
        "part of the window that they take",
        |report| gc(report, |gc| Some(gc.pause_share)),
    ),
    metric(
        "gc.cpu_share",
        Unit::Share,
        "part of its CPUs that the collector takes",
        |report| gc(report, |gc| gc.cpu_share),
    ),
    metric(
        "pool.exhausted",
        Unit::Number,
        "pools of connections that were exhausted",
        |report| {
            let count = |go: &Go| go.pools.iter().filter(|pool| pool.exhausted_samples > 0).count() as f64;
            go(report, |go| Some(count(go)), NO_GO)
        },
    ),
    metric(
        "pool.exhausted_share",
        Unit::Share,
        "part of the window for which one was",
        |report| {
            let share = |go: &Go| {
                go.pools
                    .iter()
                    .map(|pool| pool.exhausted_share)
                    .fold(0.0, f64::max)
            };
            go(report, |go| Some(share(go)), NO_GO)
        },
    ),
    metric(
        "memory.growth_per_s",
        Unit::Bytes,
        "growth of resident memory per second",
        |report| {
            known(
                report.memory.as_ref().map(|memory| memory.growth_bytes_per_s),
                "memory was not measured",
            )
        },
    ),
    metric(
        "losses",
        Unit::Number,
        "records and stacks that were lost",
        losses,
    ),
    metric(
        "overhead",
        Unit::Share,
        "ctrace's own cost, of one CPU",
        |report| {
            let percent = report.overhead.cpu_percent;
            known(
                percent.map(|percent| percent / 100.0),
                "the kernel does not say what the probes cost",
            )
        },
    ),
];

const NO_LOCKS: &str = "locks were not watched";
const NO_FDS: &str = "descriptors were not watched";
const NO_GO: &str = "no Go program was read";

const fn metric(
    name: &'static str,
    unit: Unit,
    help: &'static str,
    measure: fn(&Report) -> Measured,
) -> Metric {
    Metric {
        name,
        unit,
        help,
        source: Source::Report(measure),
    }
}

fn known(value: Option<f64>, why: &'static str) -> Measured {
    value
        .filter(|value| value.is_finite())
        .map_or(Measured::Unknown(why), |value| {
            Measured::Known(value, String::new())
        })
}

/// A rate over less says nothing: one long wait that ends in it would be seconds per second.
const WINDOW_MIN_NS: u64 = 1_000_000_000;
const SHORT: &str = "less than a second was looked at";

/// Length of the window, if it is long enough for a rate.
fn seconds(report: &Report) -> Option<f64> {
    let ns = report.window.duration_ns;
    (ns >= WINDOW_MIN_NS).then(|| ns as f64 / 1e9)
}

fn finding(report: &Report) -> Measured {
    let worst = report.findings.iter().max_by_key(|finding| finding.severity);
    worst.map_or(Measured::Known(0.0, String::new()), |finding| {
        Measured::Known(rank(finding.severity), finding.title.escape_debug().to_string())
    })
}

/// 0 when nothing waited.
fn lock(report: &Report, value: fn(&Lock) -> f64) -> Measured {
    largest(report, value)
}

fn largest(report: &Report, value: impl Fn(&Lock) -> f64) -> Measured {
    let Some(locks) = &report.locks else {
        return Measured::Unknown(NO_LOCKS);
    };
    let busy = locks
        .iter()
        .filter(|lock| !lock.idle && lock.kind.is_contention());
    let worst = busy.max_by(|a, b| value(a).total_cmp(&value(b)));
    worst.map_or(Measured::Known(0.0, String::new()), |lock| {
        let name = lock.name.as_deref().unwrap_or("a lock without a name");
        let name: String = name.chars().take(60).collect();
        Measured::Known(
            value(lock),
            format!("of {} ({})", name.escape_debug(), waits(&lock.wait)),
        )
    })
}

fn waits(hist: &Hist) -> String {
    format!("{} wait{}", hist.count, if hist.count == 1 { "" } else { "s" })
}

fn run_queue(report: &Report, value: fn(&RunQueue) -> u64) -> Measured {
    match &report.run_queue {
        Some(queue) => Measured::Known(value(queue) as f64, waits(&queue.hist)),
        None => Measured::Unknown("the run queue was not watched"),
    }
}

fn fds(report: &Report, value: fn(&Fds) -> f64) -> Measured {
    known(report.fds.as_ref().map(value), NO_FDS)
}

fn fd_verdicts(report: &Report, verdict: Verdict) -> Measured {
    let Some(fds) = &report.fds else {
        return Measured::Unknown(NO_FDS);
    };
    let count = fds.by_stack.iter().filter(|row| row.verdict == verdict).count();
    // Verdicts are withheld then.
    if count == 0 && !report.losses.complete {
        return Measured::Unknown("records were lost, and verdicts are withheld");
    }
    Measured::Known(count as f64, String::new())
}

fn go(report: &Report, value: impl Fn(&Go) -> Option<f64>, why: &'static str) -> Measured {
    let all = report.go.iter().chain(&report.go_others);
    let worst = all
        .filter_map(|go| Some((value(go)?, go.pid)))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    worst.map_or(Measured::Unknown(why), |(value, pid)| {
        Measured::Known(value, format!("of process {pid}"))
    })
}

/// Findings of leaks: what is not sure enough for a finding fails nothing.
fn leaks(report: &Report, id: &str) -> Measured {
    let count = report.findings.iter().filter(|finding| finding.id == id).count();
    if count == 0 && !report.losses.complete {
        return Measured::Unknown("records were lost, and verdicts are withheld");
    }
    let window_ns = report.fds.as_ref().and_then(|fds| fds.window_ns);
    if count == 0 && window_ns.unwrap_or(report.window.duration_ns) < WINDOW_MIN_NS {
        return Measured::Unknown(SHORT);
    }
    Measured::Known(count as f64, String::new())
}

fn gc(report: &Report, value: fn(&GoGc) -> Option<f64>) -> Measured {
    go(
        report,
        |go| value(go.gc.as_ref()?),
        "no Go program was read, or its collector does not tell",
    )
}

fn losses(report: &Report) -> Measured {
    let losses = &report.losses;
    let sum = [
        losses.ring_full,
        losses.fd_ring_full,
        losses.map_full,
        losses.stack_failed,
        losses.stack_pending,
        losses.folded,
        losses.control_truncated,
        losses.user_fault,
        losses.unknown_record,
    ]
    .iter()
    .fold(0_u64, |sum, &count| sum.saturating_add(count));
    Measured::Known(sum as f64, String::new())
}
