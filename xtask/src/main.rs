//! ctrace's chores, one file per verb: `cargo xtask --help`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a chore's whole interface is the terminal"
)]

mod apt;
mod bench;
mod bench_probes;
mod build_ebpf;
mod demo;
mod go;
mod libtest;
mod lint;
#[path = "../../tracer/ebpf/manifest.rs"]
#[expect(unreachable_pub, reason = "shared with tracer's build script")]
mod manifest;
mod shell;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "ctrace's chores")]
enum Verb {
    BuildEbpf(build_ebpf::Args),
    Demo(demo::Args),
    Test(test::Args),
    Lint(lint::Args),
    Bench(bench::Args),
    BenchProbes(bench_probes::Args),
}

fn main() -> ExitCode {
    let done = match Verb::parse() {
        Verb::BuildEbpf(args) => build_ebpf::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => return test::main(&args),
        Verb::Lint(args) => lint::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::BenchProbes(args) => bench_probes::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
