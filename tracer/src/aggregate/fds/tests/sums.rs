//! What several askers of one stack leave open together.

use super::*;
use crate::report::model::Verdict;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// Twelve seconds, sampled four times a second; `step` is called a hundred times a second with its number.
fn history(mut step: impl FnMut(&mut FdTable, u64, u64)) -> Fds {
    let mut table = FdTable::new(TGID);
    table.seed(&scanned(1, vec![]));
    for at in 0..1200 {
        let now = 1 + at * 10 * MS;
        if at % 25 == 0 {
            table.snapshot(now);
        }
        step(&mut table, now, at);
    }
    report(&table, 12 * SECOND, None)
}

fn open(table: &mut FdTable, now: u64, fd: u64, asker: u64) {
    table.on_asked(
        &opened(now, nr::SOCKET, fd as i32, [0; 4]),
        A,
        AskerId(asker as u32),
    );
}

fn close(table: &mut FdTable, now: u64, fd: u64) {
    table.on_close(&closing(now, fd as u32, fd as u32, 0));
}

#[test]
fn a_leak_over_many_askers_is_one_of_the_sum() {
    let fds = history(|table, now, at| open(table, now, 10 + at, 1 + at % 300));
    assert_eq!(fds.by_stack.len(), 300);
    assert!(fds.by_stack.iter().all(|row| row.verdict == Verdict::Unknown));
    assert!(fds.by_stack.iter().all(|row| row.born_by_quarter == [1; 4]));
    let [sum] = &fds.shared[..] else {
        panic!("{:#?}", fds.shared)
    };
    assert_eq!((sum.verdict, sum.askers), (Verdict::Leaking, 300));
    assert_eq!((sum.opened, sum.closed, sum.live), (1200, 0, 1200));
    assert_eq!(sum.stack.as_deref(), Some("1"));
    assert!((sum.growth_per_s - 100.0).abs() < 2.0, "{}", sum.growth_per_s);
    // There is no row that grows.
    assert!(fds.time_to_limit_ns.is_some());
}

#[test]
fn the_same_askers_closing_are_nothing() {
    let fds = history(|table, now, at| {
        open(table, now, 10 + at, 1 + at % 300);
        if at >= 20 {
            close(table, now, 10 + at - 20);
        }
    });
    assert!(fds.shared.is_empty(), "{:#?}", fds.shared);
    assert_eq!(fds.time_to_limit_ns, None);
}

#[test]
fn a_part_that_leaks_by_itself_is_not_told_again() {
    // 299 others close what they get.
    let fds = history(|table, now, at| {
        open(table, now, 10 + at, if at % 4 == 0 { 999 } else { 1 + at % 299 });
        if at % 4 != 0 {
            close(table, now + MS, 10 + at);
        }
    });
    let leaking = fds.by_stack.iter().filter(|row| row.verdict == Verdict::Leaking);
    assert_eq!(leaking.map(|row| row.live).collect::<Vec<_>>(), [300]);
    assert!(fds.shared.is_empty(), "{:#?}", fds.shared);
}

#[test]
fn what_leaks_beside_a_part_that_does_is_told_without_it() {
    let fds = history(|table, now, at| {
        open(table, now, 10 + at, if at % 2 == 0 { 999 } else { 1 + at % 300 });
    });
    assert_eq!(fds.by_stack[0].verdict, Verdict::Leaking);
    assert_eq!(fds.by_stack[0].live, 600);
    let [sum] = &fds.shared[..] else {
        panic!("{:#?}", fds.shared)
    };
    assert_eq!(
        (sum.verdict, sum.askers, sum.opened, sum.live),
        (Verdict::Leaking, 150, 600, 600)
    );
}

#[test]
fn pools_that_fill_one_after_the_other_do_not_go_on() {
    let fds = history(|table, now, at| {
        if at % 300 < 40 {
            open(table, now, 10 + at, 1 + at / 300);
        }
    });
    assert_eq!(fds.by_stack.len(), 4);
    assert!(fds.by_stack.iter().all(|row| row.verdict != Verdict::Leaking));
    // The sum may look like a staircase; but none of them goes on, which is what a finding asks for.
    for row in &fds.by_stack {
        let quarters = row.born_by_quarter.iter().filter(|&&born| born > 0).count();
        assert_eq!(quarters, 1, "{:?}", row.born_by_quarter);
    }
}

#[test]
fn askers_beyond_half_of_the_rows_share_one() {
    let mut table = FdTable::new(TGID);
    let all = super::super::MAX_ROWS as u64 + 97;
    for at in 0..all {
        open(&mut table, at, 10 + at, 1 + at);
    }
    // Another stack still has a row of its own.
    table.on_open(&opened(all, nr::SOCKET, 3, [0; 4]), B);
    let split = super::super::SPLIT_ROWS;
    assert_eq!((table.rows.len(), table.folded()), (split + 2, 0));
    assert_eq!(table.sums.all.len(), 1);
    table.snapshot(all + 1);
    let fds = report(&table, all + 2, None);
    let rest = fds.by_stack.iter().max_by_key(|row| row.live).unwrap();
    assert_eq!(rest.live, all - split as u64);
    assert!(rest.stack.as_deref() == Some("1") && rest.asked_by.is_empty());
    assert_eq!(fds.by_stack.iter().filter(|row| row.live == 1).count(), split + 1);
}
