//! Threads that wait for what cannot come: cycles, holders that are gone, and waits that nobody has ended for long.
//!
//! ```text
//! sleeper ──lock──> owner word ──> thread ──lock──> … back to the first: a deadlock, proved
//!                   no such thread: abandoned, proved
//!         no owner word: who else has the lock's address on its stack or in its registers; one such thread: probable
//! ```
//! A cycle is proved when every thread of it slept on from before the first owner word was read until after the last one was: who
//! sleeps releases nothing, and nothing else can wake them. A wait with a time-out ends by itself and proves nothing.

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::wire::{Regs, TaskSnapshot};

use super::{
    Window,
    locks::Locks,
    names::Names,
    owners::{self, Owner, Tids},
    rules::{Class, Identity, classify},
    waiting::Sleeper,
};
use crate::{
    proc::{
        maps::{self, Map},
        target::Stat,
    },
    report::model::{Certainty, Deadlock, DeadlockLink, LockKind, StackKey},
    stacks::memory,
};

/// A wait from which it is worth a word that nobody ended it.
const LONG_NS: u64 = 3_000_000_000;
/// Bytes of one thread's stack searched for the addresses of locks.
const STACK: u64 = 128 << 10;
/// Bytes searched in all.
const SEARCHED: u64 = 64 << 20;
const PAGE: u64 = 4096;
/// Cycles told; a program with more has had its first one told.
const CYCLES_MAX: usize = 16;

/// A lock whose holder is gone.
#[derive(Clone, Debug)]
pub struct Abandoned {
    /// [`crate::report::model::Lock::id`].
    pub lock: String,
    /// The holder, as the target knew it.
    pub owner: u32,
    /// The process was made by a fork: the holder may be the thread that forked, which has another id now.
    pub forked: bool,
    /// Threads that wait for it.
    pub threads: Vec<u32>,
    /// Where the first of them waits.
    pub stack: Option<StackKey>,
}

/// A lock that threads have waited for without an end.
#[derive(Clone, Debug)]
pub struct Long {
    /// [`crate::report::model::Lock::id`].
    pub lock: String,
    /// What it is.
    pub kind: LockKind,
    /// Threads that wait for it.
    pub threads: Vec<u32>,
    /// For so long at least, the longest of them.
    pub since_ns: u64,
    /// Where that one waits.
    pub stack: Option<StackKey>,
    /// Process.
    pub pid: u32,
    /// Who holds it, and what that one does.
    pub holder: Option<(u32, Does)>,
}

/// What a holder does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Does {
    /// It sleeps here.
    Sleeps(StackKey),
    /// It runs, or wants to.
    Runs,
    /// It cannot be told.
    Unknown,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Stuck {
    /// Cycles.
    pub deadlocks: Vec<Deadlock>,
    /// Locks of threads that are gone.
    pub abandoned: Vec<Abandoned>,
    /// The rest.
    pub long: Vec<Long>,
}

/// One thread that waits for a lock.
struct Waiting<'a> {
    sleeper: &'a Sleeper,
    class: Class,
    owner: Option<Owner>,
    /// Found by searching stacks, not told by the lock.
    inferred: Option<u32>,
    since_ns: u64,
    /// A lock that a thread takes for as long as it needs it; others are held over waits for input.
    plain: bool,
}

impl Waiting<'_> {
    /// The thread that it waits for, and whether that is sure.
    fn next(&self) -> Option<(u32, bool)> {
        match self.owner {
            Some(Owner::Thread(tid)) => Some((tid, true)),
            Some(Owner::Gone(_)) => None,
            None => self.inferred.map(|tid| (tid, false)),
        }
    }
}

