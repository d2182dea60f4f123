//! Against programs of this machine's Go compilers: what they say of themselves.

use super::*;
use crate::testing::toolchains;

/// A running `golocks.go`.
struct Running(std::process::Child);

impl Running {
    fn start(program: &std::path::Path) -> Self {
        use std::io::{BufRead as _, BufReader};
        let piped = std::process::Stdio::piped;
        let mut child = std::process::Command::new(program)
            .stdin(piped())
            .stdout(piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("ready "), "{line}");
        Self(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Best effort: it ends by itself when its standard input does.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In programs of every version, however linked: probes lie on instructions that the kernel emulates, and the layouts are those of
/// Go's sources.
#[test]
fn every_version_has_its_places_for_probes() {
    use std::os::unix::fs::FileExt as _;
    let folder = tempfile::tempdir().unwrap();
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/golocks.go");
    for version in ["system"].into_iter().chain(toolchains::VERSIONS) {
        let Some(go) = toolchains::toolchain(version) else {
            crate::testing::skip(&format!("no Go {version} here: `cargo xtask test` fetches it"));
            continue;
        };
        for args in [&[][..], &["-buildmode=pie", "-ldflags=-s -w"]] {
            let path = folder.path().join("golocks");
            toolchains::build(&go, args, &path, &source).unwrap();
            let running = Running::start(&path);
            let program = program::Program::open(running.0.id()).unwrap();
            let memory = memory::Live::new(running.0.id());
            let found = sites::Sites::find(&memory, &program).unwrap();
            let file = std::fs::File::open(&path).unwrap();
            for site in [found.semacquire, found.ready, found.notify_wait.unwrap()] {
                let mut code = [0; 2];
                file.read_exact_at(&mut code, site.offset).unwrap();
                // push %rbp; jbe near and far
                let emulated = matches!(
                    (site.on_check, code),
                    (false, [0x55, _]) | (true, [0x76, _] | [0x0f, 0x86])
                );
                assert!(emulated, "Go {version} {args:?}: {site:?} {code:x?}");
            }
            assert_eq!(
                locks::LockLayout::find(&memory, &program),
                locks::LockLayout {
                    mutex: Some(4),
                    // Only by descriptor, which this program has none of.
                    writers: None,
                    writer: Some(8),
                    reader: Some(12),
                    wait_group: Some(8),
                    condition: Some(16),
                },
                "Go {version} {args:?}"
            );
        }
    }
}
