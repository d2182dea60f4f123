//! Stacks: recognised by a memo, or copied.

use core::{
    ffi::{c_long, c_void},
    ptr,
};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, pt_regs},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_get_smp_processor_id,
        generated::{bpf_loop, bpf_probe_read_user},
    },
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use tracer_ebpf::{
    memo::{AT_ONCE, KEYS, Key, POOL_BYTES, REGISTERS, RELATIVE, RUN_MAX, RUNS, SCRATCH_STACK, WAYS, Ways},
    wire::{Regs, Stack, StackClass, StackPlace, counter, kind, stack_fault, stack_ref},
};

use super::{
    emit::{header, ring_is_crowded, submit_flags},
    maps::{EVENTS, TaskStorage, add, control, count, epoch, space},
    task::{USER_CS_64, copy_regs, is_user_64, reg},
};

/// Where a stack was seen → class of the copy that it needs. Written by user space, read by the probes. Full: the least
/// recently used one makes room and is copied with the default size again.
#[map]
static STACK_CLASSES: LruHashMap<StackPlace, u32> = LruHashMap::with_max_entries(16_384, 0);

/// Where memos begin in [`MEMO_POOL`], by key. Written by user space, read by the probes. Full: user space drops the memos not
/// used for longest.
#[map]
static MEMOS: HashMap<Key, Ways> = HashMap::with_max_entries(KEYS, 0);

/// Memos, as [`tracer_ebpf::memo`] lays them out. Written by user space through a mapping, read by the probes. Full: as
/// [`MEMOS`].
#[map]
static MEMO_POOL: Array<[u64; POOL_BYTES / 8]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Words of the scratch: registers, runs, and room for one more run, which spares a check; a power of two spares another.
const SCRATCH_WORDS: usize = 2048;

const _: () = assert!(REGISTERS * 8 + SCRATCH_STACK + RUN_MAX <= SCRATCH_WORDS * 8);

/// Scratch of the probes that may interrupt one another on a CPU, by [`Place`]; each runs with others of its kind shut out.
#[map]
static SCRATCH: PerCpuArray<[u64; SCRATCH_WORDS]> = PerCpuArray::with_max_entries(3, 0);

/// A memo that matched before.
#[repr(C)]
struct Known {
    ip: u64,
    /// Process, and low 12 bits of the stack pointer.
    at: u64,
    /// What was known of all processes' layouts then.
    epoch: [u64; 2],
    /// Where the memo is, and its id, which no other memo ever has.
    slot: u64,
    id: u64,
}

/// Entries of [`KNOWN`].
const KNOWN_MAX: usize = 128;

/// The memo that matched last at a place, by [`Place`] and a hash: spares the look-ups in [`TARGETS`](super::maps) and [`MEMOS`],
/// which on a machine with guarded returns cost 40 ns each. Written and read by the probes. Full: another one is overwritten.
#[map]
static KNOWN: PerCpuArray<[Known; KNOWN_MAX]> = PerCpuArray::with_max_entries(3, 0);

/// Which scratch.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Place {
    SwitchOut = 0,
    Waking = 1,
    Descriptors = 2,
    /// A probe in the program itself: of each thread its own.
    Program = 3,
}

/// Value of the map `PROGRAM_SCRATCH`: as [`SCRATCH`], of one thread.
#[repr(C)]
struct OwnScratch {
    words: [u64; SCRATCH_WORDS],
    /// Copies numbered so far.
    copies: u64,
    /// Where code stands that does not run.
    standing: pt_regs,
}

/// thread → its scratch for probes in the program itself (uprobes), which lose the CPU in the middle to other threads' at the same
/// place; a thread is in no more than one. Made when the thread is first in such a probe, ends with it; 16 KiB each. No memory:
/// the wait has no stack, counted.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static PROGRAM_SCRATCH: TaskStorage<OwnScratch> = TaskStorage::new();

/// Where a probe has its scratch.
trait Scratch {
    /// The words, null without.
    fn words(place: u32) -> *mut u64;
    /// The memos that matched last, null without.
    fn known(place: u32) -> *mut Known;
    /// A number for a copy, in 60 bits, that no other probe gives; `None` without scratch.
    fn token(place: u32) -> Option<u64>;
}

/// Of the CPU: for probes that keep others of their kind from it.
struct OfCpu;

impl Scratch for OfCpu {
    #[inline(always)]
    fn words(place: u32) -> *mut u64 {
        SCRATCH.get_ptr_mut(place).map_or(ptr::null_mut(), <*mut _>::cast)
    }

