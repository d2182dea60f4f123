//! What ran on the CPUs, and who else did.

use std::collections::HashMap;

use tracer_ebpf::wire::Neighbour;

use super::names::Names;
use crate::{
    aggregate::samples::{Samples, Ticks},
    report::model::{Cpu, CpuOther, CpuStack, StackFrame},
    stacks::StackId,
};

/// Stacks whose names are looked up, those with most ticks; the others are one row.
const NAMED_MAX: usize = 4096;
/// Rows in the report.
const ROWS_MAX: usize = 256;
/// Other processes in the report.
const OTHERS_MAX: usize = 16;
/// Functions that burn the CPU until somebody else has done something.
const SPINS: [&str; 4] = [
    "pthread_spin_lock",
    "__pthread_spin_lock",
    "runtime.procyield",
    "runtime.osyield",
];

/// The section: from samples, ticks a second, and the processes beside the targets.
pub fn cpu(samples: &Samples, (hz, neighbours): (u32, &[(u32, Neighbour)]), names: &mut Names<'_>) -> Cpu {
    let mut rows: Vec<(u32, StackId, Ticks)> = samples.rows().collect();
    rows.sort_unstable_by_key(|&(tgid, stack, ticks)| (std::cmp::Reverse(ticks.all), tgid, stack));
    let mut groups: HashMap<(u32, Vec<String>), (StackId, Ticks, u64)> = HashMap::new();
    for (at, &(tgid, stack, ticks)) in rows.iter().enumerate() {
        let frames = if at < NAMED_MAX { names.frames(stack) } else { &[] };
        let functions: Vec<String> = frames.iter().map(word).collect();
        let spins = functions.first().is_some_and(|leaf| SPINS.contains(&&**leaf));
        let shown = if functions.is_empty() {
            StackId::NONE
        } else {
            stack
        };
        let group = groups
            .entry((tgid, functions))
            .or_insert((shown, Ticks::default(), 0));
        group.1.add(ticks);
        group.2 += if spins { ticks.all } else { ticks.yielding };
    }
    let all: u64 = rows.iter().map(|(.., ticks)| ticks.all).sum();
    let mut grouped: Vec<_> = groups
        .into_iter()
        .map(|((tgid, _), (stack, ticks, spinning))| (tgid, stack, ticks, spinning))
        .collect();
    grouped.sort_unstable_by_key(|&(tgid, stack, ticks, _)| (std::cmp::Reverse(ticks.all), tgid, stack));
    let rest = grouped.split_off(grouped.len().min(ROWS_MAX));
    let mut by_stack: Vec<CpuStack> = grouped
        .into_iter()
        .map(|(pid, stack, ticks, spinning)| CpuStack {
            pid,
            stack: names.key(stack),
            samples: ticks.all,
            share: share(ticks.all, all),
            in_kernel: ticks.in_kernel,
            spinning,
        })
        .collect();
    if let Some(&(pid, ..)) = rest.first() {
        let sum = |of: fn(&(u32, StackId, Ticks, u64)) -> u64| rest.iter().map(of).sum();
        let samples = sum(|row| row.2.all);
        by_stack.push(CpuStack {
            pid,
            stack: None,
            samples,
            share: share(samples, all),
            in_kernel: sum(|row| row.2.in_kernel),
            spinning: sum(|row| row.3),
        });
    }
    Cpu {
        hz,
        samples: all,
        taken: samples.records(),
        by_stack,
        others: others(hz, neighbours),
    }
}

/// A frame's function, or where it is.
fn word(frame: &StackFrame) -> String {
    frame.function.clone().unwrap_or_else(|| {
        format!(
            "{} {}",
            frame.module.as_deref().unwrap_or_default(),
            frame.address
        )
    })
}

fn share(part: u64, all: u64) -> f64 {
    part as f64 / all.max(1) as f64
}

fn others(hz: u32, neighbours: &[(u32, Neighbour)]) -> Vec<CpuOther> {
    let tick_ns = 1_000_000_000 / u64::from(hz.max(1));
    let mut others: Vec<CpuOther> = neighbours
        .iter()
        .map(|(pid, neighbour)| {
            let len = neighbour.comm.iter().position(|&byte| byte == 0).unwrap_or(16);
            CpuOther {
                pid: *pid,
                comm: String::from_utf8_lossy(&neighbour.comm[..len]).into_owned(),
                cpu_ns: neighbour.ticks.saturating_mul(tick_ns),
            }
        })
        .collect();
    others.sort_unstable_by_key(|other| (std::cmp::Reverse(other.cpu_ns), other.pid));
    others.truncate(OTHERS_MAX);
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_processes_are_told_by_their_time() {
        let neighbour = |name: &[u8], ticks| {
            let mut comm = [0; 16];
            comm[..name.len()].copy_from_slice(name);
            Neighbour { comm, ticks }
        };
        let neighbours = [
            (9, neighbour(b"cc1plus", 50)),
            (4, neighbour(b"sixteen bytes ok", 100)),
        ];
        let found: Vec<_> = others(50, &neighbours)
            .into_iter()
            .map(|other| (other.pid, other.comm, other.cpu_ns))
            .collect();
        assert_eq!(
            found,
            [
                (4, "sixteen bytes ok".to_owned(), 2_000_000_000),
                (9, "cc1plus".to_owned(), 1_000_000_000)
            ]
        );
    }
}
