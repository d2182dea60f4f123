//! What a futex wait is: the acquiring function in its stack decides, the futex word second.
//!
//! A futex word is not always the lock. `parking_lot` and Java monitors sleep on words of their own threads, `CPython`'s
//! interpreter lock and every monitor wait on condition variables, one glibc condition variable uses two words. So the
//! stack is searched from the leaf for the functions of the table below; functions that are built on top of others (a
//! monitor on a condition variable) are looked for first.

use crate::report::model::{LockKind, StackFrame};

/// How waits of a kind are put together to one lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// By futex word; words within this many bytes of each other belong to one object.
    Word(u64),
    /// By the code that acquires: the words belong to threads, not to the lock.
    Code,
    /// One for the process.
    Process,
}

/// What a stack says of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// What is waited for.
    pub kind: LockKind,
    /// The thread has nothing to do; no contention.
    pub idle: bool,
    /// What makes two waits waits for the same thing.
    pub identity: Identity,
    /// Index of the frame that matched; `None` without a match.
    pub frame: Option<usize>,
}

#[derive(Clone, Copy)]
enum Pattern {
    /// The whole name without arguments and generics.
    Is(&'static str),
    /// Anywhere in the name.
    Has(&'static str),
}

struct Rule {
    pattern: Pattern,
    kind: LockKind,
    idle: bool,
    identity: Identity,
}

const fn rule(pattern: Pattern, kind: LockKind, idle: bool, identity: Identity) -> Rule {
    Rule {
        pattern,
        kind,
        idle,
        identity,
    }
}

use Identity::{Code, Process, Word};
use Pattern::{Has, Is};

/// Frames that are searched; what acquires a lock is near the leaf.
const DEPTH: usize = 24;

/// Functions that wait by means of the ones in [`PLAIN`]: the first that matches anywhere in the top of the stack wins.
const LAYERED: &[Rule] = &[
    // CPython: the interpreter lock sleeps on a condition variable with a time-out of 5 ms.
    rule(Is("take_gil"), LockKind::Gil, false, Process),
    rule(Is("PyEval_RestoreThread"), LockKind::Gil, false, Process),
    rule(Is("PyEval_AcquireThread"), LockKind::Gil, false, Process),
    rule(Is("PyThread_acquire_lock_timed"), LockKind::Mutex, false, Word(0)),
    rule(Is("PyThread_acquire_lock"), LockKind::Mutex, false, Word(0)),
    // HotSpot: monitors and its own locks park the thread.
    rule(Has("ObjectMonitor::enter"), LockKind::JavaMonitor, false, Code),
    rule(Has("ObjectMonitor::EnterI"), LockKind::JavaMonitor, false, Code),
    rule(Has("ObjectMonitor::ReenterI"), LockKind::JavaMonitor, false, Code),
    rule(Has("ObjectMonitor::wait"), LockKind::Cond, true, Code),
    rule(Has("Unsafe_Park"), LockKind::Parker, true, Code),
    rule(Has("Mutex::lock_contended"), LockKind::Mutex, false, Word(0)),
    rule(Has("Monitor::wait"), LockKind::RuntimeIdle, true, Code),
    rule(Has("JavaThread::sleep"), LockKind::Sleep, true, Code),
    // Rust: parking_lot parks on a word of the thread; std's are futexes of their own.
    rule(
        Has("parking_lot::raw_mutex::RawMutex::lock_slow"),
        LockKind::Mutex,
        false,
        Code,
    ),
    rule(Has("parking_lot::raw_fair_mutex"), LockKind::Mutex, false, Code),
    rule(
        Has("parking_lot::raw_rwlock::RawRwLock::lock_"),
        LockKind::Rwlock,
        false,
        Code,
    ),
    rule(
        Has("parking_lot::raw_rwlock::RawRwLock::upgrade"),
        LockKind::Rwlock,
        false,
        Code,
    ),
    rule(
        Has("parking_lot::raw_rwlock::RawRwLock::wait_for_readers"),
        LockKind::Rwlock,
        false,
        Code,
    ),
    rule(
        Has("parking_lot::condvar::Condvar::wait"),
        LockKind::Cond,
        true,
        Code,
    ),
    rule(Has("parking_lot::once::Once"), LockKind::Once, false, Code),
    rule(
        Has("tokio::runtime::scheduler"),
        LockKind::RuntimeIdle,
        true,
        Code,
    ),
    rule(
        Has("tokio::runtime::blocking::pool"),
        LockKind::RuntimeIdle,
        true,
        Code,
    ),
    rule(Has("tokio::runtime::park"), LockKind::RuntimeIdle, true, Code),
    rule(Has("rayon_core::sleep"), LockKind::RuntimeIdle, true, Code),
    // C++: Abseil waits on a semaphore of the thread.
    rule(Has("absl::Mutex::Await"), LockKind::Cond, true, Code),
    rule(Has("absl::Mutex::LockWhen"), LockKind::Cond, true, Code),
    rule(Has("absl::CondVar::Wait"), LockKind::Cond, true, Code),
    rule(Has("Mutex::LockSlow"), LockKind::Mutex, false, Code),
    rule(Has("folly::SharedMutexImpl"), LockKind::Rwlock, false, Code),
    // Go's runtime: a thread without work. Its locks and channels are not futexes.
    rule(Is("runtime.lock2"), LockKind::Mutex, false, Word(0)),
    rule(Is("runtime.lock"), LockKind::Mutex, false, Word(0)),
    rule(Is("runtime.mPark"), LockKind::RuntimeIdle, true, Process),
    rule(Is("runtime.stopm"), LockKind::RuntimeIdle, true, Process),
    rule(Is("runtime.notesleep"), LockKind::RuntimeIdle, true, Process),
    rule(Is("runtime.notetsleep"), LockKind::RuntimeIdle, true, Process),
    rule(Is("runtime.notetsleepg"), LockKind::RuntimeIdle, true, Process),
    rule(
        Is("runtime.notetsleep_internal"),
        LockKind::RuntimeIdle,
        true,
        Process,
    ),
    rule(Is("runtime.futexsleep"), LockKind::RuntimeIdle, true, Process),
    // Node.
    rule(Has("v8::platform::"), LockKind::RuntimeIdle, true, Code),
    rule(
        Has("node::WorkerThreadsTaskRunner"),
        LockKind::RuntimeIdle,
        true,
        Code,
    ),
];

/// glibc, musl and Rust's standard library: the first from the leaf that matches wins.
const PLAIN: &[Rule] = &[
    rule(Is("__pthread_mutex_cond_lock"), LockKind::Mutex, false, Word(0)),
    rule(Has("pthread_mutex_lock"), LockKind::Mutex, false, Word(0)),
    rule(Has("pthread_mutex_timedlock"), LockKind::Mutex, false, Word(0)),
    rule(Has("pthread_mutex_clocklock"), LockKind::Mutex, false, Word(0)),
    rule(Has("pthread_rwlock_"), LockKind::Rwlock, false, Word(12)),
    rule(Has("pthread_cond_"), LockKind::Cond, true, Word(4)),
    rule(Has("pthread_barrier_wait"), LockKind::Barrier, true, Word(16)),
    rule(Has("pthread_join"), LockKind::Join, true, Word(0)),
    rule(Has("pthread_clockjoin"), LockKind::Join, true, Word(0)),
    rule(Has("pthread_timedjoin"), LockKind::Join, true, Word(0)),
    rule(Has("pthread_once"), LockKind::Once, false, Word(0)),
    rule(Is("sem_wait"), LockKind::Sem, true, Word(0)),
    rule(Is("sem_timedwait"), LockKind::Sem, true, Word(0)),
    rule(Is("sem_clockwait"), LockKind::Sem, true, Word(0)),
    rule(Has("__new_sem_wait"), LockKind::Sem, true, Word(0)),
    rule(Has("sem_clockwait"), LockKind::Sem, true, Word(0)),
    rule(Has("std::sys::sync::mutex::"), LockKind::Mutex, false, Word(0)),
    rule(Has("std::sys::sync::rwlock::"), LockKind::Rwlock, false, Word(4)),
    rule(Has("std::sys::sync::condvar::"), LockKind::Cond, true, Word(0)),
    rule(Has("std::sys::sync::once::"), LockKind::Once, false, Word(0)),
    rule(
        Has("std::sys::sync::thread_parking::"),
        LockKind::Parker,
        true,
        Code,
    ),
    rule(Has("std::thread::park"), LockKind::Parker, true, Code),
    rule(Has("std::sys::sys_common::"), LockKind::Mutex, false, Word(0)),
    rule(Has("parking_lot_core::"), LockKind::Parker, true, Code),
    rule(Has("std::__atomic_wait"), LockKind::Cond, true, Word(0)),
    rule(Has("std::__atomic_semaphore"), LockKind::Sem, true, Word(0)),
    rule(Has("__lll_lock_wait"), LockKind::Mutex, false, Word(0)),
    rule(Is("_IO_lock_lock"), LockKind::Mutex, false, Word(0)),
    rule(Is("__lock"), LockKind::Mutex, false, Word(0)),
];

/// What the waits of a stack are waits for. `pi`: a priority-inheriting operation, which only mutexes use. `go`: the process is a
/// Go program, whose futexes are its scheduler's even where no name says so.
#[must_use]
pub fn classify(frames: &[StackFrame], pi: bool, go: bool) -> Class {
    let top = &frames[..frames.len().min(DEPTH)];
    for rule in LAYERED {
        let Some(frame) = top.iter().position(|frame| matches(rule, frame)) else {
            continue;
        };
        // A runtime's idle loop lies under its tasks too: what is taken nearer to the leaf is the wait.
        let nearer = top[..frame]
            .iter()
            .find_map(|frame| PLAIN.iter().find(|rule| matches(rule, frame)));
        if !rule.idle || nearer.is_none_or(|plain| plain.idle) {
            return class(rule, frame);
        }
    }
    for (index, frame) in top.iter().enumerate() {
        if let Some(rule) = PLAIN.iter().find(|rule| matches(rule, frame)) {
            let found = class(rule, index);
            return if pi {
                Class {
                    kind: LockKind::Pi,
                    ..found
                }
            } else {
                found
            };
        }
    }
    if go {
        return Class {
            kind: LockKind::RuntimeIdle,
            idle: true,
            identity: Process,
            frame: None,
        };
    }
    let kind = if pi { LockKind::Pi } else { LockKind::UnknownFutex };
    Class {
        kind,
        idle: false,
        identity: Word(0),
        frame: None,
    }
}

const fn class(rule: &Rule, frame: usize) -> Class {
    Class {
        kind: rule.kind,
        idle: rule.idle,
        identity: rule.identity,
        frame: Some(frame),
    }
}

fn matches(rule: &Rule, frame: &StackFrame) -> bool {
    let Some(function) = frame.function.as_deref() else {
        return false;
    };
    match rule.pattern {
        Is(name) => bare(function) == name,
        Has(part) => function.contains(part),
    }
}

/// A name without arguments, symbol version and ABI suffix: `sem_wait@@GLIBC_2.34`, `runtime.futexsleep.abi0`, `f(int)`.
fn bare(name: &str) -> &str {
    let end = name.find(['(', '@', '<']).unwrap_or(name.len());
    let name = &name[..end];
    name.strip_suffix(".abi0")
        .or_else(|| name.strip_suffix(".constprop.0"))
        .unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(names: &[&str]) -> Vec<StackFrame> {
        names
            .iter()
            .map(|name| StackFrame {
                function: (!name.is_empty()).then(|| (*name).to_owned()),
                module: None,
                file: None,
                line: None,
                inlined: false,
                address: "0x1".into(),
                offset: None,
            })
            .collect()
    }

    fn kind(names: &[&str]) -> (LockKind, bool) {
        let class = classify(&stack(names), false, false);
        (class.kind, class.idle)
    }

    #[test]
    fn a_mutex_is_not_idle_and_a_condition_variable_is() {
        assert_eq!(
            kind(&[
                "futex_wait",
                "__lll_lock_wait",
                "___pthread_mutex_lock",
                "handle_request"
            ]),
            (LockKind::Mutex, false)
        );
        assert_eq!(
            kind(&[
                "__futex_abstimed_wait_common64",
                "__pthread_cond_wait",
                "next_job",
                "worker"
            ]),
            (LockKind::Cond, true)
        );
    }

    #[test]
    fn getting_the_mutex_back_after_a_condition_is_a_mutex_wait() {
        assert_eq!(
            kind(&[
                "__lll_lock_wait",
                "__pthread_mutex_cond_lock",
                "__pthread_cond_wait",
                "next_job"
            ]),
            (LockKind::Mutex, false)
        );
    }

    #[test]
    fn what_stands_on_a_condition_variable_decides() {
        assert_eq!(
            kind(&[
                "__futex_abstimed_wait",
                "pthread_cond_timedwait",
                "take_gil",
                "PyEval_RestoreThread"
            ]),
            (LockKind::Gil, false)
        );
        assert_eq!(
            kind(&[
                "pthread_cond_wait",
                "os::PlatformEvent::park",
                "ObjectMonitor::EnterI(JavaThread*)"
            ]),
            (LockKind::JavaMonitor, false)
        );
        assert_eq!(
            kind(&[
                "pthread_cond_wait",
                "os::PlatformEvent::park()",
                "ObjectMonitor::wait(long, bool, JavaThread*)"
            ]),
            (LockKind::Cond, true)
        );
    }

    #[test]
    fn a_lock_taken_by_a_runtimes_task_is_a_lock() {
        let lock = "std::sys::sync::rwlock::futex::RwLock::read_contended";
        let worker = "tokio::runtime::scheduler::multi_thread::worker::run";
        assert_eq!(
            kind(&["syscall", lock, "app::lookup", worker]),
            (LockKind::Rwlock, false)
        );
        let park = "std::sys::sync::condvar::futex::Condvar::wait_optional_timeout";
        assert_eq!(kind(&["syscall", park, worker]), (LockKind::RuntimeIdle, true));
    }

    #[test]
    fn python_locks_are_locks_though_they_sleep_on_semaphores() {
        assert_eq!(
            kind(&[
                "__futex_abstimed_wait",
                "__new_sem_wait_slow64",
                "PyThread_acquire_lock_timed",
                "lock_acquire"
            ]),
            (LockKind::Mutex, false)
        );
    }

    #[test]
    fn an_unknown_futex_is_no_lock_and_a_go_thread_is_idle() {
        assert_eq!(
            kind(&["syscall", "own_wait", "main"]),
            (LockKind::UnknownFutex, false)
        );
        let class = classify(&stack(&["", ""]), false, true);
        assert_eq!((class.kind, class.idle), (LockKind::RuntimeIdle, true));
    }

    #[test]
    fn names_are_compared_without_versions_and_arguments() {
        assert_eq!(bare("sem_wait@@GLIBC_2.34"), "sem_wait");
        assert_eq!(bare("runtime.futexsleep.abi0"), "runtime.futexsleep");
        assert_eq!(bare("take_gil(PyThreadState*)"), "take_gil");
    }

    #[test]
    fn priority_inheritance_names_the_kind() {
        let class = classify(&stack(&["__pthread_mutex_lock_full", "f"]), true, false);
        assert_eq!(class.kind, LockKind::Pi);
    }
}
