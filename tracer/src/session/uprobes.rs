//! Which targets are Go programs whose locks, and goroutines' waits, are traced.

use std::{collections::BTreeMap, fs::File, rc::Rc};

use anyhow::{Error, Result};
use rustc_hash::FxHashMap;

use super::duty::Duties;
use crate::{
    capture::{Capture, uprobes::Group},
    go::{
        locks::LockLayout, memory::Live, park_sites::ParkSites, pool_sites::PoolSites, program::Program,
        sites::Sites,
    },
    proc::host,
    report::model::Hint,
};

/// Where a program is probed.
struct Places {
    /// The file that they are in.
    file: File,
    locks: Sites,
    parks: Option<ParkSites>,
    pools: Option<PoolSites>,
}

/// The Go programs among the targets.
#[derive(Default)]
pub(super) struct GoPrograms {
    /// Layouts of their locks, by process.
    pub(super) layouts: FxHashMap<u32, LockLayout>,
    /// Why their goroutines wait, by number, by process; of those whose parking is traced.
    pub(super) reasons: FxHashMap<u32, Vec<String>>,
    /// Those that are probed.
    places: BTreeMap<u32, Places>,
    /// What is not traced of the others, and why.
    refused: Vec<(u32, String)>,
}

impl GoPrograms {
    /// It ended, or runs another program now.
    pub(super) fn forget(&mut self, pid: u32) {
        self.places.remove(&pid);
        self.refused.retain(|(of, _)| *of != pid);
    }

    /// A process runs this program, or one that cannot be opened; whether the probes must be told that they are there.
    pub(super) fn attach(
        &mut self,
        capture: &mut Capture,
        duties: &mut Duties,
        pid: u32,
        program: &Result<Rc<Program>>,
    ) -> bool {
        let attached = match program {
            Ok(program) => self.attach_one(capture, duties, pid, program),
            Err(error) => Err(Error::msg(format!("{error:#}"))),
        };
        attached.unwrap_or_else(|error| {
            self.refuse(pid, format!("Go's own locks are not timed: {error:#}"));
            false
        })
    }

    fn attach_one(
        &mut self,
        capture: &mut Capture,
        duties: &mut Duties,
        pid: u32,
        program: &Program,
    ) -> Result<bool> {
        let memory = Live::new(pid);
        let mut locks = Sites::find(&memory, program)?;
        // `net/http` waits for one at each request, and nobody but itself for it.
        locks.conditions = duties.is_all_wanted() || duties.parks.is_some();
        let layout = LockLayout::find(&memory, program);
        log::debug!("process {pid}: {layout:?}");
        let parks = duties.parks.as_ref().map(|_| ParkSites::find(&memory, program));
        let parks = parks.transpose().unwrap_or_else(|error| {
            self.refuse(pid, format!("waits of goroutines are not timed: {error:#}"));
            None
        });
        if let Some(parks) = &parks {
            log::debug!("process {pid}: {:?}", parks.layout);
            self.reasons.insert(pid, parks.reasons.clone());
        }
        let mut pools = PoolSites::find(&memory, program);
        if let Some(Ok(pools)) = &mut pools
            && !duties.is_all_wanted()
        {
            pools.asked = None;
        }
        let file = program.file().try_clone()?;
        let mut places = Places {
            file,
            locks,
            parks,
            pools: None,
        };
        let mut begun = places.attach(capture, duties, Group::Locks, pid)?;
        let attached = pools.map(|pools| {
            let pools = pools?;
            // Where the others are away these come with them.
            if duties.locks.is_on() {
                capture.attach_pools((pid, &places.file), &pools)?;
            }
            anyhow::Ok(pools)
        });
        match attached.transpose() {
            Ok(pools) => places.pools = pools,
            Err(error) => self.refuse(
                pid,
                format!("waits for connections of pools are not timed: {error:#}"),
            ),
        }
        match places.attach(capture, duties, Group::Parks, pid) {
            Ok(first) => begun |= first,
            Err(error) => {
                self.refuse(pid, format!("waits of goroutines are not timed: {error:#}"));
                places.parks = None;
            }
        }
        self.layouts.insert(pid, layout);
        self.places.insert(pid, places);
        Ok(begun)
    }

    /// Puts a group's probes into all programs again; whether they are in one.
    pub(super) fn attach_again(&self, capture: &mut Capture, group: Group) -> bool {
        let mut any = false;
        for (&pid, places) in &self.places {
            match places.put(capture, group, pid) {
                Ok(put) => any |= put,
                Err(error) => log::info!("process {pid} is not probed again: {error:#}"),
            }
        }
        any
    }

    /// Processes whose pools of connections are probed, or were a while ago.
    pub(super) fn with_pools(&self) -> impl Iterator<Item = u32> {
        let probed = self.places.iter().filter(|(_, places)| places.pools.is_some());
        probed.map(|(&pid, _)| pid)
    }

    /// Whether all requests for connections of a process are counted, not those alone that wait.
    pub(super) fn counts_requests(&self, pid: u32) -> bool {
        let pools = self.places.get(&pid).and_then(|places| places.pools.as_ref());
        pools.is_some_and(|pools| pools.asked.is_some())
    }

    fn refuse(&mut self, pid: u32, why: String) {
        log::debug!("process {pid}: {why}");
        self.refused.push((pid, why));
    }

    /// What the report says of those that were refused.
    pub(super) fn hints(&self, runtime: impl Fn(u32) -> Option<String>) -> Vec<Hint> {
        let hint = |(pid, why): &(u32, String)| {
            Some(Hint {
                pid: *pid,
                runtime: runtime(*pid)?,
                text: why.clone(),
                frames: 0,
            })
        };
        self.refused.iter().filter_map(hint).collect()
    }
}

impl Places {
    /// Attaches a group to a process unless it is away for now; whether it is there for the first time.
    fn attach(&self, capture: &mut Capture, duties: &mut Duties, group: Group, pid: u32) -> Result<bool> {
        let Some(duty) = duties.of(group) else {
            return Ok(false);
        };
        if duty.is_away() || !self.put(capture, group, pid)? {
            return Ok(false);
        }
        let begins = !duty.is_on();
        duty.begin(host::monotonic_ns());
        Ok(begins)
    }

    /// Whether there was something to be attached.
    fn put(&self, capture: &mut Capture, group: Group, pid: u32) -> Result<bool> {
        match (group, &self.parks) {
            (Group::Locks, _) => {
                capture.attach_go((pid, &self.file), &self.locks)?;
                if let Some(pools) = &self.pools {
                    capture.attach_pools((pid, &self.file), pools)?;
                }
            }
            (Group::Parks, Some(parks)) => capture.attach_parks((pid, &self.file), parks)?,
            // Those at `go` statements are put by who knows the places.
            (Group::Parks, None) | (Group::Starts, _) => return Ok(false),
        }
        Ok(true)
    }
}
