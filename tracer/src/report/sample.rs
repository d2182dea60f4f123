//! Reports for tests: between them, every field is used.

use std::collections::BTreeMap;

use serde_json::json;

use super::hist::hist;
use super::model::{
    AskedBy, Blocked, Certainty, Cpu, CpuFunction, CpuOther, CpuStack, CpuThread, Ctrace, Deadlock,
    DeadlockLink, FdExample, FdKind, FdShared, FdStack, Fds, Finding, Go, GoBlocked, GoChannel, GoCreator,
    GoExample, GoGc, GoObject, GoOutcome, GoPeer, GoPool, GoPoolStack, GoPoolUse, GoPoolUses, GoPoolWait,
    GoProfiles, GoProof, GoProved, GoSnapshots, GoStack, GoWait, GoWaitsOn, GoWritten, Hist, Holder, Host,
    Lock, LockKind, Losses, Memory, MemoryProcess, MemoryStack, OptionsUsed, Outcomes, Overhead, Probe,
    Reason, Report, RunQueue, RunQueueThread, SCHEMA, Severity, Slices, SpawnSleep, SpawnStack, Spawns,
    StackFrame, StackKey, StacksHad, Step, Target, ThreadTime, Time, Verdict, Waiter, WaitingNow, WakerRow,
    Window,
};
use crate::aggregate::hist::Histogram;

const MS: u64 = 1_000_000;

pub(crate) fn all() -> Vec<(&'static str, Report)> {
    vec![
        ("contended", contended()),
        ("cpu_bound", cpu_bound()),
        ("idle", idle()),
        ("lossy", lossy()),
        ("hostile", hostile()),
    ]
}

/// Channels that each have a waiter of their own, but for a few.
fn own_channels() -> GoWaitsOn {
    GoWaitsOn {
        asked: 256,
        known: 255,
        objects: 251,
        never: 0,
        ticks: false,
        most: vec![GoObject {
            kind: LockKind::GoChan,
            address: "0xc00011a0c0".to_owned(),
            waiters: 5,
            longest_ns: None,
            channel: Some(GoChannel {
                len: 0,
                capacity: 0,
                closed: false,
                ticks: false,
            }),
        }],
    }
}

/// A pool of connections that is too small.
fn exhausted_pool() -> GoPool {
    GoPool {
        address: "0xc0000b6000".to_owned(),
        max_open: 10,
        open: 10,
        idle: 0,
        waiting: 13,
        waits: 1700,
        wait_total_ns: Some(18_700 * MS),
        exhausted_samples: 97,
        exhausted_share: 0.96,
        mean_waiting: 11.3,
        waiters: vec![GoPoolStack {
            stack: Some("3".to_owned()),
            does: GoPoolUse::Waits,
            created_by: Some("net/http.(*Server).Serve".to_owned()),
            mean: 11.3,
        }],
        in_use: Some(GoPoolUses {
            query: 9.7,
            connect: 0.0,
            opener: 0.0,
            rows: 0.1,
            transaction: 0.0,
            unseen: 0.2,
            by_stack: Vec::new(),
        }),
        requests: Some(8191),
        requests_waited: Some(1700),
        wait: Some(times(1687, 11, 801)),
        gave_up: Some(3),
        wait_by_stack: vec![GoPoolWait {
            stack: Some("3".to_owned()),
            wait: times(1687, 11, 801),
        }],
        lock: None,
    }
}

fn asked_by() -> AskedBy {
    AskedBy {
        stack: Some("4".to_owned()),
        created_by: Some("main.reload".to_owned()),
        created_at: Some("/srv/src/reload.go:41".to_owned()),
    }
}

