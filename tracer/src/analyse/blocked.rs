//! Sleeps that are no futex waits, by reason and stack.

use super::names::Names;
use crate::{
    aggregate::waits::{Key, Row, Waits},
    report::{
        hist::hist,
        model::{Blocked, Reason},
    },
};

/// Rows listed; the smallest are left out first.
const ROWS_MAX: usize = 256;

/// All sleeps, longest total first. Futex waits are here only in uninterruptible state: as locks they are in `locks[]`.
/// `kernel_stack` gives the addresses of a kernel stack.
pub fn blocked(
    waits: &Waits,
    names: &mut Names<'_>,
    kernel_stack: impl Fn(u32) -> Vec<u64>,
    window_ns: u64,
) -> (Vec<Blocked>, u64) {
    let mut rows: Vec<(&Key, &Row)> = waits
        .rows()
        .filter(|(key, _)| key.reason != Reason::Futex)
        .collect();
    rows.sort_by_key(|(key, row)| (std::cmp::Reverse(row.wait.total()), **key));
    let left_out = rows.len().saturating_sub(ROWS_MAX) as u64;
    let listed = rows
        .into_iter()
        .take(ROWS_MAX)
        .map(|(key, row)| Blocked {
            reason: key.reason,
            pid: key.tgid,
            stack: names.key(key.stack),
            count: row.wait.count(),
            total_ns: row.wait.total(),
            max_ns: row.wait.max(),
            wait: hist(&row.wait),
            peer: None,
            kernel_stack: u32::try_from(key.kstack)
                .ok()
                .map(|id| names.kernel(&kernel_stack(id)))
                .filter(|stack| !stack.is_empty()),
            slices: row.slices.report(window_ns),
        })
        .collect();
    (listed, left_out)
}
