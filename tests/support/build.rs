//! Builds workloads, each once until its source or command changes.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the sources are.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads")
}

/// The target directory of this build.
fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// Path of the built workload; `source` names a file of `tests/workloads`. `Err` says which compiler is missing.
pub(crate) fn workload(source: &str) -> Result<PathBuf, String> {
    let path = sources().join(source);
    let (stem, extension) = source.rsplit_once('.').unwrap();
    let name = format!("{stem}-{extension}");
    match extension {
        "c" => compiled(&name, &path, "gcc", &c_flags(&["-std=gnu11"])),
        "cpp" => compiled(&name, &path, "g++", &c_flags(&["-std=c++17"])),
        "java" => compiled(&name, &path, "javac", &["-g"]),
        "py" | "js" | "pl" | "rb" | "sh" => Ok(path),
        "go" => compiled(&name, &path, "go", &["build"]),
        // As released: with the linker and the optimisations that rustc gives by itself.
        "rs" if ["zoo", "deadlock", "prices", "fanout"].contains(&stem) => {
            compiled(&name, &path, "rustc", &["--edition=2024", "-O"])
        }
        "rs" => example(stem),
        other => panic!("no compiler for .{other}"),
    }
}

/// A shared library of `tests/workloads/SOURCE`, built with `-D DEFINE`.
pub(crate) fn library(source: &str, define: &str) -> Result<PathBuf, String> {
    let define = format!("-D{define}");
    let name = format!("{source}{define}.so");
    let flags = c_flags(&["-std=gnu11", "-shared", "-fPIC", &define]);
    compiled(&name, &sources().join(source), "gcc", &flags)
}

/// Optimised as in production, with line tables, and with every call a call: a jump in its place would leave no
/// frame to find.
fn c_flags<'a>(dialect: &[&'a str]) -> Vec<&'a str> {
    let mut flags = vec![
        "-O2",
        "-g",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-fno-optimize-sibling-calls",
    ];
    flags.extend(dialect);
    flags
}

/// A Go workload of several files, the folder `tests/workloads/SOURCE`, built by a version of Go; `variant` names the
/// flags. Go itself knows when there is nothing to do. `Err` says what is missing.
pub(crate) fn go(source: &str, version: &str, variant: &str, flags: &[&str]) -> Result<PathBuf, String> {
    let toolchain = super::go::toolchain(version);
    let toolchain = toolchain.ok_or_else(|| format!("no Go {version}: cargo xtask test fetches it"))?;
    let folder = target().join("workloads");
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join(".lock")).unwrap();
    lock.lock().unwrap();

    let output = folder.join(format!("{source}-go{version}-{variant}"));
    let built = super::go::build(&toolchain, flags, &output, &sources().join(source));
    built.unwrap_or_else(|why| panic!("Go {version} {flags:?} {source}:\n{why}"));
    Ok(output)
}

/// A C workload built with more flags, which `variant` names.
pub(crate) fn variant(
    source: &str,
    variant: &str,
    compiler: &str,
    flags: &[&str],
) -> Result<PathBuf, String> {
    let name = format!("{}-{variant}", source.replace('.', "-"));
    let flags = [&c_flags(&["-std=gnu11"])[..], flags].concat();
    compiled(&name, &sources().join(source), compiler, &flags)
}

/// Compiles unless the stamp shows that the same command made the output from the same text.
fn compiled(name: &str, source: &Path, compiler: &str, flags: &[&str]) -> Result<PathBuf, String> {
    let folder = target().join("workloads");
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join(".lock")).unwrap();
    lock.lock().unwrap();

    let output = folder.join(name);
    let stamp = folder.join(format!("{name}.stamp"));
    let header = fs::read_to_string(sources().join("workload.h")).unwrap();
    let text = fs::read_to_string(source).map_err(|error| format!("{}: {error}", source.display()))?;
    let wanted = format!("{compiler} {flags:?}\n{header}\n{text}");
    if output.exists() && fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == wanted) {
        return Ok(output);
    }

    let mut command = Command::new(compiler);
    command.args(flags);
    // javac writes classes into a folder, the others one file.
    let to = if compiler == "javac" { "-d" } else { "-o" };
    let result = command.arg(to).arg(&output).arg(source).output();
    let result = result.map_err(|error| format!("{compiler}: {error}"))?;
    assert!(
        result.status.success(),
        "{compiler} {name}:\n{}",
        String::from_utf8_lossy(&result.stderr)
    );
    fs::write(stamp, wanted).unwrap();
    Ok(output)
}

/// A Rust workload: an example of this package, so that it may use its dev-dependencies.
fn example(name: &str) -> Result<PathBuf, String> {
    let result = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--example", name, "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    assert!(
        result.status.success(),
        "example {name}:\n{}",
        String::from_utf8_lossy(&result.stderr)
    );
    Ok(target().join("debug/examples").join(name))
}

/// First of the folders of `PATH`, and of those where Debian keeps servers, that has `name`.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    folders.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}
