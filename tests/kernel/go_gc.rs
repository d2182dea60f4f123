//! A Go runtime's own numbers, read from its memory, against what the program itself is told by `runtime/metrics`.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tracer::go::{
    memory::Live,
    metrics::{Form, GcTrack, Metrics, Sample, Times, gc},
    program::Program,
};

use super::support::workload::Truth;
use super::support::{Workload, can_trace, go, go_workload};

/// What the workload may use, so that CPU time can be told from its share.
const PROCESSORS: u64 = 2;
/// Pauses that can be read at once: the runtime keeps one more, which it may be overwriting.
const KEPT: u64 = 255;

/// A running workload and the numbers that are read of it.
struct Run {
    workload: Workload,
    memory: Live,
    metrics: Metrics,
    _folder: TempDir,
}

impl Run {
    /// Built by that Go with those flags; None when it is not installed.
    fn start(version: &str, args: &[&str], environment: &[(&str, &str)]) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let program = go_workload::built("gc", version, args, folder.path())?;
        let mut command = Command::new(&program);
        command.env("GOMAXPROCS", PROCESSORS.to_string());
        command.envs(environment.iter().copied());
        let workload = Workload::started(command);
        let memory = Live::new(workload.pid);
        let metrics = Metrics::find(&memory, &Program::open(workload.pid).unwrap());
        Some(Self {
            workload,
            memory,
            metrics,
            _folder: folder,
        })
    }

    fn sample(&self) -> Sample {
        self.metrics.sample(&self.memory)
    }

    fn ask(&mut self, words: &str) -> Truth {
        self.workload.tell(words);
        self.workload.finish()
    }

    /// What is read while nothing happens is what the program says before and after; and nothing is missing.
    fn compare(&mut self, what: &str) -> (Truth, Sample) {
        let (after, sample) = self.compare_found(what);
        let other = sample.other.is_some();
        for (name, found) in [
            ("stops", sample.stops.is_some()),
            ("run_queue", sample.run_queue.is_some()),
            ("stopping", other),
            ("other_stopping", other),
            ("other_stops", other),
        ] {
            let told = (0..1000).any(|at| after.find(&format!("{name}.{at}")).is_some());
            assert!(found || !told, "{what}: {name} is missing");
        }
        (after, sample)
    }

    /// What is read is right.
    fn compare_found(&mut self, what: &str) -> (Truth, Sample) {
        let before = self.ask("truth");
        let sample = self.sample();
        let after = self.ask("truth");
        let between = |key: &str, seen: u64| {
            // Counted times are told in seconds, which rounds them.
            let (low, high) = (before.get(key).saturating_sub(1), after.get(key) + 1);
            assert!(
                low <= seen && seen <= high,
                "{what}: {key}: {seen} is not in {low}..{high}"
            );
        };
        let collections = sample.collections.as_ref().unwrap();
        assert_eq!(u64::from(collections.cycles), before.get("numgc"), "{what}");
        assert_eq!(u64::from(collections.forced), before.get("forced"), "{what}");
        assert_eq!(collections.pause_ns, before.get("pause_total"), "{what}");
        for ago in 0..KEPT.min(before.get("numgc")) as u32 {
            let pause = collections.pause(collections.cycles - 1 - ago);
            assert_eq!(pause, before.find(&format!("pause.{ago}")), "{what}: {ago} ago");
        }
        if let (Some(heap), Some(live)) = (sample.heap, before.find("heap_live")) {
            assert_eq!(heap.live, live, "{what}");
        }
        if let Some(cpu) = sample.cpu {
            between("cpu_gc", cpu.collector_ns);
            between("cpu_idle_mark", cpu.idle_ns);
            between("cpu_assist", cpu.assist_ns);
        }
        let other = sample.other.as_ref();
        for (name, times) in [
            ("stops", sample.stops.as_ref()),
            ("run_queue", sample.run_queue.as_ref()),
            ("stopping", other.map(|other| &other.stopping)),
            ("other_stopping", other.map(|other| &other.other_stopping)),
            ("other_stops", other.map(|other| &other.others)),
        ] {
            same_buckets(&format!("{what}: {name}"), name, times, &before, &after);
        }
        (after, sample)
    }
}

/// Every bucket lies between what the program said before and after.
fn same_buckets(what: &str, name: &str, times: Option<&Times>, before: &Truth, after: &Truth) {
    let said = |truth: &Truth, at: usize| truth.find(&format!("{name}.{at}"));
    let Some(times) = times else { return };
    let buckets = [times.below]
        .into_iter()
        .chain(times.counts.iter().copied())
        .chain((times.form == Form::Quarters).then_some(times.above));
    for (at, count) in buckets.enumerate() {
        let (low, high) = (said(before, at).unwrap_or(0), said(after, at).unwrap_or(0));
        assert!(
            low <= count && count <= high,
            "{what}: bucket {at}: {count} is not in {low}..{high}"
        );
    }
}

