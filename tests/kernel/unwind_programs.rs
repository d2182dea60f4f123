//! Stock programs for the truth table: each started, put under load while it is traced, and left blocked.

use std::any::Any;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::support::build::tool;
use super::support::ctrace::run;
use super::support::process::Process;
use super::support::server::{Server, as_user, folder, free_port, postgres_user};
use super::support::{Workload, require, until};

/// A started program.
pub(crate) struct Subject {
    pub(crate) pids: Vec<u32>,
    /// Makes it work for about a second, and leaves it blocked.
    pub(crate) load: Box<dyn FnOnce()>,
    /// What ends with it, in this order.
    _parts: Vec<Box<dyn Any>>,
}

/// A name and how it is started; None (said aloud) when it is not installed.
pub(crate) type Program = (&'static str, fn() -> Option<Subject>);

/// The rows of the table.
pub(crate) const PROGRAMS: &[Program] = &[
    ("nginx", nginx),
    ("redis-server", redis),
    ("postgres", postgres),
    ("mariadbd", mariadb),
    ("sqlite3", sqlite),
    ("haproxy", haproxy),
    ("memcached", memcached),
    ("curl", curl),
    ("git", git),
    ("bash", || zoo("zoo.sh")),
    ("perl", || zoo("zoo.pl")),
    ("ruby", || zoo("zoo.rb")),
    ("python3", || zoo("zoo.py")),
    ("node", || zoo("zoo.js")),
    ("java", || zoo("Zoo.java")),
    ("Go", || zoo("zoo.go")),
    ("Rust release", || zoo("zoo.rs")),
    ("C -O2", || zoo("zoo.c")),
    ("C++ throwing", || zoo("zoo.cpp")),
];

/// The distribution's own program if there is one, as others on PATH may be wrappers.
fn stock(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/sbin"].map(|folder| Path::new(folder).join(name));
    let found = folders
        .into_iter()
        .find(|path| path.is_file())
        .or_else(|| tool(name));
    require(found.is_some(), &format!("{name} is not installed"));
    found
}

/// A workload that waits in many ways, in its language.
fn zoo(source: &str) -> Option<Subject> {
    let workload = Workload::start(source, &[])?;
    let pids = vec![workload.pid];
    let shared = std::rc::Rc::new(std::cell::RefCell::new(workload));
    let working = std::rc::Rc::clone(&shared);
    Some(Subject {
        pids,
        load: Box::new(move || drop(working.borrow_mut().go())),
        _parts: vec![Box::new(shared)],
    })
}

/// Four clients each send a request and read something, again and again. The connections stay open until dropped.
fn clients(port: u16, request: &str, times: usize) -> Vec<TcpStream> {
    let client = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let mut reply = [0; 4096];
        for _ in 0..times {
            stream.write_all(request.as_bytes()).unwrap();
            assert!(stream.read(&mut reply).unwrap() > 0, "the server hung up");
        }
        stream
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

/// A server and its load: connections that stay open, as they do.
fn served(server: Server, port: u16, request: &'static str, rest: Vec<Box<dyn Any>>) -> Subject {
    let mut parts: Vec<Box<dyn Any>> = Vec::new();
    let pids = server.pids();
    parts.push(Box::new(server));
    parts.extend(rest);
    Subject {
        pids,
        load: Box::new(move || std::mem::forget(clients(port, request, 1000))),
        _parts: parts,
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: here\r\n\r\n";

fn nginx() -> Option<Subject> {
    let nginx = stock("nginx")?;
    let (folder, port) = (folder(), free_port());
    let config = format!(
        "daemon off; worker_processes 2; pid nginx.pid; error_log error.log; thread_pool default threads=2;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
         uwsgi_temp_path uwsgi; scgi_temp_path scgi; keepalive_requests 100000;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 'ok'; }} }} }}\n"
    );
    fs::write(folder.path().join("nginx.conf"), config).unwrap();
    let mut command = Command::new(nginx);
    command.arg("-p").arg(folder.path()).args(["-c", "nginx.conf"]);
    let server = Server::start(&mut command, port, libc::SIGTERM);
    // The workers are forked after the port is open.
    until("nginx has two workers", || server.pids().len() == 3);
    Some(served(server, port, GET, vec![Box::new(folder)]))
}

fn redis() -> Option<Subject> {
    let redis = stock("redis-server")?;
    let (folder, port) = (folder(), free_port());
    let mut command = Command::new(redis);
    let port_text = port.to_string();
    command.args(["--bind", "127.0.0.1", "--port", &port_text, "--save", "", "--dir"]);
    // The timer, ten times a second, would be found at work.
    let server = Server::start(
        command.arg(folder.path()).args(["--hz", "1"]),
        port,
        libc::SIGTERM,
    );
    Some(served(server, port, "SET a 1\r\n", vec![Box::new(folder)]))
}

