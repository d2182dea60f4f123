//! Descriptors: every way to make one, with a leaking and a clean caller each.

use tracer::report::model::FdKind;

use super::support::stacks::fds_made_in;
use super::support::{Ctrace, Workload, can_trace, process::Process};

/// Kinds of descriptor that a call makes; empty for a call whose kind follows from its argument.
fn kinds(call: &str) -> &'static [FdKind] {
    match call {
        // What it takes from the other process is a file there.
        "pidfd_getfd" => &[FdKind::File],
        c if c.contains("pidfd") => &[FdKind::Pidfd],
        c if c.contains("memfd") => &[FdKind::Memfd],
        c if c.contains("timerfd") => &[FdKind::Timerfd],
        c if c.contains("signalfd") => &[FdKind::Signalfd],
        c if c.contains("eventfd") => &[FdKind::Eventfd],
        c if c.contains("epoll") => &[FdKind::Epoll],
        c if c.contains("inotify") => &[FdKind::Inotify],
        c if c.contains("fanotify") => &[FdKind::Fanotify],
        c if c.contains("userfaultfd") => &[FdKind::Userfaultfd],
        "io_uring_setup" => &[FdKind::IoUring],
        c if c.contains("perf_event") => &[FdKind::PerfEvent],
        c if c.starts_with("bpf") => &[FdKind::Bpf],
        c if c.starts_with("mq_") => &[FdKind::Mqueue],
        c if c.starts_with("fsopen") || c.starts_with("fsmount") => &[FdKind::Mount],
        "socket" | "socketpair" | "accept" | "accept4" => &[FdKind::Socket],
        "pipe" | "pipe2" => &[FdKind::Pipe],
        "open" | "openat" | "openat2" | "creat" => &[FdKind::File],
        _ => &[],
    }
}

/// Calls that make two descriptors.
const PAIRS: [&str; 3] = ["pipe", "pipe2", "socketpair"];

/// Between two births: 17,000 of them in one burst are a test of the ring, not of the calls.
const PAUSE_US: &str = "100";

/// Each call that this kernel supports leaks 23 of 97 in `leak_CALL` and none in `clean_CALL`; the report must
/// say just that, by stack and by kind. Prints the whole table before it judges.
#[test]
fn every_birth_is_seen_and_leaks_are_told_from_churn() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut command) = Workload::command("fdbirths.c", &["all", PAUSE_US]) else {
        return;
    };
    let mut process = Process::start(&mut command);
    let ctrace = Ctrace::attach(process.pid());
    process.tell("go");
    let done = process.stdout.wait("done", |line| line == "done");
    done.unwrap_or_else(|why| panic!("{why}\nstderr: {:?}", process.stderr.all()));
    let report = ctrace.interrupted();
    process.tell("quit");

    // Nobody asks for anything but in a Go program.
    let asked = report.fds.iter().flat_map(|fds| &fds.by_stack);
    assert_eq!(asked.filter(|row| !row.asked_by.is_empty()).count(), 0);
    let mut wrong = Vec::new();
    let mut judged = 0;
    println!(
        "{:<24} {:>22} {:>7} {:>7} {:>7}  kinds",
        "call", "result", "opened", "closed", "live"
    );
    for line in process.stdout.all() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (call, opened, closed) = match words[..] {
            [call, "unsupported", errno] => {
                println!("{call:<24} {:>22}", format!("unsupported ({errno})"));
                continue;
            }
            [call, "ok", opened, closed] => (call, opened.parse().unwrap(), closed.parse().unwrap()),
            _ => continue,
        };
        judged += 1;
        let (mut seen, mut of_kind) = ((0, 0, 0), 0);
        let mut seen_kinds = Vec::new();
        for row in fds_made_in(&report, &[&format!("leak_{call}")]) {
            seen = (seen.0 + row.opened, seen.1 + row.closed, seen.2 + row.live);
            of_kind += kinds(call)
                .iter()
                .filter_map(|kind| row.kinds.get(kind))
                .sum::<u64>();
            seen_kinds.extend(row.kinds.iter());
        }
        let clean: u64 = fds_made_in(&report, &[&format!("clean_{call}")])
            .iter()
            .map(|row| row.live)
            .sum();
        // A pair counts twice, and the second end of each is closed at once.
        let truth = if PAIRS.contains(&call) {
            (194, 171)
        } else {
            (97, 74)
        };
        let right = seen == (opened, closed, opened - closed)
            && (opened, closed) == truth
            && clean == 0
            && (kinds(call).is_empty() || of_kind > 0);
        let result = if right { "ok" } else { "WRONG" };
        println!(
            "{call:<24} {result:>22} {:>7} {:>7} {:>7}  {seen_kinds:?}",
            seen.0, seen.1, seen.2
        );
        if !right {
            wrong.push(format!(
                "{call}: opened, closed, live {seen:?}, {seen_kinds:?}, clean twin holds {clean}"
            ));
        }
    }
    assert!(judged > 0, "the workload reported no call");
    assert!(wrong.is_empty(), "{} of {judged} calls: {wrong:#?}", wrong.len());
    assert!(report.losses.complete, "{:?}", report.losses);
}
