//! Everything else that goroutines wait for, by uprobes where the runtime parks a goroutine and where it makes one runnable: they come
//! there with every wait, so these are attached only when asked for, and taken away again when they cost too much.
//!
//! What makes a goroutine runnable runs on its thread's scheduler stack (`g0`). The one that asked for it stands where it switched to
//! that stack, its registers saved in its descriptor: that is the waker's stack.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
    macros::{map, uprobe},
    maps::HashMap,
    programs::ProbeContext,
};
use tracer_ebpf::{
    go_wait::Layout,
    wire::{counter, go_site, stack_fault},
};

use super::{
    go::{Begun, at, tell, waiting},
    maps::{control, count},
    stack::{Standing, stack_standing},
    task::{current_regs, reg},
};

/// tgid → what must be known of its program. Written by user space when it attaches, read by the probes here. Full: that program's
/// waits are not traced, said in the report.
#[map]
static GO_PROGRAMS: HashMap<u32, Layout> = HashMap::with_max_entries(1024, 0);

/// `runtime.gopark(unlockf, lock unsafe.Pointer, reason waitReason, …)`.
#[uprobe]
pub fn go_park(ctx: ProbeContext) -> u32 {
    park(&ctx);
    0
}

/// `runtime.ready(gp *g, …)`.
#[uprobe]
pub fn go_unpark(ctx: ProbeContext) -> u32 {
    unpark(&ctx);
    0
}

/// `runtime.netpollready(toRun *gList, pd *pollDesc, mode int32)`.
#[uprobe]
pub fn go_netpoll(ctx: ProbeContext) -> u32 {
    netpoll(&ctx);
    0
}

/// What a descriptor is ready for, as the runtime writes it; for both, the sum.
const READ: u32 = b'r' as u32;
const WRITE: u32 = b'w' as u32;

/// What is known of the program, when its waits are recorded, and since when.
#[inline(always)]
fn program(ctx: &ProbeContext) -> Option<(&'static Layout, u64)> {
    at(ctx, counter::GO_PARK_HITS)?;
    let since_ns = control().go_parks_ns;
    if since_ns == u64::MAX {
        return None;
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: a value that user space replaces as a whole, before it attaches.
    Some((unsafe { GO_PROGRAMS.get(tgid) }?, since_ns))
}

/// A word of the program's memory, 0 when there is none.
#[inline(always)]
fn word(base: u64, offset: u16) -> u64 {
    // SAFETY: a read of user memory that cannot fault.
    unsafe { bpf_probe_read_user(base.wrapping_add(u64::from(offset)) as *const u64) }.unwrap_or(0)
}

#[inline(always)]
fn park(ctx: &ProbeContext) {
    let Some((layout, since_ns)) = program(ctx) else {
        return;
    };
    let regs = current_regs();
    // SAFETY: the current task's registers.
    let (lock, reason, g) = unsafe { (reg!(regs, rbx), reg!(regs, rcx) as u32 & 0xff, reg!(regs, r14)) };
    if !layout.records(reason) {
        return;
    }
    let wait = Begun {
        g,
        goid: layout.goid,
        address: layout.channel(reason, lock),
        site: go_site::PARK,
        reason,
        told: true,
    };
    let Some((before, weight)) = wait.keep() else {
        return;
    };
    if weight != 0 {
        count(counter::GO_PARK_BEGUN);
    }
    // One for a lock is open when the lock was had without a wait.
    if before.site == go_site::PARK && before.is_open() && before.started_ns >= since_ns {
        count(counter::GO_PARK_UNENDED);
    }
}

#[inline(always)]
fn unpark(ctx: &ProbeContext) {
    let Some((layout, since_ns)) = program(ctx) else {
        return;
    };
    let regs = current_regs();
    // SAFETY: the current task's registers.
    let (g, own, pc, sp, bp) = unsafe {
        (
            reg!(regs, rax),
            reg!(regs, r14),
            reg!(regs, rip),
            reg!(regs, rsp),
            reg!(regs, rbp),
        )
    };
    ended(g, since_ns, |now, tgid, tid| {
        let curg = word(word(own, layout.m), layout.curg);
        let here = Standing { pc, sp, bp };
        let (at, goid) = if curg == 0 {
            // The scheduler's own, such as a timer's.
            (here, 0)
        } else if curg == own {
            (here, word(own, layout.goid))
        } else {
            let saved = Standing {
                pc: word(curg, layout.pc),
                sp: word(curg, layout.sp),
                bp: word(curg, layout.bp),
            };
            (saved, word(curg, layout.goid))
        };
        let stack = stack_standing(&at, tgid, tid, now);
        if stack == u64::from(stack_fault::PENDING) {
            count(counter::GO_PARK_PENDING);
        }
        (stack, goid)
    });
}

/// A descriptor is ready: who waits for it is made runnable without the other probe.
#[inline(always)]
fn netpoll(ctx: &ProbeContext) {
    let Some((layout, since_ns)) = program(ctx) else {
        return;
    };
    let regs = current_regs();
    // SAFETY: the current task's registers.
    let (descriptor, mode) = unsafe { (reg!(regs, rbx), reg!(regs, rcx) as u32) };
    let nobody = |_: u64, _: u32, _: u32| (u64::from(stack_fault::UNWANTED), 0);
    if mode == READ || mode == READ + WRITE {
        let g = word(descriptor, layout.reader);
        // Small numbers say that nobody waits.
        if g > 2 {
            ended(g, since_ns, nobody);
        }
    }
    if mode == WRITE || mode == READ + WRITE {
        let g = word(descriptor, layout.writer);
        if g > 2 {
            ended(g, since_ns, nobody);
        }
    }
}

/// A goroutine is made runnable, by whom is asked for only where that is told.
#[inline(always)]
fn ended(g: u64, since_ns: u64, waker: impl FnOnce(u64, u32, u32) -> (u64, u64)) {
    let Some(pending) = waiting(g) else {
        count(counter::GO_PARK_UNMATCHED);
        return;
    };
    // The others' ends are seen elsewhere.
    if pending.site != go_site::PARK {
        return;
    }
    if pending.started_ns < since_ns {
        count(counter::GO_PARK_UNMATCHED);
        return;
    }
    if tell(pending, waker) {
        count(counter::GO_PARK_ENDED);
    }
}
