//! The measuring half of `cargo xtask bench-probes`, which builds everything, and judges what this prints.
//!
//! ```text
//! probe_costs OBJECT CTRACE WORKLOAD CPU KIB WINDOWS SECONDS
//! ```
//! Each window has one subject attached, beside two programs that tell what is not its cost: an empty one, which costs what the
//! statistics cost, and one that only counts the target's sleeps. The subjects take turns, so that the machine's moods meet
//! them all. All times come from the kernel's run-time statistics, as means over a window.
//!
//! The subject `stack` runs the probes' own function on a copy of the memos that a ctrace has learnt of the same process; it is
//! measured while no ctrace traces, as its peers are, so that nobody has read the stack before it.
//!
//! It prints `KEY VALUE` lines, times in ns.
#![expect(clippy::print_stdout, reason = "how it answers")]

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{
    Btf, Ebpf,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf, StackTraceMap},
    programs::{BtfTracePoint, ProgramFd, loaded_programs},
};
use serde_json::Value;
use tracer::capture::{
    btf,
    stats::{RunStats, StatsOn, run_stats},
};
use tracer_ebpf::{
    bench,
    memo::{POOL_BYTES, Ways},
    wire::counter,
};

/// Time in which a ctrace learns a stack or two, many times over.
const LEARN: Duration = Duration::from_millis(500);

/// `struct Control`: armed, no minimum, nothing copied that was recognised, every sleep recorded, no probe in a program.
const CONTROL: [u64; 7] = [1, 0, u64::MAX, 0, 0, u64::MAX, u64::MAX];

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [object, ctrace, workload, cpu, kib, windows, seconds] = &arguments[..] else {
        bail!("usage: probe_costs OBJECT CTRACE WORKLOAD CPU KIB WINDOWS SECONDS");
    };
    let windows: u32 = windows.parse()?;
    let length = Duration::from_secs_f64(seconds.parse()?);
    let ctrace = PathBuf::from(ctrace);

    let mut target = Workload::start(workload, &[cpu, kib])?;
    // Traced where the windows are of a process that is not.
    let idle = Workload::start(workload, &[cpu, kib])?;
    let mut peers = Peers::load(&fs::read(object)?, target.pid())?;
    target.say("go")?;
    let json = env::temp_dir().join(format!("probe_costs-{}.json", std::process::id()));
    let frames = peers.learn(&ctrace, target.pid(), &json);
    // Absent when ctrace failed, which is said next.
    let _ = fs::remove_file(&json);
    println!("frames_recognised {}", frames?);

    for window in 0..windows {
        for subject in SUBJECTS {
            peers.window(subject, length)?;
        }
        if window == 0 {
            for frames in peers.stackid_frames()? {
                println!("frames_stackid {frames}");
            }
        }
        for traced in [&target, &idle] {
            let session = Session::start(&ctrace, traced.pid(), None)?;
            thread::sleep(LEARN);
            peers.beside(&session, traced.pid() == target.pid(), length)?;
            session.stop()?;
        }
    }
    target.say("stop")?;
    let line = target.line()?;
    println!("{}", line.strip_prefix("truth ").context("no truth")?);
    Ok(())
}

/// A program of the object and what it counts.
#[derive(Clone, Copy)]
struct Subject {
    key: &'static str,
    program: &'static str,
    counts: u32,
}

const fn subject(key: &'static str, program: &'static str, counts: u32) -> Subject {
    Subject { key, program, counts }
}

const SUBJECTS: [Subject; 8] = [
    subject("ring", "bench_ring", bench::RING),
    subject("stackid", "bench_stackid", bench::STACKID),
    subject("stack", "bench_stack", bench::STACK),
    subject("clock", "bench_clock", bench::CLOCK),
    subject("regs", "bench_regs", bench::REGS),
    subject("storage", "bench_storage", bench::STORAGE),
    subject("hash", "bench_hash", bench::HASH),
    subject("read", "bench_read", bench::READ),
];

const EMPTY: (&str, &str) = ("bench_empty", "sched_switch");
const EMPTY_WAKING: (&str, &str) = ("bench_empty_waking", "sched_waking");
const FILTER: (&str, &str) = ("bench_filter", "sched_switch");

/// The object with the peers, loaded.
struct Peers {
    ebpf: Ebpf,
    done: PerCpuArray<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
    stacks: StackTraceMap<MapData>,
    memos: HashMap<MapData, [u8; 16], Ways>,
    targets: HashMap<MapData, u32, u32>,
    pool: MapData,
    _drain: Drain,
}

