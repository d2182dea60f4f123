//! Time: the run queue and the CPU, against the kernel's own count of both.

use std::collections::BTreeMap;
use std::fs;
use std::thread::available_parallelism;

use tracer::report::model::Report;

use super::support::quota::Quota;
use super::support::{Ctrace, Workload, can_trace, until, workload::Truth};

/// The kernel's count for one thread: `/proc/PID/task/TID/schedstat`, in ns.
#[derive(Clone, Copy, Default)]
struct Schedstat {
    running: u64,
    run_delay: u64,
}

/// By thread.
fn schedstats(pid: u32) -> BTreeMap<u32, Schedstat> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let stats = tasks.map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
        let stat = Schedstat {
            running: numbers.next().unwrap(),
            run_delay: numbers.next().unwrap(),
        };
        (task.file_name().to_str().unwrap().parse().unwrap(), stat)
    });
    stats.collect()
}

/// What the threads gained between two readings.
fn gained(before: &BTreeMap<u32, Schedstat>, after: &BTreeMap<u32, Schedstat>) -> BTreeMap<u32, Schedstat> {
    let gain = |(tid, after): (&u32, &Schedstat)| {
        let before = before.get(tid).copied().unwrap_or_default();
        let running = after.running - before.running;
        (
            *tid,
            Schedstat {
                running,
                run_delay: after.run_delay - before.run_delay,
            },
        )
    };
    after.iter().map(gain).collect()
}

/// Of all threads.
fn sum(stats: &BTreeMap<u32, Schedstat>) -> Schedstat {
    stats.values().fold(Schedstat::default(), |sum, stat| Schedstat {
        running: sum.running + stat.running,
        run_delay: sum.run_delay + stat.run_delay,
    })
}

fn assert_within(what: &str, percent: f64, seen: u64, truth: u64) {
    let error = (seen as f64 - truth as f64).abs() / truth as f64 * 100.0;
    println!("{what}: ctrace {seen} ns, kernel {truth} ns, {error:.2} % off");
    assert!(
        error <= percent,
        "{what}: ctrace {seen} ns, kernel {truth} ns: {error:.2} % off"
    );
}

/// Whether `seen` is within 2 % of the truth, and what `slack` allows besides.
fn is_near(what: &str, seen: u64, truth: u64, whose: &str, slack: u64) -> bool {
    let off = seen.abs_diff(truth);
    let percent = off as f64 / truth as f64 * 100.0;
    println!("{what}: ctrace {seen} ns, {whose} {truth} ns, {percent:.2} % off, slack {slack} ns");
    off <= truth / 50 + slack
}

/// What the threads gained by the kernel's account, and how long each was kept from a CPU by its own clocks.
type Accounts = (BTreeMap<u32, Schedstat>, Truth);

/// Traces threads that spin until the kernel has counted `enough` of them. They sleep at both readings of the
/// kernel's count, so what it counted in between is what `ctrace` must have seen.
fn spin(
    threads: usize,
    place: impl FnOnce(u32),
    enough: impl Fn(Schedstat) -> bool,
) -> Option<(Report, Accounts)> {
    let mut workload = Workload::start("spin.c", &[&threads.to_string()])?;
    place(workload.pid);
    let ctrace = Ctrace::attach(workload.pid);
    let pid = workload.pid;
    let before = schedstats(pid);
    workload.tell("go");
    workload.expect("spinning", |line| line == "spinning");
    until("enough spinning", || {
        enough(sum(&gained(&before, &schedstats(pid))))
    });
    workload.tell("stop");
    let own = workload.finish();
    let truth = gained(&before, &schedstats(pid));
    let report = ctrace.interrupted();
    workload.quit();
    Some((report, (truth, own)))
}

