//! Everything that goroutines parked for, as rows of the report: channels and selects among the locks, all of it by stack in `go.waits`.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use tracer_ebpf::wire::go_site;

use super::{
    go::is_own,
    go_shapes::{self, Shape},
    names::Names,
    rules::{Class, Identity},
};
use crate::{
    aggregate::{
        go_locks::{GoLocks, Key},
        waits::Row,
    },
    go::park_sites::{is_channel, is_select},
    report::{
        hist::hist,
        model::{Go, GoWait, LockKind, StackFrame},
    },
    stacks::StackId,
};

/// What a wait for channels is; `None`: it is for something else.
pub(super) fn classify(key: &Key, row: &Row, reasons: &[String], names: &mut Names<'_>) -> Option<Class> {
    let reason = reasons.get(key.reason as usize)?.as_str();
    let kind = if is_channel(reason) {
        LockKind::GoChan
    } else if is_select(reason) {
        LockKind::GoSelect
    } else {
        return None;
    };
    let frames = names.frames(key.stack);
    let frame = own_frames(frames).checked_sub(1);
    let idle = go_shapes::of(frames, Some(reason), false).is_some_and(is_idle);
    Some(Class {
        kind,
        idle: idle || ticks(row, names),
        identity: if key.address == 0 {
            Identity::Code
        } else {
            Identity::Word(0)
        },
        frame,
    })
}

/// Frames of the runtime at the leaf.
fn own_frames(frames: &[StackFrame]) -> usize {
    let of_runtime = |frame: &&StackFrame| {
        frame
            .function
            .as_deref()
            .is_some_and(|name| name.starts_with("runtime."))
    };
    frames.iter().take_while(of_runtime).count()
}

/// Goroutines that wait so have nothing to do; nobody is in their way.
const fn is_idle(shape: Shape) -> bool {
    matches!(
        shape,
        Shape::Runtime
            | Shape::Finalizers
            | Shape::Signals
            | Shape::Profiler
            | Shape::Accepts
            | Shape::OpenRows
            | Shape::OpenTransaction
            | Shape::OpenDatabase
            | Shape::IdleClient
            | Shape::HttpPair
            | Shape::IdleServer
            | Shape::Grpc
            | Shape::Context
            | Shape::ErrGroup
            | Shape::WaitGroup
            | Shape::Ticker
            | Shape::Sleep
            | Shape::Forever
    )
}

/// Only timers ended these waits: the channel is that of a ticker.
fn ticks(row: &Row, names: &mut Names<'_>) -> bool {
    const TIMER: &str = "time.sendTime";
    !row.wakers.is_empty()
        && row.wakers.keys().all(|&(stack, _)| {
            let frames = names.frames(stack);
            frames
                .iter()
                .any(|frame| frame.function.as_deref() == Some(TIMER))
        })
}

/// Functions and lines of a stack, without where the runtime parks, and why it waits.
type Place = (Option<String>, Vec<(Option<String>, Option<u32>)>);

fn place(reason: Option<&str>, frames: &[StackFrame]) -> Place {
    let parks = |frame: &&StackFrame| {
        frame
            .function
            .as_deref()
            .is_some_and(|name| name.starts_with("runtime.gopark"))
    };
    let rest = frames.iter().skip_while(parks);
    (
        reason.map(str::to_owned),
        rest.map(|frame| (frame.function.clone(), frame.line)).collect(),
    )
}

/// Puts the exact waits of a process beside those that snapshots have seen; `whole_ns` is the window's length if the probes were there
/// all the time. Returns how many rows were left out.
pub fn exact(
    go: &mut Go,
    waits: &GoLocks,
    reasons: &[String],
    whole_ns: Option<u64>,
    names: &mut Names<'_>,
) -> u64 {
    let mut known: FxHashMap<Place, usize> = FxHashMap::default();
    for (at, row) in go.waits.iter().enumerate() {
        let id = row.stack.as_deref().and_then(|key| names.id(key));
        let frames = names.frames(id.unwrap_or(StackId::NONE));
        known
            .entry(place(row.wait_reason.as_deref(), frames))
            .or_insert(at);
    }
    // A place is one row whatever the channel.
    let mut rows: BTreeMap<(u32, StackId), Row> = BTreeMap::new();
    let own = waits
        .rows()
        .filter(|(key, _)| key.site == go_site::PARK && key.tgid == go.pid);
    for (key, row) in own {
        rows.entry((key.reason, key.stack)).or_default().merge(row);
    }
    let mut rows: Vec<((u32, StackId), Row)> = rows.into_iter().collect();
    rows.sort_by_key(|(key, row)| (std::cmp::Reverse(row.wait.total()), *key));
    for ((reason, stack), row) in rows {
        let reason = reasons.get(reason as usize).map(String::as_str);
        let frames = names.frames(stack);
        if stack != StackId::NONE && is_own(None, frames) {
            continue;
        }
        let place = place(reason, frames);
        if let Some(wait) = known.get(&place).and_then(|&at| go.waits.get_mut(at)) {
            // Two stacks may differ in what is not told of them: the longer one is first.
            if wait.wait.is_none() {
                wait.count = Some(row.wait.count());
                wait.wait = Some(hist(&row.wait));
                continue;
            }
        }
        go.waits.push(GoWait {
            stack: names.key(stack),
            created_by: None,
            status: "waiting".to_owned(),
            wait_reason: reason.map(str::to_owned),
            samples: 0,
            total_ns: row.inside_ns,
            total_ci_ns: None,
            mean: whole_ns.map(|ns| row.inside_ns as f64 / ns.max(1) as f64),
            count: Some(row.wait.count()),
            wait: Some(hist(&row.wait)),
        });
    }
    let left_out = go.waits.len().saturating_sub(WAITS_MAX);
    go.waits.truncate(WAITS_MAX);
    left_out as u64
}

/// Rows told.
const WAITS_MAX: usize = 4000;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, line: u32) -> StackFrame {
        StackFrame {
            function: Some(function.to_owned()),
            module: None,
            file: None,
            line: Some(line),
            inlined: false,
            address: "0x1".into(),
            offset: None,
        }
    }

    #[test]
    fn a_place_is_the_same_wherever_in_gopark_it_was_seen() {
        let seen = [
            frame("runtime.gopark", 400),
            frame("runtime.chanrecv", 7),
            frame("main.f", 9),
        ];
        let probed = [
            frame("runtime.gopark", 390),
            frame("runtime.chanrecv", 7),
            frame("main.f", 9),
        ];
        let other = [
            frame("runtime.gopark", 390),
            frame("runtime.chanrecv", 7),
            frame("main.f", 10),
        ];
        let of = |frames: &[StackFrame]| place(Some("chan receive"), frames);
        assert_eq!(of(&seen), of(&probed));
        assert_ne!(of(&probed), of(&other));
        assert_ne!(of(&probed), place(Some("select"), &probed));
    }

    #[test]
    fn only_the_runtimes_frames_at_the_leaf_are_its_own() {
        let frames = [
            frame("runtime.gopark", 1),
            frame("runtime.selectgo", 2),
            frame("main.f", 3),
            frame("runtime.main", 4),
        ];
        assert_eq!(own_frames(&frames), 2);
        assert_eq!(own_frames(&[]), 0);
    }
}
