//! `ctrace`: why a process is slow at the tail, and what it leaks.

use std::process::ExitCode;

/// Blocks of at least this much go back to the system when they are freed.
const LARGE: libc::c_int = 128 << 10;

fn main() -> ExitCode {
    // glibc raises the bound to the largest block freed so far: what starting up needed once would stay for the whole trace.
    // SAFETY: mallopt(3) before anything is allocated by other threads.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
    tracer::cli::main()
}
