//! Descriptors of one table: every birth and death, by the stack that made them.
//!
//! One [`FdTable`] stands for the descriptor table (`files_struct`) that `/proc/PID/fd` shows, which all threads of
//! a process normally share. Feed it in this order: [`FdTable::seed`] with a scan taken once the probes are live,
//! every event in ring order, [`FdTable::snapshot`] a few times per second, [`FdTable::reconcile`] now and then and
//! (twice, some milliseconds apart) before [`FdTable::report`].
//!
//! A death is recorded when its call is entered, a birth when it returns: the number is free, and may be given out
//! anew, before `close` returns. So the order of the ring is a possible history. What it does not show (missed
//! records, descriptors that other processes install, ioctls) the scans mend.
//!
//! Memory: at most [`MAX_LIVE`] descriptors and [`MAX_ROWS`] rows, each with a series of 240 samples (120 when there are thousands),
//! and one more for every two rows of a stack.

mod births;
mod events;
mod ledger;
mod reconcile;
mod report;
mod sums;

use std::collections::BTreeMap;
use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::nr;

pub use self::reconcile::Reconciled;
pub use self::report::ReportInput;
pub(crate) use self::sums::is_judged_alone;
use super::ages::Ages;
use super::go_starts::AskerId;
use super::series::{Series, Timeline};
use crate::proc::fd::FdScan;
use crate::report::model::FdKind;
use crate::stacks::StackId;

/// Most descriptors kept: the kernel's default `fs.nr_open`. More end all verdicts.
pub const MAX_LIVE: usize = 1 << 20;
/// Most rows; births from further stacks are folded into one row, which gets no finding of its own.
pub const MAX_ROWS: usize = 4096;
/// With more rows than this, further askers of a stack that has a row share one.
const SPLIT_ROWS: usize = MAX_ROWS / 2;
/// Most deaths remembered for the next scan.
const MAX_RECENT: usize = 1 << 16;
/// Most threads with a table of their own, and most distinct calls counted per row.
const MAX_PRIVATE: usize = 1024;
const MAX_CALLS: usize = 8;

/// The descriptors of one process.
#[derive(Debug)]
pub struct FdTable {
    tgid: u32,
    live: FxHashMap<i32, Live>,
    rows: Vec<Row>,
    by_key: FxHashMap<RowKey, u32>,
    sums: sums::Sums,
    timeline: Timeline,
    total: Series,
    recent: Recent,
    candidates: FxHashMap<i32, reconcile::Candidate>,
    /// Threads whose descriptors are in another table.
    private: FxHashSet<u32>,
    other_threads: bool,
    seeded: Option<(u64, u64)>,
    exec_ns: Option<u64>,
    /// Open at the end, as the kernel last had it.
    kernel_open: Option<u64>,
    opened: u64,
    closed: u64,
    unseen_births: u64,
    unseen_deaths: u64,
    /// When those of before the start ended, as the time since it.
    before_closed: BTreeMap<FdKind, Ages>,
    folded: u64,
    incomplete: Vec<&'static str>,
}

/// Where a row's descriptors come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum RowKey {
    BeforeAttach,
    Unseen,
    /// And, in a Go program, who asked for it.
    Stack(StackId, AskerId),
    /// Askers of this stack beyond those that have rows.
    Others(StackId),
    Folded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Seed,
    Event,
    Scan,
}

/// One open descriptor.
#[derive(Clone, Copy, Debug)]
struct Live {
    row: u32,
    origin: Origin,
    /// Born; for [`Origin::Scan`] no later than this.
    birth_ns: u64,
    kind: FdKind,
    /// The kind is certain: from the call, or from a link.
    sure: bool,
    /// Inode and hash of the link's text, once a scan has shown them.
    noted: Option<(u64, u64)>,
}

/// The descriptors of one stack.
#[derive(Debug)]
struct Row {
    key: RowKey,
    /// All rows of its stack together, when there are several.
    sum: Option<u32>,
    series: Series,
    kinds: BTreeMap<FdKind, u64>,
    calls: Vec<(i64, u64)>,
    /// Ages at death, of those born since the start.
    deaths: Ages,
}

impl Row {
    /// Most were accepted: how long they live is up to who connected.
    fn is_accepted(&self) -> bool {
        let most = self.calls.iter().max_by_key(|(_, number)| *number);
        most.is_some_and(|(call, _)| matches!(*call, nr::ACCEPT | nr::ACCEPT4))
    }
}

/// Deaths not long ago, for scans that may have seen the descriptor before its close took effect.
#[derive(Debug, Default)]
struct Recent {
    /// Time, first and last number.
    deaths: VecDeque<(u64, u32, u32)>,
    /// Deaths up to here may have been dropped.
    forgot_ns: Option<u64>,
}

