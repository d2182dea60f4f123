//! Who made a goroutine: told in two places, where its maker comes to the `go` statement and where it begins, paired by something
//! that only the two have in common.
//!
//! ```text
//! the maker                                        the goroutine
//! call runtime.newproc   rax = closure ──────────> first function        rdx = closure          at chosen `go` statements
//! runtime.newproc        r14 = maker   ──────────> call runtime.runqput  m.curg = maker, rbx    at all of them
//!                                                  (in runtime.newproc.func1, the maker's thread)
//! ```
//! The closure of a `go` statement with arguments is made for that one goroutine and lives until it has begun. At all `go` statements
//! that cannot be relied on, as one without arguments has the same closure each time; but a maker makes one at a time.

use crate::cookie;

/// Key of the map `GO_ASKED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Address of the closure, or of the maker's descriptor: no two things that live at once have the same.
    pub at: u64,
    /// Process.
    pub tgid: u32,
    /// Zero.
    pub reserved: u32,
}

/// Value of the map `GO_ASKED`: a maker at its `go` statement.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Its number.
    pub goid: u64,
    /// When.
    pub asked_ns: u64,
    /// Its stack ([`crate::wire::stack_ref`]).
    pub stack: u64,
}

/// What a probe must know of a program, packed into the cookie of its attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Offset of the number in `runtime.g`.
    pub goid: u16,
    /// Offset of the thread in `runtime.g`.
    pub m: u16,
    /// Offset of the goroutine that it runs in `runtime.m`.
    pub curg: u16,
    /// Offset of its maker's number in `runtime.g`; 0 before Go 1.21, which keeps none.
    pub parent: u16,
    /// The probe is on the jump of the stack's check: where that is taken the function begins anew, on a larger stack.
    pub on_check: bool,
    /// In the runtime, at all `go` statements.
    pub all: bool,
}

impl Cookie {
    /// As the kernel carries it; offsets are multiples of 8.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        cookie::pack(
            [self.goid, self.m, self.curg, self.parent],
            cookie::flag(self.on_check, cookie::ON_CHECK) | cookie::flag(self.all, cookie::ALL),
        )
    }

    /// From [`Cookie::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(cookie: u64) -> Self {
        let ([goid, m, curg, parent], flags) = cookie::unpack(cookie);
        Self {
            goid,
            m,
            curg,
            parent,
            on_check: flags & cookie::ON_CHECK != 0,
            all: flags & cookie::ALL != 0,
        }
    }
}

/// Whether a thread's stack pointer shows that it runs on the stack with these bounds.
#[inline(always)]
#[must_use]
pub const fn is_on(sp: u64, [low, high]: [u64; 2]) -> bool {
    low < sp && sp <= high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_come_back() {
        for (goid, m, curg, parent, on_check, all) in [
            (152, 48, 184, 272, false, false),
            (160, 48, 192, 0, true, false),
            (u16::MAX - 7, u16::MAX - 7, u16::MAX - 7, u16::MAX - 7, true, true),
            (0, 0, 0, 8, false, true),
        ] {
            let cookie = Cookie {
                goid,
                m,
                curg,
                parent,
                on_check,
                all,
            };
            assert_eq!(Cookie::unpack(cookie.pack()), cookie);
        }
    }

    #[test]
    fn a_stack_pointer_lies_within_the_stack_or_at_its_top() {
        assert!(is_on(0x2000, [0x1000, 0x2000]) && is_on(0x1001, [0x1000, 0x2000]));
        assert!(!is_on(0x1000, [0x1000, 0x2000]) && !is_on(0x2001, [0x1000, 0x2000]));
        assert!(!is_on(0, [0, 0]) && !is_on(5, [8, 2]));
    }
}
