//! What runs on the CPUs, by samples, against the programs' own clocks.

use tempfile::TempDir;
use tracer::report::model::{Cpu, Report, Severity};

use super::support::stacks::stack_contains;
use super::support::workload::Truth;
use super::support::{Ctrace, Workload, can_trace, go, go_workload};

fn traced(args: &[&str]) -> Option<(Report, Truth)> {
    Some(Workload::start("burn.c", args)?.traced(&[]))
}

fn cpu(report: &Report) -> &Cpu {
    report.cpu.as_ref().unwrap()
}

/// Samples whose stack has these functions, in this order, the first at the leaf or above it.
fn samples(report: &Report, functions: &[&str]) -> u64 {
    let rows = cpu(report).by_stack.iter();
    rows.filter(|row| stack_contains(report, row.stack.as_deref(), functions))
        .map(|row| row.samples)
        .sum()
}

/// How far a share of `of` samples may be from the truth: five standard errors.
fn error(share: f64, of: u64) -> f64 {
    5.0 * (share * (1.0 - share) / of as f64).sqrt()
}

/// All samples are those of the program's time, and each function has its part of them, below who called it.
fn judge(report: &Report, truth: &Truth, chains: [&[&str]; 2]) {
    let cpu = cpu(report);
    let expected = truth.get("cpu_ns") as f64 / 1e9 * f64::from(cpu.hz);
    println!("{} samples, {expected:.0} expected", cpu.samples);
    // A clock that fires late on a busy machine fires once for two ticks.
    assert!(cpu.samples as f64 <= expected * 1.1 + 5.0);
    assert!(cpu.samples as f64 >= expected * 0.5);
    let part = truth.get("most_ns") as f64 / truth.get("cpu_ns") as f64;
    let [most, rest] = chains.map(|chain| samples(report, chain));
    let share = most as f64 / cpu.samples as f64;
    println!("{share:.3} by samples, {part:.3} by its own clock");
    assert!((share - part).abs() <= error(part, cpu.samples) + 0.02);
    // The rest is between the calls: clocks that are read, and what starts and ends the program's work.
    assert!(
        (most + rest) as f64 >= cpu.samples as f64 * 0.95,
        "{most} + {rest}"
    );
}

#[test]
fn functions_that_compute_have_their_share() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, truth)) = traced(&["burn", "2", "4000"]) else {
        return;
    };
    judge(
        &report,
        &truth,
        [
            &["price_one", "price_all", "burn_main"],
            &["log_one", "price_all", "burn_main"],
        ],
    );
    let in_kernel: u64 = cpu(&report).by_stack.iter().map(|row| row.in_kernel).sum();
    assert!(
        in_kernel * 10 <= cpu(&report).samples,
        "{in_kernel} in the kernel"
    );
    let probe = report
        .probes
        .iter()
        .find(|probe| probe.name == "cpu_tick")
        .unwrap();
    assert_eq!(probe.attach, "perf");
}

/// It is said of a thread that runs all the time, and of which function of it.
#[test]
fn a_thread_that_never_waits_is_named() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut workload) = Workload::start("burn.c", &["burn", "1", "60000"]) else {
        return;
    };
    workload.tell("go");
    let (report, _) = Ctrace::start(&["--pid", &workload.pid.to_string(), "--duration", "4s"]).wait_report();
    workload.kill();
    let found = report.findings.iter().find(|finding| finding.id == "cpu.bound");
    let found = found.unwrap_or_else(|| panic!("{:#?}", report.time));
    println!("{}\n{}", found.title, found.detail);
    assert_eq!(found.severity, Severity::Info);
    assert!(found.title.starts_with("price_one is what runs"), "{found:#?}");
    assert!(found.detail.contains("in log_one"), "{found:#?}");
    assert!(!report.findings.iter().any(|finding| finding.id == "cpu.spin"));
}

/// A Go function without a frame of its own does not hide who called it, whether there are unwind rules or not.
#[test]
fn go_functions_that_compute_have_their_share() {
    let Some(_turn) = can_trace() else { return };
    for (version, args) in [
        ("system", &[][..]),
        (go::VERSIONS[0], &["-ldflags=-s -w"]),
        (go::VERSIONS[3], &["-ldflags=-s -w"]),
    ] {
        let folder = TempDir::new().unwrap();
        let Some(program) = go_workload::built("goburn", version, args, folder.path()) else {
            continue;
        };
        let (report, truth) = go_workload::traced(&program, &["5000"], &[]);
        println!("Go {version} {args:?}");
        judge(
            &report,
            &truth,
            [&["priceOne", "priceAll", "main"], &["logOne", "priceAll", "main"]],
        );
    }
}

#[test]
fn time_in_the_kernel_is_told() {
    let Some(_turn) = can_trace() else { return };
    let Some((report, _)) = traced(&["read", "1", "3000"]) else {
        return;
    };
    let rows = cpu(&report).by_stack.iter();
    let (mut all, mut in_kernel) = (0, 0);
    for row in rows.filter(|row| stack_contains(&report, row.stack.as_deref(), &["read_zeros", "burn_main"]))
    {
        all += row.samples;
        in_kernel += row.in_kernel;
    }
    println!("{in_kernel} of {all} in the kernel");
    assert!(all * 10 >= cpu(&report).samples * 9);
    assert!(in_kernel * 10 >= all * 9);
}

#[test]
fn who_spins_is_told_and_who_sleeps_is_not() {
    let Some(_turn) = can_trace() else { return };
    for (mode, guilty) in [("spin", "take_turn"), ("yield", "give_way")] {
        // With more of them than CPUs, giving way gives to another one that does.
        let Some((report, _)) = traced(&[mode, "4", "4000"]) else {
            return;
        };
        let found = report.findings.iter().find(|finding| finding.id == "cpu.spin");
        let found = found.unwrap_or_else(|| panic!("{mode}: {:#?}", report.findings));
        println!("{}\n{}", found.title, found.detail);
        assert_eq!(found.severity, Severity::Medium);
        assert!(found.title.starts_with(&format!("{guilty} spins")));
        assert!(stack_contains(
            &report,
            found.stack.as_deref(),
            &[guilty, "burn_main"]
        ));
    }
    let Some((report, _)) = traced(&["wait", "2", "4000"]) else {
        return;
    };
    let spins = report.findings.iter().any(|finding| finding.id == "cpu.spin");
    assert!(!spins, "{:#?}", report.findings);
}

/// A process that is no target is told by its time, and its samples are nobody's.
#[test]
fn who_else_runs_is_told() {
    let Some(_turn) = can_trace() else { return };
    let Some(mut other) = Workload::start("burn.c", &["burn", "1", "3000"]) else {
        return;
    };
    let Some(target) = Workload::start("burn.c", &["burn", "1", "1"]) else {
        return;
    };
    let ctrace = Ctrace::attach(target.pid);
    let truth = other.go();
    let report = ctrace.interrupted();
    let row = cpu(&report).others.iter().find(|row| row.pid == other.pid);
    let row = row.unwrap_or_else(|| panic!("{:#?}", cpu(&report).others));
    assert_eq!(row.comm, "burn-c");
    let ratio = row.cpu_ns as f64 / truth.get("cpu_ns") as f64;
    println!("{ratio:.2} of its time");
    assert!((0.5..1.15).contains(&ratio), "{ratio}");
    let stacks = &cpu(&report).by_stack;
    assert!(stacks.iter().all(|row| row.pid == target.pid), "{stacks:#?}");
    other.quit();
    target.quit();
}
