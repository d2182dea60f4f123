//! What a goroutine's wait in `runtime.semacquire1` is: which lock of package `sync`, and where that lock lies. The functions in its
//! stack say, as for futexes ([`super::rules`]).

use tracer_ebpf::wire::go_site;

use super::rules::{Class, Identity};
use crate::{
    go::locks::LockLayout,
    report::model::{LockKind, StackFrame},
};

/// Words that goroutines wait on in one `sync.RWMutex` lie so close, and no other's do.
const RWMUTEX_SPAN: u64 = 12;

/// What a wait is, and the address of the lock, or that of the word waited on where the lock's layout is not known.
#[must_use]
pub fn classify(frames: &[StackFrame], site: u32, address: u64, layout: &LockLayout) -> (Class, u64) {
    // Its own functions lie at the leaf, together; what is further out only uses the lock.
    let own: Vec<&str> = frames
        .iter()
        .map(|frame| frame.function.as_deref().unwrap_or_default())
        .take_while(|function| is_own(function))
        .collect();
    let has = |part: &str| own.iter().any(|function| function.contains(part));
    let frame = own.len().checked_sub(1);
    let class = |kind, idle, identity| Class {
        kind,
        idle,
        identity,
        frame,
    };
    let at = |offset: Option<u64>| offset.map_or(address, |offset| address.saturating_sub(offset));
    if site == go_site::POOL {
        let frame = frames.iter().position(|frame| {
            frame
                .function
                .as_deref()
                .is_some_and(|name| name.starts_with("database/sql."))
        });
        let class = Class {
            frame,
            ..class(LockKind::Pool, false, Identity::Word(0))
        };
        return (class, address);
    }
    if site == go_site::NOTIFY_LIST {
        return (
            class(LockKind::GoCond, true, Identity::Word(0)),
            at(layout.condition),
        );
    }
    if has("sync.(*RWMutex).") {
        let offset = if has("sync.(*RWMutex).RLock") {
            layout.reader
        } else if has("sync.(*Mutex).") {
            layout.writers
        } else {
            layout.writer
        };
        return (
            class(LockKind::GoRwmutex, false, Identity::Word(RWMUTEX_SPAN)),
            at(offset),
        );
    }
    if has("sync.(*Once).") && has("sync.(*Mutex).") {
        return (class(LockKind::Once, false, Identity::Word(0)), at(layout.mutex));
    }
    if has("sync.(*Mutex).") {
        return (
            class(LockKind::GoMutex, false, Identity::Word(0)),
            at(layout.mutex),
        );
    }
    if has("sync.(*WaitGroup).") {
        return (
            class(LockKind::GoWaitgroup, true, Identity::Word(0)),
            at(layout.wait_group),
        );
    }
    // A descriptor's own lock, for readers and for writers.
    if has("internal/poll.") {
        return (class(LockKind::GoMutex, false, Identity::Word(0)), address);
    }
    let kind = LockKind::Sem;
    if own.is_empty() {
        // Without a stack: what others on the same word are.
        return (class(kind, false, Identity::Word(0)), address);
    }
    // The runtime's own, such as a collection that waits for another to end.
    (class(kind, true, Identity::Word(0)), address)
}

fn is_own(function: &str) -> bool {
    ["runtime.", "sync.", "internal/sync.", "internal/poll."]
        .iter()
        .any(|package| function.starts_with(package))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: LockLayout = LockLayout {
        mutex: Some(4),
        writers: Some(4),
        writer: Some(8),
        reader: Some(12),
        wait_group: Some(8),
        condition: Some(16),
    };

    /// Kind, whether it is idle, and where the lock is.
    type Told = (LockKind, bool, u64);

    fn kind(names: &[&str], layout: &LockLayout) -> Told {
        let frames: Vec<StackFrame> = names
            .iter()
            .map(|name| StackFrame {
                function: Some((*name).to_owned()),
                module: None,
                file: None,
                line: None,
                inlined: false,
                address: "0x1".into(),
                offset: None,
            })
            .collect();
        let (class, address) = classify(&frames, go_site::SEMAPHORE, 0x1010, layout);
        (class.kind, class.idle, address)
    }

    #[test]
    fn each_lock_is_known_by_its_functions() {
        let cases: [(&[&str], Told); 9] = [
            (
                &[
                    "runtime.semacquire1",
                    "sync.runtime_SemacquireMutex",
                    "sync.(*Mutex).lockSlow",
                    "sync.(*Mutex).Lock",
                    "main.put",
                ],
                (LockKind::GoMutex, false, 0x100c),
            ),
            (
                &[
                    "runtime.semacquire1",
                    "internal/sync.runtime_SemacquireMutex",
                    "internal/sync.(*Mutex).lockSlow",
                    "internal/sync.(*Mutex).Lock",
                    "sync.(*Mutex).Lock",
                    "main.put",
                ],
                (LockKind::GoMutex, false, 0x100c),
            ),
            (
                &[
                    "runtime.semacquire1",
                    "sync.runtime_SemacquireRWMutexR",
                    "sync.(*RWMutex).RLock",
                    "main.get",
                ],
                (LockKind::GoRwmutex, false, 0x1004),
            ),
            (
                &[
                    "runtime.semacquire1",
                    "sync.runtime_SemacquireRWMutex",
                    "sync.(*RWMutex).Lock",
                    "main.set",
                ],
                (LockKind::GoRwmutex, false, 0x1008),
            ),
            (
                &[
                    "runtime.semacquire1",
                    "sync.runtime_SemacquireMutex",
                    "sync.(*Mutex).lockSlow",
                    "sync.(*Mutex).Lock",
                    "sync.(*RWMutex).Lock",
                    "main.set",
                ],
                (LockKind::GoRwmutex, false, 0x100c),
            ),
            (
                &[
                    "runtime.semacquire1",
                    "sync.runtime_Semacquire",
                    "sync.(*WaitGroup).Wait",
                    "main.main",
                ],
                (LockKind::GoWaitgroup, true, 0x1008),
            ),
            (
                &[
                    "runtime.semacquire1",
                    "sync.runtime_SemacquireMutex",
                    "sync.(*Mutex).lockSlow",
                    "sync.(*Once).doSlow",
                    "main.get",
                ],
                (LockKind::Once, false, 0x100c),
            ),
            (
                &[
                    "runtime.semacquire1",
                    "runtime.semacquire",
                    "runtime.gcStart",
                    "main.put",
                ],
                (LockKind::Sem, true, 0x1010),
            ),
            // A lock that is used by another's caller is not that lock.
            (
                &[
                    "runtime.semacquire1",
                    "sync.runtime_Semacquire",
                    "sync.(*WaitGroup).Wait",
                    "main.f",
                    "sync.(*RWMutex).Lock",
                ],
                (LockKind::GoWaitgroup, true, 0x1008),
            ),
        ];
        for (names, wanted) in cases {
            assert_eq!(kind(names, &LAYOUT), wanted, "{names:?}");
        }
    }

    #[test]
    fn without_a_layout_the_word_stands_for_the_lock() {
        let names = ["runtime.semacquire1", "sync.(*Mutex).lockSlow", "main.put"];
        assert_eq!(
            kind(&names, &LockLayout::default()),
            (LockKind::GoMutex, false, 0x1010)
        );
        let (class, address) = classify(&[], go_site::NOTIFY_LIST, 0x1010, &LAYOUT);
        assert_eq!(
            (class.kind, class.idle, address),
            (LockKind::GoCond, true, 0x1000)
        );
    }
}
