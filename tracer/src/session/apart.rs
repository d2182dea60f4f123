//! Work in a process of its own. Names are looked up there: what a target's files do to the reader of symbols and debug
//! information (its memory, a crash, an endless loop) does not reach the trace, and the memory is given back.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd as _, FromRawFd as _},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

/// Memory that the process may take beside what it shares with us, and CPU time; then it ends.
const MEMORY_MAX: u64 = 2 << 30;
const CPU_SECONDS_MAX: u64 = 120;
/// Most bytes that are taken from it: no report is larger.
const ANSWER_MAX: u64 = 1 << 30;
/// It may wait for a file system that does not answer; then it is killed.
pub const PATIENCE: Duration = Duration::from_mins(3);
/// Between two calls of what must go on meanwhile.
const BREATH: Duration = Duration::from_millis(10);

/// A process at work.
pub struct Apart {
    pid: libc::pid_t,
    answer: File,
    reaped: bool,
}

/// What it did.
#[derive(Debug)]
pub struct Done {
    /// All that it wrote.
    pub bytes: Vec<u8>,
    /// Memory it had resident at most, what it shared with us included.
    pub peak_rss_bytes: u64,
    /// CPU time it took.
    pub cpu_ns: u64,
}

impl Apart {
    /// Forks; the child does the work on its copy of everything, and ends. We must have one thread, or `work` must need
    /// nothing that another thread may hold.
    pub fn start(work: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: pipe2(2) fills both entries.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: two new descriptors that nobody else owns.
        let (answer, write) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
        // SAFETY: getpid(2) cannot fail; fork(2) by the caller's promise above.
        let (parent, pid) = unsafe { (libc::getpid(), libc::fork()) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            drop(answer);
            limit(parent);
            let mut write = io::BufWriter::with_capacity(64 << 10, write);
            let done = catch_unwind(AssertUnwindSafe(|| {
                work(&mut write).and_then(|()| write.flush()).is_ok()
            }));
            // SAFETY: leaves without running destructors that belong to the parent.
            unsafe { libc::_exit(i32::from(!done.unwrap_or(false))) };
        }
        Ok(Self {
            pid,
            answer,
            reaped: false,
        })
    }

    /// Waits for the end; `meanwhile` is called every few milliseconds. An error when the process did not end well, or not within
    /// `patience`.
    pub fn finish(mut self, patience: Duration, mut meanwhile: impl FnMut()) -> io::Result<Done> {
        let begun = Instant::now();
        let mut bytes = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        loop {
            let mut poll = libc::pollfd {
                fd: self.answer.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: poll(2) on one initialised entry.
            let ready = unsafe { libc::poll(&raw mut poll, 1, BREATH.as_millis() as libc::c_int) };
            meanwhile();
            if begun.elapsed() > patience {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("it did not end within {} s", patience.as_secs()),
                ));
            }
            if ready <= 0 {
                continue;
            }
            match self.answer.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => bytes.extend(chunk.iter().take(read)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if bytes.len() as u64 > ANSWER_MAX {
                return Err(io::Error::other("it wrote without end"));
            }
        }
        let (status, usage) = self.reap()?;
        if status != 0 {
            let signal = status & 0x7f;
            return Err(io::Error::other(match signal {
                0 => "it failed".to_owned(),
                signal => format!("it was killed by signal {signal}"),
            }));
        }
        let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
        Ok(Done {
            bytes,
            peak_rss_bytes: usage.ru_maxrss as u64 * 1024,
            cpu_ns: ns(usage.ru_utime) + ns(usage.ru_stime),
        })
    }

    fn reap(&mut self) -> io::Result<(libc::c_int, libc::rusage)> {
        let mut status = 0;
        // SAFETY: integers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        loop {
            // SAFETY: wait4(2) on our own child fills both.
            if unsafe { libc::wait4(self.pid, &raw mut status, 0, &raw mut usage) } == self.pid {
                self.reaped = true;
                return Ok((status, usage));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: kill(2) of our own child, which is not reaped yet.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            let _ = self.reap();
        }
    }
}

/// In the child: bounds what it may take, and lets it go when we do.
fn limit(parent: libc::pid_t) {
    let bound = |resource, most: u64| {
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        // SAFETY: setrlimit(2) reads the struct.
        unsafe { libc::setrlimit(resource, &raw const limit) };
    };
    bound(libc::RLIMIT_DATA, MEMORY_MAX);
    bound(libc::RLIMIT_CPU, CPU_SECONDS_MAX);
    bound(libc::RLIMIT_CORE, 0);
    // SAFETY: prctl(2), getppid(2), signal(2) and _exit(2) have no preconditions here. A Ctrl-C is the parent's business. The
    // handlers of faults would write to the terminal.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != parent {
            libc::_exit(1);
        }
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::signal(libc::SIGSEGV, libc::SIG_DFL);
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
    std::panic::set_hook(Box::new(|_| {}));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(work: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Done> {
        Apart::start(work)?.finish(PATIENCE, || {})
    }

    #[test]
    fn what_it_writes_arrives_and_its_memory_is_its_own() {
        let own = crate::proc::host::own_rss_bytes();
        let done = run(|out| {
            let much = vec![1u8; 97 << 20];
            (0..23u32).try_for_each(|number| out.write_all(&number.to_ne_bytes()))?;
            out.write_all(&much[..1 << 20])
        })
        .unwrap();
        assert_eq!(done.bytes.len(), 23 * 4 + (1 << 20));
        assert_eq!(done.bytes[22 * 4..23 * 4], 22u32.to_ne_bytes());
        assert!(done.peak_rss_bytes > 97 << 20);
        assert!(done.cpu_ns > 0);
        assert!(crate::proc::host::own_rss_bytes() < own + (90 << 20));
    }

    #[test]
    fn however_it_ends_we_live() {
        #[allow(unconditional_recursion, reason = "it is to overflow its stack")]
        fn deep(n: u64) -> u64 {
            let here = std::hint::black_box([n; 512]);
            deep(n + 1) + here[n as usize % 512]
        }
        let why = |work: fn(&mut dyn Write) -> io::Result<()>| run(work).unwrap_err().to_string();
        assert_eq!(why(|_| panic!("hostile")), "it failed");
        assert_eq!(why(|_| Err(io::ErrorKind::InvalidData.into())), "it failed");
        assert_eq!(why(|_| std::process::abort()), "it was killed by signal 6");
        assert_eq!(
            why(|out| {
                out.write_all(b"half")?;
                deep(0);
                Ok(())
            }),
            "it was killed by signal 11"
        );
        // More memory than it may have.
        assert_eq!(
            why(|_| {
                let much = vec![1u8; 3 << 30];
                std::hint::black_box(much);
                Ok(())
            }),
            "it was killed by signal 6"
        );
    }

    #[test]
    fn meanwhile_goes_on() {
        let mut turns = 0;
        let apart = Apart::start(|out| {
            std::thread::sleep(Duration::from_millis(200));
            out.write_all(b"done")
        })
        .unwrap();
        assert_eq!(apart.finish(PATIENCE, || turns += 1).unwrap().bytes, b"done");
        assert!(turns >= 2, "{turns}");
    }

    #[test]
    fn left_alone_it_is_ended() {
        let apart = Apart::start(|_| {
            std::thread::sleep(Duration::from_mins(10));
            Ok(())
        })
        .unwrap();
        let pid = apart.pid;
        drop(apart);
        // SAFETY: kill(2) without a signal only asks.
        assert_eq!(unsafe { libc::kill(pid, 0) }, -1);
    }
}