    #[inline(always)]
    fn known(place: u32) -> *mut Known {
        KNOWN.get_ptr_mut(place).map_or(ptr::null_mut(), <*mut _>::cast)
    }

    #[inline(always)]
    fn token(place: u32) -> Option<u64> {
        // SAFETY: a helper without preconditions.
        let cpu = u64::from(unsafe { bpf_get_smp_processor_id() });
        // A number of each probe's own: one that interrupts another must not be given the same.
        let count = add(counter::TOKEN + place) & ((1 << 44) - 1);
        Some(cpu << 46 | u64::from(place) << 44 | count)
    }
}

/// Of the thread: for probes in the program itself.
struct OfThread;

impl OfThread {
    /// The current thread's, made when absent.
    #[inline(always)]
    fn make() -> *mut OwnScratch {
        // SAFETY: the current task is trusted.
        unsafe { PROGRAM_SCRATCH.make(bpf_get_current_task_btf()) }
    }
}

impl Scratch for OfThread {
    #[inline(always)]
    fn words(_: u32) -> *mut u64 {
        // SAFETY: the current task is trusted.
        unsafe { PROGRAM_SCRATCH.get(bpf_get_current_task_btf()) }.cast()
    }

    #[inline(always)]
    fn known(_: u32) -> *mut Known {
        // It would be another 6 KiB for each thread, to spare two look-ups beside a trap that costs as much as ten.
        ptr::null_mut()
    }

    #[inline(always)]
    fn token(place: u32) -> Option<u64> {
        let own = Self::make();
        if own.is_null() {
            return None;
        }
        // SAFETY: the thread's own, not null.
        let count = unsafe {
            (*own).copies += 1;
            (*own).copies
        };
        // The thread's id, which has 22 bits, instead of the CPU's.
        let tid = bpf_get_current_pid_tgid() & 0x3f_ffff;
        Some((tid & 0xffff) << 46 | u64::from(place) << 44 | tid >> 16 << 38 | count & ((1 << 38) - 1))
    }
}

/// Memory for a probe of descriptors, of its own while it does not take a stack; null without.
#[inline(always)]
pub(super) fn descriptors_scratch() -> *mut u64 {
    OfCpu::words(Place::Descriptors as u32)
}

/// The stack of the current thread, whose registers these are, as records refer to it ([`stack_ref`]).
#[inline(never)]
pub(super) fn stack(regs: *const pt_regs, place: Place, tgid: u32, tid: u32, now: u64) -> u64 {
    taken::<OfCpu>(regs, place, tgid, tid, now)
}

/// As [`stack`], for a probe in the program itself.
#[inline(never)]
pub(super) fn stack_in_program(regs: *const pt_regs, tgid: u32, tid: u32, now: u64) -> u64 {
    if OfThread::make().is_null() {
        count(counter::MAP_FULL);
        return u64::from(stack_fault::PENDING);
    }
    taken::<OfThread>(regs, Place::Program, tgid, tid, now)
}

/// Where code stands.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    pub(super) pc: u64,
    pub(super) sp: u64,
    pub(super) bp: u64,
}

/// As [`stack_in_program`], of other code of the program, which does not run now.
#[inline(never)]
pub(super) fn stack_standing(at: &Standing, tgid: u32, tid: u32, now: u64) -> u64 {
    let own = OfThread::make();
    if own.is_null() {
        count(counter::MAP_FULL);
        return u64::from(stack_fault::PENDING);
    }
    // SAFETY: the thread's own, not null; the registers that are not known are 0 as they were made.
    let regs = unsafe {
        let regs = &raw mut (*own).standing;
        (*regs).rip = at.pc;
        (*regs).rsp = at.sp;
        (*regs).rbp = at.bp;
        (*regs).cs = USER_CS_64;
        regs
    };
    taken::<OfThread>(regs, Place::Program, tgid, tid, now)
}

