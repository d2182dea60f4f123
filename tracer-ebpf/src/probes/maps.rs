//! Maps and globals: for each its key, value, bound, who writes, who reads, and what happens when it is full.

use core::{arch::asm, ptr};

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type, task_struct},
    helpers::{
        bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_task_storage_get,
    },
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf, StackTrace},
};
use tracer_ebpf::wire::{Control, counter};

use super::task::TaskState;

/// All records, in causal order. Written by every probe, read by user space. Size set at load. Full: the record is
/// dropped and counted in [`COUNTERS`].
#[map]
pub(super) static EVENTS: RingBuf = RingBuf::with_byte_size(16 << 20, 0);

/// Counts of what was lost, by [`counter`]. Written by the probes, read by user space.
#[map]
pub(super) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// tgid → layout of its address space, as memos name it, 0 while that is not known; only traced processes. Written by user
/// space, at exec and, when children are followed, at fork; read by all probes. Full: that child is not traced, counted.
#[map]
pub(super) static TARGETS: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);

/// Numbers that change after what is in [`TARGETS`] has: the first is written by user space, the second by the probes, which
/// read both. Cannot be full.
#[map]
static EPOCHS: Array<u64> = Array::with_max_entries(2, 0);

/// One [`Control`]. Written by user space at any time, read by the probes. Cannot be full.
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// Kernel stacks of uninterruptible sleeps. Written by `sched_switch`, read by user space. Full: no kernel stack.
#[map]
pub(super) static KSTACKS: StackTrace = StackTrace::with_max_entries(2048, 0);

/// Bits of [`tracer_ebpf::wire::feature`].
#[unsafe(no_mangle)]
static FEATURES: Global<u32> = Global::new(0);
/// Size of [`EVENTS`].
#[unsafe(no_mangle)]
static RING_BYTES: Global<u32> = Global::new(16 << 20);
/// Offset of `task_struct.pid`, from the running kernel's BTF.
#[unsafe(no_mangle)]
static OFF_TASK_PID: Global<u32> = Global::new(0);
/// Offset of `task_struct.tgid`.
#[unsafe(no_mangle)]
static OFF_TASK_TGID: Global<u32> = Global::new(0);
/// Offset of the pointer `task_struct.bpf_storage`, 0 when unknown.
#[unsafe(no_mangle)]
static OFF_TASK_STORAGE: Global<u32> = Global::new(0);
/// Offset of the set in `task_struct.pending`.
#[unsafe(no_mangle)]
static OFF_TASK_PENDING: Global<u32> = Global::new(0);
/// Offset of `task_struct.blocked`.
#[unsafe(no_mangle)]
static OFF_TASK_BLOCKED: Global<u32> = Global::new(0);
/// Offset of `task_struct.signal`.
#[unsafe(no_mangle)]
static OFF_TASK_SIGNAL: Global<u32> = Global::new(0);
/// Offset of the set in `signal_struct.shared_pending`.
#[unsafe(no_mangle)]
static OFF_SIGNAL_SHARED: Global<u32> = Global::new(0);
/// Offset of `task_struct.se.sum_exec_runtime`.
#[unsafe(no_mangle)]
static OFF_TASK_RAN: Global<u32> = Global::new(0);
/// Offset of `task_struct.se.prev_sum_exec_runtime`: the same when it last got a CPU.
#[unsafe(no_mangle)]
static OFF_TASK_RAN_BEFORE: Global<u32> = Global::new(0);
/// Offset of `task_struct.thread.fsbase`.
#[unsafe(no_mangle)]
static OFF_TASK_FSBASE: Global<u32> = Global::new(0);
/// Not 0 when there may be Go programs among the targets whose descriptors are told with their goroutines.
#[unsafe(no_mangle)]
static GOROUTINES: Global<u32> = Global::new(0);
/// The only target's tgid, 0 when there are several: spares bystanders the look-up in [`TARGETS`].
#[unsafe(no_mangle)]
static ONE_TARGET: Global<u32> = Global::new(0);

/// Offsets of the direct-descriptor slot in the requests (`struct io_kiocb`) of each kind, from the kernel's BTF; 0: unknown.
#[unsafe(no_mangle)]
static OFF_URING_OPEN: Global<u32> = Global::new(0);
/// As [`OFF_URING_OPEN`].
#[unsafe(no_mangle)]
static OFF_URING_ACCEPT: Global<u32> = Global::new(0);
/// As [`OFF_URING_OPEN`].
#[unsafe(no_mangle)]
static OFF_URING_SOCKET: Global<u32> = Global::new(0);
/// As [`OFF_URING_OPEN`].
#[unsafe(no_mangle)]
static OFF_URING_CLOSE: Global<u32> = Global::new(0);
/// Offset of the descriptor in a close request.
#[unsafe(no_mangle)]
static OFF_URING_CLOSE_FD: Global<u32> = Global::new(0);

