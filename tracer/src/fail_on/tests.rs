use super::*;
use crate::report::{model::LockKind, sample};

fn one(text: &str) -> Condition {
    let mut conditions = parse(&[text.to_owned()], On::Report).unwrap();
    assert_eq!(conditions.len(), 1);
    conditions.remove(0)
}

#[test]
fn values_are_written_as_in_other_options() {
    let values = [
        ("5ms", Unit::Time, 5e6),
        ("1.5us", Unit::Time, 1500.0),
        ("2 s", Unit::Time, 2e9),
        ("10", Unit::Number, 10.0),
        ("0.5", Unit::Number, 0.5),
        ("3%", Unit::Share, 0.03),
        ("3MB", Unit::Bytes, 3e6),
        ("high", Unit::Severity, 4.0),
    ];
    for (text, unit, value) in values {
        assert!((number(text, unit).unwrap() - value).abs() < 1e-9, "{text}");
    }
    let wrong = [
        ("5", Unit::Time),
        ("ms", Unit::Time),
        ("", Unit::Number),
        ("-1", Unit::Number),
        ("1e3", Unit::Number),
        ("1..2", Unit::Number),
        ("3ms", Unit::Share),
        ("High", Unit::Severity),
        ("inf", Unit::Number),
        ("NaN", Unit::Number),
    ];
    for (text, unit) in wrong {
        assert_eq!(number(text, unit), None, "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_what_is_right() {
    let cases = [
        ("", "such as `lock.p99>5ms`"),
        ("lock.p99", "such as `lock.p99>5ms`"),
        ("lock.p98>5ms", "lock.p50, lock.p90, lock.p99"),
        ("lock.p99>5", "such as 5ms"),
        ("lock.p99!5ms", "operators > >="),
        ("finding>=terrible", "info, low, medium, high or critical"),
        ("fd.leaks>0,", "such as `lock.p99>5ms`"),
        ("a\nb>1", "`a\\nb`"),
        ("worse>0", "choose from finding"),
    ];
    for (text, says) in cases {
        let error = format!("{:#}", parse(&[text.to_owned()], On::Report).unwrap_err());
        assert!(error.contains(says) && !error.contains('\n'), "{text}: {error}");
    }
    assert!(parse(&["lock.p99>5ms".to_owned()], On::Diff).is_err());
    parse(&["worse > 0, improved=0".to_owned()], On::Diff).unwrap();
    let two = parse(
        &["lock.p99>5ms,fd.leaks>0".to_owned(), "finding>=high".to_owned()],
        On::Report,
    );
    assert_eq!(two.unwrap().len(), 3);
}

#[test]
fn a_condition_that_holds_says_by_what() {
    let report = sample::contended();
    let lines = [
        "lock.p99>5ms",
        "finding>=high",
        "fd.leaks>0",
        "go.goroutines>1",
        "pool.exhausted!=0",
        "runqueue.max>=1us",
        "losses>=0",
    ]
    .map(|text| match one(text).of_report(&report) {
        Outcome::Held(line) => line,
        other => panic!("{text}: {other:?}"),
    });
    insta::assert_snapshot!(lines.join("\n"));
    for fine in ["lock.p99>1h", "finding>critical", "fd.leaks<1", "gc.pause_p99>1h"] {
        assert_eq!(one(fine).of_report(&report), Outcome::Fine, "{fine}");
    }
}

#[test]
fn what_is_not_known_is_told_and_never_true() {
    let mut report = sample::idle();
    report.locks = None;
    report.fds = None;
    report.go = None;
    report.go_others.clear();
    report.run_queue = None;
    for metric in On::Report.metrics() {
        let value = match metric.unit {
            Unit::Severity => "info",
            Unit::Time => "1ns",
            _ => "0",
        };
        let needs = ["lock", "fd", "go.", "gc", "pool", "runqueue", "memory"];
        for operator in [">=", "<=", "=", "!="] {
            let outcome = one(&format!("{}{operator}{value}", metric.name)).of_report(&report);
            if needs.iter().any(|part| metric.name.starts_with(part)) {
                assert!(
                    matches!(outcome, Outcome::Unknown(_)),
                    "{}: {outcome:?}",
                    metric.name
                );
            }
        }
    }
}

#[test]
fn waiting_for_work_is_no_contention() {
    let mut report = sample::contended();
    let waits = one("lock.waits>0");
    assert!(matches!(waits.of_report(&report), Outcome::Held(_)));
    for lock in report.locks.iter_mut().flatten() {
        lock.kind = LockKind::Cond;
    }
    assert_eq!(waits.of_report(&report), Outcome::Fine);
}

#[test]
fn every_condition_is_told_once() {
    let conditions = parse(&["lock.p99>1us,memory.growth_per_s>1".to_owned()], On::Report).unwrap();
    let mut watch = Watch::new(conditions);
    assert!(!watch.has_held());
    let mut report = sample::contended();
    report.memory = None;
    let (held, unknown) = watch.report(&report);
    assert_eq!((held.len(), unknown.len()), (1, 1));
    let (held, unknown) = watch.report(&report);
    assert_eq!((held.len(), unknown.len()), (0, 0));
    assert!(watch.has_held());
}

#[test]
fn hostile_names_are_escaped() {
    let report = sample::hostile();
    for metric in On::Report.metrics() {
        let value = match metric.unit {
            Unit::Severity => "info",
            Unit::Time => "0ns",
            _ => "0",
        };
        if let Outcome::Held(line) = one(&format!("{}>={value}", metric.name)).of_report(&report) {
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}
