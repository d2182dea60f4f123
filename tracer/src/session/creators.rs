//! Which goroutine makes a descriptor, and who made that goroutine, in every target that is a Go program. By default only where Go's library begins a dial; at every `go` statement with `--go-creators`, for as much
//! of the time as its budget allows.

use std::{collections::BTreeMap, rc::Rc};

use anyhow::{Error, Result};

use super::duty::Duty;
use crate::{
    capture::{Capture, uprobes::Group},
    cli::options::Options,
    go::{memory::Live, program::Program, starts::Starts},
    proc::host,
    report::model::Hint,
};

/// The Go programs among the targets.
#[derive(Default)]
pub(super) struct Creators {
    /// Descriptors are collected, or creators of goroutines asked for.
    on: bool,
    /// Probes in programs may be used.
    uprobes: bool,
    /// Every `go` statement is asked for.
    all: bool,
    known: BTreeMap<u32, (Rc<Program>, Starts)>,
    /// What could not be done, and why.
    refused: Vec<(u32, String)>,
}

impl Creators {
    /// As the command line says.
    pub(super) fn new(options: &Options) -> Self {
        Self {
            on: options.collectors.fds || options.go_creators,
            uprobes: options.uprobes,
            all: options.go_creators && options.uprobes,
            ..Self::default()
        }
    }

    /// Whether programs may have to be probed.
    pub(super) const fn wants_probes(options: &Options) -> bool {
        options.uprobes && (options.collectors.fds || options.go_creators)
    }

    /// It ended, or runs another program now.
    pub(super) fn forget(&mut self, pid: u32) {
        self.known.remove(&pid);
    }

    /// A process runs this program, or one that cannot be opened: finds out what can be found out, and attaches.
    pub(super) fn attach(
        &mut self,
        capture: &mut Capture,
        duty: &mut Duty,
        pid: u32,
        program: &Result<Rc<Program>>,
    ) {
        if !self.on {
            return;
        }
        let found = match program {
            Ok(program) => Starts::find(&Live::new(pid), program).and_then(|starts| {
                capture.know_goroutines(pid, starts.layout)?;
                Ok((Rc::clone(program), starts))
            }),
            Err(error) => Err(Error::msg(format!("{error:#}"))),
        };
        match found {
            Ok((program, starts)) => {
                log::debug!("process {pid}: {:?}", starts.layout);
                self.probe(capture, duty, (pid, &program), &starts);
                self.known.insert(pid, (program, starts));
            }
            Err(error) => self.refuse(pid, format!("{error:#}")),
        }
    }

    fn refuse(&mut self, pid: u32, why: String) {
        log::debug!("process {pid}: who asks for descriptors is not told: {why}");
        if !self
            .refused
            .iter()
            .any(|(other, known)| *other == pid && *known == why)
        {
            self.refused.push((pid, why));
        }
    }

    /// Attaches to as many `go` statements of a program as its duty lets it.
    fn probe(
        &mut self,
        capture: &mut Capture,
        duty: &mut Duty,
        (pid, program): (u32, &Program),
        starts: &Starts,
    ) {
        if !self.uprobes {
            return;
        }
        for why in &starts.refused {
            self.refuse(pid, why.clone());
        }
        let places = match &starts.all {
            Ok(all) if self.all && !duty.is_away() => all,
            Err(error) if self.all => {
                self.refuse(pid, format!("--go-creators: {error:#}"));
                &starts.dials
            }
            // Those at dials alone cost little beside all.
            _ if self.all || !duty.is_away() => &starts.dials,
            _ => return,
        };
        match capture.attach_starts((pid, program.file()), places) {
            Ok(true) if !duty.is_away() => duty.begin(host::monotonic_ns()),
            Ok(_) => {}
            Err(error) => self.refuse(pid, format!("{error:#}")),
        }
    }

    /// They cost too much: leaves none, or those at dials where all are asked for.
    pub(super) fn rest(&mut self, capture: &mut Capture, duty: &mut Duty) {
        if self.all {
            self.probe_all(capture, duty);
        } else {
            capture.detach_group(Group::Starts);
        }
    }

    /// Attaches again; whether there is a program left.
    pub(super) fn attach_again(&mut self, capture: &mut Capture, duty: &mut Duty) -> bool {
        if self.known.is_empty() {
            return false;
        }
        duty.begin(host::monotonic_ns());
        self.probe_all(capture, duty);
        true
    }

    fn probe_all(&mut self, capture: &mut Capture, duty: &mut Duty) {
        let known = std::mem::take(&mut self.known);
        for (&pid, (program, starts)) in &known {
            self.probe(capture, duty, (pid, program), starts);
        }
        self.known = known;
    }

    /// What the report says of what could not be done.
    pub(super) fn hints(&self, runtime: impl Fn(u32) -> Option<String>) -> Vec<Hint> {
        let hint = |pid: u32, text: String| {
            Some(Hint {
                pid,
                runtime: runtime(pid)?,
                text,
                frames: 0,
            })
        };
        let refused = self.refused.iter().filter_map(|(pid, why)| {
            hint(
                *pid,
                format!("Who asks for descriptors is not known in full: {why}"),
            )
        });
        refused.collect()
    }
}
