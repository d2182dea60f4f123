//! Go programs in the report.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AskedBy, GoProfiles, GoProof, GoWritten, Hist, LockKind, StackKey, Step, Verdict};

document! {
    /// What a Go program's runtime tells, read from its memory.
    pub struct Go {
        /// Process.
        pub pid: u32,
        /// `go1.x`; null when the program does not say.
        pub version: Option<String>,
        /// Goroutines alive at the end, the runtime's own included.
        pub goroutines: u64,
        /// Those, by status.
        pub by_status: BTreeMap<String, u64>,
        /// By stack, creator and status at the end: leaks first, then the most.
        pub by_stack: Vec<GoStack>,
        /// Goroutines left out of `by_stack`, as there are too many different stacks.
        pub folded: u64,
        /// By the `go` statement that made them.
        pub by_creator: Vec<GoCreator>,
        /// Where goroutines spent their time, by samples: most time first, the runtime's own left out.
        pub waits: Vec<GoWait>,
        /// Pools of `database/sql` that somebody waited for: longest exhausted first.
        pub pools: Vec<GoPool>,
        /// The collector; null when the runtime's numbers were not found.
        pub gc: Option<GoGc>,
        /// How they were read.
        pub snapshots: GoSnapshots,
        /// The runtime's own profiles of blocking; null without `--go-write`, or when they could not be read (`hints`).
        #[serde(default)]
        pub profiles: Option<GoProfiles>,
        /// The collector's search for leaked goroutines; null without `--go-write`, or when there was none (`hints`).
        #[serde(default)]
        pub proof: Option<GoProof>,
        /// What `--go-write` wrote into the process's memory.
        #[serde(default)]
        pub written: Vec<GoWritten>,
    }

    /// Goroutines that do the same.
    pub struct GoStack {
        /// Where; null while they run.
        pub stack: Option<StackKey>,
        /// What is known of goroutines with such a stack, to go on with "N goroutines …"; null when nothing is.
        pub shape: Option<String>,
        /// Frames above the stack's limit were left out.
        pub cut: bool,
        /// Function that made them.
        pub created_by: Option<String>,
        /// `file:line` of its `go` statement.
        pub created_at: Option<String>,
        /// The stacks of those that made one of them, nearest first, as far as is known: of dials, else with `--go-creators`.
        pub asked_by: Vec<AskedBy>,
        /// How many.
        pub count: u64,
        /// `runnable`, `running`, `syscall`, `waiting`, `preempted`, `leaked` (the collector proved that nothing can wake them).
        pub status: String,
        /// As Go calls it; null when they do not wait.
        pub wait_reason: Option<String>,
        /// For how long they do this at least: since a snapshot, or the collector, first saw it.
        pub wait_ns: Hist,
        /// Came here since the start.
        pub opened: u64,
        /// Left, or ended.
        pub closed: u64,
        /// Here at the start.
        pub live_at_start: u64,
        /// What their number looks like.
        pub verdict: Verdict,
        /// Of the verdict, 0 to 1.
        pub confidence: f64,
        /// Growth of their number; of a leak, how many stay per second.
        pub growth_per_s: f64,
        /// 95 % interval of that; null with too few samples.
        pub growth_interval_per_s: Option<[f64; 2]>,
        /// Of a leak: the share of those begun that stay.
        pub stays: Option<f64>,
        /// Of a leak that comes in steps: the jobs that leave them, the surest first.
        pub steps: Vec<Step>,
        /// What they wait on; null when they do not wait for a lock or a channel, or it could not be read.
        pub waits_on: Option<GoWaitsOn>,
        /// The servers whose connections they hold, as HTTP clients: most connections first.
        pub peers: Vec<GoPeer>,
        /// Connections that were asked for their server.
        pub peers_asked: u64,
        /// Some, longest there first.
        pub examples: Vec<GoExample>,
    }

    /// What goroutines of a row wait on, read from memory.
    pub struct GoWaitsOn {
        /// How many of them were asked.
        pub asked: u64,
        /// Of how many it is known: the others had moved.
        pub known: u64,
        /// Different locks and channels among them.
        pub objects: u64,
        /// How many wait on nil channels only, which nothing can end.
        pub never: u64,
        /// Some wait for a timer or a ticker.
        pub ticks: bool,
        /// Those that most wait on.
        pub most: Vec<GoObject>,
    }

    /// A lock or channel of a Go program.
    pub struct GoObject {
        /// `go_chan`, `go_mutex`, `go_rwmutex`, `go_waitgroup`, `go_cond`, or `sem` of another semaphore.
        pub kind: LockKind,
        /// Where it lies.
        pub address: String,
        /// How many of those asked wait on it.
        pub waiters: u64,
        /// For how long the first of them has waited, by its own clock: told by mutexes only.
        pub longest_ns: Option<u64>,
        /// Of a channel, what cannot be told of a lock.
        pub channel: Option<GoChannel>,
    }

    /// State of a channel.
    pub struct GoChannel {
        /// Values in its buffer.
        pub len: u64,
        /// Values that its buffer takes; 0: it has none.
        pub capacity: u64,
        /// It was closed.
        pub closed: bool,
        /// It carries times, as those of timers and tickers do.
        pub ticks: bool,
    }

    /// A server that an HTTP client has connections to.
    pub struct GoPeer {
        /// `http` or `https`.
        pub scheme: String,
        /// Host and port.
        pub host: String,
        /// URL of the proxy between, without name and password; null without one.
        pub proxy: Option<String>,
        /// Connections, of `peers_asked`.
        pub connections: u64,
    }

    /// A pool of connections (`sql.DB`) that goroutines waited for.
    pub struct GoPool {
        /// Where it lies.
        pub address: String,
        /// Connections that it may open (`SetMaxOpenConns`).
        pub max_open: u64,
        /// Connections that it had open at the end, or was opening.
        pub open: u64,
        /// Those of them that nobody used.
        pub idle: u64,
        /// Goroutines that waited for one at the end.
        pub waiting: u64,
        /// How often somebody had to wait since it was first seen, by its own count.
        pub waits: u64,
        /// What those waits took that ended since then, by its own count: of those who got one, and of those who gave up.
        pub wait_total_ns: Option<u64>,
        /// Snapshots in which all its connections were in use and somebody waited.
        pub exhausted_samples: u64,
        /// Part of the window that those stand for, 0 to 1.
        pub exhausted_share: f64,
        /// How many waited on average, in that part.
        pub mean_waiting: f64,
        /// Where they waited: most first.
        pub waiters: Vec<GoPoolStack>,
        /// What the program did with connections meanwhile; null when it has several pools: whose they are cannot be told.
        pub in_use: Option<GoPoolUses>,
        /// How often a connection was wanted, while the probes were there: since attach, like the next. Null without probes.
        #[serde(default)]
        pub requests: Option<u64>,
        /// How often there was none then.
        #[serde(default)]
        pub requests_waited: Option<u64>,
        /// How long each wait was, from asking to going on with a connection, or without: of those that began and ended while the
        /// probes were there, and ended in the window. Null without probes.
        #[serde(default)]
        pub wait: Option<Hist>,
        /// Of those, how many got none: their context ended first.
        #[serde(default)]
        pub gave_up: Option<u64>,
        /// The same by who waited: longest in all first.
        #[serde(default)]
        pub wait_by_stack: Vec<GoPoolWait>,
        /// The pool in `locks`, where those who gave connections to others are: its `id`.
        #[serde(default)]
        pub lock: Option<String>,
    }

    /// Waits for a connection in one place.
    pub struct GoPoolWait {
        /// Who waited.
        pub stack: Option<StackKey>,
        /// How long.
        pub wait: Hist,
    }

    /// What a program did with its connections while all were in use: numbers of goroutines, on average.
    pub struct GoPoolUses {
        /// In calls of the database.
        pub query: f64,
        /// Opening or closing connections.
        pub connect: f64,
        /// Of the pool's own goroutine that opens connections for those who wait, one after the other: how much of the time it was at it.
        pub opener: f64,
        /// Watching over `sql.Rows` that are open.
        pub rows: f64,
        /// Watching over transactions that are open.
        pub transaction: f64,
        /// Running, or moving while they were read: what they did is not known.
        pub unseen: f64,
        /// Where: most first.
        pub by_stack: Vec<GoPoolStack>,
    }

    /// Goroutines that wait for, or use, connections of a pool.
    pub struct GoPoolStack {
        /// Where.
        pub stack: Option<StackKey>,
        /// What they do.
        pub does: GoPoolUse,
        /// Function that made them.
        pub created_by: Option<String>,
        /// How many on average, while all connections were in use.
        pub mean: f64,
    }

    /// One goroutine.
    pub struct GoExample {
        /// Number.
        pub goid: u64,
        /// The one that made it; null before Go 1.21.
        pub parent_goid: Option<u64>,
        /// Thread that it runs on, or is locked to.
        pub thread: Option<u32>,
        /// For how long it does this at least.
        pub wait_ns: Option<u64>,
    }

    /// Goroutines of one `go` statement.
    pub struct GoCreator {
        /// Function.
        pub created_by: Option<String>,
        /// `file:line`.
        pub created_at: Option<String>,
        /// Seen to begin.
        pub opened: u64,
        /// Seen to end.
        pub closed: u64,
        /// Alive at the end.
        pub live: u64,
        /// Alive at the start.
        pub live_at_start: u64,
        /// What their number looks like.
        pub verdict: Verdict,
        /// Of the verdict, 0 to 1.
        pub confidence: f64,
        /// Growth of their number; of a leak, how many stay per second.
        pub growth_per_s: f64,
        /// 95 % interval of that; null with too few samples.
        pub growth_interval_per_s: Option<[f64; 2]>,
        /// Of a leak: the share of those begun that stay.
        pub stays: Option<f64>,
        /// Of a leak that comes in steps: the jobs that leave them, the surest first.
        pub steps: Vec<Step>,
    }

    /// Time that goroutines spent in one place, by samples.
    pub struct GoWait {
        /// Where.
        pub stack: Option<StackKey>,
        /// Function that made them.
        pub created_by: Option<String>,
        /// Status.
        pub status: String,
        /// As Go calls it.
        pub wait_reason: Option<String>,
        /// Goroutines seen there, in all snapshots together.
        pub samples: u64,
        /// Estimate of the time, of all of them together; without samples the sum of `wait` as far as it lies in the window.
        pub total_ns: u64,
        /// 95 % confidence interval of it; null with too few snapshots.
        pub total_ci_ns: Option<[u64; 2]>,
        /// How many were there on average. Null where no snapshot met one and the probes were not there all the time.
        pub mean: Option<f64>,
        /// With `--go-waits`: waits that began and ended here while the probes were there (`overhead.go_probes`).
        #[serde(default)]
        pub count: Option<u64>,
        /// How long they were, exactly.
        #[serde(default)]
        pub wait: Option<Hist>,
    }

    /// How goroutines were read.
    pub struct GoSnapshots {
        /// Snapshots.
        pub count: u64,
        /// Time between them, at the end.
        pub interval_ns: u64,
        /// CPU time of all of them.
        pub cpu_ns: u64,
        /// Stacks read and walked.
        pub walked: u64,
        /// Goroutines found as they were before, whose stack was not read again.
        pub unchanged: u64,
        /// Goroutines that moved each time they were read: counted, not shown.
        pub moved: u64,
        /// Stacks that the runtime's tables did not explain: counted, not shown.
        pub inconsistent: u64,
        /// Goroutines whose memory could not be read.
        pub unreadable: u64,
        /// Bytes read.
        pub bytes: u64,
    }

    /// What a Go runtime counts of its collector, its stops of the world and its run queue, within the window.
    pub struct GoGc {
        /// Collections that ended.
        pub cycles: u64,
        /// How many of them the program asked for, by `runtime.GC`.
        pub forced: Option<u64>,
        /// The pause of each: the sum of its stops of the world.
        pub pauses: Hist,
        /// Collections whose pause is not in `pauses`: the runtime had forgotten it before it was read.
        pub pauses_lost: u64,
        /// Sum of all pauses, those included that are not in `pauses`.
        pub pause_total_ns: u64,
        /// Its part of the window, 0 to 1.
        pub pause_share: f64,
        /// Every stop of the world for a collection, of which each has two or more. Told to a quarter of an octave.
        pub stops: Option<Hist>,
        /// How long it took each time until all threads stood: what one that cannot be interrupted makes long. Since Go 1.22.
        pub stopping: Option<Hist>,
        /// Stops for something else, such as a profile or a change of `GOMAXPROCS`. Since Go 1.22.
        pub other_stops: Option<Hist>,
        /// CPU time of these collections, without what ran on CPUs that had nothing else to do. By the runtime's account, which also
        /// has the time that its workers waited for a CPU. Since Go 1.21.
        pub cpu_ns: Option<u64>,
        /// Its part of the CPUs that the runtime may use (`GOMAXPROCS`), 0 to 1.
        pub cpu_share: Option<f64>,
        /// How much of that goroutines had to do themselves before they got memory: it makes requests slow.
        pub assist_share: Option<f64>,
        /// Bytes that the last collection found alive.
        pub heap_live_bytes: Option<u64>,
        /// Bytes in use at which the next one is to be done; null also when it is switched off.
        pub heap_goal_bytes: Option<u64>,
        /// `GOMEMLIMIT`; null also without one.
        pub memory_limit_bytes: Option<u64>,
        /// The goal is that of the limit: the collector runs more often than `GOGC` says.
        pub limited: Option<bool>,
        /// Time that goroutines waited for `sync.Mutex` and `sync.RWMutex`, estimated by the runtime from every eighth. Since Go 1.20.
        pub mutex_wait_ns: Option<u64>,
        /// How long goroutines were runnable before they ran, of every eighth time that one does. Told to a quarter of an octave.
        pub run_queue: Option<Hist>,
    }
}

words! {
    /// What goroutines do with a pool of connections.
    pub enum GoPoolUse {
        /// Want one.
        Waits,
        /// Are in a call of the database.
        Query,
        /// Open or close one.
        Connect,
        /// Opens one for who waits.
        Open,
        /// Watch over open `sql.Rows`.
        Rows,
        /// Watch over an open `sql.Tx`.
        Transaction,
    }
}
