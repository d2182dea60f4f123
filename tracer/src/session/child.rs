//! `ctrace -- COMMAND`: a child that waits until the probes are live, then becomes the command.

use std::{
    ffi::{CString, OsStr, OsString},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, process::ExitStatusExt as _},
    },
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// Status of a command that could not be started, as shells have it.
const NOT_FOUND: u8 = 127;
/// How long a command that was asked to end is waited for before ctrace leaves it to its own.
const PATIENCE: Duration = Duration::from_secs(2);

/// The command's process.
pub struct Child {
    pid: libc::pid_t,
    /// Writing a byte lets it go on.
    go: Option<std::fs::File>,
    /// Closed by the kernel when the exec succeeds; carries an errno when it fails.
    failure: std::fs::File,
    name: String,
    status: Option<ExitStatus>,
}

impl Child {
    /// Forks; the child waits. Under sudo it becomes the user who called sudo.
    pub fn spawn(command: &[OsString]) -> Result<Self> {
        let name = command
            .first()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let arguments = command
            .iter()
            .map(|argument| CString::new(argument.as_bytes()))
            .collect::<Result<Vec<_>, _>>()
            .context("an argument of the command holds a NUL byte")?;
        let pointers: Vec<*const libc::c_char> = arguments
            .iter()
            .map(|argument| argument.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        let caller = Caller::from_sudo(|name| std::env::var_os(name));
        let (wait, go) = pipe()?;
        let (failure, report) = pipe()?;
        // SAFETY: the process has one thread, so the child may do what it likes until it execs.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(io::Error::last_os_error()).context("cannot fork");
        }
        if pid == 0 {
            drop((go, failure));
            let error = become_command(&wait, &pointers, caller.as_ref());
            let number = error.raw_os_error().unwrap_or(libc::EIO);
            let _ = std::fs::File::from(report).write_all(&number.to_ne_bytes());
            // SAFETY: leaves without running destructors that belong to the parent.
            unsafe { libc::_exit(i32::from(NOT_FOUND)) };
        }
        Ok(Self {
            pid,
            go: Some(go.into()),
            failure: failure.into(),
            name,
            status: None,
        })
    }

    /// Its process id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid as u32
    }

    /// Lets it become the command; fails when that cannot be started.
    pub fn go(&mut self) -> Result<()> {
        if let Some(mut go) = self.go.take() {
            go.write_all(&[1]).context("the command's process is gone")?;
        }
        let mut number = [0; 4];
        if self.failure.read_exact(&mut number).is_ok() {
            let error = io::Error::from_raw_os_error(i32::from_ne_bytes(number));
            bail!("cannot start `{}`: {error}", self.name.escape_debug());
        }
        Ok(())
    }

    /// Its status: as it ended, or, where ctrace ends first, after it was asked to (SIGTERM).
    pub fn finish(&mut self) -> Result<ExitCode> {
        if !self.has_ended()? {
            // SAFETY: kill(2) of our own child, which is not reaped yet.
            unsafe { libc::kill(self.pid, libc::SIGTERM) };
            if !super::poll_until(|| self.has_ended(), PATIENCE)? {
                return Ok(ExitCode::SUCCESS);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let status = self.status.unwrap_or_default();
        let code = status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal))
            .unwrap_or(0);
        Ok(ExitCode::from(code as u8))
    }

    fn has_ended(&mut self) -> io::Result<bool> {
        if self.status.is_some() {
            return Ok(true);
        }
        let mut raw = 0;
        // SAFETY: waitpid(2) on our own child.
        match unsafe { libc::waitpid(self.pid, &raw mut raw, libc::WNOHANG) } {
            0 => Ok(false),
            pid if pid == self.pid => {
                self.status = Some(ExitStatus::from_raw(raw));
                Ok(true)
            }
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: pipe2(2) fills both entries.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error()).context("cannot make a pipe");
    }
    // SAFETY: two new descriptors that nobody else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// In the child: returns only when the command cannot be started.
fn become_command(wait: &OwnedFd, arguments: &[*const libc::c_char], caller: Option<&Caller>) -> io::Error {
    let mut byte = [0];
    // SAFETY: read(2) of one byte into a buffer of one.
    let got = unsafe { libc::read(wait.as_raw_fd(), byte.as_mut_ptr().cast(), 1) };
    if got != 1 {
        // ctrace died or failed before the probes were live.
        // SAFETY: as above, nothing of the parent's is destroyed.
        unsafe { libc::_exit(i32::from(NOT_FOUND)) };
    }
    // SAFETY: signal dispositions and mask back to their defaults, then the caller's identity, then exec; all arguments
    // are NUL-terminated and live until the end.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        if let Some(caller) = caller
            && (libc::initgroups(caller.name.as_ptr(), caller.gid) != 0
                || libc::setgid(caller.gid) != 0
                || libc::setuid(caller.uid) != 0)
        {
            return io::Error::last_os_error();
        }
        libc::execvp(arguments[0], arguments.as_ptr());
    }
    io::Error::last_os_error()
}

/// Who called sudo.
#[derive(Debug, PartialEq, Eq)]
struct Caller {
    name: CString,
    uid: libc::uid_t,
    gid: libc::gid_t,
}

impl Caller {
    /// From sudo's variables; `None` without sudo, or when root called it.
    fn from_sudo(variable: impl Fn(&OsStr) -> Option<OsString>) -> Option<Self> {
        let number = |name: &str| variable(OsStr::new(name))?.to_str()?.parse().ok();
        let (uid, gid) = (number("SUDO_UID")?, number("SUDO_GID")?);
        // SAFETY: geteuid(2) has no preconditions.
        if uid == 0 || unsafe { libc::geteuid() } != 0 {
            return None;
        }
        let name = CString::new(variable(OsStr::new("SUDO_USER"))?.as_bytes()).ok()?;
        Some(Self { name, uid, gid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_names_its_caller() {
        let environment = |name: &OsStr| match name.to_str()? {
            "SUDO_UID" | "SUDO_GID" => Some("1000".into()),
            "SUDO_USER" => Some("web".into()),
            _ => None,
        };
        // SAFETY: geteuid(2) has no preconditions.
        if unsafe { libc::geteuid() } == 0 {
            assert_eq!(
                Caller::from_sudo(environment).map(|caller| caller.uid),
                Some(1000)
            );
        }
        assert_eq!(Caller::from_sudo(|_| None), None);
    }
}
