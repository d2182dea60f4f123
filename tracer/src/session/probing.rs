//! The probes in Go programs held under what they may cost, and what the report says of it.

use std::time::Duration;

use anyhow::Result;
use tracer_ebpf::wire::{Control, counter};

use super::{
    duty::{Cost, Duties, Duty, Turn, Wanted},
    tracing::Tracing,
};
use crate::{
    capture::{
        Capture,
        uprobes::{GROUPS, Group},
    },
    proc::host,
    report::model::GoProbes,
};

/// What the kernel tells of a probe's cost is asked for so often.
const ASK_NS: u64 = 250_000_000;

/// Of the window, what may be missing to nobody's harm: the moments from the window's begin until the probes are there.
const WHOLE: f64 = 0.9;

/// Counters of the probes, summed up to some time.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    hits: u64,
    under_way: u64,
    unended: u64,
    unmatched: u64,
}

impl Counted {
    fn read(capture: &Capture, group: Group) -> Result<Self> {
        let hits = capture.hits(group)?;
        if group != Group::Parks {
            return Ok(Self {
                hits,
                ..Self::default()
            });
        }
        let unended = capture.counter(counter::GO_PARK_UNENDED)?;
        let over = capture.counter(counter::GO_PARK_ENDED)? + unended;
        Ok(Self {
            hits,
            under_way: capture.counter(counter::GO_PARK_BEGUN)?.saturating_sub(over),
            unended,
            unmatched: capture.counter(counter::GO_PARK_UNMATCHED)?,
        })
    }
}

/// What is remembered of one group.
#[derive(Clone, Copy, Debug, Default)]
struct OfGroup {
    /// When the cost was last looked at: hits, records, and those of all.
    hits: u64,
    records: u64,
    all_records: u64,
    drained: Duration,
    /// In a probe for each hit.
    probe_ns: Option<f64>,
    asked_ns: u64,
    /// When the present part began.
    part: Counted,
    /// When the window began.
    window: Counted,
    /// Waits of this window that were under way when a part ended.
    cut: u64,
    /// Cost that has not been told to who counts all costs, and how much was spent in user space since it was last asked for.
    untold_ns: f64,
    user_ns: f64,
}

/// The state of it.
pub(super) struct Probing {
    pub(super) duties: Duties,
    /// `--go-creators`.
    creators: bool,
    /// CPU time for taking records, from probes of every kind.
    pub(super) drained: Duration,
    groups: [OfGroup; GROUPS.len()],
}

impl Probing {
    /// With the probes that are asked for.
    pub(super) fn new(wanted: Wanted) -> Self {
        Self {
            duties: Duties::new(wanted, host::monotonic_ns()),
            creators: wanted.creators,
            drained: Duration::ZERO,
            groups: Default::default(),
        }
    }

    /// Tells the probes since when what they record is valid.
    pub(super) fn mark(&self, control: Control) -> Control {
        self.duties.mark(control)
    }

    /// What they cost, for one who counts all costs: how much of the CPU time of user space since this was last asked for is theirs, and
    /// what stands for them instead. That is never more than they may cost: as they go away for what they cost more, the rest is
    /// told in the time when they are away.
    pub(super) fn take_cost_ns(&mut self, elapsed_ns: u64) -> (f64, f64) {
        let mut sums = (0.0, 0.0);
        for (group, known) in GROUPS.into_iter().zip(&mut self.groups) {
            let percent = self.duties.get(group).map_or(0.0, Duty::percent);
            let told = known.untold_ns.min(elapsed_ns as f64 * percent / 100.0);
            known.untold_ns -= told;
            sums.0 += std::mem::take(&mut known.user_ns);
            sums.1 += told;
        }
        sums
    }

    /// How long the probes of a group were there in the window, where that was not all of it.
    pub(super) fn in_part(&self, group: Group, now_ns: u64, window_ns: u64) -> Option<u64> {
        let (covered_ns, ..) = self.duties.get(group)?.covered(now_ns);
        ((covered_ns as f64) < window_ns as f64 * WHOLE).then_some(covered_ns)
    }

    /// What of the window was covered; of the groups that were attached.
    pub(super) fn report(&self, capture: &Capture, now_ns: u64) -> Vec<GoProbes> {
        let told = GROUPS.into_iter().zip(&self.groups);
        told.filter_map(|(group, known)| {
            let duty = self.duties.get(group)?;
            let (covered_ns, parts, cpu_percent) = duty.covered(now_ns);
            if !capture.was_attached(group) {
                return None;
            }
            let now = Counted::read(capture, group).unwrap_or(known.window);
            let parks = group == Group::Parks;
            let name = match group {
                Group::Locks => "locks",
                Group::Parks => "waits",
                Group::Starts if self.creators => "creators",
                Group::Starts => "dials",
            };
            Some(GoProbes {
                group: name.to_owned(),
                covered_ns,
                parts,
                percent: Some(duty.percent()),
                cpu_percent: Some(cpu_percent),
                hits: now.hits.saturating_sub(known.window.hits),
                cut: parks.then_some(known.cut),
                unended: parks.then(|| now.unended.saturating_sub(known.window.unended)),
                unmatched: parks.then(|| now.unmatched.saturating_sub(known.window.unmatched)),
            })
        })
        .collect()
    }

