//! The table as a section of the report.

use super::{FdTable, Live, Origin, Row, RowKey, births};
use crate::aggregate::ages::Ages;
use crate::aggregate::go_starts::AskerId;
use crate::aggregate::hist::Histogram;
use crate::aggregate::verdict::{self, Evidence};
use crate::proc::fd::{FdEntry, FdScan};
use crate::proc::sockets::Sockets;
use crate::report::model::{
    AskedBy, FdExample, FdKind, FdShared, FdStack, Fds, Hist, StackKey, Step, Verdict,
};
use crate::stacks::StackId;

/// Most examples per row.
const MAX_EXAMPLES: usize = 5;

/// What a report needs besides the table.
pub struct ReportInput<'a> {
    /// End of the window, `CLOCK_MONOTONIC` in ns.
    pub now_ns: u64,
    /// Soft limit on descriptors.
    pub limit: Option<u64>,
    /// `--older`: the age from which a descriptor is a suspect, in ns; a quarter of the window without it.
    pub older_ns: Option<u64>,
    /// The last scan, for the examples' targets.
    pub scan: Option<&'a FdScan>,
    /// Sockets of the process's network namespace, for the examples' ends.
    pub sockets: Option<&'a Sockets>,
    /// Ways to make a descriptor that the probes do not see.
    pub unseen_kinds: Vec<String>,
    /// Turns a histogram into its form in the report.
    pub hist: fn(&Histogram) -> Hist,
    /// Names a stack as the report does.
    pub stack_key: &'a dyn Fn(StackId) -> StackKey,
    /// Says who asked, as the report does.
    pub asked_by: &'a dyn Fn(AskerId) -> Vec<AskedBy>,
}

/// What a row's open descriptors are like.
#[derive(Default)]
pub(super) struct Survivors {
    /// When they were born, since the start; sorted.
    pub(super) births: Vec<u64>,
    age: Histogram,
    /// Birth (0 before tracing) and number, oldest first.
    oldest: Vec<(u64, i32)>,
}

impl FdTable {
    /// The section `fds`: counts since the table's start, rows most suspect first.
    ///
    /// `kinds` counts births, and those open at the start; `age` leaves out those whose birth was not seen.
    pub fn report(&self, input: &ReportInput<'_>) -> Fds {
        let survivors = self.survivors(input);
        let mut by_stack: Vec<FdStack> = self
            .rows
            .iter()
            .zip(&survivors)
            .map(|(row, left)| self.row_report(row, left, input))
            .collect();
        let shared = self.shared(&by_stack, &survivors, input);
        by_stack.retain(|row| row.opened + row.live_at_start > 0);
        by_stack.sort_by(|a, b| {
            suspicion(a.verdict)
                .cmp(&suspicion(b.verdict))
                .then(b.growth_per_s.total_cmp(&a.growth_per_s))
                .then(b.live.cmp(&a.live))
                .then(b.opened.cmp(&a.opened))
        });
        let open_at_end = self.kernel_open.unwrap_or(self.live.len() as u64);
        Fds {
            window_ns: self
                .timeline
                .start_ns()
                .map(|start_ns| input.now_ns.saturating_sub(start_ns)),
            open_at_start: self.total.at_start,
            open_at_end,
            limit: input.limit,
            opened: self.opened,
            closed: self.closed,
            time_to_limit_ns: self.time_to_limit(&by_stack, &shared, open_at_end, input),
            unseen_births: self.unseen_births,
            unseen_deaths: self.unseen_deaths,
            unseen_kinds: input.unseen_kinds.clone(),
            by_stack,
            shared,
        }
    }

    /// Inodes of the sockets that [`FdTable::report`] would name as examples with this scan: what to ask
    /// [`Sockets::of_only`] for.
    pub fn example_inodes(&self, input: &ReportInput<'_>) -> rustc_hash::FxHashSet<u64> {
        self.survivors(input)
            .iter()
            .flat_map(|left| &left.oldest)
            .filter_map(|&(_, fd)| self.entry(fd, input.scan)?.inode)
            .collect()
    }

    fn survivors(&self, input: &ReportInput<'_>) -> Vec<Survivors> {
        let mut all: Vec<Survivors> = self.rows.iter().map(|_| Survivors::default()).collect();
        for (&fd, live) in &self.live {
            let left = &mut all[live.row as usize];
            let born_ns = if live.origin == Origin::Seed {
                0
            } else {
                live.birth_ns
            };
            let at = left.oldest.partition_point(|&other| other < (born_ns, fd));
            if at < MAX_EXAMPLES {
                left.oldest.insert(at, (born_ns, fd));
                left.oldest.truncate(MAX_EXAMPLES);
            }
            if live.origin == Origin::Seed {
                continue;
            }
            let age = input.now_ns.saturating_sub(born_ns);
            left.births.push(born_ns);
            if live.origin == Origin::Event {
                left.age.record(age);
            }
        }
        for left in &mut all {
            left.births.sort_unstable();
        }
        all
    }