fn haproxy() -> Option<Subject> {
    let haproxy = stock("haproxy")?;
    let (folder, port) = (folder(), free_port());
    let config = format!(
        "global\n nbthread 4\ndefaults\n mode http\n timeout client 600s\n timeout server 600s\n timeout connect 5s\n\
         frontend here\n bind 127.0.0.1:{port}\n http-request return status 200 content-type text/plain string ok\n"
    );
    let path = folder.path().join("haproxy.cfg");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(haproxy);
    let server = Server::start(command.arg("-db").arg("-f").arg(path), port, libc::SIGTERM);
    Some(served(server, port, GET, vec![Box::new(folder)]))
}

fn memcached() -> Option<Subject> {
    let memcached = stock("memcached")?;
    let port = free_port();
    let mut command = Command::new(memcached);
    command.args([
        "-u",
        "root",
        "-l",
        "127.0.0.1",
        "-t",
        "4",
        "-p",
        &port.to_string(),
    ]);
    let server = Server::start(&mut command, port, libc::SIGTERM);
    Some(served(server, port, "set a 0 0 1\r\nx\r\n", Vec::new()))
}

/// A client of a database, told statements by line.
struct Client(Process);

impl Client {
    fn start(command: &mut Command) -> Self {
        Self(Process::start(command))
    }

    /// Runs statements to their end.
    fn does(&mut self, statements: &str, times: usize) {
        for _ in 0..times {
            self.0.tell(statements);
        }
        self.0.tell("SELECT 'that' || ' is done';");
        let ended = self
            .0
            .stdout
            .wait("the client", |line| line.contains("that is done"));
        ended.unwrap_or_else(|why| panic!("{statements}: {why}; {:?}", self.0.stderr.all()));
    }
}

/// One session holds what another asks for.
fn postgres() -> Option<Subject> {
    let (postgres, initdb, psql) = (tool("postgres"), tool("initdb"), tool("psql"));
    let setpriv = stock("setpriv")?;
    if !require(
        postgres.is_some() && initdb.is_some() && psql.is_some(),
        "postgresql is not installed",
    ) {
        return None;
    }
    let (folder, port, user) = (folder(), free_port(), postgres_user());
    let data = folder.path().join("data");
    chown(folder.path(), Some(user.0), Some(user.1)).unwrap();
    let mut init = as_user(&setpriv, user, &initdb?);
    init.args(["--auth=trust", "--username=postgres", "--no-sync", "--pgdata"]);
    let ended = run(init.arg(&data).current_dir(folder.path()));
    assert!(ended.status.success(), "initdb: {}", ended.stderr);
    let mut command = as_user(&setpriv, user, &postgres?);
    let port_text = port.to_string();
    command.args([
        "-p",
        &port_text,
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        "autovacuum=off",
    ]);
    command
        .args(["-c", "deadlock_timeout=600s", "-k"])
        .arg(folder.path());
    let server = Server::start(
        command.arg("-D").arg(&data).current_dir(folder.path()),
        port,
        libc::SIGINT,
    );
    let psql = psql?;
    let client = || {
        let mut command = Command::new(&psql);
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &port_text,
        ]);
        command
    };
    until("the server takes queries", || {
        run(client().args(["-c", "SELECT 1"])).status.success()
    });
    let (mut holds, mut waits) = (Client::start(&mut client()), Client::start(&mut client()));
    holds.does("CREATE TABLE held (n int); BEGIN; LOCK TABLE held;", 1);
    waits.does("SELECT 1;", 1);
    let pids = server.pids();
    // Clients first, or the server waits for them.
    let waits = std::rc::Rc::new(std::cell::RefCell::new(waits));
    let parts: Vec<Box<dyn Any>> = vec![
        Box::new(std::rc::Rc::clone(&waits)),
        Box::new(holds),
        Box::new(server),
        Box::new(folder),
    ];
    Some(Subject {
        pids,
        load: Box::new(move || {
            let mut waits = waits.borrow_mut();
            waits.does("SELECT sum(n) FROM generate_series(1, 1000) n;", 300);
            waits.0.tell("LOCK TABLE held;");
        }),
        _parts: parts,
    })
}

