//! Of the report as data: what `--go-write` brought, and what it wrote.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::StackKey;

/// The runtime's own profiles of blocking, as `runtime/pprof` gives them: what was added to them while ctrace traced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GoProfiles {
    /// By the stack of the goroutine that was blocked, by channel, select, lock, `WaitGroup` or condition: longest first.
    pub block: Vec<GoBlocked>,
    /// Waits for locks, by the stack of the one that let the lock go: longest first.
    pub mutex: Vec<GoBlocked>,
    /// One event was recorded for so much time blocked, those left out being made up for; 1: every one.
    pub block_rate_ns: u64,
    /// One event of locks in so many was recorded.
    pub mutex_fraction: u64,
    /// These are the program's own rates, which were left as they are.
    pub own_rates: bool,
    /// Stacks that could not be read, or for which there was no room.
    pub unreadable: u64,
}

/// Time blocked with one stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GoBlocked {
    /// Where.
    pub stack: Option<StackKey>,
    /// How often.
    pub count: u64,
    /// For how long, all together. Counted by the runtime when it is over.
    pub total_ns: u64,
}

/// Goroutines that the collector proved to be leaked: what they are blocked on cannot be reached by any other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GoProof {
    /// Collections that searched; 0: there was none while ctrace traced, and nothing is known.
    pub searches: u64,
    /// Goroutines blocked when the first was asked for.
    pub blocked: u64,
    /// Goroutines that are leaked, and were still there at the end.
    pub goroutines: u64,
    /// Those, by stack and creator: most first.
    pub by_stack: Vec<GoProved>,
}

/// Leaked goroutines with one stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GoProved {
    /// Where they are blocked.
    pub stack: Option<StackKey>,
    /// Function that made them.
    pub created_by: Option<String>,
    /// `file:line` of its `go` statement.
    pub created_at: Option<String>,
    /// What they wait for, as Go calls it.
    pub wait_reason: Option<String>,
    /// How many.
    pub count: u64,
    /// Numbers of some.
    pub examples: Vec<u64>,
}

/// A variable of the runtime that was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GoWritten {
    /// Its name.
    pub what: String,
    /// Where it lies.
    pub address: String,
    /// What it held.
    pub old: u64,
    /// What was written.
    pub new: u64,
    /// At the end it held the old value again, which was read back.
    pub restored: bool,
    /// What became of it.
    pub outcome: GoOutcome,
}

/// What became of something written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GoOutcome {
    /// The old value was put back.
    Restored,
    /// The program had taken it as the order that it is, and set it back itself.
    Taken,
    /// The program had set it to something else, which was left.
    Changed,
    /// The process had ended, or ran another program.
    Gone,
    /// It could not be put back.
    Failed,
    /// It is put back when ctrace ends.
    Standing,
}
