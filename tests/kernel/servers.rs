//! Real servers under real load: the number of open descriptors is the kernel's, and nothing healthy leaks.
//!
//! Each server runs in a folder of its own, listens on a free port of the loopback interface only, and is stopped
//! by pid.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use tracer::report::model::{Report, Verdict};

use super::support::ctrace::run;
use super::support::server::{Server, as_user, folder, free_port, postgres_user, quiet, tools};
use super::support::{Ctrace, can_trace, until};

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
