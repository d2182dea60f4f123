//! A cgroup with a CPU quota.

use std::fs;
use std::path::{Path, PathBuf};

use super::turn::require;
use super::until;

/// A cgroup of the v1 cpu controller with so many microseconds of CPU time in each 100 ms; removed on drop, after its processes ended.
pub(crate) struct Quota(PathBuf);

impl Quota {
    pub(crate) fn new(us: u32) -> Option<Self> {
        let controller = Path::new("/sys/fs/cgroup/cpu");
        let there = controller.join("cpu.cfs_quota_us").exists();
        if !require(
            there,
            "no cgroup v1 cpu controller at /sys/fs/cgroup/cpu: mount -t cgroup -o cpu …",
        ) {
            return None;
        }
        let folder = controller.join(format!("ctrace-test-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let quota = Self(folder);
        fs::write(quota.0.join("cpu.cfs_period_us"), "100000").unwrap();
        fs::write(quota.0.join("cpu.cfs_quota_us"), us.to_string()).unwrap();
        Some(quota)
    }

    pub(crate) fn put(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// A number of its `cpu.stat`.
    pub(crate) fn stat(&self, key: &str) -> u64 {
        let text = fs::read_to_string(self.0.join("cpu.stat")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // Busy for a moment after its last process; what stays behind is an empty folder.
        until("cgroup is removed", || fs::remove_dir(&self.0).is_ok());
    }
}
