//! What the probes cost: the kernel's run-time statistics of our programs.

use std::{
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::sys::{Stats, enable_stats};

/// Front of `struct bpf_prog_info` up to `verified_insns` (`include/uapi/linux/bpf.h`).
#[repr(C)]
#[derive(Clone, Copy)]
struct ProgInfo {
    before: [u8; 192],
    run_time_ns: u64,
    run_cnt: u64,
    recursion_misses: u64,
    verified_insns: u32,
    pad: u32,
}

/// The kernel's account of one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Time in it, while statistics were on.
    pub run_ns: u64,
    /// Runs, while statistics were on.
    pub runs: u64,
    /// Runs skipped because it was running already on that CPU.
    pub missed: u64,
}

/// Runs that are taken to have cost what is usual, beside those that were sampled.
const USUAL: f64 = 256.0;
/// Of what is usual, so many times at most, until there were enough runs.
const DEAREST: f64 = 3.0;
const ENOUGH: u64 = 1024;

impl RunStats {
    /// Time of one run, which `usually` takes so long. The kernel's account is by the wall: who loses the CPU in a probe makes it dear,
    /// so few runs count beside as many usual ones, and of them more than a few times what is usual is not believed.
    #[must_use]
    pub fn hit_ns(&self, usually: f64) -> Option<f64> {
        let mean = (self.run_ns as f64 + usually * USUAL) / (self.runs as f64 + USUAL);
        let most = if self.runs < ENOUGH {
            DEAREST * usually
        } else {
            f64::INFINITY
        };
        (self.runs > 0).then(|| mean.min(most))
    }

    /// Of so many runs of some programs that come to `self`, those of one that comes to `own`, and the time in it: an estimate. `None`
    /// where nothing was sampled.
    #[must_use]
    pub fn share(&self, own: Self, runs: u64) -> Option<(u64, u64)> {
        let part = |of: u64| {
            let share = u128::from(runs) * u128::from(of) / u128::from(self.runs.max(1));
            share.min(u128::from(u64::MAX)) as u64
        };
        (self.runs > 0 || runs == 0).then(|| (part(own.runs), part(own.run_ns)))
    }
}

const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// Reads a program's account; `None` when the kernel refuses.
#[must_use]
pub fn run_stats(program: BorrowedFd<'_>) -> Option<RunStats> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = ProgInfo {
        before: [0; 192],
        run_time_ns: 0,
        run_cnt: 0,
        recursion_misses: 0,
        verified_insns: 0,
        pad: 0,
    };
    let attr = Attr {
        fd: program.as_raw_fd() as u32,
        len: size_of::<ProgInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: bpf(2) with an attribute of the stated size that points to a buffer of the stated length.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw const attr,
            size_of::<Attr>(),
        )
    };
    (result == 0).then_some(RunStats {
        run_ns: info.run_time_ns,
        runs: info.run_cnt,
        missed: info.recursion_misses,
    })
}

/// Switches the kernel's statistics on while it lives; they go off when the descriptor does, at the latest with us.
#[derive(Debug)]
pub struct StatsOn {
    _fd: OwnedFd,
}

impl StatsOn {
    /// `None` when the privileges do not reach (`CAP_SYS_ADMIN`).
    #[must_use]
    pub fn enable() -> Option<Self> {
        enable_stats(Stats::RunTime).ok().map(|fd| Self { _fd: fd })
    }
}

/// The statistics cost every eBPF program of the host two clock reads a run, so they are on for a part of the time only.
pub const PERIOD_NS: u64 = 5_000_000_000;
/// Part of each [`PERIOD_NS`] in which they are on.
pub const ON_NS: u64 = 100_000_000;

/// When the statistics are on: at the start of each period, from the first on, so that a trace of any length has a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_field_names, reason = "times, with their unit")]
pub struct Schedule {
    /// From one start to the next.
    period_ns: u64,
    /// Since when they are on.
    on_since_ns: Option<u64>,
    /// When they go on next.
    next_ns: u64,
    /// Time they have been on, up to the last time they went off.
    sampled_ns: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self::every(PERIOD_NS)
    }
}

