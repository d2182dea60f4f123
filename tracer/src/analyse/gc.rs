//! Diagnoses of a Go collector: pauses that are felt, and work that takes the program's CPUs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::report::{
    model::{Finding, GoGc, Hist, Severity},
    units::{count, duration, portion},
};

/// A stop of the world that is felt: Go's own aim is half a millisecond, and many requests take less than ten times that.
const LONG_NS: u64 = 5_000_000;
/// Fewer long ones than this are chance: a thread that got no CPU for once.
const LONG_ONES: u64 = 3;
/// Part of the window in long stops from which one request in a thousand meets one: the 99.9th percentile is theirs.
const P999: f64 = 0.001;
/// From which the 99th is.
const P99: f64 = 0.01;
/// Part of a stop that was spent on bringing threads to a halt, from which that is what to look at.
const HALTING: f64 = 0.5;

/// Part of the program's own CPU time from which collecting is too much: with the default `GOGC`, and a heap of which little is
/// pointers, it is well below a tenth; a quarter of the CPUs is what the runtime takes while it collects.
const MUCH: f64 = 0.25;
/// Part of one CPU that it must take to be worth a word.
const ONE_CPU: f64 = 0.05;
/// Part of all CPUs from which it collects all the time.
const ALWAYS: f64 = 0.2;
/// Part of all CPUs that goroutines spend on helping out before they get memory: time that requests take longer.
const ASSISTS: f64 = 0.05;
/// Collections a second that are many where nothing is known of their CPU time: the heap doubles as often.
const OFTEN: f64 = 20.0;
/// Fewer collections say nothing.
const CYCLES: u64 = 5;

/// Diagnoses of what a collector did in a window in which the program's threads ran for so long.
#[must_use]
pub fn findings(gc: &GoGc, window_ns: u64, running_ns: u64) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(pause(gc, window_ns));
    found.extend(pressure(gc, window_ns, running_ns));
    found
}

/// Samples that are at least so long, and their sum. A bucket that is long only in part counts whole.
fn long(times: &Hist) -> (u64, u64) {
    let buckets = times.buckets.iter().filter(|(upper, _)| *upper >= LONG_NS);
    buckets.fold((0, 0), |(samples, sum), &(upper, n)| {
        (
            samples + n,
            sum.saturating_add(upper.min(times.max_ns).saturating_mul(n)),
        )
    })
}

fn pause(gc: &GoGc, window_ns: u64) -> Option<Finding> {
    // A request meets a stop, not all of a collection's together.
    let stops = gc.stops.as_ref().unwrap_or(&gc.pauses);
    let (long, long_ns) = long(stops);
    let share = long_ns as f64 / window_ns.max(1) as f64;
    if long < LONG_ONES || share < P999 {
        return None;
    }
    let halting = gc
        .stopping
        .as_ref()
        .is_some_and(|stopping| stopping.p99_ns as f64 >= HALTING * stops.p99_ns as f64);
    let remedy = if halting {
        "Most of it is the wait until every thread stands: look at loops that call nothing, long calls that cannot be interrupted, \
         and threads that get no CPU (cpu.starved, cpu.throttled)."
    } else {
        "Look at what the collector does while the world stands: very many goroutines or finalizers, and threads that get no CPU \
         (cpu.starved, cpu.throttled); fewer collections (a higher GOGC with GOMEMLIMIT as its bound) make it rarer."
    };
    Some(Finding {
        id: "gc.pause".into(),
        severity: if share >= P99 {
            Severity::High
        } else {
            Severity::Medium
        },
        confidence: if share >= P99 { 0.9 } else { 0.7 },
        title: format!(
            "the collector stops the program for up to {}: {} stops of {} or more",
            duration(stops.max_ns),
            count(long),
            duration(LONG_NS)
        ),
        detail: format!(
            "{} collections; the world stood for {} in all, {} of the time; p99 of a stop is {}",
            count(gc.cycles),
            duration(gc.pause_total_ns),
            portion(gc.pause_share),
            duration(stops.p99_ns)
        ),
        evidence: evidence(&[
            ("long_stops", json!(long)),
            ("max_ns", json!(stops.max_ns)),
            ("p99_ns", json!(stops.p99_ns)),
            (
                "stopping_p99_ns",
                json!(gc.stopping.as_ref().map(|one| one.p99_ns)),
            ),
            ("pause_total_ns", json!(gc.pause_total_ns)),
            ("pause_share", json!(gc.pause_share)),
            ("cycles", json!(gc.cycles)),
        ]),
        remedy: remedy.into(),
        stack: None,
        lock: None,
    })
}

