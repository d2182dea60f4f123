//! What is not said: of too little, of another load, of what may be the same under another name.

use super::*;
use crate::report::{
    model::{FdShared, LockKind, StackFrame, Verdict},
    sample,
};

fn run(documents: Vec<Report>) -> Saved {
    Saved {
        path: "/tmp/run.json".into(),
        reports: documents,
    }
}

fn compared(before: &Report, after: &Report) -> Diff {
    diff(
        &run(vec![before.clone()]),
        &run(vec![after.clone()]),
        &Settings::default(),
    )
}

/// Verdicts of a class.
fn of(diff: &Diff, class: &str) -> Vec<Change> {
    let things = diff.things.iter().filter(|thing| thing.class == class);
    things.map(|thing| thing.verdict).collect()
}

fn cache(diff: &Diff) -> &Thing {
    let mut things = diff.things.iter();
    things.find(|thing| thing.name.contains("cache_mutex")).unwrap()
}

fn fds(report: &mut Report) -> &mut crate::report::model::FdStack {
    &mut report.fds.as_mut().unwrap().by_stack[0]
}

/// Nothing leaks any more: all that was opened was closed.
fn mended() -> Report {
    let mut report = sample::contended();
    report.fds.as_mut().unwrap().shared.clear();
    let row = fds(&mut report);
    row.verdict = Verdict::Churn;
    row.closed = row.opened;
    row.born_by_quarter = [0; 4];
    row.stays = None;
    row.growth_per_s = 0.0;
    report
}

/// Another name for each function of its stack.
fn rename(report: &mut Report) {
    for frame in report.stacks.values_mut().flatten() {
        if let Some(function) = &mut frame.function {
            function.insert_str(0, "other_");
        }
    }
}

#[test]
fn a_leak_is_over_where_enough_was_made_and_ended() {
    let leaking = sample::contended();
    let fixed = mended();
    assert_eq!(of(&compared(&leaking, &fixed), "fds"), [Change::Improved]);
    assert_eq!(of(&compared(&fixed, &leaking), "fds"), [Change::Worse]);

    let mut few = fixed.clone();
    (fds(&mut few).opened, fds(&mut few).closed) = (9, 9);
    assert_eq!(of(&compared(&leaking, &few), "fds"), [Change::NotEnoughData]);
    assert_eq!(of(&compared(&few, &leaking), "fds"), [Change::NotEnoughData]);
    // Of every tenth that stays, as many more are needed.
    let mut rare = leaking.clone();
    fds(&mut rare).stays = Some(0.1);
    assert_eq!(of(&compared(&rare, &fixed), "fds"), [Change::NotEnoughData]);
    let mut open = fixed.clone();
    fds(&mut open).closed -= 12;
    assert_eq!(of(&compared(&leaking, &open), "fds"), [Change::NotEnoughData]);
    fds(&mut open).closed += 6;
    assert_eq!(of(&compared(&leaking, &open), "fds"), [Change::Improved]);
    // Ends of those that were open before are none of theirs.
    fds(&mut open).born_by_quarter = [3; 4];
    assert_eq!(of(&compared(&leaking, &open), "fds"), [Change::NotEnoughData]);
}

#[test]
fn what_was_not_made_is_no_evidence() {
    let leaking = sample::contended();
    let mut without = mended();
    without.fds.as_mut().unwrap().by_stack.remove(0);
    assert_eq!(of(&compared(&leaking, &without), "fds"), [Change::NotEnoughData]);
    assert_eq!(of(&compared(&without, &leaking), "fds"), [Change::Differs]);
}

