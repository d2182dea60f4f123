//! Thousands of different stacks of this very program, each really called, with the registers and bytes that a probe would copy.

use std::arch::asm;
use std::fs::File;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt as _;

use tracer_ebpf::wire::{Regs, StackClass, stack_fault};

/// Different stacks that [`each`] knows.
pub(crate) const STACKS: usize = 256 * LEAVES.len();

/// Where a call goes, and what its leaf leaves.
struct Path {
    /// Which function is called at each step.
    turns: [usize; STEPS.len()],
    step: usize,
    leaf: usize,
    regs: Option<Regs>,
    bytes: Vec<u8>,
    class: StackClass,
    memory: File,
}

type Call = fn(&mut Path);

/// Steps of growing frames, so that the leaves' stack pointers differ as they do in a program of many paths; the fourth differs in
/// the return address alone, and the last two are the same in all.
const STEPS: [[Call; 4]; 6] = [
    [step::<16, 0>, step::<32, 0>, step::<48, 0>, step::<64, 0>],
    [step::<80, 0>, step::<144, 0>, step::<208, 0>, step::<272, 0>],
    [step::<288, 0>, step::<544, 0>, step::<800, 0>, step::<1056, 0>],
    [step::<16, 1>, step::<16, 2>, step::<16, 3>, step::<16, 4>],
    [step::<16, 5>; 4],
    [step::<16, 6>; 4],
];

/// Leaves: as many program counters.
const LEAVES: [Call; 64] = [
    leaf::<0>, leaf::<1>, leaf::<2>, leaf::<3>, leaf::<4>, leaf::<5>, leaf::<6>, leaf::<7>, leaf::<8>,
    leaf::<9>, leaf::<10>, leaf::<11>, leaf::<12>, leaf::<13>, leaf::<14>, leaf::<15>, leaf::<16>,
    leaf::<17>, leaf::<18>, leaf::<19>, leaf::<20>, leaf::<21>, leaf::<22>, leaf::<23>, leaf::<24>,
    leaf::<25>, leaf::<26>, leaf::<27>, leaf::<28>, leaf::<29>, leaf::<30>, leaf::<31>, leaf::<32>,
    leaf::<33>, leaf::<34>, leaf::<35>, leaf::<36>, leaf::<37>, leaf::<38>, leaf::<39>, leaf::<40>,
    leaf::<41>, leaf::<42>, leaf::<43>, leaf::<44>, leaf::<45>, leaf::<46>, leaf::<47>, leaf::<48>,
    leaf::<49>, leaf::<50>, leaf::<51>, leaf::<52>, leaf::<53>, leaf::<54>, leaf::<55>, leaf::<56>,
    leaf::<57>, leaf::<58>, leaf::<59>, leaf::<60>, leaf::<61>, leaf::<62>, leaf::<63>,
];

#[inline(never)]
fn step<const ROOM: usize, const VARIANT: usize>(path: &mut Path) {
    let mut room = MaybeUninit::<[u8; ROOM]>::uninit();
    black_box(&mut room);
    // SAFETY: a comment, so that functions of one size are not folded into one.
    unsafe { asm!("/* {} */", const VARIANT, options(nomem, nostack, preserves_flags)) };
    path.go();
    black_box(&mut room);
}

#[inline(never)]
fn leaf<const VARIANT: usize>(path: &mut Path) {
    let mut gp = [0u64; 16];
    let ip: u64;
    // SAFETY: stores registers into `gp`, and the address of this point.
    unsafe {
        asm!(
            "/* {2} */", "mov [{0} + 24], rbx", "mov [{0} + 48], rbp", "mov [{0} + 56], rsp", "mov [{0} + 96], r12",
            "mov [{0} + 104], r13", "mov [{0} + 112], r14", "mov [{0} + 120], r15", "lea {1}, [rip]",
            in(reg) gp.as_mut_ptr(), out(reg) ip, const VARIANT,
        );
    }
    // In here, as this frame is overwritten once it has returned.
    path.copy(ip, gp);
}

impl Path {
    #[allow(clippy::inline_always, reason = "else each step would be two frames")]
    #[inline(always)]
    fn go(&mut self) {
        let call = match (STEPS.get(self.step), self.turns.get(self.step)) {
            (Some(step), Some(&turn)) => step[turn],
            _ => LEAVES[self.leaf],
        };
        self.step += 1;
        black_box(call)(self);
    }

    #[inline(never)]
    fn copy(&mut self, ip: u64, gp: [u64; 16]) {
        let want = self.class.bytes();
        self.bytes.resize(want, 0);
        let mut len = 0;
        // Up to the first page that is not there: the top of the stack.
        while len < want {
            match self.memory.read_at(&mut self.bytes[len..], gp[7] + len as u64) {
                Ok(read) if read > 0 => len += read,
                _ => break,
            }
        }
        self.bytes.truncate(len);
        self.regs = Some(Regs {
            ip,
            sp: gp[7],
            gp,
            stack_len: len as u32,
            fault: if len < want {
                stack_fault::UNREADABLE
            } else {
                stack_fault::NONE
            },
            missing: 0,
            reserved: 0,
        });
    }
}

/// Calls the first `count` stacks, one after the other, and hands out what each leaf copied: as much as the class holds.
pub(crate) fn each(count: usize, class: StackClass, mut take: impl FnMut(usize, &Regs, &[u8])) {
    assert!(count <= STACKS, "there are {STACKS} stacks");
    let mut path = Path {
        turns: [0; STEPS.len()],
        step: 0,
        leaf: 0,
        regs: None,
        bytes: Vec::new(),
        class,
        memory: File::open("/proc/self/mem").expect("our own memory"),
    };
    for stack in 0..count {
        path.leaf = stack % LEAVES.len();
        let mut rest = stack / LEAVES.len();
        for turn in &mut path.turns {
            (*turn, rest) = (rest % 4, rest / 4);
        }
        path.step = 0;
        path.go();
        if let Some(regs) = &path.regs {
            take(stack, regs, &path.bytes);
        }
    }
}
