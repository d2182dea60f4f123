//! Pools of `database/sql` that goroutines wait for, and what holds their connections.

use rustc_hash::FxHashMap;

use super::{
    go::{Places, Seen},
    go_shapes::{self, Shape},
    names::Names,
};
use crate::{
    aggregate::go_pools::PoolAccount,
    report::model::{GoPool, GoPoolStack, GoPoolUse, GoPoolUses, StackFrame, StackKey},
};

/// Pools shown.
const MAX_POOLS: usize = 20;
/// Stacks shown, of one pool.
const MAX_STACKS: usize = 10;

/// The pools of a program that somebody waited for, longest exhausted first.
pub(super) fn pools(target: &Seen<'_>, places: &mut Places, names: &mut Names<'_>) -> Vec<GoPool> {
    let waited_for = |account: &&PoolAccount| account.waits() > 0 || account.exhausted > 0;
    let mut accounts: Vec<&PoolAccount> = target.pools.iter().filter(waited_for).collect();
    // A call of the database does not tell whose connection it uses.
    let only = accounts.len() == 1;
    accounts.sort_by_key(|account| std::cmp::Reverse((account.exhausted_ns, account.last.address)));
    let window_ns = target.pools.window_ns().max(1) as f64;
    let shown = accounts.into_iter().take(MAX_POOLS);
    shown
        .map(|account| {
            let exhausted_ns = account.exhausted_ns.max(1) as f64;
            let waiters = by_stack(target, &account.waiting, places, names, |_| GoPoolUse::Waits);
            let mean_waiting = waiters.iter().map(|row| row.mean).sum();
            GoPool {
                address: format!("{:#x}", account.last.address),
                max_open: account.last.max_open,
                open: account.last.open,
                idle: account.last.idle,
                waiting: account.last.waiting(),
                waits: account.waits(),
                wait_total_ns: account.waited_ns(),
                exhausted_samples: account.exhausted,
                exhausted_share: account.exhausted_ns as f64 / window_ns,
                mean_waiting: part(mean_waiting, exhausted_ns),
                waiters: most(waiters, exhausted_ns),
                in_use: (only && !account.others).then(|| in_use(target, account, places, names)),
                requests: None,
                requests_waited: None,
                wait: None,
                gave_up: None,
                wait_by_stack: Vec::new(),
                lock: None,
            }
        })
        .collect()
}

/// What goroutines that have a connection were doing.
fn in_use(
    target: &Seen<'_>,
    account: &PoolAccount,
    places: &mut Places,
    names: &mut Names<'_>,
) -> GoPoolUses {
    let exhausted_ns = account.exhausted_ns.max(1) as f64;
    let rows = by_stack(target, &account.using, places, names, does);
    let mean = |does: GoPoolUse| {
        let of_kind = rows.iter().filter(|row| row.does == does);
        part(of_kind.map(|row| row.mean).sum(), exhausted_ns)
    };
    GoPoolUses {
        query: mean(GoPoolUse::Query),
        connect: mean(GoPoolUse::Connect),
        opener: mean(GoPoolUse::Open),
        rows: mean(GoPoolUse::Rows),
        transaction: mean(GoPoolUse::Transaction),
        unseen: part(account.unseen_ns as f64, exhausted_ns),
        by_stack: most(
            rows.into_iter()
                .filter(|row| row.does != GoPoolUse::Waits)
                .collect(),
            exhausted_ns,
        ),
    }
}

/// Sums up the time of groups that have the same stack and creator: `mean` is still time.
fn by_stack(
    target: &Seen<'_>,
    groups: &FxHashMap<u32, u64>,
    places: &mut Places,
    names: &mut Names<'_>,
    does: impl Fn(&[StackFrame]) -> GoPoolUse,
) -> Vec<GoPoolStack> {
    let mut rows: Vec<GoPoolStack> = Vec::new();
    let mut known: FxHashMap<(Option<StackKey>, u64), usize> = FxHashMap::default();
    for (&group, &ns) in groups {
        let Some(group) = target.reader.groups().get(group as usize) else {
            continue;
        };
        let stack = places.stack_id(group, names);
        let key = names.key(stack);
        let at = *known.entry((key.clone(), group.creator)).or_insert(rows.len());
        match rows.get_mut(at) {
            Some(row) => row.mean += ns as f64,
            None => rows.push(GoPoolStack {
                stack: key,
                does: does(names.frames(stack)),
                created_by: places.creator(group.creator, names).0,
                mean: ns as f64,
            }),
        }
    }
    rows
}

/// How a stack uses a connection; `Waits` is not at all.
fn does(frames: &[StackFrame]) -> GoPoolUse {
    let calls = |wanted: &str| {
        let mut functions = frames.iter().filter_map(|frame| frame.function.as_deref());
        functions.any(|name| name == wanted)
    };
    if calls("database/sql.(*DB).openNewConnection") {
        return GoPoolUse::Open;
    }
    // Who waits for one is not among these.
    if calls("database/sql.(*DB).conn") {
        return GoPoolUse::Connect;
    }
    match go_shapes::of(frames, None, false) {
        Some(Shape::OpenRows) => GoPoolUse::Rows,
        Some(Shape::OpenTransaction) => GoPoolUse::Transaction,
        Some(Shape::PoolWait | Shape::OpenDatabase) => GoPoolUse::Waits,
        _ => GoPoolUse::Query,
    }
}

fn part(ns: f64, of_ns: f64) -> f64 {
    // A sum of nothing may be minus zero.
    (ns / of_ns).max(0.0)
}

/// The rows with most time, as means.
fn most(mut rows: Vec<GoPoolStack>, of_ns: f64) -> Vec<GoPoolStack> {
    rows.sort_by(|a, b| b.mean.total_cmp(&a.mean).then_with(|| a.stack.cmp(&b.stack)));
    rows.truncate(MAX_STACKS);
    for row in &mut rows {
        row.mean = part(row.mean, of_ns);
    }
    rows
}