/// A Go program with a leak, and its runtime's own goroutines.
#[allow(clippy::too_many_lines, reason = "one value, every field of which is set")]
fn goroutines() -> Go {
    let stuck = GoStack {
        stack: Some("3".to_owned()),
        shape: None,
        cut: false,
        created_by: Some("main.fanOut".to_owned()),
        created_at: Some("/srv/src/fan.go:97".to_owned()),
        asked_by: vec![asked_by()],
        count: 797,
        status: "waiting".to_owned(),
        wait_reason: Some("chan send".to_owned()),
        wait_ns: times(797, 9000, 2_300_000),
        opened: 774,
        closed: 0,
        live_at_start: 23,
        verdict: Verdict::Leaking,
        confidence: 0.71,
        growth_per_s: 9.7,
        growth_interval_per_s: Some([9.1, 10.3]),
        stays: Some(1.0),
        steps: Vec::new(),
        waits_on: Some(own_channels()),
        peers: vec![GoPeer {
            scheme: "https".to_owned(),
            host: "stock.example:443".to_owned(),
            proxy: Some("http://proxy.example:3128".to_owned()),
            connections: 97,
        }],
        peers_asked: 97,
        examples: vec![GoExample {
            goid: 1023,
            parent_goid: Some(97),
            thread: None,
            wait_ns: Some(2_300 * MS),
        }],
    };
    let creator = GoCreator {
        created_by: stuck.created_by.clone(),
        created_at: stuck.created_at.clone(),
        opened: 774,
        closed: 0,
        live: 797,
        live_at_start: 23,
        verdict: Verdict::Leaking,
        confidence: 0.71,
        growth_per_s: 9.7,
        growth_interval_per_s: Some([9.1, 10.3]),
        stays: Some(1.0),
        steps: Vec::new(),
    };
    let running = GoStack {
        stack: None,
        count: 14,
        status: "running".to_owned(),
        wait_reason: None,
        wait_ns: times(14, 1, 20),
        opened: 14,
        closed: 0,
        live_at_start: 14,
        verdict: Verdict::Steady,
        growth_per_s: 0.0,
        waits_on: None,
        peers: Vec::new(),
        peers_asked: 0,
        examples: Vec::new(),
        created_by: None,
        created_at: None,
        ..stuck.clone()
    };
    Go {
        pid: 4242,
        version: Some("go1.24.1".to_owned()),
        goroutines: 811,
        by_status: BTreeMap::from([("running".to_owned(), 14), ("waiting".to_owned(), 797)]),
        by_stack: vec![stuck, running],
        folded: 0,
        by_creator: vec![creator],
        waits: vec![GoWait {
            stack: Some("3".to_owned()),
            created_by: Some("main.fanOut".to_owned()),
            status: "waiting".to_owned(),
            wait_reason: Some("chan send".to_owned()),
            samples: 40_100,
            total_ns: 800_000 * MS,
            total_ci_ns: Some([700_000 * MS, 900_000 * MS]),
            mean: Some(400.0),
            count: None,
            wait: None,
        }],
        pools: vec![exhausted_pool()],
        gc: Some(collector()),
        snapshots: GoSnapshots {
            count: 101,
            interval_ns: 20 * MS,
            cpu_ns: 31 * MS,
            walked: 900,
            unchanged: 79_000,
            moved: 7,
            inconsistent: 0,
            unreadable: 0,
            bytes: 9_700_000,
        },
        profiles: Some(profiles()),
        proof: Some(proof()),
        written: vec![written()],
    }
}

fn profiles() -> GoProfiles {
    GoProfiles {
        block: vec![GoBlocked {
            stack: Some("3".into()),
            count: 23,
            total_ns: 970 * MS,
        }],
        mutex: Vec::new(),
        block_rate_ns: 10_000,
        mutex_fraction: 1,
        own_rates: false,
        unreadable: 0,
    }
}

fn threads() -> Spawns {
    Spawns {
        at_start: 12,
        created: 97,
        ended: 3,
        by_stack: vec![SpawnStack {
            pid: 4242,
            stack: Some("1".into()),
            created: 97,
            ended: 3,
            live: 94,
            verdict: Verdict::Leaking,
            confidence: 0.71,
            growth_per_s: 9.4,
            growth_interval_per_s: Some([9.1, 9.7]),
            stays: Some(0.97),
            steps: vec![Step {
                period_ns: 1_300 * MS,
                size: 3,
                p_value: 0.001,
            }],
            oldest_ns: Some(9_800 * MS),
            asleep_in: vec![SpawnSleep {
                reason: Reason::Futex,
                stack: Some("3".into()),
                count: 90,
            }],
            alone: 88,
            examples: vec![4300, 4301],
        }],
    }
}

