//! Where the runtime keeps its numbers: by what the code of named functions uses together.

use iced_x86::{Code, Instruction, Mnemonic, Register};

use super::{
    heap::{self, Controller},
    sample::{self, Sample, cpu},
    times::{Form, Times},
};
use crate::go::{
    code::{instructions, reference, references},
    memory::Memory,
    program::Program,
};

/// A function and the closures in it; the largest have six.
const CLOSURES: usize = 32;
/// Tries to read variables that a collection may be changing.
pub(super) const TRIES: usize = 4;
/// `runtime.mstats` is smaller.
const MSTATS: u64 = 16 << 10;

/// A histogram in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: u64,
    pub(super) form: Form,
}

/// Where a runtime keeps its numbers. Each part may be missing; why is said in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// `memstats.last_gc_unix`, which the collections' numbers follow.
    pub(super) collections: Option<u64>,
    /// `work.cpuStats`.
    pub(super) cpu: Option<u64>,
    /// Every stop for a collection: how long the world stood.
    pub(super) stops: Option<Place>,
    /// How long it took until it stood for a collection; for something else; and how long it stood for that.
    pub(super) others: Option<[Place; 3]>,
    /// `sched.timeToRun`.
    pub(super) run_queue: Option<Place>,
    /// `sched.totalMutexWaitTime`.
    pub(super) mutex_wait: Option<u64>,
    /// `gcController`.
    pub(super) heap: Option<Controller>,
}

impl Metrics {
    /// Looks for every part.
    pub fn find<M: Memory>(memory: &M, program: &Program) -> Self {
        let collections = said("collections", collections(memory, program));
        let form = form(program);
        let (stops, others) = match said("stops of the world", stops(program, form)) {
            Some([stopping, other_stopping, stops, other_stops]) => {
                (Some(stops), Some([stopping, other_stopping, other_stops]))
            }
            None => (
                collections.and_then(|at| said("pauses", pauses(program, form, at))),
                None,
            ),
        };
        let run_queue = said("run queue", run_queue(program, form));
        let found = Self {
            collections,
            cpu: said("collector's CPU time", processor(memory, program)),
            stops,
            others,
            run_queue,
            mutex_wait: run_queue.and_then(|place| said("waits for mutexes", mutex_wait(program, place))),
            heap: said("heap", heap::checked(memory, program)),
        };
        found.checked(memory)
    }

    /// Without what contradicts itself.
    fn checked<M: Memory>(mut self, memory: &M) -> Self {
        let consistent = |sample: &Sample| {
            let cycles = sample.collections.as_ref().map_or(0, |one| u64::from(one.cycles));
            // Every collection stops the world; every stop began by stopping.
            let stops = sample.stops.as_ref().map(Times::count);
            let begun = sample.other.as_ref().map(|other| other.stopping.count());
            stops.is_none_or(|stops| {
                stops >= cycles && stops < 1 << 40 && begun.is_none_or(|begun| begun.abs_diff(stops) <= 2)
            })
        };
        if !(0..TRIES).any(|_| consistent(&self.sample(memory))) {
            log::debug!("Go's histograms of stops do not fit its number of collections: not used");
            (self.stops, self.others) = (None, None);
        }
        self
    }
}

/// What was found, or in the log why not.
fn said<T>(what: &str, found: Result<T, &'static str>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(why) => {
            log::debug!("numbers of the Go runtime: {what}: {why}");
            None
        }
    }
}

