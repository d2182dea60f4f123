use super::*;
use crate::report::{
    diff::Matched,
    model::{Hist, Lock, LockKind, Slices, Verdict},
    sample,
    schema::diff_schema,
};

fn saved(report: &Report) -> Saved {
    Saved {
        path: "/tmp/run.json".into(),
        reports: vec![report.clone()],
    }
}

fn compared(before: &Report, after: &Report) -> Diff {
    diff(&saved(before), &saved(after), &Settings::default())
}

fn thing<'a>(diff: &'a Diff, class: &str, name: &str) -> &'a Thing {
    let found: Vec<&Thing> = diff
        .things
        .iter()
        .filter(|thing| thing.class == class && thing.name.contains(name))
        .collect();
    assert_eq!(found.len(), 1, "{class} {name}: {:#?}", diff.things);
    found[0]
}

/// Each wait takes `by` times as long.
fn stretch(hist: &mut Hist, slices: &mut Option<Slices>, by: u64) {
    for (upper, _) in &mut hist.buckets {
        *upper *= by;
    }
    hist.total_ns *= by;
    for total in slices.iter_mut().flat_map(|slices| &mut slices.totals_ns) {
        *total *= by;
    }
}

fn lock<'a>(report: &'a mut Report, id: &str) -> &'a mut Lock {
    report
        .locks
        .iter_mut()
        .flatten()
        .find(|lock| lock.id == id)
        .unwrap()
}

fn stretch_lock(report: &mut Report, by: u64) {
    let lock = lock(report, "cache");
    stretch(&mut lock.wait, &mut lock.slices, by);
}

#[test]
fn a_run_is_no_other_than_itself() {
    for (name, report) in sample::all() {
        let diff = compared(&report, &report);
        let counts = &diff.counts;
        assert_eq!(
            (counts.worse, counts.improved, counts.differs),
            (0, 0, 0),
            "{name}: {diff:#?}"
        );
        assert_ne!(diff.verdict, Change::Worse, "{name}");
    }
    assert_eq!(
        compared(&sample::contended(), &sample::contended()).verdict,
        Change::Unchanged
    );
}

#[test]
fn addresses_processes_lines_and_hashes_are_no_change() {
    let before = sample::contended();
    let mut after = sample::contended();
    for (at, frame) in after.stacks.values_mut().flatten().enumerate() {
        frame.address = format!("{:#x}", 0x7f00_0000 + at * 64);
        frame.line = frame.line.map(|line| line + 97);
        if let Some(function) = frame
            .function
            .as_mut()
            .filter(|function| function.contains("cache_"))
        {
            function.push_str(".isra.0");
        }
    }
    for lock in after.locks.iter_mut().flatten() {
        lock.pid += 1000;
        lock.address = Some("0x1".to_owned());
        lock.id.push('x');
    }
    let diff = compared(&before, &after);
    assert_eq!(diff.verdict, Change::Unchanged, "{diff:#?}");
    assert_eq!(thing(&diff, "lock", "cache_mutex").matched, Matched::Same);
}

#[test]
fn three_times_as_long_is_worse_and_the_reverse_improved() {
    let before = sample::contended();
    let mut after = sample::contended();
    stretch_lock(&mut after, 3);
    let worse = compared(&before, &after);
    let lock = thing(&worse, "lock", "cache_mutex");
    assert_eq!((worse.verdict, lock.verdict), (Change::Worse, Change::Worse));
    assert!((lock.metrics[0].ratio.unwrap() - 3.0).abs() < 0.01, "{lock:#?}");
    assert!(lock.metrics[0].p_adjusted.unwrap() < 0.01);
    assert_eq!(worse.things[0].name, "cache_mutex", "what lost most is first");
    let improved = compared(&after, &before);
    assert_eq!(improved.verdict, Change::Improved);
    assert_eq!(improved.counts.improved, 1, "{improved:#?}");
}

#[test]
fn bursts_take_certainty() {
    let before = sample::contended();
    let mut after = sample::contended();
    stretch_lock(&mut after, 3);
    // The same sums, but all in one burst of each run.
    let heap = |report: &Report| {
        let mut report = report.clone();
        for slices in report
            .locks
            .iter_mut()
            .flatten()
            .filter_map(|lock| lock.slices.as_mut())
        {
            for sums in [&mut slices.counts, &mut slices.totals_ns] {
                let all = sums.iter().sum();
                sums.fill(0);
                sums[7] = all;
            }
        }
        report
    };
    let diff = compared(&heap(&before), &heap(&after));
    let lock = thing(&diff, "lock", "cache_mutex");
    assert_eq!(lock.verdict, Change::NotEnoughData, "{lock:#?}");
}

