//! `demo`: ctrace on a service with one contended lock and one leak, in one command.
//!
//! ```text
//! cargo build --release (stable Rust alone) ─> start the service ─> ctrace --pid N for 5 s ─> report ─> stop it
//! ```

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// Build ctrace, trace a service with a contended lock and a descriptor leak, print the report
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long to trace, as ctrace reads it
    #[arg(long, default_value = "5")]
    duration: String,
    /// More options for ctrace
    #[arg(last = true)]
    options: Vec<String>,
}

/// Stops the service however the demo ends.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to stop.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    shell::run(shell::cargo().args([
        "build",
        "--locked",
        "--release",
        "--package",
        "tracer",
        "--bin",
        "ctrace",
    ]))?;
    let release = shell::target_dir().join("release");
    let program = service(&release)?;
    let child = Command::new(&program).stdin(Stdio::null()).spawn();
    let mut service = Service(child.with_context(|| format!("cannot start {}", program.display()))?);
    // Attach to a service at work, not to one that is starting.
    thread::sleep(Duration::from_millis(500));
    if let Some(status) = service.0.try_wait()? {
        bail!("{} ended at once with {status}", program.display());
    }

    let mut ctrace = shell::as_root(release.join("ctrace"))?;
    ctrace.args([
        "--pid",
        &service.0.id().to_string(),
        "--duration",
        &args.duration,
        "--no-tui",
    ]);
    ctrace.args(&args.options);
    eprintln!("$ {}", shell::words(&ctrace));
    // stdin stays: sudo may ask.
    let status = ctrace
        .status()
        .with_context(|| format!("cannot start {}", ctrace.get_program().display()))?;
    if !status.success() {
        bail!("ctrace ended with {status}");
    }
    Ok(())
}

/// Builds the service: by the compiler alone, as an example of the package would have all that its tests need built first.
fn service(release: &Path) -> Result<PathBuf> {
    let program = release.join("ctrace-demo-service");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let source = shell::root().join("tests/workloads/demo.rs");
    let mut command = Command::new(rustc);
    command.args(["--edition=2024", "-O", "-C", "debuginfo=1", "-o"]);
    shell::run(command.arg(&program).arg(source).current_dir(shell::root()))?;
    Ok(program)
}