impl Schedule {
    /// With another period than usual.
    #[must_use]
    pub const fn every(period_ns: u64) -> Self {
        Self {
            period_ns,
            on_since_ns: None,
            next_ns: 0,
            sampled_ns: 0,
        }
    }

    /// Whether they are to be on now. Called often; when it is late, the time on is longer and counted as such.
    pub fn turn(&mut self, now_ns: u64) -> bool {
        match self.on_since_ns {
            Some(since) if now_ns.saturating_sub(since) >= ON_NS => {
                self.sampled_ns += now_ns - since;
                self.on_since_ns = None;
                self.next_ns = since + self.period_ns;
            }
            None if now_ns >= self.next_ns => self.on_since_ns = Some(now_ns),
            _ => {}
        }
        self.on_since_ns.is_some()
    }

    /// Time they have been on.
    #[must_use]
    pub fn sampled_ns(&self, now_ns: u64) -> u64 {
        self.sampled_ns + self.on_since_ns.map_or(0, |since| now_ns.saturating_sub(since))
    }
}

/// The kernel's statistics of some programs, switched on and off by a [`Schedule`]. Others may have them on at other times: only
/// what the programs did in our part of the time counts.
#[derive(Debug, Default)]
pub struct Sampler {
    schedule: Schedule,
    started_ns: Option<u64>,
    on: Option<StatsOn>,
    refused: bool,
    sums: Sums,
    /// Programs that are in no sum of time: those after the last are.
    apart: Vec<bool>,
    /// Sums when the last sample was over; of what came since.
    told: KernelTime,
    fresh: Option<KernelTime>,
}

impl Sampler {
    /// With another period than usual.
    #[must_use]
    pub fn every(period_ns: u64) -> Self {
        Self {
            schedule: Schedule::every(period_ns),
            ..Self::default()
        }
    }

    /// Leaves programs out of sums of time, in the order in which they are read.
    #[must_use]
    pub fn without(self, apart: Vec<bool>) -> Self {
        Self { apart, ..self }
    }

    /// The last sample alone, once, when it is over.
    pub fn take_fresh(&mut self) -> Option<KernelTime> {
        self.fresh.take()
    }

    /// Closes what holds the statistics on, without reading them.
    pub fn let_go(&mut self) {
        self.on = None;
    }

    /// Whether the privileges do not reach.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        self.refused
    }

    /// Switches the statistics on or off when it is time, for the first time at the first call: attaching is no sample of what
    /// tracing costs. To be called at every look at the ring; `read` gives the programs' accounts, always in the same order.
    pub fn turn(&mut self, now_ns: u64, read: impl FnOnce() -> Vec<RunStats>) {
        if self.refused {
            return;
        }
        self.started_ns.get_or_insert(now_ns);
        match (self.schedule.turn(now_ns), self.on.is_some()) {
            (true, false) => {
                self.on = StatsOn::enable();
                self.refused = self.on.is_none();
                self.sums.begin(read());
            }
            (false, true) => {
                self.sums.end(&read());
                self.on = None;
                let sum = KernelTime {
                    run_ns: self.run_ns(&self.sums.past),
                    sampled_ns: self.schedule.sampled_ns(now_ns),
                    in_programs_ns: 0,
                };
                self.fresh = Some(KernelTime {
                    run_ns: sum.run_ns - self.told.run_ns,
                    sampled_ns: sum.sampled_ns - self.told.sampled_ns,
                    in_programs_ns: 0,
                });
                self.told = sum;
            }
            _ => {}
        }
    }

    /// Time in the programs that are not apart.
    fn run_ns(&self, programs: &[RunStats]) -> u64 {
        let apart = self.apart.iter().chain(std::iter::repeat(&false));
        let others = programs.iter().zip(apart).filter(|(_, apart)| !**apart);
        others.map(|(program, _)| program.run_ns).sum()
    }

    /// Time in the programs that are not apart, as far as it was sampled.
    #[must_use]
    pub fn sum(&self, sampled: &Sampled) -> KernelTime {
        KernelTime {
            run_ns: self.run_ns(&sampled.programs),
            sampled_ns: sampled.sampled_ns,
            in_programs_ns: 0,
        }
    }

    /// What the programs did in the parts of the time that were sampled so far; `None` when the privileges do not reach.
    #[must_use]
    pub fn sampled(&self, now_ns: u64, read: &[RunStats]) -> Option<Sampled> {
        (!self.refused).then(|| Sampled {
            programs: self.sums.with(read),
            sampled_ns: self.schedule.sampled_ns(now_ns),
            whole_ns: self
                .started_ns
                .map_or(0, |started_ns| now_ns.saturating_sub(started_ns)),
        })
    }
}

