//! A process that puts back what ctrace wrote into another one's memory, however ctrace ends.
//!
//! ```text
//! ctrace ── starts ──> watchdog: own session, deaf to signals of the terminal, no capability left, and an open /proc/PID/mem
//!        ── what is to be written, and what is there ──>
//!        <── armed ──          (only now ctrace writes)
//!        ── end, or the pipe closes ──>
//!        <── what became of each ──
//! ```
//!
//! The file `/proc/PID/mem` belongs to the memory that the process had when it was opened: after an exec, or when its number is
//! another's, reading it gives nothing and writing does nothing. So nothing else can ever be written to. Bytes are put back only
//! where they are still those that were written.

use std::{
    fs::File,
    io::{self, BufRead as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{fs::FileExt as _, process::CommandExt as _},
    },
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// The subcommand, which `--help` does not show.
pub const SUBCOMMAND: &str = "go-write-watchdog";
/// Words that one watchdog looks after.
const MAX_ENTRIES: usize = 16;
/// It answers at once, unless the machine stands still.
const PATIENCE: Duration = Duration::from_secs(10);
/// What it says when it is ready.
const ARMED: &str = "armed";
/// What it is told when it is to begin.
const END: &str = "end";

/// Something to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub address: u64,
    /// Bytes: 1 or 8.
    pub len: usize,
    /// What is there before.
    pub old: u64,
    /// What is written.
    pub new: u64,
}

/// What became of it at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It still held what was written; the old bytes were put back, and read back.
    Restored,
    /// The program had put them back itself, as it does with what it takes as an order.
    Taken,
    /// The program had put something else there, which was left as it was.
    Changed(u64),
    /// The process had ended, or ran another program.
    Gone,
    /// It could not be put back.
    Failed,
}

impl Fate {
    fn say(self) -> String {
        match self {
            Self::Restored => "restored".to_owned(),
            Self::Taken => "taken".to_owned(),
            Self::Changed(value) => format!("changed {value:x}"),
            Self::Gone => "gone".to_owned(),
            Self::Failed => "failed".to_owned(),
        }
    }

    fn hear(line: &str) -> Option<Self> {
        Some(match line {
            "restored" => Self::Restored,
            "taken" => Self::Taken,
            "gone" => Self::Gone,
            "failed" => Self::Failed,
            _ => Self::Changed(u64::from_str_radix(line.strip_prefix("changed ")?, 16).ok()?),
        })
    }
}

/// Opens a process's memory to write to it: see the module for what that holds on to.
pub fn open(pid: u32) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))
}

/// What stands there now; None when there is no such memory any more.
pub fn peek(memory: &File, entry: &Entry) -> Option<u64> {
    let mut bytes = [0; 8];
    let part = bytes.get_mut(..entry.len)?;
    memory.read_exact_at(part, entry.address).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Puts a value there.
pub fn poke(memory: &File, entry: &Entry, value: u64) -> io::Result<()> {
    let bytes = value.to_le_bytes();
    let part = bytes.get(..entry.len).unwrap_or(&bytes);
    memory.write_all_at(part, entry.address)
}

/// Puts back what was there, where what was written still is.
pub fn restore(memory: &File, entry: &Entry) -> Fate {
    match peek(memory, entry) {
        None => Fate::Gone,
        Some(now) if now == entry.old => Fate::Taken,
        Some(now) if now != entry.new => Fate::Changed(now),
        Some(_) => {
            // The program may end in this moment.
            let _ = poke(memory, entry, entry.old);
            match peek(memory, entry) {
                Some(now) if now == entry.old => Fate::Restored,
                Some(_) => Fate::Failed,
                None => Fate::Gone,
            }
        }
    }
}

/// A watchdog that is armed.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
    answer: io::BufReader<std::process::ChildStdout>,
}

