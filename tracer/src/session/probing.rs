//! The probes in Go programs held under what they may cost, and what the report says of it.

use std::time::Duration;

use anyhow::Result;
use tracer_ebpf::wire::{Control, counter};

use super::{
    duty::{Cost, Duties, Duty, Turn},
    tracing::Tracing,
};
use crate::{
    capture::{Capture, uprobes::Group},
    proc::host,
    report::model::GoProbes,
};

/// What the kernel tells of a probe's cost is asked for so often.
const ASK_NS: u64 = 250_000_000;

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
        Ok(match group {
            Group::Locks => Self {
                hits: capture.counter(counter::GO_LOCK_HITS)?,
                ..Self::default()
            },
            Group::Parks => {
                let unended = capture.counter(counter::GO_PARK_UNENDED)?;
                let over = capture.counter(counter::GO_PARK_ENDED)? + unended;
                Self {
                    hits: capture.counter(counter::GO_PARK_HITS)?,
                    under_way: capture.counter(counter::GO_PARK_BEGUN)?.saturating_sub(over),
                    unended,
                    unmatched: capture.counter(counter::GO_PARK_UNMATCHED)?,
                }
            }
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
    cpu: Duration,
    /// In a probe for each hit.
    probe_ns: Option<f64>,
    asked_ns: u64,
    /// When the present part began.
    part: Counted,
    /// When the window began.
    window: Counted,
    /// Waits of this window that were under way when a part ended.
    cut: u64,
    /// Cost since it was last asked for, and how much of that in user space.
    spent_ns: f64,
    user_ns: f64,
}

/// The state of it.
pub(super) struct Probing {
    pub(super) duties: Duties,
    groups: [OfGroup; 2],
}

const GROUPS: [Group; 2] = [Group::Locks, Group::Parks];

impl Probing {
    /// Under a budget, and whether everything that goroutines park for is wanted.
    pub(super) fn new(budget: Option<f64>, parks: bool) -> Self {
        Self {
            duties: Duties::new(budget, parks, host::monotonic_ns()),
            groups: Default::default(),
        }
    }

    /// Tells the probes since when what they record is valid.
    pub(super) fn mark(&self, control: Control) -> Control {
        self.duties.mark(control)
    }

    /// What they cost since this was last asked for, for one who counts all costs: how much of it is in the CPU time of user space, and all
    /// of it, or what they may cost where it was more, as they are taken away for that.
    pub(super) fn take_cost_ns(&mut self, elapsed_ns: u64) -> (f64, f64) {
        let duties = [Some(&self.duties.locks), self.duties.parks.as_ref()];
        let mut sums = (0.0, 0.0);
        for (duty, known) in duties.into_iter().zip(&mut self.groups) {
            let may = duty
                .and_then(Duty::percent)
                .map_or(f64::INFINITY, |percent| elapsed_ns as f64 * percent / 100.0);
            sums.0 += std::mem::take(&mut known.user_ns);
            sums.1 += std::mem::take(&mut known.spent_ns).min(may);
        }
        sums
    }

    /// What of the window was covered; of the groups that were attached.
    pub(super) fn report(&self, capture: &Capture, now_ns: u64) -> Vec<GoProbes> {
        let duties = [Some(&self.duties.locks), self.duties.parks.as_ref()];
        let told = GROUPS.into_iter().zip(duties).zip(&self.groups);
        told.filter_map(|((group, duty), known)| {
            let duty = duty?;
            let (covered_ns, parts, cpu_percent) = duty.covered(now_ns);
            if !capture.was_attached(group) {
                return None;
            }
            let now = Counted::read(capture, group).unwrap_or(known.window);
            let parks = group == Group::Parks;
            Some(GoProbes {
                group: if parks { "waits" } else { "locks" }.to_owned(),
                covered_ns,
                parts,
                percent: duty.percent(),
                cpu_percent: duty.percent().map(|_| cpu_percent),
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
            if let Some(duty) = self.duties.of(group) {
                duty.reset(now_ns);
            }
        }
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
        self.probing
            .mark(setting.control(super::tracing::shadow_mask(&self.options), self.edge.ns))
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
                    // Nothing is recorded any more while they are taken away one by one.
                    self.set_control()?;
                    if let Some(capture) = &mut self.capture {
                        let now = Counted::read(capture, group)?;
                        let known = &mut self.probing.groups[at];
                        known.cut += now.under_way.saturating_sub(known.part.under_way);
                        capture.detach_group(group);
                        log::info!("probes in programs are taken away: {group:?}");
                    }
                }
                Turn::Return => {
                    let Some(capture) = &mut self.capture else {
                        continue;
                    };
                    // All targets may have ended.
                    if !self.uprobes.attach_again(capture, group) {
                        continue;
                    }
                    self.probing.groups[at].part = Counted::read(capture, group)?;
                    if let Some(duty) = self.probing.duties.of(group) {
                        duty.begin(host::monotonic_ns());
                    }
                    self.set_control()?;
                    log::info!("probes in programs are there again: {group:?}");
                }
            }
        }
        Ok(())
    }

    fn turn(&mut self, at: usize, group: Group) -> Result<Option<Turn>> {
        let (Some(capture), Some(duty)) = (&self.capture, self.probing.duties.of(group)) else {
            return Ok(None);
        };
        if !duty.is_bounded() || (!duty.is_on() && !duty.is_away()) {
            return Ok(None);
        }
        let now = host::monotonic_ns();
        let known = &mut self.probing.groups[at];
        if now.saturating_sub(known.asked_ns) > ASK_NS {
            known.asked_ns = now;
            known.probe_ns = capture.hit_ns(group);
        }
        let hits = capture.counter(match group {
            Group::Locks => counter::GO_LOCK_HITS,
            Group::Parks => counter::GO_PARK_HITS,
        })?;
        // Its part of the CPU time is that of its records among all.
        let (records, all) = (self.pipeline.go_records()[at], self.pipeline.records());
        let cpu = host::own_cpu();
        let user = cpu.saturating_sub(std::mem::replace(&mut known.cpu, cpu));
        let own = records.saturating_sub(std::mem::replace(&mut known.records, records));
        let of_all = all.saturating_sub(std::mem::replace(&mut known.all_records, all));
        let cost = Cost {
            hits: hits.saturating_sub(std::mem::replace(&mut known.hits, hits)),
            probe_ns: known.probe_ns,
            user_ns: user.as_nanos() as f64 * own as f64 / of_all.max(1) as f64,
        };
        known.spent_ns += cost.ns();
        known.user_ns += cost.user_ns;
        Ok(Some(duty.turn(now, &cost)))
    }
}
