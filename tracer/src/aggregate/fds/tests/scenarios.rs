//! Whole histories and the verdict they must, or must not, get.

use std::collections::VecDeque;

use super::*;
use crate::report::model::Verdict;

const MS: u64 = 1_000_000;

/// A process that opens and closes by a clock.
struct Stage {
    table: FdTable,
    now: u64,
    end: u64,
    next_sample: u64,
    next_fd: i32,
}

impl Stage {
    fn new(seconds: u64) -> Self {
        let mut table = FdTable::new(TGID);
        table.seed(&scanned(1, vec![]));
        Self {
            table,
            now: 1,
            end: seconds * 1000 * MS + 1,
            next_sample: 0,
            next_fd: 3,
        }
    }

    /// Runs `step` every `every` ns until the end, sampling at 4 Hz.
    fn run(mut self, every: u64, mut step: impl FnMut(&mut Self)) -> Self {
        while self.now < self.end {
            if self.now >= self.next_sample {
                self.table.snapshot(self.now);
                self.next_sample = self.now + 250 * MS;
            }
            step(&mut self);
            self.now += every;
        }
        self
    }

    fn open(&mut self, stack: StackId) -> i32 {
        let fd = self.next_fd;
        self.next_fd += 1;
        self.table
            .on_open(&opened(self.now, nr::SOCKET, fd, [0; 4]), stack);
        fd
    }

    fn close(&mut self, fd: i32) {
        self.table.on_close(&closing(self.now, fd as u32, fd as u32, 0));
    }

    /// Part of the window that has passed.
    fn part(&self) -> f64 {
        self.now as f64 / self.end as f64
    }

    fn report(&self) -> Fds {
        report(&self.table, self.end, None)
    }

    fn verdict(&self) -> Verdict {
        row(&self.report(), "1").verdict
    }
}

/// A small generator, so that scenarios are the same every time.
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[test]
fn of_97_opened_23_are_never_closed() {
    let mut count = 0;
    let stage = Stage::new(10).run(103 * MS, |stage| {
        let fd = stage.open(A);
        if count % 97 * 74 % 97 < 74 {
            stage.close(fd);
        }
        count += 1;
    });
    let fds = stage.report();
    let leak = row(&fds, "1");
    assert_eq!(
        (leak.opened, leak.closed, leak.live),
        (98, 74 + u64::from(leak.closed == 75), 98 - leak.closed)
    );
    assert_eq!(leak.verdict, Verdict::Leaking);
    assert!(
        leak.confidence > 0.5 && (leak.growth_per_s - 2.3).abs() < 0.4,
        "{leak:?}"
    );
    let left = fds.time_to_limit_ns.unwrap() as f64 / 1e9;
    assert!((left - (1024.0 - 23.0) / 2.3).abs() < 80.0, "{left}");
}

#[test]
fn a_slow_leak_beside_busy_requests() {
    let mut at = 0;
    let mut busy = VecDeque::new();
    let stage = Stage::new(60).run(10 * MS, |stage| {
        let fd = stage.open(B);
        busy.push_back(fd);
        if busy.len() > 20 {
            let oldest = busy.pop_front().unwrap();
            stage.close(oldest);
        }
        if at % 500 == 250 {
            stage.open(A);
        }
        at += 1;
    });
    let fds = stage.report();
    assert_eq!(row(&fds, "1").verdict, Verdict::Leaking);
    assert_ne!(row(&fds, "2").verdict, Verdict::Leaking);
    assert_eq!(fds.by_stack[0].stack.as_deref(), Some("1"), "most suspect first");
}

#[test]
fn a_burst_that_drains() {
    let mut open = Vec::new();
    let stage = Stage::new(10).run(10 * MS, |stage| {
        if stage.part() < 0.5 {
            open.push(stage.open(A));
        } else if let Some(fd) = open.pop() {
            stage.close(fd);
        }
    });
    assert_eq!(stage.verdict(), Verdict::Churn);
}

#[test]
fn a_pool_that_fills_and_stays() {
    let mut size = 0;
    let stage = Stage::new(10).run(10 * MS, |stage| {
        if stage.part() > 0.05 && size < 50 {
            stage.open(A);
            size += 1;
        }
    });
    assert_eq!(stage.verdict(), Verdict::Pool);
    assert_eq!(stage.report().time_to_limit_ns, None);
}

#[test]
fn a_pool_that_fills_ever_slower() {
    let mut dice = Dice(7);
    let mut slots = [false; 100];
    let stage = Stage::new(10).run(20 * MS, |stage| {
        let slot = &mut slots[(dice.unit() * 100.0) as usize];
        if !std::mem::replace(slot, true) {
            stage.open(A);
        }
    });
    assert_ne!(stage.verdict(), Verdict::Leaking);
}

