//! Births and deaths of descriptors, by the tracepoints of single system calls: the route for kernels that refuse
//! trampolines. A death counts at the call's entry (its number is free before the call returns), a birth at the exit.

use core::ffi::{c_long, c_void};

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_user,
        generated::bpf_loop,
    },
    macros::{map, tracepoint},
    maps::LruHashMap,
    programs::TracePointContext,
};
use aya_log_ebpf::warn;
use tracer_ebpf::{
    births::{Birth, CLONE_PIDFD, birth},
    nr,
    wire::{CONTROL_MAX, FdClose, FdOpen, FdRights, FdUring, counter, fd_close, kind},
};

use super::{
    emit::{header, in_place, plain},
    go_start::goroutine,
    maps::{control, count, is_target, uring_offsets},
    stack::{Place, stack},
    task::{Call, call, current_regs},
};

/// `struct trace_event_raw_sys_exit`: 8 common bytes, `long id`, `long ret`.
const EXIT_RET: usize = 16;
/// `struct trace_event_raw_sys_enter`-like syscall records: 8 common bytes, `int nr`, then arguments from 16.
const ENTER_ARGS: usize = 16;

#[inline(always)]
fn target() -> Option<(u32, u32)> {
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    (is_target(tgid) && control().armed != 0).then_some((tgid, tid))
}

/// Reads a word of the tracepoint's record.
///
/// # Safety
///
/// `offset` must lie inside the record.
#[inline(always)]
unsafe fn field<T: Copy>(ctx: &TracePointContext, offset: usize) -> T {
    // SAFETY: by the caller's promise.
    unsafe { ctx.as_ptr().cast::<u8>().add(offset).cast::<T>().read_volatile() }
}

/// `syscalls:sys_exit_*` of every call in [`tracer_ebpf::births::CALLS`].
#[tracepoint]
pub fn fd_open_exit(ctx: TracePointContext) -> u32 {
    // SAFETY: inside the record.
    let result: i64 = unsafe { field(&ctx, EXIT_RET) };
    if result < 0 {
        return 0;
    }
    let Some(task) = target() else { return 0 };
    let regs = current_regs();
    let call = call(regs);
    let fds = match birth(call.nr, &call.args, result) {
        Birth::Result => Some([result as i32, -1]),
        Birth::Pair(at) => read::<[i32; 2]>(at),
        Birth::At(at) => pidfd(at),
        Birth::CloneArgs(at) => match read::<[u64; 2]>(at) {
            Some([flags, at]) if flags & CLONE_PIDFD != 0 => pidfd(at),
            _ => return 0,
        },
        // Control data is walked by programs of its own.
        Birth::None | Birth::Message(_) | Birth::Messages(_) => return 0,
    };
    // One place only, which the verifier follows once.
    match fds {
        Some(fds) => born(task, regs, &call, fds),
        None => count(counter::USER_FAULT),
    }
    0
}

/// The descriptor that a call wrote to user memory.
#[inline(always)]
fn pidfd(at: u64) -> Option<[i32; 2]> {
    read::<i32>(at).map(|fd| [fd, -1])
}

#[inline(always)]
fn read<T>(at: u64) -> Option<T> {
    // SAFETY: a read of user memory that cannot fault.
    unsafe { bpf_probe_read_user(at as *const T) }.ok()
}

#[inline(always)]
fn born((tgid, tid): (u32, u32), regs: *const pt_regs, call: &Call, [fd, fd2]: [i32; 2]) {
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let stack = stack(regs, Place::Descriptors, tgid, tid, now);
    let goroutine = goroutine(tgid, regs);
    plain(
        FdOpen {
            header: header(kind::FD_OPEN, tgid, tid, now),
            nr: call.nr,
            fd,
            fd2,
            args: [call.args[0], call.args[1], call.args[2], call.args[3]],
            stack,
            goid: goroutine.goid,
            parent_goid: goroutine.parent,
            creator: goroutine.creator,
        },
        counter::FD_RING_FULL,
    );
}

/// `syscalls:sys_enter_close`.
#[tracepoint]
pub fn fd_close_enter(ctx: TracePointContext) -> u32 {
    let Some(task) = target() else { return 0 };
    // SAFETY: inside the record.
    let fd: u64 = unsafe { field(&ctx, ENTER_ARGS) };
    dead(task, nr::CLOSE, fd as u32, fd as u32, 0);
    0
}

/// `syscalls:sys_enter_close_range`.
#[tracepoint]
pub fn fd_close_range_enter(ctx: TracePointContext) -> u32 {
    let Some(task) = target() else { return 0 };
    // SAFETY: inside the record.
    let (first, last, flags): (u64, u64, u64) = unsafe {
        (
            field(&ctx, ENTER_ARGS),
            field(&ctx, ENTER_ARGS + 8),
            field(&ctx, ENTER_ARGS + 16),
        )
    };
    dead(
        task,
        nr::CLOSE_RANGE,
        first as u32,
        last as u32,
        flags as u32 & (fd_close::UNSHARE | fd_close::CLOEXEC),
    );
    0
}