fn cpu() -> Cpu {
    Cpu {
        hz: 49,
        samples: 970,
        taken: 970,
        by_stack: vec![
            CpuStack {
                pid: 4242,
                stack: Some("1".into()),
                samples: 610,
                share: 0.629,
                in_kernel: 12,
                spinning: 0,
            },
            CpuStack {
                pid: 4242,
                stack: None,
                samples: 360,
                share: 0.371,
                in_kernel: 0,
                spinning: 0,
            },
        ],
        by_function: vec![CpuFunction {
            function: Some("cache_get".to_owned()),
            stack: Some("1".into()),
            samples: 610,
            spinning: 0,
        }],
        by_thread: vec![CpuThread {
            pid: 4242,
            tid: 4250,
            samples: 610,
            by_function: vec![CpuFunction {
                function: None,
                stack: Some("1".into()),
                samples: 610,
                spinning: 3,
            }],
        }],
        others_ns: 5_300 * MS,
        others: vec![CpuOther {
            pid: 77,
            comm: "backup".to_owned(),
            cpu_ns: 5_100 * MS,
        }],
    }
}

fn proof() -> GoProof {
    GoProof {
        searches: 1,
        blocked: 900,
        goroutines: 97,
        by_stack: vec![GoProved {
            stack: Some("3".into()),
            created_by: Some("main.fanOut".into()),
            created_at: Some("/srv/src/fan.go:97".into()),
            wait_reason: Some("chan send".into()),
            count: 97,
            examples: vec![23, 29],
        }],
    }
}

fn written() -> GoWritten {
    GoWritten {
        what: "runtime.blockprofilerate".into(),
        address: "0xf21260".into(),
        old: 0,
        new: 26_000,
        restored: true,
        outcome: GoOutcome::Restored,
    }
}

fn collector() -> GoGc {
    GoGc {
        cycles: 23,
        forced: Some(2),
        pauses: times(23, 40, 900),
        pauses_lost: 0,
        pause_total_ns: 11 * MS,
        pause_share: 0.0011,
        stops: Some(times(46, 10, 600)),
        stopping: Some(times(46, 5, 90)),
        other_stops: None,
        cpu_ns: Some(230 * MS),
        cpu_share: Some(0.006),
        assist_share: Some(0.0),
        heap_live_bytes: Some(41_000_000),
        heap_goal_bytes: Some(82_000_000),
        memory_limit_bytes: None,
        limited: Some(false),
        mutex_wait_ns: Some(97 * MS),
        run_queue: Some(times(9_700, 1, 200)),
    }
}

/// `count` times, evenly from `low` to `high` microseconds.
pub(crate) fn times(count: u64, low: u64, high: u64) -> Hist {
    mixture(&[(count, low, high)])
}

fn mixture(parts: &[(u64, u64, u64)]) -> Hist {
    let mut collected = Histogram::new();
    for &(count, low, high) in parts {
        (0..count).for_each(|i| collected.record((low + (high - low) * i / count.max(2)) * 1000));
    }
    hist(&collected)
}

fn frame(function: &str, module: &str, source: Option<(&str, u32)>) -> StackFrame {
    StackFrame {
        function: Some(function.to_owned()),
        module: Some(module.to_owned()),
        file: source.map(|(file, _)| file.to_owned()),
        line: source.map(|(_, line)| line),
        inlined: false,
        address: "0x55d0c0de1234".to_owned(),
        offset: Some(0x34),
    }
}

fn stack(leaf: &[&str], functions: &[(&str, &str, u32)]) -> Vec<StackFrame> {
    let libc = leaf
        .iter()
        .map(|name| frame(name, "/usr/lib/x86_64-linux-gnu/libc.so.6", None));
    let own = functions
        .iter()
        .map(|&(name, file, line)| frame(name, "/srv/bin/checkout", Some((file, line))));
    libc.chain(own).collect()
}

