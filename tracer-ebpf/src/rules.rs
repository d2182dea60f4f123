//! Decisions that probes and user space must take alike: what a call sleeps on, and who can have woken it.

use crate::nr::{self, futex};

/// A sleep in a futex call, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FutexWait {
    /// The word waited on (of several, the first).
    pub uaddr: u64,
    /// `FUTEX_*` operation; `futex_wait` and `futex_waitv` count as [`futex::WAIT_BITSET`], whose time-out
    /// rules they share.
    pub op: u32,
    /// Known to one process only: its address suffices to match a wake.
    pub private: bool,
    /// The time-out is a moment, not a span.
    pub absolute: bool,
    /// The time-out counts on `CLOCK_REALTIME`, else on `CLOCK_MONOTONIC`.
    pub realtime: bool,
}

/// `None` when the call is not a futex wait.
#[must_use]
#[inline(always)]
pub fn futex_wait(call: i64, args: &[u64; 6]) -> Option<FutexWait> {
    match call {
        nr::FUTEX => {
            let flags = args[1] as u32;
            let op = flags & futex::CMD_MASK;
            if !matches!(
                op,
                futex::WAIT | futex::WAIT_BITSET | futex::LOCK_PI | futex::LOCK_PI2 | futex::WAIT_REQUEUE_PI
            ) {
                return None;
            }
            Some(FutexWait {
                uaddr: args[0],
                op,
                private: flags & futex::PRIVATE != 0,
                absolute: op != futex::WAIT,
                // LOCK_PI is on CLOCK_REALTIME without saying so.
                realtime: op == futex::LOCK_PI || flags & futex::CLOCK_REALTIME != 0,
            })
        }
        // futex_waitv(waiters, n, flags, timeout, clockid); the probe puts the first word into args[5].
        nr::FUTEX_WAITV => Some(FutexWait {
            uaddr: args[5],
            op: futex::WAIT_BITSET,
            private: false,
            absolute: true,
            realtime: args[4] == 0,
        }),
        // futex_wait(uaddr, val, mask, flags, timeout, clockid)
        nr::FUTEX_WAIT => Some(FutexWait {
            uaddr: args[0],
            op: futex::WAIT_BITSET,
            private: args[3] as u32 & futex::PRIVATE != 0,
            absolute: true,
            realtime: args[5] == 0,
        }),
        _ => None,
    }
}

/// Where a sleeping call keeps its time-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// It has none, or none that matters here.
    None,
    /// A `struct timespec` at this address; null means none.
    Timespec(u64),
}

/// Time-out of the futex waits, whose outcome depends on it.
#[must_use]
#[inline(always)]
pub fn timeout(call: i64, args: &[u64; 6]) -> Timeout {
    match call {
        nr::FUTEX | nr::FUTEX_WAITV => Timeout::Timespec(args[3]),
        nr::FUTEX_WAIT => Timeout::Timespec(args[4]),
        _ => Timeout::None,
    }
}

/// How a sleep ended, as far as the wake-up alone tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Waker {
    /// No wake-up was seen, or its cause cannot be told.
    Unknown = 0,
    /// A task's system call that wakes this very futex.
    HandOver = 1,
    /// The exit of a thread whose `clear_child_tid` word or robust list the sleeper waited for.
    Exit = 2,
    /// A task's system call that can cause this wake, of another kind than a futex.
    Call = 3,
    /// A timer, the network or a kernel thread: whoever was on the CPU is a bystander.
    Interrupt = 4,
}

impl Waker {
    /// From the wire; `None` when unknown.
    #[must_use]
    pub const fn from_wire(kind: u32) -> Option<Self> {
        Some(match kind {
            0 => Self::Unknown,
            1 => Self::HandOver,
            2 => Self::Exit,
            3 => Self::Call,
            4 => Self::Interrupt,
            _ => return None,
        })
    }
}

/// What the rule needs to know of the two sides.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its process; 0 is the idle task.
    pub tgid: u32,
    /// Its system call, −1 outside of one.
    pub nr: i64,
    /// The call's arguments.
    pub args: &'a [u64; 6],
}

