//! Which goroutines make descriptors, and who made those: what the probes must know of each Go program, and probes at its `go`
//! statements.

use std::{collections::BTreeMap, fs::File};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData},
    programs::{UProbe, uprobe::UProbeLink},
};
use tracer_ebpf::wire::GoLayout;

use super::{
    Wire,
    plan::{Hook, Step},
    say_size, uprobes,
};
use crate::go::starts::Places;

/// Programs; both are about what this function makes.
const PROGRAMS: [&str; 2] = ["go_asked", "go_started"];
const FUNCTION: &str = "runtime.newproc";

/// Whether a program is one of these.
pub(super) fn is_one(program: &str) -> bool {
    PROGRAMS.contains(&program)
}

/// The programs as loaded, to be listed with the others.
pub(super) fn steps() -> impl Iterator<Item = Step> {
    PROGRAMS.into_iter().map(|program| Step {
        program,
        hook: Hook::Uprobe(FUNCTION),
        required: false,
    })
}

/// Loads the programs.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<()> {
    for name in PROGRAMS {
        let program = program(ebpf, name)?;
        program.load()?;
        say_size(name, program.info());
    }
    Ok(())
}

/// Go programs among the targets.
pub(super) struct GoStarts {
    targets: HashMap<MapData, u32, Wire<GoLayout>>,
    /// The kernel says where it keeps a thread's `fs` base.
    readable: bool,
    links: BTreeMap<u32, Vec<UProbeLink>>,
    /// There was an attachment at some time.
    pub(super) were_attached: bool,
}

impl GoStarts {
    /// With the map of Go programs.
    pub(super) fn new(targets: Map, readable: bool) -> Result<Self> {
        Ok(Self {
            targets: HashMap::try_from(targets)?,
            readable,
            links: BTreeMap::new(),
            were_attached: false,
        })
    }

    /// The probes may tell this process's goroutines.
    pub(super) fn know(&mut self, pid: u32, layout: GoLayout) -> Result<()> {
        ensure!(
            self.readable,
            "this kernel's BTF does not say where a thread's fs base is"
        );
        Ok(self.targets.insert(pid, Wire(layout), 0)?)
    }

    /// Attaches to a process, all or none, in place of what was attached before; whether there was something to be attached.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        (pid, file): (u32, &File),
        places: &Places,
    ) -> Result<bool> {
        let mut links = Vec::new();
        // Beginnings first: one that was not asked for is nobody's, and what was asked for and began unseen would stay.
        // They are taken away from the end.
        for (name, places) in [("go_started", &places.started), ("go_asked", &places.asked)] {
            for place in places {
                let link =
                    uprobes::attach(program(ebpf, name)?, (pid, file), place.site, place.cookie.pack());
                links.push(link.with_context(|| name.to_owned())?);
            }
        }
        let any = !links.is_empty();
        self.were_attached |= any;
        uprobes::close(self.links.insert(pid, links).unwrap_or_default());
        Ok(any)
    }

    /// All attachments, which are to go.
    pub(super) fn take(&mut self) -> Vec<UProbeLink> {
        std::mem::take(&mut self.links).into_values().flatten().collect()
    }

    /// Detaches from a process that ended, or has another program now.
    pub(super) fn forget(&mut self, pid: u32) {
        uprobes::close(self.links.remove(&pid).unwrap_or_default());
        // Absent when it was no Go program.
        if let Err(error) = self.targets.remove(&pid) {
            log::trace!("goroutines of {pid}: {error}");
        }
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut UProbe> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    Ok(program.try_into()?)
}