#[expect(clippy::too_many_lines, reason = "every field of the report, once")]
fn base() -> Report {
    Report {
        schema: SCHEMA.to_owned(),
        ctrace: Ctrace {
            version: "0.1.0".to_owned(),
        },
        host: Host {
            hostname: "web-1".to_owned(),
            kernel: "6.8.0-45-generic".to_owned(),
            arch: "x86_64".to_owned(),
            cpus: 4,
        },
        window: Window {
            started_at: "2026-01-05T03:00:00.000Z".to_owned(),
            duration_ns: 10_000 * MS,
        },
        options: OptionsUsed {
            only: ["locks", "fds", "sched", "io"].map(str::to_owned).to_vec(),
            min_wait_ns: 1000,
            top: 10,
            older_ns: None,
            follow: false,
        },
        targets: vec![Target {
            pid: 4242,
            comm: "checkout".to_owned(),
            exe: Some("/srv/bin/checkout".to_owned()),
            cmdline: ["/srv/bin/checkout", "--port", "8080"]
                .map(str::to_owned)
                .to_vec(),
            uid: Some(1000),
            container: None,
            runtime: "native".to_owned(),
            threads: 12,
            started_at: Some("2026-01-01T00:00:00.000Z".to_owned()),
            exited: false,
        }],
        probes: vec![
            Probe {
                name: "sched_switch".to_owned(),
                attach: "tp_btf".to_owned(),
                hits: Some(120_345),
                run_ns: Some(24_069_000),
                missed: Some(0),
            },
            Probe {
                name: "fd_install".to_owned(),
                attach: "fentry".to_owned(),
                hits: None,
                run_ns: None,
                missed: None,
            },
        ],
        losses: Losses {
            ring_full: 0,
            fd_ring_full: 0,
            map_full: 0,
            stack_failed: 0,
            stack_pending: 0,
            go_stack_pending: 0,
            unmatched: 0,
            go_unmatched: 0,
            folded: 0,
            go_folded: 0,
            compat: 0,
            control_truncated: 0,
            user_fault: 0,
            unknown_record: 0,
            switch_unseen: 0,
            samples: 0,
            names: None,
            stack_failed_by: BTreeMap::new(),
            complete: true,
        },
        overhead: Overhead {
            kernel_ns: Some(24 * MS),
            user_cpu_ns: 61 * MS,
            kernel_sampled_ns: Some(100 * MS),
            rss_bytes: 9_100_000,
            maps_bytes: Some(21_500_000),
            cpu_percent: Some(0.85),
            symbolize_peak_rss_bytes: Some(38_200_000),
            symbolize_cpu_ns: Some(97 * MS),
            memos: StacksHad {
                recognised: 100_000,
                copied: 120,
                hit_rate: Some(0.998_801),
                agreed: 97,
                disagreed: 0,
                stale: 0,
                unfit: 2,
                dropped: 0,
                memos: 41,
            },
            budget: None,
            go_probes: Vec::new(),
        },
        stacks: BTreeMap::new(),
        locks: Some(Vec::new()),
        blocked: Some(Vec::new()),
        time: None,
        cpu: None,
        threads: None,
        run_queue: Some(RunQueue {
            hist: times(2000, 3, 90),
            by_thread: vec![RunQueueThread {
                tid: 4250,
                comm: "worker-3".to_owned(),
                hist: times(700, 3, 90),
            }],
            preempted: 23,
            woken: 1977,
            throttled_ns: Some(0),
            throttled_periods: Some(0),
            slices: Some(slices(&times(2000, 3, 90))),
        }),
        waiting_now: Vec::new(),
        fds: Some(Fds {
            window_ns: Some(10_000_000_000),
            open_at_start: 31,
            open_at_end: 31,
            limit: Some(1024),
            opened: 0,
            closed: 0,
            time_to_limit_ns: None,
            unseen_births: 0,
            unseen_deaths: 0,
            unseen_kinds: Vec::new(),
            by_stack: Vec::new(),
            shared: Vec::new(),
        }),
        go: None,
        go_others: Vec::new(),
        memory: None,
        deadlocks: Vec::new(),
        findings: Vec::new(),
        hints: Vec::new(),
    }
}

/// A distribution in equal parts, the first of which has what is left over.
fn slices(wait: &Hist) -> Slices {
    let spread = |whole: u64| {
        let part = whole / 19;
        let mut parts = vec![part; 19];
        parts[0] = whole - 18 * part;
        parts
    };
    Slices {
        slice_ns: 1 << 29,
        counts: spread(wait.count),
        totals_ns: spread(wait.total_ns),
    }
}

pub(crate) fn lock(id: &str, name: &str, kind: LockKind, wait: Hist) -> Lock {
    Lock {
        slices: Some(slices(&wait)),
        id: id.to_owned(),
        pid: 4242,
        address: Some("0x55d0c0fe5040".to_owned()),
        name: Some(name.to_owned()),
        kind,
        idle: false,
        waits: wait.count,
        run_queue: times(wait.count, 4, 60),
        outcomes: Outcomes {
            handed_over: wait.count,
            timed_out: 0,
            interrupted: 0,
            unknown: 0,
        },
        wait,
        waiters: Vec::new(),
        wakers: Vec::new(),
        holders: Vec::new(),
        hold: None,
        utilisation: None,
        covered_ns: None,
    }
}

