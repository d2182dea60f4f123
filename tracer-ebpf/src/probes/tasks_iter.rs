//! The task iterator: makes the state of threads that exist already, and shows where each one is.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{seq_file, task_struct},
    helpers::{bpf_ktime_get_ns, generated::bpf_seq_write},
};
use tracer_ebpf::wire::{DELAYS, Regs, TaskSnapshot, counter, phase};

use super::{
    maps::{count, is_target, make_task_state},
    task::{call, copy_regs, ids, user_regs},
};

#[repr(C)]
struct Meta {
    seq: *mut seq_file,
    session: u64,
    number: u64,
}

/// `struct bpf_iter__task`.
#[repr(C)]
struct TaskContext {
    meta: *mut Meta,
    task: *mut task_struct,
}

/// Runs once per thread of the host, filters by [`is_target`]. Reading the iterator a second time changes no state.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn tasks(ctx: *mut c_void) -> i32 {
    let ctx = ctx.cast::<TaskContext>();
    // SAFETY: the context is the kernel's, its task is checked for null, the state too.
    unsafe {
        let task = (*ctx).task;
        let meta = (*ctx).meta;
        if task.is_null() {
            return 0;
        }
        let (tid, tgid) = ids(task);
        if !is_target(tgid) {
            return 0;
        }
        let regs = user_regs(task);
        let state = make_task_state(task);
        if state.is_null() {
            count(counter::MAP_FULL);
            return 0;
        }
        if (*state).tgid == 0 {
            let current = call(regs);
            (*state).nr = current.nr;
            (*state).args = current.args;
            (*state).timeout_ns = u64::MAX;
            (*state).kstack = -1;
            (*state).phase = phase::BEFORE;
            (*state).weight = 1;
            (*state).tid = tid;
            (*state).tgid = tgid;
        }
        // In three parts, as a program's stack cannot hold the whole. A thread that runs on meanwhile changes what is read:
        // its phase is read before, the number of its delays before and after.
        let mut front: Front = core::mem::zeroed();
        front.phase = (&raw const (*state).phase).read_volatile();
        front.tgid = tgid;
        front.tid = tid;
        front.nr = call(regs).nr;
        front.ts_ns = bpf_ktime_get_ns();
        copy_regs(&raw mut front.regs, regs);
        front.state = (*state).state;
        front.seq = (*state).seq;
        front.out_ns = (*state).out_ns;
        front.sleep_nr = (*state).nr;
        front.args = (*state).args;
        front.timeout_ns = (*state).timeout_ns;
        front.running_total_ns = (*state).running_total_ns;
        front.short_count = (*state).short_count;
        front.short_ns = (*state).short_ns;
        front.skipped_ns = (*state).skipped_ns;
        front.delays_first = (&raw const (*state).delays_first).read_volatile();
        front.delays_len = (&raw const (*state).delays_len).read_volatile();
        let seq = (*meta).seq;
        bpf_seq_write(seq, (&raw const front).cast(), size_of::<Front>() as u32);
        bpf_seq_write(
            seq,
            (&raw const (*state).delays).cast(),
            size_of::<[u32; DELAYS]>() as u32,
        );
        let again = (&raw const (*state).delays_first).read_volatile();
        bpf_seq_write(seq, (&raw const again).cast(), size_of::<u64>() as u32);
    }
    0
}

/// [`TaskSnapshot`] up to its delays.
#[repr(C)]
struct Front {
    tgid: u32,
    tid: u32,
    nr: i64,
    ts_ns: u64,
    regs: Regs,
    phase: u32,
    state: u32,
    seq: u64,
    out_ns: u64,
    sleep_nr: i64,
    args: [u64; 6],
    timeout_ns: u64,
    running_total_ns: u64,
    short_count: u32,
    delays_len: u32,
    short_ns: u64,
    skipped_ns: u64,
    delays_first: u64,
}

const _: () = assert!(size_of::<Front>() == core::mem::offset_of!(TaskSnapshot, delays));
