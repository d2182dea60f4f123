//! Probes in Go programs: loaded with the others, attached to one process at a time, gone with it or with us.
//!
//! In groups, which come and go apart: those on locks, those on everything that goroutines park for, and those at `go` statements,
//! which `go_starts` has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    num::NonZeroU32,
    os::fd::AsRawFd as _,
    sync::Mutex,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    programs::{
        UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};

use super::{
    go_starts,
    plan::{Hook, Step},
    say_size,
};
use crate::go::{
    park_sites::ParkSites,
    pool_sites::PoolSites,
    sites::{Site, Sites},
};

/// A program, the function that it is attached to, and its group.
const PROGRAMS: [(&str, &str, Group); 10] = [
    ("go_netpoll", "runtime.netpollready", Group::Parks),
    ("go_notify_wait", "sync.runtime_notifyListWait", Group::Locks),
    ("go_park", "runtime.gopark", Group::Parks),
    ("go_pool_asked", "database/sql.(*DB).conn", Group::Locks),
    (
        "go_pool_given",
        "database/sql.(*DB).putConnDBLocked",
        Group::Locks,
    ),
    ("go_pool_got", "database/sql.(*DB).conn", Group::Locks),
    ("go_pool_wait", "database/sql.(*DB).conn", Group::Locks),
    ("go_ready", "runtime.readyWithTime", Group::Locks),
    ("go_semacquire", "runtime.semacquire1", Group::Locks),
    ("go_unpark", "runtime.ready", Group::Parks),
];

/// Probes that are taken away at once.
const THREADS_MAX: usize = 64;
/// Stack of a thread that does so.
const THREAD_STACK: usize = 64 << 10;

/// Which of the probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// On Go's locks, and on pools of connections.
    Locks,
    /// On everything that goroutines park for.
    Parks,
    /// At `go` statements.
    Starts,
}

/// All of them, in their order.
pub const GROUPS: [Group; 3] = [Group::Locks, Group::Parks, Group::Starts];

/// The programs as loaded, to be listed with the others.
pub(super) fn steps(parks: bool) -> impl Iterator<Item = Step> {
    wanted(parks).map(|(program, function, _)| Step {
        program,
        hook: Hook::Uprobe(function),
        required: false,
    })
}

fn wanted(parks: bool) -> impl Iterator<Item = (&'static str, &'static str, Group)> {
    PROGRAMS
        .into_iter()
        .filter(move |(.., group)| parks || *group == Group::Locks)
}

/// The group that a program is in.
pub(super) fn group(name: &str) -> Option<Group> {
    if go_starts::is_one(name) {
        return Some(Group::Starts);
    }
    let (.., group) = PROGRAMS.iter().find(|(program, ..)| *program == name)?;
    Some(*group)
}

/// Takes probes away. The kernel returns only when nobody can be in one any more, which takes 30 ms: all are given back at once, so that
/// none waits for us, and how many it takes away together is the kernel's.
pub(super) fn close(links: Vec<UProbeLink>) {
    let threads = links.len().min(THREADS_MAX);
    if threads <= 1 {
        return;
    }
    let links = Mutex::new(links);
    let take = || links.lock().ok()?.pop();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let builder = std::thread::Builder::new().stack_size(THREAD_STACK);
            let closing = builder.spawn_scoped(scope, || {
                while let Some(link) = take() {
                    drop(link);
                }
            });
            if let Err(error) = closing {
                log::debug!("no thread to take a probe away: {error}");
                break;
            }
        }
    });
    // What is left where there was no thread goes here.
}