fn blocked(reason: Reason, stack: Option<&str>, wait: Hist) -> Blocked {
    Blocked {
        slices: Some(slices(&wait)),
        reason,
        pid: 4242,
        stack: stack.map(str::to_owned),
        count: wait.count,
        total_ns: wait.total_ns,
        max_ns: wait.max_ns,
        wait,
        peer: None,
        kernel_stack: None,
    }
}

fn thread(tid: u32, comm: &str, running_ms: u64, runnable_ms: u64, blocked: &[(Reason, u64)]) -> ThreadTime {
    ThreadTime {
        pid: 4242,
        tid: Some(tid),
        comm: comm.to_owned(),
        threads: 1,
        running_ns: running_ms * MS,
        runnable_ns: runnable_ms * MS,
        blocked_ns: blocked.iter().map(|&(reason, ms)| (reason, ms * MS)).collect(),
    }
}

fn total(by_thread: Vec<ThreadTime>) -> Time {
    let mut blocked_ns = BTreeMap::new();
    for (&reason, &ns) in by_thread.iter().flat_map(|thread| &thread.blocked_ns) {
        *blocked_ns.entry(reason).or_insert(0) += ns;
    }
    Time {
        running_ns: by_thread.iter().map(|thread| thread.running_ns).sum(),
        runnable_ns: by_thread.iter().map(|thread| thread.runnable_ns).sum(),
        blocked_ns,
        steal_ns: Some(12 * MS),
        by_thread,
    }
}