impl Peers {
    fn load(object: &[u8], target: u32) -> Result<Self> {
        let mut loader = btf::loader();
        loader
            .allow_unsupported_maps()
            .override_global("ONE_TARGET", &target, true);
        let mut ebpf = loader.load(object)?;
        let btf = Btf::from_sys_fs()?;
        let hooks = SUBJECTS.map(|subject| (subject.program, "sched_switch"));
        for (name, hook) in hooks.into_iter().chain([EMPTY, EMPTY_WAKING, FILTER]) {
            program(&mut ebpf, name)?.load(hook, &btf)?;
        }
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .ok_or_else(|| anyhow!("the object has no map {name}"))
        };
        let mut control: Array<_, [u64; 7]> = Array::try_from(take("CONTROL")?)?;
        control.set(0, CONTROL, 0)?;
        let Map::Array(pool) = take("MEMO_POOL")? else {
            bail!("MEMO_POOL is no array")
        };
        Ok(Self {
            done: PerCpuArray::try_from(take("BENCH")?)?,
            counters: PerCpuArray::try_from(take("COUNTERS")?)?,
            stacks: StackTraceMap::try_from(take("BENCH_STACKS")?)?,
            memos: HashMap::try_from(take("MEMOS")?)?,
            targets: HashMap::try_from(take("TARGETS")?)?,
            _drain: Drain::start(RingBuf::try_from(take("EVENTS")?)?),
            pool,
            ebpf,
        })
    }

    /// Lets a ctrace learn the target's stacks and copies what it has learnt; how many frames they have.
    fn learn(&mut self, ctrace: &Path, target: u32, json: &Path) -> Result<u64> {
        let session = Session::start(ctrace, target, Some(json))?;
        thread::sleep(LEARN);
        let targets: HashMap<_, u32, u32> =
            HashMap::try_from(Map::HashMap(map_of(session.child.0.id(), "TARGETS")?))?;
        self.targets.insert(target, targets.get(&target, 0)?, 0)?;
        let memos: HashMap<_, [u8; 16], Ways> =
            HashMap::try_from(Map::HashMap(map_of(session.child.0.id(), "MEMOS")?))?;
        for memo in &memos {
            let (key, ways) = memo?;
            self.memos.insert(key, ways, 0)?;
        }
        copy_pool(&map_of(session.child.0.id(), "MEMO_POOL")?, &self.pool)?;
        session.stop()?;
        let report: Value = serde_json::from_str(&fs::read_to_string(json)?)?;
        frames(&report).context("ctrace's report has no stack of hand_over")
    }

    /// One window of one subject.
    fn window(&mut self, subject: Subject, length: Duration) -> Result<()> {
        let window = self.run([EMPTY.0, FILTER.0, subject.program], None, length)?;
        let [empty, filter, own] = window.peers;
        let (did, slept) = (window.done(subject.counts), window.done(bench::FILTER));
        ensure!(did > 0.0 && slept > 0.0, "{} did nothing", subject.program);
        println!("empty {}", mean(empty));
        println!("filter {}", mean(filter));
        println!(
            "{} {}",
            subject.key,
            (own.run_ns as f64 - filter.run_ns as f64) / did
        );
        println!("{}_done {}", subject.key, did / slept);
        if subject.counts == bench::STACK {
            let [hits, misses] = window.counted([counter::MEMO_HIT, counter::MEMO_MISS]);
            println!("stack_hits {}", hits / (hits + misses));
        }
        Ok(())
    }

    /// One window beside a ctrace, which traces the process whose sleeps the peers count, or another.
    fn beside(&mut self, session: &Session, is_target: bool, length: Duration) -> Result<()> {
        let window = self.run([EMPTY.0, EMPTY_WAKING.0, FILTER.0], Some(session), length)?;
        let ([empty, empty_waking, _], [switch, waking]) = (window.peers, window.session);
        let switch_ns = switch.run_ns as f64 - mean(empty) * switch.runs as f64;
        let waking_ns = waking.run_ns as f64 - mean(empty_waking) * waking.runs as f64;
        if !is_target {
            println!("bystander {}", switch_ns / switch.runs as f64);
            println!("bystander_waking {}", waking_ns / waking.runs as f64);
            println!("bystander_empty {}", mean(empty));
            return Ok(());
        }
        let waits = window.done(bench::FILTER);
        let [hits, misses, lost] =
            window.counted([counter::MEMO_HIT, counter::MEMO_MISS, counter::RING_FULL]);
        println!("wait {}", (switch_ns + waking_ns) / waits);
        println!("wait_switch {}", switch_ns / waits);
        println!("wait_waking {}", waking_ns / waits);
        println!("wait_hits {}", hits / (hits + misses));
        println!("wait_stacks {}", (hits + misses) / waits);
        println!("wait_lost {lost}");
        Ok(())
    }

    /// Attaches these peers for one window with statistics.
    fn run(&mut self, names: [&str; 3], session: Option<&Session>, length: Duration) -> Result<Window> {
        let mut links = Vec::new();
        for name in names {
            links.push((name, program(&mut self.ebpf, name)?.attach()?));
        }
        let on = StatsOn::enable().context("no permission for run-time statistics")?;
        // Caches and predictors meet the peers for the first time.
        thread::sleep(length / 10);
        let before = self.accounts(names, session)?;
        thread::sleep(length);
        let mut window = self.accounts(names, session)?;
        drop(on);
        for (name, link) in links {
            program(&mut self.ebpf, name)?.detach(link)?;
        }
        window.less(&before);
        Ok(window)
    }

    /// All accounts as they are now.
    fn accounts(&mut self, names: [&str; 3], session: Option<&Session>) -> Result<Window> {
        let mut window = Window::default();
        for (account, name) in window.peers.iter_mut().zip(names) {
            *account = account_of(program(&mut self.ebpf, name)?.fd()?)?;
        }
        if let Some(session) = session {
            window.session = [account_of(&session.switch)?, account_of(&session.waking)?];
        }
        for (at, sum) in window.done.iter_mut().enumerate() {
            *sum = self.done.get(&(at as u32), 0)?.iter().sum();
        }
        let counters = session.map_or(&self.counters, |session| &session.counters);
        for (at, sum) in window.counters.iter_mut().enumerate() {
            *sum = counters.get(&(at as u32), 0)?.iter().sum();
        }
        Ok(window)
    }

    /// Lengths of the stacks that `bpf_get_stackid` took.
    fn stackid_frames(&self) -> Result<Vec<usize>> {
        let stacks = self.stacks.iter();
        stacks.map(|stack| Ok(stack?.1.frames().len())).collect()
    }
}

