//! A tracer that runs: started, known to trace, measured from outside, stopped.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, PipeReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Longest start.
const START: Duration = Duration::from_secs(20);
/// Longest stop: `perf sched` writes for half a minute.
const STOP: Duration = Duration::from_secs(90);
/// After this a forgetful one is interrupted again.
const AGAIN: Duration = Duration::from_millis(500);
/// What is kept of a tracer's output.
const KEPT_BYTES: usize = 4 << 20;

/// How a tracer shows that it traces.
#[derive(Clone, Copy)]
pub(super) enum Ready {
    /// It says so.
    Says(&'static str),
    /// perf says nothing: its events are open, and its main thread waits in `poll`.
    Polls,
}

/// `poll` and `epoll_wait` (what aarch64 calls `ppoll` and `epoll_pwait`), as `/proc/PID/syscall` has them.
const POLL: &str = if cfg!(target_arch = "x86_64") { "7 " } else { "73 " };
const EPOLL: &str = if cfg!(target_arch = "x86_64") {
    "232 "
} else {
    "22 "
};

/// Dropped before [`Self::stop`], it is killed.
pub(super) struct Running {
    child: Child,
    said: thread::JoinHandle<String>,
    /// From its start until it traced.
    pub(super) start_s: f64,
}

/// What became of it.
pub(super) struct Stopped {
    /// From Ctrl-C to its end.
    pub(super) stop_s: f64,
    /// Both its outputs.
    pub(super) said: String,
}

impl Running {
    /// Starts it and waits until it traces.
    pub(super) fn start(command: &mut Command, ready: Ready) -> Result<Self> {
        let (output, input) = std::io::pipe()?;
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        // The command keeps its ends of the pipe, whose reader would wait for them.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (tell, told) = mpsc::channel();
        let mut running = Self {
            child,
            said: thread::spawn(move || listen(output, ready, &tell)),
            start_s: f64::NAN,
        };
        while !running.traces(ready, &told)? {
            ensure!(started.elapsed() < START, "not ready after {START:?}");
        }
        running.start_s = started.elapsed().as_secs_f64();
        Ok(running)
    }

    fn traces(&mut self, ready: Ready, told: &mpsc::Receiver<()>) -> Result<bool> {
        let heard = told.recv_timeout(Duration::from_millis(2));
        if let Some(status) = self.child.try_wait()? {
            let said = self.take_said();
            let last = said.lines().rev().find(|line| !line.trim().is_empty());
            bail!(
                "it ended with {status}: {}",
                last.unwrap_or("it said nothing").trim()
            );
        }
        Ok(match ready {
            Ready::Says(_) => heard.is_ok(),
            Ready::Polls => self.polls(),
        })
    }

    fn polls(&self) -> bool {
        let descriptors = format!("/proc/{}/fd", self.child.id());
        self.waits_in(POLL)
            && fs::read_dir(descriptors).is_ok_and(|descriptors| {
                descriptors.flatten().any(|descriptor| {
                    fs::read_link(descriptor.path())
                        .is_ok_and(|link| link.as_os_str() == "anon_inode:[perf_event]")
                })
            })
    }

    /// Whether its main thread sleeps in this system call.
    fn waits_in(&self, call: &str) -> bool {
        fs::read_to_string(format!("/proc/{}/syscall", self.child.id()))
            .is_ok_and(|now| now.starts_with(call))
    }

    /// CPU time of its threads so far; that of its probes is the traced threads' own.
    pub(super) fn cpu_ns(&self) -> Result<f64> {
        let mut sum = 0.0;
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        for task in tasks.context("the tracer ended")? {
            // A thread that has just ended.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            let ran = text.split_whitespace().next().context("empty schedstat")?;
            sum += ran.parse::<f64>()?;
        }
        Ok(sum)
    }

    /// Resident memory, in bytes.
    pub(super) fn rss_bytes(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        rss_bytes(&status).context("no VmRSS")
    }

    /// Memory of the eBPF maps that it holds, in bytes; `None`: it has none.
    pub(super) fn maps_bytes(&self) -> Result<Option<f64>> {
        let mut maps = HashMap::new();
        for info in fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))? {
            // A descriptor that has just been closed.
            let text = fs::read_to_string(info?.path()).unwrap_or_default();
            maps.extend(map_bytes(&text));
        }
        Ok((!maps.is_empty()).then(|| maps.values().sum()))
    }

    /// Ctrl-C, and its end. `forgetful`: one that comes while it is not in `epoll_wait` is lost, as in bpftrace 0.17, so it is
    /// told again when it goes on waiting there.
    pub(super) fn stop(mut self, forgetful: bool) -> Result<Stopped> {
        let asked = Instant::now();
        self.interrupt()?;
        let mut again = asked + AGAIN;
        while self.child.try_wait()?.is_none() {
            ensure!(asked.elapsed() < STOP, "it did not end after {STOP:?}");
            if forgetful && Instant::now() >= again && self.waits_in(EPOLL) {
                self.interrupt()?;
                again = Instant::now() + AGAIN;
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(Stopped {
            stop_s: asked.elapsed().as_secs_f64(),
            said: self.take_said(),
        })
    }

    fn interrupt(&self) -> Result<()> {
        let interrupt = format!("kill -INT {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &interrupt]).status()?;
        ensure!(sent.success(), "cannot interrupt it");
        Ok(())
    }

    /// Once it has ended.
    fn take_said(&mut self) -> String {
        let said = std::mem::replace(&mut self.said, thread::spawn(String::new));
        said.join().unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `stop` there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps what a tracer says, and tells when it is ready. It must never wait for a reader.
fn listen(output: PipeReader, ready: Ready, tell: &mpsc::Sender<()>) -> String {
    let mut said = String::new();
    let mut line = Vec::new();
    let mut output = BufReader::new(output);
    while output.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line);
        if matches!(ready, Ready::Says(word) if text.contains(word)) {
            // Nobody may wait any longer.
            let _ = tell.send(());
        }
        if said.len() < KEPT_BYTES {
            said.push_str(&text);
        }
        line.clear();
    }
    said
}

fn rss_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}

/// Id and size of the map that an `fdinfo` is of; `memlock` is what it takes since Linux 6.4, an estimate before.
fn map_bytes(fdinfo: &str) -> Option<(u64, f64)> {
    let field = |name: &str| {
        let value = fdinfo.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<u64>().ok()
    };
    // Programs have `memlock` too, but no map's id.
    field("map_type:")?;
    Some((field("map_id:")?, field("memlock:")? as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory() {
        assert_eq!(rss_bytes("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2_097_152.0));
        assert_eq!(rss_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn maps_but_not_programs() {
        let map = "pos:\t0\nmap_type:\t27\nkey_size:\t0\nmemlock:\t16855336\nmap_id:\t9\nfrozen:\t0\n";
        assert_eq!(map_bytes(map), Some((9, 16_855_336.0)));
        assert_eq!(map_bytes("prog_type:\t26\nmemlock:\t4096\nprog_id:\t9\n"), None);
    }

    #[test]
    fn a_tracer_that_ends_at_once_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo no such event >&2; echo; exit 3"]);
        let error = Running::start(&mut command, Ready::Says("never")).err().unwrap();
        let error = error.to_string();
        assert!(error.contains("no such event"), "{error}");
    }
}
