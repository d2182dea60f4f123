//! Waits and run queue, at the scheduler: every real sleep and nothing else.

use aya_ebpf::{
    bindings::task_struct,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_ktime_get_ns},
    macros::btf_tracepoint,
    programs::{BtfTracePointContext, tracing::StackIdContext as _},
};
use aya_log_ebpf::warn;
use tracer_ebpf::{
    delay,
    rules::{self, Side, Waker},
    wire::{DELAYS, Delays, Exec, Exit, Fork, Wait, counter, feature, kind, phase, stack_fault, wait},
};

use super::{
    emit::{header, in_place, plain},
    maps::{KSTACKS, chosen, control, count, has, is_target, make_task_state, set_space, space, task_state},
    stack::{Place, stack},
    task::{self, Call, TaskState, call, complete, current_regs, ids, ran_ns, signal_pending, user_regs},
};

const TASK_INTERRUPTIBLE: u32 = 1;
const TASK_UNINTERRUPTIBLE: u32 = 2;
/// `__TASK_STOPPED | __TASK_TRACED | EXIT_DEAD | EXIT_ZOMBIE | … | TASK_DEAD`: not waits for anything we can name, the
/// dead ones never come back.
const TASK_DEAD: u32 = 0x80;

/// A wake-up may be announced a moment before the sleeper's switch-out is: it belongs to that sleep when no more than this
/// lies between them, else it met a thread that had not gone to sleep at all.
const EARLY_NS: u64 = 50_000;

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state)`, the last
/// argument from 5.18. `prev` is the current task.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let preempt: u64 = ctx.arg(0);
    let prev: *mut task_struct = ctx.arg(1);
    let next: *mut task_struct = ctx.arg(2);
    let prev_state: u32 = ctx.arg(3);
    // SAFETY: both are the tracepoint's own arguments; the states are the kernel's storage, checked for null.
    unsafe {
        // One leaves and the other comes at one moment; what we do between is no delay of the latter.
        let mut now = 0;
        let out = task_state(prev);
        if !out.is_null() {
            now = bpf_ktime_get_ns();
            switch_out(&ctx, &mut *out, prev, preempt & 1 != 0, prev_state, now);
        }
        // Only now: a pointer that may be null is another state for the verifier in all of the above.
        let into = task_state(next);
        if into.is_null() {
            return 0;
        }
        if now == 0 {
            now = bpf_ktime_get_ns();
        }
        switch_in(&mut *into, now);
    }
    0
}

#[inline(always)]
unsafe fn switch_out(
    ctx: &BtfTracePointContext,
    state: &mut TaskState,
    prev: *mut task_struct,
    preempt: bool,
    prev_state: u32,
    now: u64,
) {
    if state.dead != 0 {
        return;
    }
    let armed = control().armed != 0;
    if is_away(state) {
        count(counter::SWITCH_UNSEEN);
        let ran = ran_ns(prev);
        let since = if state.wake_ns > state.out_ns {
            state.wake_ns
        } else {
            state.out_ns
        };
        let came = if now.saturating_sub(since) > ran {
            now - ran
        } else {
            since
        };
        // A wake-up that came early is for the sleep that begins now.
        let early = state.early_ns;
        state.early_ns = 0;
        switch_in(state, came);
        state.early_ns = early;
    }
    if armed && state.in_ns != 0 {
        state.running_total_ns += now - state.in_ns;
    }
    state.out_ns = now;
    if preempt || prev_state == 0 {
        state.phase = phase::PREEMPTED;
        return;
    }
    if prev_state & TASK_DEAD != 0 {
        state.phase = phase::RUNNING;
        return;
    }
    state.seq += 1;
    state.state = prev_state;
    if state.early_ns != 0 && state.early_ns + EARLY_NS > now {
        state.wake_ns = now;
    } else {
        state.wake_ns = 0;
        state.waker_kind = Waker::Unknown as u32;
        state.waker_tgid = 0;
        state.waker_tid = 0;
        state.waker_stack = 0;
        state.signal = 0;
    }
    state.early_ns = 0;

    // SAFETY: `prev` is the tracepoint's argument.
    let regs = unsafe { user_regs(prev) };
    let mut current = call(regs);
    // restart_syscall goes on with the call before it, whose arguments are remembered.
    if current.nr == tracer_ebpf::nr::RESTART_SYSCALL {
        current.nr = state.nr;
        current.args = state.args;
    } else {
        complete(&mut current);
    }
    state.nr = current.nr;
    state.args = current.args;
    state.weight = if armed { chosen() } else { 1 };
    // Last, as a waker on another CPU goes by it: it holds the thread's lock, not the run queue's. What began before anybody
    // listened is told as what began before attach.
    let asleep = if armed { phase::SLEEPING } else { phase::BEFORE };
    // SAFETY: a word of the state.
    unsafe { (&raw mut state.phase).write_volatile(asleep) };
    if state.weight == 0 {
        return;
    }

    let is_futex = rules::futex_wait(current.nr, &current.args).is_some();
    let wanted = armed && has(feature::WAITS) && (is_futex || !has(feature::FUTEX_ONLY));
    state.kstack = if wanted && prev_state & TASK_UNINTERRUPTIBLE != 0 {
        ctx.get_stackid(&KSTACKS, 0).map_or(-1, |id| id as i32)
    } else {
        -1
    };
    state.timeout_ns = task::timeout_ns(&current);
    state.stack = if wanted {
        stack(regs, Place::SwitchOut, state.tgid, state.tid, now)
    } else {
        u64::from(stack_fault::UNWANTED)
    };
}

/// How much of a sleep lies in the present window; what lies before is another report's.
#[inline(always)]
fn inside(from: u64, to: u64) -> u64 {
    let window = control().window_ns;
    to.saturating_sub(if from > window { from } else { window })
}

/// Whether it has no CPU as far as we were told. At a switch-out that is a switch-in which was not announced: some kernels
/// do not announce the switches away from some tasks (seen on 6.18).
#[inline(always)]
fn is_away(state: &TaskState) -> bool {
    match state.phase {
        phase::RUNNING => false,
        // Threads that ran at attach begin so.
        phase::BEFORE => state.wake_ns != 0,
        _ => state.out_ns != 0,
    }
}

/// It got a CPU at `now`.
#[inline(always)]
fn switch_in(state: &mut TaskState, now: u64) {
    if state.dead != 0 {
        return;
    }
    // A waker on another CPU may have seen it still running while it was being switched out.
    if state.phase == phase::SLEEPING
        && state.wake_ns == 0
        && state.early_ns != 0
        && state.early_ns + EARLY_NS >= state.out_ns
    {
        state.wake_ns = if state.early_ns > state.out_ns {
            state.early_ns
        } else {
            state.out_ns
        };
    }
    let before = state.phase;
    state.in_ns = now;
    state.phase = phase::RUNNING;
    state.early_ns = 0;
    if control().armed == 0 {
        return;
    }
    match before {
        phase::PREEMPTED => delayed(state, now - state.out_ns, false, now),
        phase::NEW => delayed(state, now - state.wake_ns, true, now),
        phase::SLEEPING if state.wake_ns != 0 => {
            let blocked = state.wake_ns - state.out_ns;
            let short = blocked < control().min_wait_ns;
            if state.weight != 0 && !short {
                waited(state, now, wait::WOKEN);
            } else {
                if short {
                    state.short_count += 1;
                    state.short_ns += blocked;
                } else {
                    state.skipped_ns += inside(state.out_ns, state.wake_ns);
                }
                delayed(state, now - state.wake_ns, true, now);
            }
        }
        phase::SLEEPING if state.weight == 0 => state.skipped_ns += inside(state.out_ns, now),
        phase::SLEEPING => waited(state, now, 0),
        phase::BEFORE if state.wake_ns != 0 => waited(state, now, wait::WOKEN | wait::BEFORE),
        _ => {}
    }
}

/// Keeps a delay that ends no wait; sends them when there are enough.
#[inline(always)]
fn delayed(state: &mut TaskState, ns: u64, woken: bool, now: u64) {
    if !has(feature::SCHED) {
        return;
    }
    let at = state.delays_len as usize;
    if at < DELAYS {
        state.delays[at] = delay::encode(ns, woken);
        state.delays_len = at as u32 + 1;
    }
    if at + 1 >= DELAYS {
        flush_delays(state, now);
    }
}

/// Sends the delays that were kept.
#[inline(always)]
fn flush_delays(state: &mut TaskState, now: u64) {
    let state = &raw mut *state;
    // SAFETY: the state is the thread's own now, the slot in the ring ours.
    unsafe {
        in_place::<Delays>(counter::RING_FULL, |record| {
            (*record).header = header(kind::DELAYS, (*state).tgid, (*state).tid, now);
            (*record).first = (*state).delays_first;
            (*record).len = (*state).delays_len;
            (*record).reserved = 0;
            (*record).delays = (*state).delays;
        });
        (*state).delays_first += u64::from((*state).delays_len);
        (*state).delays_len = 0;
    }
}

/// Sends a whole wait.
#[inline(always)]
fn waited(state: &TaskState, now: u64, flags: u32) {
    let signal = if state.signal != 0 { wait::SIGNAL } else { 0 };
    let before = flags & wait::BEFORE != 0;
    in_place::<Wait>(counter::RING_FULL, |record| {
        // SAFETY: the slot in the ring.
        unsafe {
            (*record).header = header(kind::WAIT, state.tgid, state.tid, now);
            (*record).seq = state.seq;
            (*record).out_ns = state.out_ns;
            (*record).wake_ns = if flags & wait::WOKEN != 0 {
                state.wake_ns
            } else {
                now
            };
            (*record).nr = state.nr;
            (*record).args = state.args;
            (*record).timeout_ns = state.timeout_ns;
            (*record).stack = if before {
                u64::from(stack_fault::UNWANTED)
            } else {
                state.stack
            };
            (*record).waker_stack = state.waker_stack;
            (*record).state = state.state;
            (*record).kstack = state.kstack;
            (*record).flags = flags | signal;
            (*record).waker_kind = state.waker_kind;
            (*record).waker_tgid = state.waker_tgid;
            (*record).waker_tid = state.waker_tid;
            (*record).running_total_ns = state.running_total_ns;
            (*record).short_count = state.short_count;
            (*record).weight = state.weight;
            (*record).short_ns = state.short_ns;
            (*record).skipped_ns = state.skipped_ns;
        }
    });
}

/// `sched_waking(struct task_struct *p)`: runs in the waker, under `p->pi_lock`.
#[btf_tracepoint(function = "sched_waking")]
pub fn sched_waking(ctx: BtfTracePointContext) -> i32 {
    let sleeper: *mut task_struct = ctx.arg(0);
    // SAFETY: the tracepoint's argument.
    let state = unsafe { task_state(sleeper) };
    if state.is_null() {
        return 0;
    }
    // SAFETY: the kernel's storage, not null; `pi_lock` keeps other wakers out.
    unsafe { waking(&mut *state, sleeper) };
    0
}

#[inline(always)]
unsafe fn waking(state: &mut TaskState, sleeper: *mut task_struct) {
    let asleep = state.phase == phase::SLEEPING || state.phase == phase::BEFORE;
    if state.dead != 0 {
        return;
    }
    if asleep && state.weight == 0 {
        // Nobody will ask who ended it.
        // SAFETY: a helper without preconditions.
        state.wake_ns = unsafe { bpf_ktime_get_ns() };
        return;
    }
    // SAFETY: helpers without preconditions; the current task is trusted.
    let (now, ids, regs) = unsafe {
        (
            bpf_ktime_get_ns(),
            bpf_get_current_pid_tgid(),
            user_regs(bpf_get_current_task_btf()),
        )
    };
    let (waker_tgid, waker_tid) = ((ids >> 32) as u32, ids as u32);
    let current = call(regs);
    // Before its switch-out the call on record is the one before; the registers have this one.
    let sleeping = if asleep {
        Call {
            nr: state.nr,
            args: state.args,
        }
    } else {
        // SAFETY: the tracepoint's argument.
        call(unsafe { user_regs(sleeper) })
    };
    let verdict = rules::waker(
        Side {
            tgid: state.tgid,
            nr: sleeping.nr,
            args: &sleeping.args,
        },
        Side {
            tgid: waker_tgid,
            nr: current.nr,
            args: &current.args,
        },
    );
    if asleep {
        state.wake_ns = now;
    } else {
        // It has not left the CPU yet: this is for the sleep to come, or for none.
        state.early_ns = now;
    }
    // Only a sleep that nobody's wake ended can have been ended by a signal.
    let by_futex = matches!(verdict, Waker::HandOver | Waker::Exit);
    state.signal = u32::from(!by_futex && signal_pending(sleeper));
    state.waker_kind = verdict as u32;
    let named = matches!(verdict, Waker::HandOver | Waker::Exit | Waker::Call);
    state.waker_tgid = if named { waker_tgid } else { 0 };
    state.waker_tid = if named { waker_tid } else { 0 };
    state.waker_stack = if verdict == Waker::HandOver && has(feature::WAKERS) && control().armed != 0 {
        stack(regs, Place::Waking, waker_tgid, waker_tid, now)
    } else {
        u64::from(stack_fault::UNWANTED)
    };
}

/// `sched_wakeup_new(struct task_struct *p)`: a new thread becomes runnable.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let new: *mut task_struct = ctx.arg(0);
    // SAFETY: the tracepoint's argument; the state is checked for null.
    unsafe {
        let state = task_state(new);
        if !state.is_null() {
            (*state).phase = phase::NEW;
            (*state).wake_ns = bpf_ktime_get_ns();
            (*state).out_ns = (*state).wake_ns;
        }
    }
    0
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`, before the child can run.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let child: *mut task_struct = ctx.arg(1);
    let parent = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((parent >> 32) as u32, parent as u32);
    if !is_target(tgid) {
        return 0;
    }
    let (child_tid, child_tgid) = ids(child);
    if child_tgid != tgid && has(feature::FOLLOW) && !set_space(child_tgid, space(tgid)) {
        count(counter::MAP_FULL);
        warn!(&ctx, "process {} is not followed: too many targets", child_tgid);
    }
    if child_tgid == tgid || has(feature::FOLLOW) {
        // SAFETY: the tracepoint's argument; the state is checked for null.
        unsafe {
            let state = make_task_state(child);
            if state.is_null() {
                count(counter::MAP_FULL);
                warn!(
                    &ctx,
                    "thread {} of {} is not traced: no memory for its state", child_tid, child_tgid
                );
            } else {
                (*state).tgid = child_tgid;
                (*state).tid = child_tid;
            }
        }
    }
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let stack = if child_tgid == tgid && has(feature::SCHED) && control().armed != 0 {
        // As in a system call, which it is: no other can come in between.
        stack(current_regs(), Place::Descriptors, tgid, tid, now)
    } else {
        u64::from(stack_fault::UNWANTED)
    };
    plain(
        Fork {
            header: header(kind::FORK, tgid, tid, now),
            child_tgid,
            child_tid,
            stack,
        },
        counter::RING_FULL,
    );
    0
}

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`: `p` is current; a thread that
/// was not the leader takes over the leader's id.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    let old_tid: u32 = ctx.arg(1);
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    // SAFETY: the tracepoint's argument; the state is checked for null.
    unsafe {
        let state = task_state(task);
        // By the thread's own state: the leader whose id it takes has just exited.
        if state.is_null() {
            return 0;
        }
        (*state).tid = tid;
        // Memos of the program before must match nothing of this one.
        if !set_space(tgid, 0) {
            count(counter::MAP_FULL);
        }
        let now = bpf_ktime_get_ns();
        plain(
            Exec {
                header: header(kind::EXEC, tgid, tid, now),
                old_tid,
                reserved: 0,
            },
            counter::RING_FULL,
        );
    }
    0
}

/// `sched_process_exit(struct task_struct *p, …)`: `p` is current.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    // SAFETY: the tracepoint's argument; the state is checked for null.
    unsafe {
        let state = task_state(task);
        if state.is_null() {
            return 0;
        }
        let state = &mut *state;
        state.dead = 1;
        let now = bpf_ktime_get_ns();
        let since = if state.in_ns != 0 { now - state.in_ns } else { 0 };
        if state.delays_len != 0 {
            flush_delays(state, now);
        }
        plain(
            Exit {
                header: header(kind::EXIT, state.tgid, state.tid, now),
                running_total_ns: state.running_total_ns + since,
                short_count: state.short_count,
                reserved: 0,
                short_ns: state.short_ns,
                skipped_ns: state.skipped_ns,
            },
            counter::RING_FULL,
        );
    }
    0
}

const _: () = assert!(TASK_INTERRUPTIBLE == 1);
