//! `--go-write`: the only part of ctrace that writes into a target's memory.
//!
//! Per process, once: its memory is opened, everything is found and checked in that memory, the watchdog is armed
//! ([`super::watchdog`]), what will be written is said aloud, and then it is written. At the end the tables are read once more, the
//! watchdog puts the old bytes back, and its answer is in the report.

mod site;

use std::collections::BTreeMap;

pub use self::site::{Opened, Profile, Proof, Site, Written};
use crate::{cli::go_write::GoWrite, go::ticks::Moment, session::go::GoTargets};

/// Times that beginning with a process is tried, a quarter of a second apart: it may just be becoming another program.
const TRIES: u32 = 4;
/// Begins the sentence that says so.
pub const NOTHING: &str = "--go-write wrote nothing into it";

/// All of it.
pub struct GoWriter {
    asked: Option<GoWrite>,
    since: Moment,
    sites: BTreeMap<u32, Site>,
    /// Processes that could not be begun with: how often it was tried, and why not.
    failed: BTreeMap<u32, (u32, String)>,
    over: bool,
}

impl GoWriter {
    /// Nothing is written yet.
    #[must_use]
    pub fn new(asked: Option<GoWrite>) -> Self {
        Self {
            asked,
            since: Moment::now(),
            sites: BTreeMap::new(),
            failed: BTreeMap::new(),
            over: false,
        }
    }

    /// Begins with Go programs that are new. A process is written to once: not again when it runs another program.
    pub fn begin(&mut self, go: &GoTargets) {
        let Some(asked) = self.asked.filter(|_| !self.over) else {
            return;
        };
        for (pid, target) in go.iter() {
            let tried = self.failed.get(&pid).map_or(0, |(tries, _)| *tries);
            if self.sites.contains_key(&pid) || tried >= TRIES || target.goroutines.snapshots() == 0 {
                continue;
            }
            match Site::open(pid, target, asked, &self.since) {
                Ok(site) => {
                    self.failed.remove(&pid);
                    self.sites.insert(pid, site);
                }
                Err(error) => {
                    self.failed.insert(pid, (tried + 1, error.to_string()));
                }
            }
        }
    }

    /// Looks whether collections have searched: often, as what they found is forgotten by a later one.
    pub fn tick(&mut self) {
        for site in self.sites.values_mut() {
            site.look_for_leaks();
        }
    }

    /// Begins with new ones; reads tables where that is due.
    pub fn sample(&mut self, go: &GoTargets) {
        self.begin(go);
        for (pid, site) in &mut self.sites {
            let target = go
                .iter()
                .find(|(other, _)| other == pid)
                .map(|(_, target)| target);
            if let Some(target) = target {
                site.read_profile(target.reader.program(), false);
                let force = self.asked.is_some_and(|asked| asked.force);
                site.hold_back(target, force);
            }
            site.mind_the_watchdog();
        }
    }

    /// Reads everything for a report.
    pub fn read(&mut self, go: &GoTargets) {
        self.tick();
        for (pid, target) in go.iter() {
            if let Some(site) = self.sites.get_mut(&pid) {
                site.read_profile(target.reader.program(), true);
            }
        }
    }

    /// A process runs another program now: what was read of the one before says nothing of this one.
    pub fn forget(&mut self, pid: u32) {
        if let Some(site) = self.sites.get_mut(&pid) {
            (site.profile, site.proof) = (None, None);
            site.refused
                .push("the program that --go-write wrote into was replaced by another one".to_owned());
        }
    }

    /// Has everything put back.
    pub fn end(&mut self) {
        self.over = true;
        for site in self.sites.values_mut() {
            site.end();
        }
    }

    /// What is, or was, done to a process.
    #[must_use]
    pub fn site(&self, pid: u32) -> Option<&Site> {
        self.sites.get(&pid)
    }

    /// Processes, and what was not done to them, and why.
    pub fn refused(&self) -> impl Iterator<Item = (u32, String)> {
        let parts = self
            .sites
            .iter()
            .flat_map(|(&pid, site)| site.refused.iter().map(move |why| (pid, why.clone())));
        let whole = self
            .failed
            .iter()
            .map(|(&pid, (_, why))| (pid, format!("{NOTHING}: {why}")));
        parts.chain(whole)
    }

    /// Nothing was begun with.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.sites.is_empty() && self.failed.is_empty()
    }

    /// It was asked for.
    #[must_use]
    pub const fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Nanoseconds in a tick of the processor's clock.
    #[must_use]
    pub fn tick_ns(&self) -> Option<f64> {
        Some(1.0 / self.since.pace()?)
    }
}
