//! What `--go-write` brought, as parts of a Go program's section.

use rustc_hash::FxHashMap;

use super::{
    go::{GoTarget, GoTargets},
    go_write::{GoWriter, NOTHING, Profile, Proof, Written},
    watchdog::Fate,
};
use crate::{
    analyse::{go::Places, names::Names},
    go::{
        profiler::{Kind, Sum},
        snapshot::{Goroutine, Group},
    },
    report::model::{
        Go, GoBlocked, GoOutcome, GoProfiles, GoProof, GoProved, GoWritten, Hint, StackFrame, StackKey,
        Target,
    },
    stacks::StackId,
};

/// Rows of each table.
const MAX_ROWS: usize = 1000;
/// Numbers of goroutines told of a row.
const MAX_EXAMPLES: usize = 5;

/// Adds it to the sections.
pub(super) fn add(all: &mut [Go], targets: &GoTargets, writer: &GoWriter, names: &mut Names<'_>) {
    for go in all {
        let Some(site) = writer.site(go.pid) else { continue };
        let target = targets
            .iter()
            .find(|(pid, _)| *pid == go.pid)
            .map(|(_, target)| target);
        if let Some(profile) = &site.profile
            && let Some(tick_ns) = writer.tick_ns()
        {
            go.profiles = Some(profiles(go.pid, profile, tick_ns, names));
        }
        if let Some(proof) = &site.proof
            && let Some(target) = target
        {
            go.proof = Some(proved(go.pid, proof, target, names));
        }
        go.written = site.written.iter().map(written).collect();
    }
}

/// What `--go-write` did not do, and why.
pub(super) fn hints(targets: &[Target], writer: &GoWriter) -> Vec<Hint> {
    let hint = |pid: u32, text: String| {
        let target = targets.iter().find(|target| target.pid == pid)?;
        Some(Hint {
            pid,
            runtime: target.runtime.clone(),
            text,
            frames: 0,
        })
    };
    let mut all: Vec<Hint> = writer.refused().filter_map(|(pid, why)| hint(pid, why)).collect();
    let standing = targets.iter().filter_map(|target| {
        let site = writer.site(target.pid).filter(|site| !site.written.is_empty())?;
        hint(target.pid, in_short(&site.written))
    });
    all.extend(standing);
    let untouched = targets.iter().filter(|_| writer.is_asked() && writer.is_idle());
    all.extend(untouched.filter_map(|target| {
        let why = if target.runtime.starts_with("go") {
            "its goroutines could not be read"
        } else {
            "it is no Go program"
        };
        hint(target.pid, format!("{NOTHING}: {why}"))
    }));
    all
}

/// What was written, and whether all is as it was.
fn in_short(all: &[Written]) -> String {
    let names: Vec<&str> = all.iter().map(|written| written.what).collect();
    let each = |wanted: &[Fate]| {
        let is = |written: &Written| written.fate.is_some_and(|fate| wanted.contains(&fate));
        all.iter().all(is)
    };
    let now = if each(&[Fate::Restored, Fate::Taken]) {
        "all is as it was"
    } else if each(&[Fate::Gone]) {
        "the program they were in is gone"
    } else if all.iter().all(|written| written.fate.is_none()) {
        "they are put back when ctrace ends"
    } else {
        "NOT all is as it was, see go.written"
    };
    format!("--go-write wrote to its memory ({}): {now}", names.join(", "))
}

fn written(written: &Written) -> GoWritten {
    let outcome = match written.fate {
        None => GoOutcome::Standing,
        Some(Fate::Restored) => GoOutcome::Restored,
        Some(Fate::Taken) => GoOutcome::Taken,
        Some(Fate::Changed(_)) => GoOutcome::Changed,
        Some(Fate::Gone) => GoOutcome::Gone,
        Some(Fate::Failed) => GoOutcome::Failed,
    };
    GoWritten {
        what: written.what.to_owned(),
        address: format!("{:#x}", written.entry.address),
        old: written.entry.old,
        new: written.entry.new,
        restored: matches!(outcome, GoOutcome::Restored | GoOutcome::Taken),
        outcome,
    }
}

fn profiles(pid: u32, profile: &Profile, tick_ns: f64, names: &mut Names<'_>) -> GoProfiles {
    let block_rate_ns = match profile.block_rate {
        1 => 1,
        ticks => (ticks as f64 * tick_ns).round() as u64,
    };
    // What the runtime does not make up for, as `runtime/pprof` does.
    let stands_for = if profile.scaled() {
        1.0
    } else {
        profile.mutex_fraction.max(1) as f64
    };
    let mut unreadable = profile.after.unreadable + u64::from(profile.after.cut);
    let mut table = |kind, stands_for| {
        let (rows, left_out) = blocked(pid, profile, kind, (tick_ns, stands_for), names);
        unreadable += left_out;
        rows
    };
    GoProfiles {
        block: table(Kind::Block, 1.0),
        mutex: table(Kind::Mutex, stands_for),
        block_rate_ns,
        mutex_fraction: profile.mutex_fraction,
        own_rates: profile.own,
        unreadable,
    }
}

