//! This very test program (Rust, linked as rustc does), against libgcc's unwinder.

use crate::testing::skip;
use std::arch::asm;
use std::ffi::{CString, c_void};
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use tracer_ebpf::wire::Regs;

use super::rig;
use crate::stacks::{End, Stacks, Symbolizer};

type Trace = unsafe extern "C" fn(*mut c_void, *mut c_void) -> i32;

#[link(name = "gcc_s")]
unsafe extern "C" {
    fn _Unwind_Backtrace(trace: Trace, argument: *mut c_void) -> i32;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

unsafe extern "C" fn collect(context: *mut c_void, into: *mut c_void) -> i32 {
    // SAFETY: `into` is the vector that `here` passes; `context` is libgcc's.
    unsafe { (*into.cast::<Vec<u64>>()).push(_Unwind_GetIP(context) as u64) };
    0
}

/// The registers at one point of this function, and all callers according to libgcc.
#[inline(never)]
fn here() -> (Regs, Vec<u8>, Vec<u64>) {
    let mut gp = [0u64; 16];
    let ip: u64;
    // SAFETY: stores registers into `gp`, and the address of this point.
    unsafe {
        asm!(
            "mov [{0} + 24], rbx", "mov [{0} + 48], rbp", "mov [{0} + 56], rsp", "mov [{0} + 96], r12",
            "mov [{0} + 104], r13", "mov [{0} + 112], r14", "mov [{0} + 120], r15", "lea {1}, [rip]",
            in(reg) gp.as_mut_ptr(), out(reg) ip,
        );
    }
    // In here, as this frame is overwritten once it has returned.
    let bytes = rig::copy_stack(std::process::id(), gp[7], 64 << 10);
    let mut truth: Vec<u64> = Vec::new();
    // SAFETY: `collect` gets the vector, which outlives the call.
    unsafe { _Unwind_Backtrace(collect, (&raw mut truth).cast()) };
    // The first is this function itself, at another address.
    truth.remove(0);
    // Nor is there code at 0, where it ends in some versions.
    truth.retain(|&ip| ip != 0);
    (
        Regs {
            ip,
            sp: gp[7],
            gp,
            stack_len: bytes.len() as u32,
            missing: 0,
            reserved: 0,
            fault: 0,
        },
        bytes,
        truth,
    )
}

#[inline(never)]
fn deeper(depth: u32) -> (Stacks, Regs, Vec<u8>) {
    if depth > 0 {
        return black_box(deeper(black_box(depth) - 1));
    }
    let (regs, bytes, truth) = here();
    let (tgid, mut stacks) = (std::process::id(), Stacks::new());
    let unwound = stacks.unwind(tgid, &regs, &bytes);
    let ours: Vec<_> = stacks
        .frames(unwound.id)
        .iter()
        .skip(1)
        .map(|f| f.address)
        .collect();
    assert_eq!(ours, truth);
    assert_eq!(unwound.end, End::Complete);
    (stacks, regs, bytes)
}

type Callback = extern "C-unwind" fn(*mut c_void);

/// Called by a library that was loaded after the mappings had been read.
extern "C-unwind" fn called_back(stacks: *mut c_void) {
    // SAFETY: the pointer that `a_library_loaded_meanwhile` passes.
    let stacks = unsafe { &mut *stacks.cast::<Stacks>() };
    let (regs, bytes, truth) = here();
    let unwound = stacks.unwind(std::process::id(), &regs, &bytes);
    let ours: Vec<_> = stacks
        .frames(unwound.id)
        .iter()
        .skip(1)
        .map(|f| f.address)
        .collect();
    assert_eq!(ours, truth);
    let names = Symbolizer::new().function_names(stacks, unwound.id);
    assert!(names.iter().flatten().any(|n| &**n == "calls_back"), "{names:?}");
}

#[test]
fn a_library_loaded_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("a.c"), folder.path().join("liba.so"));
    std::fs::write(
        &source,
        "int n; void calls_back(void (*f)(void *), void *p) { f(p); n++; }",
    )
    .unwrap();
    let built = Command::new("gcc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .status();
    if !built.is_ok_and(|s| s.success()) {
        skip(&"no gcc");
        return;
    }
    let mut stacks = Stacks::new();
    let (regs, bytes, _) = here();
    assert_eq!(
        stacks.unwind(std::process::id(), &regs, &bytes).end,
        End::Complete
    );
    std::thread::sleep(Duration::from_millis(60));
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: loads the library just built, whose one function has this type, and calls it.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        let symbol = libc::dlsym(handle, c"calls_back".as_ptr());
        assert!(!symbol.is_null());
        let function: unsafe extern "C-unwind" fn(Callback, *mut c_void) = std::mem::transmute(symbol);
        function(called_back, (&raw mut stacks).cast());
    }
    assert_eq!(stacks.failures(), std::collections::BTreeMap::new());
}

#[test]
fn code_of_the_vdso_is_a_file_too() {
    let (mut regs, bytes, _) = here();
    let maps = crate::proc::maps::read(std::process::id()).unwrap();
    regs.ip = maps.iter().find(|m| &*m.name == "[vdso]").unwrap().start + 0xa00;
    let mut stacks = Stacks::new();
    let unwound = stacks.unwind(std::process::id(), &regs, &bytes);
    let module = stacks.frames(unwound.id)[0].module.unwrap();
    assert_eq!(stacks.module_path(module), Some("[vdso]"));
}

#[test]
fn every_caller_that_libgcc_finds() {
    let (mut stacks, regs, bytes) = deeper(13);
    let names = Symbolizer::new().function_names(&stacks, crate::stacks::StackId(1));
    let flat: Vec<_> = names.iter().flatten().filter(|n| n.contains("own::")).collect();
    assert!(
        flat.iter().filter(|n| n.ends_with("deeper")).count() == 14,
        "{flat:#?}"
    );
    // Not asserted: the price of a warm walk.
    let (tgid, rounds) = (std::process::id(), 10_000u32);
    let first = stacks.unwind(tgid, &regs, &bytes);
    let frames = stacks.frames(first.id).len();
    let start = Instant::now();
    for _ in 0..rounds {
        black_box(stacks.unwind(tgid, black_box(&regs), black_box(&bytes)));
    }
    println!(
        "{frames} frames ({:?}) warm: {:?}",
        first.end,
        start.elapsed() / rounds
    );
}

/// A session may move it to a thread of its own.
const _: fn() = || {
    fn sends<T: Send>() {}
    sends::<Stacks>();
};
