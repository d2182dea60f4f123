//! Waits for Go's locks, by uprobes where the runtime begins to wait and where it ends a wait: only contended locks come there.
//! [`super::go_parks`] has all other waits, by the same means.
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
    cookie,
    go_wait::{Cookie, Key, Pending},
    wire::{GoWait, counter, go_site, go_wait, kind, stack_fault},
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
pub(super) fn at(ctx: &ProbeContext, hits: u32) -> Option<Cookie> {
    if control().armed == 0 {
        return None;
    }
    count(hits);
    // SAFETY: a helper on the program's own context.
    let known = Cookie::unpack(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    // SAFETY: the current task's registers.
    let flags = unsafe { reg!(current_regs(), eflags) };
    (!cookie::is_repeated(known.on_check, flags)).then_some(known)
}

/// A goroutine is about to wait, unless it gets the lock in that moment.
#[inline(always)]
fn begin(ctx: &ProbeContext, site: u32) {
    let Some(cookie) = at(ctx, counter::GO_LOCK_HITS) else {
        return;
    };
    if control().go_locks_ns == u64::MAX {
        return;
    }
    let regs = current_regs();
    // SAFETY: the current task's registers.
    let (address, g) = unsafe { (reg!(regs, rax), reg!(regs, r14)) };
    let wait = Begun {
        g,
        goid: cookie.goid,
        address,
        site,
        reason: 0,
        // One that is not told is known to have begun: its end must not be taken for that of the goroutine's wait before.
        told: site != go_site::NOTIFY_LIST || cookie.all,
    };
    let Some((before, _)) = wait.keep() else { return };
    if !before.is_open() {
        return;
    }
    if before.site != go_site::PARK {
        // It got its lock without a wait.
        count(counter::GO_UNPARKED);
    } else if before.started_ns >= control().go_parks_ns {
        count(counter::GO_PARK_UNENDED);
    }
}

/// A wait that begins in the current thread.
pub(super) struct Begun {
    /// The goroutine, and where its number is.
    pub(super) g: u64,
    pub(super) goid: u16,
    pub(super) address: u64,
    pub(super) site: u32,
    pub(super) reason: u32,
    /// It is to have a record.
    pub(super) told: bool,
}

impl Begun {
    /// Keeps it until it ends; the goroutine's last one, of weight 0 when there is none, and the new one's weight. `None`: it was not
    /// kept, counted.
    #[inline(always)]
    pub(super) fn keep(&self) -> Option<(Pending, u32)> {
        let regs = current_regs();
        let ids = bpf_get_current_pid_tgid();
        let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
        // SAFETY: a read of user memory that cannot fault.
        let goid = unsafe { bpf_probe_read_user(self.g.wrapping_add(u64::from(self.goid)) as *const u64) };
        let Ok(goid) = goid else {
            count(counter::USER_FAULT);
            return None;
        };
        let weight = if self.told { chosen() } else { 0 };
        let key = Key {
            g: self.g,
            tgid,
            reserved: 0,
        };
        // SAFETY: a helper without preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        let stack = if weight == 0 {
            0
        } else {
            stack_in_program(regs, tgid, tid, now)
        };
        if self.site == go_site::PARK && stack == u64::from(stack_fault::PENDING) {
            count(counter::GO_PARK_PENDING);
        }
        let fresh = Pending {
            started_ns: now,
            woken_ns: 0,
            address: self.address,
            goid,
            stack,
            site: self.site,
            weight,
            reason: self.reason,
            reserved: 0,
        };
        if let Some(pending) = GO_WAITS.get_ptr_mut(key) {
            // SAFETY: a value of the map, which nobody deletes; another thread writes to it only while the goroutine waits.
            let before = unsafe { *pending };
            // SAFETY: as above.
            unsafe { *pending = fresh };
            Some((before, weight))
        } else if GO_WAITS.insert(key, fresh, 0).is_err() {
            count(counter::MAP_FULL);
            None
        } else {
            Some((Pending::default(), weight))
        }
    }
}

/// A goroutine's wait is over: it is made runnable.
#[inline(always)]
fn end(ctx: &ProbeContext) {
    let Some(cookie) = at(ctx, counter::GO_LOCK_HITS) else {
        return;
    };
    let since_ns = control().go_locks_ns;
    if since_ns == u64::MAX {
        return;
    }
    let regs = current_regs();
    // SAFETY: the current task's registers; a read of user memory that cannot fault.
    let (g, own) = unsafe {
        (
            bpf_probe_read_user(reg!(regs, rax).wrapping_add(u64::from(cookie.sudog_g)) as *const u64),
            reg!(regs, r14),
        )
    };
    let Ok(g) = g else {
        count(counter::USER_FAULT);
        return;
    };
    let Some(pending) = waiting(g) else {
        count(counter::GO_UNMATCHED);
        return;
    };
    if pending.site == go_site::PARK || pending.started_ns < since_ns {
        count(counter::GO_UNMATCHED);
        return;
    }
    tell(pending, |now, tgid, tid| {
        // SAFETY: a read of user memory that cannot fault.
        let goid = unsafe {
            bpf_probe_read_user(own.wrapping_add(u64::from(cookie.goid)) as *const u64).unwrap_or(0)
        };
        (stack_in_program(regs, tgid, tid, now), goid)
    });
}

/// The last wait of a goroutine of this process.
#[inline(always)]
pub(super) fn waiting(g: u64) -> Option<&'static mut Pending> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let pending = GO_WAITS.get_ptr_mut(Key { g, tgid, reserved: 0 })?;
    // SAFETY: a value of the map, which nobody deletes; the goroutine waits until it is made runnable, after this.
    Some(unsafe { &mut *pending })
}

/// Ends a wait and sends it, with stack and number of who ended it, which are asked for only then. `false`: it was not one to end.
#[inline(always)]
pub(super) fn tell(pending: &mut Pending, waker: impl FnOnce(u64, u32, u32) -> (u64, u64)) -> bool {
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(ended) = pending.end(now) else {
        return false;
    };
    if now.saturating_sub(ended.since_ns) < control().min_wait_ns {
        count(counter::GO_SHORT);
        return true;
    }
    let (waker_stack, waker_goid) = waker(now, tgid, tid);
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
            (*record).reason = pending.reason;
        }
    });
    true
}
