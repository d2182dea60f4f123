//! The table against the kernel's own, from a scan of `/proc/PID/fd`.
//!
//! The caller has applied every event up to the scan's end. Numbers with an event since the scan began are left
//! alone: the scan may have seen them before or after. Of the others, one that we have and the kernel has not
//! has ended unseen: a close not yet carried out would have been recorded at its entry, before the scan ended. The
//! converse needs two scans: a birth is recorded when its call returns, and a close when it is entered, so a number
//! that we do not have can be in the kernel's table for as long as that thread is kept off the CPU.

use std::hash::{Hash as _, Hasher as _};

use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use super::births::Source;
use super::ledger::uncount;
use super::{Death, FdTable, Live, Origin, RowKey};
use crate::proc::fd::{FdEntry, FdScan};
use crate::report::model::FdKind;

/// What a scan mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Ended without a record, those replaced included.
    pub deaths: u64,
    /// Ended by close-on-exec.
    pub by_exec: u64,
    /// Open without a record, those that replaced another included.
    pub births: u64,
    /// Open without a record at this scan, to be confirmed by the next.
    pub pending: u64,
}

/// A descriptor that the kernel has and we have not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    noted: Option<(u64, u64)>,
    kind: FdKind,
    found_ns: u64,
}

/// Inode and hash of the link: what tells one descriptor from another on the same number.
pub(super) fn identity(entry: &FdEntry) -> Option<(u64, u64)> {
    let mut hasher = FxHasher::default();
    entry.target.as_ref()?.hash(&mut hasher);
    Some((entry.inode?, hasher.finish()))
}

impl FdTable {
    /// Mends the table by a scan; see the rules above. A scan that is not newer than the one before, or was not
    /// complete, judges no absence.
    pub fn reconcile(&mut self, scan: &FdScan) -> Reconciled {
        let mut done = Reconciled::default();
        if scan.complete {
            self.kernel_open = Some(scan.entries.len() as u64);
            self.bury_absent(scan, &mut done);
        }
        let settled = self.settled(scan);
        let before = std::mem::take(&mut self.candidates);
        let mut candidates = FxHashMap::default();
        for entry in &scan.entries {
            let known = self.live.get(&entry.fd).copied();
            if !settled(entry.fd) || known.is_some_and(|live| live.touched_ns() >= scan.started_ns) {
                continue;
            }
            if let Some(live) = known
                && !replaced(&live, entry)
            {
                self.note(entry);
                continue;
            }
            let mut candidate = Candidate {
                noted: identity(entry),
                kind: entry.kind,
                found_ns: scan.started_ns,
            };
            if let Some(earlier) = before.get(&entry.fd)
                && (earlier.noted, earlier.kind) == (candidate.noted, candidate.kind)
            {
                candidate.found_ns = earlier.found_ns;
            }
            if candidate.found_ns < scan.started_ns {
                self.adopt(entry.fd, candidate, entry.target.is_some(), &mut done);
            } else {
                candidates.insert(entry.fd, candidate);
            }
        }
        done.pending = candidates.len() as u64;
        self.candidates = candidates;
        if self
            .exec_ns
            .is_some_and(|exec_ns| exec_ns < scan.started_ns && scan.complete)
        {
            self.exec_ns = None;
        }
        done
    }

    fn bury_absent(&mut self, scan: &FdScan, done: &mut Reconciled) {
        let present: FxHashSet<i32> = scan.entries.iter().map(|entry| entry.fd).collect();
        let gone: Vec<(i32, Live)> = self
            .live
            .iter()
            .filter(|(fd, live)| live.touched_ns() < scan.started_ns && !present.contains(fd))
            .filter(|_| self.seeded.is_none_or(|(_, ended_ns)| ended_ns < scan.started_ns))
            .map(|(&fd, &live)| (fd, live))
            .collect();
        for (fd, live) in gone {
            self.live.remove(&fd);
            let by_exec = self
                .exec_ns
                .filter(|&exec_ns| live.touched_ns() <= exec_ns && exec_ns < scan.started_ns);
            if let Some(exec_ns) = by_exec {
                self.bury(&live, exec_ns, Death::Seen);
                done.by_exec += 1;
            } else {
                self.bury(&live, scan.started_ns, Death::Unseen);
                done.deaths += 1;
            }
        }
    }

    /// Tells whether no close of a number was seen since the scan began.
    pub(super) fn settled(&self, scan: &FdScan) -> impl Fn(i32) -> bool + use<> {
        let forgot = self
            .recent
            .forgot_ns
            .is_some_and(|forgot_ns| forgot_ns >= scan.started_ns);
        let (mut single, mut ranges) = (FxHashSet::default(), Vec::new());
        for &(ts_ns, first, last) in &self.recent.deaths {
            if ts_ns < scan.started_ns {
                continue;
            }
            if first == last {
                single.insert(first);
            } else {
                ranges.push(first..=last);
            }
        }
        // Thousands of ranges within one scan: whoever does that gets no judgement this time.
        let forgot = forgot || ranges.len() > 1024;
        move |fd| {
            let fd = fd as u32;
            !forgot && !single.contains(&fd) && !ranges.iter().any(|range| range.contains(&fd))
        }
    }

    /// Takes in a descriptor that two scans have seen, in place of what we had.
    fn adopt(&mut self, fd: i32, found: Candidate, sure: bool, done: &mut Reconciled) {
        if let Some(old) = self.live.remove(&fd) {
            self.bury(&old, found.found_ns, Death::Unseen);
            done.deaths += 1;
        }
        done.births += 1;
        let source = if sure {
            Source::Made(found.kind)
        } else {
            Source::Guess(found.kind)
        };
        self.birth(fd, found.found_ns, RowKey::Unseen, source, None, false);
        if let Some(live) = self.live.get_mut(&fd) {
            live.noted = found.noted;
        }
    }

    /// Keeps what a scan tells about a descriptor that we have.
    fn note(&mut self, entry: &FdEntry) {
        let Some(live) = self.live.get_mut(&entry.fd) else {
            return;
        };
        live.noted = identity(entry).or(live.noted);
        if entry.target.is_some() && !live.sure {
            live.sure = true;
            let kinds = &mut self.rows[live.row as usize].kinds;
            uncount(kinds, live.kind);
            *kinds.entry(entry.kind).or_default() += 1;
            live.kind = entry.kind;
        }
    }
}

impl Live {
    /// Time of its last event.
    fn touched_ns(&self) -> u64 {
        if self.origin == Origin::Seed {
            0
        } else {
            self.birth_ns
        }
    }
}

/// The scan shows another descriptor than the one we have. One of the same inode was perhaps renamed, one of the same
/// name perhaps copied up by an overlay file system: only both tell. So do kinds that cannot be mistaken.
fn replaced(live: &Live, entry: &FdEntry) -> bool {
    const fn distinct(kind: FdKind) -> bool {
        matches!(
            kind,
            FdKind::Socket
                | FdKind::Pipe
                | FdKind::Eventfd
                | FdKind::Epoll
                | FdKind::Timerfd
                | FdKind::Signalfd
                | FdKind::Inotify
                | FdKind::Fanotify
                | FdKind::Userfaultfd
                | FdKind::IoUring
                | FdKind::PerfEvent
        )
    }
    if entry.target.is_none() {
        return false;
    }
    if live.sure && live.kind != entry.kind {
        let file = |kind| distinct(kind) || kind == FdKind::File;
        return distinct(live.kind) && file(entry.kind) || distinct(entry.kind) && file(live.kind);
    }
    matches!((live.noted, identity(entry)), (Some((inode, name)), Some((other, renamed)))
        if inode != other && name != renamed)
}
