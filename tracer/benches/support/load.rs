//! Records as the probes write them, of a program with many stacks and locks.

use std::sync::atomic::Ordering;

use tracer_ebpf::{
    delay, nr,
    nr::futex,
    rules::Waker,
    wire::{
        DELAYS, Delays, Exec, Exit, FdClose, FdOpen, FdRights, FdUring, Fork, Header, Regs, Stack,
        StackClass, Wait, kind, stack_fault, stack_ref, wait,
    },
};

use super::Known;

/// A record's bytes on the wire.
pub(crate) trait Wire: Copy {
    /// They are.
    fn bytes(&self) -> &[u8] {
        // SAFETY: only implemented for structs of the wire, integers without padding (asserted where they are declared).
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

impl Wire for Wait {}
impl Wire for Stack {}
impl Wire for Delays {}
impl Wire for FdOpen {}
impl Wire for FdClose {}
impl Wire for FdRights {}
impl Wire for FdUring {}
impl Wire for Fork {}
impl Wire for Exec {}
impl Wire for Exit {}

/// The front of a record.
pub(crate) const fn header(kind: u16, tgid: u32, tid: u32, ts_ns: u64) -> Header {
    Header {
        kind,
        class: 0,
        tgid,
        tid,
        cpu: 0,
        ts_ns,
    }
}

/// A lock's word, cache lines apart.
pub(crate) const fn word(lock: usize) -> u64 {
    0x5555_0000_0000 + lock as u64 * 64
}

/// A sleep on a lock that was handed over.
pub(crate) const fn wait(
    tgid: u32,
    tid: u32,
    word: u64,
    ts_ns: u64,
    blocked_ns: u64,
    queued_ns: u64,
) -> Wait {
    let wake_ns = ts_ns.saturating_sub(queued_ns);
    Wait {
        header: header(kind::WAIT, tgid, tid, ts_ns),
        seq: 1,
        out_ns: wake_ns.saturating_sub(blocked_ns),
        wake_ns,
        nr: nr::FUTEX,
        args: [word, (futex::WAIT | futex::PRIVATE) as u64, 2, 0, 0, 0],
        timeout_ns: u64::MAX,
        stack: 0,
        waker_stack: 0,
        state: 1,
        kstack: -1,
        flags: wait::WOKEN,
        waker_kind: Waker::HandOver as u32,
        waker_tgid: tgid,
        waker_tid: tid ^ 1,
        running_total_ns: ts_ns,
        short_count: 0,
        weight: 1,
        short_ns: 0,
        skipped_ns: 0,
    }
}

/// A copied stack as a record of that class; `memo` is 0 unless it was recognised.
pub(crate) fn stack(
    tgid: u32,
    ts_ns: u64,
    token: u64,
    memo: u64,
    (regs, copied): (&Regs, &[u8]),
    class: StackClass,
    into: &mut Vec<u8>,
) {
    let copied = copied.get(..class.bytes()).unwrap_or(copied);
    let record = Stack {
        header: Header {
            class: class as u16,
            ..header(kind::STACK, tgid, tgid, ts_ns)
        },
        token,
        memo,
        regs: Regs {
            stack_len: copied.len() as u32,
            fault: if copied.len() < class.bytes() {
                stack_fault::UNREADABLE
            } else {
                stack_fault::NONE
            },
            ..*regs
        },
    };
    into.clear();
    into.extend_from_slice(record.bytes());
    into.extend_from_slice(copied);
    // A ring record needs a constant size.
    into.resize(Stack::SIZE + class.bytes(), 0);
}

/// Random numbers (xorshift64*), the same on every run.
pub(crate) struct Random(pub u64);

impl Random {
    /// The next.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One of 0..`end`.
    pub(crate) const fn below(&mut self, end: usize) -> usize {
        (((self.next() >> 32) * end as u64) >> 32) as usize
    }

    /// Log-normal, of this median and sigma 1.5: as lock waits are, 1 % of them 33 times the median.
    fn lognormal(&mut self, median_ns: f64) -> u64 {
        let mut uniform = || ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let normal = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        (median_ns * (1.5 * normal).exp()) as u64
    }
}

/// What a program is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// The process.
    pub(crate) tgid: u32,
    /// Its stacks; stack n waits for lock n modulo `locks`.
    pub(crate) stacks: usize,
    /// Its locks.
    pub(crate) locks: usize,
    /// Its threads.
    pub(crate) threads: usize,
    /// Of this many recognised stacks one is copied too.
    pub(crate) shadow: usize,
    /// Every stack waits for every lock.
    pub(crate) crossed: bool,
    /// Descriptors are opened and closed, and run-queue delays reported, by a fifth of the records.
    pub(crate) mixed: bool,
}

/// Makes a program's records.
pub(crate) struct Load<'a> {
    shape: Shape,
    /// What the probes know of each stack.
    known: &'a [Known],
    /// Copies to send of stacks that no memo recognises, and of samples.
    copies: &'a [(Regs, Vec<u8>)],
    random: Random,
    /// Lengths to draw from: a logarithm for each event would make the producer the slower end.
    lengths: Vec<(u64, u64)>,
    tokens: u64,
    opened: u64,
    closed: u64,
    delays: u64,
    scratch: Vec<u8>,
}

