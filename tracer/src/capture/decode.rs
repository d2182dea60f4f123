//! Ring records to events. Nothing here trusts the length or the kind of a record.

use tracer_ebpf::wire::{
    Delays, Exec, Exit, Fault, FdClose, FdOpen, FdRights, FdUring, Fork, GoStart, GoWait, Header, Regs,
    Sample, Stack, StackClass, Wait, kind,
};

/// One record of the ring.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "lives on the stack for one record; boxing would allocate for each event"
)]
pub enum Event<'a> {
    /// A thread slept and got a CPU again.
    Wait(Wait),
    /// A stack that later records refer to, and the bytes copied from its stack pointer up.
    Stack(Stack, &'a [u8]),
    /// Delays in the run queue.
    Delays(Delays),
    /// A call made descriptors.
    FdOpen(FdOpen),
    /// A call closes descriptors.
    FdClose(FdClose),
    /// A message brought control data.
    FdRights(FdRights),
    /// An `io_uring` request was submitted (`result` is `i32::MIN`) or completed.
    FdUring(FdUring),
    /// A goroutine's wait for a lock ended.
    GoWait(GoWait),
    /// A goroutine was made.
    GoStart(GoStart),
    /// A thread was running, and the bytes copied from its stack pointer up.
    Sample(Sample, &'a [u8]),
    /// Memory was touched that had not been there, and the same bytes.
    Fault(Fault, &'a [u8]),
    /// A thread or process was made.
    Fork(Fork),
    /// A process replaced its program.
    Exec(Exec),
    /// A thread ended.
    Exit(Exit),
}

/// Whether a record is a sample, of what runs or of what is touched.
#[must_use]
pub fn is_sample(bytes: &[u8]) -> bool {
    Header::read(bytes).is_some_and(|header| matches!(header.kind, kind::SAMPLE | kind::FAULT))
}

/// `None` when the record is of an unknown kind or too short for its kind: counted by the caller, never guessed at.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Event<'_>> {
    let header = Header::read(bytes)?;
    Some(match header.kind {
        kind::WAIT => Event::Wait(Wait::read(bytes)?),
        kind::STACK => stack(bytes, header.class)?,
        kind::DELAYS => Event::Delays(Delays::read(bytes)?),
        kind::FD_OPEN => Event::FdOpen(FdOpen::read(bytes)?),
        kind::FD_CLOSE => Event::FdClose(FdClose::read(bytes)?),
        kind::FD_RIGHTS => Event::FdRights(FdRights::read(bytes)?),
        kind::FD_URING => Event::FdUring(FdUring::read(bytes)?),
        kind::GO_WAIT => Event::GoWait(GoWait::read(bytes)?),
        kind::GO_START => Event::GoStart(GoStart::read(bytes)?),
        kind::SAMPLE => sample(bytes)?,
        kind::FAULT => fault(bytes)?,
        kind::FORK => Event::Fork(Fork::read(bytes)?),
        kind::EXEC => Event::Exec(Exec::read(bytes)?),
        kind::EXIT => Event::Exit(Exit::read(bytes)?),
        _ => return None,
    })
}

fn stack(bytes: &[u8], class: u16) -> Option<Event<'_>> {
    let record = Stack::read(bytes)?;
    let class = StackClass::from_wire(class)?;
    Some(Event::Stack(
        record,
        copied(&record.regs, bytes.get(Stack::SIZE..)?, class),
    ))
}

fn sample(bytes: &[u8]) -> Option<Event<'_>> {
    let record = Sample::read(bytes)?;
    let rest = bytes.get(Sample::SIZE..)?;
    Some(Event::Sample(
        record,
        copied(&record.regs, rest, StackClass::Large),
    ))
}

fn fault(bytes: &[u8]) -> Option<Event<'_>> {
    let record = Fault::read(bytes)?;
    let rest = bytes.get(Fault::SIZE..)?;
    Some(Event::Fault(
        record,
        copied(&record.regs, rest, StackClass::Large),
    ))
}

/// Of the bytes after a record those that were copied.
fn copied<'a>(regs: &Regs, rest: &'a [u8], class: StackClass) -> &'a [u8] {
    let len = (regs.stack_len as usize).min(class.bytes()).min(rest.len());
    &rest[..len]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096), kind in 0u16..16) {
            let mut bytes = bytes;
            if bytes.len() >= 2 {
                bytes[..2].copy_from_slice(&kind.to_le_bytes());
            }
            if let Some(Event::Stack(_, copied) | Event::Sample(_, copied) | Event::Fault(_, copied)) = decode(&bytes) {
                prop_assert!(copied.len() <= StackClass::Large.bytes());
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