/// Looks at who waits for whom. `again` takes the snapshots anew, after all memory was read.
pub fn look(
    sleepers: &[Sleeper],
    locks: &mut Locks,
    names: &mut Names<'_>,
    window: &Window,
    is_go: impl Fn(u32) -> bool,
    again: impl FnOnce() -> Vec<TaskSnapshot>,
) -> Stuck {
    let mut tids = Tids::default();
    let mut waiting: Vec<Waiting<'_>> = Vec::new();
    for sleeper in sleepers
        .iter()
        .filter(|sleeper| sleeper.uaddr.is_some() && !sleeper.timed)
    {
        let frames = names.frames(sleeper.stack);
        let class = classify(frames, sleeper.pi, is_go(sleeper.pid));
        if class.idle && class.kind != LockKind::Join {
            continue;
        }
        waiting.push(Waiting {
            owner: owners::owner(sleeper, &class, frames, &mut tids),
            inferred: None,
            since_ns: sleeper
                .since_ns
                .map_or(window.ns(), |since| window.end_ns.saturating_sub(since)),
            plain: owners::is_plain(&class, frames),
            sleeper,
            class,
        });
    }
    infer(&mut waiting, sleepers);
    let mut cycles = cycles(&waiting);
    if cycles.is_empty() && !waiting.iter().any(Waiting::is_worth_a_word) {
        return Stuck::default();
    }
    // Whoever moved since it was first looked at waited for something that came.
    let there: FxHashMap<u32, (u64, Regs)> = again()
        .iter()
        .map(|snapshot| (snapshot.tid, (snapshot.seq, snapshot.regs)))
        .collect();
    let stays = |sleeper: &Sleeper| there.get(&sleeper.tid) == Some(&sleeper.asleep);
    // A lock that a thread waits for while it holds it may be a gate that another thread opens: that takes no time.
    let long = |cycle: &[usize]| cycle.len() > 1 || cycle.iter().all(|&at| waiting[at].since_ns >= LONG_NS);
    cycles.retain(|cycle| long(cycle) && cycle.iter().all(|&at| stays(waiting[at].sleeper)));
    // Rows keep their places: the cycles go by them.
    for row in waiting.iter_mut().filter(|row| !stays(row.sleeper)) {
        row.plain = false;
        row.owner = None;
        row.inferred = None;
    }
    told(&waiting, &cycles, sleepers, locks, names)
}

impl Waiting<'_> {
    fn is_worth_a_word(&self) -> bool {
        self.since_ns >= LONG_NS && (self.plain || matches!(self.owner, Some(Owner::Gone(_))))
    }
}

