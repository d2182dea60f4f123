//! What the scheduler probes remember of each thread, and how they read tasks and registers.

use aya_ebpf::{
    bindings::{pt_regs, task_struct},
    helpers::{
        bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user, generated::bpf_task_pt_regs,
    },
};
use tracer_ebpf::{
    nr,
    rules::{self, Timeout},
    wire::{DELAYS, Regs, stack_fault},
};

use super::maps::{ran_offsets, signal_offsets, task_offsets};

/// Value of the map `TASKS`. Written by the thread itself at switch-out, by its waker under the kernel's `pi_lock`, and
/// at switch-in. The run queue's lock orders the switches; a waker that comes between the beginning of a switch-out and its
/// new `phase` tells of an early wake-up, in fields that the switch-out has dealt with before.
#[repr(C)]
pub(super) struct TaskState {
    pub(super) seq: u64,
    pub(super) out_ns: u64,
    /// When it was woken from the present sleep, 0 before.
    pub(super) wake_ns: u64,
    /// When a wake-up came before its switch-out, 0 without.
    pub(super) early_ns: u64,
    pub(super) in_ns: u64,
    pub(super) running_total_ns: u64,
    /// The sleep's stack, and that of who ended it ([`tracer_ebpf::wire::stack_ref`]).
    pub(super) stack: u64,
    pub(super) waker_stack: u64,
    pub(super) timeout_ns: u64,
    /// Sleeps too short for a record: how many, how long together.
    pub(super) short_ns: u64,
    pub(super) short_count: u32,
    /// How many sleeps the present one stands for; 0: it was not chosen and gets no record.
    pub(super) weight: u32,
    /// Length together of the sleeps that were not chosen.
    pub(super) skipped_ns: u64,
    /// Delays that wait to be sent, and how many went before.
    pub(super) delays_len: u32,
    pub(super) delays_first: u64,
    pub(super) delays: [u32; DELAYS],
    pub(super) nr: i64,
    pub(super) args: [u64; 6],
    pub(super) tgid: u32,
    pub(super) tid: u32,
    /// One of [`tracer_ebpf::wire::phase`].
    pub(super) phase: u32,
    /// The kernel's state of the present sleep.
    pub(super) state: u32,
    pub(super) kstack: i32,
    pub(super) waker_kind: u32,
    pub(super) waker_tgid: u32,
    pub(super) waker_tid: u32,
    pub(super) signal: u32,
    /// 1 once it has begun to exit: what it still waits for is nobody's wait.
    pub(super) dead: u32,
}

/// A system call in registers.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) nr: i64,
    pub(super) args: [u64; 6],
}

/// Reads one saved register. Volatile: the verifier refuses an instruction that reads kernel registers on one path and our
/// own memory on another, which is what the compiler makes of two equal-looking loads.
macro_rules! reg {
    ($regs:expr, $name:ident) => {
        (&raw const (*$regs).$name).read_volatile()
    };
}
pub(super) use reg;

/// User registers of `task` as saved at its kernel entry.
///
/// # Safety
///
/// As [`super::maps::task_state`].
#[inline(always)]
pub(super) unsafe fn user_regs(task: *mut task_struct) -> *const pt_regs {
    // SAFETY: by the caller's promise.
    unsafe { bpf_task_pt_regs(task) as *const pt_regs }
}

/// The current task's registers.
#[inline(always)]
pub(super) fn current_regs() -> *const pt_regs {
    // SAFETY: the current task is trusted.
    unsafe { user_regs(bpf_get_current_task_btf()) }
}

pub(super) const USER_CS_64: u64 = 0x33;
const USER_CS_32: u64 = 0x23;

/// Whether the registers are a 64-bit user's; kernel threads have none.
#[inline(always)]
pub(super) fn is_user_64(regs: *const pt_regs) -> bool {
    // SAFETY: from `bpf_task_pt_regs`, which the verifier knows.
    unsafe { reg!(regs, cs) == USER_CS_64 }
}

/// The call that the registers belong to; number −1 for kernel threads, faults and interrupts.
#[inline(always)]
pub(super) fn call(regs: *const pt_regs) -> Call {
    // SAFETY: as above.
    unsafe {
        let cs = reg!(regs, cs);
        if cs != USER_CS_64 && cs != USER_CS_32 {
            return Call { nr: -1, args: [0; 6] };
        }
        Call {
            nr: reg!(regs, orig_rax) as i64,
            args: [
                reg!(regs, rdi),
                reg!(regs, rsi),
                reg!(regs, rdx),
                reg!(regs, r10),
                reg!(regs, r8),
                reg!(regs, r9),
            ],
        }
    }
}

