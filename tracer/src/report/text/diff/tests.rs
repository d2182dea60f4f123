use super::*;
use crate::{
    diff::{Settings, diff, read::Saved},
    report::{
        model::{LockKind, Report},
        sample,
    },
};

const PLAIN: TextOptions = TextOptions {
    width: 80,
    color: false,
    top: 10,
    verbose: false,
};

fn of(before: &Report, after: &Report) -> Diff {
    let saved = |name: &str, report: &Report| Saved {
        path: name.into(),
        reports: vec![report.clone()],
    };
    let sides = (saved("/srv/before.json", before), saved("/srv/after.json", after));
    diff(&sides.0, &sides.1, &Settings::default())
}

/// The mutex became a lock for readers and writers, and the run queue is longer.
fn changed() -> Report {
    let mut after = sample::contended();
    let locks = after.locks.iter_mut().flatten();
    for lock in locks.filter(|lock| lock.id == "cache") {
        lock.kind = LockKind::Rwlock;
        lock.wait.total_ns /= 40;
        if let Some(slices) = &mut lock.slices {
            slices.totals_ns.iter_mut().for_each(|total| *total /= 40);
        }
    }
    if let Some(queue) = &mut after.run_queue {
        queue.hist.total_ns *= 7;
        queue.hist.buckets.iter_mut().for_each(|(upper, _)| *upper *= 7);
        if let Some(slices) = &mut queue.slices {
            slices.totals_ns.iter_mut().for_each(|total| *total *= 7);
        }
    }
    after.fds.iter_mut().for_each(|fds| fds.shared.clear());
    for row in after.fds.iter_mut().flat_map(|fds| &mut fds.by_stack) {
        row.verdict = crate::report::model::Verdict::Churn;
        row.closed = row.opened;
        row.born_by_quarter = [0; 4];
        row.growth_per_s = 0.0;
    }
    after
}

#[test]
fn what_changed_is_first() {
    let text = render_diff(&of(&sample::contended(), &changed()), &PLAIN);
    insta::assert_snapshot!("changed", text);
}

#[test]
fn all_is_told_when_asked() {
    let options = TextOptions {
        verbose: true,
        width: 100,
        ..PLAIN
    };
    let text = render_diff(&of(&sample::contended(), &sample::contended()), &options);
    insta::assert_snapshot!("unchanged", text);
}

#[test]
fn every_line_fits_and_nothing_of_the_targets_reaches_the_terminal() {
    let reports = [
        sample::contended(),
        changed(),
        sample::hostile(),
        sample::idle(),
        sample::lossy(),
    ];
    for before in &reports {
        for after in &reports {
            let diff = of(before, after);
            for (verbose, width) in [(false, 60), (true, 80), (true, 132)] {
                let options = TextOptions {
                    width,
                    verbose,
                    ..PLAIN
                };
                let text = render_diff(&diff, &options);
                let bad = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2066}\u{200b}".contains(c));
                assert!(!text.contains(bad), "{text:?}");
                for line in text.lines() {
                    assert!(line.chars().count() <= width, "{width}: {line}");
                }
            }
        }
    }
}

#[test]
fn ratios_are_read_as_they_are_said() {
    let ratios = [0.002, 0.07, 0.999, 1.0, 1.31, 2.0, 23.97];
    assert_eq!(
        ratios.map(|by| plain(&ratio(by))),
        ["−99.8 %", "−93 %", "−0 %", "+0 %", "+31 %", "×2.0", "×24.0"]
    );
}
