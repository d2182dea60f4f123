//! Goroutines as a section of the report.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::{go_objects::Answers, go_pools, go_shapes, names::Names};
use crate::{
    aggregate::{
        go_pools::Pools,
        goroutines::{Goroutines, Judged, Survivors},
        hist::Histogram,
    },
    go::{
        memory::Live,
        objects::Objects,
        snapshot::{Goroutine, Group, NO_GROUP, Reader, Tally},
    },
    report::{
        hist::hist,
        model::{Go, GoCreator, GoExample, GoGc, GoSnapshots, GoStack, GoWait, StackFrame, Verdict},
    },
    stacks::StackId,
};

/// Rows shown.
const MAX_ROWS: usize = 2000;
/// Examples of a row.
const MAX_EXAMPLES: usize = 5;

/// Goroutines of a row, or of a creator, that are alive.
#[derive(Default)]
struct Alive {
    count: u64,
    survivors: Survivors,
    waits: Histogram,
    /// Longest there first.
    examples: Vec<(u64, Goroutine)>,
}

/// What was seen of one process.
pub struct Seen<'a> {
    /// Process.
    pub pid: u32,
    /// Of Go.
    pub version: Option<String>,
    /// What read it.
    pub reader: &'a Reader<Live>,
    /// What became of its goroutines.
    pub account: &'a Goroutines,
    /// And of its pools of connections.
    pub pools: &'a Pools,
    /// Its collector, in the time of the account.
    pub gc: Option<GoGc>,
    /// How it was read.
    pub tally: Tally,
    /// CPU time that took.
    pub cpu_ns: u64,
    /// Time between snapshots.
    pub interval_ns: u64,
}

/// The section of one process; its goroutines are asked what they wait on through `objects`.
#[must_use]
pub fn go(
    target: &Seen<'_>,
    objects: &mut Objects,
    older_ns: Option<u64>,
    now_ns: u64,
    names: &mut Names<'_>,
) -> Go {
    let &Seen {
        pid, reader, account, ..
    } = target;
    let mut by_status: BTreeMap<String, u64> = BTreeMap::new();
    for (_, goroutine) in reader.goroutines() {
        *by_status.entry(goroutine.status.name().to_owned()).or_default() += 1;
    }
    let answers = Answers::ask(reader, objects, now_ns);
    let (rows, creators) = alive(target, now_ns);
    let mut places = Places::new(pid);
    let creators = judged_creators(creators, target, older_ns);
    let by_creator = by_creator(&creators, &mut places, names);
    let none = Judged::default();
    let mut shown: Vec<(Judged, u32, u64, Alive)> = rows
        .into_iter()
        .map(|((group, creator), mut alive)| {
            let of_creator = creators.get(&creator).map_or(&none, |(_, judged)| judged);
            let judged = account.row(group, std::mem::take(&mut alive.survivors), of_creator, older_ns);
            (judged, group, creator, alive)
        })
        .collect();
    shown.sort_by(|(a, group, _, alive), (b, other, _, others)| {
        suspicion(told(a).0)
            .cmp(&suspicion(told(b).0))
            .then(others.count.cmp(&alive.count))
            .then(group.cmp(other))
    });
    let folded = shown.iter().skip(MAX_ROWS).map(|(.., alive)| alive.count).sum();
    shown.truncate(MAX_ROWS);
    let by_stack = shown
        .into_iter()
        .filter_map(|(judged, number, creator, alive)| {
            let group = reader.groups().get(number as usize)?;
            let (verdict, confidence) = told(&judged);
            let (created_by, created_at) = places.creator(creator, names);
            let examples = alive.examples.iter().map(|&(since, goroutine)| GoExample {
                goid: goroutine.goid,
                parent_goid: (goroutine.parent != 0).then_some(goroutine.parent),
                thread: reader.thread(goroutine.m),
                wait_ns: Some(now_ns.saturating_sub(since)),
            });
            let id = places.stack_id(group, names);
            let reason = reason(target, group);
            let (peers, peers_asked) = answers.peers(number);
            let shape = go_shapes::of(names.frames(id), reason.as_deref(), answers.ticks(number));
            Some(GoStack {
                stack: names.key(id),
                shape: shape.map(|shape| shape.sentence().to_owned()),
                cut: group.cut,
                created_by,
                created_at,
                asked_by: Vec::new(),
                count: alive.count,
                status: group.status.name().to_owned(),
                wait_reason: reason,
                wait_ns: hist(&alive.waits),
                opened: judged.opened,
                closed: judged.closed,
                live_at_start: judged.at_start,
                verdict,
                confidence,
                growth_per_s: judged.growth_per_s,
                growth_interval_per_s: judged.growth_interval_per_s,
                stays: judged.stays,
                steps: judged.steps,
                waits_on: answers.waits_on(number),
                peers,
                peers_asked,
                examples: examples.collect(),
            })
        })
        .collect();
    Go {
        pid,
        version: target.version.clone(),
        goroutines: target.tally.alive,
        by_status,
        by_stack,
        folded,
        by_creator,
        waits: waits(target, &mut places, names),
        pools: go_pools::pools(target, &mut places, names),
        gc: target.gc.clone(),
        profiles: None,
        proof: None,
        written: Vec::new(),
        snapshots: GoSnapshots {
            count: account.snapshots(),
            interval_ns: target.interval_ns,
            cpu_ns: target.cpu_ns,
            walked: target.tally.walked,
            unchanged: target.tally.unchanged,
            moved: target.tally.moved,
            inconsistent: target.tally.inconsistent,
            unreadable: target.tally.unreadable,
            bytes: target.tally.bytes,
        },
    }
}

