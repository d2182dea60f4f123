//! Debian packages: what the chores need, and installing it where that is allowed.

use std::{
    process::{Command, Stdio},
    sync::Once,
};

use anyhow::{Result, bail};

use crate::shell;

/// A package that a chore uses.
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: &'static str,
    /// A program it brings; when that is found the package is not needed.
    pub(crate) program: &'static str,
    /// What for.
    pub(crate) purpose: &'static str,
}

const fn package(name: &'static str, program: &'static str, purpose: &'static str) -> Package {
    Package {
        name,
        program,
        purpose,
    }
}

/// Everything a full run of the tests wants. A test whose program is missing skips and says so.
pub(crate) const TESTS: &[Package] = &[
    package("gcc", "gcc", "C workloads (with libc6-dev)"),
    package("g++", "g++", "C++ workloads"),
    package("python3", "python3", "Python workloads"),
    package("default-jdk-headless", "javac", "Java workloads"),
    package("nodejs", "node", "Node workloads"),
    package("golang-go", "go", "Go workloads"),
    package("python3-pip", "pip3", "newer Go toolchains, which PyPI has"),
    package("binutils", "strip", "programs without symbols"),
    package("nginx", "nginx", "a real web server"),
    package("redis-server", "redis-server", "a real cache"),
    package("redis-tools", "redis-benchmark", "its client"),
    package("postgresql", "pg_ctlcluster", "a real database, and pgbench"),
    package("wrk", "wrk", "an HTTP client"),
    package("gdb", "gdb", "the truth about stacks"),
    package("binutils", "objdump", "the truth about instructions"),
    package("mariadb-server", "mariadbd", "a real database with threads"),
    package("sqlite3", "sqlite3", "a real library that locks files"),
    package("haproxy", "haproxy", "a real proxy"),
    package("memcached", "memcached", "a real cache with threads"),
    package("curl", "curl", "a real client"),
    package("git", "git", "a real tool"),
    package("perl", "perl", "Perl workloads"),
    package("ruby", "ruby", "Ruby workloads"),
    package(
        "musl-tools",
        "musl-gcc",
        "another C library, without unwind rules",
    ),
    package("util-linux", "unshare", "namespaces"),
];

/// What the bench compares ctrace with.
pub(crate) const BENCH: &[Package] = &[
    package("gcc", "gcc", "the loads (with libc6-dev)"),
    package("bpftrace", "bpftrace", "the peer that is nearest to ctrace"),
    package("linux-perf", "perf", "`perf trace` and `perf sched`"),
    package("strace", "strace", "what everybody reaches for first"),
];

/// The packages of `wanted` whose program is not here.
pub(crate) fn missing(wanted: &'static [Package]) -> Vec<&'static Package> {
    wanted
        .iter()
        .filter(|package| shell::which(package.program).is_none())
        .collect()
}

/// The command that installs `names`.
pub(crate) fn command(names: &[&str]) -> String {
    format!("apt-get install -y --no-install-recommends {}", names.join(" "))
}

/// Installs `names`, or fails with the command that a person must run.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    if shell::which("apt-get").is_none() {
        bail!(
            "no apt-get here; install with your package manager what Debian calls: {}",
            names.join(" ")
        );
    }
    if !shell::is_root() {
        bail!("not root; run: sudo {}", command(names));
    }
    update();
    shell::run(
        quiet()
            .args(["install", "-y", "--no-install-recommends"])
            .args(names),
    )
}

/// Fetches the lists, once in a run. Those of a fresh machine's image are empty or months old, and what they still
/// offer installs without an error: another compiler than everybody else's.
fn update() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = shell::run(quiet().arg("update")) {
            eprintln!("xtask: {error:#}; going on with the lists that are here");
        }
    });
}

/// apt-get that asks nothing and starts no daemon: tests start their own servers.
fn quiet() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .arg("-qq")
        .stdout(Stdio::null());
    command
}
