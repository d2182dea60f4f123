//! Threads by the stack that made them: how many live, and whether they stay.

use rustc_hash::FxHashMap;

use super::{
    ages::Ages,
    series::{Series, Timeline},
    verdict::{self, Evidence, Judgement},
};
use crate::stacks::StackId;

/// Stacks of one process that are told apart.
const MAX_ROWS: usize = 1024;
/// Threads of one process that are followed; beyond, no verdict rests on it.
const MAX_LIVE: usize = 65_536;
/// Processes.
const MAX_PROCESSES: usize = 4096;

/// Threads made by one stack.
#[derive(Clone, Debug)]
struct Row {
    stack: StackId,
    series: Series,
    deaths: Ages,
}

/// Threads of one process.
#[derive(Clone, Debug)]
struct Table {
    timeline: Timeline,
    rows: Vec<Row>,
    by_stack: FxHashMap<StackId, u32>,
    /// Row and birth of each that was seen to begin, by tid.
    live: FxHashMap<u32, (u32, u64)>,
    at_start: u64,
    ended_before: Ages,
    ended_of_before: u64,
    whole: bool,
}

/// All processes' threads.
#[derive(Clone, Debug, Default)]
pub struct Spawned {
    tables: FxHashMap<u32, Table>,
    /// Records were lost.
    incomplete: bool,
}

/// What is known of the threads of one stack.
#[derive(Clone, Debug)]
pub struct Told {
    /// Process.
    pub tgid: u32,
    /// Where they were made.
    pub stack: StackId,
    /// How many.
    pub created: u64,
    /// How many of them ended.
    pub ended: u64,
    /// Those that live, with their births, oldest first.
    pub live: Vec<(u64, u32)>,
    /// What that means.
    pub(crate) judged: Judgement,
}

impl Spawned {
    /// Whether threads are followed.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.tables.is_empty()
    }

    /// Begins with a process that has so many threads.
    pub fn begin(&mut self, tgid: u32, threads: u64, now_ns: u64) {
        if self.tables.len() >= MAX_PROCESSES && !self.tables.contains_key(&tgid) {
            return;
        }
        let mut timeline = Timeline::new();
        timeline.begin(now_ns);
        self.tables.insert(
            tgid,
            Table {
                timeline,
                rows: Vec::new(),
                by_stack: FxHashMap::default(),
                live: FxHashMap::default(),
                at_start: threads,
                ended_before: Ages::default(),
                ended_of_before: 0,
                whole: true,
            },
        );
    }

    /// A thread was made.
    pub fn on_birth(&mut self, tgid: u32, tid: u32, stack: StackId, now_ns: u64) {
        let Some(table) = self.tables.get_mut(&tgid) else {
            return;
        };
        if table.live.len() >= MAX_LIVE {
            table.whole = false;
            return;
        }
        let row = table.row(stack);
        // A number that is used again: the end of the one before was lost.
        table.on_end(tid, now_ns);
        if let Some(known) = table.rows.get_mut(row as usize) {
            known.series.born();
        }
        table.live.insert(tid, (row, now_ns));
    }

    /// A thread ended. The first of a process was made by none of it.
    pub fn on_end(&mut self, tgid: u32, tid: u32, now_ns: u64) {
        if tid == tgid {
            return;
        }
        if let Some(table) = self.tables.get_mut(&tgid)
            && !table.on_end(tid, now_ns)
        {
            table.ended_of_before += 1;
            let since = table.timeline.start_ns().unwrap_or(now_ns);
            table.ended_before.add(now_ns.saturating_sub(since));
        }
    }

    /// The process replaced its program: of its threads one is left, which nobody made.
    pub fn on_exec(&mut self, tgid: u32, now_ns: u64) {
        if self.tables.contains_key(&tgid) {
            self.begin(tgid, 1, now_ns);
        }
    }

    /// Records were lost: no verdict is given from now on.
    pub const fn set_incomplete(&mut self) {
        self.incomplete = true;
    }

    /// Adds a sample to all series.
    pub fn snapshot(&mut self, now_ns: u64) {
        for table in self.tables.values_mut() {
            let take = table.timeline.take(now_ns, table.rows.len());
            for row in &mut table.rows {
                row.series.sample(take);
            }
        }
    }

    /// What is known by now. `older_ns`: the age of a suspect, when the user says.
    #[must_use]
    pub fn told(&self, now_ns: u64, older_ns: Option<u64>) -> Vec<Told> {
        let mut told: Vec<Told> = self
            .tables
            .iter()
            .flat_map(|(&tgid, table)| table.told(tgid, now_ns, older_ns, !self.incomplete))
            .collect();
        told.sort_by_key(|row| (row.tgid, row.stack));
        told
    }

    /// Threads that there were when it began, made and ended since, of all processes.
    #[must_use]
    pub fn sums(&self) -> (u64, u64, u64) {
        self.tables.values().fold((0, 0, 0), |sum, table| {
            let of = |count: fn(&Series) -> u64| table.rows.iter().map(|row| count(&row.series)).sum::<u64>();
            (
                sum.0 + table.at_start,
                sum.1 + of(|series| series.opened),
                sum.2 + of(|series| series.closed) + table.ended_of_before,
            )
        })
    }
}

