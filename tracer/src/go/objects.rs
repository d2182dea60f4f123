//! What goroutines wait on: locks, channels, descriptors, pools of connections. Read from memory, with nothing attached.
//!
//! [`Objects::find`] looks once for what the runtime and the libraries of a program keep where. The questions themselves are methods
//! beside it: [`Objects::held_up`], [`Objects::channels`], [`Objects::sockets`], [`Objects::pools`], [`Objects::http`]. They are asked
//! after a snapshot, of goroutines as it saw them; for one that has moved since there is no answer.

use log::debug;
use rustc_hash::FxHashMap;

use super::{
    channels::{self, ChannelUse},
    connections::{self, HttpLoop},
    frames::{Receiver, places},
    held_up::{self, LockSite},
    memory::Memory,
    pools,
    program::Program,
    semaphores::Semaphores,
    snapshot::{Goroutine, Group, NO_GROUP, Reader},
    sockets,
    sudogs::Sudogs,
    types::{Struct, Types},
};

/// Structures, by the path of their package and by name.
pub(super) type Structs = FxHashMap<(&'static str, &'static str), Struct>;
pub(super) const SUDOG: (&str, &str) = ("runtime", "runtime.sudog");
pub(super) const CHANNEL: (&str, &str) = ("runtime", "runtime.hchan");
pub(super) const POLLED: (&str, &str) = ("runtime", "runtime.pollDesc");
/// What a timer or ticker sends.
pub(super) const TIME: (&str, &str) = ("time", "time.Time");
pub(super) const FD: (&str, &str) = ("internal/poll", "poll.FD");
pub(super) const MUTEX: (&str, &str) = ("sync", "sync.Mutex");
/// Since 1.24, what a `sync.Mutex` consists of.
pub(super) const INNER: (&str, &str) = ("internal/sync", "sync.Mutex");
pub(super) const RW_MUTEX: (&str, &str) = ("sync", "sync.RWMutex");
pub(super) const GROUP: (&str, &str) = ("sync", "sync.WaitGroup");
pub(super) const COND: (&str, &str) = ("sync", "sync.Cond");
pub(super) const DATABASE: (&str, &str) = ("database/sql", "sql.DB");
pub(super) const CONNECTION: (&str, &str) = ("net/http", "http.persistConn");

/// Frames of a stack looked at for what it waits on.
const NEAR: usize = 64;

/// Where a program keeps what its goroutines wait on. What was not found is not asked for.
#[derive(Debug)]
pub struct Objects {
    pub(super) sudogs: Option<Sudogs>,
    pub(super) semaphores: Option<Semaphores>,
    pub(super) locks: held_up::Layout,
    pub(super) channels: Option<channels::Layout>,
    pub(super) sockets: Option<sockets::Layout>,
    pub(super) databases: Option<pools::Databases>,
    pub(super) connections: Option<connections::Connections>,
    /// What is known of a group, by its number.
    sites: Vec<Sites>,
    /// Some group waits for a connection of a pool.
    pub(super) any_database: bool,
}

/// What the stack of a group tells.
#[derive(Clone, Debug, Default)]
pub(super) struct Sites {
    pub(super) lock: Option<LockSite>,
    pub(super) channel: Option<ChannelUse>,
    pub(super) socket: Option<Receiver>,
    /// Waits for a connection of this pool.
    pub(super) database: Option<Receiver>,
    /// Is in a call of `database/sql`, and does not wait for a connection.
    pub(super) uses_database: bool,
    /// Is the one goroutine that each open pool has.
    pub(super) serves_database: bool,
    pub(super) http: Option<(HttpLoop, Receiver)>,
}

