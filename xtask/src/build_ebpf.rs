//! `build-ebpf`: the probes, from source to the committed object.
//!
//! ```text
//! find a toolchain ─> compile and link ─> strip DWARF ─┬─> tracer/ebpf/ctrace-ARCH.bpf.o + manifest ─┬─> lint
//!                                                      └─> --check: the same bytes as committed? ────┘
//! ```
//! Lints come last and fail the verb: in the middle of work on a probe they do not withhold the object.
//!
//! The bytes depend on the sources, the locked crates, the flags and the toolchain, all of which the manifest
//! records, and on nothing of the machine: folders are mapped away.

use std::{env, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    manifest::{self, FLAGS, Manifest, REMEDY},
    shell,
    toolchain::Toolchain,
};

/// Build the eBPF object that `cargo build` embeds
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rebuild and compare with the committed object; change nothing
    #[arg(long)]
    check: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (root, arch) = (shell::root(), env::consts::ARCH);
    let (object_path, manifest_path) = (
        manifest::object_path(root, arch),
        manifest::manifest_path(root, arch),
    );
    let recorded = fs::read_to_string(&manifest_path)
        .ok()
        .and_then(|text| Manifest::parse(&text));

    let inputs = manifest::inputs(root).context("reading the probes' sources")?;
    if args.check {
        let recorded = recorded
            .as_ref()
            .with_context(|| format!("no manifest for {arch}; run: {REMEDY}"))?;
        let moved = recorded.moved(&inputs);
        ensure!(
            moved.is_empty(),
            "the object is older than its sources ({}); run: {REMEDY}",
            moved.join(", ")
        );
    }

    let toolchain = Toolchain::find(recorded.as_ref().map_or(&[], |recorded| &recorded.toolchain))?;
    println!(
        "probes by {}: {}",
        toolchain.compiler.name,
        toolchain.versions.join(", ")
    );
    if args.check
        && let Some(recorded) = &recorded
        && recorded.toolchain != toolchain.versions
    {
        bail!(
            "toolchain moved, rebuild the object: it was made by {}; run: {REMEDY}",
            recorded.toolchain.join(", ")
        );
    }

    let object = fs::read(compile(&toolchain, false)?)?;
    if args.check {
        let committed = fs::read(&object_path).with_context(|| format!("{}", object_path.display()))?;
        ensure!(
            committed == object,
            "the committed object is not what its sources give (sha256 {} there, {} here); run: {REMEDY}",
            manifest::sha256(&committed),
            manifest::sha256(&object)
        );
        println!(
            "{}: proven by rebuild, {} bytes",
            object_path.display(),
            object.len()
        );
        return Ok(());
    }
    fs::write(&object_path, &object).with_context(|| format!("{}", object_path.display()))?;
    fs::write(
        &manifest_path,
        text(&manifest::sha256(&object), &toolchain.versions, &inputs),
    )
    .with_context(|| format!("{}", manifest_path.display()))?;
    println!("{}: {} bytes", object_path.display(), object.len());
    lint(&toolchain)
}

/// The probes with the peers that `bench-probes` compares them with, built into the target folder.
pub(crate) fn with_peers() -> Result<PathBuf> {
    let recorded = fs::read_to_string(manifest::manifest_path(shell::root(), env::consts::ARCH))
        .ok()
        .and_then(|text| Manifest::parse(&text));
    compile(
        &Toolchain::find(recorded.as_ref().map_or(&[], |recorded| &recorded.toolchain))?,
        true,
    )
}

/// The feature of `tracer-ebpf` that adds the peers.
const PEERS: [&str; 2] = ["--features", "bench"];

/// Compiles, links and strips; where the object is.
fn compile(toolchain: &Toolchain, peers: bool) -> Result<PathBuf> {
    // The folder of the registry's sources must exist before it can be mapped away.
    shell::run(shell::cargo().args(["fetch", "--locked"]))?;
    let mut flags: Vec<String> = FLAGS.iter().map(ToString::to_string).collect();
    flags.extend(toolchain.remap());
    let mut build = toolchain.cargo("build", &flags)?;
    build.args(PEERS.iter().filter(|_| peers));
    shell::run(&mut build).context("compiling the probes")?;

    let folder = shell::target_dir().join("ebpf/bpfel-unknown-none/release");
    let stripped = folder.join(if peers {
        "ctrace-ebpf.peers"
    } else {
        "ctrace-ebpf.stripped"
    });
    toolchain.strip(&folder.join("ctrace-ebpf"), &stripped)?;
    Ok(stripped)
}

/// What clippy on the host cannot see: the code that exists only for the BPF target. Warnings are errors.
fn lint(toolchain: &Toolchain) -> Result<()> {
    if toolchain.clippy().is_none() {
        println!(
            "no clippy for {}: the probes get the compiler's warnings only",
            toolchain.compiler.name
        );
    }
    for peers in [false, true] {
        let mut check = toolchain.cargo("check", &["-Dwarnings".to_owned()])?;
        check.args(PEERS.iter().filter(|_| peers));
        if let Some(clippy) = toolchain.clippy() {
            check.env("RUSTC_WORKSPACE_WRAPPER", clippy);
        }
        shell::run(&mut check).context("lints of the probes")?;
    }
    Ok(())
}

/// The manifest as [`Manifest::parse`] reads it.
fn text(object: &str, toolchain: &[String], inputs: &[String]) -> String {
    let mut text = format!(
        "# What ctrace-{}.bpf.o was built from. Written by `{REMEDY}`.\n",
        env::consts::ARCH
    );
    let object = [format!("object {object}")];
    for line in object.iter().chain(toolchain).chain(inputs) {
        let _ = writeln!(text, "{line}");
    }
    text
}
