//! What ran on the CPUs, and who else did.

use std::{cmp::Reverse, collections::HashMap};

use rustc_hash::FxHashMap;
use tracer_ebpf::wire::Neighbour;

use super::names::Names;
use crate::{
    aggregate::samples::{Samples, Ticks},
    report::{
        frames::{app_function, path_of},
        model::{Cpu, CpuFunction, CpuOther, CpuStack, CpuThread},
    },
    stacks::StackId,
};

/// Samples below which no share tells anything.
pub(crate) const TELLING: u64 = 50;
/// Stacks whose names are looked up, those with most ticks; the others are one row.
const NAMED_MAX: usize = 4096;
/// Rows in the report.
const ROWS_MAX: usize = 256;
/// Functions in the report, threads, and functions of each thread.
const FUNCTIONS_MAX: usize = 32;
const THREADS_MAX: usize = 16;
const OF_THREAD_MAX: usize = 3;
/// Other processes in the report.
const OTHERS_MAX: usize = 16;
/// Functions that burn the CPU until somebody else has done something. Those of runtimes, which spin for microseconds before they sleep, are
/// not among them.
const SPINS: [&str; 4] = [
    "pthread_spin_lock",
    "__pthread_spin_lock",
    "sched_yield",
    "__sched_yield",
];

/// Who ran besides the targets.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// Ticks of all of them.
    pub ticks: u64,
    /// The processes that are known.
    pub known: Vec<(u32, Neighbour)>,
}

/// Ticks, of which some burnt the CPU to wait, and the stack that stands for them.
#[derive(Clone, Copy, Default)]
struct Sum {
    stack: StackId,
    most: u64,
    ticks: Ticks,
    spinning: u64,
}

impl Sum {
    fn add(&mut self, stack: StackId, ticks: Ticks, spinning: u64) {
        self.ticks.add(ticks);
        self.spinning += spinning;
        if ticks.all > self.most {
            (self.stack, self.most) = (stack, ticks.all);
        }
    }
}

/// What is known of a stack by its names.
struct Place {
    /// The application's innermost function.
    function: Option<String>,
    /// It waits without sleeping, whatever the kernel says.
    spins: bool,
    /// It is in Go's runtime, which has its own way of giving a CPU away.
    of_runtime: bool,
}

impl Place {
    /// Those of its ticks that burnt the CPU to wait.
    const fn spinning(&self, ticks: Ticks) -> u64 {
        match (self.spins, self.of_runtime) {
            (true, _) => ticks.all,
            (false, true) => 0,
            (false, false) => ticks.yielding,
        }
    }
}

/// What samples say of one function, by its name.
type Functions = HashMap<Option<String>, Sum>;

/// The section, from samples, of ticks so many a second.
pub fn cpu(samples: &Samples, others: &Others, hz: u32, names: &mut Names<'_>) -> Cpu {
    let mut by_stack: FxHashMap<(u32, StackId), Ticks> = FxHashMap::default();
    for ((tgid, _, stack), ticks) in samples.rows() {
        by_stack.entry((tgid, stack)).or_default().add(ticks);
    }
    let mut rows: Vec<((u32, StackId), Ticks)> = by_stack.into_iter().collect();
    rows.sort_unstable_by_key(|&(of, ticks)| (Reverse(ticks.all), of));
    let mut groups: HashMap<(u32, Vec<String>), Sum> = HashMap::new();
    let mut functions = Functions::new();
    let mut known: FxHashMap<StackId, Place> = FxHashMap::default();
    for (at, &((tgid, stack), ticks)) in rows.iter().enumerate() {
        let frames = if at < NAMED_MAX { names.frames(stack) } else { &[] };
        let path = path_of(frames);
        let place = Place {
            function: app_function(frames).and_then(|frame| frame.function.clone()),
            spins: path.first().is_some_and(|leaf| spins(leaf)),
            of_runtime: path.first().is_some_and(|leaf| leaf.starts_with("runtime.")),
        };
        let spinning = place.spinning(ticks);
        let shown = if path.is_empty() { StackId::NONE } else { stack };
        if shown != StackId::NONE {
            functions
                .entry(place.function.clone())
                .or_default()
                .add(stack, ticks, spinning);
            known.insert(stack, place);
        }
        groups
            .entry((tgid, path))
            .or_default()
            .add(shown, ticks, spinning);
    }
    let all: u64 = rows.iter().map(|(_, ticks)| ticks.all).sum();
    let threads = threads(samples, &known, names);
    Cpu {
        hz,
        samples: all,
        taken: samples.records(),
        by_stack: listed(groups, all, names),
        by_function: most(functions, FUNCTIONS_MAX, names),
        by_thread: threads,
        others_ns: others.ticks.saturating_mul(tick_ns(hz)),
        others: told(others, hz),
    }
}

