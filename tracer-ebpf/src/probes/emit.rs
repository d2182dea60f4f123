//! Records into the ring.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use tracer_ebpf::wire::Header;

use super::maps::{EVENTS, count, ring_bytes};

/// `BPF_RB_NO_WAKEUP`: the consumer looks by itself; a wake-up costs ten times the record.
const QUIET: u64 = 1;
/// `BPF_RB_FORCE_WAKEUP`.
const WAKE: u64 = 2;
/// `BPF_RB_AVAIL_DATA`.
const AVAIL: u64 = 0;

/// Flags for submitting a record of `size` bytes: wakes the consumer once, when the ring becomes a quarter full.
#[inline(always)]
pub(super) fn submit_flags(size: u64) -> u64 {
    let quarter = ring_bytes() / 4;
    let filled = EVENTS.query(AVAIL);
    if filled >= quarter && filled.wrapping_sub(size) < quarter {
        WAKE
    } else {
        QUIET
    }
}

/// Whether there is too little room for copies of stacks: the last quarter is for records, which are small.
#[inline(always)]
pub(super) fn ring_is_crowded() -> bool {
    EVENTS.query(AVAIL) > ring_bytes() / 4 * 3
}

/// Whether a quarter is in use, at which the consumer is woken.
#[inline(always)]
pub(super) fn ring_is_filling() -> bool {
    EVENTS.query(AVAIL) > ring_bytes() / 4
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

/// Emits a record; `lost` is counted when the ring is full.
#[inline(always)]
pub(super) fn plain<R: Copy + 'static>(record: R, lost: u32) {
    let Some(mut slot) = EVENTS.reserve::<R>(0) else {
        count(lost);
        return;
    };
    slot.write(record);
    slot.submit(submit_flags(size_of::<R>() as u64));
}

/// Emits a record that `fill` writes whole, in the ring itself: for those too large to be moved there.
#[inline(always)]
pub(super) fn in_place<R: 'static>(lost: u32, fill: impl Fn(*mut R)) {
    let Some(mut slot) = EVENTS.reserve::<R>(0) else {
        count(lost);
        return;
    };
    fill(slot.as_mut_ptr());
    slot.submit(submit_flags(size_of::<R>() as u64));
}