/// Accounts of programs in a part of the time since the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sampled {
    /// In the order in which they were read.
    pub programs: Vec<RunStats>,
    /// The part.
    pub sampled_ns: u64,
    /// All the time.
    pub whole_ns: u64,
}

impl Sampled {
    /// Estimates for all the time: runs of a program, and time in it.
    #[must_use]
    pub fn estimate(&self, program: usize) -> Option<(u64, u64)> {
        let program = self.programs.get(program)?;
        let estimate = |sampled| scaled(sampled, self.sampled_ns, self.whole_ns);
        Some((estimate(program.runs)?, estimate(program.run_ns)?))
    }
}

/// Accounts summed over the samples.
#[derive(Debug, Default)]
struct Sums {
    past: Vec<RunStats>,
    /// Accounts when the sample under way began; empty when none is.
    base: Vec<RunStats>,
}

impl Sums {
    fn begin(&mut self, read: Vec<RunStats>) {
        self.base = read;
    }

    fn end(&mut self, read: &[RunStats]) {
        self.past = self.with(read);
        self.base.clear();
    }

    fn with(&self, read: &[RunStats]) -> Vec<RunStats> {
        let past = self
            .past
            .iter()
            .copied()
            .chain(std::iter::repeat(RunStats::default()));
        read.iter()
            .enumerate()
            .zip(past)
            .map(|((at, now), past)| {
                let base = self.base.get(at).unwrap_or(now);
                RunStats {
                    run_ns: past.run_ns + now.run_ns.saturating_sub(base.run_ns),
                    runs: past.runs + now.runs.saturating_sub(base.runs),
                    missed: now.missed,
                }
            })
            .collect()
    }
}

/// Time in the probes, as far as it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelTime {
    /// Time in the programs attached to the kernel while the statistics were on.
    pub run_ns: u64,
    /// How long they were on.
    pub sampled_ns: u64,
    /// Time in probes in programs, all of it: they are not there all the time, and their hits are counted.
    pub in_programs_ns: u64,
}

