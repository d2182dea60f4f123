//! Waits for Go's locks, by uprobes where the runtime begins to wait and where it ends a wait: only contended locks come there.
//!
//! At each place the arguments are still in their registers: `rax` has the first, `r14` the goroutine. The programs run in the
//! thread that hit the place and can lose the CPU at any moment, to another thread at the same place too: nothing of theirs is
//! per CPU.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_NO_PREALLOC,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user},
    macros::{map, uprobe},
    maps::HashMap,
    programs::ProbeContext,
};
use tracer_ebpf::{
    go_wait::{Cookie, Key, Pending},
    wire::{GoWait, counter, go_site, go_wait, kind},
};

use super::{
    emit::{header, in_place},
    maps::{chosen, control, count},
    stack::stack_in_program,
    task::{current_regs, reg},
};

/// Goroutine → its last wait. Written by the probes here alone: by the goroutine's own thread when it begins, by who ends it when it
/// ends. Bounded by the goroutines that ever were at once, whose descriptors Go uses again. Full: the wait is not seen, counted.
#[map]
static GO_WAITS: HashMap<Key, Pending> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// `runtime.semacquire1(addr *uint32, …)`.
#[uprobe]
pub fn go_semacquire(ctx: ProbeContext) -> u32 {
    begin(&ctx, go_site::SEMAPHORE);
    0
}

/// `sync.runtime_notifyListWait(l *notifyList, …)`.
#[uprobe]
pub fn go_notify_wait(ctx: ProbeContext) -> u32 {
    begin(&ctx, go_site::NOTIFY_LIST);
    0
}

/// `runtime.readyWithTime(s *sudog, …)`.
#[uprobe]
pub fn go_ready(ctx: ProbeContext) -> u32 {
    end(&ctx);
    0
}

/// What this place is, unless the hit does not count.
#[inline(always)]
fn at(ctx: &ProbeContext) -> Option<Cookie> {
    if control().armed == 0 {
        return None;
    }
    // SAFETY: a helper on the program's own context.
    let cookie = Cookie::unpack(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    // SAFETY: the current task's registers.
    let flags = unsafe { reg!(current_regs(), eflags) };
    (!cookie.is_repeated(flags)).then_some(cookie)
}

/// A goroutine is about to wait, unless it gets the lock in that moment.
#[inline(always)]
fn begin(ctx: &ProbeContext, site: u32) {
    let Some(cookie) = at(ctx) else { return };
    let regs = current_regs();
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    // SAFETY: the current task's registers; a read of user memory that cannot fault.
    let (address, g, goid) = unsafe {
        let g = reg!(regs, r14);
        let goid = bpf_probe_read_user((g + u64::from(cookie.goid)) as *const u64);
        (reg!(regs, rax), g, goid)
    };
    let Ok(goid) = goid else {
        count(counter::USER_FAULT);
        return;
    };
    let weight = chosen();
    let key = Key { g, tgid, reserved: 0 };
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let stack = if weight == 0 {
        0
    } else {
        stack_in_program(regs, tgid, tid, now)
    };
    let fresh = Pending {
        started_ns: now,
        woken_ns: 0,
        address,
        goid,
        stack,
        site,
        weight,
    };
    if let Some(pending) = GO_WAITS.get_ptr_mut(key) {
        // SAFETY: a value of the map, which nobody deletes; another thread writes to it only while the goroutine waits.
        unsafe {
            if (*pending).is_open() {
                count(counter::GO_UNPARKED);
            }
            *pending = fresh;
        }
    } else if GO_WAITS.insert(key, fresh, 0).is_err() {
        count(counter::MAP_FULL);
    }
}

/// A goroutine's wait is over: it is made runnable.
#[inline(always)]
fn end(ctx: &ProbeContext) {
    let Some(cookie) = at(ctx) else { return };
    let regs = current_regs();
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    // SAFETY: the current task's registers; a read of user memory that cannot fault.
    let g = unsafe { bpf_probe_read_user((reg!(regs, rax) + u64::from(cookie.sudog_g)) as *const u64) };
    let Ok(g) = g else {
        count(counter::USER_FAULT);
        return;
    };
    let key = Key { g, tgid, reserved: 0 };
    let Some(pending) = GO_WAITS.get_ptr_mut(key) else {
        count(counter::GO_UNMATCHED);
        return;
    };
    // SAFETY: a value of the map, which nobody deletes; the goroutine waits until it is made runnable, after this.
    let pending = unsafe { &mut *pending };
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(ended) = pending.end(now) else { return };
    if now.saturating_sub(ended.since_ns) < control().min_wait_ns {
        count(counter::GO_SHORT);
        return;
    }
    let waker_stack = stack_in_program(regs, tgid, tid, now);
    // SAFETY: the current task's registers; a read of user memory that cannot fault.
    let waker_goid =
        unsafe { bpf_probe_read_user((reg!(regs, r14) + u64::from(cookie.goid)) as *const u64).unwrap_or(0) };
    in_place::<GoWait>(counter::RING_FULL, |record| {
        // SAFETY: the slot in the ring.
        unsafe {
            (*record).header = header(kind::GO_WAIT, tgid, tid, now);
            (*record).started_ns = ended.since_ns;
            (*record).address = pending.address;
            (*record).goid = pending.goid;
            (*record).waker_goid = waker_goid;
            (*record).stack = pending.stack;
            (*record).waker_stack = waker_stack;
            (*record).site = pending.site;
            (*record).flags = if ended.again { go_wait::AGAIN } else { 0 };
            (*record).weight = pending.weight;
            (*record).reserved = 0;
        }
    });
}