#[inline(always)]
fn dead((tgid, tid): (u32, u32), nr: i64, first: u32, last: u32, flags: u32) {
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    plain(
        FdClose {
            header: header(kind::FD_CLOSE, tgid, tid, now),
            nr,
            first,
            last,
            flags,
            reserved: 0,
        },
        counter::FD_RING_FULL,
    );
}

/// The parts of `struct msghdr` (LP64) that matter here.
const MSG_CONTROL: u64 = 32;
/// The smallest control data with a descriptor: a `cmsghdr` and one `int`.
const CONTROL_MIN: u64 = 20;
/// `sizeof(struct mmsghdr)`.
const MMSGHDR: u64 = 64;
/// Messages of one `recvmmsg` that are walked.
const MESSAGES_MAX: u32 = 16;

/// `syscalls:sys_exit_recvmsg`.
#[tracepoint]
pub fn fd_recvmsg_exit(ctx: TracePointContext) -> u32 {
    // SAFETY: inside the record.
    let result: i64 = unsafe { field(&ctx, EXIT_RET) };
    if result < 0 {
        return 0;
    }
    let Some(task) = target() else { return 0 };
    let regs = current_regs();
    let call = call(regs);
    if let Birth::Message(at) = birth(call.nr, &call.args, result)
        && let Some(data) = control_data(at)
    {
        // SAFETY: a helper without preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        let stack = stack(regs, Place::Descriptors, task.0, task.1, now);
        rights(&Received::new(task, &call, stack, now), data[0], data[1]);
    }
    0
}

/// `syscalls:sys_exit_recvmmsg`.
#[tracepoint]
pub fn fd_recvmmsg_exit(ctx: TracePointContext) -> u32 {
    // SAFETY: inside the record.
    let result: i64 = unsafe { field(&ctx, EXIT_RET) };
    if result <= 0 {
        return 0;
    }
    let Some(task) = target() else { return 0 };
    let regs = current_regs();
    let call = call(regs);
    if let Birth::Messages(at) = birth(call.nr, &call.args, result) {
        if result > i64::from(MESSAGES_MAX) {
            count(counter::CONTROL_TRUNCATED);
            warn!(
                &ctx,
                "recvmmsg of {} brought {} messages, more than are looked at", task.0, result
            );
        }
        let mut scan = Scan {
            at,
            messages: result as u64,
            lengths: 0,
        };
        // The kernel's loop: of one of our own the verifier would follow every way to the stack's recognition.
        // SAFETY: the callback is given what it expects.
        unsafe {
            bpf_loop(
                MESSAGES_MAX,
                scan_message as *mut c_void,
                (&raw mut scan).cast(),
                0,
            );
        }
        if scan.lengths == 0 {
            return 0;
        }
        // SAFETY: a helper without preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        // One stack for all messages.
        let stack = stack(regs, Place::Descriptors, task.0, task.1, now);
        let mut each = Each {
            scan,
            received: Received::new(task, &call, stack, now),
        };
        // SAFETY: as above.
        unsafe {
            bpf_loop(
                MESSAGES_MAX,
                each_message as *mut c_void,
                (&raw mut each).cast(),
                0,
            );
        }
    }
    0
}

/// Messages that one call received.
#[derive(Clone, Copy)]
struct Scan {
    at: u64,
    messages: u64,
    /// Lengths of their control data, one over the other: 0 when none has any.
    lengths: u64,
}

/// Messages whose descriptors are told.
struct Each {
    scan: Scan,
    received: Received,
}

unsafe extern "C" fn scan_message(index: u32, scan: *mut c_void) -> c_long {
    // SAFETY: the scan of `fd_recvmmsg_exit`.
    let scan = unsafe { &mut *scan.cast::<Scan>() };
    let index = u64::from(index);
    if index >= scan.messages {
        return 1;
    }
    if let Some(data) = control_data(scan.at + index * MMSGHDR) {
        scan.lengths |= data[1];
    }
    0
}

unsafe extern "C" fn each_message(index: u32, each: *mut c_void) -> c_long {
    // SAFETY: that of `fd_recvmmsg_exit`.
    let each = unsafe { &*each.cast::<Each>() };
    let index = u64::from(index);
    if index >= each.scan.messages {
        return 1;
    }
    if let Some(data) = control_data(each.scan.at + index * MMSGHDR) {
        rights(&each.received, data[0], data[1]);
    }
    0
}

/// What the messages of one call have in common.
struct Received {
    tgid: u32,
    tid: u32,
    nr: i64,
    socket: u32,
    stack: u64,
    now: u64,
}

impl Received {
    #[inline(always)]
    fn new((tgid, tid): (u32, u32), call: &Call, stack: u64, now: u64) -> Self {
        Self {
            tgid,
            tid,
            nr: call.nr,
            socket: call.args[0] as u32,
            stack,
            now,
        }
    }
}

/// Address and length of a message's control data, if that may hold descriptors.
#[inline(always)]
fn control_data(message: u64) -> Option<[u64; 2]> {
    let Some([control, total]) = read::<[u64; 2]>(message + MSG_CONTROL) else {
        count(counter::USER_FAULT);
        return None;
    };
    (control != 0 && total >= CONTROL_MIN).then_some([control, total])
}

