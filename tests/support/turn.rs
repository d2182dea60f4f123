//! Who may run: one kernel test at a time on the whole machine, and only where it can run at all.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Held by the test whose turn it is; released on drop and, by the kernel, when the process dies.
pub(crate) struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits for the turn.
    fn take() -> Self {
        let path = env::temp_dir().join("ctrace-kernel-tests.lock");
        let lock = File::create(path).unwrap();
        lock.lock().unwrap();
        Self { _lock: lock }
    }
}

/// Whether `condition` holds; when it does not, says aloud that the test is skipped, or fails it where skipping
/// is forbidden.
pub(crate) fn require(condition: bool, reason: &str) -> bool {
    if !condition {
        assert!(
            env::var_os("CTRACE_TEST_NO_SKIP").is_none_or(|v| v != "1"),
            "may not be skipped: {reason}"
        );
        // Not println!, which the test harness keeps to itself when a test passes.
        let _ = writeln!(io::stderr(), "SKIP: {reason}");
    }
    condition
}

/// The turn to trace; `None` (said aloud) where tracing is impossible.
pub(crate) fn can_trace() -> Option<Turn> {
    let root = fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    let able = require(root, "tracing needs root: run as root or with sudo -E")
        && require(
            Path::new("/sys/kernel/btf/vmlinux").exists(),
            "this kernel has no BTF (/sys/kernel/btf/vmlinux): needs CONFIG_DEBUG_INFO_BTF",
        );
    able.then(Turn::take)
}
