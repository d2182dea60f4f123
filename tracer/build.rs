//! Embeds the committed eBPF object, after proving that it was built from the sources beside it.
//!
//! No BPF toolchain is needed here: `cargo build` works with stable Rust alone. The object goes to
//! `$OUT_DIR/ctrace.bpf.o`, for `include_bytes_aligned!`. `CTRACE_EBPF_OBJECT=path` embeds that file instead,
//! unchecked: it is how a packager or a probe's author brings an object of their own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[path = "ebpf/manifest.rs"]
#[expect(unreachable_pub, reason = "shared with xtask")]
mod manifest;

use manifest::{Manifest, REMEDY};

const OVERRIDE: &str = "CTRACE_EBPF_OBJECT";

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let object = match env::var_os(OVERRIDE) {
        Some(path) if path.is_empty() => {
            return Err(format!("{OVERRIDE} is set but empty; unset it, or run: {REMEDY}"));
        }
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(&path).map_err(|error| {
                format!(
                    "{OVERRIDE}={}: {error}; unset it, or run: {REMEDY}",
                    path.display()
                )
            })?
        }
        None => committed()?,
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("ctrace.bpf.o");
    fs::write(&out, object).map_err(|error| format!("{}: {error}", out.display()))
}

/// The committed object for the target, if it is what its manifest says and the sources are still the same.
fn committed() -> Result<Vec<u8>, String> {
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?);
    let root = folder.parent().ok_or("the package lies in the workspace")?;
    let arch =
        env::var("CARGO_CFG_TARGET_ARCH").map_err(|error| format!("CARGO_CFG_TARGET_ARCH: {error}"))?;
    let (object_path, manifest_path) = (
        manifest::object_path(root, &arch),
        manifest::manifest_path(root, &arch),
    );
    for path in [
        &object_path,
        &manifest_path,
        &root.join("Cargo.lock"),
        &root.join("tracer-ebpf"),
    ] {
        println!("cargo::rerun-if-changed={}", path.display());
    }

    let object = read(&object_path)?;
    let text = String::from_utf8(read(&manifest_path)?).map_err(|error| broken(&manifest_path, &error))?;
    let recorded = Manifest::parse(&text).ok_or_else(|| broken(&manifest_path, &"no object line"))?;
    if recorded.object != manifest::sha256(&object) {
        return Err(broken(&object_path, &"not the object of its manifest"));
    }
    let now = manifest::inputs(root).map_err(|error| broken(&root.join("tracer-ebpf"), &error))?;
    let moved = recorded.moved(&now);
    if moved.is_empty() {
        return Ok(object);
    }
    Err(format!(
        "the eBPF object is older than its sources ({}); run: {REMEDY}",
        moved.join(", ")
    ))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| broken(path, &error))
}

fn broken(path: &Path, what: &dyn std::fmt::Display) -> String {
    format!("{}: {what}; run: {REMEDY}", path.display())
}
