//! Which lock a semaphore belongs to: the runtime waits on a word inside a lock, not on the lock.

use super::{
    memory::Memory,
    program::Program,
    runtime::find_types,
    types::{Struct, Types},
};

/// Where the words that goroutines wait on lie in the locks of package `sync`; `None` where the program has no description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockLayout {
    /// In `sync.Mutex`.
    pub mutex: Option<u64>,
    /// In `sync.RWMutex`: its mutex's, which writers wait on for each other.
    pub writers: Option<u64>,
    /// In `sync.RWMutex`: what a writer waits on for readers.
    pub writer: Option<u64>,
    /// In `sync.RWMutex`: what readers wait on for a writer.
    pub reader: Option<u64>,
    /// In `sync.WaitGroup`.
    pub wait_group: Option<u64>,
    /// The list in `sync.Cond`.
    pub condition: Option<u64>,
}

/// A lock is no larger.
const MAX_LOCK: u64 = 256;

impl LockLayout {
    /// Of a program. What it never makes by `new` has no description, and no layout here.
    #[must_use]
    pub fn find<M: Memory>(memory: &M, program: &Program) -> Self {
        let Some((types, _)) = find_types(memory, program) else {
            return Self::default();
        };
        let found = types.find(&["sync.Mutex", "sync.RWMutex", "sync.WaitGroup", "sync.Cond"]);
        let of = |name: &str| found.get(name).filter(|structure| structure.size <= MAX_LOCK);
        let word = |structure: &str, field: &str| Some(of(structure)?.field(field)? as u64);
        let inner = of("sync.RWMutex").and_then(|outer| {
            let mutex = types.structure(outer.type_of("w")?)?;
            Some(outer.field("w")? as u64 + semaphore(&types, &mutex)?)
        });
        Self {
            // Embedded in another lock it is described as well.
            mutex: of("sync.Mutex")
                .and_then(|mutex| semaphore(&types, mutex))
                .or(inner),
            writers: inner,
            writer: word("sync.RWMutex", "writerSem"),
            reader: word("sync.RWMutex", "readerSem"),
            // Before Go 1.20 one of two words, by alignment: on machines of 64 bits always this one.
            wait_group: word("sync.WaitGroup", "sema").or_else(|| word("sync.WaitGroup", "state2")),
            condition: word("sync.Cond", "notify"),
        }
    }
}

/// Where a mutex has its semaphore. Since Go 1.24 `sync.Mutex` has another one inside, whose name begins with the same package.
fn semaphore<M: Memory + ?Sized>(types: &Types<'_, M>, mutex: &Struct) -> Option<u64> {
    if let Some(offset) = mutex.field("sema") {
        return Some(offset as u64);
    }
    let inner = types.structure(mutex.type_of("mu")?)?;
    Some(mutex.field("mu")? as u64 + inner.field("sema")? as u64)
}