/// How many each creator has alive, and what that means.
fn judged_creators(
    creators: FxHashMap<u64, Alive>,
    target: &Seen<'_>,
    older_ns: Option<u64>,
) -> FxHashMap<u64, (u64, Judged)> {
    let judged = |(creator, alive): (u64, Alive)| {
        let verdict = target.account.creator(creator, alive.survivors, older_ns);
        (creator, (alive.count, verdict))
    };
    creators.into_iter().map(judged).collect()
}

/// Those alive, by row and by creator.
fn alive(target: &Seen<'_>, now_ns: u64) -> (FxHashMap<(u32, u64), Alive>, FxHashMap<u64, Alive>) {
    let account = target.account;
    let mut rows: FxHashMap<(u32, u64), Alive> = FxHashMap::default();
    let mut creators: FxHashMap<u64, Alive> = FxHashMap::default();
    for (_, goroutine) in target.reader.goroutines() {
        let creator = creators.entry(goroutine.creator).or_default();
        creator.count += 1;
        account.survives(&mut creator.survivors, goroutine.born_ns);
        if goroutine.group == NO_GROUP {
            continue;
        }
        let row = rows.entry((goroutine.group, goroutine.creator)).or_default();
        row.count += 1;
        account.survives(&mut row.survivors, goroutine.joined_ns);
        let since = since(goroutine);
        row.waits.record(now_ns.saturating_sub(since));
        let at = row.examples.partition_point(|(other, _)| *other <= since);
        if at < MAX_EXAMPLES {
            row.examples.insert(at, (since, *goroutine));
            row.examples.truncate(MAX_EXAMPLES);
        }
    }
    (rows, creators)
}

fn by_creator(
    creators: &FxHashMap<u64, (u64, Judged)>,
    places: &mut Places,
    names: &mut Names<'_>,
) -> Vec<GoCreator> {
    let mut rows: Vec<GoCreator> = creators
        .iter()
        .map(|(&creator, &(live, ref judged))| {
            let (created_by, created_at) = places.creator(creator, names);
            let (verdict, confidence) = told(judged);
            GoCreator {
                created_by,
                created_at,
                opened: judged.opened,
                closed: judged.closed,
                live,
                live_at_start: judged.at_start,
                verdict,
                confidence,
                growth_per_s: judged.growth_per_s,
                growth_interval_per_s: judged.growth_interval_per_s,
                stays: judged.stays,
                steps: judged.steps.clone(),
            }
        })
        .collect();
    rows.sort_by(|a, b| {
        suspicion(a.verdict)
            .cmp(&suspicion(b.verdict))
            .then(b.live.cmp(&a.live))
            .then(a.created_at.cmp(&b.created_at))
    });
    rows.truncate(MAX_ROWS);
    rows
}

