//! Kinds of locks by the names of the functions that wait, as the versions of Go have them.

use super::LockKind::{Cond, Mutex, RwRead, RwWrite, Semaphore, WaitGroup};
use super::*;

fn told(functions: &str) -> Option<(LockKind, bool)> {
    let names: Vec<&str> = functions.split_whitespace().collect();
    kind(&names)
}

#[test]
fn every_lock_by_its_functions() {
    let park = "runtime.gopark runtime.goparkunlock runtime.semacquire1";
    let cases = [
        (
            "sync.runtime_SemacquireMutex sync.(*Mutex).lockSlow sync.(*Mutex).Lock main.f",
            (Mutex, false),
        ),
        (
            "internal/sync.runtime_SemacquireMutex internal/sync.(*Mutex).lockSlow internal/sync.(*Mutex).Lock \
             sync.(*Mutex).Lock main.f",
            (Mutex, false),
        ),
        (
            "sync.runtime_SemacquireMutex sync.(*Mutex).lockSlow sync.(*Mutex).Lock sync.(*RWMutex).Lock main.f",
            (RwWrite, true),
        ),
        (
            "sync.runtime_SemacquireMutex sync.(*RWMutex).Lock main.f",
            (RwWrite, false),
        ),
        (
            "sync.runtime_SemacquireRWMutex sync.(*RWMutex).Lock main.f",
            (RwWrite, false),
        ),
        (
            "sync.runtime_SemacquireMutex sync.(*RWMutex).RLock main.f",
            (RwRead, false),
        ),
        (
            "sync.runtime_SemacquireRWMutexR sync.(*RWMutex).RLock main.f",
            (RwRead, false),
        ),
        (
            "sync.runtime_Semacquire sync.(*WaitGroup).Wait main.f",
            (WaitGroup, false),
        ),
        (
            "sync.runtime_SemacquireWaitGroup sync.(*WaitGroup).Wait main.f",
            (WaitGroup, false),
        ),
        (
            "internal/poll.runtime_Semacquire internal/poll.(*fdMutex).rwlock internal/poll.(*FD).writeLock",
            (Semaphore, false),
        ),
        ("runtime.semacquire runtime.GC main.f", (Semaphore, false)),
        // Somebody else's lock that only bears the name.
        (
            "runtime.semacquire main.f sync.(*WaitGroup).Wait",
            (Semaphore, false),
        ),
    ];
    for (functions, wanted) in cases {
        assert_eq!(told(&format!("{park} {functions}")), Some(wanted), "{functions}");
    }
    let cond = "runtime.gopark runtime.goparkunlock sync.runtime_notifyListWait sync.(*Cond).Wait main.f";
    assert_eq!(told(cond), Some((Cond, false)));
    assert_eq!(told("runtime.gopark runtime.chanrecv main.f"), None);
    assert_eq!(told(""), None);
}