    /// Begins a new window.
    pub(super) fn reset(&mut self, capture: Option<&Capture>, now_ns: u64) {
        for (group, known) in GROUPS.into_iter().zip(&mut self.groups) {
            if let Some(counted) = capture.and_then(|capture| Counted::read(capture, group).ok()) {
                known.window = counted;
            }
            known.cut = 0;
        }
        self.duties.reset(now_ns);
    }
}

impl Tracing {
    /// The first window begins.
    pub(super) fn begin_probing(&mut self) -> Result<()> {
        self.probing.reset(self.capture.as_ref(), self.edge.ns);
        self.set_control()
    }

    /// What holds at present, for the probes.
    pub(super) fn control(&self) -> Control {
        let setting = self.budget.setting();
        let control = setting.control(super::tracing::shadow_mask(&self.options), self.edge.ns);
        Control {
            ticks_mask: self.sampling.mask(),
            faults_mask: self.faulting.mask(),
            ..self.probing.mark(control)
        }
    }

    /// Tells the probes what holds at present.
    pub(super) fn set_control(&mut self) -> Result<()> {
        let control = self.control();
        match &mut self.capture {
            Some(capture) => capture.set_control(control),
            None => Ok(()),
        }
    }

    /// Takes probes in programs away that cost more than they may, and puts them there again.
    pub fn hold_probes(&mut self) -> Result<()> {
        for (at, group) in GROUPS.into_iter().enumerate() {
            let Some(turn) = self.turn(at, group)? else {
                continue;
            };
            match turn {
                Turn::Stay => {}
                Turn::Leave => {
                    // Nothing is recorded any more while they are taken away.
                    self.set_control()?;
                    self.leave(at, group)?;
                    log::info!("probes in programs are taken away: {group:?}");
                }
                Turn::Return => {
                    if self.put_back(at, group)? {
                        self.set_control()?;
                        log::info!("probes in programs are there again: {group:?}");
                    }
                }
            }
        }
        Ok(())
    }

    fn leave(&mut self, at: usize, group: Group) -> Result<()> {
        let Some(capture) = &mut self.capture else {
            return Ok(());
        };
        let now = Counted::read(capture, group)?;
        let known = &mut self.probing.groups[at];
        known.cut += now.under_way.saturating_sub(known.part.under_way);
        if group == Group::Starts {
            self.creators.rest(capture, &mut self.probing.duties.starts);
        } else {
            capture.detach_group(group);
        }
        Ok(())
    }

    /// Whether there is a program left to be probed.
    fn put_back(&mut self, at: usize, group: Group) -> Result<bool> {
        let Some(capture) = &mut self.capture else {
            return Ok(false);
        };
        if group == Group::Starts {
            let any = self
                .creators
                .attach_again(capture, &mut self.probing.duties.starts);
            return Ok(any);
        }
        if !self.uprobes.attach_again(capture, group) {
            return Ok(false);
        }
        self.probing.groups[at].part = Counted::read(capture, group)?;
        if let Some(duty) = self.probing.duties.of(group) {
            duty.begin(host::monotonic_ns());
        }
        Ok(true)
    }

    fn turn(&mut self, at: usize, group: Group) -> Result<Option<Turn>> {
        let (Some(capture), Some(duty)) = (&self.capture, self.probing.duties.of(group)) else {
            return Ok(None);
        };
        if !duty.is_on() && !duty.is_away() {
            return Ok(None);
        }
        let now = host::monotonic_ns();
        let known = &mut self.probing.groups[at];
        if now.saturating_sub(known.asked_ns) > ASK_NS {
            known.asked_ns = now;
            known.probe_ns = capture.hit_ns(group);
        }
        let hits = capture.hits(group)?;
        // Its part of the CPU time for taking records is that of its records among all.
        let (records, all) = (self.pipeline.go_records()[at], self.pipeline.records());
        let drained = self.probing.drained;
        let user = drained.saturating_sub(std::mem::replace(&mut known.drained, drained));
        let own = records.saturating_sub(std::mem::replace(&mut known.records, records));
        let of_all = all.saturating_sub(std::mem::replace(&mut known.all_records, all));
        let cost = Cost {
            hits: hits.saturating_sub(std::mem::replace(&mut known.hits, hits)),
            probe_ns: known.probe_ns,
            user_ns: user.as_nanos() as f64 * (own as f64 / of_all.max(1) as f64).min(1.0),
        };
        known.untold_ns += cost.ns();
        known.user_ns += cost.user_ns;
        Ok(Some(duty.turn(now, &cost)))
    }
}
