//! The report as data: the JSON document `ctrace.report/1`, described by `ctrace schema`.
//!
//! Times are integers in nanoseconds and end in `_ns`; addresses are hex strings; what is not known is `null`,
//! never 0. Fields are only ever added.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::go_write::{GoBlocked, GoOutcome, GoProfiles, GoProof, GoProved, GoWritten};
pub use go::*;

/// Value of [`Report::schema`].
pub const SCHEMA: &str = "ctrace.report/1";

macro_rules! document {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
            pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        )*
    };
}

macro_rules! words {
    ($($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
            #[serde(rename_all = "snake_case")]
            pub enum $name { $($(#[$vmeta])* $variant,)* }
        )*
    };
}

pub(crate) use {document, words};

// After the macros, which it uses.
mod go;

/// Id of a stack: a key of [`Report::stacks`].
pub type StackKey = String;

document! {
    /// One report: of a whole run, or of one interval.
    pub struct Report {
        /// Always `ctrace.report/1`.
        pub schema: String,
        /// The program that wrote it.
        pub ctrace: Ctrace,
        /// Where it ran.
        pub host: Host,
        /// The time it covers.
        pub window: Window,
        /// Options in force.
        pub options: OptionsUsed,
        /// The processes traced.
        pub targets: Vec<Target>,
        /// What was attached to the kernel, and how often it fired.
        pub probes: Vec<Probe>,
        /// What was not seen, by cause.
        pub losses: Losses,
        /// ctrace's own cost.
        pub overhead: Overhead,
        /// Stacks by id, leaf first.
        pub stacks: BTreeMap<StackKey, Vec<StackFrame>>,
        /// Locks and other things waited on by futex. Absent when `--only` leaves locks out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub locks: Option<Vec<Lock>>,
        /// Sleeps by reason and stack. Absent when `--only` leaves io out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub blocked: Option<Vec<Blocked>>,
        /// Where the time of the targets' threads went.
        pub time: Option<Time>,
        /// What ran on the CPUs. Absent when `--only` leaves sched out, and when the kernel does not let its clocks be looked at.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub cpu: Option<Cpu>,
        /// Time spent runnable without a CPU. Absent when `--only` leaves sched out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub run_queue: Option<RunQueue>,
        /// Threads by who made them. Absent when `--only` leaves sched out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub threads: Option<Spawns>,
        /// Threads asleep at the end of the window.
        pub waiting_now: Vec<WaitingNow>,
        /// Descriptors. Absent when `--only` leaves fds out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub fds: Option<Fds>,
        /// Go's runtime, of the target with most goroutines; null when no target is a Go program that could be read. Absent when `--only`
        /// leaves go out.
        pub go: Option<Go>,
        /// The same of further targets.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub go_others: Vec<Go>,
        /// Memory growth; null when not measured.
        pub memory: Option<Memory>,
        /// Cycles of threads that wait for each other.
        pub deadlocks: Vec<Deadlock>,
        /// Diagnoses, worst first.
        pub findings: Vec<Finding>,
        /// What would name more of the stacks shown.
        #[serde(default)]
        pub hints: Vec<Hint>,
    }

    /// The program.
    pub struct Ctrace {
        /// Its version.
        pub version: String,
    }

    /// The machine.
    pub struct Host {
        /// Node name.
        pub hostname: String,
        /// Kernel release.
        pub kernel: String,
        /// Machine, as `uname -m`.
        pub arch: String,
        /// CPUs online.
        pub cpus: u32,
    }

    /// The time that a report covers.
    pub struct Window {
        /// Start, RFC 3339.
        pub started_at: String,
        /// Length.
        pub duration_ns: u64,
    }

    /// Options in force.
    pub struct OptionsUsed {
        /// Collectors switched on.
        pub only: Vec<String>,
        /// Sleeps shorter than this were ignored.
        pub min_wait_ns: u64,
        /// Rows per table of the text report.
        pub top: u32,
        /// Only descriptors older than this count as suspects; null: no bound given.
        pub older_ns: Option<u64>,
        /// Children are followed.
        pub follow: bool,
    }

    /// One traced process.
    pub struct Target {
        /// Process id.
        pub pid: u32,
        /// Name.
        pub comm: String,
        /// Executable; null when it could not be read.
        pub exe: Option<String>,
        /// Arguments.
        pub cmdline: Vec<String>,
        /// Owner.
        pub uid: Option<u32>,
        /// Container id, when its cgroup names one.
        pub container: Option<String>,
        /// `native`, `go…`, `jvm`, `node`, `python`.
        pub runtime: String,
        /// Threads at the end (at its exit, when it exited).
        pub threads: u32,
        /// When it started, RFC 3339.
        pub started_at: Option<String>,
        /// It ended while traced.
        pub exited: bool,
    }

    /// One attached program.
    pub struct Probe {
        /// Its name: hook and moment.
        pub name: String,
        /// `tp_btf`, `raw_tp`, `tracepoint`, `fentry`, `kprobe`, `uprobe`, `perf`, `iter`.
        pub attach: String,
        /// Times it ran since attach, estimated from the part that was sampled; null when the kernel does not say.
        pub hits: Option<u64>,
        /// Time it took, likewise.
        pub run_ns: Option<u64>,
        /// Times the kernel skipped it (recursion).
        pub missed: Option<u64>,
    }

    /// What was not seen, by cause: counts.
    #[derive(Default)]
    pub struct Losses {
        /// Records that did not fit into the ring.
        pub ring_full: u64,
        /// Records about descriptors that did not fit into the ring.
        pub fd_ring_full: u64,
        /// Entries that a kernel map could not take.
        pub map_full: u64,
        /// Stacks that could not be unwound to their end.
        pub stack_failed: u64,
        /// Stacks not copied because the ring was over three quarters full.
        pub stack_pending: u64,
        /// Of them, those of goroutines that park (`--go-waits`) and of who ended it: their waits have no stack, and no verdict rests on them.
        #[serde(default)]
        pub go_stack_pending: u64,
        /// Ends of waits whose beginning was not seen.
        pub unmatched: u64,
        /// Ends of goroutines' waits whose beginning was not seen: mostly those that began before ctrace attached.
        #[serde(default)]
        pub go_unmatched: u64,
        /// Rows folded into one because a table was full.
        pub folded: u64,
        /// Of them, those of goroutines that park (`--go-waits`): no verdict rests on them.
        #[serde(default)]
        pub go_folded: u64,
        /// Calls of 32-bit callers, whose stacks are not taken.
        pub compat: u64,
        /// Control data with descriptors longer than a record.
        pub control_truncated: u64,
        /// User memory that a probe could not read.
        pub user_fault: u64,
        /// Records that user space did not understand.
        pub unknown_record: u64,
        /// Times that a thread got a CPU unannounced; made up for from its time on that CPU, so nothing is missing.
        pub switch_unseen: u64,
        /// Samples, of what runs and of page faults, that found no room in the ring: fewer samples, and nothing else.
        #[serde(default)]
        pub samples: u64,
        /// Why functions and locks have no names, when the process that looks them up did not end well.
        #[serde(default)]
        pub names: Option<String>,
        /// Stacks that failed, by reason.
        pub stack_failed_by: BTreeMap<String, u64>,
        /// Nothing that the verdicts rest on was lost.
        pub complete: bool,
    }

    /// ctrace's own cost in this window.
    pub struct Overhead {
        /// Time in the probes, estimated from the part of the window that was sampled; null when nothing of it was, or the
        /// kernel does not say.
        pub kernel_ns: Option<u64>,
        /// Part of the window in which the kernel's statistics were on. Null when they could not be.
        #[serde(default)]
        pub kernel_sampled_ns: Option<u64>,
        /// Time in user space.
        pub user_cpu_ns: u64,
        /// Resident memory while tracing, without the mappings of eBPF maps.
        pub rss_bytes: u64,
        /// Memory of the eBPF maps in the kernel, the ring among them.
        #[serde(default)]
        pub maps_bytes: Option<u64>,
        /// Both times together, of one CPU; null when the time in the probes is.
        pub cpu_percent: Option<f64>,
        /// Most memory resident in the process that puts the report together and looks up names, what it shares with the tracer
        /// included.
        #[serde(default)]
        pub symbolize_peak_rss_bytes: Option<u64>,
        /// CPU time of that process, which is in no window.
        #[serde(default)]
        pub symbolize_cpu_ns: Option<u64>,
        /// How stacks were had.
        pub memos: StacksHad,
        /// What `--budget` left out to hold the cost; null without it.
        pub budget: Option<Budget>,
        /// Probes in Go programs, and how much of the window they covered.
        #[serde(default)]
        pub go_probes: Vec<GoProbes>,
    }

    /// A group of probes in Go programs. They are taken away for a while where they alone would cost more than they may; nothing that was
    /// seen is scaled up.
    pub struct GoProbes {
        /// `locks`: waits for `sync.Mutex` and its kin; `waits` (`--go-waits`): everything that goroutines park for; `dials`: `go`
        /// statements that begin a dial; `creators` (`--go-creators`): all `go` statements, of which those at dials stay.
        pub group: String,
        /// How long they were there. Waits that were under way when they came or went are not seen.
        pub covered_ns: u64,
        /// In so many parts.
        pub parts: u32,
        /// What they may cost, in percent of one CPU; null: there is no bound.
        pub percent: Option<f64>,
        /// Estimate of what they cost, traps, probes and records together; null without a bound.
        pub cpu_percent: Option<f64>,
        /// Times that the program came to one of them.
        pub hits: u64,
        /// Waits that were under way when the probes were taken away: in no histogram, and long ones are missing most. Null where that is
        /// not counted, as the next two.
        pub cut: Option<u64>,
        /// Waits whose end was not seen: the goroutine did not wait after all, or the runtime woke it where no probe is.
        pub unended: Option<u64>,
        /// Ends of waits whose beginning was not seen: mostly those under way when the probes came.
        pub unmatched: Option<u64>,
    }

    /// How the cost was held.
    pub struct Budget {
        /// What was asked for, in percent of one CPU; null when a fixed part was asked for.
        pub percent: Option<f64>,
        /// What was measured under the last setting, report not included; null before the first measurement, and where the kernel
        /// does not say what the probes cost.
        pub cpu_percent: Option<f64>,
        /// Whether that is within the budget. Descriptors are never sampled: they alone may cost more.
        pub held: Option<bool>,
        /// Sleeps shorter than this were left out at least for a part of the window; the time in them counts as `other`.
        pub min_wait_ns: u64,
        /// At most one sleep in so many was recorded; when it is more than 1, counts and totals of waits are estimates, unbiased
        /// for the waits that were long enough.
        pub one_in: u32,
    }

    /// How stacks were had in this window: recognised by the probes themselves, or copied and unwound.
    #[derive(Default)]
    pub struct StacksHad {
        /// Recognised by a memo.
        pub recognised: u64,
        /// Not recognised: copied, or counted in `losses.stack_pending`.
        pub copied: u64,
        /// Share of the recognised; null when there were no stacks.
        pub hit_rate: Option<f64>,
        /// Of the recognised, those copied as well and unwound: to the same frames.
        pub agreed: u64,
        /// The same: to other frames. Not 0 is a bug of ctrace.
        pub disagreed: u64,
        /// Recognised, but the code below had changed at that time: taken for no stack.
        pub stale: u64,
        /// Copies that nothing can recognise.
        pub unfit: u64,
        /// Memos that had to make room for others.
        pub dropped: u64,
        /// Memos at the end.
        pub memos: u64,
    }

    /// One frame, which may be inlined into the one after it.
    pub struct StackFrame {
        /// Function, demangled; null when there is no name at all.
        pub function: Option<String>,
        /// File of the mapping.
        pub module: Option<String>,
        /// Source file.
        pub file: Option<String>,
        /// Source line.
        pub line: Option<u32>,
        /// It was inlined into the next frame.
        pub inlined: bool,
        /// Address in the process.
        pub address: String,
        /// Bytes from the function's start.
        pub offset: Option<u64>,
    }

    /// Something that threads waited on by futex.
    pub struct Lock {
        /// Names it within this report.
        pub id: String,
        /// Process.
        pub pid: u32,
        /// Futex word or object; null for a parker.
        pub address: Option<String>,
        /// Symbol, mapping + offset, or how it was found.
        pub name: Option<String>,
        /// What it is.
        pub kind: LockKind,
        /// Its waits are threads with nothing to do, not contention.
        pub idle: bool,
        /// Sleeps.
        pub waits: u64,
        /// Time blocked: from leaving the CPU to being woken.
        pub wait: Hist,
        /// Time from being woken to running.
        pub run_queue: Hist,
        /// How the sleeps ended.
        pub outcomes: Outcomes,
        /// Who waited, longest total first.
        pub waiters: Vec<Waiter>,
        /// Who ended the waits.
        pub wakers: Vec<WakerRow>,
        /// What was done while it was held, as far as holds were seen; longest first.
        pub holders: Vec<Holder>,
        /// The holds that can be seen: those between two wake-ups with somebody asleep all the time. Null without any.
        pub hold: Option<Hist>,
        /// Share of the window in which somebody slept for it, and nobody who had been woken was still to run: it was taken so much of
        /// the time at least. Null when that is not known.
        pub utilisation: Option<f64>,
        /// For how much of the window its waits were seen, where that was not all of it (`overhead.go_probes`): counts and times are of
        /// what was seen, so that a rate or a share is of this time. Null: the whole window.
        #[serde(default)]
        pub covered_ns: Option<u64>,
        /// `wait` by time; null when there was no room for all its waits.
        #[serde(default)]
        pub slices: Option<Slices>,
    }

    /// Sums over equal parts of the window, by when waits ended. How much they differ from part to part is what `ctrace diff` judges
    /// by: waits come in bursts, so their number alone does not tell by how much two runs of one program may differ.
    pub struct Slices {
        /// Length of a part; the last one may be cut by the window's end.
        pub slice_ns: u64,
        /// Waits that ended in each.
        pub counts: Vec<u64>,
        /// Their time.
        pub totals_ns: Vec<u64>,
    }

    /// How sleeps ended.
    pub struct Outcomes {
        /// Another thread's call on the same word.
        pub handed_over: u64,
        /// The time-out.
        pub timed_out: u64,
        /// A signal.
        pub interrupted: u64,
        /// Cannot be told.
        pub unknown: u64,
    }

    /// Waits of one stack.
    pub struct Waiter {
        /// Where; null when no stack could be taken.
        pub stack: Option<StackKey>,
        /// Sleeps.
        pub waits: u64,
        /// Time blocked.
        pub total_ns: u64,
        /// Longest.
        pub max_ns: u64,
    }

    /// Wake-ups from one stack.
    pub struct WakerRow {
        /// Where; null when no stack could be taken.
        pub stack: Option<StackKey>,
        /// The waker's process.
        pub pid: u32,
        /// How many.
        pub wakes: u64,
    }

    /// What threads did in one place while they held a lock, as far as holds were seen.
    pub struct Holder {
        /// Where they slept; where they released it, when they ran; null when no stack could be taken.
        pub stack: Option<StackKey>,
        /// The last of these threads.
        pub tid: u32,
        /// Time held.
        pub total_ns: u64,
        /// `running` (or wanting to, since it was preempted), `runnable` (woken, without a CPU yet) or `blocked`.
        pub state: String,
        /// Why blocked.
        pub reason: Option<Reason>,
    }

    /// Sleeps of one reason from one stack.
    pub struct Blocked {
        /// Why.
        pub reason: Reason,
        /// Process.
        pub pid: u32,
        /// Where; null when no stack could be taken.
        pub stack: Option<StackKey>,
        /// Sleeps.
        pub count: u64,
        /// Time blocked.
        pub total_ns: u64,
        /// Longest.
        pub max_ns: u64,
        /// Distribution.
        pub wait: Hist,
        /// The other end of the socket or pipe, when known.
        pub peer: Option<String>,
        /// Kernel functions, leaf first; only for uninterruptible sleeps and unknown reasons.
        pub kernel_stack: Option<Vec<String>>,
        /// `wait` by time; null when there was no room for all its waits.
        #[serde(default)]
        pub slices: Option<Slices>,
    }

    /// Where the time of the targets' threads went.
    pub struct Time {
        /// On a CPU.
        pub running_ns: u64,
        /// Runnable without a CPU.
        pub runnable_ns: u64,
        /// Asleep, by reason.
        pub blocked_ns: BTreeMap<Reason, u64>,
        /// Taken by the hypervisor from the whole host's CPUs.
        pub steal_ns: Option<u64>,
        /// By thread, busiest first, bounded; what is left out is folded into a row without tid.
        pub by_thread: Vec<ThreadTime>,
    }

    /// One thread's time.
    pub struct ThreadTime {
        /// Process.
        pub pid: u32,
        /// Thread; null for the rest folded together.
        pub tid: Option<u32>,
        /// Name.
        pub comm: String,
        /// Threads in this row.
        pub threads: u32,
        /// On a CPU.
        pub running_ns: u64,
        /// Runnable without a CPU.
        pub runnable_ns: u64,
        /// Asleep, by reason.
        pub blocked_ns: BTreeMap<Reason, u64>,
    }

    /// What ran at the ticks of the CPUs' clocks.
    pub struct Cpu {
        /// Ticks of each CPU in a second.
        pub hz: u32,
        /// Ticks that found one of the targets' threads running.
        pub samples: u64,
        /// How many of them were looked at: on many CPUs one of several, at random.
        pub taken: u64,
        /// By stack, most samples first: stacks are equal whose functions are. What is not listed is one row without a stack.
        pub by_stack: Vec<CpuStack>,
        /// By the application's innermost function, most samples first, bounded.
        pub by_function: Vec<CpuFunction>,
        /// The threads with most samples.
        pub by_thread: Vec<CpuThread>,
        /// CPU time of all other processes of the host, by ticks.
        pub others_ns: u64,
        /// Those with most of it, bounded.
        pub others: Vec<CpuOther>,
    }

    /// Ticks below one of the application's functions.
    pub struct CpuFunction {
        /// Its name; null for code that has none.
        pub function: Option<String>,
        /// The stack with most of its ticks.
        pub stack: Option<StackKey>,
        /// Ticks.
        pub samples: u64,
        /// Of them, those that burnt the CPU to wait.
        pub spinning: u64,
    }

    /// Ticks of one thread.
    pub struct CpuThread {
        /// Process.
        pub pid: u32,
        /// Thread.
        pub tid: u32,
        /// Ticks.
        pub samples: u64,
        /// Its functions with most of them.
        pub by_function: Vec<CpuFunction>,
    }

    /// Ticks of one stack.
    pub struct CpuStack {
        /// Process.
        pub pid: u32,
        /// One of the stacks with these functions; null for all that are not listed, or were not taken.
        pub stack: Option<StackKey>,
        /// Ticks.
        pub samples: u64,
        /// Of all samples.
        pub share: f64,
        /// Ticks in the kernel: in system calls, faults and interrupts.
        pub in_kernel: u64,
        /// Ticks that burnt the CPU to wait: in `sched_yield`, or in a function that spins.
        pub spinning: u64,
    }

    /// Another process.
    pub struct CpuOther {
        /// Process.
        pub pid: u32,
        /// Name of one of its threads.
        pub comm: String,
        /// Time on CPUs, by ticks.
        pub cpu_ns: u64,
    }

    /// Time spent runnable without a CPU.
    pub struct RunQueue {
        /// All delays.
        #[serde(flatten)]
        pub hist: Hist,
        /// By thread, longest total first, bounded.
        pub by_thread: Vec<RunQueueThread>,
        /// Delays that began with losing the CPU.
        pub preempted: u64,
        /// Delays that began with a wake-up.
        pub woken: u64,
        /// Time in which the cgroup's quota held its tasks; null when it cannot be read.
        pub throttled_ns: Option<u64>,
        /// Periods in which it did.
        pub throttled_periods: Option<u64>,
        /// All delays by time; null when not known.
        #[serde(default)]
        pub slices: Option<Slices>,
    }

    /// One thread's delays.
    pub struct RunQueueThread {
        /// Thread.
        pub tid: u32,
        /// Name.
        pub comm: String,
        /// Its delays.
        #[serde(flatten)]
        pub hist: Hist,
    }

    /// Threads that were made since the trace began, also in an interval's report.
    pub struct Spawns {
        /// There when it began.
        pub at_start: u64,
        /// Made since.
        pub created: u64,
        /// Ended since.
        pub ended: u64,
        /// By the stack that made them, most suspect first, bounded.
        pub by_stack: Vec<SpawnStack>,
    }

    /// Threads made by one stack.
    pub struct SpawnStack {
        /// Process.
        pub pid: u32,
        /// Where; null when no stack could be taken.
        pub stack: Option<StackKey>,
        /// Made.
        pub created: u64,
        /// Ended.
        pub ended: u64,
        /// Alive at the end.
        pub live: u64,
        /// What the series looks like.
        pub verdict: Verdict,
        /// Of the verdict, 0 to 1.
        pub confidence: f64,
        /// Growth of the live number; of a leak, how many stay per second.
        pub growth_per_s: f64,
        /// 95 % interval of that; null with too few samples.
        pub growth_interval_per_s: Option<[f64; 2]>,
        /// Of a leak: the share of those made that stay.
        pub stays: Option<f64>,
        /// Of a leak that comes in steps: the jobs that leave them, the surest first.
        pub steps: Vec<Step>,
        /// Age of the oldest that lives; null without one.
        pub oldest_ns: Option<u64>,
        /// What those alive were asleep in at the end, most first, bounded; others ran, or could not be read.
        pub asleep_in: Vec<SpawnSleep>,
        /// Of those alive, how many slept on a futex word that none of the others did, and without a time-out: idle workers mostly share
        /// what they wait for.
        pub alone: u64,
        /// Some of those alive, oldest first.
        pub examples: Vec<u32>,
    }

    /// Threads of one maker that sleep in one place.
    pub struct SpawnSleep {
        /// Why.
        pub reason: Reason,
        /// Where; null when no stack could be taken.
        pub stack: Option<StackKey>,
        /// How many.
        pub count: u64,
    }

    /// A thread asleep at the end of the window.
    pub struct WaitingNow {
        /// Process.
        pub pid: u32,
        /// Thread.
        pub tid: u32,
        /// Name.
        pub comm: String,
        /// Why.
        pub reason: Reason,
        /// [`Lock::id`] when it waits for one of [`Report::locks`].
        pub lock: Option<String>,
        /// Futex word, for futex waits.
        pub address: Option<String>,
        /// For how long; null when it slept before ctrace looked.
        pub since_ns: Option<u64>,
        /// Where.
        pub stack: Option<StackKey>,
    }

    /// Descriptors.
    pub struct Fds {
        /// For how long descriptors were followed: since the trace began, also in an interval's report.
        #[serde(default)]
        pub window_ns: Option<u64>,
        /// Open when tracing began.
        pub open_at_start: u64,
        /// Open at the end, as the kernel has it.
        pub open_at_end: u64,
        /// Soft limit (`RLIMIT_NOFILE`); null when it could not be read.
        pub limit: Option<u64>,
        /// Births seen.
        pub opened: u64,
        /// Deaths seen.
        pub closed: u64,
        /// Time until the limit at the present growth; null without significant growth.
        pub time_to_limit_ns: Option<u64>,
        /// Descriptors found open whose birth was not seen.
        pub unseen_births: u64,
        /// Descriptors found closed whose death was not seen.
        pub unseen_deaths: u64,
        /// Ways to make a descriptor whose stack this kernel does not show.
        pub unseen_kinds: Vec<String>,
        /// By creating stack, most suspect first.
        pub by_stack: Vec<FdStack>,
        /// Stacks with several askers that leak or grow in the sum, without the askers whose own row leaks or is a pool.
        pub shared: Vec<FdShared>,
    }

    /// Descriptors made by one stack for several askers, each of whom has a row in `by_stack`.
    pub struct FdShared {
        /// Process.
        pub pid: u32,
        /// Where; null without a stack.
        pub stack: Option<StackKey>,
        /// How many askers.
        pub askers: u64,
        /// Made.
        pub opened: u64,
        /// Ended.
        pub closed: u64,
        /// Open at the end.
        pub live: u64,
        /// What the sum looks like.
        pub verdict: Verdict,
        /// Of the verdict, 0 to 1.
        pub confidence: f64,
        /// Growth of the live number.
        pub growth_per_s: f64,
    }

    /// Descriptors made by one stack.
    pub struct FdStack {
        /// Process.
        pub pid: u32,
        /// Where; null for those open before tracing, or without a stack.
        pub stack: Option<StackKey>,
        /// Why there is no stack: `before_attach`, `unseen`, `stack_lost`.
        pub without_stack: Option<String>,
        /// In a Go program, who asked for it: the goroutine that made the one whose stack this is, the one that made that, and so on,
        /// as far as is known; each asker has a row of its own.
        pub asked_by: Vec<AskedBy>,
        /// System call that made most of them.
        pub call: Option<String>,
        /// How many of each kind.
        pub kinds: BTreeMap<FdKind, u64>,
        /// Made.
        pub opened: u64,
        /// Ended.
        pub closed: u64,
        /// Open at the end.
        pub live: u64,
        /// Open at the start.
        pub live_at_start: u64,
        /// What the series looks like.
        pub verdict: Verdict,
        /// Of the verdict, 0 to 1.
        pub confidence: f64,
        /// Growth of the live number; of a leak, how many stay per second.
        pub growth_per_s: f64,
        /// 95 % interval of that; null with too few samples.
        pub growth_interval_per_s: Option<[f64; 2]>,
        /// Of a leak: the share of those made that stay.
        pub stays: Option<f64>,
        /// Of those still open, how many were made in each quarter of the window.
        pub born_by_quarter: [u64; 4],
        /// Period of a staircase: the surest of `steps`.
        pub period_ns: Option<u64>,
        /// Of a leak that comes in steps: the jobs that leave them, the surest first.
        pub steps: Vec<Step>,
        /// Age of those still open.
        pub age: Hist,
        /// Some of those still open, oldest first.
        pub examples: Vec<FdExample>,
    }

    /// A staircase: something that happens once in a while leaves some behind each time.
    pub struct Step {
        /// From step to step.
        pub period_ns: u64,
        /// How many more after one step: the median.
        pub size: u64,
        /// Chance of such a regularity among steps at random times.
        pub p_value: f64,
    }

    /// A goroutine that made another one.
    pub struct AskedBy {
        /// Where it was at its `go` statement; null when that was not seen.
        pub stack: Option<StackKey>,
        /// Function of the `go` statement.
        pub created_by: Option<String>,
        /// `file:line` of the `go` statement.
        pub created_at: Option<String>,
    }

    /// One open descriptor.
    pub struct FdExample {
        /// Number.
        pub fd: i32,
        /// What it is: the link of `/proc/PID/fd`.
        pub target: Option<String>,
        /// Its own end of a socket.
        pub local: Option<String>,
        /// The other end of a socket.
        pub peer: Option<String>,
        /// `ESTABLISHED`, `CLOSE_WAIT`, …
        pub tcp_state: Option<String>,
        /// Bytes received and not read.
        pub unread_bytes: Option<u64>,
        /// Age; null when it was open before tracing.
        pub age_ns: Option<u64>,
    }

    /// Resident memory of all targets, and who touches what is new of it.
    pub struct Memory {
        /// Resident memory at the start: sums of `by_process`.
        pub rss_start: u64,
        /// Resident memory at the end.
        pub rss_end: u64,
        /// Growth of memory of their own, bytes a second.
        pub growth_bytes_per_s: f64,
        /// Memory that was touched for the first time in this window and was still there at its end, estimated from `samples`; null when
        /// page faults are not looked at.
        pub touched_bytes: Option<u64>,
        /// Samples that this is estimated from: a few of them are but a hint.
        pub samples: u64,
        /// The processes, the largest first, bounded.
        pub by_process: Vec<MemoryProcess>,
        /// Stacks that touched it, most first, bounded. Who touches memory first need not be who keeps it.
        pub by_stack: Vec<MemoryStack>,
    }

    /// Resident memory of one process. `own` is what is neither a file's nor shared with others.
    pub struct MemoryProcess {
        /// Process.
        pub pid: u32,
        /// Resident at the start.
        pub rss_start: u64,
        /// Resident at the end.
        pub rss_end: u64,
        /// Of its own at the start.
        pub own_start: u64,
        /// Of its own at the end.
        pub own_end: u64,
        /// Growth of that, bytes a second; null when there were too few readings.
        pub growth_bytes_per_s: Option<f64>,
        /// 95 % interval.
        pub growth_interval_bytes_per_s: Option<[f64; 2]>,
        /// `growing`, `steady`, or `unknown` when there were too few readings, or it may grow.
        pub verdict: Verdict,
        /// From the first reading to the last.
        pub read_ns: u64,
        /// As [`Memory::touched_bytes`], of this process.
        pub touched_bytes: Option<u64>,
        /// Samples that this is estimated from.
        pub samples: u64,
        /// Probability of such steps where there is no growth; null when there were too few readings.
        pub p_value: Option<f64>,
        /// What it may take more, before a cgroup's limit or the end of the host's memory; null when not known.
        pub room_bytes: Option<u64>,
        /// When that is used up, by the lower end of the interval; null when it does not grow, or has ended.
        pub time_to_limit_ns: Option<u64>,
    }

    /// Memory touched by one stack.
    pub struct MemoryStack {
        /// Process.
        pub pid: u32,
        /// Where; null when no stack could be taken.
        pub stack: Option<StackKey>,
        /// How much of it was still there at the end.
        pub bytes: u64,
        /// The same, by the window's length.
        pub growth_bytes_per_s: f64,
        /// Of all that was touched.
        pub share: f64,
        /// Samples that it is estimated from.
        pub samples: u64,
    }

    /// Threads that wait for each other.
    pub struct Deadlock {
        /// Process.
        pub pid: u32,
        /// How it is known.
        pub certainty: Certainty,
        /// All of them have waited for so long at least.
        pub waiting_ns: u64,
        /// Other threads that wait for one of them, by way of others too.
        pub behind: u64,
        /// In order: each waits for what the next holds.
        pub cycle: Vec<DeadlockLink>,
    }

    /// One thread of a deadlock.
    pub struct DeadlockLink {
        /// Thread.
        pub tid: u32,
        /// Lock it holds.
        pub holds: Option<String>,
        /// Lock it waits for.
        pub waits_for: String,
        /// Where.
        pub stack: Option<StackKey>,
    }

    /// A diagnosis.
    pub struct Finding {
        /// Stable name of the diagnosis, such as `fd.leak`.
        pub id: String,
        /// How bad.
        pub severity: Severity,
        /// How sure, 0 to 1.
        pub confidence: f64,
        /// One line.
        pub title: String,
        /// What was seen.
        pub detail: String,
        /// The numbers it rests on.
        pub evidence: BTreeMap<String, serde_json::Value>,
        /// What to do.
        pub remedy: String,
        /// The guilty stack.
        pub stack: Option<StackKey>,
        /// [`Lock::id`] of the guilty lock.
        pub lock: Option<String>,
    }

    /// Something that the target's owner can do to have more names.
    pub struct Hint {
        /// Process.
        pub pid: u32,
        /// Its runtime.
        pub runtime: String,
        /// What to do, in one line.
        pub text: String,
        /// Frames of the stacks shown that would gain a name.
        pub frames: u64,
    }

    /// A distribution of times, exact to three significant digits.
    pub struct Hist {
        /// Samples.
        pub count: u64,
        /// Shortest.
        pub min_ns: u64,
        /// Longest.
        pub max_ns: u64,
        /// Arithmetic mean.
        pub mean_ns: u64,
        /// Sum (exact, not from the buckets).
        pub total_ns: u64,
        /// Median.
        pub p50_ns: u64,
        /// 90th percentile.
        pub p90_ns: u64,
        /// 99th percentile.
        pub p99_ns: u64,
        /// 99.9th percentile.
        pub p999_ns: u64,
        /// 95 % confidence interval of `p99_ns`; null without samples.
        pub p99_ci_ns: Option<[u64; 2]>,
        /// Upper bound and count of each bucket in use.
        pub buckets: Vec<(u64, u64)>,
        /// Populations, when there are at least two.
        pub modes: Vec<Mode>,
        /// Under `--budget`, when not every sleep was recorded and counts and totals are estimates: as many samples of equal weight
        /// would tell as much. Null when all were recorded.
        pub samples: Option<u64>,
    }

    /// One population of a distribution.
    pub struct Mode {
        /// Its middle.
        pub center_ns: u64,
        /// Its part of the samples, 0 to 1.
        pub share: f64,
    }
}

impl LockKind {
    /// Waiting for it is contention: threads take turns at it. For everything else they also wait because there is nothing to do.
    #[must_use]
    pub const fn is_contention(self) -> bool {
        matches!(
            self,
            Self::Mutex
                | Self::Rwlock
                | Self::Monitor
                | Self::JavaMonitor
                | Self::Pi
                | Self::Gil
                | Self::GoMutex
                | Self::GoRwmutex
        )
    }
}

words! {
    /// What a futex word belongs to.
    pub enum LockKind {
        /// Mutual exclusion.
        Mutex,
        /// Readers and writers.
        Rwlock,
        /// A monitor that is no Java one.
        Monitor,
        /// CPython's interpreter lock.
        Gil,
        /// Condition variable.
        Cond,
        /// Semaphore.
        Sem,
        /// Priority-inheriting mutex.
        Pi,
        /// Barrier.
        Barrier,
        /// Pool of anything.
        Pool,
        /// A thread's own word, woken by whoever has something for it.
        Parker,
        /// A sleep with a time-out only.
        Sleep,
        /// A runtime's thread without work.
        RuntimeIdle,
        /// Waiting for a thread's end.
        Join,
        /// One-time initialisation.
        Once,
        /// None of the known acquiring functions is in the stack.
        UnknownFutex,
        /// Go `sync.Mutex`.
        GoMutex,
        /// Go `sync.RWMutex`.
        GoRwmutex,
        /// Go channel.
        GoChan,
        /// Go `select`.
        GoSelect,
        /// Go `sync.WaitGroup`.
        GoWaitgroup,
        /// Go `sync.Cond`.
        GoCond,
        /// Java `synchronized`.
        JavaMonitor,
    }

    /// Why a thread slept.
    pub enum Reason {
        /// On a futex.
        Futex,
        /// For data of a socket.
        SocketRead,
        /// For room in a socket.
        SocketWrite,
        /// For a connection.
        Accept,
        /// For a connection's establishment.
        Connect,
        /// In poll, select or epoll.
        Poll,
        /// For a file or block device.
        FileIo,
        /// For a time.
        Sleep,
        /// For a child.
        WaitChild,
        /// For a page.
        PageFault,
        /// For a pipe, eventfd or terminal.
        Pipe,
        /// For a signal.
        Signal,
        /// For a System V or POSIX message queue or semaphore.
        Ipc,
        /// In `io_uring_enter`.
        IoUring,
        /// Stopped by a signal, a tracer or the freezer.
        Stopped,
        /// Any other.
        Other,
    }

    /// What a descriptor is.
    pub enum FdKind {
        /// Regular file, directory or device.
        File,
        /// Socket.
        Socket,
        /// Pipe or FIFO.
        Pipe,
        /// eventfd.
        Eventfd,
        /// epoll.
        Epoll,
        /// timerfd.
        Timerfd,
        /// signalfd.
        Signalfd,
        /// inotify.
        Inotify,
        /// fanotify.
        Fanotify,
        /// memfd or secret memory.
        Memfd,
        /// pidfd.
        Pidfd,
        /// perf event.
        PerfEvent,
        /// BPF map, program, link or BTF.
        Bpf,
        /// userfaultfd.
        Userfaultfd,
        /// `io_uring`.
        IoUring,
        /// POSIX message queue.
        Mqueue,
        /// Mount or file-system context.
        Mount,
        /// Any other.
        Other,
    }

    /// What a series of live descriptors looks like.
    pub enum Verdict {
        /// Grows and nothing is ever closed that grew.
        Leaking,
        /// Grows; may be a warm-up.
        Growing,
        /// Grew and stays.
        Pool,
        /// Does not change.
        Steady,
        /// Opened and closed all the time.
        Churn,
        /// Too little seen, or losses forbid a verdict.
        Unknown,
    }

    /// How a deadlock is known.
    pub enum Certainty {
        /// The locks themselves say who holds them.
        Proven,
        /// Their holders are inferred: the locks do not say it, and one other thread only has their addresses at hand.
        Probable,
    }

    /// How bad a finding is.
    pub enum Severity {
        /// Worth knowing.
        Info,
        /// A small cost.
        Low,
        /// A cost that shows.
        Medium,
        /// Probably what hurts.
        High,
        /// Failing now or soon.
        Critical,
    }
}