/// Names a waker only when the system call it is in can have caused this wake: in an interrupt the current task is a
/// bystander, and its call says nothing of the sleeper.
#[must_use]
#[inline(always)]
pub fn waker(sleeper: Side<'_>, current: Side<'_>) -> Waker {
    if current.tgid == 0 || current.nr < 0 {
        return Waker::Interrupt;
    }
    let Some(wait) = futex_wait(sleeper.nr, sleeper.args) else {
        return Waker::Call;
    };
    // A thread's end wakes who waits for its `clear_child_tid` word or its robust locks, by shared keys; any other
    // process that is just ending is a bystander.
    if current.nr == nr::EXIT || current.nr == nr::EXIT_GROUP {
        let can = sleeper.tgid == current.tgid && !wait.private;
        return if can { Waker::Exit } else { Waker::Interrupt };
    }
    let first = current.args[0];
    let (uaddr, second, private) = match current.nr {
        nr::FUTEX => {
            let flags = current.args[1] as u32;
            let private = flags & futex::PRIVATE != 0;
            match flags & futex::CMD_MASK {
                futex::WAKE | futex::WAKE_BITSET | futex::UNLOCK_PI => (first, first, private),
                futex::REQUEUE | futex::CMP_REQUEUE | futex::WAKE_OP | futex::CMP_REQUEUE_PI => {
                    (first, current.args[4], private)
                }
                // A PI waiter is also woken by the owner's death or by a LOCK_PI that boosts; not a hand-over.
                _ => return Waker::Interrupt,
            }
        }
        nr::FUTEX_WAKE => (first, first, current.args[3] as u32 & futex::PRIVATE != 0),
        // Its two words stand in memory: any may be the one.
        nr::FUTEX_REQUEUE => (wait.uaddr, wait.uaddr, false),
        // io_uring has futex operations of its own (6.7); their words are not in registers.
        nr::IO_URING_ENTER => return Waker::Call,
        _ => return Waker::Interrupt,
    };
    // A private futex is one process's; a shared one may be mapped elsewhere in the waker, and a waiter that
    // was requeued sleeps on a word which it never named.
    let same_space = sleeper.tgid == current.tgid;
    let same_word = uaddr == wait.uaddr || second == wait.uaddr;
    let requeued = wait.op == futex::WAIT_REQUEUE_PI;
    let can = if same_space {
        same_word || requeued
    } else {
        !private && !wait.private
    };
    if can { Waker::HandOver } else { Waker::Interrupt }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORD: u64 = 0x5555_0000_1000;

    fn wait(op: u32) -> [u64; 6] {
        [WORD, u64::from(op), 2, 0, 0, 0]
    }

    fn verdict(sleeper: &[u64; 6], nr: i64, args: &[u64; 6], waker_tgid: u32) -> Waker {
        waker(
            Side {
                tgid: 7,
                nr: nr::FUTEX,
                args: sleeper,
            },
            Side {
                tgid: waker_tgid,
                nr,
                args,
            },
        )
    }

    #[test]
    fn a_wake_of_the_same_word_is_a_hand_over() {
        let sleeper = wait(futex::WAIT | futex::PRIVATE);
        let wake = [WORD, u64::from(futex::WAKE | futex::PRIVATE), 1, 0, 0, 0];
        assert_eq!(verdict(&sleeper, nr::FUTEX, &wake, 7), Waker::HandOver);
        let other = [WORD + 4, u64::from(futex::WAKE | futex::PRIVATE), 1, 0, 0, 0];
        assert_eq!(verdict(&sleeper, nr::FUTEX, &other, 7), Waker::Interrupt);
    }

    #[test]
    fn a_bystander_is_never_blamed() {
        let sleeper = wait(futex::WAIT | futex::PRIVATE);
        let wake = [WORD, u64::from(futex::WAKE | futex::PRIVATE), 1, 0, 0, 0];
        // Another process's private futex at the same address, a call that cannot wake, no call, the idle task.
        assert_eq!(verdict(&sleeper, nr::FUTEX, &wake, 8), Waker::Interrupt);
        assert_eq!(verdict(&sleeper, nr::READ, &wake, 7), Waker::Interrupt);
        assert_eq!(verdict(&sleeper, -1, &wake, 7), Waker::Interrupt);
        assert_eq!(verdict(&sleeper, nr::FUTEX, &wake, 0), Waker::Interrupt);
        // A process that ends beside it.
        assert_eq!(verdict(&sleeper, nr::EXIT_GROUP, &wake, 8), Waker::Interrupt);
        assert_eq!(
            verdict(&sleeper, nr::EXIT, &wake, 7),
            Waker::Interrupt,
            "a private word"
        );
        assert_eq!(
            verdict(&wait(futex::WAIT), nr::EXIT, &wake, 7),
            Waker::Exit,
            "the word of a join"
        );
        // Waiting oneself wakes nobody.
        assert_eq!(
            verdict(&sleeper, nr::FUTEX, &wait(futex::WAIT | futex::PRIVATE), 7),
            Waker::Interrupt
        );
    }

    #[test]
    fn shared_words_may_lie_elsewhere() {
        let sleeper = wait(futex::WAIT);
        let wake = [0x7777, u64::from(futex::WAKE), 1, 0, 0, 0];
        assert_eq!(verdict(&sleeper, nr::FUTEX, &wake, 8), Waker::HandOver);
        assert_eq!(verdict(&sleeper, nr::FUTEX, &wake, 7), Waker::Interrupt);
    }

    #[test]
    fn wake_op_and_requeue_name_a_second_word() {
        let sleeper = wait(futex::WAIT | futex::PRIVATE);
        for op in [futex::WAKE_OP, futex::REQUEUE, futex::CMP_REQUEUE] {
            let wake = [0x7777, u64::from(op | futex::PRIVATE), 1, 0, WORD, 0];
            assert_eq!(verdict(&sleeper, nr::FUTEX, &wake, 7), Waker::HandOver, "op {op}");
        }
    }

    #[test]
    fn time_outs_are_read_where_each_call_keeps_them() {
        assert_eq!(timeout(nr::FUTEX, &[0, 0, 0, 9, 8, 7]), Timeout::Timespec(9));
        assert_eq!(timeout(nr::FUTEX_WAIT, &[0, 0, 0, 9, 8, 7]), Timeout::Timespec(8));
        assert_eq!(timeout(nr::READ, &[0; 6]), Timeout::None);
        let relative = futex_wait(nr::FUTEX, &wait(futex::WAIT)).unwrap();
        assert!(!relative.absolute && !relative.realtime);
        let pi = futex_wait(nr::FUTEX, &wait(futex::LOCK_PI)).unwrap();
        assert!(pi.absolute && pi.realtime);
        let pi2 = futex_wait(nr::FUTEX, &wait(futex::LOCK_PI2)).unwrap();
        assert!(pi2.absolute && !pi2.realtime);
    }
}