/// Samples are taken all the time while the program collects: each pause is counted once.
fn tracked(run: &mut Run, what: &str) {
    let (before, first) = run.compare(what);
    let begun = Instant::now();
    let over = AtomicBool::new(false);
    let (metrics, memory) = (&run.metrics, &run.memory);
    let workload = &mut run.workload;
    let (after, track, samples) = thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let (mut track, mut samples) = (GcTrack::new(first), 0);
            while !over.load(Ordering::Acquire) {
                track.add(metrics.sample(memory));
                samples += 1;
                thread::sleep(Duration::from_millis(3));
            }
            track.add(metrics.sample(memory));
            (track, samples)
        });
        workload.tell("go 97 23");
        let after = workload.finish();
        over.store(true, Ordering::Release);
        let (track, samples) = sampler.join().unwrap();
        (after, track, samples)
    });
    let window_ns = begun.elapsed().as_nanos() as u64;
    let gc = gc(&track, window_ns).unwrap();
    let grown = |key: &str| after.get(key) - before.get(key);
    assert_eq!((gc.cycles, gc.forced), (grown("numgc"), Some(23)), "{what}");
    assert_eq!((gc.pauses.count, gc.pauses_lost), (gc.cycles, 0), "{what}");
    assert_eq!(gc.pause_total_ns, grown("pause_total"), "{what}");
    assert_eq!(gc.pauses.total_ns, gc.pause_total_ns, "{what}");
    let stops = |truth: &Truth| {
        (0..1000)
            .filter_map(|at| truth.find(&format!("stops.{at}")))
            .sum::<u64>()
    };
    assert_eq!(
        gc.stops.as_ref().map(|stops| stops.count),
        Some(stops(&after) - stops(&before)),
        "{what}"
    );
    if let Some(share) = gc.cpu_share {
        let used = grown("cpu_gc") - grown("cpu_idle_mark");
        let expected = used as f64 / (window_ns * PROCESSORS) as f64;
        assert!(
            (share / expected - 1.0).abs() < 0.02,
            "{what}: {share} instead of {expected}"
        );
    }
    println!(
        "{what}: {} cycles, {samples} samples, pauses {} us in all, longest {} us, stops {:?}, CPU {:?}, assists {:?}, run queue p99 {:?} ns, heap {:?} of {:?}",
        gc.cycles,
        gc.pause_total_ns / 1000,
        gc.pauses.max_ns / 1000,
        gc.stops.map(|stops| stops.count),
        gc.cpu_share,
        gc.assist_share,
        gc.run_queue.map(|times| times.p99_ns),
        gc.heap_live_bytes,
        gc.heap_goal_bytes,
    );
}

/// Collections that come faster than samples are counted, and their pauses said to be lost.
fn forgotten(run: &mut Run, what: &str) {
    let (before, first) = run.compare(what);
    let mut track = GcTrack::new(first);
    let after = run.ask("go 307 0");
    track.add(run.sample());
    let gc = gc(&track, 1_000_000_000).unwrap();
    assert_eq!(gc.cycles, after.get("numgc") - before.get("numgc"), "{what}");
    assert_eq!(
        (gc.pauses.count, gc.pauses_lost),
        (KEPT, gc.cycles - KEPT),
        "{what}"
    );
    assert_eq!(
        gc.pause_total_ns,
        after.get("pause_total") - before.get("pause_total"),
        "{what}"
    );
}

/// Waits for mutexes, as far as the version adds them up: by every eighth wait of a goroutine. Since Go 1.22 the program is told the
/// sum of them and of its waits for the runtime's own locks, which only grows.
fn mutexes(run: &mut Run, what: &str) {
    let told = run.ask("truth");
    let Some(before) = run.sample().mutex_wait_ns else {
        assert_eq!(told.find("mutex_wait"), None, "{what}");
        return;
    };
    let truth = run.ask("lock 97");
    let seen = run.sample().mutex_wait_ns.unwrap();
    let rest = |told: &Truth, seen: u64| (told.get("mutex_wait") + 1).checked_sub(seen);
    let (early, late) = (rest(&told, before), rest(&truth, seen));
    assert!(
        early.is_some() && late.is_some_and(|late| late + 1 >= early.unwrap()),
        "{what}: {before} and {seen} of {told:?} and {truth:?}"
    );
    if run.sample().other.is_none() {
        assert!(late.unwrap() <= 2, "{what}: {seen} of {truth:?}");
    }
    let (grown, waited) = (seen - before, truth.get("waited"));
    // On average 12 of the 97 waits are measured.
    assert!(
        waited / 10 < grown && grown < waited * 3,
        "{what}: {grown} of {waited}"
    );
    println!(
        "{what}: {} ms in mutexes, waited {} ms; other locks {} us",
        grown / 1_000_000,
        waited / 1_000_000,
        late.unwrap() / 1000
    );
}

