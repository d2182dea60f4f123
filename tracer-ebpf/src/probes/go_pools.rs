//! Waits for a connection of a pool of `database/sql`, and how often one is wanted: see [`tracer_ebpf::go_pool`]. Of the group on
//! Go's locks, with which they come and go.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_NO_PREALLOC,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user},
    macros::{map, uprobe},
    maps::{HashMap, PerCpuHashMap},
    programs::ProbeContext,
};
use tracer_ebpf::{
    cookie,
    go_pool::{Cookie, Counts, Pending, granting, outcome},
    go_wait::Key,
    wire::{GoWait, counter, go_site, kind},
};

use super::{
    emit::{header, in_place},
    maps::{chosen, control, count},
    stack::stack_in_program,
    task::{current_regs, reg},
};

/// Goroutine → its last wait for a connection. Written by the goroutine's own thread, and by who gives a connection to it while it
/// waits. Bounded by the goroutines that ever waited at once, whose descriptors Go uses again. Full: the wait is not seen, counted.
#[map]
static GO_POOL_WAITS: HashMap<Key, Pending> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Pool → how often a connection was wanted, per CPU. Written by the probes, summed by user space. Full: that pool's requests are not
/// counted, counted.
#[map]
static GO_POOLS: PerCpuHashMap<Key, Counts> = PerCpuHashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// A word of the program's memory, 0 when it cannot be read.
#[inline(always)]
fn word(base: u64, offset: u64) -> u64 {
    // SAFETY: a read of user memory that cannot fault.
    unsafe { bpf_probe_read_user(base.wrapping_add(offset) as *const u64) }.unwrap_or(0)
}

/// What this place is and since when what is recorded counts, unless the hit does not.
#[inline(always)]
fn at(ctx: &ProbeContext) -> Option<(Cookie, u64)> {
    let control = control();
    if control.armed == 0 {
        return None;
    }
    count(counter::GO_LOCK_HITS);
    // SAFETY: a helper on the program's own context.
    let known = Cookie::unpack(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    // SAFETY: the current task's registers.
    let flags = unsafe { reg!(current_regs(), eflags) };
    let since_ns = control.go_locks_ns;
    (since_ns != u64::MAX && !cookie::is_repeated(known.on_check, flags)).then_some((known, since_ns))
}

/// Of the present process.
#[inline(always)]
fn key(address: u64) -> Key {
    Key {
        g: address,
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        reserved: 0,
    }
}

/// Adds to a pool's counts.
#[inline(always)]
fn add(pool: u64, requests: u64, waits: u64) {
    let key = key(pool);
    if let Some(counts) = GO_POOLS.get_ptr_mut(key) {
        // SAFETY: this CPU's value, which nobody deletes while its process runs; one that is interrupted here loses a count at most.
        unsafe {
            (*counts).requests += requests;
            (*counts).waits += waits;
        }
    } else if GO_POOLS.insert(key, Counts { requests, waits }, 0).is_err() {
        count(counter::MAP_FULL);
    }
}

/// `database/sql.(*DB).conn(db, …)`.
#[uprobe]
pub fn go_pool_asked(ctx: ProbeContext) -> u32 {
    if at(&ctx).is_some() {
        // SAFETY: the current task's registers.
        add(unsafe { reg!(current_regs(), rax) }, 1, 0);
    }
    0
}

/// Its call of `runtime.selectgo(cases, …)`.
#[uprobe]
pub fn go_pool_wait(ctx: ProbeContext) -> u32 {
    let Some((cookie, _)) = at(&ctx) else { return 0 };
    let regs = current_regs();
    // SAFETY: the current task's registers.
    let (cases, sp, g) = unsafe { (reg!(regs, rax), reg!(regs, rsp), reg!(regs, r14)) };
    let address = word(sp, u64::from(cookie.home));
    if address == 0 {
        count(counter::USER_FAULT);
        return 0;
    }
    add(address, 0, 1);
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    let weight = chosen();
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let pending = Pending {
        started_ns: now,
        address,
        goid: word(g, u64::from(cookie.goid)),
        stack: if weight == 0 {
            0
        } else {
            stack_in_program(regs, tgid, tid, now)
        },
        waker_goid: 0,
        waker_stack: 0,
        // Each case is a channel, and where to keep what comes from it.
        granting: granting([word(cases, 8), word(cases, 24)]),
        weight,
    };
    if GO_POOL_WAITS.insert(key(g), pending, 0).is_err() {
        count(counter::MAP_FULL);
    }
    0
}

/// `runtime.chansend1(channel, …)`, where `database/sql.(*DB).putConnDBLocked` calls it.
#[uprobe]
pub fn go_pool_given(ctx: ProbeContext) -> u32 {
    let Some((cookie, since_ns)) = at(&ctx) else {
        return 0;
    };
    let regs = current_regs();
    // SAFETY: the current task's registers.
    let (channel, own) = unsafe { (reg!(regs, rax), reg!(regs, r14)) };
    // Nobody stands there yet when it was asked for a moment ago: that wait has no waker.
    let receiver = word(channel, u64::from(cookie.receivers));
    if receiver == 0 {
        return 0;
    }
    let Some(pending) = GO_POOL_WAITS.get_ptr_mut(key(word(receiver, u64::from(cookie.sudog_g)))) else {
        return 0;
    };
    // SAFETY: a value of the map, which nobody deletes while its process runs; its goroutine waits until it is sent to, after this.
    let pending = unsafe { &mut *pending };
    if pending.weight == 0 || pending.started_ns < since_ns {
        return 0;
    }
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    pending.waker_stack = stack_in_program(regs, tgid, tid, now);
    pending.waker_goid = word(own, u64::from(cookie.goid));
    0
}

/// After `runtime.selectgo` has returned to `database/sql.(*DB).conn`.
#[uprobe]
pub fn go_pool_got(ctx: ProbeContext) -> u32 {
    let Some((_, since_ns)) = at(&ctx) else { return 0 };
    let regs = current_regs();
    // SAFETY: the current task's registers.
    let (case, received, g) = unsafe { (reg!(regs, rax), reg!(regs, rbx) & 0xff != 0, reg!(regs, r14)) };
    let Some(pending) = GO_POOL_WAITS.get_ptr_mut(key(g)) else {
        count(counter::GO_UNMATCHED);
        return 0;
    };
    // SAFETY: a value of the map, which nobody deletes while its process runs; its goroutine is here.
    let (wait, started) = unsafe { (*pending, &mut (*pending).started_ns) };
    *started = 0;
    if wait.started_ns < since_ns {
        count(counter::GO_UNMATCHED);
        return 0;
    }
    if wait.weight == 0 {
        return 0;
    }
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if now.saturating_sub(wait.started_ns) < control().min_wait_ns {
        count(counter::GO_SHORT);
        return 0;
    }
    let flags = outcome(wait.granting, case, received);
    in_place::<GoWait>(counter::RING_FULL, |record| {
        // SAFETY: the slot in the ring.
        unsafe {
            (*record).header = header(kind::GO_WAIT, tgid, tid, now);
            (*record).started_ns = wait.started_ns;
            (*record).address = wait.address;
            (*record).goid = wait.goid;
            // What came too late was given to nobody.
            (*record).waker_goid = if flags == 0 { wait.waker_goid } else { 0 };
            (*record).stack = wait.stack;
            (*record).waker_stack = if flags == 0 { wait.waker_stack } else { 0 };
            (*record).site = go_site::POOL;
            (*record).flags = flags;
            (*record).weight = wait.weight;
            (*record).reason = 0;
        }
    });
    0
}
