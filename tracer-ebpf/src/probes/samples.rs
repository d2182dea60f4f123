//! Samples: who runs at the ticks of each CPU's clock, and where.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{map, perf_event},
    maps::LruHashMap,
    programs::PerfEventContext,
};
use tracer_ebpf::wire::{Neighbour, Sample, StackClass, counter, kind};

use super::{
    emit::{header, ring_is_filling, submit_flags},
    maps::{EVENTS, control, count, is_target, one_of},
    stack::{WithBytes, copy_stack},
    task::{call, copy_regs, current_regs, is_user_64, reg},
};

/// tgid → a process that is no target and ran at ticks. Written by `cpu_tick`, read by user space. Full: the one that ran
/// longest ago makes room.
#[map]
static NEIGHBOURS: LruHashMap<u32, Neighbour> = LruHashMap::with_max_entries(1024, 0);

/// Bytes of stack in a sample.
const BYTES: usize = StackClass::Large.bytes();

/// Bits of the code segment that say where code runs: 3 in user space.
const PRIVILEGE: u64 = 3;

/// The CPU's clock, so many times a second, whoever runs.
#[perf_event]
pub fn cpu_tick(ctx: PerfEventContext) -> u32 {
    let control = control();
    if control.armed == 0 {
        return 0;
    }
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    if tgid == 0 {
        return 0;
    }
    if !is_target(tgid) {
        count(counter::OTHERS_TICKS);
        neighbour(tgid);
        return 0;
    }
    let weight = one_of(control.ticks_mask as u32);
    if weight == 0 {
        return 0;
    }
    // The ring is for waits: of samples fewer are enough.
    if ring_is_filling() {
        count(counter::SAMPLE_RING_FULL);
        return 0;
    }
    let user = current_regs();
    if !is_user_64(user) {
        count(counter::COMPAT);
        return 0;
    }
    // SAFETY: the context of a perf event begins with the registers that the clock interrupted.
    let in_kernel = unsafe { reg!((&raw const (*ctx.ctx).regs).cast::<pt_regs>(), cs) } & PRIVILEGE == 0;
    sample((tgid, tid), user, weight, in_kernel);
    0
}

#[inline(always)]
fn sample((tgid, tid): (u32, u32), user: *const pt_regs, weight: u32, in_kernel: bool) {
    let Some(mut slot) = EVENTS.reserve::<WithBytes<Sample, BYTES>>(0) else {
        count(counter::SAMPLE_RING_FULL);
        return;
    };
    let to = slot.as_mut_ptr();
    // SAFETY: the slot is ours until submitted and as large as its type; `user` comes from the kernel; helpers without
    // preconditions.
    unsafe {
        (*to).record.header = header(kind::SAMPLE, tgid, tid, bpf_ktime_get_ns());
        (*to).record.nr = if in_kernel { call(user).nr } else { -1 };
        (*to).record.weight = weight;
        (*to).record.in_kernel = u32::from(in_kernel);
        let registers = &raw mut (*to).record.regs;
        copy_regs(registers, user);
        copy_stack::<BYTES>((&raw mut (*to).bytes).cast(), registers, reg!(user, rsp));
    }
    slot.submit(submit_flags(size_of::<WithBytes<Sample, BYTES>>() as u64));
}

#[inline(always)]
fn neighbour(tgid: u32) {
    if let Some(known) = NEIGHBOURS.get_ptr_mut(tgid) {
        // Two threads of it on two CPUs may tick at once: one tick is lost then.
        // SAFETY: an entry of the map, which is memory of the map as long as the program is.
        unsafe {
            (*known).ticks += 1;
            (*known).comm = bpf_get_current_comm().unwrap_or_default();
        }
        return;
    }
    let first = Neighbour {
        comm: bpf_get_current_comm().unwrap_or_default(),
        ticks: 1,
    };
    // What finds no room is told by its next tick.
    let _ = NEIGHBOURS.insert(tgid, first, 0);
}