impl Watchdog {
    /// Starts one for a process whose memory is open, and waits until it is ready to put these back.
    pub fn arm(pid: u32, memory: &File, entries: &[Entry]) -> io::Result<Self> {
        let pidfd = pidfd(pid)?;
        let passed = [memory.as_raw_fd(), pidfd.as_raw_fd()];
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("ctrace")
            .args([SUBCOMMAND, &pid.to_string()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // SAFETY: setsid(2) and fcntl(2) may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                for fd in passed {
                    if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        let answer = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut watchdog = Self {
            child,
            answer: io::BufReader::new(answer),
        };
        let mut order = vec![format!("{} {}", passed[0], passed[1])];
        let line = |entry: &Entry| {
            format!(
                "{:x} {} {:x} {:x}",
                entry.address, entry.len, entry.old, entry.new
            )
        };
        order.extend(entries.iter().map(line));
        order.push(
            "arm
"
            .to_owned(),
        );
        watchdog.tell(&order.join("\n"))?;
        match watchdog.hear(PATIENCE) {
            Some(line) if line == ARMED => Ok(watchdog),
            Some(line) => Err(io::Error::other(line)),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn tell(&mut self, text: &str) -> io::Result<()> {
        let stdin = self.child.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush())
    }

    /// A line of its answer; None when none comes.
    fn hear(&mut self, patience: Duration) -> Option<String> {
        if self.answer.buffer().is_empty() && !ready(self.answer.get_ref().as_raw_fd(), patience) {
            return None;
        }
        let mut line = String::new();
        let read = self.answer.read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// It has ended: because the process has, or because somebody ended it.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Has it put everything back, waits for it to end, and tells what became of each entry; does it itself when the watchdog
    /// does not.
    pub fn finish(mut self, memory: &File, entries: &[Entry]) -> Vec<Fate> {
        // When it has ended already, its last words are in the pipe.
        let _ = self.tell(&format!("{END}\n"));
        drop(self.child.stdin.take());
        let begun = Instant::now();
        let mut fates = Vec::new();
        for entry in entries {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let told = self.hear(left).and_then(|line| Fate::hear(&line));
            // Twice does no harm: what is put back is not what was written.
            fates.push(told.unwrap_or_else(|| restore(memory, entry)));
        }
        let ended = super::poll_until(|| Ok(self.has_ended()), PATIENCE.saturating_sub(begun.elapsed()));
        if !ended.unwrap_or(false) {
            log::warn!("the watchdog {} does not end", self.pid());
        }
        fates
    }
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes integers and returns a new descriptor or −1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// There is something to read, an end included.
fn ready(fd: RawFd, patience: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // SAFETY: poll(2) on one initialised entry.
        let found = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as libc::c_int) };
        if found > 0 {
            return true;
        }
        if found == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return false;
        }
    }
}

/// The watchdog's own life.
#[must_use]
pub fn main() -> ExitCode {
    deafen();
    let mut lines = io::stdin().lock();
    let Some((memory, pidfd, entries)) = order(&mut lines) else {
        say("the order was not understood");
        return ExitCode::FAILURE;
    };
    // ctrace has looked at the memory, and would write to the same: if these are not the bytes, one of us is mistaken.
    if entries
        .iter()
        .any(|entry| peek(&memory, entry) != Some(entry.old))
    {
        say("the process's memory is not what it was");
        return ExitCode::FAILURE;
    }
    confine(&memory, &pidfd);
    say(ARMED);
    wait(&pidfd);
    for entry in &entries {
        say(&restore(&memory, entry).say());
    }
    ExitCode::SUCCESS
}

/// A line for ctrace, which may be gone.
fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// A line of an order.
fn line(lines: &mut impl io::BufRead) -> Option<String> {
    let mut line = String::new();
    lines.read_line(&mut line).ok().filter(|&read| read > 0)?;
    Some(line.trim_end().to_owned())
}

fn order(lines: &mut impl io::BufRead) -> Option<(File, OwnedFd, Vec<Entry>)> {
    let fds = line(lines)?;
    let (memory, pidfd) = fds.split_once(' ')?;
    let (memory, pidfd): (RawFd, RawFd) = (memory.parse().ok()?, pidfd.parse().ok()?);
    if memory <= 2 || pidfd <= 2 || memory == pidfd {
        return None;
    }
    // SAFETY: both were passed for this, and nothing else here knows of them.
    let (memory, pidfd) = unsafe { (File::from_raw_fd(memory), OwnedFd::from_raw_fd(pidfd)) };
    Some((memory, pidfd, entries(lines)?))
}

fn entries(lines: &mut impl io::BufRead) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    loop {
        let text = line(lines)?;
        if text == "arm" {
            return Some(entries);
        }
        let mut words = text.split(' ');
        let entry = Entry {
            address: u64::from_str_radix(words.next()?, 16).ok()?,
            len: words.next()?.parse().ok().filter(|len| matches!(len, 1 | 8))?,
            old: u64::from_str_radix(words.next()?, 16).ok()?,
            new: u64::from_str_radix(words.next()?, 16).ok()?,
        };
        if entries.len() >= MAX_ENTRIES {
            return None;
        }
        entries.push(entry);
    }
}

