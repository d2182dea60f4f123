//! Threads by who made them, and what they sleep in.

use rustc_hash::FxHashMap;

use super::{names::Names, waiting::Sleeper};
use crate::{
    aggregate::spawned::{Spawned, Told},
    report::model::{Reason, SpawnSleep, SpawnStack, Spawns, Step, Verdict},
    stacks::StackId,
};

/// Rows in the report.
const ROWS_MAX: usize = 128;
/// Places that a row's threads sleep in, and threads named.
const PLACES: usize = 3;
const EXAMPLES: usize = 5;

/// The section; `older_ns`: the age of a suspect, when the user says.
pub fn spawned(
    spawned: &Spawned,
    sleepers: &[Sleeper],
    now_ns: u64,
    older_ns: Option<u64>,
    names: &mut Names<'_>,
) -> Spawns {
    let asleep: FxHashMap<u32, &Sleeper> = sleepers.iter().map(|sleeper| (sleeper.tid, sleeper)).collect();
    let (at_start, created, ended) = spawned.sums();
    let mut told = spawned.told(now_ns, older_ns);
    let rank = |row: &Told| {
        (
            row.judged.verdict != Verdict::Leaking,
            std::cmp::Reverse(row.live.len()),
        )
    };
    told.sort_by_key(rank);
    told.truncate(ROWS_MAX);
    let by_stack = told
        .into_iter()
        .map(|row| SpawnStack {
            pid: row.tgid,
            stack: names.key(row.stack),
            created: row.created,
            ended: row.ended,
            live: row.live.len() as u64,
            verdict: row.judged.verdict,
            confidence: row.judged.confidence,
            growth_per_s: row.judged.growth_per_s,
            growth_interval_per_s: row.judged.interval.map(|(low, high)| [low, high]),
            stays: row.judged.stays,
            steps: row.judged.periods.iter().map(Step::from).collect(),
            oldest_ns: row
                .live
                .first()
                .map(|&(born_ns, _)| now_ns.saturating_sub(born_ns)),
            asleep_in: places(&row, &asleep, names),
            alone: alone(&row, &asleep),
            examples: row.live.iter().take(EXAMPLES).map(|&(_, tid)| tid).collect(),
        })
        .collect();
    Spawns {
        at_start,
        created,
        ended,
        by_stack,
    }
}

/// Threads that wait for what no other one of them waits for, with nothing but somebody else to end it.
fn alone(row: &Told, asleep: &FxHashMap<u32, &Sleeper>) -> u64 {
    let mut words: FxHashMap<u64, u64> = FxHashMap::default();
    let sleepers = row.live.iter().filter_map(|(_, tid)| asleep.get(tid));
    for word in sleepers
        .filter(|sleeper| !sleeper.timed)
        .filter_map(|sleeper| sleeper.uaddr)
    {
        *words.entry(word).or_default() += 1;
    }
    words.values().filter(|&&count| count == 1).sum()
}

fn places(row: &Told, asleep: &FxHashMap<u32, &Sleeper>, names: &mut Names<'_>) -> Vec<SpawnSleep> {
    let mut counts: FxHashMap<(Reason, StackId), u64> = FxHashMap::default();
    for sleeper in row.live.iter().filter_map(|(_, tid)| asleep.get(tid)) {
        *counts.entry((sleeper.reason, sleeper.stack)).or_default() += 1;
    }
    let mut places: Vec<_> = counts.into_iter().collect();
    places.sort_unstable_by_key(|&(place, count)| (std::cmp::Reverse(count), place));
    places
        .into_iter()
        .take(PLACES)
        .map(|((reason, stack), count)| SpawnSleep {
            reason,
            stack: names.key(stack),
            count,
        })
        .collect()
}