    /// Of these kinds, those that were open before the start and ended since, by how long after it.
    pub(super) fn before_closed<'a>(&self, kinds: impl Iterator<Item = &'a FdKind>) -> Ages {
        let mut sum = Ages::default();
        for ended in kinds.filter_map(|kind| self.before_closed.get(kind)) {
            sum.add_all(ended);
        }
        sum
    }

    /// How many of these births fell into each quarter of the time since the start.
    fn by_quarter(&self, births: &[u64], now_ns: u64) -> [u64; 4] {
        let start_ns = self.timeline.start_ns().unwrap_or(now_ns);
        let window_ns = u128::from(now_ns.saturating_sub(start_ns).max(1));
        let mut quarters = [0; 4];
        for &born_ns in births {
            let at = u128::from(born_ns.saturating_sub(start_ns)) * 4 / window_ns;
            quarters[(at as usize).min(3)] += 1;
        }
        quarters
    }

    fn row_report(&self, row: &Row, left: &Survivors, input: &ReportInput<'_>) -> FdStack {
        let judged = verdict::judge(&Evidence {
            complete: self.incomplete.is_empty() && row.key != RowKey::Folded,
            mixed: matches!(
                row.key,
                RowKey::Unseen | RowKey::Stack(StackId::NONE, _) | RowKey::Others(StackId::NONE)
            ),
            series: &row.series,
            line: &self.timeline,
            now_ns: input.now_ns,
            births: &left.births,
            deaths: &row.deaths,
            before: &self.before_closed(row.kinds.keys()),
            older_ns: input.older_ns,
            resolution_ns: 0,
            visitors: row.is_accepted(),
        });
        let asked_by = match row.key {
            RowKey::Stack(_, asker) if asker != AskerId::NONE => (input.asked_by)(asker),
            _ => Vec::new(),
        };
        let (stack, without_stack) = match row.key {
            RowKey::Stack(StackId::NONE, _) | RowKey::Others(StackId::NONE) => (None, Some("stack_lost")),
            RowKey::Stack(stack, _) | RowKey::Others(stack) => (Some((input.stack_key)(stack)), None),
            RowKey::BeforeAttach => (None, Some("before_attach")),
            RowKey::Unseen => (None, Some("unseen")),
            RowKey::Folded => (None, Some("folded")),
        };
        FdStack {
            pid: self.tgid,
            stack,
            without_stack: without_stack.map(str::to_owned),
            asked_by,
            call: row
                .calls
                .iter()
                .max_by_key(|call| call.1)
                .and_then(|call| births::call_name(call.0)),
            kinds: row.kinds.clone(),
            opened: row.series.opened,
            closed: row.series.closed,
            live: row.series.live(),
            live_at_start: row.series.at_start,
            verdict: judged.verdict,
            confidence: judged.confidence,
            growth_per_s: judged.growth_per_s,
            growth_interval_per_s: judged.interval.map(|(low, high)| [low, high]),
            stays: judged.stays,
            born_by_quarter: self.by_quarter(&left.births, input.now_ns),
            period_ns: judged.periods.first().map(|period| period.every_ns),
            steps: judged.periods.iter().map(Step::from).collect(),
            age: (input.hist)(&left.age),
            examples: left
                .oldest
                .iter()
                .map(|&(_, fd)| self.example(fd, input))
                .collect(),
        }
    }

    fn example(&self, fd: i32, input: &ReportInput<'_>) -> FdExample {
        let entry = self.entry(fd, input.scan);
        let socket = entry.and_then(|entry| input.sockets?.get(entry.inode?));
        let born_ns = self
            .live
            .get(&fd)
            .filter(|live| live.origin == Origin::Event)
            .map(|live| live.birth_ns);
        FdExample {
            fd,
            target: entry.and_then(|entry| entry.target.clone()),
            local: socket.and_then(|socket| socket.local.clone()),
            peer: socket.and_then(|socket| socket.peer.clone()),
            tcp_state: socket.and_then(|socket| socket.tcp_state).map(str::to_owned),
            unread_bytes: socket.and_then(|socket| socket.unread_bytes),
            age_ns: born_ns.map(|born_ns| input.now_ns.saturating_sub(born_ns)),
        }
    }

    /// What the scan says about a descriptor, unless it was born since: the number may have meant another.
    fn entry<'a>(&self, fd: i32, scan: Option<&'a FdScan>) -> Option<&'a FdEntry> {
        let scan = scan?;
        let at = scan.entries.binary_search_by_key(&fd, |entry| entry.fd).ok()?;
        let born_later = |live: &Live| live.origin == Origin::Event && live.birth_ns >= scan.started_ns;
        (!self.live.get(&fd).is_some_and(born_later)).then(|| &scan.entries[at])
    }

    /// Time until the limit, when the whole table grows steadily and some row is to blame.
    fn time_to_limit(
        &self,
        rows: &[FdStack],
        shared: &[FdShared],
        open: u64,
        input: &ReportInput<'_>,
    ) -> Option<u64> {
        let limit = input.limit?;
        let shape = self.total.shape(&self.timeline, input.now_ns);
        let slope = self
            .total
            .trend(&self.timeline, input.now_ns)
            .map_or(0.0, |trend| trend.slope);
        let blamed = rows
            .iter()
            .map(|row| row.verdict)
            .chain(shared.iter().map(|sum| sum.verdict))
            .any(|verdict| matches!(verdict, Verdict::Leaking | Verdict::Growing));
        if !blamed || !verdict::rising(&shape) || slope <= 0.0 || !self.incomplete.is_empty() {
            return None;
        }
        let left_ns = limit.saturating_sub(open) as f64 / slope * 1e9;
        // A time that does not fit is none that matters.
        (left_ns < (1_u64 << 63) as f64).then_some(left_ns as u64)
    }
}

const fn suspicion(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Leaking => 0,
        Verdict::Growing => 1,
        Verdict::Unknown | Verdict::Pool | Verdict::Steady | Verdict::Churn => 2,
    }
}
