//! Which targets are Go programs whose locks are traced: found out at the start, at every exec, and again for a while where the
//! program was still being set up.

use anyhow::Result;
use rustc_hash::FxHashMap;

use crate::{
    capture::Capture,
    go::{locks::LockLayout, memory::Live, program::Program, sites::Sites},
    report::model::Hint,
};

/// Looks at a program before it is given up: two seconds, at four a second.
const LOOKS: u32 = 8;

/// The Go programs among the targets.
#[derive(Default)]
pub(super) struct GoPrograms {
    /// Layouts of their locks, by process.
    pub(super) layouts: FxHashMap<u32, LockLayout>,
    /// Processes to be looked at, and how often they may be.
    wanted: Vec<(u32, u32)>,
    /// Why the others' locks are not traced.
    refused: Vec<(u32, String)>,
}

impl GoPrograms {
    /// A process runs a Go program, as its file says.
    pub(super) fn want(&mut self, pid: u32) {
        self.forget(pid);
        self.wanted.push((pid, LOOKS));
    }

    /// It ended, or runs another program now.
    pub(super) fn forget(&mut self, pid: u32) {
        self.wanted.retain(|(wanted, _)| *wanted != pid);
    }

    /// Attaches where that is possible now.
    pub(super) fn attach(&mut self, capture: &mut Capture) {
        for (pid, looks) in std::mem::take(&mut self.wanted) {
            match attach(capture, pid) {
                Ok(layout) => {
                    log::debug!("process {pid}: {layout:?}");
                    self.layouts.insert(pid, layout);
                }
                // A program that is just being loaded has no memory to read yet.
                Err(_) if looks > 1 => self.wanted.push((pid, looks - 1)),
                Err(error) => {
                    log::debug!("process {pid}: Go's locks are not traced: {error:#}");
                    self.refused.push((pid, format!("{error:#}")));
                }
            }
        }
    }

    /// What the report says of those that were refused.
    pub(super) fn hints(&self, runtime: impl Fn(u32) -> Option<String>) -> Vec<Hint> {
        let hint = |(pid, why): &(u32, String)| {
            Some(Hint {
                pid: *pid,
                runtime: runtime(*pid)?,
                text: format!("Go's own locks are not timed: {why}"),
                frames: 0,
            })
        };
        self.refused.iter().filter_map(hint).collect()
    }
}

fn attach(capture: &mut Capture, pid: u32) -> Result<LockLayout> {
    let program = Program::open(pid)?;
    let memory = Live::new(pid);
    let sites = Sites::find(&memory, &program)?;
    capture.attach_go(pid, &sites)?;
    Ok(LockLayout::find(&memory, &program))
}