/// Offsets in `io_uring` requests.
pub(super) struct UringOffsets {
    pub(super) open: u32,
    pub(super) accept: u32,
    pub(super) socket: u32,
    pub(super) close: u32,
    pub(super) close_fd: u32,
}

#[inline(always)]
pub(super) fn uring_offsets() -> UringOffsets {
    UringOffsets {
        open: OFF_URING_OPEN.load(),
        accept: OFF_URING_ACCEPT.load(),
        socket: OFF_URING_SOCKET.load(),
        close: OFF_URING_CLOSE.load(),
        close_fd: OFF_URING_CLOSE_FD.load(),
    }
}

#[inline(always)]
pub(super) fn has(feature: u32) -> bool {
    FEATURES.load() & feature != 0
}

#[inline(always)]
pub(super) fn ring_bytes() -> u64 {
    u64::from(RING_BYTES.load())
}

/// Offsets of `pid` and `tgid` in `task_struct`.
#[inline(always)]
pub(super) fn task_offsets() -> (usize, usize) {
    (OFF_TASK_PID.load() as usize, OFF_TASK_TGID.load() as usize)
}

/// Offsets of a task's time on a CPU: now, and when it last got one.
#[inline(always)]
pub(super) fn ran_offsets() -> (usize, usize) {
    (OFF_TASK_RAN.load() as usize, OFF_TASK_RAN_BEFORE.load() as usize)
}

/// Offset of a task's `fs` base: kept by the kernel while it runs, too, unless the program sets it by an instruction of its own.
#[inline(always)]
pub(super) fn fs_base_offset() -> usize {
    OFF_TASK_FSBASE.load() as usize
}

/// Whether goroutines are to be told.
#[inline(always)]
pub(super) fn tells_goroutines() -> bool {
    GOROUTINES.load() != 0
}

/// Where a task's signals are.
pub(super) struct SignalOffsets {
    pub(super) pending: usize,
    pub(super) blocked: usize,
    pub(super) signal: usize,
    pub(super) shared: usize,
}

#[inline(always)]
pub(super) fn signal_offsets() -> SignalOffsets {
    SignalOffsets {
        pending: OFF_TASK_PENDING.load() as usize,
        blocked: OFF_TASK_BLOCKED.load() as usize,
        signal: OFF_TASK_SIGNAL.load() as usize,
        shared: OFF_SIGNAL_SHARED.load() as usize,
    }
}

#[inline(always)]
pub(super) fn is_target(tgid: u32) -> bool {
    let one = ONE_TARGET.load();
    if one != 0 {
        return one == tgid;
    }
    // SAFETY: the value is an integer that nobody deletes while it is borrowed: it is not used at all.
    unsafe { TARGETS.get(tgid) }.is_some()
}

/// The layout of a process's address space; 0 when it is no target or nothing is known.
#[inline(always)]
pub(super) fn space(tgid: u32) -> u32 {
    // SAFETY: copied out at once.
    unsafe { TARGETS.get(tgid) }.copied().unwrap_or(0)
}

/// What the layouts in [`TARGETS`] were read at: another pair after each change.
#[inline(always)]
pub(super) fn epoch() -> [u64; 2] {
    [0, 1].map(|who| {
        EPOCHS.get_ptr(who).map_or(0, |epoch| {
            // SAFETY: a word of a map, aligned.
            unsafe { epoch.read_volatile() }
        })
    })
}

/// Sets the layout of a process's address space, and says that it changed; `false` when there is no room.
#[inline(always)]
pub(super) fn set_space(tgid: u32, space: u32) -> bool {
    let done = TARGETS.insert(tgid, space, 0).is_ok();
    if let Some(epoch) = EPOCHS.get_ptr_mut(1) {
        // Never the same twice, whoever else writes at this moment: BPF here has no atomic addition.
        // SAFETY: a word of a map, aligned; helpers without preconditions.
        unsafe {
            epoch.write_volatile(bpf_ktime_get_ns() << 8 | u64::from(bpf_get_smp_processor_id() & 0xff));
        }
    }
    done
}