#[test]
fn steady_requests_of_any_phase() {
    for period in [7, 70, 333, 1000, 1700, 2100, 2900, 4100] {
        let mut open = Vec::new();
        let mut up = true;
        let stage = Stage::new(10).run(period * MS / 80, |stage| {
            if up {
                open.push(stage.open(A));
            } else {
                stage.close(open.pop().unwrap());
            }
            up = if up { open.len() < 40 } else { open.is_empty() };
        });
        assert!(
            !matches!(stage.verdict(), Verdict::Leaking | Verdict::Growing),
            "{period}"
        );
    }
}

#[test]
fn one_request_at_a_time() {
    let stage = Stage::new(5).run(10 * MS, |stage| {
        let fd = stage.open(A);
        stage.now += 5 * MS;
        stage.close(fd);
    });
    assert_eq!(stage.verdict(), Verdict::Churn);
}

#[test]
fn random_lifetimes_that_settle() {
    // Mean lifetimes from a tenth of the window to all of it: the last quarter still sees growth.
    for seed in 0..20 {
        for mean in [0.1, 0.25, 0.5, 1.0] {
            let mut dice = Dice(seed);
            let mut due: Vec<(u64, i32)> = Vec::new();
            let stage = Stage::new(10).run(10 * MS, |stage| {
                let fd = stage.open(A);
                due.push((stage.now + (-dice.unit().ln() * mean * 1e10) as u64, fd));
                due.retain(|&(at, fd)| {
                    let over = at <= stage.now;
                    if over {
                        stage.close(fd);
                    }
                    !over
                });
            });
            assert_ne!(stage.verdict(), Verdict::Leaking, "seed {seed}, mean {mean}");
        }
    }
}

#[test]
fn a_load_that_rises() {
    // Twice as many short requests at a time in each quarter.
    let mut open = VecDeque::new();
    let stage = Stage::new(20).run(5 * MS, |stage| {
        open.push_back(stage.open(A));
        while open.len() > (stage.part() * 200.0) as usize {
            let fd = open.pop_front().unwrap();
            stage.close(fd);
        }
    });
    assert_ne!(stage.verdict(), Verdict::Leaking);
}

#[test]
fn long_connections_replaced_one_by_one() {
    // 200 connections that live longer than the window: each that is opened takes the place of one opened before.
    let mut stage = Stage::new(10);
    stage.table = FdTable::new(TGID);
    stage.table.seed(&scanned(
        1,
        (1000..1200)
            .map(|fd| entry(fd, FdKind::Socket, Some(fd as u64)))
            .collect(),
    ));
    let mut old = 1000;
    let stage = stage.run(100 * MS, |stage| {
        stage.open(A);
        stage.close(old);
        old += 1;
    });
    assert_eq!(stage.verdict(), Verdict::Growing);
    assert_eq!(stage.report().time_to_limit_ns, None);
}

#[test]
fn too_few_or_too_short_is_unknown() {
    let stage = Stage::new(10).run(3000 * MS, |stage| {
        stage.open(A);
    });
    assert_eq!(stage.verdict(), Verdict::Unknown);
    let mut stage = Stage::new(1);
    stage.end = 900 * MS;
    let stage = stage.run(MS, |stage| {
        stage.open(A);
    });
    assert_eq!(
        (stage.verdict(), stage.report().time_to_limit_ns),
        (Verdict::Unknown, None)
    );
}

#[test]
fn what_was_open_before_and_stays_is_steady() {
    let mut stage = Stage::new(10);
    stage.table = FdTable::new(TGID);
    stage
        .table
        .seed(&scanned(1, vec![entry(1, FdKind::Socket, Some(3))]));
    let fds = stage.run(100 * MS, |_| {}).report();
    assert_eq!(row(&fds, "before_attach").verdict, Verdict::Steady);
}

#[test]
fn losses_withhold_every_verdict() {
    let mut stage = Stage::new(10).run(100 * MS, |stage| {
        stage.open(A);
    });
    assert_eq!(stage.verdict(), Verdict::Leaking);
    stage.table.set_incomplete("the ring was full");
    let fds = stage.report();
    assert!(
        fds.by_stack
            .iter()
            .all(|row| row.verdict == Verdict::Unknown && row.confidence == 0.0)
    );
    assert_eq!(fds.time_to_limit_ns, None);
}

#[test]
fn only_descriptors_older_than_asked_are_suspects() {
    let stage = Stage::new(10).run(100 * MS, |stage| {
        stage.open(A);
    });
    for (older, verdict) in [(2_000, Verdict::Leaking), (20_000, Verdict::Growing)] {
        let fds = stage.table.report(&ReportInput {
            now_ns: stage.end,
            limit: None,
            older_ns: Some(older * MS),
            scan: None,
            sockets: None,
            unseen_kinds: Vec::new(),
            hist,
            stack_key: &|stack| stack.0.to_string(),
            asked_by: &|_| Vec::new(),
        });
        assert_eq!(row(&fds, "1").verdict, verdict, "{older}");
    }
}