#[inline(always)]
fn taken<S: Scratch>(regs: *const pt_regs, place: Place, tgid: u32, tid: u32, now: u64) -> u64 {
    if !is_user_64(regs) {
        count(counter::COMPAT);
        return u64::from(stack_fault::COMPAT);
    }
    // SAFETY: `regs` comes from the kernel.
    let at = unsafe {
        StackPlace {
            sp: reg!(regs, rsp),
            ip: reg!(regs, rip),
        }
    };
    if at.ip == 0 {
        return u64::from(stack_fault::UNWANTED);
    }
    let memo = recognise::<S>(regs, place, tgid, at);
    if memo != 0 {
        let hits = add(counter::MEMO_HIT);
        if hits & control().shadow_mask == 0 && !ring_is_crowded() {
            copy::<S>(regs, place, (tgid, tid), now, memo);
        }
        return stack_ref::MEMO | memo;
    }
    add(counter::MEMO_MISS);
    if ring_is_crowded() {
        count(counter::STACK_PENDING);
        return u64::from(stack_fault::PENDING);
    }
    copy::<S>(regs, place, (tgid, tid), now, 0)
}

/// A search among the memos of a key.
struct Search {
    ways: Ways,
    sp: u64,
    /// The memo that matches, 0 so far, and where it is.
    id: u64,
    slot: u64,
    place: u32,
}

/// A comparison with one memo.
struct Comparison {
    /// Where the inputs' places are in the pool, and their values.
    metas: usize,
    values: usize,
    sp: u64,
    /// Not 0 once something differs.
    different: u64,
    place: u32,
}

/// The id of the memo that matches, 0 without one.
#[inline(always)]
fn recognise<S: Scratch>(regs: *const pt_regs, place: Place, tgid: u32, at: StackPlace) -> u64 {
    let (scratch, known) = (S::words(place as u32), S::known(place as u32));
    if scratch.is_null() {
        return 0;
    }
    // SAFETY: `regs` comes from the kernel; the scratch is as large as its type and nobody else's now.
    unsafe {
        *scratch.add(3) = reg!(regs, rbx);
        *scratch.add(6) = reg!(regs, rbp);
        *scratch.add(10) = reg!(regs, r10);
        *scratch.add(12) = reg!(regs, r12);
        *scratch.add(13) = reg!(regs, r13);
        *scratch.add(14) = reg!(regs, r14);
        *scratch.add(15) = reg!(regs, r15);
    }
    // Before the layout is looked up: what changes from now on is another epoch's.
    let epoch = epoch();
    let here = u64::from(tgid) << 32 | at.sp & 0xfff;
    let hash = at.ip ^ at.ip >> 7 ^ at.sp >> 3 ^ u64::from(tgid);
    // SAFETY: masked to the entries, which are nobody else's now; `matching` is given what it expects.
    unsafe {
        if !known.is_null() {
            let known = known.add(hash as usize & (KNOWN_MAX - 1));
            if (*known).ip == at.ip && (*known).at == here && (*known).epoch == epoch {
                let id = matching::<S>((*known).slot as usize, at.sp, place as u32);
                if id != 0 && id == (*known).id {
                    return id;
                }
            }
        }
    }
    // SAFETY: copied out at once.
    let Some(ways) = (unsafe { MEMOS.get(Key::new(space(tgid), at)) }).copied() else {
        return 0;
    };
    let mut search = Search {
        ways,
        sp: at.sp,
        id: 0,
        slot: 0,
        place: place as u32,
    };
    // The kernel's loop, as the verifier follows the body of one of our own through each turn.
    // SAFETY: `try_way` is given what it expects; the entry is masked, as above.
    unsafe {
        let each: unsafe extern "C" fn(u32, *mut c_void) -> c_long = try_way::<S>;
        bpf_loop(WAYS as u32, each as *mut c_void, (&raw mut search).cast(), 0);
        if search.id != 0 && !known.is_null() {
            *known.add(hash as usize & (KNOWN_MAX - 1)) = Known {
                ip: at.ip,
                at: here,
                epoch,
                slot: search.slot,
                id: search.id,
            };
        }
    }
    search.id
}

/// Reads a value of the pool at an offset, which is made to lie inside.
///
/// # Safety
///
/// `pool` must be the map's value.
#[inline(always)]
unsafe fn word<T: Copy>(pool: *const u8, at: usize) -> T {
    // SAFETY: masked to the pool's size, which is a power of two, and to the value's alignment.
    unsafe {
        pool.add(at & (POOL_BYTES - size_of::<T>()))
            .cast::<T>()
            .read_volatile()
    }
}

/// Compares with one memo; 1 ends the search.
unsafe extern "C" fn try_way<S: Scratch>(way: u32, search: *mut c_void) -> c_long {
    let search = search.cast::<Search>();
    // SAFETY: the search of `recognise`.
    unsafe {
        let slot = (*search).ways[way as usize & (WAYS - 1)] as usize;
        if slot == 0 {
            return 1;
        }
        let id = matching::<S>(slot, (*search).sp, (*search).place);
        if id == 0 {
            return 0;
        }
        (*search).id = id;
        (*search).slot = slot as u64;
    }
    1
}