/// What user space wants now.
#[inline(always)]
pub(super) fn control() -> Control {
    CONTROL.get(0).copied().unwrap_or(Control {
        armed: 0,
        min_wait_ns: 0,
        shadow_mask: u64::MAX,
        sample_mask: 0,
        window_ns: 0,
        go_locks_ns: u64::MAX,
        go_parks_ns: u64::MAX,
        ticks_mask: 0,
        faults_mask: 0,
    })
}

/// How many waits the one that begins stands for; 0 when it is not chosen. Drawn before anything is known of its length.
#[inline(always)]
pub(super) fn chosen() -> u32 {
    one_of(control().sample_mask as u32)
}

/// A power of two, `mask` plus one, once in so many times, at random; else 0.
#[inline(always)]
pub(super) fn one_of(mask: u32) -> u32 {
    // SAFETY: a helper without preconditions.
    if mask == 0 || unsafe { bpf_get_prandom_u32() } & mask == 0 {
        mask + 1
    } else {
        0
    }
}

/// Adds one to a counter of [`counter`]. In one instruction: a probe in a program may lose the CPU at any moment, to another that counts
/// the same.
#[inline(always)]
pub(super) fn count(which: u32) {
    if let Some(slot) = COUNTERS.get_ptr_mut(which) {
        // SAFETY: an aligned slot of the map, which is there as long as the program is.
        unsafe {
            asm!("lock *(u64 *)({slot} + 0) += {one}", slot = in(reg) slot, one = in(reg) 1u64, options(nostack));
        }
    }
}

/// Adds one to a counter of [`counter`] and returns its value on this CPU before.
#[inline(always)]
pub(super) fn add(which: u32) -> u64 {
    let Some(slot) = COUNTERS.get_ptr_mut(which) else {
        return 0;
    };
    // SAFETY: a per-CPU slot; a probe that interrupts another loses at most one count.
    unsafe {
        let before = *slot;
        *slot = before + 1;
        before
    }
}

/// A BTF map definition as the loader expects it (`BPF_MAP_TYPE_TASK_STORAGE` has no wrapper in aya-ebpf 0.2).
#[repr(C)]
pub(super) struct TaskStorage<T> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers are placeholders whose types the loader reads; nobody follows them.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    pub(super) const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// What is kept of `task`, null when nothing is.
    ///
    /// # Safety
    ///
    /// `task` must be a task pointer that the verifier trusts: a BTF tracepoint's argument or the current task.
    #[inline(always)]
    pub(super) unsafe fn get(&'static self, task: *mut task_struct) -> *mut T {
        // SAFETY: by the caller's promise.
        unsafe { bpf_task_storage_get((&raw const *self).cast_mut().cast(), task, ptr::null_mut(), 0) }.cast()
    }

    /// As [`TaskStorage::get`], made (zeroed) when absent; null when there is no memory.
    ///
    /// # Safety
    ///
    /// As [`TaskStorage::get`].
    #[inline(always)]
    pub(super) unsafe fn make(&'static self, task: *mut task_struct) -> *mut T {
        let flags = u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE);
        // SAFETY: by the caller's promise.
        unsafe { bpf_task_storage_get((&raw const *self).cast_mut().cast(), task, ptr::null_mut(), flags) }
            .cast()
    }
}

/// thread → its [`TaskState`], for threads of targets. Made at attach (iterator) and at fork, ends with the thread. Written and
/// read by the scheduler probes. No memory: the thread is not traced, counted.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static TASKS: TaskStorage<TaskState> = TaskStorage::new();

/// State of `task`, null when it is no target's thread.
///
/// # Safety
///
/// `task` must be a task pointer that the verifier trusts: a BTF tracepoint's argument or the current task.
#[inline(always)]
pub(super) unsafe fn task_state(task: *mut task_struct) -> *mut TaskState {
    let storage = OFF_TASK_STORAGE.load() as usize;
    // A thread that no program of the host keeps anything of, which a bystander is, has no storage at all: seeing that costs one
    // load, and the helper 20 ns. The verifier knows the offset, a constant, and lets the load through as one of that member.
    // SAFETY: by the caller's promise.
    if storage != 0 && unsafe { task.byte_add(storage).cast::<u64>().read_volatile() } == 0 {
        return ptr::null_mut();
    }
    // SAFETY: by the caller's promise.
    unsafe { TASKS.get(task) }
}

/// State of `task`, made (zeroed) when absent; null when there is no memory.
///
/// # Safety
///
/// As [`task_state`].
#[inline(always)]
pub(super) unsafe fn make_task_state(task: *mut task_struct) -> *mut TaskState {
    // SAFETY: by the caller's promise.
    unsafe { TASKS.make(task) }
}
