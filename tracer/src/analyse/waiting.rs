//! Threads asleep at the end of the window, with their stacks: also those that slept before ctrace came.

use rustc_hash::FxHashMap;
use tracer_ebpf::{
    nr::{self, futex},
    rules,
    wire::{Regs, TaskSnapshot, phase},
};

use super::{Window, locks::Locks, names::Names, time::LiveThreads};
use crate::{
    aggregate::reason::reason,
    proc::target::Stat,
    report::model::{FdKind, Reason, WaitingNow},
    stacks::StackId,
};

/// Threads listed; a deadlock of more can be told from these.
const ROWS_MAX: usize = 4096;

/// One thread asleep.
#[derive(Clone, Debug)]
pub struct Sleeper {
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Why.
    pub reason: Reason,
    /// Futex word.
    pub uaddr: Option<u64>,
    /// Where.
    pub stack: StackId,
    /// Since when, when that was seen.
    pub since_ns: Option<u64>,
    /// The futex is a priority-inheriting one.
    pub pi: bool,
    /// It is one of this process alone.
    pub private: bool,
    /// It ends by itself after a time.
    pub timed: bool,
    /// Which sleep it is, and the registers that it was entered with.
    pub asleep: (u64, Regs),
}

/// Arguments of the system call that the registers were saved in (x86-64).
fn args(regs: &Regs) -> [u64; 6] {
    [
        regs.gp[5],
        regs.gp[4],
        regs.gp[1],
        regs.gp[10],
        regs.gp[8],
        regs.gp[9],
    ]
}

/// Unwinds the threads of `snapshots` that sleep. `again` takes the snapshots anew, after the stacks were read: what moved
/// meanwhile is left out.
pub fn sleepers(
    snapshots: &[TaskSnapshot],
    names: &mut Names<'_>,
    again: impl FnOnce() -> Vec<TaskSnapshot>,
) -> Vec<Sleeper> {
    let mut found: Vec<Sleeper> = Vec::new();
    for snapshot in snapshots.iter().take(ROWS_MAX) {
        let Ok(stat) = Stat::of_thread(snapshot.tgid, snapshot.tid) else {
            continue;
        };
        let state = match stat.state {
            'S' => 1,
            'D' => 2,
            'T' => 4,
            't' => 8,
            _ => continue,
        };
        // What the probes saw of its beginning; a restarted call's own arguments are known only from there.
        let seen = snapshot.phase == phase::SLEEPING;
        let (call, args, state) = if seen {
            (snapshot.sleep_nr, snapshot.args, snapshot.state)
        } else if snapshot.nr == nr::RESTART_SYSCALL {
            (nr::RESTART_SYSCALL, [0; 6], state)
        } else {
            let mut args = args(&snapshot.regs);
            if snapshot.nr == nr::FUTEX_WAITV {
                args[5] = 0;
            }
            (snapshot.nr, args, state)
        };
        let why = if call == nr::RESTART_SYSCALL {
            Reason::Other
        } else {
            reason(call, &args, state, |fd| kind_of(snapshot.tgid, fd))
        };
        let wait = rules::futex_wait(call, &args).filter(|wait| why == Reason::Futex && wait.uaddr != 0);
        let stack = if snapshot.regs.ip == 0 {
            StackId::NONE
        } else {
            names.stacks_mut().unwind_live(snapshot.tgid, &snapshot.regs).id
        };
        let since_ns = seen.then_some(snapshot.out_ns);
        found.push(Sleeper {
            pid: snapshot.tgid,
            tid: snapshot.tid,
            reason: why,
            uaddr: wait.map(|wait| wait.uaddr),
            stack,
            since_ns,
            pi: wait.is_some_and(|wait| matches!(wait.op, futex::LOCK_PI | futex::LOCK_PI2)),
            private: wait.is_some_and(|wait| wait.private),
            timed: matches!(rules::timeout(call, &args), rules::Timeout::Timespec(at) if at != 0),
            asleep: (snapshot.seq, snapshot.regs),
        });
    }
    // A thread that sleeps in a loop has the same registers in its next sleep.
    let again: FxHashMap<u32, (u64, Regs)> = again()
        .iter()
        .map(|snapshot| (snapshot.tid, (snapshot.seq, snapshot.regs)))
        .collect();
    found.retain(|sleeper| again.get(&sleeper.tid) == Some(&sleeper.asleep));
    found
}

fn kind_of(pid: u32, fd: i32) -> Option<FdKind> {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some(crate::proc::fd::kind_of(&link.to_string_lossy()))
}

/// As the report has them, longest first.
pub fn waiting_now(
    sleepers: &[Sleeper],
    locks: &Locks,
    names: &mut Names<'_>,
    live: &LiveThreads,
    window: &Window,
) -> Vec<WaitingNow> {
    let mut rows: Vec<WaitingNow> = sleepers
        .iter()
        .map(|sleeper| WaitingNow {
            pid: sleeper.pid,
            tid: sleeper.tid,
            comm: live
                .get(&sleeper.tid)
                .map(|now| now.comm.clone())
                .unwrap_or_default(),
            reason: sleeper.reason,
            lock: sleeper
                .uaddr
                .and_then(|uaddr| locks.of_word(sleeper.pid, uaddr))
                .map(str::to_owned),
            address: sleeper.uaddr.map(|uaddr| format!("{uaddr:#x}")),
            since_ns: sleeper.since_ns.map(|since| window.end_ns.saturating_sub(since)),
            stack: names.key(sleeper.stack),
        })
        .collect();
    rows.sort_by_key(|row| (row.since_ns.is_some(), std::cmp::Reverse(row.since_ns), row.tid));
    rows
}
