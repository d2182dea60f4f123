//! Names of one program's code, stripped in every way that distributions strip.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::report::model::StackFrame;
use crate::stacks::{End, Frame, Stacks, Symbolizer};
use crate::testing::skip;

/// Functions far apart, exported and not, one inlined, so that there is room between them that belongs to none.
const SOURCE: &str = r#"
#include <stdio.h>
static int counter;
static inline __attribute__((always_inline)) int twice(int n) { return n * 2 + counter; }
static __attribute__((noinline)) int hidden_one(int n) { counter += n; return twice(n) ^ 5; }
static __attribute__((noinline)) int hidden_two(int n) { counter -= n; return hidden_one(n) + hidden_one(n + 1); }
__attribute__((noinline)) int exported_one(int n) { printf("%d\n", hidden_two(n)); return counter; }
int main(int n, char **v) { (void)v; return exported_one(n) == 77; }
"#;

/// A function as `nm` has it.
struct Function {
    start: u64,
    size: u64,
    name: String,
}

/// The program as built, and its own functions.
fn build(folder: &Path) -> Option<Vec<Function>> {
    fs::write(folder.join("app.c"), SOURCE).unwrap();
    let flags = [
        "-O2",
        "-g",
        "-rdynamic",
        "-falign-functions=64",
        "-o",
        "app",
        "app.c",
    ];
    if !run(folder, "gcc", &flags) || !run(folder, "objcopy", &["--only-keep-debug", "app", "app.debug"]) {
        skip(&"no gcc or no binutils");
        return None;
    }
    let output = Command::new("nm")
        .args(["-S", "app"])
        .current_dir(folder)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let function = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let hex = |at: usize| u64::from_str_radix(words.get(at)?, 16).ok();
        let (start, size, name) = (hex(0)?, hex(1)?, (*words.get(3)?).to_owned());
        let own = ["hidden_one", "hidden_two", "exported_one", "main"].contains(&&*name);
        own.then_some(Function { start, size, name })
    };
    let functions: Vec<_> = text.lines().filter_map(function).collect();
    assert_eq!(functions.len(), 4, "{text}");
    Some(functions)
}

fn run(folder: &Path, program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).current_dir(folder).status();
    status.is_ok_and(|status| status.success())
}

/// What a virtual address of a file is called: frames, innermost first.
fn called(program: &Path, vaddr: u64) -> Vec<StackFrame> {
    let mut stacks = Stacks::new();
    let path = program.to_str().unwrap();
    let module = stacks.modules.add(path.into(), File::open(program).unwrap());
    let frame = Frame {
        module: Some(module.unwrap()),
        address: vaddr,
        offset: vaddr,
        return_address: false,
        guessed: false,
    };
    let id = stacks.interned.intern(1, &[frame], End::Complete);
    Symbolizer::new().resolve(&stacks, id)
}

/// Every function's first, middle and last byte has the name wanted of it; bytes after it have none.
fn assert_names(program: &Path, functions: &[Function], wanted: impl Fn(&Function) -> String) {
    for function in functions {
        for within in [0, function.size / 2, function.size - 1] {
            let frames = called(program, function.start + within);
            let last = frames.last().unwrap();
            assert_eq!(
                last.function.as_deref(),
                Some(&*wanted(function)),
                "{} + {within}",
                function.name
            );
            assert_eq!(last.offset, Some(within));
        }
        let after = called(program, function.start + function.size);
        // The last one of the text is followed by the file's own end.
        let name = after[0].function.as_deref();
        assert!(
            [None, Some("_fini")].contains(&name),
            "{name:?} after {}",
            function.name
        );
    }
}

fn fn_at(function: &Function) -> String {
    format!("app!fn@{:#x}", function.start)
}

/// An exported name where there is one, else where the function begins.
fn exported(function: &Function) -> String {
    let dynamic = ["exported_one", "main"].contains(&&*function.name);
    if dynamic {
        function.name.clone()
    } else {
        fn_at(function)
    }
}

#[test]
fn with_debug_information_names_lines_and_inlined() {
    let folder = TempDir::new().unwrap();
    let Some(functions) = build(folder.path()) else {
        return;
    };
    let program = folder.path().join("app");
    assert_names(&program, &functions, |f| f.name.clone());
    let one = functions.iter().find(|f| f.name == "hidden_one").unwrap();
    let inlined = (one.start..one.start + one.size).any(|pc| {
        let frames = called(&program, pc);
        frames[0].function.as_deref() == Some("twice") && frames[0].inlined && frames[0].line.is_some()
    });
    assert!(inlined, "`twice` was inlined into `hidden_one`");
}

#[test]
fn stripped_of_all_but_exports() {
    let folder = TempDir::new().unwrap();
    let Some(functions) = build(folder.path()) else {
        return;
    };
    assert!(run(folder.path(), "strip", &["app"]));
    assert_names(&folder.path().join("app"), &functions, exported);
}

