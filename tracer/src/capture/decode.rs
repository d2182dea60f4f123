//! Ring records to events. Nothing here trusts the length or the kind of a record.

use tracer_ebpf::wire::{
    Exec, Exit, FdClose, FdOpen, FdRights, FdUring, Fork, Header, Regs, StackClass, SwitchIn, SwitchOut,
    Wake, kind,
};

/// Registers and the copied top of a stack.
#[derive(Clone, Copy, Debug)]
pub struct StackCopy<'a> {
    /// Registers at kernel entry.
    pub regs: Regs,
    /// Bytes from `regs.sp` up.
    pub bytes: &'a [u8],
}

/// One record of the ring.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "lives on the stack for one record; boxing would allocate for each event"
)]
pub enum Event<'a> {
    /// A thread goes to sleep.
    SwitchOut(SwitchOut, StackCopy<'a>),
    /// A task's call ended a sleep; the stack is the waker's.
    Wake(Wake, StackCopy<'a>),
    /// A thread got a CPU.
    SwitchIn(SwitchIn),
    /// A call made descriptors.
    FdOpen(FdOpen, StackCopy<'a>),
    /// A call closes descriptors.
    FdClose(FdClose),
    /// A message brought control data.
    FdRights(FdRights, StackCopy<'a>),
    /// An `io_uring` request was submitted (`result` is `i32::MIN`; the stack is the submitter's) or completed (no stack).
    FdUring(FdUring, Option<StackCopy<'a>>),
    /// A thread or process was made.
    Fork(Fork),
    /// A process replaced its program.
    Exec(Exec),
    /// A thread ended.
    Exit(Exit),
}

/// `None` when the record is of an unknown kind or too short for its kind: counted by the caller, never guessed at.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Event<'_>> {
    let header = Header::read(bytes)?;
    Some(match header.kind {
        kind::SWITCH_OUT => Event::SwitchOut(
            SwitchOut::read(bytes)?,
            stack(bytes, SwitchOut::SIZE, header.class)?,
        ),
        kind::WAKE => Event::Wake(Wake::read(bytes)?, stack(bytes, Wake::SIZE, header.class)?),
        kind::SWITCH_IN => Event::SwitchIn(SwitchIn::read(bytes)?),
        kind::FD_OPEN => Event::FdOpen(FdOpen::read(bytes)?, stack(bytes, FdOpen::SIZE, header.class)?),
        kind::FD_CLOSE => Event::FdClose(FdClose::read(bytes)?),
        kind::FD_RIGHTS => Event::FdRights(
            FdRights::read(bytes)?,
            stack(bytes, FdRights::SIZE, header.class)?,
        ),
        kind::FD_URING => Event::FdUring(FdUring::read(bytes)?, stack(bytes, FdUring::SIZE, header.class)),
        kind::FORK => Event::Fork(Fork::read(bytes)?),
        kind::EXEC => Event::Exec(Exec::read(bytes)?),
        kind::EXIT => Event::Exit(Exit::read(bytes)?),
        _ => return None,
    })
}

fn stack(bytes: &[u8], at: usize, class: u16) -> Option<StackCopy<'_>> {
    let rest = bytes.get(at..)?;
    let regs = Regs::read(rest)?;
    let class = StackClass::from_wire(class)?;
    let copied = rest.get(Regs::SIZE..)?;
    let len = (regs.stack_len as usize).min(class.bytes()).min(copied.len());
    Some(StackCopy {
        regs,
        bytes: &copied[..len],
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096), kind in 0u16..12) {
            let mut bytes = bytes;
            if bytes.len() >= 2 {
                bytes[..2].copy_from_slice(&kind.to_le_bytes());
            }
            if let Some(Event::SwitchOut(_, stack)) = decode(&bytes) {
                prop_assert!(stack.bytes.len() <= StackClass::Large.bytes());
            }
        }
    }

    #[test]
    fn a_short_or_strange_record_is_none() {
        assert!(decode(&[]).is_none());
        let mut fork = [0u8; Fork::SIZE];
        fork[0] = kind::FORK as u8;
        assert!(matches!(decode(&fork), Some(Event::Fork(_))));
        assert!(decode(&fork[..Fork::SIZE - 1]).is_none());
        fork[0] = 200;
        assert!(decode(&fork).is_none());
    }
}
