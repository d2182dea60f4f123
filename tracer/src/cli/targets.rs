//! From what was typed after `--pid` to processes that can be traced, each held so that its id cannot be reused unseen.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
};

use anyhow::{Result, bail, ensure};

use crate::proc::target::{Stat, tgid_of};

/// `PROC_PID_INIT_INO` (`include/linux/proc_ns.h`).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A process, named for good by its id and its start.
#[derive(Debug)]
pub struct Held {
    /// Its id.
    pub pid: u32,
    /// Start in clock ticks since boot.
    pub start_ticks: u64,
    /// Becomes readable when it has ended, its last thread included; none once that is known.
    pidfd: Option<OwnedFd>,
}

impl Held {
    /// Checks that `text` names a process that ctrace can trace, and takes hold of it.
    pub fn parse(text: &str) -> Result<Self> {
        let shown = text.escape_debug();
        let Ok(number) = text.trim().parse::<i128>() else {
            bail!("--pid wants a process id such as 1234, not `{shown}`: find it with `pgrep -a NAME`");
        };
        ensure!(
            number > 0,
            "--pid {shown} is no process id: ids begin at 1, find it with `pgrep -a NAME`"
        );
        let Ok(pid) = u32::try_from(number)
            .map_err(drop)
            .and_then(|pid| if pid < 1 << 22 { Ok(pid) } else { Err(()) })
        else {
            bail!(
                "--pid {shown} is no process id: the kernel's largest is 4194304, find it with `pgrep -a NAME`"
            );
        };
        Self::hold(pid)
    }

    /// Takes hold of a process. The probes see ids of the initial pid namespace only, so there must be no other.
    pub fn hold(pid: u32) -> Result<Self> {
        ensure!(
            pid != std::process::id(),
            "--pid {pid} is ctrace itself: name the process to trace"
        );
        ensure!(
            std::fs::metadata("/proc/self/ns/pid")
                .is_ok_and(|namespace| namespace.ino() == INITIAL_NAMESPACE),
            "ctrace runs in a pid namespace of its own, where ids are not the kernel's: run it on the host, or the container with --pid=host"
        );
        let Ok(stat) = Stat::of(pid) else {
            bail!(
                "no process {pid}: it has ended, or it lives in another pid namespace; find it with `pgrep -a NAME`"
            );
        };
        ensure!(
            !stat.is_kernel_thread(),
            "{pid} ({}) is a kernel thread, which has no user code to trace: name a process",
            stat.comm.escape_debug()
        );
        if let Some(tgid) = tgid_of(pid)
            && tgid != pid
        {
            bail!(
                "{pid} ({}) is a thread of process {tgid}: use --pid {tgid}",
                stat.comm.escape_debug()
            );
        }
        ensure!(
            stat.state != 'Z',
            "process {pid} ({}) has ended and waits for its parent: nothing to trace",
            stat.comm.escape_debug()
        );
        // SAFETY: pidfd_open(2) takes integers and returns a new descriptor or −1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            bail!("cannot hold process {pid}: {error}; it may just have ended");
        }
        // SAFETY: a new descriptor that nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        // The pidfd is of one process for good; if the start is still the same, of the one that was checked.
        ensure!(
            Stat::of(pid).is_ok_and(|again| again.start_ticks == stat.start_ticks),
            "process {pid} ended while ctrace attached"
        );
        Ok(Self {
            pid,
            start_ticks: stat.start_ticks,
            pidfd: Some(pidfd),
        })
    }

    /// Lets go of a process that has ended.
    pub fn release(&mut self) {
        self.pidfd = None;
    }

    /// It has ended.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        let Some(pidfd) = &self.pidfd else { return true };
        let mut poll = libc::pollfd {
            fd: pidfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: poll(2) on one initialised entry, without waiting.
        unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
    }
}

/// Capabilities by number (`linux/capability.h`).
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Says in one line what is missing when the privileges cannot suffice.
pub fn check_privileges() -> Result<()> {
    let status = crate::proc::target::read("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective & (1 << capability) != 0;
    if has(SYS_ADMIN) {
        return Ok(());
    }
    let missing: Vec<&str> = [
        (BPF, "CAP_BPF"),
        (PERFMON, "CAP_PERFMON"),
        (SYS_PTRACE, "CAP_SYS_PTRACE"),
    ]
    .into_iter()
    .filter_map(|(capability, name)| (!has(capability)).then_some(name))
    .collect();
    ensure!(
        missing.is_empty(),
        "not enough privileges (missing {}): run it as root, `sudo ctrace …`",
        missing.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Held::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn each_wrong_pid_has_its_own_words() {
        assert!(error("abc").contains("not `abc`"));
        assert!(error("\x1b[31m").contains("\\u{1b}"));
        assert!(error("0").contains("begin at 1"));
        assert!(error("-1").contains("begin at 1"));
        assert!(error("99999999999999").contains("largest"));
        assert!(error("4194303").contains("no process"));
        assert!(error("2").contains("kernel thread"));
        assert!(error(&std::process::id().to_string()).contains("itself"));
        for text in ["abc", "0", "99999999999999", "2", "4194303"] {
            assert!(!error(text).contains('\n'));
        }
    }

    #[test]
    fn a_thread_names_its_process() {
        let (send, receive) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            // SAFETY: gettid(2) has no preconditions.
            send.send(unsafe { libc::gettid() }).unwrap();
            stopped.recv().ok();
        });
        let tid = receive.recv().unwrap();
        let words = error(&tid.to_string());
        assert!(
            words.contains(&format!("use --pid {}", std::process::id())),
            "{words}"
        );
        drop(stop);
        thread.join().unwrap();
    }

    #[test]
    fn a_process_is_held_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let held = Held::hold(child.id()).unwrap();
        assert!(!held.has_exited());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(held.has_exited());
        assert!(error(&child.id().to_string()).contains("no process"));
    }
}