#[test]
fn a_leak_that_was_renamed_did_not_go_or_come() {
    let leaking = sample::contended();
    let mut after = sample::contended();
    // Its nearest function has another name, the callers have not.
    let key = fds(&mut after).stack.clone().unwrap();
    let frames = after.stacks.get_mut(&key).unwrap();
    let nearest = frames
        .iter_mut()
        .find(|frame| crate::report::frames::is_app(frame));
    nearest.unwrap().function = Some("dial_again".to_owned());
    let diff = compared(&leaking, &after);
    assert_eq!(
        of(&diff, "fds"),
        [Change::NotEnoughData, Change::NotEnoughData],
        "{diff:#?}"
    );
    // Nothing alike at all: one of them is new, and nobody knows of the other.
    rename(&mut after);
    let mut verdicts = of(&compared(&leaking, &after), "fds");
    verdicts.sort_by_key(|verdict| format!("{verdict:?}"));
    assert_eq!(verdicts, [Change::Differs, Change::NotEnoughData]);
}

#[test]
fn an_unsure_leak_is_none() {
    let mut unsure = sample::contended();
    fds(&mut unsure).confidence = 0.1;
    assert_eq!(of(&compared(&unsure, &mended()), "fds"), []);
    assert_eq!(
        of(&compared(&sample::contended(), &unsure), "fds"),
        [Change::NotEnoughData]
    );
}

#[test]
fn askers_that_leak_together_are_one_leak() {
    let shared = |verdict, closed| {
        let mut report = mended();
        let row = fds(&mut report);
        (row.verdict, row.opened, row.closed) = (Verdict::Unknown, 97, closed);
        report.fds.as_mut().unwrap().shared = vec![FdShared {
            verdict,
            closed,
            live: 97 - closed,
            ..sample::contended().fds.unwrap().shared[0].clone()
        }];
        report
    };
    let (leaking, fixed) = (shared(Verdict::Leaking, 23), shared(Verdict::Churn, 97));
    assert_eq!(of(&compared(&leaking, &fixed), "fds"), [Change::Improved]);
    assert_eq!(of(&compared(&fixed, &leaking), "fds"), [Change::Worse]);
}

#[test]
fn goroutines_that_never_leak_are_left_out() {
    let leaking = sample::contended();
    let mut fixed = sample::contended();
    for row in &mut fixed.go.as_mut().unwrap().by_stack {
        row.verdict = Verdict::Churn;
        row.closed = row.opened;
    }
    assert_eq!(of(&compared(&leaking, &fixed), "goroutines"), [Change::Improved]);
    let with = |function: Option<&str>| {
        [&leaking, &fixed].map(|report| {
            let mut report = report.clone();
            let frame = StackFrame {
                function: function.map(str::to_owned),
                ..report.stacks["3"].last().unwrap().clone()
            };
            report.stacks.insert("3".to_owned(), vec![frame]);
            report
        })
    };
    let [one, two] = with(Some("os/signal.loop"));
    assert_eq!(of(&compared(&one, &two), "goroutines"), []);
    let [one, two] = with(None);
    assert_eq!(
        of(&compared(&one, &two), "goroutines"),
        [],
        "code without names moves"
    );
}

/// With so many connections accepted, and nearly all of them closed.
fn accepting(number: u64) -> Report {
    let mut report = sample::contended();
    let row = fds(&mut report);
    row.call = Some("accept4".to_owned());
    (row.opened, row.closed, row.verdict) = (number, number - 3, Verdict::Churn);
    report
}

#[test]
fn accepted_connections_are_counted_once_and_tell_the_load_only_when_alike() {
    let diff_of =
        |before: Report, after: Vec<Report>| diff(&run(vec![before]), &run(after), &Settings::default());
    let intervals = diff_of(
        accepting(900),
        vec![accepting(300), accepting(600), accepting(2700)],
    );
    assert_eq!(intervals.after.load, Some(2700.0), "each has all since attach");
    assert_eq!(intervals.basis.unit, "unit of load");

    let like = diff_of(accepting(900), vec![accepting(1200)]);
    assert_eq!(like.basis.unit, "unit of load");
    for other in [accepting(500), accepting(1500)] {
        let diff = diff_of(accepting(900), vec![other]);
        assert_eq!(diff.basis.unit, "second");
        assert!(
            diff.notes.iter().any(|note| note.contains("keep-alive")),
            "{:?}",
            diff.notes
        );
    }
}

