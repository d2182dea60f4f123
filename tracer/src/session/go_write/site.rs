//! What `--go-write` does to one process.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use crate::{
    cli::go_write::GoWrite,
    go::{
        leak_detector::{self, Detector, State},
        memory::{Memory, Piece},
        profiler::{Buckets, Profiler, Reading},
        program::Program,
        runtime::Runtime,
        snapshot::Status,
        ticks::Moment,
    },
    proc::target,
    session::{
        go::GoTarget,
        watchdog::{self, Entry, Fate, Watchdog, peek, poke},
    },
};

/// More blocked goroutines than this make the search for leaks stop the program for long.
const MOST_BLOCKED: u64 = 10_000;
/// Between the end of one search for leaks and the next.
const AGAIN: Duration = Duration::from_mins(1);
/// Between two readings of the profiler's tables at least, and in units of what one takes.
const READ_EVERY: Duration = Duration::from_secs(1);
const READ_SHARE: u32 = 200;
/// Of mutexes all events are recorded: it costs less than a part of those of blocking.
const MUTEX_FRACTION: u64 = 1;
/// Goroutines remembered as leaked.
const MAX_PROVED: usize = 1 << 20;

/// The memory that a process had when it was opened; never another one.
#[derive(Debug)]
pub struct Opened(File);

impl Memory for Opened {
    fn read_pieces(&self, pieces: &mut [Piece], into: &mut [u8]) {
        let mut rest = into;
        for piece in pieces {
            let Some((part, after)) = rest.split_at_mut_checked(piece.len) else {
                return;
            };
            piece.whole = self.0.read_exact_at(part, piece.address).is_ok();
            rest = after;
        }
    }
}

/// Something that was written, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The variable.
    pub what: &'static str,
    /// Where, and the bytes.
    pub entry: Entry,
    /// None while it stands.
    pub fate: Option<Fate>,
}

/// The runtime's own profiler.
#[derive(Debug)]
pub struct Profile {
    profiler: Profiler,
    /// Stacks of what was read.
    pub buckets: Buckets,
    /// When it was first read.
    pub before: Reading,
    /// When it was last.
    pub after: Reading,
    /// Ticks blocked for which one event is recorded.
    pub block_rate: u64,
    /// Events of mutexes of which one is recorded.
    pub mutex_fraction: u64,
    /// It ran already: these are the program's own rates.
    pub own: bool,
    due: Instant,
}

impl Profile {
    /// Sums of mutexes stand for all events.
    #[must_use]
    pub const fn scaled(&self) -> bool {
        self.profiler.scaled
    }
}

/// The collector's search for leaked goroutines.
#[derive(Debug)]
pub struct Proof {
    detector: Detector,
    entry: Entry,
    /// Goroutines blocked when it was asked for.
    pub blocked: u64,
    /// Collections that searched.
    pub searches: u64,
    /// Goroutines found leaked, by number.
    pub leaked: BTreeSet<u64>,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The next collection is to search.
    Asked,
    /// Asked for again then.
    Resting(Instant),
    /// No more.
    Over,
}

/// What is done to one process.
#[derive(Debug)]
pub struct Site {
    memory: Opened,
    runtime: Runtime,
    watchdog: Option<Watchdog>,
    /// What was written.
    pub written: Vec<Written>,
    /// The profiler.
    pub profile: Option<Profile>,
    /// The search for leaks.
    pub proof: Option<Proof>,
    /// What was asked for and is not done, and why.
    pub refused: Vec<String>,
}

impl Site {
    /// Finds, arms, says, writes. The error is that of a process that is not what it was.
    pub(super) fn open(pid: u32, target: &GoTarget, asked: GoWrite, since: &Moment) -> io::Result<Self> {
        let memory = Opened(watchdog::open(pid)?);
        let (program, runtime) = (target.reader.program(), target.reader.runtime());
        // The same program in the memory that is open, whatever has happened to the process since it was first looked at.
        let again = Runtime::find(&memory, program).map_err(io::Error::other)?;
        if (again.goroutines, again.types) != (runtime.goroutines, runtime.types) {
            return Err(io::Error::other("it runs another program"));
        }
        let mut site = Self {
            memory,
            runtime: again,
            watchdog: None,
            written: Vec::new(),
            profile: None,
            proof: None,
            refused: Vec::new(),
        };
        if asked.profile
            && let Err(why) = site.plan_profile(program, asked, since)
        {
            site.refused
                .push(format!("Go's own profile of blocking is not read: {why}"));
        }
        if asked.leaks
            && let Err(why) = site.plan_proof(target, asked.force)
        {
            site.refused.push(format!("leaks are not proved: {why}"));
        }
        site.write(pid);
        Ok(site)
    }

