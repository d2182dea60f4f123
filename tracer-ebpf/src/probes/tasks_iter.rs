//! The task iterator: makes the state of threads that exist already, and shows where each one is.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{seq_file, task_struct},
    helpers::{bpf_ktime_get_ns, generated::bpf_seq_write},
};
use tracer_ebpf::wire::{TaskSnapshot, counter};

use super::{
    maps::{count, is_target, make_task_state},
    task::{BEFORE, call, copy_regs, ids, user_regs},
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
        let state = make_task_state(task);
        if state.is_null() {
            count(counter::MAP_FULL);
        } else if (*state).tgid == 0 {
            let current = call(user_regs(task));
            (*state).nr = current.nr;
            (*state).args = current.args;
            (*state).state = BEFORE;
            (*state).tid = tid;
            (*state).tgid = tgid;
        }
        let regs = user_regs(task);
        let mut snapshot: TaskSnapshot = core::mem::zeroed();
        snapshot.tgid = tgid;
        snapshot.tid = tid;
        snapshot.nr = call(regs).nr;
        snapshot.ts_ns = bpf_ktime_get_ns();
        copy_regs(&raw mut snapshot.regs, regs);
        bpf_seq_write(
            (*meta).seq,
            (&raw const snapshot).cast(),
            TaskSnapshot::SIZE as u32,
        );
    }
    0
}
