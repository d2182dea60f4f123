//! Random histories against a model of the kernel's table.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Open,
    Close(usize),
    DupOver(usize, usize),
    Range(i32, i32),
    Exec(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Open),
        4 => any::<usize>().prop_map(Step::Close),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(from, to)| Step::DupOver(from, to)),
        1 => (0..40, 0..8).prop_map(|(first, more)| Step::Range(first, first + more)),
        1 => any::<usize>().prop_map(Step::Exec),
    ]
}

/// The kernel's table: number → inode. Each step tells the event that its probes write.
#[derive(Default)]
struct Kernel {
    table: BTreeMap<i32, u64>,
    inodes: u64,
    now: u64,
}

enum Event {
    Open(FdOpen),
    Close(FdClose),
    Exec(u64),
}

impl Kernel {
    fn nth(&self, at: usize) -> Option<i32> {
        (!self.table.is_empty()).then(|| *self.table.keys().nth(at % self.table.len()).unwrap())
    }

    fn step(&mut self, step: &Step) -> Option<Event> {
        self.now += 10;
        match *step {
            Step::Open => {
                let fd = (0..i32::MAX).find(|fd| !self.table.contains_key(fd)).unwrap();
                self.inodes += 1;
                self.table.insert(fd, self.inodes);
                Some(Event::Open(opened(self.now, nr::OPENAT, fd, [0; 4])))
            }
            Step::Close(at) => {
                let fd = self.nth(at)?;
                self.table.remove(&fd);
                Some(Event::Close(closing(self.now, fd as u32, fd as u32, 0)))
            }
            Step::DupOver(from, to) => {
                let (from, to) = (self.nth(from)?, self.nth(to)?);
                self.table.insert(to, self.table[&from]);
                Some(Event::Open(opened(
                    self.now,
                    nr::DUP2,
                    to,
                    [from as u64, to as u64, 0, 0],
                )))
            }
            Step::Range(first, last) => {
                self.table.retain(|fd, _| !(first..=last).contains(fd));
                let event = closing(self.now, first as u32, last as u32, 0);
                Some(Event::Close(event))
            }
            Step::Exec(at) => {
                let marked = self.nth(at)?;
                self.table.remove(&marked);
                Some(Event::Exec(self.now))
            }
        }
    }

    fn scan(&mut self) -> FdScan {
        self.now += 10;
        let scan = scanned(
            self.now,
            self.table
                .iter()
                .map(|(&fd, &inode)| entry(fd, FdKind::File, Some(inode)))
                .collect(),
        );
        self.now += 20;
        scan
    }
}

fn feed(table: &mut FdTable, event: &Event) {
    match event {
        Event::Open(event) => table.on_open(event, StackId(event.fd as u32 % 3 + 1)),
        Event::Close(event) => table.on_close(event),
        Event::Exec(ts_ns) => table.on_exec(*ts_ns),
    }
}

fn same(table: &FdTable, kernel: &Kernel) -> Result<(), TestCaseError> {
    let mut live: Vec<i32> = table.live.keys().copied().collect();
    live.sort_unstable();
    prop_assert_eq!(live, kernel.table.keys().copied().collect::<Vec<_>>());
    let fds = report(table, kernel.now, None);
    let sum = |of: fn(&FdStack) -> u64| fds.by_stack.iter().map(of).sum::<u64>();
    prop_assert_eq!(sum(|row| row.live), kernel.table.len() as u64);
    prop_assert_eq!(sum(|row| row.opened), fds.opened + fds.unseen_births);
    prop_assert_eq!(sum(|row| row.closed), fds.closed + fds.unseen_deaths);
    for row in &fds.by_stack {
        prop_assert_eq!(row.live, row.live_at_start + row.opened - row.closed);
        prop_assert_eq!(row.kinds.values().sum::<u64>(), row.live_at_start + row.opened);
        prop_assert!((0.0..=1.0).contains(&row.confidence));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_history_without_losses_gives_the_kernels_table(
        before in 0_usize..10,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let (mut kernel, mut table) = (Kernel::default(), FdTable::new(TGID));
        for _ in 0..before {
            kernel.step(&Step::Open);
        }
        table.seed(&kernel.scan());
        for step in &steps {
            if let Some(event) = kernel.step(step) {
                feed(&mut table, &event);
            }
            if matches!(step, Step::Exec(_)) {
                table.reconcile(&kernel.scan());
            }
            same(&table, &kernel)?;
        }
        let fds = report(&table, kernel.now, None);
        prop_assert_eq!((fds.unseen_births, fds.unseen_deaths), (0, 0));
    }

    #[test]
    fn what_was_missed_two_scans_mend(
        before in 0_usize..10,
        steps in prop::collection::vec((step(), any::<bool>()), 0..200),
    ) {
        let (mut kernel, mut table) = (Kernel::default(), FdTable::new(TGID));
        for _ in 0..before {
            kernel.step(&Step::Open);
        }
        table.seed(&kernel.scan());
        for (at, (step, lost)) in steps.iter().enumerate() {
            if let Some(event) = kernel.step(step)
                && !lost
            {
                feed(&mut table, &event);
            }
            if at % 50 == 49 {
                table.reconcile(&kernel.scan());
            }
            table.snapshot(kernel.now);
        }
        table.reconcile(&kernel.scan());
        table.reconcile(&kernel.scan());
        same(&table, &kernel)?;
        let again = table.reconcile(&kernel.scan());
        prop_assert_eq!(again, Reconciled::default());
    }

    #[test]
    fn events_in_any_order_never_break_the_sums(
        mut steps in prop::collection::vec((step(), any::<u16>()), 0..100),
        late in 0_u64..2000,
    ) {
        let mut kernel = Kernel::default();
        let mut events: Vec<_> =
            steps.iter().filter_map(|(step, key)| Some((*key, kernel.step(step)?))).collect();
        events.sort_by_key(|event| event.0);
        steps.clear();
        let mut table = FdTable::new(TGID);
        for (_, event) in &events {
            feed(&mut table, event);
        }
        table.snapshot(late);
        let scans = [kernel.scan(), kernel.scan()];
        for scan in &scans {
            table.reconcile(scan);
        }
        same(&table, &kernel)?;
    }
}
