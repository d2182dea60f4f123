//! What a process is: from `/proc/PID`.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::PathBuf,
};

use crate::{report::model::Target, stacks::elf::Elf};

/// Most bytes read of any one file here: all are small unless somebody means ill.
const FILE_MAX: u64 = 1 << 20;
/// `PF_KTHREAD` in the flags of `/proc/PID/stat`.
const PF_KTHREAD: u64 = 0x0020_0000;
/// `PF_FORKNOEXEC`: forked, and no exec since.
const PF_FORKNOEXEC: u64 = 0x40;

/// Reads a file of `/proc` up to a bound; bytes that are no UTF-8 are replaced.
pub fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Fields of `/proc/PID/stat` (or of a thread's), see `proc_pid_stat(5)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name.
    pub comm: String,
    /// `R`, `S`, `D`, `Z`, ….
    pub state: char,
    /// `PF_*`.
    pub flags: u64,
    /// Threads.
    pub threads: u32,
    /// Start in clock ticks since boot: with the pid it names a process for good.
    pub start_ticks: u64,
}

impl Stat {
    /// It is a kernel thread.
    #[must_use]
    pub const fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// It was made by a fork and runs the program that it was forked from.
    #[must_use]
    pub const fn is_forked(&self) -> bool {
        self.flags & PF_FORKNOEXEC != 0
    }

    /// Of a process.
    pub fn of(pid: u32) -> io::Result<Self> {
        parse_stat(&read(&format!("/proc/{pid}/stat"))?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "strange /proc/PID/stat"))
    }

    /// Of a thread.
    pub fn of_thread(pid: u32, tid: u32) -> io::Result<Self> {
        parse_stat(&read(&format!("/proc/{pid}/task/{tid}/stat"))?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "strange /proc/PID/task/TID/stat"))
    }
}

/// The name may hold anything, brackets and spaces too: it ends at the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let comm = text.get(open + 1..close)?.to_owned();
    let mut fields = text.get(close + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3.
    let field = |number: usize| {
        text[close + 1..]
            .split_ascii_whitespace()
            .nth(number - 3)?
            .parse()
            .ok()
    };
    Some(Stat {
        comm,
        state,
        flags: field(9)?,
        threads: field(20)? as u32,
        start_ticks: field(22)?,
    })
}

/// `Tgid` of `/proc/ID/status`: the process that a thread id belongs to.
#[must_use]
pub fn tgid_of(id: u32) -> Option<u32> {
    read(&format!("/proc/{id}/status"))
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:"))?
        .trim()
        .parse()
        .ok()
}

/// Describes a process for the report. What cannot be read is `null`.
#[must_use]
pub fn describe(pid: u32) -> Target {
    let stat = Stat::of(pid).ok();
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let cmdline: Vec<String> = read(&format!("/proc/{pid}/cmdline"))
        .unwrap_or_default()
        .split('\0')
        .filter(|argument| !argument.is_empty())
        .take(256)
        .map(str::to_owned)
        .collect();
    let uid = read(&format!("/proc/{pid}/status")).ok().and_then(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))?
            .split_ascii_whitespace()
            .nth(1)?
            .parse()
            .ok()
    });
    Target {
        pid,
        comm: stat.as_ref().map(|stat| stat.comm.clone()).unwrap_or_default(),
        runtime: runtime(pid, exe.as_ref()),
        exe: exe.map(|exe| exe.to_string_lossy().into_owned()),
        cmdline,
        uid,
        container: read(&format!("/proc/{pid}/cgroup"))
            .ok()
            .and_then(|cgroup| container(&cgroup)),
        threads: stat.as_ref().map_or(0, |stat| stat.threads),
        started_at: stat.as_ref().and_then(|stat| started_at(stat.start_ticks)),
        exited: false,
    }
}

fn started_at(ticks: u64) -> Option<String> {
    let boot: u64 = read("/proc/stat")
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    // SAFETY: sysconf(3) reads a constant.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) })
        .ok()
        .filter(|&hz| hz > 0)?;
    let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(
        boot.checked_mul(1000)?
            .checked_add(ticks.checked_mul(1000)? / per_second)?,
    ))?;
    crate::report::time::rfc3339(at)
}

/// The id of a container in a cgroup path: the last run of 64 hex digits (docker, containerd, cri-o, podman).
fn container(cgroup: &str) -> Option<String> {
    cgroup
        .split(|c: char| !c.is_ascii_hexdigit())
        .rfind(|part| part.len() == 64)
        .map(str::to_owned)
}

