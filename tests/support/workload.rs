//! A running workload and the words exchanged with it: `ready PID`, `go`, `truth KEY NUMBER`, `done`, `quit`.

use std::collections::BTreeMap;
use std::process::{Command, ExitStatus};

use tracer::report::model::Report;

use super::build;
use super::ctrace::Ctrace;
use super::process::Process;
use super::turn::require;

/// A workload that has said `ready`.
pub(crate) struct Workload {
    process: Process,
    /// The process to trace.
    pub(crate) pid: u32,
}

impl Workload {
    /// Builds and starts `tests/workloads/SOURCE`; `None` (said aloud) when its language is not installed.
    pub(crate) fn start(source: &str, args: &[&str]) -> Option<Self> {
        let command = Self::command(source, args)?;
        Some(Self::started(command))
    }

    /// The command that runs it.
    pub(crate) fn command(source: &str, args: &[&str]) -> Option<Command> {
        let built = match build::workload(source) {
            Ok(path) => path,
            Err(why) => {
                require(false, &format!("{source} cannot be built: {why}"));
                return None;
            }
        };
        let interpreter = match source.rsplit_once('.') {
            Some((_, "py")) => Some("python3"),
            Some((_, "java")) => Some("java"),
            Some((_, "js")) => Some("node"),
            Some((_, "pl")) => Some("perl"),
            Some((_, "rb")) => Some("ruby"),
            Some((_, "sh")) => Some("bash"),
            _ => None,
        };
        let mut command = match interpreter {
            None => Command::new(&built),
            Some(name) => {
                let path = build::tool(name);
                if !require(path.is_some(), &format!("{source} needs {name}")) {
                    return None;
                }
                Command::new(path?)
            }
        };
        match interpreter {
            Some("java") => command
                .arg("-cp")
                .arg(&built)
                .arg(source.trim_end_matches(".java")),
            Some(_) => command.arg(&built),
            None => &mut command,
        };
        command.args(args);
        Some(command)
    }

    /// Starts a command that speaks this protocol.
    pub(crate) fn started(mut command: Command) -> Self {
        let mut process = Process::start(&mut command);
        let ready = process.stdout.wait("ready", |line| line.starts_with("ready "));
        let ready = ready.unwrap_or_else(|why| panic!("{why}\nstderr: {:?}", process.stderr.all()));
        // An interpreter found through a wrapper may have started another process: its own word counts.
        let pid = ready["ready ".len()..].parse().unwrap();
        Self { process, pid }
    }

    /// The process that was started: a wrapper's, where there is one.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn tell(&mut self, word: &str) {
        self.process.tell(word);
    }

    /// Waits for a line.
    pub(crate) fn expect(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let line = self.process.stdout.wait(what, wanted);
        line.unwrap_or_else(|why| panic!("{why}"))
    }

    /// Says `go`, waits for `done`; what it knows to be true.
    pub(crate) fn go(&mut self) -> Truth {
        self.tell("go");
        self.finish()
    }

    /// Waits for `done`; what it knows to be true.
    pub(crate) fn finish(&mut self) -> Truth {
        let mut truth = BTreeMap::new();
        loop {
            let line = self.expect("truth or done", |line| {
                line == "done" || line.starts_with("truth ")
            });
            let Some(fact) = line.strip_prefix("truth ") else {
                return Truth(truth);
            };
            let (key, number) = fact.rsplit_once(' ').unwrap();
            truth.insert(key.to_owned(), number.parse().unwrap());
        }
    }

    /// Traced with these options from before `go` until after `done`; what it knows to be true.
    pub(crate) fn traced(mut self, options: &[&str]) -> (Report, Truth) {
        let pid = self.pid.to_string();
        let ctrace = Ctrace::start(&[&["--pid", &pid], options].concat());
        let truth = self.go();
        let report = ctrace.interrupted();
        self.quit();
        (report, truth)
    }

    /// Asks for its counts; what it knows to be true by now.
    pub(crate) fn counts(&mut self) -> Truth {
        self.tell("count");
        self.finish()
    }

    /// Ends a Go program by the signal on which its runtime accounts for all goroutines; that account.
    pub(crate) fn account(mut self) -> String {
        self.process.signal(libc::SIGQUIT);
        self.process.wait();
        self.process.stderr.all().join("\n")
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Ends it in the midst of its work.
    pub(crate) fn kill(&mut self) {
        self.process.signal(libc::SIGKILL);
        self.process.wait();
    }

    /// Says `quit` and waits for its end.
    pub(crate) fn quit(mut self) {
        self.tell("quit");
        self.process.wait();
    }
}

/// What a workload knows to be true.
#[derive(Debug)]
pub(crate) struct Truth(BTreeMap<String, u64>);

impl Truth {
    /// A number that not every run has.
    pub(crate) fn find(&self, key: &str) -> Option<u64> {
        self.0.get(key).copied()
    }

    /// All of it, by key.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(key, &number)| (key.as_str(), number))
    }

    /// What the output of an ended workload says.
    pub(crate) fn of(output: &str) -> Self {
        let facts = output.lines().filter_map(|line| line.strip_prefix("truth "));
        let facts = facts.filter_map(|fact| fact.rsplit_once(' '));
        Self(
            facts
                .map(|(key, number)| (key.to_owned(), number.parse().unwrap()))
                .collect(),
        )
    }

    pub(crate) fn get(&self, key: &str) -> u64 {
        *self
            .0
            .get(key)
            .unwrap_or_else(|| panic!("no truth {key} in {self:?}"))
    }
}