/// What a count or a time of the sampled part of a window was in all of it, if it went on like this: an estimate. `None` when
/// nothing was sampled.
#[must_use]
pub fn scaled(sampled: u64, sampled_ns: u64, window_ns: u64) -> Option<u64> {
    if sampled_ns == 0 {
        return None;
    }
    if sampled_ns >= window_ns {
        return Some(sampled);
    }
    Some(
        (u128::from(sampled) * u128::from(window_ns) / u128::from(sampled_ns)).min(u128::from(u64::MAX))
            as u64,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Looked at every 10 ms for 12 s: on in the first 100 ms of each of three periods.
    #[test]
    fn a_thread_that_lost_the_cpu_in_a_probe_does_not_make_it_dear() {
        let sampled = |runs, run_ns| RunStats {
            run_ns,
            runs,
            ..RunStats::default()
        };
        let price = |runs, run_ns| sampled(runs, run_ns).hit_ns(1000.0).map(|ns| ns as u64);
        assert_eq!(price(0, 0), None);
        assert_eq!(price(24, 24_000), Some(1000));
        // A millisecond in one of 24 runs.
        assert!(price(24, 1_024_000).is_some_and(|ns| ns < 5_000));
        assert_eq!(price(24, 9_000_000), Some(3000));
        assert_eq!(price(1 << 20, 9000 << 20).map(|ns| ns / 100), Some(89));
    }

    #[test]
    fn on_for_a_part_of_each_period() {
        let mut schedule = Schedule::default();
        let start = 7_777 * MS;
        let looks: Vec<u64> = (0..1200).map(|look| start + look * 10 * MS).collect();
        let on: Vec<u64> = looks
            .iter()
            .filter(|&&now| schedule.turn(now))
            .map(|now| (now - start) / MS)
            .collect();
        let expected: Vec<u64> = [0, 5000, 10_000]
            .iter()
            .flat_map(|at| (0..10).map(move |look| at + look * 10))
            .collect();
        assert_eq!(on, expected);
        assert_eq!(schedule.sampled_ns(start + 12_000 * MS), 3 * ON_NS);
    }

    #[test]
    fn being_late_is_counted() {
        let mut schedule = Schedule::default();
        assert!(schedule.turn(1));
        assert_eq!(schedule.sampled_ns(41), 40);
        assert!(!schedule.turn(1 + 3 * ON_NS));
        assert_eq!(schedule.sampled_ns(u64::MAX), 3 * ON_NS);
        // Two periods passed without a look.
        assert!(schedule.turn(3 * PERIOD_NS));
        assert!(schedule.turn(3 * PERIOD_NS + ON_NS - 1));
        assert!(!schedule.turn(3 * PERIOD_NS + ON_NS));
        assert_eq!(schedule.sampled_ns(u64::MAX), 4 * ON_NS);
    }

    /// Somebody else has the statistics on between our samples.
    #[test]
    fn only_our_part_counts() {
        let account = |runs| RunStats {
            run_ns: runs * 100,
            runs,
            missed: 7,
        };
        let mut sums = Sums::default();
        assert_eq!(sums.with(&[account(5)]), [account(0)]);
        sums.begin(vec![account(1000), account(3)]);
        assert_eq!(sums.with(&[account(1013), account(3)]), [account(13), account(0)]);
        sums.end(&[account(1023), account(5)]);
        assert_eq!(
            sums.with(&[account(9999), account(99)]),
            [account(23), account(2)]
        );
        sums.begin(vec![account(9999), account(99)]);
        assert_eq!(
            sums.with(&[account(10_000), account(99)]),
            [account(24), account(2)]
        );
        let sampled = Sampled {
            programs: sums.with(&[account(10_000), account(99)]),
            sampled_ns: 200 * MS,
            whole_ns: 10_000 * MS,
        };
        assert_eq!(sampled.estimate(0), Some((1200, 120_000)));
        assert_eq!(sampled.estimate(2), None);
        assert_eq!(Sampler::default().sum(&sampled).run_ns, 2600);
        let apart = Sampler::default().without(vec![true]);
        assert_eq!(apart.sum(&sampled).run_ns, 200);
        let both = RunStats {
            run_ns: 2600,
            runs: 26,
            missed: 0,
        };
        assert_eq!(
            both.share(sampled.programs[1], 130_000),
            Some((10_000, 1_000_000))
        );
        assert_eq!(RunStats::default().share(RunStats::default(), 7), None);
        assert_eq!(RunStats::default().share(RunStats::default(), 0), Some((0, 0)));
    }

    #[test]
    fn a_part_stands_for_the_whole() {
        assert_eq!(scaled(23, 100 * MS, 5000 * MS), Some(23 * 50));
        assert_eq!(scaled(23, 97 * MS, 97 * MS), Some(23), "all of it was sampled");
        assert_eq!(scaled(23, 98 * MS, 97 * MS), Some(23));
        assert_eq!(scaled(0, 100 * MS, 5000 * MS), Some(0));
        assert_eq!(scaled(23, 0, 5000 * MS), None);
        assert_eq!(scaled(u64::MAX, 1, u64::MAX), Some(u64::MAX));
    }
}