/// Data that a function and its closures name.
fn named(program: &Program, function: &str) -> Vec<u64> {
    let mut closures: Vec<&str> = program
        .functions_like(function)
        .filter(|name| name[function.len()..].is_empty() || name[function.len()..].starts_with('.'))
        .collect();
    closures.sort_unstable();
    let mut all = Vec::new();
    for name in closures.into_iter().take(CLOSURES) {
        if let Some((code, start)) = program.code(name) {
            all.extend(references(&code, start));
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// The only address that such others are named with.
fn only(named: &[u64], with: &[u64]) -> Result<u64, &'static str> {
    let has = |at: u64| named.binary_search(&at).is_ok();
    let mut found = named
        .iter()
        .copied()
        .filter(|at| at.is_multiple_of(8) && with.iter().all(|offset| has(at.wrapping_add(*offset))));
    match (found.next(), found.next()) {
        (Some(at), None) => Ok(at),
        (None, _) => Err("the code that uses them is not understood"),
        _ => Err("the code allows more than one place"),
    }
}

/// `gcMarkTermination` writes the sum of pauses, both rings of 256, the number of collections and when the last one was.
fn collections<M: Memory>(memory: &M, program: &Program) -> Result<u64, &'static str> {
    let at = only(
        &named(program, "runtime.gcMarkTermination"),
        &[8, 16, 16 + 2048, 4112, 4120, 4128],
    )?;
    let fits = || {
        memory
            .read(at, sample::COLLECTIONS)
            .is_some_and(|bytes| sample::whole(&bytes))
    };
    (0..TRIES)
        .any(|_| fits())
        .then_some(at)
        .ok_or("the numbers contradict each other")
}

/// Since Go 1.21 it hands the counters of CPU time to `accumulate`, and divides what the collector took of it, but for idle time, by
/// all of it.
fn processor<M: Memory>(memory: &M, program: &Program) -> Result<u64, &'static str> {
    const FUNCTION: &str = "runtime.gcMarkTermination";
    let at = argument(program, FUNCTION, "runtime.(*cpuStats).accumulate")
        .ok_or("they are not added up where a collection ends")?;
    let named = named(program, FUNCTION);
    if ![16, 24, 32, 80]
        .iter()
        .all(|offset| named.contains(&at.wrapping_add(*offset)))
    {
        return Err("the code that uses them is not understood");
    }
    let fits = || {
        memory
            .read(at, sample::CPU)
            .is_some_and(|bytes| cpu(&bytes).is_some())
    };
    (0..TRIES)
        .any(|_| fits())
        .then_some(at)
        .ok_or("the numbers contradict each other")
}

/// Which form histograms have, by the code that counts in them where that is a function of its own.
fn form(program: &Program) -> Option<Form> {
    let (code, start) = program.code("runtime.(*timeHistogram).record")?;
    let code: Vec<Instruction> = instructions(&code, start).collect();
    let compares = |wanted: u64| code.iter().flat_map(immediates).any(|value| value == wanted);
    let counted: Vec<u64> = code
        .iter()
        .filter(|one| one.has_lock_prefix() && one.memory_base() == Register::RAX)
        .map(Instruction::memory_displacement64)
        .collect();
    let has = |offset: usize| counted.contains(&(8 * offset as u64));
    let quarters = Form::Quarters.buckets();
    (compares(40) && compares(9) && has(quarters) && has(quarters + 1)).then_some(Form::Quarters)
}

/// Histograms that a function counts in: those that it hands to `record`, and those whose counters of other times it names.
fn histograms(program: &Program, function: &str, form: Option<Form>) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    if let Some(form) = form
        && let Some(record) = program.function("runtime.(*timeHistogram).record")
    {
        let handed = arguments(program, function).into_iter();
        let handed = handed.filter_map(|(callee, at)| (callee == record).then_some(at));
        found.extend(handed.map(|at| Place { at, form }));
    }
    let sixteenths = program.code(function).is_some_and(|(code, start)| {
        let buckets = Form::Sixteenths.buckets() as u64;
        let mut code = instructions(&code, start);
        code.any(|one| immediates(&one).any(|value| value == buckets))
    });
    let named = named(program, function);
    let has = |at: u64, word: usize| named.binary_search(&at.wrapping_add(8 * word as u64)).is_ok();
    for &at in &named {
        let (old, new) = (Form::Sixteenths.buckets(), Form::Quarters.buckets());
        let form = if sixteenths && has(at, old) {
            Form::Sixteenths
        } else if has(at, new) && has(at, new + 1) {
            Form::Quarters
        } else {
            continue;
        };
        found.push(Place { at, form });
    }
    found.sort_unstable_by_key(|place| place.at);
    found.dedup();
    found
}

