//! Waits for a connection of a pool of `database/sql`: begun and ended in one function, by one goroutine, which may change its thread
//! and its stack in between.
//!
//! ```text
//! (*DB).conn             rax = pool                    a connection is wanted          on_check
//!   call selectgo        rax = cases, r14 = goroutine  there is none: it waits
//! (*DB).putConnDBLocked
//!   call chansend1       rax = its channel             another gives one back, to this one
//! (*DB).conn
//!   je                   rax = case, rbx = received    it has one, or has given up
//! ```

use crate::{cookie, wire::go_wait};

/// Value of the map `GO_POOL_WAITS`, by goroutine ([`crate::go_wait::Key`]): its last wait for a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// When it began; 0: it is over.
    pub started_ns: u64,
    /// The pool.
    pub address: u64,
    /// The goroutine's number.
    pub goid: u64,
    /// Its stack ([`crate::wire::stack_ref`]).
    pub stack: u64,
    /// Number of the goroutine that gave a connection to it; 0 while none did.
    pub waker_goid: u64,
    /// That one's stack.
    pub waker_stack: u64,
    /// The case that brings a connection, plus one; 0: which one that is could not be told.
    pub granting: u32,
    /// How many waits it stands for; 0: it was not chosen and gets no record.
    pub weight: u32,
}

/// Which case brings a connection, as [`Pending::granting`]: the one that keeps what it receives. The other one, for the end of the
/// context, keeps nothing.
#[inline(always)]
#[must_use]
pub const fn granting(kept: [u64; 2]) -> u32 {
    match kept {
        [0, 0] => 0,
        [_, 0] => 1,
        [0, _] => 2,
        _ => 0,
    }
}

/// How a wait ended, as [`crate::wire::GoWait::flags`]: by the case that was taken, and whether something was received.
#[inline(always)]
#[must_use]
pub const fn outcome(granting: u32, case: u64, received: bool) -> u32 {
    if granting == 0 || case > 1 {
        go_wait::UNKNOWN
    } else if case + 1 != granting as u64 {
        go_wait::GAVE_UP
    } else if received {
        0
    } else {
        go_wait::UNKNOWN
    }
}

/// Value of the map `GO_POOLS`, by pool ([`crate::go_wait::Key`], with its address): what was counted while the probes were there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How often a connection was wanted.
    pub requests: u64,
    /// How often there was none.
    pub waits: u64,
}

/// What a probe must know of a program, packed into the cookie of its attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Offset of the number in `runtime.g`.
    pub goid: u16,
    /// Offset of the goroutine in `runtime.sudog`.
    pub sudog_g: u16,
    /// Offset of the first receiver that waits in `runtime.hchan`.
    pub receivers: u16,
    /// Where `(*DB).conn` keeps its receiver, above its stack pointer.
    pub home: u16,
    /// The probe is on the jump of the stack's check.
    pub on_check: bool,
}

impl Cookie {
    /// As the kernel carries it; offsets are multiples of 8.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        cookie::pack(
            [self.goid, self.sudog_g, self.receivers, self.home],
            cookie::flag(self.on_check, cookie::ON_CHECK),
        )
    }

    /// From [`Cookie::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(cookie: u64) -> Self {
        let ([goid, sudog_g, receivers, home], flags) = cookie::unpack(cookie);
        Self {
            goid,
            sudog_g,
            receivers,
            home,
            on_check: flags & cookie::ON_CHECK != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_come_back() {
        for on_check in [false, true] {
            let cookie = Cookie {
                goid: 160,
                sudog_g: 0,
                receivers: 64,
                home: 0x1a0,
                on_check,
            };
            assert_eq!(Cookie::unpack(cookie.pack()), cookie);
        }
    }

    #[test]
    fn the_case_that_keeps_what_it_receives_brings_the_connection() {
        assert_eq!(granting([0xc000, 0]), 1);
        assert_eq!(granting([0, 0xc000]), 2);
        assert_eq!(granting([0, 0]), 0);
        assert_eq!(granting([0xc000, 0xc008]), 0);
    }

    #[test]
    fn who_gave_up_got_none() {
        assert_eq!(outcome(1, 0, true), 0);
        assert_eq!(outcome(1, 1, false), go_wait::GAVE_UP);
        assert_eq!(outcome(2, 0, true), go_wait::GAVE_UP);
        // The pool was closed.
        assert_eq!(outcome(2, 1, false), go_wait::UNKNOWN);
        assert_eq!(outcome(0, 0, true), go_wait::UNKNOWN);
        assert_eq!(outcome(1, u64::MAX, true), go_wait::UNKNOWN);
    }
}
