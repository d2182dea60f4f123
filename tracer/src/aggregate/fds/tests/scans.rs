//! The table against scans: what they mend, and what they must leave alone.

use super::*;

#[test]
fn events_older_than_the_first_scan_are_not_counted_twice() {
    let mut table = FdTable::new(TGID);
    table.seed(&scanned(
        100,
        vec![entry(3, FdKind::File, Some(1)), entry(4, FdKind::File, Some(2))],
    ));
    table.on_open(&opened(50, nr::OPENAT, 3, [0; 4]), A);
    let fds = report(&table, 200, None);
    assert_eq!(
        (fds.open_at_start, fds.opened, table.live(), fds.unseen_deaths),
        (1, 1, 2, 0)
    );
    assert_eq!(row(&fds, "before_attach").live_at_start, 1);
}

#[test]
fn scans_mend_what_was_missed() {
    let mut table = FdTable::new(TGID);
    table.seed(&scanned(0, vec![]));
    for fd in 3..8 {
        table.on_open(&opened(100, nr::SOCKET, fd, [0; 4]), A);
    }
    // 3 goes on, 4 was closed, 5 is another kind, 6 has another inode at the second scan, 7 an event during the scan.
    table.on_close(&closing(205, 7, 7, 0));
    let first = vec![
        entry(3, FdKind::Socket, Some(33)),
        entry(5, FdKind::Eventfd, None),
        entry(6, FdKind::Socket, Some(66)),
        entry(7, FdKind::Socket, Some(77)),
        entry(9, FdKind::File, Some(99)),
    ];
    let done = table.reconcile(&scanned(200, first));
    assert_eq!(
        done,
        Reconciled {
            deaths: 1,
            pending: 2,
            ..Reconciled::default()
        }
    );
    let second = vec![
        entry(3, FdKind::Socket, Some(33)),
        entry(5, FdKind::Eventfd, None),
        entry(6, FdKind::Socket, Some(67)),
        entry(9, FdKind::File, Some(99)),
    ];
    let done = table.reconcile(&scanned(300, second.clone()));
    assert_eq!(
        done,
        Reconciled {
            deaths: 1,
            births: 2,
            pending: 1,
            ..Reconciled::default()
        }
    );
    let last = scanned(400, second);
    assert_eq!(
        table.reconcile(&last),
        Reconciled {
            deaths: 1,
            births: 1,
            ..Reconciled::default()
        }
    );
    let fds = report(&table, 500, Some(&last));
    assert_eq!(
        (fds.open_at_end, fds.unseen_births, fds.unseen_deaths, fds.closed),
        (4, 3, 3, 1)
    );
    let unseen = row(&fds, "unseen");
    assert_eq!((unseen.live, unseen.examples[0].age_ns), (3, None));
    assert_eq!(unseen.examples[1].target.as_deref(), Some("File:[99]"));
    assert_eq!(row(&fds, "1").live, 1);
}

#[test]
fn a_rename_is_no_replacement_and_a_link_corrects_a_guess() {
    let mut table = FdTable::new(TGID);
    table.on_open(&opened(1, nr::OPENAT, 3, [0; 4]), A);
    table.reconcile(&scanned(100, vec![entry(3, FdKind::Pipe, Some(5))]));
    let mut renamed = entry(3, FdKind::Pipe, Some(5));
    renamed.target = Some("/elsewhere".to_owned());
    assert_eq!(
        table.reconcile(&scanned(200, vec![renamed])),
        Reconciled::default()
    );
    let fds = report(&table, 300, None);
    assert_eq!(row(&fds, "1").kinds.get(&FdKind::Pipe), Some(&1));
    assert_eq!(row(&fds, "1").kinds.len(), 1);
}

#[test]
fn an_incomplete_scan_judges_no_absence() {
    let mut table = FdTable::new(TGID);
    table.on_open(&opened(1, nr::OPENAT, 3, [0; 4]), A);
    let mut scan = scanned(100, vec![]);
    scan.complete = false;
    assert_eq!(table.reconcile(&scan), Reconciled::default());
    assert_eq!(table.live(), 1);
}

#[test]
fn exec_ends_what_the_next_scan_does_not_show() {
    let mut table = FdTable::new(TGID);
    for fd in 3..6 {
        table.on_open(&opened(1, nr::OPENAT, fd, [0; 4]), A);
    }
    table.on_exec(50);
    let done = table.reconcile(&scanned(100, vec![entry(4, FdKind::File, Some(1))]));
    assert_eq!(
        done,
        Reconciled {
            by_exec: 2,
            ..Reconciled::default()
        }
    );
    let fds = report(&table, 200, None);
    assert_eq!((fds.closed, fds.unseen_deaths, row(&fds, "1").live), (2, 0, 1));
}

#[test]
fn a_child_begins_with_a_copy() {
    let mut table = FdTable::new(TGID);
    table.on_open(&opened(1, nr::SOCKET, 3, [0; 4]), A);
    let mut child = table.forked(200, 10);
    child.on_open(&opened(12, nr::OPENAT, 4, [0; 4]), A);
    let fds = report(&child, 20, None);
    assert_eq!(
        (fds.open_at_start, fds.opened, child.live(), child.tgid()),
        (1, 1, 2, 200)
    );
    assert_eq!(row(&fds, "before_attach").kinds.get(&FdKind::Socket), Some(&1));
}