/// As Fedora and its kin ship programs: a packed table of what is not exported.
#[test]
fn with_a_packed_table() {
    let folder = TempDir::new().unwrap();
    let Some(functions) = build(folder.path()) else {
        return;
    };
    let steps = [
        "strip --strip-debug -o mini app",
        "xz -k mini",
        "strip app",
        "objcopy --add-section .gnu_debugdata=mini.xz app",
    ];
    for step in steps {
        let words: Vec<&str> = step.split(' ').collect();
        if !run(folder.path(), words[0], &words[1..]) {
            skip(&format!("`{step}` does not work here"));
            return;
        }
    }
    let program = folder.path().join("app");
    assert_names(&program, &functions, |f| f.name.clone());

    // Damaged anywhere, it costs the hidden names and nothing else.
    let packed = fs::read(folder.path().join("mini.xz")).unwrap();
    let whole = fs::read(&program).unwrap();
    let at = whole
        .windows(packed.len())
        .position(|bytes| bytes == packed)
        .unwrap();
    for place in (0..packed.len()).step_by(packed.len() / 40) {
        let mut damaged = whole.clone();
        damaged[at + place] ^= 0x55;
        let program = folder.path().join("app");
        fs::remove_file(&program).unwrap();
        fs::write(&program, damaged).unwrap();
        for function in &functions {
            let name = called(&program, function.start).pop().unwrap().function.unwrap();
            assert!(
                [function.name.clone(), exported(function)].contains(&name),
                "{place}: {name}"
            );
        }
    }
}

/// As `dh_strip` and `gdb` have it: a link by name, proven by a checksum.
#[test]
fn with_a_debug_link() {
    let folder = TempDir::new().unwrap();
    let Some(functions) = build(folder.path()) else {
        return;
    };
    let (program, debug) = (folder.path().join("app"), folder.path().join("app.debug"));
    assert!(run(folder.path(), "strip", &["app"]));
    assert!(run(
        folder.path(),
        "objcopy",
        &["--add-gnu-debuglink=app.debug", "app"]
    ));
    assert_names(&program, &functions, |f| f.name.clone());
    let main = functions.iter().find(|f| f.name == "main").unwrap();
    assert!(called(&program, main.start)[0].line.is_some());

    fs::create_dir(folder.path().join(".debug")).unwrap();
    fs::rename(&debug, folder.path().join(".debug/app.debug")).unwrap();
    assert_names(&program, &functions, |f| f.name.clone());

    // Another build's.
    fs::rename(folder.path().join(".debug/app.debug"), &debug).unwrap();
    File::options()
        .append(true)
        .open(&debug)
        .unwrap()
        .write_all(b"x")
        .unwrap();
    assert_names(&program, &functions, exported);

    // A pipe that nobody writes to: whoever opens it to read waits for ever.
    fs::remove_file(&debug).unwrap();
    assert!(run(folder.path(), "mkfifo", &["app.debug"]));
    assert_names(&program, &functions, exported);
}

/// The C library without its debug file: every exported function by one of its exported names.
#[test]
fn exported_functions_of_a_stock_library() {
    let folder = TempDir::new().unwrap();
    let maps = crate::proc::maps::read(std::process::id()).unwrap();
    let libc = maps.iter().find(|map| map.name.contains("/libc.so.6")).unwrap();
    let (mut bytes, copy) = (fs::read(&*libc.name).unwrap(), folder.path().join("libc.so.6"));
    let id = crate::stacks::elf::Elf::parse(&bytes[..]).unwrap().build_id;
    if let Some(at) = bytes.windows(id.len().max(1)).position(|window| window == id) {
        // Another id, so that no debug file belongs to it.
        bytes[at] ^= 0xff;
    }
    fs::write(&copy, bytes).unwrap();
    let Ok(output) = Command::new("nm")
        .args(["-D", "-S", "--defined-only"])
        .arg(&copy)
        .output()
    else {
        skip(&"no nm");
        return;
    };
    let mut functions: std::collections::BTreeMap<u64, Vec<String>> = std::collections::BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [start, _, "T" | "W" | "i", name] = words[..] {
            let name = name.split('@').next().unwrap().to_owned();
            functions
                .entry(u64::from_str_radix(start, 16).unwrap())
                .or_default()
                .push(name);
        }
    }
    assert!(functions.len() > 1500, "{}", functions.len());
    let mut stacks = Stacks::new();
    let module = stacks.modules.add("libc.so.6".into(), File::open(&copy).unwrap());
    let frame = |&vaddr: &u64| Frame {
        module,
        address: vaddr,
        offset: vaddr,
        return_address: false,
        guessed: false,
    };
    let frames: Vec<Frame> = functions.keys().map(frame).collect();
    let id = stacks.interned.intern(1, &frames, End::Complete);
    let named = Symbolizer::new().resolve(&stacks, id);
    assert_eq!(named.len(), frames.len());
    for (frame, (start, names)) in named.iter().zip(&functions) {
        let name = frame.function.as_deref().unwrap_or("?");
        assert!(
            names.iter().any(|n| n == name),
            "{start:#x}: {name}, not of {names:?}"
        );
    }
    let lock = named.iter().find(|f| {
        f.function
            .as_deref()
            .is_some_and(|f| f.ends_with("pthread_mutex_lock"))
    });
    assert_eq!(lock.unwrap().function.as_deref(), Some("pthread_mutex_lock"));
}
