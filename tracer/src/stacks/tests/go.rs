//! Names of Go code against the Go runtime's own word for it.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::toolchains;
use crate::stacks::elf::Elf;
use crate::stacks::pclntab::Pclntab;
use crate::testing::skip;

/// How programs are linked, and what becomes of the file.
const BUILDS: [(&str, &[&str]); 5] = [
    ("plain", &[]),
    ("stripped", &["-trimpath", "-ldflags=-s -w"]),
    ("pie", &["-buildmode=pie", "-ldflags=-s -w"]),
    ("external", &["-ldflags=-s -w -linkmode=external"]),
    (
        "external pie",
        &["-buildmode=pie", "-ldflags=-s -w -linkmode=external"],
    ),
];

/// Addresses compared of one program.
struct Compared {
    addresses: usize,
    inlined: usize,
    padding: usize,
}

/// Runs the program and compares what it says of every `step`th address of its code.
fn compare(program: &Path, step: usize) -> Compared {
    let file = File::open(program).unwrap();
    let elf = Elf::parse(&file).unwrap();
    let table = Pclntab::read(&file, &elf).unwrap_or_else(|| panic!("no table in {}", program.display()));
    let output = Command::new(program).arg(step.to_string()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("largest 9\ndone\n"));
    let hex = |word: &str| u64::from_str_radix(word, 16).unwrap();
    let mut bias = 0;
    let (mut truth, mut compared) = (
        Vec::new(),
        Compared {
            addresses: 0,
            inlined: 0,
            padding: 0,
        },
    );
    for line in text.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words[..] {
            ["map", start, offset] => bias = elf.bias(hex(start), hex(offset), true).unwrap(),
            ["at", pc, line, name, path] => {
                truth.push((hex(pc), line.parse::<u32>().unwrap(), name, path, None));
            }
            ["outer", _, entry, name] => truth.last_mut().unwrap().4 = Some((hex(entry), name)),
            _ => {}
        }
    }
    for (pc, line, name, path, outer) in truth {
        let code = table.code(&file, &elf, pc - bias);
        let context = || format!("{} at {pc:#x}: {code:?}", program.display());
        if line == 0 {
            // Bytes between functions, which the runtime counts to the one before.
            assert_eq!(code, None, "{}", context());
            compared.padding += 1;
            continue;
        }
        let found = code
            .as_ref()
            .unwrap_or_else(|| panic!("nothing: {name} {}", context()));
        let (first, last) = (found.frames.first().unwrap(), found.frames.last().unwrap());
        // Some versions take the very first name of the table for none.
        let name = if name.is_empty() { &*first.name } else { name };
        assert_eq!(
            (&*first.name, first.file.as_deref(), first.line),
            (name, Some(path), Some(line)),
            "{}",
            context()
        );
        match outer {
            Some((entry, name)) => {
                assert_eq!(found.start, entry - bias, "{}", context());
                assert!(["", "?"].contains(&name) || *last.name == *name, "{}", context());
                assert!(found.frames.len() > 1, "{}", context());
                compared.inlined += 1;
            }
            None => assert_eq!(found.frames.len(), 1, "{}", context()),
        }
        assert!(
            found.frames.iter().all(|f| f.file.is_some() && f.line.is_some()),
            "{}",
            context()
        );
        compared.addresses += 1;
    }
    compared
}

/// Every function and line, of every layout, however linked and stripped.
#[test]
fn go_says_the_same_of_every_address() {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/gopcs.go");
    for version in ["system"].into_iter().chain(toolchains::VERSIONS) {
        let Some(go) = toolchains::toolchain(version) else {
            skip(&format!("no Go {version} here: `cargo xtask test` fetches it"));
            continue;
        };
        // The first and the last in all ways; how a layout is linked does not depend on the years between.
        let builds = if ["system", toolchains::VERSIONS[3]].contains(&version) {
            &BUILDS[..]
        } else {
            &BUILDS[1..3]
        };
        for &(name, args) in builds {
            let program = folder.path().join("gopcs");
            toolchains::build(&go, args, &program, &source)
                .unwrap_or_else(|why| panic!("Go {version}, {name}: {why}"));
            let found = compare(&program, 3);
            println!(
                "Go {version}, {name}: {} addresses ({} inlined), {} between functions",
                found.addresses, found.inlined, found.padding
            );
            assert!(
                found.addresses > 50_000 && found.inlined > 1_000,
                "Go {version}, {name}"
            );
            if name == "stripped" {
                without_sections(&program);
                assert!(
                    compare(&program, 97).addresses > 1_000,
                    "Go {version}, no section headers"
                );
            }
        }
    }
}

/// Removes the section headers from a file: what is left is what the kernel needs to run it.
fn without_sections(program: &Path) {
    let mut bytes = fs::read(program).unwrap();
    bytes[40..48].fill(0);
    bytes[60..64].fill(0);
    fs::write(program, bytes).unwrap();
    assert!(
        Elf::parse(&File::open(program).unwrap())
            .unwrap()
            .sections
            .is_empty()
    );
}
