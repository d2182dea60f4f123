//! What the scheduler itself has counted: per thread, per cgroup, per host.

use std::fs;

use rustc_hash::FxHashMap;

use super::{cgroup::cgroups, target::read};

/// Threads read at most.
const THREADS_MAX: usize = 65_536;

/// Fields of `/proc/PID/task/TID/schedstat` (`Documentation/scheduler/sched-stats.rst`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedStat {
    /// Time on a CPU.
    pub running_ns: u64,
    /// Time runnable without one.
    pub runnable_ns: u64,
}

/// Ids of a process's threads.
#[must_use]
pub fn tids(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    entries
        .take(THREADS_MAX)
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// The account of each thread of a process that lives now.
#[must_use]
pub fn schedstats(pid: u32) -> FxHashMap<u32, SchedStat> {
    tids(pid)
        .into_iter()
        .filter_map(|tid| {
            Some((
                tid,
                parse(&read(&format!("/proc/{pid}/task/{tid}/schedstat")).ok()?)?,
            ))
        })
        .collect()
}

fn parse(text: &str) -> Option<SchedStat> {
    let mut fields = text.split_ascii_whitespace().map(str::parse);
    Some(SchedStat {
        running_ns: fields.next()?.ok()?,
        runnable_ns: fields.next()?.ok()?,
    })
}

/// A cgroup's quota at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Time in which tasks were held.
    pub ns: u64,
    /// Periods in which they were.
    pub periods: u64,
    /// Periods in all.
    pub of: u64,
}

/// Of the process's own cpu cgroup, v1 or v2, where it is mounted at the usual place; `None` when it cannot be read.
#[must_use]
pub fn throttling(pid: u32) -> Option<Throttling> {
    cgroups(pid, "cpu")
        .iter()
        .find_map(|cgroup| parse_cpu_stat(&cgroup.read("cpu.stat")?))
}

fn parse_cpu_stat(text: &str) -> Option<Throttling> {
    let value = |name: &str| -> Option<u64> {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    };
    let ns = value("throttled_time").or_else(|| value("throttled_usec")?.checked_mul(1000))?;
    Some(Throttling {
        ns,
        periods: value("nr_throttled")?,
        of: value("nr_periods")?,
    })
}

/// Time that the hypervisor took from all CPUs since boot (`steal` of `/proc/stat`).
#[must_use]
pub fn steal_ns() -> Option<u64> {
    let stat = read("/proc/stat").ok()?;
    let ticks: u64 = stat
        .lines()
        .next()?
        .split_ascii_whitespace()
        .nth(8)?
        .parse()
        .ok()?;
    // SAFETY: sysconf(3) reads a constant.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) })
        .ok()
        .filter(|&hz| hz > 0)?;
    ticks.checked_mul(1_000_000_000 / per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cpu_stat_are_read() {
        let v1 = "nr_periods 10\nnr_throttled 4\nthrottled_time 5000000\n";
        let v2 = "usage_usec 1\nnr_periods 10\nnr_throttled 4\nthrottled_usec 5000\n";
        let expected = Some(Throttling {
            ns: 5_000_000,
            periods: 4,
            of: 10,
        });
        assert_eq!(parse_cpu_stat(v1), expected);
        assert_eq!(parse_cpu_stat(v2), expected);
        assert_eq!(parse_cpu_stat("usage_usec 1\n"), None, "no quota, no figure");
    }

    #[test]
    fn our_own_threads_have_accounts() {
        assert!(
            schedstats(std::process::id())
                .values()
                .any(|stat| stat.running_ns > 0)
        );
        assert_eq!(parse("12 x 3"), None);
    }
}