/// Whether a function, as it is named in its library, waits without sleeping.
fn spins(function: &str) -> bool {
    let name = function.split('@').next().unwrap_or(function);
    SPINS.contains(&name)
}

fn threads(samples: &Samples, known: &FxHashMap<StackId, Place>, names: &mut Names<'_>) -> Vec<CpuThread> {
    let mut threads: FxHashMap<(u32, u32), (u64, Functions)> = FxHashMap::default();
    for ((tgid, tid, stack), ticks) in samples.rows().filter(|(of, _)| of.1 != 0) {
        let (all, functions) = threads.entry((tgid, tid)).or_default();
        *all += ticks.all;
        if let Some(place) = known.get(&stack) {
            functions
                .entry(place.function.clone())
                .or_default()
                .add(stack, ticks, place.spinning(ticks));
        }
    }
    let mut rows: Vec<_> = threads.into_iter().collect();
    rows.sort_unstable_by_key(|&(of, (all, _))| (Reverse(all), of));
    rows.truncate(THREADS_MAX);
    rows.into_iter()
        .map(|((pid, tid), (samples, functions))| CpuThread {
            pid,
            tid,
            samples,
            by_function: most(functions, OF_THREAD_MAX, names),
        })
        .collect()
}

/// The functions with most ticks.
fn most(functions: Functions, max: usize, names: &mut Names<'_>) -> Vec<CpuFunction> {
    let mut rows: Vec<(Option<String>, Sum)> = functions.into_iter().collect();
    rows.sort_unstable_by(|a, b| b.1.ticks.all.cmp(&a.1.ticks.all).then_with(|| a.0.cmp(&b.0)));
    rows.truncate(max);
    rows.into_iter()
        .map(|(function, sum)| CpuFunction {
            function,
            stack: names.key(sum.stack),
            samples: sum.ticks.all,
            spinning: sum.spinning,
        })
        .collect()
}

/// The stacks with most ticks, and one row for the others.
fn listed(groups: HashMap<(u32, Vec<String>), Sum>, all: u64, names: &mut Names<'_>) -> Vec<CpuStack> {
    let mut rows: Vec<(u32, Sum)> = groups.into_iter().map(|((tgid, _), sum)| (tgid, sum)).collect();
    rows.sort_unstable_by_key(|&(tgid, sum)| (Reverse(sum.ticks.all), tgid, sum.stack));
    let rest = rows.split_off(rows.len().min(ROWS_MAX));
    if let Some(&(tgid, _)) = rest.first() {
        let mut sum = Sum::default();
        for (_, other) in rest {
            sum.add(StackId::NONE, other.ticks, other.spinning);
        }
        sum.stack = StackId::NONE;
        rows.push((tgid, sum));
    }
    rows.into_iter()
        .map(|(pid, sum)| CpuStack {
            pid,
            stack: names.key(sum.stack),
            samples: sum.ticks.all,
            share: sum.ticks.all as f64 / all.max(1) as f64,
            in_kernel: sum.ticks.in_kernel,
            spinning: sum.spinning,
        })
        .collect()
}

fn tick_ns(hz: u32) -> u64 {
    1_000_000_000 / u64::from(hz.max(1))
}

fn told(others: &Others, hz: u32) -> Vec<CpuOther> {
    let mut told: Vec<CpuOther> = others
        .known
        .iter()
        .map(|(pid, neighbour)| {
            let len = neighbour.comm.iter().position(|&byte| byte == 0).unwrap_or(16);
            CpuOther {
                pid: *pid,
                comm: String::from_utf8_lossy(&neighbour.comm[..len]).into_owned(),
                cpu_ns: neighbour.ticks.saturating_mul(tick_ns(hz)),
            }
        })
        .collect();
    told.sort_unstable_by_key(|other| (Reverse(other.cpu_ns), other.pid));
    told.truncate(OTHERS_MAX);
    told
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
        let others = Others {
            ticks: 151,
            known: vec![
                (9, neighbour(b"cc1plus", 50)),
                (4, neighbour(b"sixteen bytes ok", 100)),
            ],
        };
        let found: Vec<_> = told(&others, 50)
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

    #[test]
    fn functions_that_spin_are_known_by_any_of_their_names() {
        assert!(spins("pthread_spin_lock") && spins("pthread_spin_lock@@GLIBC_2.34"));
        assert!(!spins("pthread_spin_lockdown") && !spins("runtime.procyield.abi0"));
    }
}
