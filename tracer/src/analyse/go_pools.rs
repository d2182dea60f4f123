//! Pools of `database/sql` that goroutines wait for, and what holds their connections.

use super::{
    go::{Places, Seen},
    go_shapes::{self, Shape},
    names::Names,
};
use crate::{
    aggregate::go_pools::PoolAccount,
    report::model::{GoPool, GoPoolStack, GoPoolUse, StackFrame},
};

/// Pools shown.
const MAX_POOLS: usize = 20;
/// Stacks shown, of one pool.
const MAX_STACKS: usize = 10;

/// The pools of a program that somebody waited for, longest exhausted first.
pub(super) fn pools(target: &Seen<'_>, places: &mut Places, names: &mut Names<'_>) -> Vec<GoPool> {
    let mut accounts: Vec<&PoolAccount> = target.pools.iter().collect();
    if accounts.is_empty() {
        return Vec::new();
    }
    // A call of the database does not tell whose connection it uses.
    let in_use = (accounts.len() == 1).then(|| in_use(target, places, names));
    accounts.sort_by_key(|account| std::cmp::Reverse((account.exhausted_ns, account.last.address)));
    let window_ns = target.pools.window_ns().max(1) as f64;
    let shown = accounts.into_iter().take(MAX_POOLS);
    shown
        .map(|account| {
            let waiters = account.by_group.iter().filter_map(|(&group, &waited_ns)| {
                let group = target.reader.groups().get(group as usize)?;
                let stack = places.stack_id(group, names);
                Some(GoPoolStack {
                    stack: names.key(stack),
                    does: GoPoolUse::Waits,
                    created_by: places.creator(group.creator, names).0,
                    mean: waited_ns as f64 / window_ns,
                })
            });
            GoPool {
                address: format!("{:#x}", account.last.address),
                max_open: account.last.max_open,
                open: account.last.open,
                idle: account.last.idle,
                waiting: account.last.waiters.len() as u64,
                waits: account.waits(),
                wait_total_ns: account.waited_ns(),
                exhausted_samples: account.exhausted,
                exhausted_share: account.exhausted_ns as f64 / window_ns,
                mean_waiting: account.waiting_ns as f64 / window_ns,
                waiters: most(waiters.collect()),
                in_use: in_use.clone(),
            }
        })
        .collect()
}

/// What goroutines that have a connection were doing.
fn in_use(target: &Seen<'_>, places: &mut Places, names: &mut Names<'_>) -> Vec<GoPoolStack> {
    let window_ns = target.account.window_ns().max(1) as f64;
    let mut rows = Vec::new();
    for (group, sampled) in target.account.sampled() {
        let Some(group) = target.reader.groups().get(group as usize) else {
            continue;
        };
        let stack = places.stack_id(group, names);
        let Some(does) = of(names.frames(stack)) else {
            continue;
        };
        rows.push(GoPoolStack {
            stack: names.key(stack),
            does,
            created_by: places.creator(group.creator, names).0,
            mean: sampled.total_ns as f64 / window_ns,
        });
    }
    most(rows)
}

/// How a stack uses a connection.
fn of(frames: &[StackFrame]) -> Option<GoPoolUse> {
    match go_shapes::of(frames, None, false) {
        Some(Shape::OpenRows) => return Some(GoPoolUse::Rows),
        Some(Shape::OpenTransaction) => return Some(GoPoolUse::Transaction),
        Some(Shape::PoolWait | Shape::OpenDatabase) => return None,
        _ => {}
    }
    let calls = |frame: &StackFrame| {
        let function = frame.function.as_deref();
        function.is_some_and(|name| name.starts_with("database/sql."))
    };
    frames.iter().any(calls).then_some(GoPoolUse::Query)
}

fn most(mut rows: Vec<GoPoolStack>) -> Vec<GoPoolStack> {
    rows.sort_by(|a, b| b.mean.total_cmp(&a.mean).then_with(|| a.stack.cmp(&b.stack)));
    rows.truncate(MAX_STACKS);
    rows
}