/// The same by rows of `InnoDB`.
fn mariadb() -> Option<Subject> {
    let (server, install, client) = (
        stock("mariadbd")?,
        stock("mariadb-install-db")?,
        stock("mariadb")?,
    );
    let (folder, port) = (folder(), free_port());
    let data = format!("--datadir={}", folder.path().join("data").display());
    let socket = format!("--socket={}", folder.path().join("socket").display());
    let ended = run(Command::new(install)
        .args([
            "--no-defaults",
            "--user=root",
            "--auth-root-authentication-method=normal",
        ])
        .arg(&data));
    assert!(ended.status.success(), "mariadb-install-db: {}", ended.stderr);
    let mut command = Command::new(server);
    command.args([
        "--no-defaults",
        "--user=root",
        "--skip-grant-tables",
        "--bind-address=127.0.0.1",
    ]);
    command.args([
        &data,
        &socket,
        &format!("--port={port}"),
        "--innodb-lock-wait-timeout=600",
    ]);
    let server = Server::start(&mut command, port, libc::SIGTERM);
    let client = || {
        let mut command = Command::new(&client);
        command.args([
            "--no-defaults",
            "--batch",
            "--skip-column-names",
            "--unbuffered",
            &socket,
        ]);
        Client::start(command.args(["--init-command=SET SQL_MODE=PIPES_AS_CONCAT"]))
    };
    let (mut holds, mut waits) = (client(), client());
    holds.does(
        "CREATE DATABASE own; USE own; CREATE TABLE held (n int PRIMARY KEY, m int);",
        1,
    );
    holds.does(
        "INSERT INTO held VALUES (1, 1), (2, 2); BEGIN; UPDATE held SET m = 3 WHERE n = 1;",
        1,
    );
    waits.does("USE own;", 1);
    let pids = server.pids();
    let waits = std::rc::Rc::new(std::cell::RefCell::new(waits));
    let parts: Vec<Box<dyn Any>> = vec![
        Box::new(std::rc::Rc::clone(&waits)),
        Box::new(holds),
        Box::new(server),
        Box::new(folder),
    ];
    Some(Subject {
        pids,
        load: Box::new(move || {
            let mut waits = waits.borrow_mut();
            waits.does(
                "INSERT INTO held SELECT max(n) + 1, 0 FROM held WHERE n > 1;",
                200,
            );
            waits.0.tell("UPDATE held SET m = 4 WHERE n = 1;");
        }),
        _parts: parts,
    })
}

/// A shell that waits for another one's lock on the file, in a busy handler.
fn sqlite() -> Option<Subject> {
    let sqlite = stock("sqlite3")?;
    let folder = folder();
    let client = || Client::start(Command::new(&sqlite).arg(folder.path().join("db")));
    let (mut holds, mut waits) = (client(), client());
    holds.does("CREATE TABLE held (n int);", 1);
    waits.does("SELECT 1;", 1);
    let pids = vec![waits.0.pid()];
    let waits = std::rc::Rc::new(std::cell::RefCell::new(waits));
    let parts: Vec<Box<dyn Any>> = vec![Box::new(std::rc::Rc::clone(&waits)), Box::new(folder)];
    Some(Subject {
        pids,
        load: Box::new(move || {
            let mut waits = waits.borrow_mut();
            waits.does("INSERT INTO held VALUES (1); SELECT count(*) FROM held;", 50);
            holds.does("BEGIN EXCLUSIVE;", 1);
            waits.0.tell(".timeout 600000\nINSERT INTO held VALUES (2);");
            // It ends with the test.
            std::mem::forget(holds);
        }),
        _parts: parts,
    })
}

/// A client whose server answers, and at last does not.
fn curl() -> Option<Subject> {
    let curl = stock("curl")?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let process =
        Process::start(Command::new(curl).args(["-s", &format!("http://127.0.0.1:{port}/[1-1001]")]));
    let (mut stream, _) = listener.accept().unwrap();
    Some(Subject {
        pids: vec![process.pid()],
        load: Box::new(move || {
            let mut request = [0; 4096];
            for _ in 0..1000 {
                assert!(stream.read(&mut request).unwrap() > 0);
                let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                stream.write_all(reply).unwrap();
            }
            std::mem::forget(stream);
        }),
        _parts: vec![Box::new(process)],
    })
}

/// A child of git that is asked for objects.
fn git() -> Option<Subject> {
    let git = stock("git")?;
    let folder = folder();
    let git = |args: &[&str]| {
        let mut command = Command::new(&git);
        command.args(args).current_dir(folder.path());
        command
    };
    let commit = [
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        "first",
    ];
    for args in [&["init", "-q"][..], &commit] {
        let ended = run(&mut git(args));
        assert!(ended.status.success(), "git: {}", ended.stderr);
    }
    let mut process = Process::start(&mut git(&["cat-file", "--batch-check"]));
    process.tell("HEAD");
    process
        .stdout
        .wait("an answer", |line| line.contains("commit"))
        .unwrap();
    let pids = vec![process.pid()];
    let process = std::rc::Rc::new(std::cell::RefCell::new(process));
    let parts: Vec<Box<dyn Any>> = vec![Box::new(std::rc::Rc::clone(&process)), Box::new(folder)];
    Some(Subject {
        pids,
        load: Box::new(move || {
            let mut process = process.borrow_mut();
            for _ in 0..500 {
                process.tell("HEAD^{tree}");
                process
                    .stdout
                    .wait("an answer", |line| line.contains("tree"))
                    .unwrap();
            }
        }),
        _parts: parts,
    })
}