/// A contended lock, another that few waits are known of, an idle pool, and a descriptor leak.
pub(crate) fn contended() -> Report {
    let mut report = base();
    report.stacks = contended_stacks();
    report.time = Some(total(vec![
        thread(4242, "checkout", 120, 4, &[(Reason::Accept, 9876)]),
        thread(
            4250,
            "worker-3",
            900,
            20,
            &[(Reason::Futex, 9000), (Reason::SocketRead, 80)],
        ),
        ThreadTime {
            tid: None,
            comm: "others".to_owned(),
            threads: 10,
            ..thread(0, "", 1100, 35, &[(Reason::Futex, 98_000), (Reason::FileIo, 865)])
        },
    ]));
    report.cpu = Some(cpu());
    report.threads = Some(threads());
    report.locks = Some(contended_locks());
    report.blocked = Some(vec![
        Blocked {
            peer: Some("10.0.0.7:5432".to_owned()),
            ..blocked(Reason::SocketRead, Some("5"), times(400, 100, 300))
        },
        Blocked {
            kernel_stack: Some(
                ["io_schedule", "folio_wait_bit_common", "filemap_fault"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            ..blocked(Reason::FileIo, None, times(97, 2000, 15_000))
        },
    ]);
    report.waiting_now = (0..5)
        .map(|i| WaitingNow {
            pid: 4242,
            tid: 4251 + i,
            comm: format!("worker-{}", 4 + i),
            reason: Reason::Futex,
            lock: Some("pool".to_owned()),
            address: Some("0x55d0c0fe9000".to_owned()),
            since_ns: (i > 0).then_some(u64::from(i) * 700 * MS),
            stack: Some("4".to_owned()),
        })
        .collect();
    report.fds = Some(leaking_fds());
    report.go = Some(goroutines());
    report.memory = Some(Memory {
        rss_start: 210_000_000,
        rss_end: 214_000_000,
        growth_bytes_per_s: 400_000.0,
        touched_bytes: Some(4_100_000),
        samples: 77,
        by_process: vec![MemoryProcess {
            pid: 4242,
            rss_start: 210_000_000,
            rss_end: 214_000_000,
            own_start: 190_000_000,
            own_end: 194_000_000,
            growth_bytes_per_s: Some(400_000.0),
            growth_interval_bytes_per_s: Some([380_000.0, 420_000.0]),
            verdict: Verdict::Growing,
            read_ns: 10_000 * MS,
            touched_bytes: Some(4_100_000),
            samples: 77,
            p_value: Some(0.000_04),
            room_bytes: Some(2_000_000_000),
            time_to_limit_ns: Some(5_000_000 * MS),
        }],
        by_stack: vec![MemoryStack {
            pid: 4242,
            stack: Some("3".to_owned()),
            bytes: 3_900_000,
            growth_bytes_per_s: 390_000.0,
            share: 0.95,
            samples: 73,
        }],
    });
    report.deadlocks = vec![Deadlock {
        pid: 4242,
        certainty: Certainty::Proven,
        waiting_ns: 7_000_000_000,
        behind: 3,
        cycle: [(4260, "orders", "stock"), (4261, "stock", "orders")]
            .map(|(tid, holds, waits_for)| DeadlockLink {
                tid,
                holds: Some(holds.to_owned()),
                waits_for: waits_for.to_owned(),
                stack: Some("1".to_owned()),
            })
            .to_vec(),
    }];
    report.findings = contended_findings();
    report
}

fn contended_stacks() -> BTreeMap<StackKey, Vec<StackFrame>> {
    let futex = [
        "__futex_abstimed_wait_common",
        "__lll_lock_wait",
        "pthread_mutex_lock",
    ];
    let main = ("worker_main", "src/server.cc", 88);
    let mut inlined = stack(
        &futex,
        &[
            ("std::mutex::lock", "/usr/include/c++/13/mutex", 113),
            ("cache_get", "src/cache.cc", 41),
        ],
    );
    inlined[3].inlined = true;
    inlined.push(StackFrame {
        function: None,
        file: None,
        line: None,
        ..frame("", "/srv/lib/plugin.so", None)
    });
    BTreeMap::from([
        ("1".to_owned(), inlined),
        (
            "2".to_owned(),
            stack(
                &["__lll_lock_wake", "pthread_mutex_unlock"],
                &[
                    ("cache_refill", "src/cache.cc", 97),
                    ("handle_request", "src/server.cc", 51),
                    main,
                ],
            ),
        ),
        (
            "3".to_owned(),
            stack(
                &["__socket"],
                &[
                    ("dial", "src/db.cc", 17),
                    ("Db::connect", "src/db.cc", 44),
                    ("retry_once", "src/retry.cc", 9),
                ],
            ),
        ),
        (
            "4".to_owned(),
            stack(&["pthread_cond_wait"], &[("pool_take", "src/pool.cc", 30), main]),
        ),
        (
            "5".to_owned(),
            stack(&["__libc_recv"], &[("Db::query", "src/db.cc", 71), main]),
        ),
    ])
}

fn contended_locks() -> Vec<Lock> {
    let waiter = |stack: Option<&str>, waits, total_ms: u64, max_ms: u64| Waiter {
        stack: stack.map(str::to_owned),
        waits,
        total_ns: total_ms * MS,
        max_ns: max_ms * MS,
    };
    let wakes = |stack: Option<&str>, wakes| WakerRow {
        stack: stack.map(str::to_owned),
        pid: 4242,
        wakes,
    };
    vec![
        Lock {
            outcomes: Outcomes {
                handed_over: 1990,
                timed_out: 7,
                interrupted: 2,
                unknown: 1,
            },
            waiters: vec![
                waiter(Some("1"), 1900, 149_000, 813),
                waiter(None, 100, 2000, 801),
            ],
            wakers: vec![wakes(Some("2"), 1960), wakes(None, 40)],
            holders: vec![Holder {
                stack: Some("2".to_owned()),
                tid: 4250,
                total_ns: 9300 * MS,
                state: "blocked".to_owned(),
                reason: Some(Reason::FileIo),
            }],
            hold: Some(times(9100, 200, 1800)),
            utilisation: Some(0.93),
            covered_ns: None,
            ..lock(
                "cache",
                "cache_mutex",
                LockKind::Mutex,
                mixture(&[(1840, 9000, 15_000), (160, 780_000, 813_000)]),
            )
        },
        Lock {
            waiters: vec![waiter(Some("5"), 23, 412, 21)],
            wakers: vec![wakes(Some("2"), 23)],
            ..lock(
                "stats",
                "checkout+0x4f80",
                LockKind::Rwlock,
                times(23, 14_900, 21_000),
            )
        },
        Lock {
            idle: true,
            address: None,
            name: None,
            waiters: vec![waiter(Some("4"), 150, 64_000, 1800)],
            ..lock("pool", "", LockKind::Cond, times(150, 100_000, 754_000))
        },
    ]
}

fn leaking_fds() -> Fds {
    let example = |fd: i32, age_ms: u64| FdExample {
        fd,
        target: Some(format!("socket:[{}]", 91_000 + fd)),
        local: Some("10.0.0.5:41872".to_owned()),
        peer: Some("10.0.0.7:5432".to_owned()),
        tcp_state: Some("CLOSE_WAIT".to_owned()),
        unread_bytes: Some(1),
        age_ns: Some(age_ms * MS),
    };
    let file = FdExample {
        target: Some("/var/lib/checkout/orders.db".to_owned()),
        local: None,
        peer: None,
        tcp_state: None,
        unread_bytes: None,
        age_ns: None,
        ..example(5, 0)
    };
    Fds {
        window_ns: Some(10_000_000_000),
        open_at_start: 31,
        open_at_end: 72,
        limit: Some(1024),
        opened: 138,
        closed: 97,
        time_to_limit_ns: Some(232_000 * MS),
        unseen_births: 2,
        unseen_deaths: 1,
        unseen_kinds: vec!["io_uring".to_owned()],
        by_stack: vec![
            FdStack {
                pid: 4242,
                stack: Some("3".to_owned()),
                without_stack: None,
                asked_by: vec![asked_by()],
                call: Some("socket".to_owned()),
                kinds: BTreeMap::from([(FdKind::Socket, 41)]),
                opened: 41,
                closed: 0,
                live: 41,
                live_at_start: 0,
                verdict: Verdict::Leaking,
                confidence: 0.97,
                growth_per_s: 4.1,
                growth_interval_per_s: Some([3.2, 5.0]),
                stays: Some(1.0),
                born_by_quarter: [10, 10, 11, 10],
                period_ns: Some(5300 * MS),
                steps: vec![Step {
                    period_ns: 5300 * MS,
                    size: 20,
                    p_value: 3e-7,
                }],
                age: times(41, 100_000, 9_900_000),
                examples: vec![example(33, 9900), example(35, 9650)],
            },
            FdStack {
                pid: 4242,
                stack: None,
                without_stack: Some("before_attach".to_owned()),
                asked_by: Vec::new(),
                call: None,
                kinds: BTreeMap::from([(FdKind::File, 9), (FdKind::Epoll, 1), (FdKind::Socket, 21)]),
                opened: 0,
                closed: 0,
                live: 31,
                live_at_start: 31,
                verdict: Verdict::Steady,
                confidence: 1.0,
                growth_per_s: 0.0,
                growth_interval_per_s: None,
                stays: None,
                born_by_quarter: [0; 4],
                period_ns: None,
                steps: Vec::new(),
                age: times(0, 0, 0),
                examples: vec![file],
            },
        ],
        shared: vec![FdShared {
            pid: 4242,
            stack: Some("3".to_owned()),
            askers: 200,
            opened: 97,
            closed: 23,
            live: 74,
            verdict: Verdict::Growing,
            confidence: 0.5,
            growth_per_s: 7.4,
        }],
    }
}

fn contended_findings() -> Vec<Finding> {
    vec![
        Finding {
            id: "fd.leak".to_owned(),
            severity: Severity::Critical,
            confidence: 0.97,
            title: "41 sockets to 10.0.0.7:5432 opened by dial and never closed, +4.1/s".to_owned(),
            detail: "in steps every 5.3 s; all in CLOSE_WAIT; the limit of 1024 is reached in 3.9 min"
                .to_owned(),
            evidence: BTreeMap::from([
                ("live".to_owned(), json!(41)),
                ("examples".to_owned(), json!([33, 35])),
            ]),
            remedy: "Close the connection where retry_once gives it up.".to_owned(),
            stack: Some("3".to_owned()),
            lock: None,
        },
        Finding {
            id: "lock.contended".to_owned(),
            severity: Severity::High,
            confidence: 0.95,
            title: "cache_mutex: 2,000 waits took 151 s in 10 s; 8 % of them around 800 ms".to_owned(),
            detail: "waited for in cache_get, released by cache_refill; held 93 % of the time: past the knee"
                .to_owned(),
            evidence: BTreeMap::from([
                ("waits".to_owned(), json!(2000)),
                ("utilisation".to_owned(), json!(0.93)),
            ]),
            remedy:
                "Refill outside the lock, or split it: readers of other keys need not wait for one refill."
                    .to_owned(),
            stack: Some("1".to_owned()),
            lock: Some("cache".to_owned()),
        },
    ]
}

/// Four threads that compute on four CPUs, one of them pushed aside at times.
pub(crate) fn cpu_bound() -> Report {
    let mut report = base();
    let spin = |tid, running, runnable| thread(tid, "render", running, runnable, &[(Reason::Futex, 10)]);
    report.targets[0].comm = "render".to_owned();
    report.targets[0].threads = 4;
    report.stacks = contended_stacks();
    report.cpu = Some(cpu());
    report.time = Some(total(vec![
        spin(4243, 9900, 90),
        spin(4244, 9890, 100),
        spin(4245, 9870, 120),
        spin(4246, 8990, 1000),
    ]));
    if let Some(run_queue) = &mut report.run_queue {
        run_queue.preempted = 1900;
        run_queue.woken = 100;
        run_queue.throttled_ns = Some(1310 * MS);
        run_queue.throttled_periods = Some(17);
    }
    report
}

/// A pool that waits for work, and nothing else.
pub(crate) fn idle() -> Report {
    let mut report = contended();
    report.findings.clear();
    report.deadlocks.clear();
    report.memory = None;
    report.cpu = None;
    report.threads = None;
    report.go = None;
    report.targets[0].threads = 8;
    report.locks = Some(contended_locks().split_off(2));
    report.blocked = Some(Vec::new());
    report.fds = base().fds;
    report.time = Some(total(vec![
        thread(4242, "checkout", 3, 0, &[(Reason::Accept, 9997)]),
        ThreadTime {
            threads: 7,
            tid: None,
            ..thread(0, "others", 1, 0, &[(Reason::Futex, 69_999)])
        },
    ]));
    report
}

/// Full rings and failed stacks.
pub(crate) fn lossy() -> Report {
    let mut report = base();
    report.losses = Losses {
        ring_full: 1204,
        fd_ring_full: 3,
        stack_failed: 77,
        stack_pending: 310,
        go_stack_pending: 97,
        unmatched: 12,
        stack_failed_by: BTreeMap::from([("no_cfi".to_owned(), 70), ("unreadable_page".to_owned(), 7)]),
        complete: false,
        ..report.losses
    };
    report.overhead.kernel_ns = None;
    report.overhead.cpu_percent = None;
    report.run_queue = None;
    report.blocked = None;
    report.locks = Some(vec![Lock {
        waiters: vec![Waiter {
            stack: Some("gone".to_owned()),
            waits: 5,
            total_ns: 40 * MS,
            max_ns: 9 * MS,
        }],
        ..lock("x", "queue_mutex", LockKind::UnknownFutex, times(5, 7000, 9000))
    }]);
    if let Some(fds) = &mut report.fds {
        fds.by_stack = leaking_fds().by_stack;
        fds.by_stack[0].verdict = Verdict::Unknown;
        fds.by_stack[0].stack = None;
        fds.by_stack[0].without_stack = Some("stack_lost".to_owned());
    }
    report
}

/// What a hostile program can put into its names.
pub(crate) const HOSTILE: &str =
    "\u{1b}[2J\u{1b}]0;owned\u{7}\r\n\u{202e}txt\u{9b}31m\u{fffd}\u{200b}\t\"\\é";

/// The contended report with [`HOSTILE`] behind every string in it that a target can choose.
pub(crate) fn hostile() -> Report {
    let mut document = serde_json::to_value(contended()).unwrap();
    poison(&mut document);
    let mut report: Report = serde_json::from_value(document).unwrap();
    report.targets[0].comm.push_str(&"y".repeat(300));
    report
}

fn poison(value: &mut serde_json::Value) {
    const WORDS: [&str; 10] = [
        "certainty",
        "does",
        "outcome",
        "kind",
        "kinds",
        "reason",
        "severity",
        "verdict",
        "blocked_ns",
        "schema",
    ];
    match value {
        serde_json::Value::String(text) => text.push_str(HOSTILE),
        serde_json::Value::Array(items) => items.iter_mut().for_each(poison),
        serde_json::Value::Object(fields) => {
            for (key, field) in fields
                .iter_mut()
                .filter(|(key, _)| !WORDS.contains(&key.as_str()))
            {
                if key == "stacks" {
                    let stacks = std::mem::take(field);
                    let renamed = stacks.as_object().unwrap().iter();
                    *field = renamed
                        .map(|(id, frames)| (format!("{id}{HOSTILE}"), frames.clone()))
                        .collect();
                }
                poison(field);
            }
        }
        _ => {}
    }
}