/// Which runtime's rules and hints apply.
fn runtime(pid: u32, exe: Option<&PathBuf>) -> String {
    let name = exe
        .and_then(|exe| exe.file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    if name.starts_with("python") || name.starts_with("pypy") {
        return "python".into();
    }
    if ["node", "nodejs", "deno", "bun", "electron"].contains(&name) {
        return "node".into();
    }
    if name.starts_with("ruby") || name == "beam.smp" {
        return name.get(..4).unwrap_or_default().into();
    }
    let maps = read(&format!("/proc/{pid}/maps")).unwrap_or_default();
    if name == "java" || maps.contains("/libjvm.so") {
        return "jvm".into();
    }
    if name == "dotnet" || maps.contains("/libcoreclr.so") {
        return "dotnet".into();
    }
    if maps.contains("/libpython") {
        return "python".into();
    }
    go_version(pid).unwrap_or_else(|| "native".into())
}

/// Go binaries begin their build information with this (`debug/buildinfo`), aligned to 16 bytes in a data segment.
const GO_BUILD_INFO: &[u8] = b"\xff Go buildinf:";
/// Build information lies near the start of the data segment; so much of a file is searched at most.
const SEARCH_MAX: u64 = 64 << 20;

/// `go1.x` when the executable is a Go program; just `go` where the version is kept elsewhere, as before 1.18, or is none that was
/// released. That the bytes turn up is not enough: a program that looks for them has them, too.
fn go_version(pid: u32) -> Option<String> {
    let file = File::open(format!("/proc/{pid}/exe")).ok()?;
    let mut bytes = Vec::new();
    (&file).take(SEARCH_MAX).read_to_end(&mut bytes).ok()?;
    let mut places = (0..bytes.len()).step_by(16).filter(|&at| {
        bytes
            .get(at..)
            .is_some_and(|rest| rest.starts_with(GO_BUILD_INFO))
    });
    places.find_map(|at| match told_version(bytes.get(at..)?) {
        Some(version) => Some(version),
        None => Elf::parse(&file)?.is_go().then(|| "go".to_owned()),
    })
}

/// The version in build information, as it is kept since 1.18.
fn told_version(info: &[u8]) -> Option<String> {
    let inline = info.get(15)? & 2 != 0;
    let length = usize::from(*info.get(32)?);
    let version = std::str::from_utf8(info.get(33..33 + length)?).ok()?;
    let plain = version.starts_with("go1.") && version.bytes().all(|b| b.is_ascii_graphic());
    (inline && plain).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_brackets() {
        let stat = parse_stat("12 (a) R (b c) S 1 1 1 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 7 0 4242 0").unwrap();
        assert_eq!(
            (stat.comm.as_str(), stat.state, stat.threads, stat.start_ticks),
            ("a) R (b c", 'S', 7, 4242)
        );
        assert!(stat.is_kernel_thread());
        assert_eq!(parse_stat("12 (a"), None);
        assert_eq!(parse_stat(") ("), None);
    }

    #[test]
    fn we_are_a_native_process() {
        let me = describe(std::process::id());
        assert_eq!(me.runtime, "native");
        assert!(me.threads >= 1 && !me.exited && me.started_at.is_some());
    }

    #[test]
    fn versions_of_go_are_told_from_the_bytes_that_mark_them() {
        let info = |flags: u8, version: &[u8]| {
            let mut info = GO_BUILD_INFO.to_vec();
            info.extend([8, flags]);
            info.resize(32, 0);
            info.push(version.len() as u8);
            info.extend(version);
            info
        };
        assert_eq!(told_version(&info(2, b"go1.27.3")).as_deref(), Some("go1.27.3"));
        assert_eq!(
            told_version(&info(2, b"go1.26.6-X:nogreenteagc")).as_deref(),
            Some("go1.26.6-X:nogreenteagc")
        );
        assert_eq!(told_version(&info(0, b"go1.27.3")), None);
        assert_eq!(told_version(&info(2, b"devel go1.28")), None);
        assert_eq!(told_version(&info(2, b"go1.\x1b[2J")), None);
        assert_eq!(told_version(GO_BUILD_INFO), None);
    }

    #[test]
    fn container_ids_are_found_in_any_layout() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(
            container(&format!("0::/system.slice/docker-{id}.scope\n")),
            Some(id.clone())
        );
        assert_eq!(container(&format!("4:cpu:/kubepods/pod1/{id}\n")), Some(id));
        assert_eq!(container("0::/user.slice\n"), None);
    }
}
