//! Real servers: each in a folder of its own, on a free port of the loopback interface, stopped by pid.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::build::tool;
use super::process::Process;
use super::{require, until};

/// A server that stops its children before it ends.
pub(crate) struct Server {
    process: Process,
    stop: libc::c_int,
}

impl Server {
    /// Starts it and waits until it accepts connections.
    pub(crate) fn start(command: &mut Command, port: u16, stop: libc::c_int) -> Self {
        let mut server = Self {
            process: Process::start(command),
            stop,
        };
        until("server accepts connections", || {
            if let Some(status) = server.process.ended() {
                panic!("server ended: {status}: {:?}", server.process.stderr.all());
            }
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        server
    }

    /// Itself and its children.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let leader = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{leader}/task/{leader}/children")).unwrap();
        let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        std::iter::once(leader).chain(children).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.ended().is_none() {
            self.process.signal(self.stop);
            self.process.wait();
        }
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Where these programs are; `None` (said aloud) when one is not installed.
pub(crate) fn tools<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let paths = names.map(tool);
    for (name, path) in names.iter().zip(&paths) {
        if !require(path.is_some(), &format!("{name} is not installed")) {
            return None;
        }
    }
    Some(paths.map(Option::unwrap))
}

/// A folder that other users may enter: servers give up root.
pub(crate) fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Waits until `reading` stays the same for ten readings.
pub(crate) fn quiet<T: PartialEq>(what: &str, reading: impl Fn() -> T) -> T {
    let (mut last, mut same) = (reading(), 0);
    until(what, || {
        let now = reading();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same >= 10
    });
    last
}

/// A command run as this user: PostgreSQL refuses to run as root.
pub(crate) fn as_user(setpriv: &Path, user: (u32, u32), program: &Path) -> Command {
    let mut command = Command::new(setpriv);
    command.args([
        format!("--reuid={}", user.0),
        format!("--regid={}", user.1),
        "--clear-groups".to_owned(),
    ]);
    command.arg(program);
    command
}

/// The user `postgres`, or nobody.
pub(crate) fn postgres_user() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let fields = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|f| f[0] == "postgres");
    fields.map_or((65534, 65534), |f| (f[2].parse().unwrap(), f[3].parse().unwrap()))
}
