//! What the committed eBPF object was built from, and how to tell that it no longer is.
//!
//! One file, two users: `cargo xtask build-ebpf` writes the manifest, `tracer/build.rs` checks it. Both include it
//! by path, since neither may depend on the other. A manifest is lines of `key value`:
//!
//! ```text
//! object <sha256>                  of the object beside it
//! rustc 1.96.0 (…)                 and `llvm`, `bpf-linker`, `llvm-strip`: the toolchain that made the bytes
//! flag -Ctarget-cpu=v3             one line for each of `FLAGS`
//! crate aya-ebpf 0.2.1             every locked crate that is linked in
//! source <sha256> tracer-ebpf/…    every source file
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// The command that mends every disagreement this file can find.
pub const REMEDY: &str = "cargo xtask build-ebpf";

/// Compiler flags that decide the bytes. `--btf` and full debuginfo are what `bpf_loop` callbacks need to load;
/// v3 has the 32-bit jumps and every kernel with BTF knows it.
pub const FLAGS: &[&str] = &[
    "-Clinker=bpf-linker",
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    "-Ctarget-cpu=v3",
];

/// Where the committed object for `arch` (as in `CARGO_CFG_TARGET_ARCH`) lies.
pub fn object_path(root: &Path, arch: &str) -> PathBuf {
    root.join(format!("tracer/ebpf/ctrace-{arch}.bpf.o"))
}

/// Where its manifest lies.
pub fn manifest_path(root: &Path, arch: &str) -> PathBuf {
    root.join(format!("tracer/ebpf/ctrace-{arch}.manifest"))
}

/// The object's hash and inputs. Lines are compared as text: nothing in them has a second spelling.
#[derive(Debug, PartialEq, Eq)]
pub struct Manifest {
    /// sha256 of the object.
    pub object: String,
    /// `rustc …`, `llvm …`, `bpf-linker …`, `llvm-strip …`.
    pub toolchain: Vec<String>,
    /// `flag …`, `crate …`, `source …`, in the order of [`inputs`].
    pub inputs: Vec<String>,
}

impl Manifest {
    /// Reads the text form. `None` when there is no `object` line.
    pub fn parse(text: &str) -> Option<Self> {
        let mut manifest = Self {
            object: String::new(),
            toolchain: Vec::new(),
            inputs: Vec::new(),
        };
        for line in text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        {
            match line.split_once(' ') {
                Some(("object", hash)) => hash.clone_into(&mut manifest.object),
                Some(("flag" | "crate" | "source", _)) => manifest.inputs.push(line.to_owned()),
                _ => manifest.toolchain.push(line.to_owned()),
            }
        }
        (!manifest.object.is_empty()).then_some(manifest)
    }

    /// The inputs that `now` has and the object was not built from, or the reverse; empty when it is current.
    pub fn moved(&self, now: &[String]) -> Vec<String> {
        let gone = self.inputs.iter().filter(|line| !now.contains(line));
        let new = now.iter().filter(|line| !self.inputs.contains(line));
        let mut names: Vec<String> = gone.chain(new).map(|line| name(line)).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// What a reader wants of an input line: the path or the crate, not the hash.
fn name(line: &str) -> String {
    let mut words = line.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some("source"), _, Some(path)) => path.to_owned(),
        (Some("crate"), Some(name), _) => name.to_owned(),
        _ => line.to_owned(),
    }
}

/// Every input of the object as it is in the tree now.
pub fn inputs(root: &Path) -> io::Result<Vec<String>> {
    let mut lines: Vec<String> = FLAGS.iter().map(|flag| format!("flag {flag}")).collect();
    lines.extend(locked_crates(&fs::read_to_string(root.join("Cargo.lock"))?));
    for path in sources(root)? {
        lines.push(format!("source {} {path}", sha256(&fs::read(root.join(&path))?)));
    }
    Ok(lines)
}

/// Source files that go into the object, relative to the workspace, sorted.
pub fn sources(root: &Path) -> io::Result<Vec<String>> {
    let mut found = vec!["tracer-ebpf/Cargo.toml".to_owned()];
    let mut folders = vec!["tracer-ebpf/src".to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = format!("{folder}/{}", entry.file_name().display());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if Path::new(&path)
                .extension()
                .is_some_and(|extension| extension == "rs")
            {
                // Editors leave other files behind for a moment; only Rust is compiled.
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// `crate name version` for the locked crates that are compiled into the object.
fn locked_crates(lock: &str) -> Vec<String> {
    let quoted = |line: &str, key: &str| {
        line.strip_prefix(key)?
            .strip_prefix(" = \"")?
            .strip_suffix('"')
            .map(str::to_owned)
    };
    let mut found = Vec::new();
    let mut package = String::new();
    for line in lock.lines() {
        if let Some(name) = quoted(line, "name") {
            package = name;
        } else if let Some(version) = quoted(line, "version")
            && (package.starts_with("aya-ebpf") || package.starts_with("aya-log-"))
        {
            found.push(format!("crate {package} {version}"));
        }
    }
    found
}

/// sha256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