/// Descriptors open at a time.
const OPEN: u64 = 1000;

impl<'a> Load<'a> {
    /// With the memos and the copies of its stacks.
    pub(crate) fn new(shape: Shape, known: &'a [Known], copies: &'a [(Regs, Vec<u8>)]) -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let lengths = (0..8192)
            .map(|_| (random.lognormal(50_000.0), random.lognormal(5_000.0)))
            .collect();
        Self {
            shape,
            known,
            copies,
            random,
            lengths,
            tokens: 0,
            opened: 0,
            closed: 0,
            delays: 0,
            scratch: Vec::new(),
        }
    }

    /// One event: one record, after the copies that it needs. `send` takes a record if there is room for it; copies, which are
    /// only sent to a ring that is not crowded, go the same way.
    pub(crate) fn event(&mut self, ts_ns: u64, crowded: bool, mut send: impl FnMut(&[u8])) {
        let tid = self.shape.tgid + self.random.below(self.shape.threads) as u32;
        let tgid = self.shape.tgid;
        match if self.shape.mixed {
            self.random.below(100)
        } else {
            99
        } {
            0 => {
                let mut delays = [0; DELAYS];
                for slot in &mut delays {
                    let (_, queued_ns) = self.lengths[self.random.below(self.lengths.len())];
                    *slot = delay::encode(queued_ns, false);
                }
                send(
                    Delays {
                        header: header(kind::DELAYS, tgid, tid, ts_ns),
                        first: self.delays,
                        len: DELAYS as u32,
                        reserved: 0,
                        delays,
                    }
                    .bytes(),
                );
                self.delays += DELAYS as u64;
            }
            1..10 if self.opened - self.closed < OPEN => {
                let stack = self.random.below(self.shape.stacks);
                let stack = self.reference(stack, ts_ns, crowded, &mut send);
                send(
                    FdOpen {
                        header: header(kind::FD_OPEN, tgid, tid, ts_ns),
                        nr: nr::SOCKET,
                        fd: 100 + (self.opened % OPEN) as i32,
                        fd2: -1,
                        args: [0; 4],
                        stack,
                        goid: 0,
                        parent_goid: 0,
                        creator: 0,
                    }
                    .bytes(),
                );
                self.opened += 1;
            }
            10..20 if self.opened > self.closed => {
                let fd = 100 + (self.closed % OPEN) as u32;
                send(
                    FdClose {
                        header: header(kind::FD_CLOSE, tgid, tid, ts_ns),
                        nr: nr::CLOSE,
                        first: fd,
                        last: fd,
                        flags: 0,
                        reserved: 0,
                    }
                    .bytes(),
                );
                self.closed += 1;
            }
            _ => {
                let stack = self.random.below(self.shape.stacks);
                let locks = self.shape.locks;
                let lock = if self.shape.crossed {
                    self.random.below(locks)
                } else {
                    stack % locks
                };
                // Who releases it does so in any place that takes it.
                let places = self.shape.stacks.div_ceil(locks);
                let waker = (lock + self.random.below(places) * locks) % self.shape.stacks;
                let (blocked_ns, queued_ns) = self.lengths[self.random.below(self.lengths.len())];
                // Else there were only so many different lengths.
                let more = self.random.next() >> 56;
                let stack = self.reference(stack, ts_ns, crowded, &mut send);
                let waker_stack = self.reference(waker, ts_ns, crowded, &mut send);
                send(
                    Wait {
                        stack,
                        waker_stack,
                        waker_tid: tgid + self.random.below(self.shape.threads) as u32,
                        ..wait(
                            tgid,
                            tid,
                            word(lock),
                            ts_ns,
                            blocked_ns + blocked_ns * more / 4096,
                            queued_ns + queued_ns * more / 4096,
                        )
                    }
                    .bytes(),
                );
            }
        }
    }

    /// What a record says of a stack.
    fn reference(&mut self, stack: usize, ts_ns: u64, crowded: bool, send: &mut impl FnMut(&[u8])) -> u64 {
        let id = self.known[stack].id.load(Ordering::Relaxed);
        let sampled = self.shape.shadow > 0 && self.random.below(self.shape.shadow) == 0;
        if id == 0 || sampled {
            if let (false, Some((regs, copied))) = (crowded, self.copies.get(stack)) {
                self.tokens += 1;
                let token = self.tokens << 16 | stack as u64;
                let mut scratch = std::mem::take(&mut self.scratch);
                let class = self.known[stack].class();
                self::stack(
                    self.shape.tgid,
                    ts_ns,
                    token,
                    id,
                    (regs, copied),
                    class,
                    &mut scratch,
                );
                send(&scratch);
                self.scratch = scratch;
                if id == 0 {
                    return token | stack_ref::COPY;
                }
            } else if id == 0 {
                return u64::from(stack_fault::PENDING);
            }
        }
        id | stack_ref::MEMO
    }
}

/// The stack that a copy of [`Load`] is of.
pub(crate) const fn stack_of(token: u64) -> usize {
    (token & 0xffff) as usize
}