#[inline(never)]
fn rights(received: &Received, control: u64, total: u64) {
    let len = if total > CONTROL_MAX as u64 {
        count(counter::CONTROL_TRUNCATED);
        CONTROL_MAX as u32
    } else {
        total as u32
    };
    in_place::<FdRights>(counter::FD_RING_FULL, |record| {
        // SAFETY: the slot in the ring; the helper writes at most `CONTROL_MAX` bytes and cannot fault.
        unsafe {
            (*record).header = header(kind::FD_RIGHTS, received.tgid, received.tid, received.now);
            (*record).nr = received.nr;
            (*record).socket = received.socket;
            (*record).len = len;
            (*record).total = total;
            (*record).stack = received.stack;
            let read = aya_ebpf::helpers::generated::bpf_probe_read_user(
                (&raw mut (*record).control).cast(),
                len,
                control as *const _,
            );
            if read != 0 {
                (*record).len = 0;
                count(counter::USER_FAULT);
            }
        }
    });
}

/// What completion must know of a request.
#[derive(Clone, Copy)]
#[repr(C)]
struct UringRequest {
    opcode: u32,
    file_index: u32,
}

/// Request → what it does, for requests that make or end descriptors. Written at submission, taken at completion. Full: the
/// oldest is forgotten, its birth shows as unseen.
#[map]
static URING: LruHashMap<u64, UringRequest> = LruHashMap::with_max_entries(8192, 0);

/// Opcodes (`enum io_uring_op`) that make or end descriptors and whose completion tells which. `IORING_OP_PIPE` writes its pair to
/// memory: it shows as unseen.
const OP_ACCEPT: u32 = 13;
const OP_OPENAT: u32 = 18;
const OP_CLOSE: u32 = 19;
const OP_OPENAT2: u32 = 28;
const OP_SOCKET: u32 = 45;

/// `io_uring:io_uring_submit_req`: in the submitter, whose stack is the one to keep.
#[tracepoint]
pub fn fd_uring_submit(ctx: TracePointContext) -> u32 {
    let Some((tgid, tid)) = target() else { return 0 };
    let offsets = uring_offsets();
    // SAFETY: user space took the offsets from the tracepoint's own format.
    let (request, opcode): (u64, u8) = unsafe { (field(&ctx, 16), field(&ctx, 32)) };
    let opcode = u32::from(opcode);
    let slot_at = match opcode {
        OP_OPENAT | OP_OPENAT2 => offsets.open,
        OP_ACCEPT => offsets.accept,
        OP_SOCKET => offsets.socket,
        OP_CLOSE => offsets.close,
        _ => return 0,
    };
    let file_index = request_field(request, slot_at);
    if opcode == OP_CLOSE {
        // It is carried out at submission but for rare cases; like close(2), its death counts at entry.
        if file_index == 0 && offsets.close_fd != 0 {
            let fd = request_field(request, offsets.close_fd);
            dead((tgid, tid), nr::IO_URING_ENTER, fd, fd, 0);
        }
        return 0;
    }
    if URING
        .insert(request, UringRequest { opcode, file_index }, 0)
        .is_err()
    {
        count(counter::MAP_FULL);
    }
    if file_index != 0 {
        return 0;
    }
    let regs = current_regs();
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let stack = stack(regs, Place::Descriptors, tgid, tid, now);
    plain(
        FdUring {
            header: header(kind::FD_URING, tgid, tid, now),
            opcode,
            result: FdUring::SUBMITTED,
            stack,
            request,
        },
        counter::FD_RING_FULL,
    );
    0
}

/// A word of a request at `offset`; 0 when the kernel has no such field.
#[inline(always)]
fn request_field(request: u64, offset: u32) -> u32 {
    if offset == 0 {
        return 0;
    }
    // SAFETY: a read of kernel memory that cannot fault.
    unsafe { bpf_probe_read_kernel((request + u64::from(offset)) as *const u32) }.unwrap_or(0)
}

/// `io_uring:io_uring_complete`: in whatever task; the request tells whose it is.
#[tracepoint]
pub fn fd_uring_complete(ctx: TracePointContext) -> u32 {
    // SAFETY: as in `fd_uring_submit`.
    let (request, result): (u64, i32) = unsafe { (field(&ctx, 16), field(&ctx, 32)) };
    // SAFETY: copied out at once.
    let Some(known) = (unsafe { URING.get(request) }).copied() else {
        return 0;
    };
    // A multishot accept completes many times; the entry goes when the request's memory is used anew or by age.
    if known.opcode != OP_ACCEPT && URING.remove(request).is_err() {
        return 0;
    }
    if result < 0 || known.file_index != 0 {
        return 0;
    }
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    plain(
        FdUring {
            header: header(kind::FD_URING, 0, 0, now),
            opcode: known.opcode,
            result,
            stack: 0,
            request,
        },
        counter::FD_RING_FULL,
    );
    0
}
