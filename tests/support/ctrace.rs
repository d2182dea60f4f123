//! Runs of `ctrace` and their reports.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;
use tracer::report::model::Report;

use super::process::Process;

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_ctrace");

/// A `ctrace` that traces: its probes are live.
pub(crate) struct Ctrace {
    process: Process,
    json: PathBuf,
    _folder: TempDir,
}

/// What an ended `ctrace` said.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ctrace {
    /// Traces this process until interrupted.
    pub(crate) fn attach(pid: u32) -> Self {
        Self::start(&["--pid", &pid.to_string()])
    }

    /// `ctrace --json FILE --no-tui ARGS…`, once it says that its probes are live.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[])
    }

    /// The same with variables added to its environment.
    pub(crate) fn start_with(args: &[&str], variables: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let json = folder.path().join("report.json");
        let mut command = Command::new(BINARY);
        command
            .arg("--json")
            .arg(&json)
            .arg("--no-tui")
            .args(args)
            .envs(variables.iter().copied());
        let mut process = Process::start(&mut command);
        if let Err(why) = process
            .stderr
            .wait("Tracing", |line| line.contains("Hit Ctrl-C to end."))
        {
            panic!("ctrace {args:?}: {why}\nstatus: {:?}", process.ended());
        }
        Self {
            process,
            json,
            _folder: folder,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Writes a line to its stdin, which a traced command shares.
    pub(crate) fn tell(&mut self, line: &str) {
        self.process.tell(line);
    }

    pub(crate) fn kill(mut self) {
        self.process.signal(libc::SIGKILL);
        self.process.wait();
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) {
        self.process.signal(libc::SIGINT);
    }

    /// Waits for its end, whatever the status.
    pub(crate) fn wait(&mut self) -> Ended {
        let status = self.process.wait();
        let stdout = self.process.stdout.all().join("\n");
        let stderr = self.process.stderr.all().join("\n");
        Ended {
            status,
            stdout,
            stderr,
        }
    }

    /// Waits for its end with status 0; the text and the validated report.
    pub(crate) fn wait_report(mut self) -> (Report, Ended) {
        let ended = self.wait();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
        (self.report(), ended)
    }

    /// Ctrl-C, then the validated report.
    pub(crate) fn interrupted(self) -> Report {
        self.interrupt();
        self.wait_report().0
    }

    /// Ctrl-C, then the report with what the types do not have.
    pub(crate) fn interrupted_document(self) -> Value {
        self.interrupt();
        self.ended_document()
    }

    /// Waits for its end by itself; the report with what the types do not have.
    pub(crate) fn ended_document(mut self) -> Value {
        let ended = self.wait();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
        self.document()
    }

    /// The JSON document, as the types have it.
    pub(crate) fn report(&self) -> Report {
        let report: Report = serde_json::from_value(self.document()).unwrap();
        // Silence about a healthy program proves something only when something listened.
        assert!(!report.probes.is_empty(), "the report names no probe");
        report
    }

    /// The JSON document after it passed the schema that `ctrace schema` prints.
    fn document(&self) -> Value {
        let text = fs::read_to_string(&self.json).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        let faults: Vec<String> = validator()
            .iter_errors(&document)
            .map(|fault| format!("{}: {fault}", fault.instance_path()))
            .take(10)
            .collect();
        assert!(faults.is_empty(), "the report breaks its schema: {faults:#?}");
        document
    }
}

/// Runs `ctrace ARGS…` to its end without waiting for it to trace.
pub(crate) fn run(command: &mut Command) -> Ended {
    let mut process = Process::start(command);
    let status = process.wait();
    let stdout = process.stdout.all().join("\n");
    let stderr = process.stderr.all().join("\n");
    Ended {
        status,
        stdout,
        stderr,
    }
}

fn validator() -> &'static jsonschema::Validator {
    static VALIDATOR: OnceLock<jsonschema::Validator> = OnceLock::new();
    VALIDATOR.get_or_init(|| {
        let ended = run(Command::new(BINARY).arg("schema"));
        assert!(ended.status.success(), "ctrace schema: {}", ended.stderr);
        let schema = serde_json::from_str(&ended.stdout).unwrap();
        jsonschema::validator_for(&schema).unwrap()
    })
}
