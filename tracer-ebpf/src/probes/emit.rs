//! Records into the ring: with a header, and with the copy of a stack.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_smp_processor_id, generated::bpf_probe_read_user},
};
use tracer_ebpf::wire::{Header, Regs, StackClass, StackPlace, counter, stack_fault};

use super::{
    maps::{EVENTS, STACK_CLASSES, count, ring_bytes},
    task::{copy_regs, is_user_64, reg},
};

/// `BPF_RB_NO_WAKEUP`: the consumer looks by itself; a wake-up costs ten times the record.
const QUIET: u64 = 1;
/// `BPF_RB_FORCE_WAKEUP`.
const WAKE: u64 = 2;
/// `BPF_RB_AVAIL_DATA`.
const AVAIL: u64 = 0;

/// Flags for submitting a record of `size` bytes: wakes the consumer once, when the ring becomes a quarter full.
#[inline(always)]
fn submit_flags(size: u64) -> u64 {
    let quarter = ring_bytes() / 4;
    let filled = EVENTS.query(AVAIL);
    if filled >= quarter && filled.wrapping_sub(size) < quarter {
        WAKE
    } else {
        QUIET
    }
}

#[inline(always)]
pub(super) fn header(kind: u16, tgid: u32, tid: u32, ts_ns: u64) -> Header {
    // SAFETY: a helper without preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    Header {
        kind,
        class: 0,
        tgid,
        tid,
        cpu,
        ts_ns,
    }
}

/// Emits a record without a stack; `lost` is counted when the ring is full.
#[inline(always)]
pub(super) fn plain<R: Copy + 'static>(record: R, lost: u32) {
    let Some(mut slot) = EVENTS.reserve::<R>(0) else {
        count(lost);
        return;
    };
    slot.write(record);
    slot.submit(submit_flags(size_of::<R>() as u64));
}

/// A record, its registers and its stack bytes, as they lie in the ring.
#[repr(C)]
struct WithStack<R, const N: usize> {
    record: R,
    regs: Regs,
    stack: [u8; N],
}

const STEP: usize = 2048;
const FINE: usize = 256;

/// Copies up to `size` bytes of user stack from `sp`: in steps of 2 KiB, and from the first one that faults on in steps of
/// 256 bytes, because a read across the top of the stack yields nothing at all.
///
/// # Safety
///
/// `to` must have room for `size` bytes, a multiple of [`STEP`].
#[inline(always)]
unsafe fn copy_stack(to: *mut u8, size: usize, sp: u64) -> usize {
    let mut done = 0;
    while done < size {
        // SAFETY: the destination is in bounds by the caller's promise; the helper cannot fault.
        let read =
            unsafe { bpf_probe_read_user(to.add(done).cast(), STEP as u32, (sp + done as u64) as *const _) };
        if read != 0 {
            let mut fine = 0;
            while fine < STEP {
                let at = done + fine;
                // SAFETY: as above.
                let read = unsafe {
                    bpf_probe_read_user(to.add(at).cast(), FINE as u32, (sp + at as u64) as *const _)
                };
                if read != 0 {
                    return at;
                }
                fine += FINE;
            }
            return done + STEP;
        }
        done += STEP;
    }
    done
}

#[inline(always)]
fn sized<R: Copy + 'static, const N: usize>(
    class: StackClass,
    fault: u32,
    regs: *const pt_regs,
    lost: u32,
    fill: impl Fn(*mut R),
    head: impl Fn(*mut R) -> *mut Header,
) {
    let Some(mut slot) = EVENTS.reserve::<WithStack<R, N>>(0) else {
        count(lost);
        return;
    };
    let to = slot.as_mut_ptr();
    // SAFETY: the slot is ours until submitted and as large as its type; `regs` comes from the kernel.
    unsafe {
        fill(&raw mut (*to).record);
        (*head(&raw mut (*to).record)).class = class as u16;
        copy_regs(&raw mut (*to).regs, regs);
        (*to).regs.fault = fault;
        if N > 0 {
            let copied = copy_stack((&raw mut (*to).stack).cast(), N, reg!(regs, rsp));
            (*to).regs.stack_len = copied as u32;
            if copied < N {
                (*to).regs.fault = stack_fault::UNREADABLE;
            }
        }
    }
    slot.submit(submit_flags(size_of::<WithStack<R, N>>() as u64));
}

/// Emits a record that `fill` writes whole, with registers and, unless the ring is over half full, the top of the stack.
/// `regs` are the current task's, whose memory is read. `head` finds the record's header.
#[inline(always)]
pub(super) fn with_stack<R: Copy + 'static>(
    regs: *const pt_regs,
    wanted: bool,
    lost: u32,
    fill: impl Fn(*mut R),
    head: impl Fn(*mut R) -> *mut Header,
) {
    // SAFETY: `regs` comes from the kernel.
    let (ip, sp) = unsafe { (reg!(regs, rip), reg!(regs, rsp)) };
    let fault = if !is_user_64(regs) {
        count(counter::COMPAT);
        stack_fault::COMPAT
    } else if !wanted || ip == 0 {
        stack_fault::UNWANTED
    } else if EVENTS.query(AVAIL) > ring_bytes() / 2 {
        count(counter::STACK_PENDING);
        stack_fault::PENDING
    } else {
        stack_fault::NONE
    };
    if fault != stack_fault::NONE {
        return sized::<R, 0>(StackClass::None, fault, regs, lost, fill, head);
    }
    let place = StackPlace { sp, ip };
    // SAFETY: an integer, copied out at once.
    let class = unsafe { STACK_CLASSES.get(place) }
        .copied()
        .unwrap_or(StackClass::Medium as u32);
    if class == StackClass::Small as u32 {
        sized::<R, { StackClass::Small.bytes() }>(StackClass::Small, fault, regs, lost, fill, head);
    } else if class == StackClass::Large as u32 {
        sized::<R, { StackClass::Large.bytes() }>(StackClass::Large, fault, regs, lost, fill, head);
    } else {
        sized::<R, { StackClass::Medium.bytes() }>(StackClass::Medium, fault, regs, lost, fill, head);
    }
}
