//! The processor's clock, in which a Go runtime's profiles count, beside ours.
//!
//! Go's `cputicks` is `RDTSC`, and so is what is read here: on the same machine it is the same clock. Two readings of both clocks
//! give its pace; the longer the time between them, the better: a reading is sure to some tens of nanoseconds.

use std::time::Duration;

use crate::proc::host;

/// Readings of which the best is kept.
const TRIES: usize = 16;
/// Time between two readings at least: their errors are 1 part in 10,000 of it then.
const SHORTEST: Duration = Duration::from_millis(20);
/// Processors' clocks run at 100 MHz to 10 GHz.
const PACES: std::ops::Range<f64> = 0.1..10.0;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    ticks: u64,
    ns: u64,
}

impl Moment {
    /// This one. Between two looks at our clock, of several the pair that was closest.
    #[must_use]
    pub fn now() -> Self {
        let look = |()| {
            let before = host::monotonic_ns();
            // SAFETY: RDTSC has no preconditions where it is allowed, and it is: Go programs could not run otherwise.
            let ticks = unsafe { std::arch::x86_64::_rdtsc() };
            let after = host::monotonic_ns();
            let gap = after.saturating_sub(before);
            (
                gap,
                Self {
                    ticks,
                    ns: before + gap / 2,
                },
            )
        };
        let mut best = look(());
        for _ in 1..TRIES {
            let again = look(());
            if again.0 < best.0 {
                best = again;
            }
        }
        best.1
    }

    /// Ticks in a nanosecond since then; waits a little when that is too short a time. None when the clocks disagree.
    #[must_use]
    pub fn pace(&self) -> Option<f64> {
        let passed = Duration::from_nanos(host::monotonic_ns().saturating_sub(self.ns));
        std::thread::sleep(SHORTEST.saturating_sub(passed));
        let now = Self::now();
        let pace = now.ticks.checked_sub(self.ticks)? as f64 / now.ns.checked_sub(self.ns)?.max(1) as f64;
        PACES.contains(&pace).then_some(pace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_paces_agree() {
        let first = Moment::now();
        let pace = first.pace().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        let again = first.pace().unwrap();
        assert!((pace / again - 1.0).abs() < 0.01, "{pace} {again}");
    }
}