#[test]
fn another_kind_of_lock_is_named() {
    let before = sample::contended();
    let mut after = sample::contended();
    let replaced = lock(&mut after, "cache");
    replaced.kind = LockKind::Rwlock;
    replaced.name = Some("cache_rwlock".to_owned());
    let share = |sum: &mut u64| *sum /= 40;
    share(&mut replaced.wait.total_ns);
    share(&mut replaced.wait.count);
    replaced
        .wait
        .buckets
        .iter_mut()
        .for_each(|(_, count)| share(count));
    if let Some(slices) = &mut replaced.slices {
        slices.counts.iter_mut().for_each(share);
        slices.totals_ns.iter_mut().for_each(share);
    }
    let diff = compared(&before, &after);
    let lock = thing(&diff, "lock", "cache_rwlock");
    assert_eq!(
        (lock.verdict, lock.matched),
        (Change::Improved, Matched::Replaced),
        "{lock:#?}"
    );
    assert_eq!(
        (lock.was.as_deref(), lock.kind.as_str()),
        (Some("mutex"), "rwlock")
    );
}

#[test]
fn a_lock_that_is_gone_is_so_only_when_all_was_seen() {
    let before = sample::contended();
    let mut after = sample::contended();
    after
        .locks
        .iter_mut()
        .for_each(|locks| locks.retain(|lock| lock.id != "cache"));
    after.losses.complete = true;
    let diff = compared(&before, &after);
    let gone = thing(&diff, "lock", "cache_mutex");
    assert_eq!(
        (gone.verdict, gone.matched),
        (Change::Improved, Matched::OnlyBefore)
    );
    assert_eq!(
        thing(&compared(&after, &before), "lock", "cache_mutex").verdict,
        Change::Worse
    );
    after.losses.complete = false;
    let lossy = compared(&before, &after);
    assert_eq!(
        thing(&lossy, "lock", "cache_mutex").verdict,
        Change::NotEnoughData
    );
    assert!(lossy.notes.iter().any(|note| note.contains("losses")));
    after.locks = None;
    let left_out = compared(&before, &after);
    assert!(
        left_out.things.iter().all(|thing| thing.class != "lock"),
        "not collected is not gone"
    );
}

#[test]
fn a_deadlock_is_no_improvement() {
    let mut before = sample::contended();
    before.deadlocks.clear();
    before.waiting_now.clear();
    let mut after = sample::contended();
    after
        .locks
        .iter_mut()
        .for_each(|locks| locks.retain(|lock| lock.id != "cache"));
    for thread in &mut after.waiting_now {
        thread.stack = Some("1".to_owned());
        thread.since_ns = None;
    }
    let diff = compared(&before, &after);
    assert_eq!(thing(&diff, "lock", "cache_mutex").verdict, Change::NotEnoughData);
    assert_eq!(thing(&diff, "deadlock", "").verdict, Change::Worse);
}

#[test]
fn scarce_cpus_excuse_what_they_explain() {
    let before = sample::contended();
    let mut after = sample::contended();
    stretch_lock(&mut after, 3);
    let queue = after.run_queue.as_mut().unwrap();
    stretch(&mut queue.hist, &mut queue.slices, 20);
    let diff = compared(&before, &after);
    assert!(
        diff.notes
            .iter()
            .any(|note| note.contains("CPUs were scarcer in the second run")),
        "{:?}",
        diff.notes
    );
    let excused = thing(&diff, "lock", "cache_mutex");
    assert_eq!(excused.verdict, Change::NotEnoughData, "{excused:#?}");
    // The other way round they excuse nothing.
    let mut after = sample::contended();
    stretch_lock(&mut after, 3);
    let mut before = sample::contended();
    let queue = before.run_queue.as_mut().unwrap();
    stretch(&mut queue.hist, &mut queue.slices, 20);
    assert_eq!(
        thing(&compared(&before, &after), "lock", "cache_mutex").verdict,
        Change::Worse
    );
}

