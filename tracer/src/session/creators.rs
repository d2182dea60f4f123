//! Which goroutine makes a descriptor, and who made that goroutine, in every target that is a Go program. By default only where Go's library begins a dial; at every `go` statement with `--go-creators`, for as much
//! of the time as its budget allows.

use std::{collections::BTreeMap, rc::Rc};

use anyhow::{Error, Result};

use crate::{
    capture::Capture,
    cli::options::Options,
    go::{memory::Live, program::Program, starts::Starts},
    proc::host,
    report::model::Hint,
};

/// What one `go` statement costs: two traps, two programs, and the record here. `docs/probes.md` has the parts.
const NS_PER_START: f64 = 5_000.0;
/// Part of one CPU, in percent, that `--go-creators` may take when no budget is given.
const PERCENT: f64 = 2.0;
/// What it may take of a budget and did not is kept for this long, for many goroutines at once.
const SAVED_NS: f64 = 5e9;

/// The Go programs among the targets.
#[derive(Default)]
pub(super) struct Creators {
    /// Descriptors are collected, or creators of goroutines asked for.
    on: bool,
    /// Probes in programs may be used.
    uprobes: bool,
    /// Every `go` statement is asked for.
    all: Option<Hold>,
    known: BTreeMap<u32, (Rc<Program>, Starts)>,
    /// What could not be done, and why.
    refused: Vec<(u32, String)>,
}

/// Probes at every `go` statement, held under a part of one CPU.
struct Hold {
    percent: f64,
    /// CPU time that may still be taken, in ns; below 0 when too much was.
    credit_ns: f64,
    /// They are not attached.
    resting: bool,
    /// The last look, and how many goroutines had been seen.
    since: (u64, u64),
    /// When this began, and for how long they rested.
    begun_ns: u64,
    rested_ns: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Rest,
    Attach,
}

impl Hold {
    fn new(percent: f64, now_ns: u64) -> Self {
        Self {
            percent,
            credit_ns: SAVED_NS * percent / 100.0,
            resting: false,
            since: (now_ns, 0),
            begun_ns: now_ns,
            rested_ns: 0,
        }
    }

    /// So many goroutines have been seen to be made until now, at dials too while the others rest.
    fn look(&mut self, now_ns: u64, seen: u64) -> Option<Order> {
        let (since_ns, before) = std::mem::replace(&mut self.since, (now_ns, seen));
        let passed_ns = now_ns.saturating_sub(since_ns);
        let most = SAVED_NS * self.percent / 100.0;
        let earned = passed_ns as f64 * self.percent / 100.0;
        let spent = seen.saturating_sub(before) as f64 * NS_PER_START;
        self.credit_ns = (self.credit_ns + earned - spent).min(most);
        if self.resting {
            self.rested_ns += passed_ns;
            // Attaching and detaching takes time, too.
            self.resting = self.credit_ns < most / 2.0;
            return (!self.resting).then_some(Order::Attach);
        }
        self.resting = self.credit_ns < 0.0;
        self.resting.then_some(Order::Rest)
    }

    /// Part of the time that they were attached.
    fn share(&self, now_ns: u64) -> f64 {
        let all = now_ns.saturating_sub(self.begun_ns).max(1);
        1.0 - self.rested_ns.min(all) as f64 / all as f64
    }
}

impl Creators {
    /// As the command line says.
    pub(super) fn new(options: &Options) -> Self {
        let all = options.go_creators && options.uprobes;
        Self {
            on: options.collectors.fds || options.go_creators,
            uprobes: options.uprobes,
            all: all.then(|| Hold::new(options.budget.unwrap_or(PERCENT), host::monotonic_ns())),
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
    pub(super) fn attach(&mut self, capture: &mut Capture, pid: u32, program: &Result<Rc<Program>>) {
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
                self.probe(capture, (pid, &program), &starts);
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

    fn probe(&mut self, capture: &mut Capture, (pid, program): (u32, &Program), starts: &Starts) {
        if !self.uprobes {
            return;
        }
        for why in &starts.refused {
            self.refuse(pid, why.clone());
        }
        let places = match (&starts.all, &self.all) {
            (Ok(all), Some(hold)) if !hold.resting => all,
            (Err(error), Some(_)) => {
                self.refuse(pid, format!("--go-creators: {error:#}"));
                &starts.dials
            }
            _ => &starts.dials,
        };
        if let Err(error) = capture.attach_starts((pid, program.file()), places) {
            self.refuse(pid, format!("{error:#}"));
        }
    }

    /// Lets the probes at every `go` statement rest when they cost too much, or attaches them again.
    pub(super) fn hold(&mut self, capture: &mut Capture, now_ns: u64, seen: u64) {
        let Some(order) = self.all.as_mut().and_then(|hold| hold.look(now_ns, seen)) else {
            return;
        };
        log::debug!("--go-creators: {order:?}");
        let known = std::mem::take(&mut self.known);
        for (&pid, (program, starts)) in &known {
            self.probe(capture, (pid, program), starts);
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
        let share = self
            .all
            .as_ref()
            .map(|hold| (hold.share(host::monotonic_ns()), hold.percent));
        let rested = share.filter(|(share, _)| *share < 1.0).into_iter().flat_map(|(share, percent)| {
            self.known.keys().filter_map(move |&pid| {
                hint(
                    pid,
                    format!(
                        "--go-creators watched {:.0} % of the time, to stay under {percent} % of one CPU: of goroutines made in the rest only dials' makers are known",
                        share * 100.0
                    ),
                )
            })
        });
        refused.chain(rested).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK_NS: u64 = 10_000_000;

    /// Looks a hundred times a second for a minute; returns the part of the time that the probes were attached, and their cost.
    fn held(percent: f64, starts_per_s: f64) -> (f64, f64) {
        let mut hold = Hold::new(percent, 0);
        let (mut seen, mut attached, mut attached_ns) = (0, true, 0);
        let looks = 6_000;
        for look in 1..=looks {
            if attached {
                seen += (starts_per_s * LOOK_NS as f64 / 1e9) as u64;
                attached_ns += LOOK_NS;
            }
            match hold.look(look * LOOK_NS, seen) {
                Some(Order::Rest) => attached = false,
                Some(Order::Attach) => attached = true,
                None => {}
            }
        }
        let all_ns = looks * LOOK_NS;
        let share = attached_ns as f64 / all_ns as f64;
        assert!((hold.share(all_ns) - share).abs() < 1e-9);
        (share, seen as f64 * NS_PER_START * 100.0 / all_ns as f64)
    }

    #[test]
    fn few_goroutines_are_all_watched() {
        let (share, cost) = held(2.0, 3_000.0);
        assert!(share >= 1.0 && cost < 2.0, "{share} {cost}");
    }

    #[test]
    fn many_are_watched_for_a_part_of_the_time() {
        for starts_per_s in [20_000.0, 100_000.0, 400_000.0, 1_000_000.0] {
            let (share, cost) = held(2.0, starts_per_s);
            assert!(share > 0.0 && share < 0.3, "{starts_per_s}: {share}");
            // What was saved before is spent beside what comes in.
            assert!(cost < 2.3, "{starts_per_s}: {cost}");
        }
    }

    #[test]
    fn many_at_once_are_watched_when_there_are_few_otherwise() {
        let mut hold = Hold::new(2.0, 0);
        let mut seen = 0;
        for look in 1..6_000u64 {
            if look % 1_000 == 0 {
                seen += 10_000;
            }
            assert_eq!(hold.look(look * LOOK_NS, seen), None, "{look}");
        }
    }
}