/// Copies the registers into a record.
///
/// # Safety
///
/// `to` must be writable, `from` come from [`user_regs`].
#[inline(always)]
pub(super) unsafe fn copy_regs(to: *mut Regs, from: *const pt_regs) {
    // SAFETY: by the caller's promise.
    unsafe {
        (*to).ip = reg!(from, rip);
        (*to).sp = reg!(from, rsp);
        (*to).gp[0] = reg!(from, rax);
        (*to).gp[1] = reg!(from, rdx);
        (*to).gp[2] = reg!(from, rcx);
        (*to).gp[3] = reg!(from, rbx);
        (*to).gp[4] = reg!(from, rsi);
        (*to).gp[5] = reg!(from, rdi);
        (*to).gp[6] = reg!(from, rbp);
        (*to).gp[7] = reg!(from, rsp);
        (*to).gp[8] = reg!(from, r8);
        (*to).gp[9] = reg!(from, r9);
        (*to).gp[10] = reg!(from, r10);
        (*to).gp[11] = reg!(from, r11);
        (*to).gp[12] = reg!(from, r12);
        (*to).gp[13] = reg!(from, r13);
        (*to).gp[14] = reg!(from, r14);
        (*to).gp[15] = reg!(from, r15);
        (*to).stack_len = 0;
        (*to).fault = stack_fault::NONE;
        (*to).missing = 0;
        (*to).reserved = 0;
    }
}

/// `pid` and `tgid` of a task that is not current.
#[inline(always)]
pub(super) fn ids(task: *const task_struct) -> (u32, u32) {
    let (pid, tgid) = task_offsets();
    let base = task.cast::<u8>();
    // SAFETY: reads of kernel memory that cannot fault; the offsets come from the kernel's BTF.
    unsafe {
        (
            bpf_probe_read_kernel(base.add(pid).cast::<u32>()).unwrap_or(0),
            bpf_probe_read_kernel(base.add(tgid).cast::<u32>()).unwrap_or(0),
        )
    }
}

/// How long a task that leaves the CPU now has had it.
#[inline(always)]
pub(super) fn ran_ns(task: *const task_struct) -> u64 {
    let (now, before) = ran_offsets();
    let base = task.cast::<u8>();
    // SAFETY: reads of kernel memory that cannot fault; the offsets come from the kernel's BTF.
    unsafe {
        let now: u64 = bpf_probe_read_kernel(base.add(now).cast()).unwrap_or(0);
        let before: u64 = bpf_probe_read_kernel(base.add(before).cast()).unwrap_or(0);
        now.saturating_sub(before)
    }
}

/// Whether a signal waits for `task` that it does not block: its own pending set and its process's. (The flag that says so in
/// `thread_info` has another number from kernel to kernel.)
#[inline(always)]
pub(super) fn signal_pending(task: *const task_struct) -> bool {
    let offsets = signal_offsets();
    let base = task.cast::<u8>();
    // SAFETY: reads of kernel memory that cannot fault; the offsets come from the kernel's BTF.
    unsafe {
        let word = |at: *const u8| bpf_probe_read_kernel(at.cast::<u64>()).unwrap_or(0);
        let shared = word(base.add(offsets.signal)) as *const u8;
        let mut pending = word(base.add(offsets.pending));
        if !shared.is_null() {
            pending |= word(shared.add(offsets.shared));
        }
        pending & !word(base.add(offsets.blocked)) != 0
    }
}

/// The time-out that a call was given, in ns; `u64::MAX` without.
#[inline(always)]
pub(super) fn timeout_ns(call: &Call) -> u64 {
    let Timeout::Timespec(pointer) = rules::timeout(call.nr, &call.args) else {
        return u64::MAX;
    };
    if pointer == 0 {
        return u64::MAX;
    }
    // SAFETY: a read of user memory that cannot fault.
    match unsafe { bpf_probe_read_user(pointer as *const [u64; 2]) } {
        Ok([seconds, nanos]) => seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos),
        Err(_) => u64::MAX,
    }
}

/// Puts what a call keeps in memory where user space expects it: `futex_waitv`'s first word.
#[inline(always)]
pub(super) fn complete(call: &mut Call) {
    if call.nr == nr::FUTEX_WAITV {
        // struct futex_waitv { u64 val; u64 uaddr; u32 flags; u32 reserved; }
        // SAFETY: a read of user memory that cannot fault.
        call.args[5] = unsafe { bpf_probe_read_user((call.args[0] + 8) as *const u64) }.unwrap_or(0);
    }
}