fn pressure(gc: &GoGc, window_ns: u64, running_ns: u64) -> Option<Finding> {
    let seconds = window_ns.max(1) as f64 / 1e9;
    let rate = gc.cycles as f64 / seconds;
    if gc.cycles < CYCLES {
        return None;
    }
    let assists = gc.assist_share.is_some_and(|share| share >= ASSISTS);
    let (severity, confidence, took) = match gc.cpu_ns {
        Some(cpu_ns) => {
            let own = (cpu_ns as f64 / running_ns.max(1) as f64).min(1.0);
            let of_one = cpu_ns as f64 / window_ns.max(1) as f64;
            if !assists && (own < MUCH || of_one < ONE_CPU) {
                return None;
            }
            let always = gc.cpu_share.is_some_and(|share| share >= ALWAYS);
            let severity = if always || (assists && own >= MUCH) {
                Severity::High
            } else {
                Severity::Medium
            };
            (
                severity,
                0.9,
                format!("takes {} of the program's CPU time", portion(own)),
            )
        }
        None if rate >= OFTEN => (Severity::Medium, 0.5, "runs all the time".to_owned()),
        None => return None,
    };
    let limited = gc.limited == Some(true);
    let asked = gc.forced.is_some_and(|forced| 2 * forced > gc.cycles);
    let remedy = if asked {
        "The program asks for most of the collections itself (runtime.GC, debug.FreeOSMemory): leave them to the runtime."
    } else if limited {
        "The heap is at GOMEMLIMIT: raise the limit, or keep less alive; until then the collector takes what CPU it may."
    } else {
        "Allocate less where it is done most (a heap profile of allocations, not of what is in use, shows where), or let the heap \
         grow further between collections: a higher GOGC, with GOMEMLIMIT as its bound."
    };
    Some(Finding {
        id: "gc.pressure".into(),
        severity,
        confidence,
        title: format!("the collector {took}: {rate:.1} collections/s"),
        detail: format!("{} collections{}{}", count(gc.cycles), heap(gc), help(gc)),
        evidence: evidence(&[
            ("cycles", json!(gc.cycles)),
            ("forced", json!(gc.forced)),
            ("cycles_per_s", json!(rate)),
            ("cpu_ns", json!(gc.cpu_ns)),
            ("cpu_share", json!(gc.cpu_share)),
            ("assist_share", json!(gc.assist_share)),
            ("running_ns", json!(running_ns)),
            ("heap_live_bytes", json!(gc.heap_live_bytes)),
            ("heap_goal_bytes", json!(gc.heap_goal_bytes)),
            ("memory_limit_bytes", json!(gc.memory_limit_bytes)),
        ]),
        remedy: remedy.into(),
        stack: None,
        lock: None,
    })
}

fn heap(gc: &GoGc) -> String {
    match (gc.heap_live_bytes, gc.heap_goal_bytes) {
        (Some(live), Some(goal)) => format!(
            "; {} MB are alive, and at {} MB it collects again",
            live >> 20,
            goal >> 20
        ),
        (Some(live), None) => format!("; {} MB are alive", live >> 20),
        _ => String::new(),
    }
}

fn help(gc: &GoGc) -> String {
    gc.assist_share
        .filter(|&share| share >= ASSISTS / 5.0)
        .map_or_else(String::new, |share| {
            format!(
                "; goroutines that want memory help out, which takes {} of the CPUs and makes requests slower",
                portion(share)
            )
        })
}