#[test]
fn leaks_come_and_go() {
    let leaking = sample::contended();
    let mut mended = sample::contended();
    mended.fds.as_mut().unwrap().shared.clear();
    for row in mended.fds.iter_mut().flat_map(|fds| &mut fds.by_stack) {
        row.verdict = Verdict::Churn;
        row.closed = row.opened;
        row.born_by_quarter = [0; 4];
        row.live = row.live_at_start;
    }
    let of = |diff: &Diff| -> Vec<Change> {
        let fds = diff.things.iter().filter(|thing| thing.class == "fds");
        fds.map(|thing| thing.verdict).collect()
    };
    assert_eq!(of(&compared(&leaking, &mended)), [Change::Improved]);
    assert_eq!(of(&compared(&mended, &leaking)), [Change::Worse]);
    assert_eq!(of(&compared(&leaking, &leaking)), [Change::NotEnoughData]);
    let mut short = mended.clone();
    short.window.duration_ns /= 10;
    assert_eq!(of(&compared(&leaking, &short)), [Change::NotEnoughData]);
    let mut unsure = mended.clone();
    for row in unsure.fds.iter_mut().flat_map(|fds| &mut fds.by_stack) {
        row.verdict = Verdict::Unknown;
        row.closed = 0;
    }
    assert_eq!(of(&compared(&leaking, &unsure)), [Change::NotEnoughData]);
}

#[test]
fn a_load_that_is_told_is_divided_out() {
    let before = sample::contended();
    let mut after = sample::contended();
    stretch_lock(&mut after, 3);
    let settings = Settings {
        load: Some([1000.0, 3000.0]),
        ..Settings::default()
    };
    let diff = diff(&saved(&before), &saved(&after), &settings);
    assert_eq!(diff.basis.unit, "unit of load");
    let metric = &thing(&diff, "lock", "cache_mutex").metrics[0];
    assert!(
        (metric.ratio.unwrap() - 1.0).abs() < 0.01 && !metric.changed,
        "{metric:?}"
    );
}

#[test]
fn intervals_are_one_run() {
    let one = sample::contended();
    let run = |documents: usize| Saved {
        path: "run".into(),
        reports: vec![one.clone(); documents],
    };
    for documents in [3, 20] {
        let diff = diff(&run(1), &run(documents), &Settings::default());
        assert_eq!(diff.after.documents, documents as u64);
        assert_eq!(diff.verdict, Change::Unchanged, "{documents}: {diff:#?}");
        let lock = thing(&diff, "lock", "cache_mutex");
        assert!((lock.metrics[0].ratio.unwrap() - 1.0).abs() < 1e-6, "{lock:#?}");
        assert_eq!(lock.rows, [1, 1]);
    }
}

#[test]
fn too_short_is_too_little() {
    let mut short = sample::contended();
    short.window.duration_ns = 900_000_000;
    let diff = compared(&short, &short);
    assert!(
        diff.notes
            .iter()
            .any(|note| note.contains("shorter than a second"))
    );
    let waits = diff.things.iter().filter(|thing| thing.class == "lock");
    assert!(
        waits
            .into_iter()
            .all(|thing| thing.verdict == Change::NotEnoughData)
    );
}

#[test]
fn documents_are_as_their_schema_says_whatever_the_reports_are() {
    let schema = serde_json::from_str(&diff_schema()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut extreme = sample::contended();
    extreme.window.duration_ns = 0;
    for lock in extreme.locks.iter_mut().flatten() {
        lock.wait.count = u64::MAX;
        lock.wait.total_ns = u64::MAX;
        lock.wait.buckets = vec![(u64::MAX, u64::MAX), (0, 7), (u64::MAX, u64::MAX)];
        lock.slices = Some(Slices {
            slice_ns: 0,
            counts: vec![u64::MAX; 3],
            totals_ns: Vec::new(),
        });
    }
    for row in extreme.fds.iter_mut().flat_map(|fds| &mut fds.by_stack) {
        row.growth_per_s = f64::MAX;
        row.period_ns = Some(0);
    }
    let mut reports: Vec<Report> = sample::all().into_iter().map(|(_, report)| report).collect();
    reports.push(extreme);
    for before in &reports {
        for after in &reports {
            let document = serde_json::to_value(compared(before, after)).unwrap();
            let errors: Vec<String> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{errors:?}");
        }
    }
}
