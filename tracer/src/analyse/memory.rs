//! Resident memory, and who touches what is new of it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use super::{Window, names::Names};
use crate::{
    aggregate::{pages::Pages, resident::Line},
    proc::memory::resident,
    report::{
        frames::{app_index, path_of},
        model::{Memory, MemoryProcess, MemoryStack, Verdict},
    },
    stacks::StackId,
};

/// Rows in the report, besides one of each process without a stack, for all others.
const ROWS_MAX: usize = 64;
/// Processes in the report.
const PROCESSES_MAX: usize = 64;
/// Probability of such steps without growth, below which it is not called steady.
const MAY_GROW: f64 = 0.05;
/// Stacks whose names are looked up, those with most memory.
const NAMED_MAX: usize = 4096;

/// One process's memory as it was read.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// All that was resident.
    pub all: Line,
    /// What was its own.
    pub own: Line,
    /// What it may take more.
    pub room: Option<u64>,
}

impl Readings {
    /// Reads it now.
    pub fn read(&mut self, pid: u32, now_ns: u64) {
        if let Some(resident) = resident(pid) {
            self.all.on_reading(now_ns, resident.all);
            self.own.on_reading(now_ns, resident.own);
        }
    }

    /// Begins a new window: of what has `ended` there is none.
    pub fn reset(&mut self, ended: bool) {
        if ended {
            *self = Self::default();
        }
        self.all.reset();
        self.own.reset();
    }
}

/// The section. `sampled`: page faults are looked at.
pub fn memory<'a>(
    processes: impl Iterator<Item = (u32, &'a Readings)>,
    pages: &Pages,
    sampled: bool,
    window: &Window,
    names: &mut Names<'_>,
) -> Memory {
    let mut touched: HashMap<u32, (u64, u64)> = HashMap::new();
    for (tgid, row) in pages.rows() {
        let (bytes, samples) = touched.entry(tgid).or_default();
        *bytes += row.bytes;
        *samples += 1;
    }
    let mut by_process: Vec<MemoryProcess> = processes
        .filter_map(|(pid, read)| {
            let (bytes, samples) = touched.get(&pid).copied().unwrap_or_default();
            process(pid, read, sampled.then_some(bytes), samples)
        })
        .collect();
    by_process.sort_by_key(|process| (Reverse(process.own_end), process.pid));
    by_process.truncate(PROCESSES_MAX);
    let sum = |of: fn(&MemoryProcess) -> u64| by_process.iter().map(of).sum::<u64>();
    let growth = |process: &MemoryProcess| process.growth_bytes_per_s;
    Memory {
        rss_start: sum(|process| process.rss_start),
        rss_end: sum(|process| process.rss_end),
        growth_bytes_per_s: by_process.iter().filter_map(growth).sum(),
        touched_bytes: sampled.then(|| touched.values().map(|(bytes, _)| bytes).sum()),
        samples: touched.values().map(|(_, samples)| samples).sum(),
        by_stack: by_stack(pages, window, names),
        by_process,
    }
}

fn process(pid: u32, read: &Readings, touched_bytes: Option<u64>, samples: u64) -> Option<MemoryProcess> {
    let ((rss_start, rss_end), (own_start, own_end)) = (read.all.ends()?, read.own.ends()?);
    let slope = read.own.slope();
    // Never sooner than is sure.
    let grows = slope.filter(|slope| slope.grows && slope.interval.0 > 0.0);
    let left = grows
        .zip(read.room)
        .map(|(slope, room)| room as f64 / slope.interval.0 * 1e9);
    Some(MemoryProcess {
        pid,
        rss_start,
        rss_end,
        own_start,
        own_end,
        growth_bytes_per_s: slope.map(|slope| slope.per_s),
        growth_interval_bytes_per_s: slope.map(|slope| [slope.interval.0, slope.interval.1]),
        verdict: match slope {
            Some(slope) if slope.grows => Verdict::Growing,
            Some(slope) if slope.p_value >= MAY_GROW => Verdict::Steady,
            _ => Verdict::Unknown,
        },
        read_ns: slope.map_or(0, |slope| slope.span_ns),
        touched_bytes,
        samples,
        p_value: slope.map(|slope| slope.p_value),
        room_bytes: read.room,
        time_to_limit_ns: left.map(|ns| ns as u64),
    })
}

