//! Which goroutine makes a system call, and who made it: see [`tracer_ebpf::go_start`].

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_NO_PREALLOC, pt_regs},
    helpers::{
        bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_ktime_get_ns,
        bpf_probe_read_user, generated::bpf_probe_read_user as probe_read_user,
    },
    macros::{map, uprobe},
    maps::{HashMap, LruHashMap},
    programs::ProbeContext,
};
use tracer_ebpf::{
    cookie,
    go_start::{Asked, Cookie, Key, is_on},
    wire::{GO_BYTES, GoLayout, GoStart, NO_FIELD, counter, kind},
};

use super::{
    emit::{header, plain, ring_is_crowded},
    maps::{control, count, fs_base_offset, tells_goroutines},
    stack::{descriptors_scratch, stack_in_program},
    task::{current_regs, reg},
};

/// tgid → how to tell its goroutines; only processes that run a Go program. Written by user space, read where descriptors are born.
/// Full: that process's descriptors have no goroutine.
#[map]
static GO_TARGETS: HashMap<u32, GoLayout> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Closure, or maker → a goroutine that was asked for and has not begun. Written and read by the probes below. Full: the one asked
/// for longest ago is forgotten and has no maker.
#[map]
static GO_ASKED: LruHashMap<Key, Asked> = LruHashMap::with_max_entries(4096, 0);

/// A goroutine; zeros when it is none.
#[derive(Clone, Copy)]
pub(super) struct Goroutine {
    pub(super) goid: u64,
    pub(super) parent: u64,
    pub(super) creator: u64,
}

const NONE: Goroutine = Goroutine {
    goid: 0,
    parent: 0,
    creator: 0,
};

/// A word of the program's memory; 0 when it cannot be read.
#[inline(always)]
fn word(at: u64) -> u64 {
    // SAFETY: a read of user memory that cannot fault.
    unsafe { bpf_probe_read_user(at as *const u64) }.unwrap_or(0)
}

/// Copies a goroutine's descriptor, as far as it is needed; one call, as each costs as much as a look-up.
#[inline(always)]
fn copy(to: *mut u64, g: u64, layout: &GoLayout) -> bool {
    // SAFETY: the scratch has room for `GO_BYTES`; the helper cannot fault.
    unsafe { probe_read_user(to.cast(), layout.bytes & (GO_BYTES - 1), g as *const _) == 0 }
}

/// A word of what was copied.
#[inline(always)]
fn field(from: *const u64, offset: u16) -> u64 {
    // SAFETY: masked to `GO_BYTES`.
    unsafe {
        from.add((offset as usize / 8) & (GO_BYTES as usize / 8 - 1))
            .read_volatile()
    }
}

/// The goroutine that makes the present system call. Its thread keeps the one that it runs in thread-local storage: believed when
/// that one's stack is the stack in use, and its thread says the same of it. In C code, or the runtime's own, it is the thread's
/// first goroutine, which knows the one that waits for it.
#[inline(always)]
pub(super) fn goroutine(tgid: u32, regs: *const pt_regs) -> Goroutine {
    if !tells_goroutines() {
        return NONE;
    }
    // SAFETY: copied out at once.
    let Some(layout) = (unsafe { GO_TARGETS.get(tgid) }).copied() else {
        return NONE;
    };
    let copied = descriptors_scratch();
    if copied.is_null() {
        return NONE;
    }
    // SAFETY: the current task is trusted; the verifier knows the offset, a constant, and lets the load through as one of that
    // member. The registers are the current task's.
    let (base, sp) = unsafe {
        let task = bpf_get_current_task_btf().cast::<u8>();
        (
            task.add(fs_base_offset()).cast::<u64>().read_volatile(),
            reg!(regs, rsp),
        )
    };
    let g = word(base.wrapping_add(layout.tls));
    if !copy(copied, g, &layout) {
        return NONE;
    }
    let stack = [field(copied, layout.stack), field(copied, layout.stack + 8)];
    if !is_on(sp, stack) {
        return NONE;
    }
    let m = field(copied, layout.m);
    let running = word(m + u64::from(layout.curg));
    if field(copied, layout.goid) == 0 {
        if running == 0 || !copy(copied, running, &layout) || field(copied, layout.m) != m {
            return NONE;
        }
    } else if running != g {
        return NONE;
    }
    let goid = field(copied, layout.goid);
    if goid == 0 {
        return NONE;
    }
    Goroutine {
        goid,
        parent: if layout.parent == NO_FIELD {
            0
        } else {
            field(copied, layout.parent)
        },
        creator: field(copied, layout.creator),
    }
}

/// What this place is, unless the hit does not count.
#[inline(always)]
fn at(ctx: &ProbeContext) -> Option<Cookie> {
    if control().armed == 0 {
        return None;
    }
    count(counter::GO_START_HITS);
    // SAFETY: a helper on the program's own context.
    let known = Cookie::unpack(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    // SAFETY: the current task's registers.
    let flags = unsafe { reg!(current_regs(), eflags) };
    (!cookie::is_repeated(known.on_check, flags)).then_some(known)
}

/// A goroutine is at a `go` statement.
#[uprobe]
pub fn go_asked(ctx: ProbeContext) -> u32 {
    let Some(cookie) = at(&ctx) else { return 0 };
    let regs = current_regs();
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    // SAFETY: the current task's registers.
    let (g, closure) = unsafe { (reg!(regs, r14), reg!(regs, rax)) };
    let key = Key {
        at: if cookie.all { g } else { closure },
        tgid,
        reserved: 0,
    };
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let asked = Asked {
        goid: word(g + u64::from(cookie.goid)),
        asked_ns: now,
        stack: stack_in_program(regs, tgid, tid, now),
    };
    if GO_ASKED.insert(key, asked, 0).is_err() {
        count(counter::MAP_FULL);
    }
    0
}

/// A goroutine begins, or is about to be queued by its maker.
#[uprobe]
pub fn go_started(ctx: ProbeContext) -> u32 {
    let Some(cookie) = at(&ctx) else { return 0 };
    let regs = current_regs();
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    // SAFETY: the current task's registers.
    let (r14, rbx, rdx) = unsafe { (reg!(regs, r14), reg!(regs, rbx), reg!(regs, rdx)) };
    let (g, at) = if cookie.all {
        let m = word(r14 + u64::from(cookie.m));
        (rbx, word(m + u64::from(cookie.curg)))
    } else {
        (r14, rdx)
    };
    let key = Key {
        at,
        tgid,
        reserved: 0,
    };
    // Not at the place probed, or asked for before it was: nobody's.
    // SAFETY: copied out at once.
    let Some(asked) = (unsafe { GO_ASKED.get(key) }).copied() else {
        return 0;
    };
    // Gone already when the map was short of room.
    let _ = GO_ASKED.remove(key);
    let goid = word(g + u64::from(cookie.goid));
    // What another asked for at this address, and was not seen to begin.
    let parent = if cookie.parent == 0 {
        asked.goid
    } else {
        word(g + u64::from(cookie.parent))
    };
    if goid == 0 || asked.goid == 0 || parent != asked.goid {
        return 0;
    }
    // The last quarter is for records without which the tables are wrong.
    if ring_is_crowded() {
        count(counter::RING_FULL);
        return 0;
    }
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    plain(
        GoStart {
            header: header(kind::GO_START, tgid, tid, now),
            goid,
            parent_goid: asked.goid,
            asked_ns: asked.asked_ns,
            stack: asked.stack,
        },
        counter::RING_FULL,
    );
    0
}
