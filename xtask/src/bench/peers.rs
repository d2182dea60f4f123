//! Tracers of the distribution that do some part of the same job, with the options a person would give them.

use std::path::Path;

use super::running::Ready;
use crate::{apt, shell};

/// One of them, with one way to use it.
pub(super) struct Peer {
    pub(super) name: &'static str,
    /// The program, which apt has a package of.
    pub(super) program: &'static str,
    /// Its arguments, to trace a process; files go into the folder.
    pub(super) arguments: fn(pid: u32, folder: &Path) -> Vec<String>,
    pub(super) ready: Ready,
    /// What it says at the end only when it saw something. Empty: it has nothing to see.
    pub(super) proof: &'static str,
    /// It takes the stacks of those who wait.
    pub(super) stacks: bool,
}

const fn bpftrace(
    name: &'static str,
    arguments: fn(u32, &Path) -> Vec<String>,
    proof: &'static str,
    stacks: bool,
) -> Peer {
    Peer {
        name,
        program: "bpftrace",
        arguments,
        // With -v it names each probe before it attaches it, and this one is the last.
        ready: Ready::Says("Attaching interval"),
        proof,
        stacks,
    }
}

fn script(text: &str, pid: u32) -> Vec<String> {
    let text = format!("{text} interval:s:3600 {{ }}");
    ["-v", "-e", &text, &pid.to_string()].map(str::to_owned).to_vec()
}

/// The least that a probe on each switch and each wake-up costs: this bpftrace has no cheaper kind of probe to leave empty.
pub(super) static EMPTY_SWITCH: Peer = bpftrace(
    "empty probes",
    |pid, _| {
        let text = "tracepoint:sched:sched_switch { } tracepoint:sched:sched_waking { }";
        script(text, pid)
    },
    "",
    false,
);

/// The same for descriptors.
pub(super) static EMPTY_FDS: Peer = bpftrace(
    "empty probes",
    |pid, _| {
        let text = "tracepoint:syscalls:sys_exit_openat { } tracepoint:syscalls:sys_enter_close { }";
        script(text, pid)
    },
    "",
    false,
);

/// As bcc's offcputime does it: each switch away, preemptions too.
pub(super) static OFF_CPU: Peer = bpftrace(
    "bpftrace off-CPU",
    |pid, _| {
        let text = "
tracepoint:sched:sched_switch
{
  if (pid == $1) { @at[args->prev_pid] = nsecs; @stack[args->prev_pid] = ustack; }
  $at = @at[args->next_pid];
  if ($at != 0) {
    @us[@stack[args->next_pid]] = hist((nsecs - $at) / 1000);
    delete(@at[args->next_pid]); delete(@stack[args->next_pid]);
  }
}
END { clear(@at); clear(@stack); }";
        script(text, pid)
    },
    "@us[",
    true,
);

/// The same without preemptions, of which ctrace keeps only times: the fairer one to compare with.
pub(super) static BLOCKED: Peer = bpftrace(
    "bpftrace blocked",
    |pid, _| {
        let text = "
tracepoint:sched:sched_switch
{
  if (pid == $1 && args->prev_state != 0) { @at[args->prev_pid] = nsecs; @stack[args->prev_pid] = ustack; }
  $at = @at[args->next_pid];
  if ($at != 0) {
    @us[@stack[args->next_pid]] = hist((nsecs - $at) / 1000);
    delete(@at[args->next_pid]); delete(@stack[args->next_pid]);
  }
}
END { clear(@at); clear(@stack); }";
        script(text, pid)
    },
    "@us[",
    true,
);

/// Waits in futex (operations 0 and 9), by lock and stack.
pub(super) static FUTEX: Peer = bpftrace(
    "bpftrace futex",
    |pid, _| {
        let text = "
tracepoint:syscalls:sys_enter_futex /pid == $1 && ((args->op & 127) == 0 || (args->op & 127) == 9)/
{ @at[tid] = nsecs; @lock[tid] = (uint64)args->uaddr; }
tracepoint:syscalls:sys_exit_futex /@at[tid]/
{ @us[@lock[tid], ustack] = hist((nsecs - @at[tid]) / 1000); delete(@at[tid]); delete(@lock[tid]); }
END { clear(@at); clear(@lock); }";
        script(text, pid)
    },
    "@us[",
    true,
);

/// Descriptors made, by stack, and those still open.
pub(super) static FDS: Peer = bpftrace(
    "bpftrace fd",
    |pid, _| {
        let text = "
tracepoint:syscalls:sys_exit_open*, tracepoint:syscalls:sys_exit_socket, tracepoint:syscalls:sys_exit_accept*
/pid == $1 && args->ret >= 0/ { @open[args->ret] = ustack; @made[ustack] = count(); }
tracepoint:syscalls:sys_enter_close /pid == $1/ { delete(@open[args->fd]); }
END { clear(@open); }";
        script(text, pid)
    },
    "@made[",
    true,
);

pub(super) static PERF_TRACE: Peer = Peer {
    name: "perf trace -s",
    program: "perf",
    arguments: |pid, _| {
        ["trace", "-s", "-p", &pid.to_string()]
            .map(str::to_owned)
            .to_vec()
    },
    ready: Ready::Polls,
    proof: " events, ",
    stacks: false,
};

/// Of all processes: it knows no other way.
pub(super) static PERF_SCHED: Peer = Peer {
    name: "perf sched record",
    program: "perf",
    arguments: |_, folder| {
        let file = folder.join(PERF_DATA).to_string_lossy().into_owned();
        ["sched", "record", "-o", &file].map(str::to_owned).to_vec()
    },
    ready: Ready::Polls,
    proof: "samples",
    stacks: false,
};

pub(super) static STRACE: Peer = Peer {
    name: "strace -c -f",
    program: "strace",
    arguments: |pid, _| ["-c", "-f", "-p", &pid.to_string()].map(str::to_owned).to_vec(),
    ready: Ready::Says("attached"),
    proof: "% time",
    stacks: false,
};

/// What `perf sched record` writes, hundreds of MB.
pub(super) const PERF_DATA: &str = "perf.data";

/// Installs what is missing, or says why not; a peer that is not here has a row that says so.
pub(super) fn install() {
    for package in apt::missing(apt::BENCH) {
        if let Err(error) = apt::install(&[package.name]) {
            eprintln!("xtask: without {} ({}): {error:#}", package.name, package.purpose);
        }
    }
}

/// Those here, and which.
pub(super) fn versions() -> Vec<String> {
    let ask = |program, option| {
        let text = shell::output(std::process::Command::new(program).arg(option))?;
        Some(text.lines().next()?.replace(" -- version", ""))
    };
    [("bpftrace", "--version"), ("perf", "--version"), ("strace", "-V")]
        .into_iter()
        .filter_map(|(program, option)| ask(program, option))
        .collect()
}

/// How many events it says that it lost, in any of the ways in which these tools say it.
pub(super) fn lost(said: &str) -> u64 {
    let words: Vec<String> = said
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase())
        .collect();
    let pairs = words.windows(2).filter(|pair| pair[0] == "lost");
    pairs.filter_map(|pair| pair[1].parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_as_the_tools_say_them() {
        assert_eq!(lost("LOST 414 events!\nx"), 414);
        assert_eq!(lost("Lost 7 events\nProcessed 3 events and lost 2 chunks!"), 9);
        assert_eq!(
            lost("[ perf record: Captured and wrote 0.228 MB (1567 samples) ]"),
            0
        );
        assert_eq!(lost("nothing was lost"), 0);
    }
}