/// The id of the memo at `slot` if it matches, else 0. User space zeroes a memo's id before it changes the rest and writes it last,
/// so an id that is the same before and after vouches for what was read between.
///
/// # Safety
///
/// The registers must be in the scratch of `place`.
#[inline(always)]
unsafe fn matching<S: Scratch>(slot: usize, sp: u64, place: u32) -> u64 {
    // SAFETY: every access to the two maps' values is masked or checked.
    unsafe {
        let (Some(pool), scratch) = (MEMO_POOL.get_ptr(0), S::words(place)) else {
            return 0;
        };
        if scratch.is_null() {
            return 0;
        }
        let (pool, scratch) = (pool.cast::<u8>(), scratch.cast::<u8>());
        let id: u64 = word(pool, slot);
        let shape: u64 = word(pool, slot + 8);
        let (inputs, runs) = ((shape & 0xffff) as usize, (shape >> 16 & 0xff) as usize);
        // As few branches as can be, and masks that hide how many turns there were: the verifier follows each combination.
        let mut at = (slot + 16) & (POOL_BYTES - 8);
        let (mut filled, mut run, mut failed) = (0, 0, 0);
        while run < RUNS {
            if run >= runs {
                break;
            }
            let what: u64 = word(pool, at);
            let (from, len) = (what & 0xffff_ffff, (what >> 32) as usize & RUN_MAX);
            let to = scratch.add(REGISTERS * 8 + filled);
            failed |= bpf_probe_read_user(to.cast(), len as u32, (sp + from) as *const _);
            filled = core::hint::black_box((filled + len) & (SCRATCH_STACK - 8));
            at = core::hint::black_box((at + 8) & (POOL_BYTES - 8));
            run += 1;
        }
        let metas = at;
        let mut comparison = Comparison {
            metas,
            values: core::hint::black_box((metas + 2 * inputs) & (POOL_BYTES - 8)),
            sp,
            different: 0,
            place,
        };
        let each: unsafe extern "C" fn(u32, *mut c_void) -> c_long = compare::<S>;
        bpf_loop(
            (inputs / AT_ONCE) as u32,
            each as *mut c_void,
            (&raw mut comparison).cast(),
            0,
        );
        let again: u64 = word(pool, slot);
        if comparison.different | (again ^ id) | failed as u64 != 0 {
            return 0;
        }
        id
    }
}

/// Compares [`AT_ONCE`] inputs; 1 ends the comparison.
unsafe extern "C" fn compare<S: Scratch>(turn: u32, comparison: *mut c_void) -> c_long {
    let comparison = comparison.cast::<Comparison>();
    // SAFETY: as in `try_way`.
    unsafe {
        let (Some(pool), scratch) = (MEMO_POOL.get_ptr(0), S::words((*comparison).place)) else {
            return 1;
        };
        if scratch.is_null() {
            return 1;
        }
        let pool = pool.cast::<u8>();
        let first = turn as usize * AT_ONCE;
        let (metas, values) = ((*comparison).metas + 2 * first, (*comparison).values + 8 * first);
        let sp = (*comparison).sp;
        let mut different = 0;
        let mut input = 0;
        while input < AT_ONCE {
            let meta: u16 = word(pool, metas + 2 * input);
            let value: u64 = word(pool, values + 8 * input);
            // Without a branch: the verifier would follow each combination of them.
            let base = sp & 0u64.wrapping_sub(u64::from(meta / RELATIVE));
            let actual = scratch.add((meta & 0x7ff) as usize).read_volatile();
            different |= actual.wrapping_sub(base) ^ value;
            input += 1;
        }
        (*comparison).different = different;
        c_long::from(different != 0)
    }
}

