//! This very test program (Rust, linked as rustc does), against libgcc's unwinder.

use std::arch::asm;
use std::ffi::c_void;
use std::hint::black_box;
use std::time::Instant;

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
    (Regs { ip, sp: gp[7], gp, stack_len: bytes.len() as u32, fault: 0 }, bytes, truth)
}

#[inline(never)]
fn deeper(depth: u32) -> (Stacks, Regs, Vec<u8>) {
    if depth > 0 {
        return black_box(deeper(black_box(depth) - 1));
    }
    let (regs, bytes, truth) = here();
    let (tgid, mut stacks) = (std::process::id(), Stacks::new());
    let unwound = stacks.unwind(tgid, &regs, &bytes);
    let ours: Vec<_> = stacks.frames(unwound.id).iter().skip(1).map(|f| f.address).collect();
    // libgcc counts a last frame of 0 after clone3 on some versions.
    let truth: Vec<_> = truth.into_iter().filter(|&ip| ip != 0).collect();
    assert_eq!(ours, truth);
    assert_eq!(unwound.end, End::Complete);
    (stacks, regs, bytes)
}

#[test]
fn every_caller_that_libgcc_finds() {
    let (mut stacks, regs, bytes) = deeper(13);
    let names = Symbolizer::new().function_names(&stacks, crate::stacks::StackId(1));
    let flat: Vec<_> = names.iter().flatten().filter(|n| n.contains("own::")).collect();
    assert!(flat.iter().filter(|n| n.ends_with("deeper")).count() == 14, "{flat:#?}");
    // Not asserted: the price of a warm walk.
    let (tgid, rounds) = (std::process::id(), 10_000u32);
    let first = stacks.unwind(tgid, &regs, &bytes);
    let frames = stacks.frames(first.id).len();
    let start = Instant::now();
    for _ in 0..rounds {
        black_box(stacks.unwind(tgid, black_box(&regs), black_box(&bytes)));
    }
    println!("{frames} frames ({:?}) warm: {:?}", first.end, start.elapsed() / rounds);
}