/// Accounts of one window.
#[derive(Default)]
struct Window {
    peers: [RunStats; 3],
    /// Of ctrace's `sched_switch` and `sched_waking`.
    session: [RunStats; 2],
    done: [u64; bench::COUNT as usize],
    counters: [u64; counter::COUNT as usize],
}

impl Window {
    fn less(&mut self, before: &Self) {
        let accounts = self.peers.iter_mut().chain(&mut self.session);
        for (after, before) in accounts.zip(before.peers.iter().chain(&before.session)) {
            after.run_ns -= before.run_ns;
            after.runs -= before.runs;
        }
        let sums = self.done.iter_mut().chain(&mut self.counters);
        for (after, before) in sums.zip(before.done.iter().chain(&before.counters)) {
            *after -= before;
        }
    }

    fn done(&self, what: u32) -> f64 {
        self.done[what as usize] as f64
    }

    fn counted<const N: usize>(&self, which: [u32; N]) -> [f64; N] {
        which.map(|which| self.counters[which as usize] as f64)
    }
}

fn mean(account: RunStats) -> f64 {
    account.run_ns as f64 / account.runs as f64
}

fn account_of(program: &ProgramFd) -> Result<RunStats> {
    run_stats(program.as_fd()).context("the kernel does not say how long a program ran")
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Frames, inlined ones apart, of the stacks that begin in `hand_over`; they must agree.
fn frames(report: &Value) -> Option<u64> {
    let stacks = report["stacks"].as_object()?.values().filter_map(Value::as_array);
    let mut lengths = stacks
        .filter(|frames| frames.first().is_some_and(|leaf| leaf["function"] == "hand_over"))
        .map(|frames| frames.iter().filter(|frame| frame["inlined"] != true).count() as u64);
    let first = lengths.next()?;
    lengths.all(|length| length == first).then_some(first)
}

/// Copies the memos' memory; both maps are mapped by this process alone for the moment.
fn copy_pool(from: &MapData, to: &MapData) -> Result<()> {
    let map = |map: &MapData, protection| {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                POOL_BYTES,
                protection,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        ensure!(
            memory != libc::MAP_FAILED,
            "MEMO_POOL cannot be mapped: {}",
            io::Error::last_os_error()
        );
        Ok(memory)
    };
    let (from, to) = (
        map(from, libc::PROT_READ)?,
        map(to, libc::PROT_READ | libc::PROT_WRITE)?,
    );
    // SAFETY: two mappings of that size; whoever writes to the first one now has nothing new to say of this process.
    unsafe {
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast(), POOL_BYTES);
        libc::munmap(from, POOL_BYTES);
        libc::munmap(to, POOL_BYTES);
    }
    Ok(())
}

