//! Page faults: where memory is touched that was not there.

use aya_ebpf::{
    bindings::{bpf_perf_event_data, pt_regs},
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::perf_event,
    programs::PerfEventContext,
};
use tracer_ebpf::wire::{FAULTS_WEIGHT, Fault, StackClass, counter, kind};

use super::{
    emit::{header, ring_is_filling, submit_flags},
    maps::{EVENTS, control, count, is_target, one_of},
    stack::{WithBytes, copy_stack},
    task::{copy_regs, current_regs, is_user_64, reg},
};

/// Bytes of stack in a record.
const BYTES: usize = StackClass::Large.bytes();

/// One in [`FAULTS_WEIGHT`] of a CPU's minor faults, whoever makes them: after the page is there.
#[perf_event]
pub fn page_fault(ctx: PerfEventContext) -> u32 {
    let control = control();
    if control.armed == 0 {
        return 0;
    }
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    if !is_target(tgid) {
        return 0;
    }
    let thinned = one_of(control.faults_mask as u32);
    if thinned == 0 {
        return 0;
    }
    // The ring is for waits: of faults fewer are enough.
    if ring_is_filling() {
        count(counter::FAULT_RING_FULL);
        return 0;
    }
    let user = current_regs();
    if !is_user_64(user) {
        count(counter::COMPAT);
        return 0;
    }
    // SAFETY: what a program of this type gets as its context.
    let address = unsafe { (*ctx.ctx.cast::<bpf_perf_event_data>()).addr };
    fault(
        (tgid, tid),
        user,
        address,
        u64::from(thinned) * u64::from(FAULTS_WEIGHT),
    );
    0
}

#[inline(always)]
fn fault((tgid, tid): (u32, u32), user: *const pt_regs, address: u64, weight: u64) {
    let Some(mut slot) = EVENTS.reserve::<WithBytes<Fault, BYTES>>(0) else {
        count(counter::FAULT_RING_FULL);
        return;
    };
    let to = slot.as_mut_ptr();
    // SAFETY: the slot is ours until submitted and as large as its type; `user` comes from the kernel; helpers without
    // preconditions.
    unsafe {
        (*to).record.header = header(kind::FAULT, tgid, tid, bpf_ktime_get_ns());
        (*to).record.address = address;
        (*to).record.weight = weight;
        let registers = &raw mut (*to).record.regs;
        copy_regs(registers, user);
        copy_stack::<BYTES>((&raw mut (*to).bytes).cast(), registers, reg!(user, rsp));
    }
    slot.submit(submit_flags(size_of::<WithBytes<Fault, BYTES>>() as u64));
}