/// Constants in an instruction.
fn immediates(instruction: &Instruction) -> impl Iterator<Item = u64> {
    (0..instruction.op_count()).filter_map(|at| instruction.try_immediate(at).ok())
}

/// Since Go 1.22 `stopTheWorldWithSema` counts how long stopping took, `startTheWorldWithSema` how long the world stood; each for
/// the collector and for others. The four are next to each other.
fn stops(program: &Program, form: Option<Form>) -> Result<[Place; 4], &'static str> {
    let stopping = histograms(program, "runtime.stopTheWorldWithSema", form);
    let stops = histograms(program, "runtime.startTheWorldWithSema", form);
    let (&[a, b], &[c, d]) = (&stopping[..], &stops[..]) else {
        return Err("none are counted where the world is stopped");
    };
    let all = [a, b, c, d];
    let adjacent = all.windows(2).all(|two| {
        two[0].form == two[1].form && two[0].at.checked_add(two[0].form.size()) == Some(two[1].at)
    });
    adjacent
        .then_some(all)
        .ok_or("those of stops are not next to each other")
}

/// Before, `gcMarkTermination` counted its pause in a histogram of the same structure as the collections.
fn pauses(program: &Program, form: Option<Form>, collections: u64) -> Result<Place, &'static str> {
    let mut found = histograms(program, "runtime.gcMarkTermination", form);
    found.retain(|place| {
        place
            .at
            .checked_sub(collections)
            .is_some_and(|after| after < MSTATS)
    });
    match found[..] {
        [place] => Ok(place),
        _ => Err("none is counted with the collections"),
    }
}

/// `casgstatus` counts how long a goroutine was runnable.
fn run_queue(program: &Program, form: Option<Form>) -> Result<Place, &'static str> {
    match histograms(program, "runtime.casgstatus", form)[..] {
        [place] => Ok(place),
        _ => Err("not one is counted where goroutines change their status"),
    }
}

/// It also adds up waits for mutexes, next but one to that histogram; since Go 1.20.
fn mutex_wait(program: &Program, run_queue: Place) -> Result<u64, &'static str> {
    let at = run_queue.at.wrapping_add(run_queue.form.size() + 8);
    let named = named(program, "runtime.casgstatus");
    named.contains(&at).then_some(at).ok_or("they are not added up")
}

/// Every call in a function whose first argument is the address of a variable: what it calls, and the variable.
fn arguments(program: &Program, function: &str) -> Vec<(u64, u64)> {
    program
        .code(function)
        .map_or_else(Vec::new, |(code, start)| handed(&code, start))
}

pub(super) fn handed(code: &[u8], start: u64) -> Vec<(u64, u64)> {
    let (mut found, mut held) = (Vec::new(), None);
    for one in instructions(code, start) {
        if one.code() == Code::Call_rel32_64 {
            found.extend(held.take().map(|at| (one.near_branch_target(), at)));
        } else if matches!(one.op0_register(), Register::RAX | Register::EAX)
            && !matches!(one.mnemonic(), Mnemonic::Cmp | Mnemonic::Test)
        {
            held = (one.code() == Code::Lea_r64_m).then(|| reference(&one)).flatten();
        }
    }
    found
}

/// The first argument that all calls of a function in another have.
pub(super) fn argument(program: &Program, caller: &str, callee: &str) -> Option<u64> {
    let callee = program.function(callee)?;
    let mut handed = arguments(program, caller)
        .into_iter()
        .filter(|call| call.0 == callee);
    let (_, at) = handed.next()?;
    handed.all(|(_, other)| other == at).then_some(at)
}
