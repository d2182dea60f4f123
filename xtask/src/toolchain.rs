//! Finding, or installing, what compiles the probes.
//!
//! Two sources of a compiler that can build `core` for the BPF target:
//!
//! 1. rustup's nightly with the rust-src component: most developers' machines;
//! 2. Debian's rustc-web with rust-web-src: machines where rustup cannot fetch a toolchain. It is a stable
//!    compiler, so `RUSTC_BOOTSTRAP=1` opens `-Z build-std`.
//!
//! bpf-linker must be linked with the LLVM major that the compiler uses: an older one cannot read its bitcode.
//! So it is built once against `llvm-N-dev` and kept in the cache folder, never in the tree.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{apt, shell};

/// The newest linker known to work here.
const LINKER_VERSION: &str = "0.13.0";

/// What the compiler of the distribution is called here.
const DEBIAN: &str = "Debian rustc-web";

/// A compiler with the sources of its `core`.
pub(crate) struct Compiler {
    /// What a person calls it.
    pub(crate) name: &'static str,
    rustc: PathBuf,
    sysroot: PathBuf,
    clippy: Option<PathBuf>,
    /// First line of `rustc -vV` without the word rustc.
    version: String,
    llvm: String,
}

/// A compiler with a linker and a stripper.
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) compiler: Compiler,
    linker_dir: PathBuf,
    strip: PathBuf,
    /// The `key version` lines of the manifest.
    pub(crate) versions: Vec<String>,
}

impl Compiler {
    fn probe(name: &'static str, rustc: PathBuf) -> Option<Self> {
        let text = shell::output(Command::new(&rustc).arg("-vV"))?;
        let sysroot = PathBuf::from(shell::output(Command::new(&rustc).args(["--print", "sysroot"]))?);
        if !sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file()
        {
            return None;
        }
        let field = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key))
                .map(str::to_owned)
        };
        let clippy = Some(rustc.with_file_name("clippy-driver")).filter(|path| path.is_file());
        let (version, llvm) = (field("rustc ")?, field("LLVM version: ")?);
        Some(Self {
            name,
            rustc,
            sysroot,
            clippy,
            version,
            llvm,
        })
    }

    /// Every compiler of this machine that will do, best first.
    fn all() -> Vec<Self> {
        let nightly = shell::output(
            // Without the variable, rustup would start a download to answer.
            Command::new("rustup")
                .args(["which", "--toolchain", "nightly", "rustc"])
                .env("RUSTUP_AUTO_INSTALL", "0"),
        );
        let rustup = nightly.and_then(|path| Self::probe("rustup nightly", path.into()));
        let debian = Self::probe(DEBIAN, "/usr/bin/rustc".into());
        rustup.into_iter().chain(debian).collect()
    }

    fn llvm_major(&self) -> &str {
        self.llvm.split('.').next().unwrap_or(&self.llvm)
    }

    /// Where Debian keeps this compiler's LLVM.
    fn llvm_prefix(&self) -> PathBuf {
        PathBuf::from(format!("/usr/lib/llvm-{}", self.llvm_major()))
    }

    /// Is it the one that a manifest names?
    fn is(&self, recorded: &[String]) -> bool {
        recorded.contains(&self.version_line())
    }

    /// A name for `rustc -vV`'s line in the manifest.
    fn version_line(&self) -> String {
        format!("rustc {}", self.version)
    }
}