/// Rows of one table, and how many there was no room for.
fn blocked(
    pid: u32,
    profile: &Profile,
    kind: Kind,
    (tick_ns, stands_for): (f64, f64),
    names: &mut Names<'_>,
) -> (Vec<GoBlocked>, u64) {
    let none = Sum::default();
    let mut rows: Vec<(u64, Sum)> = profile
        .after
        .sums
        .iter()
        .filter(|((of, _), _)| *of == kind)
        .filter_map(|(key, after)| {
            let before = profile.before.sums.get(key).unwrap_or(&none);
            let grown = Sum {
                count: after.count - before.count,
                ticks: after.ticks.checked_sub(before.ticks)?,
            };
            (grown.count > 0.0).then_some((key.1, grown))
        })
        .collect();
    rows.sort_unstable_by_key(|&(record, sum)| (std::cmp::Reverse(sum.ticks), record));
    let left_out = rows.len().saturating_sub(MAX_ROWS) as u64;
    rows.truncate(MAX_ROWS);
    let mut merged: Vec<GoBlocked> = Vec::new();
    let mut places: FxHashMap<StackKey, usize> = FxHashMap::default();
    for (record, sum) in rows {
        let Some(stack) = profile.buckets.stack(record) else {
            continue;
        };
        let Some(key) = stack_key(pid, stack, names) else {
            continue;
        };
        let (count, total_ns) = (
            (sum.count * stands_for).round() as u64,
            (sum.ticks as f64 * stands_for * tick_ns) as u64,
        );
        let at = *places.entry(key.clone()).or_insert(merged.len());
        match merged.get_mut(at) {
            Some(row) => {
                row.count += count;
                row.total_ns += total_ns;
            }
            None => merged.push(GoBlocked {
                stack: Some(key),
                count,
                total_ns,
            }),
        }
    }
    merged.sort_by_key(|row| std::cmp::Reverse(row.total_ns));
    (merged, left_out)
}

/// A stack of the profiler. Where functions were inlined it may hold an address for each of them, of which the first stands for
/// all: it is expanded to the same.
fn stack_key(pid: u32, stack: &[u64], names: &mut Names<'_>) -> Option<StackKey> {
    let all: Vec<(u64, bool)> = stack.iter().map(|&pc| (pc, true)).collect();
    let id = names.stacks_mut().intern_code(pid, &all, false);
    let expanded = by_address(names.frames(id));
    // Frames whose expansion was not found one by one are left as they are.
    if expanded.len() != stack.len() {
        return names.key(id);
    }
    let mut kept: Vec<(u64, bool)> = Vec::new();
    let mut rest: &[StackFrame] = &[];
    for (frame, of) in all.iter().zip(&expanded) {
        let implied =
            !of.is_empty() && of.len() == rest.len() && of.iter().zip(rest).all(|(a, b)| same(a, b));
        if !implied {
            kept.push(*frame);
        }
        rest = of.split_first().map_or(&[], |(_, outer)| outer);
    }
    let id = names.stacks_mut().intern_code(pid, &kept, false);
    names.key(id)
}

/// Frames that share an address: one and what was inlined into it.
fn by_address(frames: &[StackFrame]) -> Vec<Vec<StackFrame>> {
    let mut all: Vec<Vec<StackFrame>> = Vec::new();
    let mut open = false;
    for frame in frames {
        match all.last_mut().filter(|_| open) {
            Some(last) => last.push(frame.clone()),
            None => all.push(vec![frame.clone()]),
        }
        // The one that the others were inlined into is the last.
        open = frame.inlined;
    }
    all
}

fn same(a: &StackFrame, b: &StackFrame) -> bool {
    (&a.function, &a.file, a.line) == (&b.function, &b.file, b.line)
}

fn proved(pid: u32, proof: &Proof, target: &GoTarget, names: &mut Names<'_>) -> GoProof {
    let mut groups: FxHashMap<(StackId, u64), (Vec<u64>, u64, &Group)> = FxHashMap::default();
    let alive = target.reader.goroutines();
    let mut goroutines = 0;
    for (_, goroutine) in alive.filter(|(_, goroutine)| proof.leaked.contains(&goroutine.goid)) {
        goroutines += 1;
        let Some(group) = group(target, goroutine) else {
            continue;
        };
        let stack = names.stacks_mut().intern_code(pid, &group.frames, group.cut);
        let row = groups
            .entry((stack, group.creator))
            .or_insert((Vec::new(), 0, group));
        row.1 += 1;
        if row.0.len() < MAX_EXAMPLES {
            row.0.push(goroutine.goid);
        }
    }
    let reasons = &target.reader.runtime().reasons;
    let mut places = Places::new(pid);
    let mut by_stack: Vec<GoProved> = groups
        .into_iter()
        .map(|((stack, creator), (examples, count, group))| {
            let reason = group
                .status
                .reason()
                .and_then(|reason| reasons.get(usize::from(reason)));
            let (created_by, created_at) = places.creator(creator, names);
            GoProved {
                stack: names.key(stack),
                created_by,
                created_at,
                wait_reason: reason.filter(|reason| !reason.is_empty()).cloned(),
                count,
                examples,
            }
        })
        .collect();
    by_stack.sort_by(|a, b| b.count.cmp(&a.count).then(a.stack.cmp(&b.stack)));
    by_stack.truncate(MAX_ROWS);
    GoProof {
        searches: proof.searches,
        blocked: proof.blocked,
        goroutines,
        by_stack,
    }
}

fn group<'a>(target: &'a GoTarget, goroutine: &Goroutine) -> Option<&'a Group> {
    target.reader.groups().get(goroutine.group as usize)
}
