//! Probes in Go programs: loaded with the others, attached to one process at a time, gone with it or with us.

use std::{collections::BTreeMap, num::NonZeroU32};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    programs::{
        UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};

use super::{
    plan::{Hook, Step},
    say_size,
};
use crate::go::sites::{Site, Sites};

/// Programs and the functions that they are attached to.
const PROGRAMS: [(&str, &str); 3] = [
    ("go_notify_wait", "sync.runtime_notifyListWait"),
    ("go_ready", "runtime.readyWithTime"),
    ("go_semacquire", "runtime.semacquire1"),
];

/// The programs as loaded, to be listed with the others.
pub(super) fn steps() -> impl Iterator<Item = Step> {
    PROGRAMS.into_iter().map(|(program, function)| Step {
        program,
        hook: Hook::Uprobe(function),
        required: false,
    })
}

/// Loads the programs.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<()> {
    for (name, _) in PROGRAMS {
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

/// Attachments by process.
#[derive(Default)]
pub(super) struct Uprobes {
    links: BTreeMap<u32, Vec<UProbeLink>>,
    /// There was one at some time.
    pub(super) were_attached: bool,
}

impl Uprobes {
    /// Attaches to a process, all or none.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf, pid: u32, sites: &Sites) -> Result<()> {
        let places = [
            ("go_ready", Some(sites.ready)),
            ("go_notify_wait", sites.notify_wait),
            ("go_semacquire", Some(sites.semacquire)),
        ];
        let mut links = Vec::new();
        // Ends before beginnings: a beginning whose end was missed would be a wait that never was.
        for (name, site) in places {
            if let Some(site) = site {
                links.push(attach(program(ebpf, name)?, pid, sites, site).with_context(|| name.to_owned())?);
            }
        }
        self.links.insert(pid, links);
        self.were_attached = true;
        Ok(())
    }

    /// Detaches from a process that ended, or has another program now.
    pub(super) fn detach(&mut self, pid: u32) {
        self.links.remove(&pid);
    }
}

/// By the file that the process runs, which may have no name any more.
fn attach(program: &mut UProbe, pid: u32, sites: &Sites, site: Site) -> Result<UProbeLink> {
    let point = UProbeAttachPoint {
        location: UProbeAttachLocation::AbsoluteOffset(site.offset),
        cookie: Some(sites.cookie(site).pack()),
    };
    let scope = UProbeScope::OneProcess(NonZeroU32::new(pid).context("process 0")?);
    let id = program.attach(point, format!("/proc/{pid}/exe"), scope)?;
    Ok(program.take_link(id)?)
}