fn evidence(entries: &[(&str, Value)]) -> BTreeMap<String, Value> {
    entries
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{aggregate::hist::Histogram, report::hist::hist};

    const SECOND: u64 = 1_000_000_000;

    fn times(list: &[(u64, u64)]) -> Hist {
        let mut times = Histogram::new();
        for &(ns, n) in list {
            times.record_each(ns, n);
        }
        hist(&times)
    }

    /// Ten seconds of a service that collects twice a second, as most do: 1 % of its CPU time, pauses of 0.2 ms.
    fn healthy() -> GoGc {
        GoGc {
            cycles: 20,
            forced: Some(0),
            pauses: times(&[(200_000, 20)]),
            pauses_lost: 0,
            pause_total_ns: 4_000_000,
            pause_share: 0.0004,
            stops: Some(times(&[(100_000, 40)])),
            stopping: Some(times(&[(20_000, 40)])),
            other_stops: Some(times(&[])),
            cpu_ns: Some(SECOND / 10),
            cpu_share: Some(0.005),
            assist_share: Some(0.0),
            heap_live_bytes: Some(16 << 20),
            heap_goal_bytes: Some(32 << 20),
            memory_limit_bytes: None,
            limited: Some(false),
            mutex_wait_ns: Some(0),
            run_queue: None,
        }
    }

    fn found(gc: &GoGc) -> Vec<(String, Severity)> {
        let found = findings(gc, 10 * SECOND, 10 * SECOND).into_iter();
        found.map(|one| (one.id, one.severity)).collect()
    }

    #[test]
    fn of_a_healthy_one_nothing_is_said() {
        assert!(found(&healthy()).is_empty());
        // Idle, with a late thread or two in a window.
        let mut late = healthy();
        late.stops = Some(times(&[(100_000, 38), (LONG_NS + 1, 2)]));
        assert!(found(&late).is_empty());
        // Short pauses, however many: no request feels them.
        let mut many = healthy();
        many.stops = Some(times(&[(400_000, 4_000)]));
        assert!(found(&many).is_empty());
        // Collecting is all that an idle program does.
        let mut idle = healthy();
        idle.cpu_ns = Some(SECOND / 5);
        assert!(findings(&idle, 10 * SECOND, SECOND / 4).is_empty());
    }

    #[test]
    fn long_stops_are_as_bad_as_often_they_are_met() {
        let mut gc = healthy();
        gc.stops = Some(times(&[(100_000, 37), (6_000_000, 3)]));
        assert_eq!(found(&gc), [("gc.pause".into(), Severity::Medium)]);
        gc.stops = Some(times(&[(20_000_000, 23)]));
        assert_eq!(found(&gc), [("gc.pause".into(), Severity::High)]);
        let remedy = |gc: &GoGc| findings(gc, 10 * SECOND, 10 * SECOND).remove(0).remedy;
        assert!(remedy(&gc).contains("GOGC"));
        gc.stopping = Some(times(&[(19_000_000, 23)]));
        assert!(remedy(&gc).contains("every thread stands"));
        // Before Go 1.22 only pauses are known.
        (gc.stops, gc.stopping) = (None, None);
        gc.pauses = times(&[(20_000_000, 23)]);
        assert_eq!(found(&gc).len(), 1);
    }

    #[test]
    fn what_takes_the_cpus_is_told_with_what_drives_it() {
        let mut gc = healthy();
        gc.cycles = 97;
        gc.cpu_ns = Some(3 * SECOND);
        gc.cpu_share = Some(0.15);
        assert_eq!(found(&gc), [("gc.pressure".into(), Severity::Medium)]);
        gc.cpu_share = Some(0.3);
        assert_eq!(found(&gc), [("gc.pressure".into(), Severity::High)]);
        let told = |gc: &GoGc| findings(gc, 10 * SECOND, 10 * SECOND).remove(0);
        assert_eq!(
            told(&gc).title,
            "the collector takes 30 % of the program's CPU time: 9.7 collections/s"
        );
        assert!(told(&gc).remedy.contains("GOGC"));
        gc.limited = Some(true);
        assert!(told(&gc).remedy.contains("at GOMEMLIMIT"));
        gc.forced = Some(90);
        assert!(told(&gc).remedy.contains("runtime.GC"));
    }

    #[test]
    fn assists_count_by_themselves_and_a_rate_where_no_time_is_known() {
        let mut gc = healthy();
        gc.assist_share = Some(0.06);
        assert_eq!(found(&gc), [("gc.pressure".into(), Severity::Medium)]);
        let mut old = healthy();
        (old.cpu_ns, old.cpu_share, old.assist_share) = (None, None, None);
        assert!(found(&old).is_empty());
        old.cycles = 307;
        assert_eq!(found(&old), [("gc.pressure".into(), Severity::Medium)]);
    }
}