/// So much less of everything: `by` times fewer waits for the lock, each as long.
fn less(report: &mut Report, by: u64) {
    let lock = report.locks.iter_mut().flatten().find(|lock| lock.id == "cache");
    let lock = lock.unwrap();
    let share = |sum: &mut u64| *sum /= by;
    share(&mut lock.wait.count);
    share(&mut lock.wait.total_ns);
    lock.wait.buckets.iter_mut().for_each(|(_, count)| share(count));
    let slices = lock.slices.as_mut().unwrap();
    slices.counts.iter_mut().for_each(share);
    slices.totals_ns.iter_mut().for_each(share);
}

#[test]
fn a_program_that_did_less_is_not_improved() {
    let before = sample::contended();
    let mut after = sample::contended();
    less(&mut after, 4);
    assert_eq!(cache(&compared(&before, &after)).verdict, Change::Improved);
    let idle = |report: &Report, by| {
        let mut report = report.clone();
        report.time.as_mut().unwrap().running_ns /= by;
        report
    };
    let after = idle(&after, 4);
    for diff in [compared(&before, &after), compared(&after, &before)] {
        let lock = cache(&diff);
        assert_eq!(lock.verdict, Change::NotEnoughData, "{lock:#?}");
        assert!(lock.why.contains("--load"), "{}", lock.why);
    }
    let settings = Settings {
        load: Some([1000.0, 1000.0]),
        ..Settings::default()
    };
    let told = diff(&run(vec![before.clone()]), &run(vec![after]), &settings);
    assert_eq!(cache(&told).verdict, Change::Improved);

    let mut gone = sample::contended();
    gone.locks.as_mut().unwrap().retain(|lock| lock.id != "cache");
    assert_eq!(cache(&compared(&before, &gone)).verdict, Change::Improved);
    let gone = idle(&gone, 3);
    assert_eq!(cache(&compared(&before, &gone)).verdict, Change::NotEnoughData);
    assert_eq!(cache(&compared(&gone, &before)).verdict, Change::NotEnoughData);
}

#[test]
fn what_is_alone_in_either_run_may_be_one() {
    let before = sample::contended();
    let mut after = sample::contended();
    rename(&mut after);
    for lock in after.locks.iter_mut().flatten() {
        lock.name = Some("table".to_owned());
    }
    let diff = compared(&before, &after);
    assert_eq!(cache(&diff).verdict, Change::NotEnoughData, "{diff:#?}");
    assert!(cache(&diff).why.contains("renamed"));
}

#[test]
fn deadlocks_are_told_by_runs_that_looked() {
    let with = sample::contended();
    let mut without = sample::contended();
    without.deadlocks.clear();
    let told = |report: &Report| of(&compared(&with, report), "deadlock");
    assert_eq!(told(&without), [Change::Improved]);
    assert_eq!(of(&compared(&without, &with), "deadlock"), [Change::Worse]);
    let mut lossy = without.clone();
    lossy.losses.complete = false;
    assert_eq!(told(&lossy), [Change::NotEnoughData]);
    let mut short = without.clone();
    short.window.duration_ns = 900_000_000;
    assert_eq!(told(&short), [Change::NotEnoughData]);
    let mut blind = without;
    blind.options.only.retain(|only| only != "locks");
    assert_eq!(told(&blind), []);
}

#[test]
fn a_pool_is_exhausted_no_more_where_as_much_was_seen() {
    let with = sample::contended();
    let mut without = sample::contended();
    without.go.as_mut().unwrap().pools.clear();
    let told = |before: &Report, after: &Report| of(&compared(before, after), "pool");
    assert_eq!(told(&with, &without), [Change::Improved]);
    assert_eq!(told(&without, &with), [Change::Worse]);

    let mut few = with.clone();
    few.go.as_mut().unwrap().pools[0].exhausted_samples = 39;
    assert_eq!(told(&few, &without), [Change::NotEnoughData]);
    assert_eq!(told(&few, &with), [Change::NotEnoughData]);
    let unsure: [fn(&mut Report); 4] = [
        |report| report.losses.complete = false,
        |report| report.window.duration_ns /= 2,
        |report| report.go.as_mut().unwrap().snapshots.count = 50,
        |report| report.time.as_mut().unwrap().running_ns /= 3,
    ];
    for (at, change) in unsure.iter().enumerate() {
        let mut other = without.clone();
        change(&mut other);
        assert_eq!(told(&with, &other), [Change::NotEnoughData], "{at}");
    }
    without.go = None;
    assert_eq!(told(&with, &without), [], "not read is not never");
}