impl Toolchain {
    /// The machine's toolchain, completed if need be. The compiler of `recorded`, if it is here, goes first, so that
    /// a rebuild does not move the bytes without cause.
    pub(crate) fn find(recorded: &[String]) -> Result<Self> {
        let mut compilers = Compiler::all();
        if compilers.is_empty() {
            install_compiler()?;
            compilers = Compiler::all();
        } else if compilers
            .iter()
            .all(|compiler| compiler.name == DEBIAN && !compiler.is(recorded))
        {
            // Installed long ago: Debian's moves on within a release. What is here may still do.
            if let Err(error) = install_compiler() {
                eprintln!("xtask: {error:#}; going on with the compiler that is here");
            }
            compilers = Compiler::all();
        }
        compilers.sort_by_key(|compiler| !compiler.is(recorded));
        let compiler = compilers
            .into_iter()
            .next()
            .context("still no compiler with the sources of core")?;
        let linker = linker(&compiler)?;
        let strip = strip(&compiler)?;
        let version = |program: &Path| {
            let text = shell::output(Command::new(program).arg("--version"))?;
            let word = text
                .split_whitespace()
                .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
            Some(word.to_owned())
        };
        let versions = vec![
            compiler.version_line(),
            format!("llvm {}", compiler.llvm),
            format!(
                "bpf-linker {}",
                version(&linker).context("bpf-linker does not say its version")?
            ),
            format!(
                "llvm-strip {}",
                version(&strip).context("llvm-strip does not say its version")?
            ),
        ];
        let linker_dir = linker.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self {
            compiler,
            linker_dir,
            strip,
            versions,
        })
    }

    /// cargo set up to compile for the BPF target: no setting of the caller's reaches the bytes.
    pub(crate) fn cargo(&self, verb: &str, flags: &[String]) -> Result<Command> {
        let mut command = shell::cargo();
        for name in [
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "LD_LIBRARY_PATH",
            "CARGO_BUILD_TARGET",
        ] {
            command.env_remove(name);
        }
        command
            .arg(verb)
            .args([
                "--release",
                "--locked",
                "-Z",
                "build-std=core",
                "--target",
                "bpfel-unknown-none",
            ])
            .args(["--package", "tracer-ebpf", "--bin", "ctrace-ebpf", "--target-dir"])
            .arg(shell::target_dir().join("ebpf"))
            .env("PATH", shell::path_with(&self.linker_dir)?)
            .env("RUSTC", &self.compiler.rustc)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        // The workspace's profile may change for the user half's sake; the object's must not.
        for (key, value) in PROFILE {
            command.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
        }
        // Without it a stable cargo or compiler refuses -Z; a nightly one does not mind.
        command.env("RUSTC_BOOTSTRAP", "1");
        Ok(command)
    }

    /// The flags that keep this machine's folders out of the object.
    pub(crate) fn remap(&self) -> Vec<String> {
        let mut remaps = vec![(shell::root().to_owned(), ".")];
        // One folder per registry, named after its host: drop the name too.
        if let Some(home) = cargo_home() {
            let folders = home
                .join("registry/src")
                .read_dir()
                .into_iter()
                .flatten()
                .flatten();
            remaps.extend(folders.map(|folder| (folder.path(), "registry")));
        }
        let source = self.compiler.sysroot.join("lib/rustlib/src/rust");
        remaps.extend(source.canonicalize().map(|path| (path, "rust")));
        remaps.push((source, "rust"));
        remaps
            .iter()
            .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
            .collect()
    }

    /// The lints of this very compiler, if they are installed.
    pub(crate) fn clippy(&self) -> Option<&Path> {
        self.compiler.clippy.as_deref()
    }

    /// Drops DWARF and keeps BTF.
    pub(crate) fn strip(&self, from: &Path, to: &Path) -> Result<()> {
        shell::run(Command::new(&self.strip).arg("-g").arg("-o").args([to, from]))
    }
}

/// The object's own profile. One codegen unit: the order of several is not part of the contract.
const PROFILE: &[(&str, &str)] = &[
    ("CODEGEN_UNITS", "1"),
    ("DEBUG", "2"),
    ("DEBUG_ASSERTIONS", "false"),
    ("INCREMENTAL", "false"),
    ("LTO", "false"),
    ("OPT_LEVEL", "3"),
    ("OVERFLOW_CHECKS", "false"),
    ("PANIC", "abort"),
    ("STRIP", "none"),
];

fn cargo_home() -> Option<PathBuf> {
    let var = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    var("CARGO_HOME").or_else(|| Some(var("HOME")?.join(".cargo")))
}

fn install_compiler() -> Result<()> {
    apt::install(&["rustc-web", "rust-web-src", "rust-web-clippy"]).map_err(|error| {
        anyhow!(
            "no compiler here has the sources of core: {error:#}. \
             Or with rustup: rustup toolchain install nightly --component rust-src --component clippy"
        )
    })
}

/// The bpf-linker of the cache, built if it is not there; else one on PATH.
fn linker(compiler: &Compiler) -> Result<PathBuf> {
    let major = compiler.llvm_major();
    let prefix = compiler.llvm_prefix();
    let root = shell::cache_dir()?.join(format!("bpf-linker-{LINKER_VERSION}-llvm-{major}"));
    let cached = root.join("bin/bpf-linker");
    if cached.is_file() {
        return Ok(cached);
    }
    if !prefix.join("include/llvm").is_dir()
        && let Err(error) = apt::install(&[&format!("llvm-{major}-dev")])
    {
        if let Some(path) = shell::which("bpf-linker") {
            eprintln!("xtask: {} is used as it is: {error:#}", path.display());
            return Ok(path);
        }
        bail!(
            "bpf-linker for LLVM {major} is missing, and it cannot be built: {error:#}. \
             Or put a release of bpf-linker {LINKER_VERSION} on PATH"
        );
    }
    let feature = format!("llvm-{major}");
    shell::run(
        // Not in the workspace, whose settings are not the linker's.
        shell::cargo()
            .current_dir("/")
            .args([
                "install",
                "bpf-linker",
                "--locked",
                "--version",
                LINKER_VERSION,
                "--no-default-features",
            ])
            .args(["--features", &feature, "--root"])
            .arg(&root)
            .env("LLVM_PREFIX", &prefix)
            .env(format!("LLVM_SYS_{major}1_PREFIX"), &prefix)
            .env("PATH", shell::path_with(&prefix.join("bin"))?)
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTFLAGS"),
    )?;
    Ok(cached)
}

fn strip(compiler: &Compiler) -> Result<PathBuf> {
    let own = compiler.llvm_prefix().join("bin/llvm-strip");
    if own.is_file() {
        return Ok(own);
    }
    if let Some(path) = shell::which("llvm-strip") {
        return Ok(path);
    }
    apt::install(&[&format!("llvm-{}", compiler.llvm_major())]).context("llvm-strip is missing")?;
    Ok(own)
}