    fn plan_profile(
        &mut self,
        program: &Program,
        asked: GoWrite,
        since: &Moment,
    ) -> Result<(), &'static str> {
        let profiler = Profiler::find(&self.memory, program)?;
        let pace = since.pace().ok_or("the processor's clock is not steady")?;
        let word = |address: u64, new: u64| {
            let mut entry = Entry {
                address,
                len: 8,
                old: 0,
                new,
            };
            entry.old = peek(&self.memory.0, &entry).ok_or("its memory is gone")?;
            Ok::<_, &'static str>(entry)
        };
        let ns = asked.block_rate.as_nanos() as u64;
        // As the runtime has it: 1 is every event, whatever the clock.
        let rate = if ns <= 1 {
            1
        } else {
            (ns as f64 * pace).max(1.0) as u64
        };
        let block = word(profiler.block_rate, rate)?;
        let mutex = word(profiler.mutex_fraction, MUTEX_FRACTION)?;
        let mut buckets = Buckets::default();
        let before = buckets
            .read(&self.memory, &|pc| program.step(pc).is_some(), &profiler)
            .ok_or("its tables cannot be read")?;
        for (what, entry) in [
            ("runtime.blockprofilerate", block),
            ("runtime.mutexprofilerate", mutex),
        ] {
            // A program that profiles itself is left alone.
            if entry.old == 0 {
                self.written.push(Written {
                    what,
                    entry,
                    fate: None,
                });
            }
        }
        let rate_of = |entry: &Entry| if entry.old == 0 { entry.new } else { entry.old };
        self.profile = Some(Profile {
            block_rate: rate_of(&block),
            mutex_fraction: rate_of(&mutex),
            own: block.old != 0 || mutex.old != 0,
            profiler,
            buckets,
            after: before.clone(),
            before,
            due: Instant::now(),
        });
        Ok(())
    }

    fn plan_proof(&mut self, target: &GoTarget, force: bool) -> Result<(), String> {
        let detector = Detector::find(&self.memory, target.reader.program())?;
        let blocked = blocked(target);
        if blocked > MOST_BLOCKED && !force {
            return Err(too_many(blocked));
        }
        let entry = Entry {
            address: detector.pending,
            len: 1,
            old: 0,
            new: 1,
        };
        match detector.state(&self.memory) {
            Some(State::Pending) => return Err("the program has asked for that itself".to_owned()),
            Some(State::Enabled | State::Idle) => {}
            None => return Err("its memory is gone".to_owned()),
        }
        self.written.push(Written {
            what: "runtime.work.goroutineLeak.pending",
            entry,
            fate: None,
        });
        self.proof = Some(Proof {
            detector,
            entry,
            blocked,
            searches: 0,
            leaked: BTreeSet::new(),
            step: Step::Asked,
        });
        Ok(())
    }

    /// Armed first, then said, then written.
    fn write(&mut self, pid: u32) {
        if self.written.is_empty() {
            return;
        }
        let entries: Vec<Entry> = self.written.iter().map(|written| written.entry).collect();
        let watchdog = match Watchdog::arm(pid, &self.memory.0, &entries) {
            Ok(watchdog) => watchdog,
            Err(error) => {
                self.refused.push(format!(
                    "nothing is written, as there is no process to put it back: {error}"
                ));
                self.written.clear();
                (self.profile, self.proof) = (None, None);
                return;
            }
        };
        aloud(&announcement(pid, &watchdog, &self.written));
        self.watchdog = Some(watchdog);
        for written in &self.written {
            if let Err(error) = poke(&self.memory.0, &written.entry, written.entry.new) {
                self.refused
                    .push(format!("{} could not be written: {error}", written.what));
                if let Some(proof) = self.proof.as_mut().filter(|proof| proof.entry == written.entry) {
                    proof.step = Step::Over;
                }
            }
        }
    }

    pub(super) fn look_for_leaks(&mut self) {
        let Some(proof) = self.proof.as_mut().filter(|_| self.watchdog.is_some()) else {
            return;
        };
        let idle = proof.detector.state(&self.memory) == Some(State::Idle);
        match proof.step {
            Step::Asked if idle => {
                proof.searches += 1;
                proof.step = Step::Resting(Instant::now() + AGAIN);
                let leaked = leak_detector::leaked(&self.memory, &self.runtime).unwrap_or_default();
                let room = MAX_PROVED.saturating_sub(proof.leaked.len());
                proof.leaked.extend(leaked.into_iter().take(room));
            }
            Step::Resting(until)
                if idle
                    && Instant::now() >= until
                    && poke(&self.memory.0, &proof.entry, proof.entry.new).is_ok() =>
            {
                proof.step = Step::Asked;
            }
            _ => {}
        }
    }

    /// Takes the order back when meanwhile too many are blocked.
    pub(super) fn hold_back(&mut self, target: &GoTarget, force: bool) {
        let Some(proof) = self
            .proof
            .as_mut()
            .filter(|proof| proof.step != Step::Over && !force)
        else {
            return;
        };
        if target.tally.alive <= MOST_BLOCKED {
            return;
        }
        let blocked = blocked(target);
        if blocked > MOST_BLOCKED {
            proof.step = Step::Over;
            watchdog::restore(&self.memory.0, &proof.entry);
            self.refused
                .push(format!("leaks are no longer proved: {}", too_many(blocked)));
        }
    }

    pub(super) fn read_profile(&mut self, program: &Program, now: bool) {
        let Some(profile) = self
            .profile
            .as_mut()
            .filter(|profile| now || Instant::now() >= profile.due)
        else {
            return;
        };
        let begun = Instant::now();
        // When the process has ended, or runs another program, what was read last stays.
        if let Some(reading) =
            profile
                .buckets
                .read(&self.memory, &|pc| program.step(pc).is_some(), &profile.profiler)
        {
            profile.after = reading;
        }
        profile.due = Instant::now() + (begun.elapsed() * READ_SHARE).max(READ_EVERY);
    }

    /// Without it nothing may stay written: it is put back at once.
    pub(super) fn mind_the_watchdog(&mut self) {
        if !self.watchdog.as_mut().is_some_and(Watchdog::has_ended) {
            return;
        }
        self.end();
        if self
            .written
            .iter()
            .any(|written| written.fate != Some(Fate::Gone))
        {
            self.refused
                .push("the watchdog was ended from outside: what was written is put back already".to_owned());
        }
    }

    pub(super) fn end(&mut self) {
        let Some(watchdog) = self.watchdog.take() else {
            return;
        };
        let entries: Vec<Entry> = self.written.iter().map(|written| written.entry).collect();
        let fates = watchdog.finish(&self.memory.0, &entries);
        for (written, fate) in self.written.iter_mut().zip(fates) {
            written.fate = Some(fate);
        }
    }
}