/// Loads the programs.
pub(super) fn load(ebpf: &mut Ebpf, parks: bool) -> Result<()> {
    for (name, ..) in wanted(parks) {
        let program = program(ebpf, name)?;
        program.load()?;
        say_size(name, program.info());
    }
    Ok(())
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut UProbe> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Attachments by group and process.
#[derive(Default)]
pub(super) struct Uprobes {
    links: BTreeMap<(Group, u32), Vec<UProbeLink>>,
    /// Programs of which there was one at some time.
    were_attached: BTreeSet<&'static str>,
}

impl Uprobes {
    /// Attaches those on locks to a process, all or none.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        (pid, program): (u32, &File),
        sites: &Sites,
    ) -> Result<()> {
        // Ends before beginnings: a beginning whose end was missed would be a wait that never was.
        let places = [
            ("go_ready", Some(sites.ready)),
            ("go_notify_wait", sites.notify_wait),
            ("go_semacquire", Some(sites.semacquire)),
        ];
        self.put(ebpf, (Group::Locks, pid), program, places, |site| {
            sites.cookie(site).pack()
        })
    }

    /// Attaches those on pools of connections to a process, all or none: of the same group.
    pub(super) fn attach_pools(
        &mut self,
        ebpf: &mut Ebpf,
        (pid, program): (u32, &File),
        sites: &PoolSites,
    ) -> Result<()> {
        // Requests before waits: there are no more of these.
        let places = [
            ("go_pool_got", Some(sites.got)),
            ("go_pool_given", sites.given),
            ("go_pool_asked", sites.asked),
            ("go_pool_wait", Some(sites.wait)),
        ];
        self.put(ebpf, (Group::Locks, pid), program, places, |site| {
            sites.cookie(site).pack()
        })
    }

    /// Attaches those on parking to a process, all or none.
    pub(super) fn attach_parks(
        &mut self,
        ebpf: &mut Ebpf,
        (pid, program): (u32, &File),
        sites: &ParkSites,
    ) -> Result<()> {
        let places = [
            ("go_netpoll", sites.netpoll),
            ("go_unpark", Some(sites.ready)),
            ("go_park", Some(sites.park)),
        ];
        self.put(ebpf, (Group::Parks, pid), program, places, |site| {
            ParkSites::cookie(site).pack()
        })
    }

    /// Beside what is attached already.
    fn put<const N: usize>(
        &mut self,
        ebpf: &mut Ebpf,
        of: (Group, u32),
        file: &File,
        places: [(&'static str, Option<Site>); N],
        cookie: impl Fn(Site) -> u64,
    ) -> Result<()> {
        let mut links = Vec::new();
        for (name, site) in places {
            if let Some(site) = site {
                let link = attach(program(ebpf, name)?, (of.1, file), site, cookie(site));
                links.push(link.with_context(|| name.to_owned())?);
                self.were_attached.insert(name);
            }
        }
        self.links.entry(of).or_default().extend(links);
        Ok(())
    }

    /// Detaches from a process that ended, or has another program now.
    pub(super) fn detach(&mut self, pid: u32) {
        close(self.take(|_, of| of == pid));
    }

    /// Detaches a group from all processes.
    pub(super) fn detach_group(&mut self, group: Group) {
        close(self.take(|of, _| of == group));
    }

    /// Attachments that are to go.
    pub(super) fn take(&mut self, which: impl Fn(Group, u32) -> bool) -> Vec<UProbeLink> {
        let mut taken = Vec::new();
        self.links.retain(|&(group, pid), links| {
            let goes = which(group, pid);
            if goes {
                taken.append(links);
            }
            !goes
        });
        taken
    }

    /// Whether some are attached to a process.
    pub(super) fn are_at(&self, pid: u32) -> bool {
        self.links.keys().any(|(_, of)| *of == pid)
    }

    /// Whether a program was attached to a process at some time, or is none of these.
    pub(super) fn was_attached(&self, name: &str) -> bool {
        // Those on pools are in the few programs that have some.
        group(name).is_none_or(|group| {
            self.were_attached.contains(name) || (!name.starts_with("go_pool_") && self.has_been(group))
        })
    }

    /// Whether one of a group was.
    pub(super) fn has_been(&self, group: Group) -> bool {
        self.were_attached
            .iter()
            .any(|name| self::group(name) == Some(group))
    }
}

/// By the file in which the place was found: should the process run another one by now, none of its code is changed.
pub(super) fn attach(
    program: &mut UProbe,
    (pid, file): (u32, &File),
    site: Site,
    cookie: u64,
) -> Result<UProbeLink> {
    let point = UProbeAttachPoint {
        location: UProbeAttachLocation::AbsoluteOffset(site.offset),
        cookie: Some(cookie),
    };
    let scope = UProbeScope::OneProcess(NonZeroU32::new(pid).context("process 0")?);
    let id = program.attach(point, format!("/proc/self/fd/{}", file.as_raw_fd()), scope)?;
    Ok(program.take_link(id)?)
}
