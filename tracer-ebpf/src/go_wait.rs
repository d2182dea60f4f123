//! Waits of goroutines: begun in one probe, ended in another, paired by goroutine.
//!
//! The runtime queues a goroutine under a lock after its wait began and takes it out under the same lock before it is made
//! runnable, so the probes never see the two at once, or the end before the beginning.

use crate::{cookie, wire::go_site};

/// Key of the map `GO_WAITS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Address of the goroutine's descriptor (`runtime.g`), which the runtime gives to another when it ends.
    pub g: u64,
    /// Process.
    pub tgid: u32,
    /// Zero.
    pub reserved: u32,
}

/// Value of the map `GO_WAITS`: the last wait of a goroutine.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// When it began.
    pub started_ns: u64,
    /// When it last ended; 0 while it has not.
    pub woken_ns: u64,
    /// What for.
    pub address: u64,
    /// The goroutine's number.
    pub goid: u64,
    /// Its stack ([`crate::wire::stack_ref`]).
    pub stack: u64,
    /// One of [`crate::wire::go_site`].
    pub site: u32,
    /// How many waits it stands for; 0: it was not chosen and gets no record.
    pub weight: u32,
    /// Why, as [`crate::wire::GoWait::reason`].
    pub reason: u32,
    /// Zero.
    pub reserved: u32,
}

/// A wait that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// When it began.
    pub since_ns: u64,
    /// It is a second wait of the same call ([`crate::wire::go_wait::AGAIN`]).
    pub again: bool,
}

impl Pending {
    /// Nothing is known to have ended the wait: when another begins, the goroutine had got its lock without one.
    #[inline(always)]
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.weight != 0 && self.woken_ns == 0
    }

    /// The goroutine is made runnable. `None` when nobody is to hear of it.
    #[inline(always)]
    pub const fn end(&mut self, now: u64) -> Option<Ended> {
        if self.weight == 0 {
            return None;
        }
        // Each park announces itself: this one's end is told, and what ends now is one that was left out.
        if self.site == go_site::PARK && self.woken_ns != 0 {
            return None;
        }
        // Each call announces itself once and may wait several times: woken, it can find the semaphore taken by another.
        let again = self.woken_ns != 0;
        let since_ns = if again { self.woken_ns } else { self.started_ns };
        self.woken_ns = now;
        Some(Ended { since_ns, again })
    }
}

/// Value of the map `GO_PROGRAMS`: what the probes on parking must know of a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Reasons to park, a bit each, that are not recorded: the probes on locks do, or they are the runtime's own.
    pub skipped: u64,
    /// Reasons whose lock is that of a channel.
    pub channels: u64,
    /// Offset of the number in `runtime.g`.
    pub goid: u16,
    /// Offset of the thread (`*runtime.m`) in `runtime.g`.
    pub m: u16,
    /// Offset of the stack pointer in `runtime.g` while it does not run.
    pub sp: u16,
    /// Offset of the program counter in `runtime.g` while it does not run.
    pub pc: u16,
    /// Offset of the frame pointer in `runtime.g` while it does not run.
    pub bp: u16,
    /// Offset of the goroutine that a thread runs, in `runtime.m`.
    pub curg: u16,
    /// Offset of the lock in `runtime.hchan`.
    pub channel_lock: u16,
    /// Offset of the goroutine that waits to read, in `runtime.pollDesc`.
    pub reader: u16,
    /// Offset of the goroutine that waits to write, in `runtime.pollDesc`.
    pub writer: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

const _: () = assert!(size_of::<Layout>() == 40, "no padding");

impl Layout {
    /// Whether a park for this reason is recorded.
    #[inline(always)]
    #[must_use]
    pub const fn records(&self, reason: u32) -> bool {
        !Self::has(self.skipped, reason)
    }

    /// The channel that a goroutine waits on that parks for this reason with this lock; 0 when there is none.
    #[inline(always)]
    #[must_use]
    pub const fn channel(&self, reason: u32, lock: u64) -> u64 {
        if Self::has(self.channels, reason) && lock != 0 {
            lock.wrapping_sub(self.channel_lock as u64)
        } else {
            0
        }
    }

    const fn has(reasons: u64, reason: u32) -> bool {
        reason < 64 && reasons >> reason & 1 != 0
    }
}

/// What a probe must know of a program, packed into the cookie of its attachment: offsets differ from one version of Go to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Offset of the number in `runtime.g`.
    pub goid: u16,
    /// Offset of the goroutine in `runtime.sudog`.
    pub sudog_g: u16,
    /// The probe is on the jump of the stack's check: where that is taken the function begins anew, on a larger stack.
    pub on_check: bool,
    /// Waits for condition variables are told, too.
    pub all: bool,
}

impl Cookie {
    /// As the kernel carries it; offsets are multiples of 8.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        cookie::pack(
            [self.goid, self.sudog_g, 0, 0],
            cookie::flag(self.on_check, cookie::ON_CHECK) | cookie::flag(self.all, cookie::ALL),
        )
    }

    /// From [`Cookie::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(cookie: u64) -> Self {
        let ([goid, sudog_g, ..], flags) = cookie::unpack(cookie);
        Self {
            goid,
            sudog_g,
            on_check: flags & cookie::ON_CHECK != 0,
            all: flags & cookie::ALL != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(started_ns: u64, weight: u32) -> Pending {
        Pending {
            started_ns,
            weight,
            ..Pending::default()
        }
    }

    #[test]
    fn a_wait_lasts_from_its_beginning_to_the_wake() {
        let mut wait = begun(100, 1);
        assert!(wait.is_open());
        let ended = wait.end(140).unwrap();
        assert_eq!((ended.since_ns, ended.again), (100, false));
        assert!(!wait.is_open());
    }

    #[test]
    fn losing_the_race_after_a_wake_is_a_second_wait() {
        let mut wait = begun(100, 1);
        wait.end(140);
        let ended = wait.end(190).unwrap();
        assert_eq!((ended.since_ns, ended.again), (140, true));
    }

    #[test]
    fn nobody_hears_of_one_that_was_not_chosen() {
        let mut wait = begun(100, 0);
        assert!(!wait.is_open());
        assert_eq!(wait.end(140), None);
    }

    #[test]
    fn a_park_ends_once() {
        let mut park = Pending {
            site: go_site::PARK,
            ..begun(100, 1)
        };
        assert_eq!(park.end(140).map(|ended| ended.again), Some(false));
        assert_eq!(park.end(190), None);
    }

    #[test]
    fn only_channels_have_an_address() {
        let layout = Layout {
            skipped: 1 << 19,
            channels: 1 << 14,
            channel_lock: 88,
            ..Layout::default()
        };
        assert!(!layout.records(19) && layout.records(14) && layout.records(200));
        assert_eq!(layout.channel(14, 0x1058), 0x1000);
        assert_eq!(layout.channel(9, 0x1058), 0);
        assert_eq!(layout.channel(14, 0), 0);
        assert_eq!(layout.channel(200, 0x1058), 0);
    }

    #[test]
    fn cookies_come_back() {
        for (goid, sudog_g, on_check) in [
            (152, 0, false),
            (160, 24, true),
            (u16::MAX - 7, u16::MAX - 7, true),
        ] {
            let cookie = Cookie {
                goid,
                sudog_g,
                on_check,
                all: !on_check,
            };
            assert_eq!(Cookie::unpack(cookie.pack()), cookie);
        }
    }
}