/// Goroutines that wait.
fn blocked(target: &GoTarget) -> u64 {
    let waiting = |status| matches!(status, Status::Waiting(_) | Status::Leaked(_));
    let all = target.reader.goroutines();
    all.filter(|(_, goroutine)| waiting(goroutine.status)).count() as u64
}

fn too_many(blocked: u64) -> String {
    format!(
        "{blocked} goroutines are blocked, and the search would stop the program for long (200 to 400 ms were measured at 100,000): \
         --go-write-force searches all the same"
    )
}

/// What is about to be written.
fn announcement(pid: u32, watchdog: &Watchdog, written: &[Written]) -> String {
    let name = target::Stat::of(pid).map_or_else(|_| String::new(), |stat| stat.comm);
    let each: Vec<String> = written
        .iter()
        .map(|Written { what, entry, .. }| {
            format!(
                "{what} at {:#x}: {} becomes {}",
                entry.address, entry.old, entry.new
            )
        })
        .collect();
    format!(
        "--go-write writes into the memory of {pid} ({}): {}. It is put back at the end, by process {} should ctrace be killed.",
        name.escape_debug(),
        each.join(", "),
        watchdog.pid()
    )
}

/// Also when ctrace is to be quiet: nobody is to find out by accident.
fn aloud(line: &str) {
    // A closed stderr is no reason to stop.
    let _ = writeln!(io::stderr(), "ctrace: {line}");
}