#[derive(Clone, Copy, Default)]
struct Sum {
    /// The stack with most of it.
    stack: StackId,
    most: u64,
    bytes: u64,
    samples: u64,
}

impl Sum {
    const fn add(&mut self, stack: StackId, bytes: u64, samples: u64) {
        self.bytes += bytes;
        self.samples += samples;
        if bytes > self.most {
            (self.stack, self.most) = (stack, bytes);
        }
    }
}

/// Stacks are equal whose functions are, from the application's on: in which library it allocates does not matter.
fn by_stack(pages: &Pages, window: &Window, names: &mut Names<'_>) -> Vec<MemoryStack> {
    let mut known: HashMap<(u32, StackId), Sum> = HashMap::new();
    for (tgid, row) in pages.rows() {
        let sum = known.entry((tgid, row.stack)).or_default();
        sum.add(row.stack, row.bytes, 1);
    }
    let mut rows: Vec<((u32, StackId), Sum)> = known.into_iter().collect();
    rows.sort_unstable_by_key(|&(of, sum)| (Reverse(sum.bytes), of));
    let mut groups: HashMap<(u32, Vec<String>), Sum> = HashMap::new();
    for (at, ((tgid, stack), sum)) in rows.into_iter().enumerate() {
        let frames = if at < NAMED_MAX { names.frames(stack) } else { &[] };
        let path = path_of(frames.get(app_index(frames)..).unwrap_or_default());
        let shown = if path.is_empty() { StackId::NONE } else { stack };
        groups
            .entry((tgid, path))
            .or_default()
            .add(shown, sum.bytes, sum.samples);
    }
    let all: u64 = groups.values().map(|sum| sum.bytes).sum();
    let mut rows: Vec<(u32, Sum)> = groups.into_iter().map(|((tgid, _), sum)| (tgid, sum)).collect();
    rows.sort_unstable_by_key(|&(tgid, sum)| (Reverse(sum.bytes), tgid, sum.stack));
    let mut rest: BTreeMap<u32, Sum> = BTreeMap::new();
    for (tgid, other) in rows.split_off(rows.len().min(ROWS_MAX)) {
        let sum = rest.entry(tgid).or_default();
        sum.add(StackId::NONE, other.bytes, other.samples);
    }
    rows.extend(rest.into_iter().take(PROCESSES_MAX));
    rows.into_iter()
        .map(|(pid, sum)| MemoryStack {
            pid,
            stack: names.key(sum.stack),
            bytes: sum.bytes,
            growth_bytes_per_s: sum.bytes as f64 * 1e9 / window.ns().max(1) as f64,
            share: sum.bytes as f64 / all.max(1) as f64,
            samples: sum.samples,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(per_reading: u64, room: Option<u64>) -> Readings {
        let mut read = Readings {
            room,
            ..Readings::default()
        };
        for at in 0..120 {
            let bytes = 50_000_000 + at * per_reading;
            read.own.on_reading(at * 250_000_000, bytes);
            read.all.on_reading(at * 250_000_000, bytes + 5_000_000);
        }
        read
    }

    #[test]
    fn what_grows_has_a_time_to_its_limit() {
        let found = process(7, &readings(1_000_000, Some(4_000_000_000)), None, 0).unwrap();
        assert_eq!(found.verdict, Verdict::Growing);
        assert_eq!((found.own_start, found.own_end), (50_000_000, 169_000_000));
        assert_eq!(found.rss_end - found.rss_start, 119_000_000);
        let seconds = found.time_to_limit_ns.unwrap() / 1_000_000_000;
        assert!((950..1050).contains(&seconds), "{seconds}");
    }

    #[test]
    fn what_is_steady_or_was_hardly_read_has_none() {
        let steady = process(7, &readings(0, Some(1)), None, 0).unwrap();
        assert_eq!((steady.verdict, steady.time_to_limit_ns), (Verdict::Steady, None));
        let mut few = Readings::default();
        few.own.on_reading(1, 2);
        few.all.on_reading(1, 3);
        let found = process(7, &few, None, 0).unwrap();
        assert_eq!(
            (found.verdict, found.growth_bytes_per_s),
            (Verdict::Unknown, None)
        );
        assert!(process(7, &Readings::default(), None, 0).is_none());
    }
}