/// Since when a goroutine does what it does, as far as is known: the earlier of what was seen and what the collector noted.
fn since(goroutine: &Goroutine) -> u64 {
    match goroutine.since_ns {
        0 => goroutine.seen_ns,
        noted => noted.min(goroutine.seen_ns),
    }
}

fn told(judged: &Judged) -> (Verdict, f64) {
    judged.verdict.unwrap_or((Verdict::Unknown, 0.0))
}

fn suspicion(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Leaking => 0,
        Verdict::Growing => 1,
        _ => 2,
    }
}

fn reason(target: &Seen<'_>, group: &Group) -> Option<String> {
    let reasons = &target.reader.runtime().reasons;
    let text = reasons.get(usize::from(group.status.reason()?))?;
    (!text.is_empty()).then(|| text.clone())
}

/// Where goroutines spent their time; not the runtime's own, and not running.
fn waits(target: &Seen<'_>, places: &mut Places, names: &mut Names<'_>) -> Vec<GoWait> {
    let window_ns = target.account.window_ns();
    let mut sampled: Vec<_> = target.account.sampled().collect();
    sampled.sort_by_key(|(group, sampled)| (std::cmp::Reverse(sampled.total_ns), *group));
    let waits = sampled.into_iter().filter_map(|(group, sampled)| {
        let group = target.reader.groups().get(group as usize)?;
        let (created_by, _) = places.creator(group.creator, names);
        let stack = places.stack_id(group, names);
        if is_own(created_by.as_deref(), names.frames(stack)) {
            return None;
        }
        Some(GoWait {
            stack: names.key(stack),
            created_by,
            status: group.status.name().to_owned(),
            wait_reason: reason(target, group),
            samples: sampled.samples,
            total_ns: sampled.total_ns,
            total_ci_ns: sampled.interval_ns.map(|(low, high)| [low, high]),
            mean: Some(sampled.total_ns as f64 / window_ns.max(1) as f64),
            count: None,
            wait: None,
        })
    });
    waits.take(MAX_ROWS).collect()
}

/// The runtime's own: made by it, and nothing else on the stack. The main goroutine is made by it, too.
pub(super) fn is_own(created_by: Option<&str>, frames: &[StackFrame]) -> bool {
    let of_runtime = |name: &str| name.starts_with("runtime.");
    created_by.is_none_or(of_runtime)
        && frames
            .iter()
            .all(|frame| frame.function.as_deref().is_none_or(of_runtime))
}

/// Stacks and creators in words.
pub(crate) struct Places {
    pid: u32,
    known: FxHashMap<u64, (Option<String>, Option<String>)>,
}

impl Places {
    /// Of a process.
    pub(crate) fn new(pid: u32) -> Self {
        Self {
            pid,
            known: FxHashMap::default(),
        }
    }

    pub(super) fn stack_id(&self, group: &Group, names: &mut Names<'_>) -> StackId {
        if group.frames.is_empty() {
            return StackId::NONE;
        }
        names.stacks_mut().intern_code(self.pid, &group.frames, group.cut)
    }

    /// Function and place of a `go` statement. None of the main goroutine, and those that the runtime makes in C or assembly.
    pub(crate) fn creator(
        &mut self,
        creator: u64,
        names: &mut Names<'_>,
    ) -> (Option<String>, Option<String>) {
        if creator == 0 {
            return (None, None);
        }
        if let Some(known) = self.known.get(&creator) {
            return known.clone();
        }
        let id = names
            .stacks_mut()
            .intern_code(self.pid, &[(creator, true)], false);
        let frames = names.frames(id);
        // Go names the function that was compiled, and the line of what was inlined into it.
        let function = frames.last().and_then(|frame| frame.function.clone());
        let place = frames
            .first()
            .and_then(|frame| Some(format!("{}:{}", frame.file.as_deref()?, frame.line?)));
        // It is how the first goroutine is made: Go does not say it either.
        let found = match function.as_deref() {
            Some("runtime.newproc") => (None, None),
            _ => (function, place),
        };
        self.known.insert(creator, found.clone());
        found
    }
}
