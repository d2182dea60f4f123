//! `--go-write`: what may be written into a Go program's memory.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoWrite {
    /// Switch on the runtime's own profiler of blocking.
    pub profile: bool,
    /// Have the collector look for leaked goroutines.
    pub leaks: bool,
    /// One event for so much time blocked is recorded; 1 ns: all are.
    pub block_rate: Duration,
    /// Also where that stops the program for long.
    pub force: bool,
}

impl GoWrite {
    /// Of `profile,leaks`.
    pub fn parse(list: &str, block_rate: Duration, force: bool) -> Result<Self> {
        let mut chosen = Self {
            profile: false,
            leaks: false,
            block_rate,
            force,
        };
        for name in list.split(',').map(str::trim) {
            match name {
                "profile" => chosen.profile = true,
                "leaks" => chosen.leaks = true,
                _ => bail!(
                    "--go-write wants any of profile, leaks, not `{}`",
                    name.escape_debug()
                ),
            }
        }
        ensure!(
            !block_rate.is_zero() && block_rate <= Duration::from_secs(1),
            "--go-write-rate wants 1ns to 1s, such as 10us: the time blocked for which one event is recorded"
        );
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_written_is_a_list() {
        let rate = Duration::from_micros(10);
        let both = GoWrite::parse("profile, leaks", rate, false).unwrap();
        assert!(both.profile && both.leaks && !both.force);
        assert!(!GoWrite::parse("leaks", rate, true).unwrap().profile);
        for wrong in ["", "all", "profile,"] {
            assert!(GoWrite::parse(wrong, rate, false).is_err(), "{wrong}");
        }
        assert!(GoWrite::parse("leaks", Duration::ZERO, false).is_err());
        assert!(GoWrite::parse("leaks", Duration::from_secs(2), false).is_err());
    }
}