#[test]
fn waiting_for_work_is_no_lost_time() {
    let of_kind = |kind, by: u64| {
        let mut report = sample::contended();
        let lock = report.locks.iter_mut().flatten().find(|lock| lock.id == "cache");
        lock.unwrap().kind = kind;
        less(&mut report, by);
        report
    };
    for kind in [
        LockKind::Cond,
        LockKind::Sem,
        LockKind::Parker,
        LockKind::GoChan,
        LockKind::UnknownFutex,
    ] {
        let diff = compared(&of_kind(kind, 1), &of_kind(kind, 4));
        assert_eq!(cache(&diff).verdict, Change::Differs, "{kind:?}");
    }
    for kind in [LockKind::Gil, LockKind::JavaMonitor, LockKind::Pool] {
        let diff = compared(&of_kind(kind, 1), &of_kind(kind, 4));
        assert_eq!(cache(&diff).verdict, Change::Improved, "{kind:?}");
    }
}

#[test]
fn goroutines_stuck_at_a_lock_are_no_improvement() {
    let before = sample::contended();
    let mut after = sample::contended();
    after.locks.as_mut().unwrap().retain(|lock| lock.id != "cache");
    assert_eq!(cache(&compared(&before, &after)).verdict, Change::Improved);
    let half = after.window.duration_ns / 2;
    let row = &mut after.go.as_mut().unwrap().by_stack[0];
    row.stack = Some("1".to_owned());
    row.wait_reason = Some("sync.Mutex.Lock".to_owned());
    row.wait_ns.max_ns = half;
    assert_eq!(cache(&compared(&before, &after)).verdict, Change::NotEnoughData);
    let row = &mut after.go.as_mut().unwrap().by_stack[0];
    row.wait_ns.max_ns = half - 1;
    assert_eq!(cache(&compared(&before, &after)).verdict, Change::Improved);
}

/// A name without digits, which would not count.
fn letters(number: usize) -> String {
    let digits = format!("{number:04}");
    digits
        .bytes()
        .map(|digit| (digit - b'0' + b'a') as char)
        .collect()
}

#[test]
fn a_run_has_so_many_things_and_slots() {
    let base = sample::contended();
    let document = |number: usize| {
        let mut report = base.clone();
        let all: Vec<_> = report.locks.take().unwrap();
        let locks = (0..30).map(|at| {
            let mut lock = all[0].clone();
            // Of its own: nothing is like it.
            lock.name = Some(format!("lock_{}", letters(number * 30 + at)));
            lock.waiters.truncate(1);
            lock.waiters[0].stack = Some(format!("own{at}"));
            lock
        });
        report.locks = Some(locks.collect());
        report.blocked = Some(Vec::new());
        for at in 0..30 {
            let mut frame = report.stacks["1"].last().unwrap().clone();
            frame.function = Some(format!("f_{}", letters(number * 30 + at)));
            report.stacks.insert(format!("own{at}"), vec![frame]);
        }
        report
    };
    let reports: Vec<Report> = (0..70).map(document).collect();
    let one = Run::new(&reports);
    assert_eq!(one.items.len(), 2048);
    assert!(one.left_out > 0);
    let slots = one.items.iter().map(|item| item.sample.slots.len()).max();
    assert!(slots.is_some_and(|slots| slots <= 64), "{slots:?}");

    let same: Vec<Report> = vec![base; 200];
    let same = Run::new(&same);
    for item in &same.items {
        let slots = &item.sample.slots;
        let long: f64 = slots.iter().map(|slot| slot.duration_ns).sum();
        assert!(
            slots.len() <= 64 && (long - same.duration_ns).abs() < 1.0,
            "{} {long}",
            slots.len()
        );
    }
}
