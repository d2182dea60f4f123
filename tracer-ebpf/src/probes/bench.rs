//! What the same work costs by other means, at the same place: peers of the probes for `cargo xtask bench-probes`. With the
//! feature `bench` only, so never in the committed object.

use core::hint::black_box;

use aya_ebpf::{
    bindings::{BPF_F_USER_STACK, task_struct},
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated::bpf_probe_read_user},
    macros::{btf_tracepoint, map},
    maps::{PerCpuArray, StackTrace},
    programs::{BtfTracePointContext, tracing::StackIdContext as _},
};
use tracer_ebpf::bench;

use super::{
    maps::{EVENTS, is_target, space, task_state},
    stack::{Place, stack},
    task::{reg, user_regs},
};

/// How often each peer did its work, by [`bench`]. Written by the peers, read by user space. Cannot be full.
#[map]
static BENCH: PerCpuArray<u64> = PerCpuArray::with_max_entries(bench::COUNT, 0);

/// User stacks of `bench_stackid`. Full: the work is not counted.
#[map]
static BENCH_STACKS: StackTrace = StackTrace::with_max_entries(2048, 0);

/// `BPF_RB_NO_WAKEUP`.
const QUIET: u64 = 1;

#[inline(always)]
fn did(what: u32) {
    if let Some(count) = BENCH.get_ptr_mut(what) {
        // SAFETY: a per-CPU slot, and switches do not interrupt one another.
        unsafe { *count += 1 };
    }
}

/// The switching thread's ids where it is the target's and goes to sleep: `sched_switch` takes a stack there.
#[inline(always)]
fn sleeper(ctx: &BtfTracePointContext) -> Option<(u32, u32)> {
    let preempt: u64 = ctx.arg(0);
    let state: u32 = ctx.arg(3);
    let ids = bpf_get_current_pid_tgid();
    let tgid = (ids >> 32) as u32;
    (preempt & 1 == 0 && state != 0 && is_target(tgid)).then_some((tgid, ids as u32))
}

/// Nothing: what the statistics themselves cost.
#[btf_tracepoint(function = "sched_switch")]
pub fn bench_empty(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// As `bench_empty`, beside `sched_waking`.
#[btf_tracepoint(function = "sched_waking")]
pub fn bench_empty_waking(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// What all that follow begin and end with, and nothing else.
#[btf_tracepoint(function = "sched_switch")]
pub fn bench_filter(ctx: BtfTracePointContext) -> i32 {
    if sleeper(&ctx).is_some() {
        did(bench::FILTER);
    }
    0
}

/// One record of 64 bytes that wakes nobody.
#[btf_tracepoint(function = "sched_switch")]
pub fn bench_ring(ctx: BtfTracePointContext) -> i32 {
    if let Some((tgid, tid)) = sleeper(&ctx)
        && let Some(mut slot) = EVENTS.reserve::<[u64; 8]>(0)
    {
        let first = u64::from(tgid);
        slot.write([first, u64::from(tid), 2, 3, 4, 5, 6, 7]);
        slot.submit(QUIET);
        did(bench::RING);
    }
    0
}

/// The user stack as most tracers take it.
#[btf_tracepoint(function = "sched_switch")]
pub fn bench_stackid(ctx: BtfTracePointContext) -> i32 {
    if sleeper(&ctx).is_some()
        && ctx
            .get_stackid(&BENCH_STACKS, u64::from(BPF_F_USER_STACK))
            .is_ok()
    {
        did(bench::STACKID);
    }
    0
}

/// The user stack as the probes take it: their own function.
#[btf_tracepoint(function = "sched_switch")]
pub fn bench_stack(ctx: BtfTracePointContext) -> i32 {
    let prev: *mut task_struct = ctx.arg(1);
    if let Some((tgid, tid)) = sleeper(&ctx) {
        // SAFETY: the tracepoint's argument.
        let regs = unsafe { user_regs(prev) };
        stack(regs, Place::SwitchOut, tgid, tid, 0);
        did(bench::STACK);
    }
    0
}

/// Parts of what the probes do, each once: the time.
#[btf_tracepoint(function = "sched_switch")]
pub fn bench_clock(ctx: BtfTracePointContext) -> i32 {
    if sleeper(&ctx).is_some() {
        // SAFETY: a helper without preconditions.
        black_box(unsafe { bpf_ktime_get_ns() });
        did(bench::CLOCK);
    }
    0
}

/// The registers at kernel entry.
#[btf_tracepoint(function = "sched_switch")]
pub fn bench_regs(ctx: BtfTracePointContext) -> i32 {
    let prev: *mut task_struct = ctx.arg(1);
    if sleeper(&ctx).is_some() {
        // SAFETY: the tracepoint's argument.
        black_box(unsafe { reg!(user_regs(prev), rip) });
        did(bench::REGS);
    }
    0
}

/// The thread's storage, which is not there.
#[btf_tracepoint(function = "sched_switch")]
pub fn bench_storage(ctx: BtfTracePointContext) -> i32 {
    let prev: *mut task_struct = ctx.arg(1);
    if sleeper(&ctx).is_some() {
        // SAFETY: the tracepoint's argument.
        let state = unsafe { task_state(prev) };
        if state.is_null() {
            did(bench::STORAGE);
        }
    }
    0
}

/// A look-up in a hash.
#[btf_tracepoint(function = "sched_switch")]
pub fn bench_hash(ctx: BtfTracePointContext) -> i32 {
    if let Some((tgid, _)) = sleeper(&ctx) {
        black_box(space(tgid));
        did(bench::HASH);
    }
    0
}

/// Bytes of 15 frames of `frames15`.
const READ: usize = 1200;

/// Where `bench_read` puts them.
#[map]
static BENCH_SCRATCH: PerCpuArray<[u8; READ]> = PerCpuArray::with_max_entries(1, 0);

/// One read of user memory.
#[btf_tracepoint(function = "sched_switch")]
pub fn bench_read(ctx: BtfTracePointContext) -> i32 {
    let prev: *mut task_struct = ctx.arg(1);
    if sleeper(&ctx).is_some()
        && let Some(to) = BENCH_SCRATCH.get_ptr_mut(0)
    {
        // SAFETY: the tracepoint's argument; the destination is as large.
        let result = unsafe {
            let sp = reg!(user_regs(prev), rsp);
            bpf_probe_read_user(to.cast(), READ as u32, sp as *const _)
        };
        if result == 0 {
            did(bench::READ);
        }
    }
    0
}