impl Table {
    fn row(&mut self, stack: StackId) -> u32 {
        let full = self.rows.len() >= MAX_ROWS && !self.by_stack.contains_key(&stack);
        let stack = if full { StackId::NONE } else { stack };
        let (rows, len) = (&mut self.rows, self.timeline.len());
        *self.by_stack.entry(stack).or_insert_with(|| {
            rows.push(Row {
                stack,
                series: Series::new(len),
                deaths: Ages::default(),
            });
            rows.len() as u32 - 1
        })
    }

    /// Whether it was one that had been seen to begin.
    fn on_end(&mut self, tid: u32, now_ns: u64) -> bool {
        let Some((row, born_ns)) = self.live.remove(&tid) else {
            return false;
        };
        if let Some(row) = self.rows.get_mut(row as usize) {
            row.series.died();
            row.deaths.add(now_ns.saturating_sub(born_ns));
        }
        true
    }

    fn told(&self, tgid: u32, now_ns: u64, older_ns: Option<u64>, complete: bool) -> Vec<Told> {
        let mut live: Vec<Vec<(u64, u32)>> = vec![Vec::new(); self.rows.len()];
        for (&tid, &(row, born_ns)) in &self.live {
            if let Some(of_row) = live.get_mut(row as usize) {
                of_row.push((born_ns, tid));
            }
        }
        let rows = self.rows.iter().zip(live);
        rows.map(|(row, mut live)| {
            live.sort_unstable();
            let births: Vec<u64> = live.iter().map(|&(born_ns, _)| born_ns).collect();
            let judged = verdict::judge(&Evidence {
                complete: complete && self.whole,
                mixed: row.stack == StackId::NONE,
                series: &row.series,
                line: &self.timeline,
                now_ns,
                births: &births,
                deaths: &row.deaths,
                before: &self.ended_before,
                older_ns,
                resolution_ns: 0,
                // A thread may serve a client for as long as that likes.
                visitors: true,
            });
            Told {
                tgid,
                stack: row.stack,
                created: row.series.opened,
                ended: row.series.closed,
                live,
                judged,
            }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::report::model::Verdict;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// 40 s of one thread made each half second by stack 1, which stays, and one by stack 2, which ends after 2 s.
    fn seen() -> Spawned {
        let mut spawned = Spawned::default();
        spawned.begin(7, 3, 0);
        for half in 1..=80u32 {
            let now = u64::from(half) * SECOND / 2;
            spawned.on_birth(7, 1000 + half, StackId(1), now);
            spawned.on_birth(7, 5000 + half, StackId(2), now + 1);
            if half > 4 {
                spawned.on_end(7, 5000 + half - 4, now + 2);
            }
            spawned.snapshot(now + 3);
        }
        spawned
    }

    #[test]
    fn threads_that_stay_are_told_from_those_that_end() {
        let told = seen().told(40 * SECOND + 9, None);
        let verdict = |stack| {
            let row = told.iter().find(|row| row.stack == StackId(stack)).unwrap();
            (row.created, row.ended, row.live.len(), row.judged.verdict)
        };
        assert_eq!(verdict(1), (80, 0, 80, Verdict::Leaking));
        let (created, ended, live, judged) = verdict(2);
        assert_eq!((created, ended, live), (80, 76, 4));
        assert_ne!(judged, Verdict::Leaking);
        assert_eq!(seen().sums(), (3, 160, 76));
    }

    #[test]
    fn after_a_loss_nothing_is_said() {
        let mut spawned = seen();
        spawned.set_incomplete();
        let told = spawned.told(40 * SECOND + 9, None);
        assert!(told.iter().all(|row| row.judged.verdict == Verdict::Unknown));
    }

    #[test]
    fn an_exec_begins_anew_and_a_thread_of_before_is_nobodys() {
        let mut spawned = seen();
        spawned.on_end(7, 2, 41 * SECOND);
        assert_eq!(spawned.sums().2, 77);
        spawned.on_exec(7, 42 * SECOND);
        assert_eq!(spawned.sums(), (1, 0, 0));
        spawned.on_birth(8, 1, StackId(1), 43 * SECOND);
        assert_eq!(spawned.sums(), (1, 0, 0));
    }
}
