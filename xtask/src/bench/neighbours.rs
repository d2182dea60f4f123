//! Who else is at work on this machine: a window beside a compiler says nothing.
//!
//! `/proc/stat` counts by ticks and misses what runs between them, so the CPU time of all processes is added up instead. A
//! process that ends leaves its time to the one that waits for it (`cutime`), so that the sum loses nothing.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// `USER_HZ`, which is 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// The parent of all kernel threads. What they do is done for somebody, a tracer's file for one.
const KTHREADD: u32 = 2;

/// How it was at one moment.
pub(super) struct Moment {
    at: Instant,
    ticks: u64,
    stolen: u64,
    tracers: Vec<String>,
}

/// How it was between two.
pub(super) struct Between {
    /// CPUs that other programs took.
    pub(super) cpus: f64,
    /// CPUs that the hypervisor did not give.
    pub(super) stolen: f64,
    /// Other programs that had probes attached at either end.
    pub(super) tracers: Vec<String>,
}

impl Moment {
    pub(super) fn now() -> Result<Self> {
        let mut stats = HashMap::new();
        let mut tracers = Vec::new();
        for entry in fs::read_dir("/proc").context("/proc")? {
            let path = entry?.path();
            // A process that is gone by now, or no process.
            let stat = fs::read_to_string(path.join("stat"));
            if let Some(stat) = stat.ok().as_deref().and_then(Stat::parse) {
                stats.insert(stat.pid, stat);
            }
        }
        for stat in others(&stats, process::id()) {
            if holds_probes(Path::new(&format!("/proc/{}", stat.pid))) {
                tracers.push(stat.comm.clone());
            }
        }
        let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        Ok(Self {
            at: Instant::now(),
            ticks: others(&stats, process::id()).map(|stat| stat.ticks).sum(),
            stolen: stolen(&text).context("/proc/stat")?,
            tracers,
        })
    }

    pub(super) fn until(&self, later: &Self) -> Between {
        let took = (later.at - self.at).max(Duration::from_millis(1)).as_secs_f64();
        let cpus = |from: u64, to: u64| to.saturating_sub(from) as f64 / TICKS_PER_SECOND / took;
        let mut tracers = [self.tracers.as_slice(), &later.tracers].concat();
        tracers.sort();
        tracers.dedup();
        Between {
            cpus: cpus(self.ticks, later.ticks),
            stolen: cpus(self.stolen, later.stolen),
            tracers,
        }
    }
}

/// Of `/proc/PID/stat`.
struct Stat {
    pid: u32,
    comm: String,
    parent: u32,
    /// CPU time, that of children waited for included.
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name may hold anything, parentheses too.
        let (pid, rest) = text.split_once(" (")?;
        let (comm, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // proc(5) counts from 1 and the state is field 3: ppid 4, utime to cstime 14 to 17.
        let times = fields.get(11..15)?.iter().map(|field| field.parse::<u64>());
        Some(Self {
            pid: pid.parse().ok()?,
            comm: comm.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            ticks: times.sum::<Result<u64, _>>().ok()?,
        })
    }
}

/// Processes that are neither `own`, nor below it, nor the kernel's.
fn others(stats: &HashMap<u32, Stat>, own: u32) -> impl Iterator<Item = &Stat> {
    stats.values().filter(move |stat| {
        let mut at = stat.pid;
        loop {
            if at == own || at == KTHREADD {
                return false;
            }
            match stats.get(&at) {
                // A process cannot be its own parent, but what is read is not one moment.
                Some(stat) if stat.parent != at => at = stat.parent,
                _ => return true,
            }
        }
    })
}

/// Steal time, the eighth of the first line.
fn stolen(stat: &str) -> Option<u64> {
    stat.lines().next()?.split_whitespace().nth(8)?.parse().ok()
}

/// Whether the process has perf events, or links of probes.
fn holds_probes(process: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    descriptors.flatten().any(|descriptor| {
        let link = fs::read_link(descriptor.path()).unwrap_or_default();
        match link.to_string_lossy().as_ref() {
            "anon_inode:[perf_event]" => true,
            "anon_inode:bpf_link" => {
                let info = process.join("fdinfo").join(descriptor.file_name());
                fs::read_to_string(info).is_ok_and(|info| is_probe(&info))
            }
            _ => false,
        }
    })
}

/// Whether a link's `fdinfo` is of one that runs on events of the kernel; those of cgroups and networks are not.
fn is_probe(fdinfo: &str) -> bool {
    let kind = fdinfo.lines().find_map(|line| line.strip_prefix("link_type:"));
    kind.is_some_and(|kind| {
        ["tracing", "raw_tracepoint", "perf", "kprobe"]
            .iter()
            .any(|own| kind.contains(own))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: u32, parent: u32, ticks: u64) -> (u32, Stat) {
        let text = format!("{pid} (a) b) S {parent} 1 1 0 -1 0 0 0 0 0 {ticks} 1 2 3 20 0 1 0 5");
        (pid, Stat::parse(&text).unwrap())
    }

    #[test]
    fn times_of_children_count_and_names_may_hold_anything() {
        let (_, stat) = stat(7, 3, 10);
        assert_eq!(
            (stat.pid, stat.comm.as_str(), stat.parent, stat.ticks),
            (7, "a) b", 3, 16)
        );
        assert!(Stat::parse("7 (a) S 3").is_none());
    }

    #[test]
    fn own_children_and_the_kernel_are_not_others() {
        let all = HashMap::from([
            stat(1, 0, 1),
            stat(2, 0, 2),
            stat(5, 2, 4),
            stat(10, 1, 8),
            stat(11, 10, 16),
            stat(12, 11, 32),
            stat(20, 1, 64),
            // Its parent ended between two reads.
            stat(31, 30, 128),
        ]);
        let mut pids: Vec<u32> = others(&all, 10).map(|stat| stat.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [1, 20, 31]);
    }

    #[test]
    fn steal_is_the_eighth() {
        assert_eq!(stolen("cpu  1 2 3 4 5 6 7 88 9 10\ncpu0 1"), Some(88));
        assert_eq!(stolen("cpu 1 2"), None);
    }

    #[test]
    fn links_of_probes() {
        assert!(is_probe("pos:\t0\nlink_type:\ttracing\nlink_id:\t3\n"));
        assert!(is_probe("link_type:\tperf\n"));
        assert!(!is_probe("link_type:\tcgroup\n"));
        assert!(!is_probe("pos:\t0\n"));
    }
}