/// How an end became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Seen,
    Unseen,
}

impl FdTable {
    /// An empty table of process `tgid`.
    pub fn new(tgid: u32) -> Self {
        Self {
            tgid,
            live: FxHashMap::default(),
            rows: Vec::new(),
            by_key: FxHashMap::default(),
            sums: sums::Sums::default(),
            timeline: Timeline::new(),
            total: Series::new(0),
            recent: Recent::default(),
            candidates: FxHashMap::default(),
            private: FxHashSet::default(),
            other_threads: false,
            seeded: None,
            exec_ns: None,
            kernel_open: None,
            opened: 0,
            closed: 0,
            unseen_births: 0,
            unseen_deaths: 0,
            before_closed: BTreeMap::new(),
            folded: 0,
            incomplete: Vec::new(),
        }
    }

    /// The process.
    pub const fn tgid(&self) -> u32 {
        self.tgid
    }

    /// What an open descriptor is, when that is certain.
    pub fn kind(&self, fd: i32) -> Option<FdKind> {
        self.live.get(&fd).filter(|live| live.sure).map(|live| live.kind)
    }

    /// Descriptors open, as far as is known.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Births folded into the common row because [`MAX_ROWS`] was reached.
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    /// Why there are no verdicts; empty when there are.
    pub fn incomplete(&self) -> &[&'static str] {
        &self.incomplete
    }

    /// A record about descriptors may be lost, for this reason: all verdicts are `unknown` from now on.
    pub fn set_incomplete(&mut self, reason: &'static str) {
        if !self.incomplete.contains(&reason) {
            self.incomplete.push(reason);
        }
    }

    /// Takes over what was open before tracing. The probes must be live when the scan begins; events older than the
    /// scan may still follow. A second seed does nothing.
    pub fn seed(&mut self, scan: &FdScan) {
        if self.seeded.is_some() {
            return;
        }
        self.seeded = Some((scan.started_ns, scan.ended_ns));
        self.timeline.begin(scan.started_ns);
        if !scan.complete {
            self.set_incomplete("the descriptors open at the start could not all be read");
        }
        self.kernel_open = scan.complete.then_some(scan.entries.len() as u64);
        let settled = self.settled(scan);
        for entry in &scan.entries {
            if entry.fd < 0 || self.live.contains_key(&entry.fd) || !settled(entry.fd) {
                continue;
            }
            let noted = reconcile::identity(entry);
            self.insert_seed(entry.fd, entry.kind, entry.target.is_some(), noted);
        }
    }

    fn insert_seed(&mut self, fd: i32, kind: FdKind, sure: bool, noted: Option<(u64, u64)>) {
        let row = self.row(RowKey::BeforeAttach);
        self.rows[row as usize].series.seeded();
        *self.rows[row as usize].kinds.entry(kind).or_default() += 1;
        self.total.seeded();
        let live = Live {
            row,
            origin: Origin::Seed,
            birth_ns: 0,
            kind,
            sure,
            noted,
        };
        self.live.insert(fd, live);
    }

    /// The table of a child process forked at `ts_ns`, which begins as a copy of this one: all of it counts as open
    /// before tracing.
    #[must_use]
    pub fn forked(&self, child_tgid: u32, ts_ns: u64) -> Self {
        let mut child = Self::new(child_tgid);
        child.seeded = Some((ts_ns, ts_ns));
        child.timeline.begin(ts_ns);
        child.incomplete.clone_from(&self.incomplete);
        for (&fd, live) in &self.live {
            child.insert_seed(fd, live.kind, live.sure, live.noted);
        }
        child
    }

    /// Adds a sample to all series, at `now_ns`. A few per second are plenty; the series thin themselves.
    pub fn snapshot(&mut self, now_ns: u64) {
        let series = self.rows.len() + self.sums.all.len();
        let take = self.timeline.take(now_ns, series);
        self.total.sample(take);
        for sum in &mut self.sums.all {
            sum.series.sample(take);
        }
        for row in &mut self.rows {
            row.series.sample(take);
        }
    }
}

impl Recent {
    fn push(&mut self, ts_ns: u64, first: u32, last: u32) {
        if self.deaths.len() >= MAX_RECENT
            && let Some((dropped_ns, ..)) = self.deaths.pop_front()
        {
            self.forgot_ns = self.forgot_ns.max(Some(dropped_ns));
        }
        self.deaths.push_back((ts_ns, first, last));
    }
}

#[cfg(test)]
mod tests;
