//! Findings of a report.

use tracer::report::model::{Finding, Report, Severity};

/// Those that tell of the machine and not of the program: in a test that the machine is busy is the truth.
const OF_MACHINE: [&str; 3] = ["cpu.starved", "cpu.stolen", "cpu.throttled"];

/// What is said of the program.
pub(crate) fn of_program(report: &Report) -> impl Iterator<Item = &Finding> {
    let of_machine = |finding: &&Finding| OF_MACHINE.contains(&&*finding.id);
    report.findings.iter().filter(move |finding| !of_machine(finding))
}

/// Nothing is said of the program that would call anybody.
pub(crate) fn assert_silent(of: &str, report: &Report) {
    let loud: Vec<&Finding> = of_program(report)
        .filter(|finding| finding.severity >= Severity::Medium)
        .collect();
    assert!(loud.is_empty(), "{of}: {loud:#?}");
}