/// Copies the stack into the ring; what records may call it.
#[inline(always)]
fn copy<S: Scratch>(regs: *const pt_regs, place: Place, task: (u32, u32), now: u64, memo: u64) -> u64 {
    // SAFETY: `regs` comes from the kernel; the class is an integer, copied out at once.
    let class = unsafe {
        let at = StackPlace {
            sp: reg!(regs, rsp),
            ip: reg!(regs, rip),
        };
        STACK_CLASSES
            .get(at)
            .copied()
            .unwrap_or(StackClass::Medium as u32)
    };
    let Some(token) = S::token(place as u32) else {
        return u64::from(stack_fault::PENDING);
    };
    let front = (token, memo, task, now);
    if class == StackClass::Small as u32 {
        sized::<{ StackClass::Small.bytes() }>(StackClass::Small, regs, front)
    } else if class == StackClass::Large as u32 {
        sized::<{ StackClass::Large.bytes() }>(StackClass::Large, regs, front)
    } else {
        sized::<{ StackClass::Medium.bytes() }>(StackClass::Medium, regs, front)
    }
}

/// A record and its stack bytes, as they lie in the ring.
#[repr(C)]
pub(super) struct WithBytes<R, const N: usize> {
    pub(super) record: R,
    pub(super) bytes: [u8; N],
}

#[inline(never)]
fn sized<const N: usize>(
    class: StackClass,
    regs: *const pt_regs,
    (token, memo, (tgid, tid), now): (u64, u64, (u32, u32), u64),
) -> u64 {
    let Some(mut slot) = EVENTS.reserve::<WithBytes<Stack, N>>(0) else {
        if memo == 0 {
            count(counter::STACK_PENDING);
        }
        return u64::from(stack_fault::PENDING);
    };
    let to = slot.as_mut_ptr();
    // SAFETY: the slot is ours until submitted and as large as its type; `regs` comes from the kernel.
    unsafe {
        (*to).record.header = header(kind::STACK, tgid, tid, now);
        (*to).record.header.class = class as u16;
        (*to).record.token = token;
        (*to).record.memo = memo;
        let registers = &raw mut (*to).record.regs;
        copy_regs(registers, regs);
        copy_stack::<N>((&raw mut (*to).bytes).cast(), registers, reg!(regs, rsp));
    }
    slot.submit(submit_flags(size_of::<WithBytes<Stack, N>>() as u64));
    stack_ref::COPY | token
}

const PAGE: usize = 4096;
/// What is read at a time of the last page, of which the copy holds a part.
const TAIL: usize = 512;
/// Unreadable pages that are passed over: each costs as much as ten that can be read.
const HOLES: u32 = 4;

/// Copies up to `N` bytes of user stack from `sp`, page by page, as a read across the end of what can be read yields nothing at
/// all, and notes in `regs` how far it came and what is missing.
///
/// # Safety
///
/// `to` must have room for `N` bytes.
#[inline(always)]
pub(super) unsafe fn copy_stack<const N: usize>(to: *mut u8, regs: *mut Regs, sp: u64) {
    // SAFETY: the destination is in bounds by the caller's promise; the helper cannot fault.
    let read = |at: usize, len: usize| unsafe {
        bpf_probe_read_user(to.add(at).cast(), len as u32, (sp + at as u64) as *const _) == 0
    };
    let left = PAGE - (sp as usize & (PAGE - 1));
    let first = if left < N { left } else { N };
    let (mut done, mut page) = (first, 1);
    // What the verifier would follow along every path is kept where it does not look: in the ring.
    // SAFETY: the registers in the slot.
    let (missing, holes) = unsafe { (&raw mut (*regs).missing, &raw mut (*regs).reserved) };
    // SAFETY: as above.
    let hole = |page: u32| unsafe {
        missing.write_volatile(missing.read_volatile() | 1 << (page & 31));
        holes.write_volatile(holes.read_volatile() + 1);
        holes.read_volatile() > HOLES
    };
    let mut ended = false;
    if !read(0, first) {
        hole(0);
    }
    // The compiler must not keep a pointer beside the offset: the verifier would not see that the check of one holds for the other.
    let mut turn = 0;
    while turn < N / PAGE {
        let at = core::hint::black_box(done);
        if N < PAGE || at > N - PAGE {
            break;
        }
        if !read(at, PAGE) && hole(page) {
            ended = true;
            break;
        }
        done = at + PAGE;
        page += 1;
        turn += 1;
    }
    let mut chunk = 0;
    while chunk < PAGE / TAIL && !ended {
        let at = core::hint::black_box(done);
        if at > N - TAIL {
            break;
        }
        if !read(at, TAIL) {
            ended = true;
            break;
        }
        done = at + TAIL;
        chunk += 1;
    }
    // SAFETY: the registers in the slot.
    unsafe {
        (*regs).stack_len = done as u32;
        (*regs).reserved = 0;
        if ended {
            (*regs).fault = stack_fault::UNREADABLE;
        }
    }
}
