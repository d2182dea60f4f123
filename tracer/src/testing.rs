//! For tests alone.

#[path = "../../tests/support/go.rs"]
pub(crate) mod toolchains;

use std::{fmt::Display, fs::File, io::Write as _};

/// Says aloud that a test cannot run here, past the harness's capture; where `CTRACE_TEST_NO_SKIP` is set (CI), it fails.
pub(crate) fn skip(reason: &dyn Display) {
    assert!(
        std::env::var_os("CTRACE_TEST_NO_SKIP").is_none(),
        "cannot run here: {reason}"
    );
    if let Ok(mut stderr) = File::options().append(true).open("/proc/self/fd/2") {
        let _ = writeln!(stderr, "SKIP: {reason}");
    }
}