/// Thread by thread, against the kernel's account and the thread's own clocks, and the running time in total.
fn assert_run_queue(report: &Report, (kernel, own): &Accounts) {
    let run_queue = report.run_queue.as_ref().unwrap();
    let Schedstat {
        running,
        run_delay: delay,
    } = sum(kernel);
    assert_within("running", 2.0, report.time.as_ref().unwrap().running_ns, running);
    // Threads that matter; the main thread only waits, a few microseconds in all. Two truths: when the host stops this machine for
    // a moment, the scheduler's clock goes on and the monotonic one, which ctrace and the threads read, does not (seen once: 213 ms).
    // The threads' clocks begin a moment before they are woken, which may be one delay.
    let (mut checked, mut own_total, mut slack_total) = (0, 0, 0);
    for (tid, stat) in kernel.iter().filter(|(_, stat)| stat.run_delay > delay / 100) {
        let row = run_queue.by_thread.iter().find(|row| row.tid == *tid);
        let row = row.unwrap_or_else(|| panic!("thread {tid} is missing from run_queue.by_thread"));
        let (what, seen) = (format!("run queue of thread {tid}"), row.hist.total_ns);
        let kernels = is_near(&what, seen, stat.run_delay, "kernel", 0);
        // The main thread may be kept waiting too, but does not spin.
        let Some(own) = own.find(&format!("off_cpu_{tid}")) else {
            assert!(kernels, "{what}");
            continue;
        };
        let owns = is_near(&what, seen, own, "its own clocks", row.hist.max_ns);
        assert!(
            kernels || owns,
            "{what}: {seen} ns, kernel {}, own {own}",
            stat.run_delay
        );
        own_total += own;
        slack_total += row.hist.max_ns;
        checked += 1;
    }
    let seen = run_queue.hist.total_ns;
    let kernels = is_near("run queue", seen, delay, "kernel", 0);
    let owns = is_near("run queue", seen, own_total, "the threads' clocks", slack_total);
    assert!(
        kernels || owns,
        "run queue: {seen} ns, kernel {delay}, own {own_total}"
    );
    assert!(checked > 0);
}

fn oversubscribed(times: usize) {
    let Some(_turn) = can_trace() else { return };
    let cpus = available_parallelism().unwrap().get();
    // Seconds in which every other thread waits while one runs.
    let enough = (times - 1) as u64 * cpus as u64 * 3_000_000_000;
    let Some((report, truth)) = spin(cpus * times, |_| (), |sum| sum.run_delay >= enough) else {
        return;
    };
    assert_run_queue(&report, &truth);
    assert!(
        report.run_queue.unwrap().preempted > 0,
        "spinning threads lose the CPU, they do not give it up"
    );
}

/// Twice as many spinning threads as CPUs.
#[test]
fn run_queue_is_the_kernels_at_two_threads_a_cpu() {
    oversubscribed(2);
}

/// Eight times as many.
#[test]
fn run_queue_is_the_kernels_at_eight_threads_a_cpu() {
    oversubscribed(8);
}

/// One thread that only computes: the time it ran is the kernel's count.
#[test]
fn computing_is_running_time() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, (truth, _))) = spin(1, |_| (), |sum| sum.running >= 2_000_000_000) else {
        return;
    };
    assert_within(
        "running",
        2.0,
        report.time.unwrap().running_ns,
        sum(&truth).running,
    );
}

/// A quota makes threads wait that nobody competes with: the run queue still agrees with the kernel, and the
/// report says how much of it was the quota.
#[test]
fn quota_is_named_as_the_cause() {
    let Some(_turn) = can_trace() else { return };
    let Some(quota) = Quota::new(10_000) else { return };
    let cpus = available_parallelism().unwrap().get();
    let spun = spin(cpus, |pid| quota.put(pid), |_| quota.stat("nr_throttled ") >= 23);
    let Some((report, truth)) = spun else { return };
    assert_run_queue(&report, &truth);
    let run_queue = report.run_queue.unwrap();
    // The cgroup is new, so its count began with the process.
    assert_within(
        "throttled",
        10.0,
        run_queue.throttled_ns.unwrap(),
        quota.stat("throttled_time "),
    );
    assert!(run_queue.throttled_periods.unwrap() >= 20);
}

/// What tracing costs a process that is not traced: printed for the record, since a shared machine's timing
/// proves nothing.
#[test]
fn bystander_cost_is_printed() {
    let Some(_turn) = can_trace() else { return };
    let Some(target) = Workload::start("pool.c", &[]) else {
        return;
    };
    let Some(mut bystander) = Workload::start("syscall_loop.c", &[]) else {
        return;
    };
    let without = bystander.go().get("calls_per_second");
    let ctrace = Ctrace::attach(target.pid);
    let with = bystander.go().get("calls_per_second");
    ctrace.interrupted();
    println!(
        "bystander: {without} calls/s alone, {with} beside ctrace: {:.3}",
        with as f64 / without as f64
    );
    bystander.quit();
}
