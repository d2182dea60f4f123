//! Go programs among the targets: each opened once for all who read or probe it, and looked at again for a while where it was still
//! being loaded.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Error, Result};

use crate::go::{memory::Live, program::Program, runtime::Runtime};

/// Looks at a program before it is given up: one that is just being loaded has no runtime yet.
const LOOKS: u32 = 9;
/// Between the first two looks; twice as long between the next. Together 2.5 s.
const NEXT_LOOK: Duration = Duration::from_millis(10);

/// From a fork to the first look at the child.
const CHILD: Duration = Duration::from_millis(100);

/// A program that could not be read yet.
struct Wanted {
    pid: u32,
    /// Looks so far.
    looks: u32,
    /// The next one.
    due: Instant,
}

/// A program that can be read, or never could.
pub(super) struct Found {
    /// Process.
    pub(super) pid: u32,
    /// The program; the error says why there is none.
    pub(super) program: Result<Rc<Program>>,
    /// What its runtime keeps where. With an error here its code may still be probed.
    pub(super) runtime: Result<Runtime>,
}

/// Those that are wanted.
#[derive(Default)]
pub(super) struct Programs {
    wanted: Vec<Wanted>,
}

impl Programs {
    /// A target is a Go program, or runs another one now.
    pub(super) fn want(&mut self, pid: u32) {
        self.want_in(pid, Duration::ZERO);
    }

    /// A target is the child of a Go program: by then most have become another one.
    pub(super) fn want_child(&mut self, pid: u32) {
        self.want_in(pid, CHILD);
    }

    fn want_in(&mut self, pid: u32, delay: Duration) {
        self.forget(pid);
        self.wanted.push(Wanted {
            pid,
            looks: 0,
            due: Instant::now() + delay,
        });
    }

    /// It has ended, or is no Go program any more.
    pub(super) fn forget(&mut self, pid: u32) {
        self.wanted.retain(|wanted| wanted.pid != pid);
    }

    /// When the next is to be looked at.
    #[must_use]
    pub(super) fn due(&self) -> Option<Instant> {
        self.wanted.iter().map(|wanted| wanted.due).min()
    }

    /// Looks at those that are due, or at all: those that can be read now, or are given up.
    pub(super) fn look(&mut self, all: bool) -> Vec<Found> {
        let now = Instant::now();
        let due: Vec<Wanted> = self
            .wanted
            .extract_if(.., |wanted| all || wanted.due <= now)
            .collect();
        let mut found = Vec::new();
        for wanted in due {
            let one = Found::open(wanted.pid);
            let looks = wanted.looks + 1;
            if one.runtime.is_err() && wanted.due > now {
                // A look for a report, before its time, is no sign that the program takes long.
                self.wanted.push(wanted);
            } else if one.runtime.is_err() && looks < LOOKS {
                self.wanted.push(Wanted {
                    looks,
                    due: Instant::now() + NEXT_LOOK * (1 << wanted.looks),
                    ..wanted
                });
            } else {
                found.push(one);
            }
        }
        found
    }
}

impl Found {
    fn open(pid: u32) -> Self {
        let program = Program::open(pid).map(Rc::new);
        let runtime = match &program {
            Ok(program) => Runtime::find(&Live::new(pid), program),
            Err(error) => Err(Error::msg(format!("{error:#}"))),
        };
        Self {
            pid,
            program,
            runtime,
        }
    }
}
