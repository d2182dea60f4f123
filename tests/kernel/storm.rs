//! Threads by the thousand: a correct report, and memory that does not grow with them.

use tracer::report::model::Report;

use super::support::{Ctrace, Workload, can_trace};

/// No workload here justifies more resident memory of `ctrace` than this.
const RSS_LIMIT: u64 = 200 << 20;

fn assert_bounded(report: &Report, threads: u64) {
    assert_eq!(report.targets.len(), 1);
    let target = &report.targets[0];
    assert_eq!(u64::from(target.threads), threads);
    assert!(!target.exited);
    let rss = report.overhead.rss_bytes;
    println!("rss {} MiB, losses {:?}", rss >> 20, report.losses);
    assert!(rss > 0 && rss < RSS_LIMIT, "{} MiB resident", rss >> 20);
}

/// 2,000 threads, all asleep at attach, each woken twice.
#[test]
fn two_thousand_threads() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("storm.c", &["hold", "2000"]) else {
        return;
    };
    let ctrace = Ctrace::attach(workload.pid);
    let truth = workload.go();
    let report = ctrace.interrupted();
    workload.quit();
    assert_bounded(&report, truth.get("threads"));
    // The sleep that ended first began before we looked; the second is whole.
    let sleeps: u64 = report.blocked.iter().flatten().map(|row| row.count).sum();
    assert!(sleeps >= 2000, "{sleeps} sleeps of 2,000 threads");
}

/// 20,000 threads in ten seconds: made, gone, and forgotten.
#[test]
fn twenty_thousand_threads_come_and_go() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("storm.c", &["churn", "20000", "10"]) else {
        return;
    };
    let ctrace = Ctrace::attach(workload.pid);
    assert_eq!(workload.go().get("created"), 20_000);
    let report = ctrace.interrupted();
    workload.quit();
    assert_bounded(&report, 1);
    // A new thread is runnable before it first runs: a delay each, however short.
    let (window, queued) = (report.window.duration_ns, report.run_queue.unwrap().hist);
    // Whoever comes after a thread that ended waited no longer than we looked.
    assert!(queued.max_ns <= window, "{} ns of {window}", queued.max_ns);
    let delays = queued.count;
    assert!(delays >= 20_000, "{delays} run-queue delays of 20,000 threads");
}
