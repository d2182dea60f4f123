//! Puts what the kernel tells of mappings in order with the records of the probes.

use tracer_ebpf::wire::Header;

use crate::{
    capture::mappings::Mappings,
    proc::{host, sched::tids},
    stacks::Stacks,
};

/// Threads that are listened to: each costs a ring for every CPU. New threads are heard through those that make them.
const THREADS_MAX: usize = 32;

/// What is heard of the targets' mappings.
#[derive(Default)]
pub struct Hearing {
    mappings: Option<Mappings>,
    /// All that was made before has been heard.
    heard_ns: u64,
}

impl Hearing {
    /// Hears of a process from now on, if the kernel lets us and it has few threads; without, its mappings are read while it lives.
    pub fn watch(&mut self, pid: u32, follow: bool) {
        let tids = tids(pid);
        let mappings = self.mappings.get_or_insert_with(Mappings::new);
        if mappings.rings() + tids.len() > THREADS_MAX {
            return;
        }
        for tid in tids {
            if let Err(error) = mappings.watch(tid, follow) {
                log::debug!("mappings of {tid} are not heard: {error}");
            }
        }
    }

    /// Takes what has been made by now; what is older than the last time counts even if no record comes after it.
    pub fn hear(&mut self, stacks: &mut Stacks) {
        let Some(mappings) = &mut self.mappings else {
            return;
        };
        let before = std::mem::replace(&mut self.heard_ns, host::monotonic_ns());
        mappings.drain(|change| stacks.hear(change));
        stacks.advance(before);
    }

    /// A record of the probes comes next: what was mapped before it counts.
    pub fn before(&mut self, record: &[u8], stacks: &mut Stacks) {
        let Some(mappings) = &mut self.mappings else {
            return;
        };
        let Some(header) = Header::read(record) else {
            return;
        };
        if header.ts_ns >= self.heard_ns {
            self.heard_ns = host::monotonic_ns();
            mappings.drain(|change| stacks.hear(change));
        }
        stacks.advance(header.ts_ns);
    }

    /// Changes that were not told.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.mappings.as_ref().map_or(0, Mappings::lost)
    }
}