/// Empties the peers' ring, for nobody reads it.
struct Drain {
    ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drain {
    fn start(mut ring: RingBuf<MapData>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                while !ended.load(Ordering::Relaxed) {
                    while ring.next().is_some() {}
                    thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Self {
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}

/// A child that ends with its owner.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A workload.
struct Workload {
    child: Owned,
    stdout: BufReader<ChildStdout>,
}

impl Workload {
    fn start(program: &str, arguments: &[&String]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut workload = Self {
            child: Owned(child),
            stdout,
        };
        let line = workload.line()?;
        ensure!(line.starts_with("ready "), "expected ready, got {line}");
        Ok(workload)
    }

    fn pid(&self) -> u32 {
        self.child.0.id()
    }

    fn say(&mut self, word: &str) -> Result<()> {
        let stdin = self.child.0.stdin.as_mut().context("no stdin")?;
        Ok(writeln!(stdin, "{word}")?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stdout.read_line(&mut line)? > 0, "the workload ended");
        Ok(line.trim_end().to_owned())
    }
}

/// A ctrace that traces, and what it has in the kernel.
struct Session {
    child: Owned,
    switch: ProgramFd,
    waking: ProgramFd,
    counters: PerCpuArray<MapData, u64>,
}

impl Session {
    /// Starts it and waits until its probes are live.
    fn start(ctrace: &Path, pid: u32, json: Option<&Path>) -> Result<Self> {
        let json = json.unwrap_or(Path::new("/dev/null"));
        let mut child = Command::new(ctrace)
            .args(["--no-tui", "--only", "locks,sched,io", "--min-wait", "0ns"])
            .args(["--pid", &pid.to_string(), "--json"])
            .arg(json)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", ctrace.display()))?;
        let mut stderr = BufReader::new(child.stderr.take().context("no stderr")?);
        let child = Owned(child);
        let mut said = String::new();
        while !said.contains("Hit Ctrl-C to end.") {
            ensure!(stderr.read_line(&mut said)? > 0, "ctrace: {}", said.trim_end());
        }
        // It must never wait for a reader.
        thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
        let of = child.0.id();
        Ok(Self {
            switch: program_of(of, "sched_switch")?,
            waking: program_of(of, "sched_waking")?,
            counters: PerCpuArray::try_from(Map::PerCpuArray(map_of(of, "COUNTERS")?))?,
            child,
        })
    }

    /// Ctrl-C.
    fn stop(mut self) -> Result<()> {
        // SAFETY: a signal to a child that was not waited for yet.
        unsafe { libc::kill(self.child.0.id() as i32, libc::SIGINT) };
        let status = self.child.0.wait()?;
        ensure!(status.success(), "ctrace ended with {status}");
        Ok(())
    }
}

/// Numbers behind `KEY:` of all descriptors of a process.
fn ids(pid: u32, key: &str) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = fs::read_to_string(entry?.path())?;
        let values = text.lines().filter_map(|line| line.strip_prefix(key));
        found.extend(values.filter_map(|value| value.trim().parse::<u32>().ok()));
    }
    Ok(found)
}

fn program_of(pid: u32, name: &str) -> Result<ProgramFd> {
    let ids = ids(pid, "prog_id:")?;
    for program in loaded_programs() {
        let program = program?;
        if ids.contains(&program.id()) && program.name_as_str() == Some(name) {
            return Ok(program.fd()?);
        }
    }
    bail!("process {pid} has no program {name}")
}

fn map_of(pid: u32, name: &str) -> Result<MapData> {
    for id in ids(pid, "map_id:")? {
        let map = MapData::from_id(id)?;
        if map.info()?.name_as_str() == Some(name) {
            return Ok(map);
        }
    }
    bail!("process {pid} has no map {name}")
}