/// Walks from thread to thread; the rows of each cycle in order.
fn cycles(waiting: &[Waiting<'_>]) -> Vec<Vec<usize>> {
    let by_tid: FxHashMap<u32, usize> = waiting
        .iter()
        .enumerate()
        .map(|(at, row)| (row.sleeper.tid, at))
        .collect();
    let next = |at: usize| by_tid.get(&waiting.get(at)?.next()?.0).copied();
    let mut seen: FxHashSet<usize> = FxHashSet::default();
    let mut found = Vec::new();
    for start in 0..waiting.len() {
        let mut path = Vec::new();
        let mut at = Some(start);
        while let Some(row) = at.filter(|&row| seen.insert(row)) {
            path.push(row);
            at = next(row);
        }
        // Back at a row of this very walk: from there on it is a cycle.
        let from = at.and_then(|back| path.iter().position(|&row| row == back));
        if let Some(from) = from.filter(|_| found.len() < CYCLES_MAX) {
            found.push(path.split_off(from));
        }
    }
    found
}

/// Who may hold the locks that do not say it: the only other thread that has its address at hand.
fn infer(waiting: &mut [Waiting<'_>], sleepers: &[Sleeper]) {
    let mut wanted: FxHashMap<u32, FxHashSet<u64>> = FxHashMap::default();
    for row in waiting.iter().filter(|row| row.is_silent()) {
        wanted
            .entry(row.sleeper.pid)
            .or_default()
            .extend(row.sleeper.uaddr);
    }
    // One lock alone makes no cycle.
    wanted.retain(|_, addresses| addresses.len() >= 2);
    // Who is not searched may hold them: each thread must sleep, and be searched whole.
    wanted.retain(|&pid, _| {
        let asleep = sleepers.iter().filter(|sleeper| sleeper.pid == pid).count();
        Stat::of(pid).is_ok_and(|stat| stat.threads as usize == asleep)
    });
    let mappings: FxHashMap<u32, Vec<Map>> = wanted
        .keys()
        .filter_map(|&pid| Some((pid, maps::read(pid).ok()?)))
        .collect();
    let mut have: FxHashMap<(u32, u64), FxHashSet<u32>> = FxHashMap::default();
    let mut in_part: FxHashSet<u32> = FxHashSet::default();
    let mut left = SEARCHED;
    for sleeper in sleepers {
        let Some(addresses) = wanted.get(&sleeper.pid) else {
            continue;
        };
        let sp = sleeper.asleep.1.sp;
        let top = mappings.get(&sleeper.pid).and_then(|all| {
            let at = maps::find(all, sp)?;
            Some(all.get(at)?.end)
        });
        let saved = &sleeper.asleep.1.gp;
        let mut note = |word: u64| {
            if addresses.contains(&word) && sleeper.uaddr != Some(word) {
                have.entry((sleeper.pid, word)).or_default().insert(sleeper.tid);
            }
        };
        // What calls preserve: rbx, rbp, r12 to r15.
        [3, 6, 12, 13, 14, 15]
            .iter()
            .filter_map(|&at| saved.get(at))
            .for_each(|&word| note(word));
        let mut at = sp & !7;
        let top = top.unwrap_or(u64::MAX);
        let end = top.min(at.saturating_add(STACK.min(left)));
        while at < end {
            let len = (PAGE - at % PAGE).min(end - at);
            let Some(bytes) = memory::read(sleeper.tid, at, len as usize) else {
                break;
            };
            let words = bytes
                .chunks_exact(8)
                .filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
            words.for_each(&mut note);
            at += len;
            left -= len;
        }
        if at < top {
            in_part.insert(sleeper.pid);
        }
    }
    for row in waiting.iter_mut().filter(|row| row.is_silent()) {
        let Some(uaddr) = row.sleeper.uaddr else { continue };
        if in_part.contains(&row.sleeper.pid) {
            continue;
        }
        let waiters_too = have.get(&(row.sleeper.pid, uaddr));
        if let Some(only) = waiters_too.filter(|threads| threads.len() == 1) {
            row.inferred = only.iter().next().copied();
        }
    }
}

impl Waiting<'_> {
    /// Nothing tells who holds the lock, and it has been waited for long enough to wonder.
    fn is_silent(&self) -> bool {
        let by_word = matches!(self.class.identity, Identity::Word(_));
        self.owner.is_none() && self.plain && by_word && self.since_ns >= LONG_NS
    }
}

/// As the report has it.
fn told(
    waiting: &[Waiting<'_>],
    cycles: &[Vec<usize>],
    sleepers: &[Sleeper],
    locks: &mut Locks,
    names: &mut Names<'_>,
) -> Stuck {
    let mut stuck = Stuck::default();
    let mut in_cycle: FxHashMap<u32, usize> = FxHashMap::default();
    for cycle in cycles {
        let rows: Vec<&Waiting<'_>> = cycle.iter().map(|&at| &waiting[at]).collect();
        let ids: Vec<String> = rows.iter().map(|row| id(row, locks, names)).collect();
        let before = ids.iter().cycle().skip(ids.len().saturating_sub(1));
        let links = rows
            .iter()
            .zip(&ids)
            .zip(before)
            .map(|((row, waits_for), holds)| DeadlockLink {
                tid: row.sleeper.tid,
                holds: Some(holds.clone()),
                waits_for: waits_for.clone(),
                stack: names.key(row.sleeper.stack),
            });
        let sure = rows.iter().all(|row| row.next().is_some_and(|(_, sure)| sure));
        in_cycle.extend(rows.iter().map(|row| (row.sleeper.tid, stuck.deadlocks.len())));
        stuck.deadlocks.push(Deadlock {
            pid: rows.first().map_or(0, |row| row.sleeper.pid),
            certainty: if sure {
                Certainty::Proven
            } else {
                Certainty::Probable
            },
            waiting_ns: rows.iter().map(|row| row.since_ns).min().unwrap_or_default(),
            behind: 0,
            cycle: links.collect(),
        });
    }
    let by_tid: FxHashMap<u32, &Waiting<'_>> = waiting.iter().map(|row| (row.sleeper.tid, row)).collect();
    let mut abandoned: FxHashMap<String, Abandoned> = FxHashMap::default();
    let mut long: FxHashMap<String, Long> = FxHashMap::default();
    for row in waiting {
        let tid = row.sleeper.tid;
        if in_cycle.contains_key(&tid) {
            continue;
        }
        if let Some(&cycle) = end_of(row, &by_tid).and_then(|end| in_cycle.get(&end)) {
            stuck.deadlocks[cycle].behind += 1;
            continue;
        }
        if let Some(Owner::Gone(owner)) = row.owner {
            if row.since_ns < LONG_NS {
                continue;
            }
            let lock = id(row, locks, names);
            let known = abandoned.entry(lock.clone()).or_insert_with(|| Abandoned {
                lock,
                owner,
                forked: Stat::of(row.sleeper.pid).is_ok_and(|stat| stat.is_forked()),
                threads: Vec::new(),
                stack: names.key(row.sleeper.stack),
            });
            known.threads.push(tid);
        } else if row.plain && row.since_ns >= LONG_NS {
            let lock = id(row, locks, names);
            let holder = row.next().filter(|(_, sure)| *sure);
            let holder = holder.map(|(tid, _)| (tid, does(row.sleeper.pid, tid, sleepers, names)));
            let known = long.entry(lock.clone()).or_insert_with(|| Long {
                lock,
                kind: row.class.kind,
                pid: row.sleeper.pid,
                threads: Vec::new(),
                since_ns: 0,
                stack: None,
                holder,
            });
            known.threads.push(tid);
            if row.since_ns > known.since_ns {
                known.since_ns = row.since_ns;
                known.stack = names.key(row.sleeper.stack);
            }
        }
    }
    stuck.abandoned = abandoned.into_values().collect();
    stuck
        .abandoned
        .sort_by(|a, b| (b.threads.len(), &a.lock).cmp(&(a.threads.len(), &b.lock)));
    stuck.long = long.into_values().collect();
    stuck
        .long
        .sort_by(|a, b| (b.since_ns, &a.lock).cmp(&(a.since_ns, &b.lock)));
    stuck
}

/// What a thread does now.
fn does(pid: u32, tid: u32, sleepers: &[Sleeper], names: &mut Names<'_>) -> Does {
    let asleep = sleepers.iter().find(|sleeper| sleeper.tid == tid);
    if let Some(stack) = asleep.and_then(|sleeper| names.key(sleeper.stack)) {
        return Does::Sleeps(stack);
    }
    match Stat::of_thread(pid, tid) {
        Ok(stat) if stat.state == 'R' && asleep.is_none() => Does::Runs,
        _ => Does::Unknown,
    }
}

fn id(row: &Waiting<'_>, locks: &mut Locks, names: &mut Names<'_>) -> String {
    locks.slept_on(row.sleeper, &row.class, names)
}

/// The last thread that a row waits for, by way of others.
fn end_of(row: &Waiting<'_>, by_tid: &FxHashMap<u32, &Waiting<'_>>) -> Option<u32> {
    let mut end = None;
    let mut at = row;
    for _ in 0..by_tid.len() {
        let Some((tid, _)) = at.next() else { break };
        end = Some(tid);
        let Some(next) = by_tid.get(&tid) else { break };
        at = next;
    }
    end
}
