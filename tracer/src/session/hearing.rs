//! Puts what the kernel tells of mappings in order with the records of the probes.

use tracer_ebpf::wire::Header;

use crate::{
    capture::mappings::Mappings,
    proc::{host, sched::tids},
    stacks::Stacks,
};

/// Threads of a command that are listened to: each costs a ring for every CPU. New threads are heard through those that make
/// them.
const THREADS_MAX: usize = 32;

/// What is heard of the targets' mappings.
#[derive(Default)]
pub struct Hearing {
    mappings: Option<Mappings>,
    /// Nobody but the targets is heard.
    own: bool,
    /// All that was made before has been heard.
    heard_ns: u64,
    /// Changes known to be lost, as of the last time.
    lost: u64,
}

impl Hearing {
    /// Hears of a command and what it makes from now on, from the first instruction: the kernel tells it each context switch, for
    /// 50 to 100 ns of the command's.
    pub fn watch(&mut self, pid: u32, follow: bool) -> bool {
        let tids = tids(pid);
        self.own = true;
        let mappings = self.mappings.get_or_insert_with(Mappings::new);
        if mappings.rings() + tids.len() > THREADS_MAX {
            return false;
        }
        for tid in tids {
            if let Err(error) = mappings.watch(tid, follow) {
                log::debug!("mappings of {tid} are not heard: {error}");
                return false;
            }
        }
        true
    }

    /// Hears of all processes of the host from now on, and keeps what the targets do: a process that runs is not taxed for its
    /// context switches, and mapping a file costs every process a fraction of a microsecond more.
    pub fn watch_host(&mut self) -> bool {
        let mappings = self.mappings.get_or_insert_with(Mappings::new);
        match mappings.watch_host() {
            Ok(()) => true,
            Err(error) => {
                log::debug!("mappings are not heard: {error}");
                false
            }
        }
    }

    /// Takes what has been made by now; what is older than the last time counts even if no record comes after it.
    pub fn hear(&mut self, stacks: &mut Stacks) {
        let Some(mappings) = &mut self.mappings else {
            return;
        };
        let before = std::mem::replace(&mut self.heard_ns, host::monotonic_ns());
        mappings.drain(|change| stacks.hear(change, self.own));
        stacks.advance(before);
        let lost = mappings.lost();
        if lost != self.lost {
            self.lost = lost;
            stacks.unheard(before);
        }
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
            mappings.drain(|change| stacks.hear(change, self.own));
        }
        stacks.advance(header.ts_ns);
    }

    /// Changes that were not told.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.mappings.as_ref().map_or(0, Mappings::lost)
    }
}