/// The goal by GOGC, and by a limit of memory.
fn goals(run: &mut Run, what: &str) {
    const LIMIT: u64 = 34 << 20;
    for limited in [false, true] {
        if limited {
            run.ask(&format!("limit {LIMIT}"));
        }
        // Memory may be given back meanwhile.
        let agreed = (0..97).find_map(|_| {
            let before = run.ask("truth").get("heap_goal");
            let heap = run.sample().heap.unwrap();
            (run.ask("truth").get("heap_goal") == before).then_some((before, heap))
        });
        let (told, heap) = agreed.unwrap();
        assert_eq!(heap.goal, Some(told), "{what}: {heap:?}");
        assert_eq!(heap.limit, limited.then_some(LIMIT), "{what}: {heap:?}");
        assert_eq!(heap.limited, limited, "{what}: {heap:?}");
    }
}

fn cost(run: &Run, what: &str) {
    const SAMPLES: u32 = 1000;
    let begun = Instant::now();
    (0..SAMPLES).for_each(|_| assert!(run.sample().collections.is_some()));
    println!(
        "{what}: {:.1} us a sample",
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(SAMPLES)
    );
}

/// Every number that a version has, in every way that programs are built.
#[test]
fn go_runtimes_numbers_are_read_as_it_tells_them() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system"].into_iter().chain(go::VERSIONS) {
        for args in [
            &[][..],
            &["-ldflags=-s -w"],
            &["-buildmode=pie", "-ldflags=-s -w"],
        ] {
            let what = format!("Go {version} {args:?}");
            let Some(mut run) = Run::start(version, args, &[]) else {
                continue;
            };
            let sample = run.sample();
            // What came later than 1.19: a runtime that has it must have been understood.
            let has = |minor: u32| {
                version
                    .split('.')
                    .nth(1)
                    .is_some_and(|own| own.parse::<u32>().unwrap() >= minor)
            };
            assert!(sample.collections.is_some() && sample.heap.is_some(), "{what}");
            assert!(sample.stops.is_some() && sample.run_queue.is_some(), "{what}");
            assert_eq!(sample.mutex_wait_ns.is_some(), has(20), "{what}");
            assert_eq!(sample.cpu.is_some(), has(21), "{what}");
            assert_eq!(sample.other.is_some(), has(22), "{what}");
            tracked(&mut run, &what);
            mutexes(&mut run, &what);
            if args.is_empty() {
                cost(&run, &what);
                if !has(20) || version == go::VERSIONS[3] {
                    forgotten(&mut run, &what);
                }
            }
            run.compare(&what);
            goals(&mut run, &what);
            run.workload.quit();
        }
    }
}

/// A program that has not collected yet, and does not by itself.
#[test]
fn go_without_collections_has_none() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let what = format!("Go {version}");
        let Some(mut run) = Run::start(version, &[], &[("GOGC", "off")]) else {
            continue;
        };
        let (_, first) = run.compare(&what);
        assert_eq!(
            first.collections.as_ref().map(|one| one.cycles),
            Some(0),
            "{what}"
        );
        assert_eq!(first.heap.map(|heap| heap.goal), Some(None), "{what}");
        let mut track = GcTrack::new(first);
        let none = gc(&track, 1_000_000_000).unwrap();
        assert_eq!(
            (none.cycles, none.pauses.count, none.pause_total_ns),
            (0, 0, 0),
            "{what}"
        );
        run.ask("go 0 23");
        track.add(run.compare(&what).1);
        let forced = gc(&track, 1_000_000_000).unwrap();
        assert_eq!(
            (forced.cycles, forced.forced, forced.pauses.count),
            (23, Some(23), 23),
            "{what}"
        );
        run.workload.quit();
    }
}

/// Code that the compiler made otherwise, without optimisation: what is found is right, whatever it is.
#[test]
fn go_numbers_of_unusual_code_are_right_or_missing() {
    let Some(_turn) = can_trace() else { return };
    for version in ["system", go::VERSIONS[3]] {
        let what = format!("Go {version} -N -l");
        let Some(mut run) = Run::start(version, &["-gcflags=all=-N -l"], &[]) else {
            continue;
        };
        run.ask("go 23 2");
        let sample = run.sample();
        println!(
            "{what}: stops {} others {} run queue {} CPU {} heap {} mutexes {}",
            sample.stops.is_some(),
            sample.other.is_some(),
            sample.run_queue.is_some(),
            sample.cpu.is_some(),
            sample.heap.is_some(),
            sample.mutex_wait_ns.is_some()
        );
        run.compare_found(&what);
        run.workload.quit();
    }
}