impl Objects {
    /// Looks for everything, which takes a few milliseconds; what is missing is told to the debug log.
    pub fn find<M: Memory>(reader: &Reader<M>) -> Self {
        let (memory, program) = (reader.memory(), reader.program());
        let (start, end) = reader.runtime().types;
        let Some(types) = Types::read(memory, start, end) else {
            debug!("Go's type descriptors can no longer be read");
            return Self {
                sudogs: None,
                semaphores: None,
                locks: held_up::Layout::default(),
                channels: None,
                sockets: None,
                databases: None,
                connections: None,
                sites: Vec::new(),
                any_database: false,
            };
        };
        // All at once: the descriptors of a large program are megabytes.
        let found = types.find_in(&[
            SUDOG, CHANNEL, TIME, FD, POLLED, MUTEX, INNER, RW_MUTEX, GROUP, COND, DATABASE, CONNECTION,
        ]);
        Self {
            sudogs: told("runtime.sudog", Sudogs::find(&types, &found)),
            semaphores: told("runtime.semtable", Semaphores::find(memory, program)),
            locks: held_up::Layout::find(&types, &found, program),
            channels: told("runtime.hchan", channels::Layout::find(&found)),
            sockets: told("internal/poll.FD", sockets::Layout::find(&types, &found)),
            databases: told("database/sql.DB", pools::Databases::find(&found)),
            connections: told(
                "net/http.persistConn",
                connections::Connections::find(&types, &found),
            ),
            sites: Vec::new(),
            any_database: false,
        }
    }

    /// Looks at groups that are new since the last question.
    pub(super) fn learn<M: Memory>(&mut self, reader: &Reader<M>) {
        let groups = reader.groups();
        for group in groups.get(self.sites.len()..).unwrap_or_default() {
            let sites = Sites::of(reader.program(), group, &self.locks);
            self.any_database |= sites.database.is_some();
            self.sites.push(sites);
        }
    }

    pub(super) fn sites(&self, goroutine: &Goroutine) -> Option<&Sites> {
        (goroutine.group != NO_GROUP)
            .then(|| self.sites.get(goroutine.group as usize))
            .flatten()
    }
}

impl Sites {
    fn of(program: &Program, group: &Group, layout: &held_up::Layout) -> Self {
        let places = places(program, group);
        let mut sites = Self::default();
        // Of each frame, what it was compiled from, then all that it stands for, innermost first.
        let compiled: Vec<String> = places
            .iter()
            .take(NEAR)
            .map(|place| program.name(place.pc.saturating_sub(1)).unwrap_or_default())
            .collect();
        let names: Vec<String> = group
            .frames
            .iter()
            .take(NEAR)
            .flat_map(|&(pc, called)| program.names(pc.wrapping_sub(u64::from(called))))
            .collect();
        sites.lock =
            held_up::kind(&names).map(|kind| LockSite::new(program, kind, &places, &compiled, layout));
        sites.channel = channels::used(&names);
        let receiver = |wanted: &dyn Fn(&str) -> bool| {
            let mut frames = (0..compiled.len()).filter(|&at| wanted(&compiled[at]));
            frames.find_map(|at| Receiver::of(program, &places, at))
        };
        sites.socket = receiver(&|name| name.starts_with("internal/poll.(*FD)."));
        // It also opens connections itself, which is no wait for one.
        let waits = |pair: &[String]| matches!(pair, [callee, caller] if callee == "runtime.selectgo" && caller == "database/sql.(*DB).conn");
        if compiled.windows(2).any(waits) {
            sites.database = receiver(&|name| name == "database/sql.(*DB).conn");
        } else {
            sites.uses_database = names.iter().any(|name| name.starts_with("database/sql."));
        }
        sites.serves_database = names
            .iter()
            .any(|name| name == "database/sql.(*DB).connectionOpener");
        sites.http = [HttpLoop::Read, HttpLoop::Write]
            .into_iter()
            .find_map(|kind| Some((kind, receiver(&|name| name == kind.function())?)));
        sites
    }
}

fn told<T>(what: &str, found: Option<T>) -> Option<T> {
    if found.is_none() {
        debug!("{what} was not found in the Go program");
    }
    found
}
