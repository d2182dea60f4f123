//! `lint`: formatting, clippy and the documentation, warnings as errors.

use anyhow::Result;

use crate::shell;

/// rustfmt, clippy and rustdoc over the workspace, warnings as errors
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this one
    #[arg(long, value_enum)]
    only: Option<Lint>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Lint {
    Fmt,
    Clippy,
    Docs,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = |lint| args.only.is_none_or(|only| only == lint);
    if wanted(Lint::Fmt) {
        shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    }
    if wanted(Lint::Clippy) {
        shell::run(shell::cargo().args([
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "-Dwarnings",
        ]))?;
    }
    if wanted(Lint::Docs) {
        shell::run(
            shell::cargo()
                .args([
                    "doc",
                    "--locked",
                    "--workspace",
                    "--no-deps",
                    "--document-private-items",
                ])
                .env("RUSTDOCFLAGS", "-Dwarnings"),
        )?;
    }
    Ok(())
}
