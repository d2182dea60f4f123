//! What ran at the ticks of the CPUs' clocks.

use rustc_hash::FxHashMap;
use tracer_ebpf::{nr, wire::Sample};

use crate::stacks::StackId;

/// Stacks that are told apart; code may stand at any instruction, so a long trace sees many.
const ROWS_MAX: usize = 16_384;

/// Ticks of one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// All of them.
    pub all: u64,
    /// Those in the kernel.
    pub in_kernel: u64,
    /// Those in `sched_yield`.
    pub yielding: u64,
}

impl Ticks {
    /// Adds others.
    pub const fn add(&mut self, other: Self) {
        self.all += other.all;
        self.in_kernel += other.in_kernel;
        self.yielding += other.yielding;
    }
}

/// All samples of a window.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    rows: FxHashMap<(u32, u32, StackId), Ticks>,
    /// Records of this window, of which each may stand for several ticks.
    records: u64,
}

impl Samples {
    /// A target's thread ran.
    pub fn on_sample(&mut self, record: &Sample, stack: StackId) {
        self.records += 1;
        let weight = u64::from(record.weight);
        let when = |condition: bool| if condition { weight } else { 0 };
        let ticks = Ticks {
            all: weight,
            in_kernel: when(record.in_kernel != 0),
            yielding: when(record.nr == nr::SCHED_YIELD),
        };
        let mut key = (record.header.tgid, record.header.tid, stack);
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key) {
            (key.1, key.2) = (0, StackId::NONE);
        }
        self.rows.entry(key).or_default().add(ticks);
    }

    /// Ticks by process, thread and stack; without thread and stack what found no row.
    pub fn rows(&self) -> impl Iterator<Item = ((u32, u32, StackId), Ticks)> {
        self.rows.iter().map(|(&of, &ticks)| (of, ticks))
    }

    /// Records of this window.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// Begins a new window.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::wire::{Header, Regs};

    use super::*;

    fn sample(tgid: u32, nr: i64, weight: u32) -> Sample {
        Sample {
            header: Header {
                kind: 0,
                class: 0,
                tgid,
                tid: tgid,
                cpu: 0,
                ts_ns: 1,
            },
            regs: Regs::read(&[0; Regs::SIZE]).unwrap(),
            nr,
            weight,
            in_kernel: u32::from(nr >= 0),
        }
    }

    #[test]
    fn a_sample_counts_for_all_the_ticks_that_it_stands_for() {
        let mut samples = Samples::default();
        samples.on_sample(&sample(7, -1, 4), StackId(1));
        samples.on_sample(&sample(7, nr::SCHED_YIELD, 2), StackId(1));
        samples.on_sample(&sample(8, 0, 1), StackId(1));
        let mut rows: Vec<_> = samples.rows().collect();
        rows.sort_by_key(|row| row.0);
        let ticks = |all, in_kernel, yielding| Ticks {
            all,
            in_kernel,
            yielding,
        };
        assert_eq!(
            rows,
            [
                ((7, 7, StackId(1)), ticks(6, 2, 2)),
                ((8, 8, StackId(1)), ticks(1, 1, 0))
            ]
        );
        assert_eq!(samples.records(), 3);
    }

    #[test]
    fn stacks_beyond_the_bound_are_counted_together() {
        let mut samples = Samples::default();
        for stack in 1..=ROWS_MAX as u32 + 10 {
            samples.on_sample(&sample(7, -1, 1), StackId(stack));
        }
        samples.on_sample(&sample(7, -1, 1), StackId(1));
        let of = |stack| samples.rows().find(|row| row.0.2 == stack).unwrap().1.all;
        assert_eq!((of(StackId::NONE), of(StackId(1))), (10, 2));
    }
}