/// Until ctrace says so, or ends, or the process does.
fn wait(pidfd: &OwnedFd) {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls = [entry(0), entry(pidfd.as_raw_fd())];
    loop {
        // SAFETY: poll(2) on two initialised entries.
        let found = unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) };
        if found > 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// What ends ctrace must not end its watchdog.
fn deafen() {
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGTSTP,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ] {
        // SAFETY: signal(2) with a constant handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: prctl(2) with a string that ends with NUL: the name would be that of the link that was run.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"ctrace-watchdog".as_ptr()) };
    // The last one to be taken when memory is short: it has next to none. Without the right to ask for that, as any other.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Keeps nothing but the two descriptors: it needs no privilege for what they allow.
fn confine(memory: &File, pidfd: &OwnedFd) {
    let mut kept = [memory.as_raw_fd() as u32, pidfd.as_raw_fd() as u32];
    kept.sort_unstable();
    let [low, high] = kept;
    // SAFETY: close_range(2) of descriptors that nobody uses here; prctl(2) and setrlimit(2) with constants; capset(2) with zeroed
    // sets of the size that version 3 has.
    unsafe {
        for (first, last) in [
            (3, low.wrapping_sub(1)),
            (low + 1, high.wrapping_sub(1)),
            (high + 1, u32::MAX),
        ] {
            if first <= last {
                libc::syscall(libc::SYS_close_range, first, last, 0);
            }
        }
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        // _LINUX_CAPABILITY_VERSION_3, of this process; three sets of 64 bits.
        let (header, sets) = ([0x2008_0522u32, 0], [0u32; 6]);
        libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_word_is_told_and_heard() {
        let all = [
            Fate::Restored,
            Fate::Taken,
            Fate::Changed(0x97),
            Fate::Gone,
            Fate::Failed,
        ];
        for fate in all {
            assert_eq!(Fate::hear(&fate.say()), Some(fate));
        }
        for wrong in ["", "changed", "changed x", "armed"] {
            assert_eq!(Fate::hear(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_what_still_holds_what_was_written_is_put_back() {
        let own = open(std::process::id()).unwrap();
        let words = [5u64, 23, 97].map(std::cell::UnsafeCell::new);
        let entry = |at: usize| Entry {
            address: words[at].get() as u64,
            len: 8,
            old: 5,
            new: 23,
        };
        assert_eq!(restore(&own, &entry(0)), Fate::Taken);
        assert_eq!(restore(&own, &entry(1)), Fate::Restored);
        assert_eq!(restore(&own, &entry(2)), Fate::Changed(97));
        assert_eq!(
            restore(
                &own,
                &Entry {
                    address: 16,
                    ..entry(0)
                }
            ),
            Fate::Gone
        );
        // SAFETY: nobody else writes there.
        let now = words.map(|word| unsafe { std::ptr::read_volatile(word.get()) });
        assert_eq!(now, [5, 5, 97]);
    }

    #[test]
    fn orders_are_understood_whole_or_not_at_all() {
        let read = |text: &str| entries(&mut text.as_bytes());
        let wanted = Entry {
            address: 0xf2_1260,
            len: 8,
            old: 0,
            new: 0x6590,
        };
        assert_eq!(read("f21260 8 0 6590\narm\n"), Some(vec![wanted]));
        let many = "1000 1 0 1\n".repeat(MAX_ENTRIES + 1) + "arm\n";
        for wrong in [
            "",
            "f21260 8 0 6590\n",
            "1000 8 0\narm\n",
            "1000 4 0 1\narm\n",
            "x 8 0 1\narm\n",
            &many,
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
