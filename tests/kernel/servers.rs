//! Real servers under real load: the number of open descriptors is the kernel's, and nothing healthy leaks.
//!
//! Each server runs in a folder of its own, listens on a free port of the loopback interface only, and is stopped
//! by pid.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tracer::report::model::{Report, Verdict};

use super::support::build::tool;
use super::support::ctrace::run;
use super::support::process::Process;
use super::support::{Ctrace, can_trace, require, until};

/// A server that stops its children before it ends.
struct Server {
    process: Process,
    stop: libc::c_int,
}

impl Server {
    /// Starts it and waits until it accepts connections.
    fn start(command: &mut Command, port: u16, stop: libc::c_int) -> Self {
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
    fn pids(&self) -> Vec<u32> {
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
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Where these programs are; `None` (said aloud) when one is not installed.
fn tools<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let paths = names.map(tool);
    for (name, path) in names.iter().zip(&paths) {
        if !require(path.is_some(), &format!("{name} is not installed")) {
            return None;
        }
    }
    Some(paths.map(Option::unwrap))
}

/// A folder that other users may enter: servers give up root.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Traces the server and its children while `load` runs, and checks the descriptors once it is quiet again.
fn check(server: &Server, load: &mut Command) {
    let pids = quiet("server has settled", || server.pids());
    let mut args = vec!["--follow".to_owned()];
    args.extend(pids.iter().map(|pid| format!("--pid={pid}")));
    let ctrace = Ctrace::start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let ended = run(load);
    assert!(ended.status.success(), "load: {}\n{}", ended.stdout, ended.stderr);
    println!("{}", ended.stdout);
    let open = || pids.iter().map(|pid| open_descriptors(*pid)).sum::<u64>();
    until("backends are gone", || server.pids() == pids);
    let last = quiet("clients are gone", open);
    let report = ctrace.interrupted();
    assert_eq!(open(), last, "the server is not quiet");
    assert_descriptors(&report);
}

/// Waits until `reading` stays the same for ten readings.
fn quiet<T: PartialEq>(what: &str, reading: impl Fn() -> T) -> T {
    let (mut last, mut same) = (reading(), 0);
    until(what, || {
        let now = reading();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same >= 10
    });
    last
}

fn open_descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64
}

fn assert_descriptors(report: &Report) {
    let fds = report.fds.as_ref().unwrap();
    let alive = report.targets.iter().filter(|target| !target.exited);
    let open: u64 = alive.map(|target| open_descriptors(target.pid)).sum();
    assert_eq!(fds.open_at_end, open, "open at the end");
    assert!(fds.opened > 0, "a server under load opens descriptors");
    let leaking = fds.by_stack.iter().find(|row| row.verdict == Verdict::Leaking);
    assert!(leaking.is_none(), "a healthy server leaks nothing: {leaking:?}");
    println!(
        "descriptors: {open} open, {} opened, {} closed, {:?}",
        fds.opened, fds.closed, report.losses
    );
}

/// nginx, two workers, keep-alive connections.
#[test]
fn nginx_descriptors_balance() {
    let Some(_turn) = can_trace() else { return };
    let Some([nginx, wrk]) = tools(["nginx", "wrk"]) else {
        return;
    };
    let (folder, port) = (folder(), free_port());
    let config = format!(
        "daemon off; worker_processes 2; pid nginx.pid; error_log error.log;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
         uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 'ok'; }} }} }}\n"
    );
    fs::write(folder.path().join("nginx.conf"), config).unwrap();
    let mut command = Command::new(nginx);
    command.arg("-p").arg(folder.path()).args(["-c", "nginx.conf"]);
    let server = Server::start(&mut command, port, libc::SIGTERM);
    check(
        &server,
        Command::new(wrk)
            .args(["-t1", "-c16", "-d8s"])
            .arg(format!("http://127.0.0.1:{port}/")),
    );
}

/// redis, with a connection per request as well as kept ones.
#[test]
fn redis_descriptors_balance() {
    let Some(_turn) = can_trace() else { return };
    let Some([redis, benchmark]) = tools(["redis-server", "redis-benchmark"]) else {
        return;
    };
    let (folder, port) = (folder(), free_port());
    let port_text = port.to_string();
    let mut command = Command::new(redis);
    command
        .args(["--bind", "127.0.0.1", "--port", &port_text, "--save", "", "--dir"])
        .arg(folder.path());
    let server = Server::start(&mut command, port, libc::SIGTERM);
    let mut load = Command::new(benchmark);
    // -k 0: a connection per request.
    load.args([
        "-h",
        "127.0.0.1",
        "-p",
        &port_text,
        "-q",
        "-c",
        "16",
        "-n",
        "20000",
        "-k",
        "0",
        "-t",
        "set,get",
    ]);
    check(&server, &mut load);
}

/// A command run as this user: PostgreSQL refuses to run as root.
fn as_user(setpriv: &Path, user: (u32, u32), program: &Path) -> Command {
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
fn postgres_user() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let fields = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|f| f[0] == "postgres");
    fields.map_or((65534, 65534), |f| (f[2].parse().unwrap(), f[3].parse().unwrap()))
}

/// PostgreSQL: a process per connection, so descriptors are inherited, made and closed across forks.
#[test]
fn postgres_descriptors_balance() {
    let Some(_turn) = can_trace() else { return };
    let names = ["postgres", "initdb", "pgbench", "setpriv"];
    let Some([postgres, initdb, pgbench, setpriv]) = tools(names) else {
        return;
    };
    let (folder, port, user) = (folder(), free_port(), postgres_user());
    let port_text = port.to_string();
    let data = folder.path().join("data");
    chown(folder.path(), Some(user.0), Some(user.1)).unwrap();
    let mut init = as_user(&setpriv, user, &initdb);
    init.args(["--auth=trust", "--username=postgres", "--no-sync", "--pgdata"])
        .arg(&data);
    // Where the user may look: initdb and the server return to where they were started.
    let ended = run(init.current_dir(folder.path()));
    assert!(ended.status.success(), "initdb: {}", ended.stderr);

    let mut command = as_user(&setpriv, user, &postgres);
    command.args([
        "-p",
        &port_text,
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        "autovacuum=off",
        "-k",
    ]);
    command
        .arg(folder.path())
        .arg("-D")
        .arg(&data)
        .current_dir(folder.path());
    // SIGINT: fast shutdown, which does not wait for clients.
    let server = Server::start(&mut command, port, libc::SIGINT);
    let client = |args: &[&str]| {
        let mut command = Command::new(&pgbench);
        command
            .args(["-h", "127.0.0.1", "-p", &port_text, "-U", "postgres"])
            .args(args)
            .arg("postgres");
        command
    };
    // It listens before it has recovered.
    until("the server takes queries", || {
        run(&mut client(&["-i", "-q", "-s", "1"])).status.success()
    });
    check(&server, &mut client(&["-n", "-T", "30", "-c", "4", "-S", "-C"]));
}
