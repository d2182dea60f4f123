//! `ctrace`: why a process is slow at the tail, and what it leaks.

use std::process::ExitCode;

fn main() -> ExitCode {
    tracer::cli::main()
}
