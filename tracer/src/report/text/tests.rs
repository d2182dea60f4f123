use super::*;
use crate::report::sample;

const PLAIN: TextOptions = TextOptions {
    width: 100,
    color: false,
    top: 10,
    verbose: false,
};

fn screen(report: &Report, options: &TextOptions) -> Vec<String> {
    View {
        report,
        options,
        page: Page::new(options.width, options.color),
    }
    .screen()
    .0
}

#[test]
fn contended_and_leaking() {
    insta::assert_snapshot!(render(&sample::contended(), &PLAIN), @"
    checkout (pid 4242), native, 12 threads
    traced 10.0 s from 2026-01-05T03:00:00.000Z on web-1
    Where the time went: 0.21 of 4 CPUs busy, 120 s of thread-time
      running 1.8 % (2.12 s), runnable < 0.1 % (59.0 ms), blocked 98 % (118 s): futex 89 %, of it 60 %
      idle; accept 8.2 %; file io 0.7 %
    DEADLOCK: 4260 cache_get → 4261 cache_get → 4260

    Findings (2)
      CRITICAL  41 sockets to 10.0.0.7:5432 opened by dial and never closed, +4.1/s
                in steps every 5.3 s; all in CLOSE_WAIT; the limit of 1024 is reached in 3.9 min
      HIGH      cache_mutex: 2,000 waits took 151 s in 10 s; 8 % of them around 800 ms
                waited for in cache_get, released by cache_refill; held 93 % of the time: past the knee

    Locks (1 of 2)  kind   waits  total      p50     p99     max
      cache_mutex   mutex  2,000  149 s  12.3 ms  809 ms  813 ms
        waits in cache_get → woken by cache_refill, taken at least 93 % of the time

    Descriptors: 31 → 72 open, 138 opened, 97 closed, limit 1,024 reached in 232 s
    Leak suspects  live   growth  kind    call    created by
      leaking        41  +4.10/s  socket  socket  dial ← Db::connect ← retry_once

    Run queue  p50 46.0 us, p99 89.0 us, max 89.0 us; not throttled; 1,977 woken, 23 preempted
    Losses     complete: nothing lost
    Own cost   0.85 % of one CPU (probes 24.0 ms, user space 61.0 ms), 30.6 MB; 38.2 MB for the report

    Findings, and what to do
      CRITICAL  dial: fd.leak, 97 % sure
        → Close the connection where retry_once gives it up (stacks: Descriptors, below)
      HIGH      cache_mutex: lock.contended, 95 % sure
        → Refill outside the lock, or split it: readers of other keys need not wait for one refill
        (stacks: Locks, below)

    Deadlock for 7.00 s: each waits for what the next holds; 3 more behind
      4260 holds orders, waits for stock
          std::mutex::lock  /usr/include/c++/13/mutex:113  (inlined)
          cache_get  src/cache.cc:41
          plugin.so+0x34
      4261 holds stock, waits for orders
          std::mutex::lock  /usr/include/c++/13/mutex:113  (inlined)
          cache_get  src/cache.cc:41
          plugin.so+0x34

    Locks, by time waited for them
      cache_mutex: mutex at 0x55d0c0fe5040, pid 4242
        2,000 waits, 149 s blocked: p50 12.3 ms, p99 809 ms, max 813 ms
        two populations: 92 % around 12.0 ms, 8.0 % around 796 ms
        held, 9,100 times that were seen: p50 999 us, p99 1.78 ms, max 1.80 ms
        ended by: another thread 1,990, time-out 7, signal 2, cannot be told 1
        waited in, 1,900 waits, 149 s, longest 813 ms
            std::mutex::lock  /usr/include/c++/13/mutex:113  (inlined)
            cache_get  src/cache.cc:41
            plugin.so+0x34
        waited in, 100 waits, 2.00 s, longest 801 ms
            (no stack)
        woken 1,960 times by
            pthread_mutex_unlock  libc.so.6
            cache_refill  src/cache.cc:97
            handle_request  src/server.cc:51
            worker_main  src/server.cc:88
        woken 40 times by
            (no stack)
        held 9.30 s while blocked (file io), last by thread 4250, in
            pthread_mutex_unlock  libc.so.6
            cache_refill  src/cache.cc:97
            handle_request  src/server.cc:51
            worker_main  src/server.cc:88
    Other locks        kind    waits   total      p50      p99      max  woken
      checkout+0x4f80  rwlock     23  410 ms  17.8 ms  20.7 ms  20.7 ms     23
    Threads without work
      idle: 5 threads in pool_take (cond), 150 waits, 63.7 s

    Descriptors, by the stack that opened them
      leaking (97 % sure): 41 live by socket, 41 opened, 0 closed, 0 at start, +4.10/s, in steps every
      5.30 s
        age: p50 4.88 s, p99 9.66 s (n=41, 9.19–9.66), max 9.66 s
            __socket  libc.so.6
            dial  src/db.cc:17
            Db::connect  src/db.cc:44
            retry_once  src/retry.cc:9
          in a goroutine that main.reload made
            pthread_cond_wait  libc.so.6
            pool_take  src/pool.cc:30
            worker_main  src/server.cc:88
        e.g. fd  what            ends                            state                   age
             33  socket:[91033]  10.0.0.5:41872 → 10.0.0.7:5432  CLOSE_WAIT 1 unread  9.90 s
             35  socket:[91035]  10.0.0.5:41872 → 10.0.0.7:5432  CLOSE_WAIT 1 unread  9.65 s
      steady  0 opened, 0 closed, 31 live  (before attach)
      2 found open whose birth was not seen; 1 found closed whose death was not seen; this kernel shows
      no stack for: io_uring

    Goroutines of 4242 (go1.24.1): 811 alive, 14 running, 797 waiting
             live   growth  doing       oldest  where                            created by
      leaking   797  +9.70/s  chan send   2.30 s  dial ← Db::connect ← retry_once  main.fanOut
      steady     14      0/s  running    18.0 us  (no stack)
      leaking (71 % sure): 797 in chan send, 774 came, 0 left, 23 at start, +9.70/s
        for at least: p50 1.15 s, p99 2.28 s (n=797, 2.26–2.29), max 2.30 s
        they wait on 251 different ones, 5 of them on the channel 0xc00011a0c0, without a buffer (255 of
        256 asked)
        connections: 97 to https://stock.example:443 by http://proxy.example:3128
            __socket  libc.so.6
            dial  src/db.cc:17
            Db::connect  src/db.cc:44
            retry_once  src/retry.cc:9
            created by main.fanOut  /srv/src/fan.go:97
          in a goroutine that main.reload made
            pthread_cond_wait  libc.so.6
            pool_take  src/pool.cc:30
            worker_main  src/server.cc:88
      Time by samples      time  95 %                 samples  where
      chan send        13.3 min  11.7 min … 15.0 min   40,100  dial ← Db::connect ← retry_once
      Pool 0xc0000b6000 of 10 connections: 10 open, 0 idle; 1,700 waits (18.7 s in all); 1,700 of 8,191
      requests waited: p50 405 us, p99 793 us, max 800 us; 3 gave up; exhausted 96 % of the time, 11.3
      waiting on average
      23 collections, pauses p50 451 us, max 862 us, 0.1 % of the time stopped, 0.6 % of its CPUs;
      41.0 MB of heap alive, the next at 82.0 MB; goroutines ready to run wait for p50 100 us, p99
      197 us
      101 snapshots, now one every 20.0 ms, 31.0 ms of CPU; 900 stacks walked, 79,000 found unchanged; 7
      moved while they were read, not shown

    What --go-write brought of 4242
      Blocked, by who waited    time  count     mean  where
      __socket                970 ms     23  42.2 ms  dial ← Db::connect ← retry_once
      Counted by the runtime: one wait for each 10.0 us blocked, the others made up for
      1 collection searched for leaks: 97 goroutines leaked for good
        97 in chan send: dial ← Db::connect ← retry_once, created by main.fanOut
      Written: runtime.blockprofilerate at 0xf21260, 26000 instead of 0: put back, and read back

    Blocked, by reason  sleeps    total      p50      p99      max  in
      file io               97   818 ms  8.44 ms  14.9 ms  14.9 ms  kernel: io_schedule ← …
      socket read          400  79.8 ms   199 us   297 us   299 us  (10.0.0.7:5432) Db::query ← …

    Asleep at the end  reason  since           in
      5 threads        futex   before tracing  pool_take ← worker_main

    Time by thread      on CPU  running  runnable  blocked  mostly on
      checkout (4242)   120 ms    1.2 %   < 0.1 %     99 %  accept 9.88 s
      worker-3 (4250)   900 ms    9.0 %     0.2 %     91 %  futex 9.00 s
      10 other threads  1.10 s    1.1 %   < 0.1 %     99 %  futex 98.0 s
      the hypervisor took 12.0 ms from this host's CPUs

    Threads by who made them               made  ended  live  asleep
      cache_get ← plugin.so+0x34  leaking    97      3    94  90 in dial

    Memory: 210 MB → 214 MB resident, +400 kB/s
      First touched in                 still there  share  samples
      dial ← Db::connect ← retry_once      3.90 MB   95 %       73

    -v adds whole stacks, distributions, run queues and probes; the JSON has every row.
    ");
}

#[test]
fn cpu_bound() {
    insta::assert_snapshot!(render(&sample::cpu_bound(), &PLAIN), @"
    render (pid 4242), native, 4 threads
    traced 10.0 s from 2026-01-05T03:00:00.000Z on web-1
    Where the time went: CPU-BOUND (4 of 4 threads), 3.87 of 4 CPUs busy, 40.0 s of thread-time
      running 97 % (38.6 s), runnable 3.3 % (1.31 s), blocked 0.1 % (40.0 ms): futex 0.1 %

    Findings: nothing wrong found

    Locks: no contention

    Descriptors: 31 → 31 open, 0 opened, 0 closed, limit 1,024; no leak suspects

    On CPU     63 % cache_get
    Run queue  p50 46.0 us, p99 89.0 us, max 89.0 us; throttled 1.31 s in 17 periods; 1,900 preempted
    Losses     complete: nothing lost
    Own cost   0.85 % of one CPU (probes 24.0 ms, user space 61.0 ms), 30.6 MB; 38.2 MB for the report

    Time by thread   on CPU  running  runnable  blocked  mostly on
      render (4243)  9.90 s     99 %     0.9 %    0.1 %  futex 10.0 ms
      render (4244)  9.89 s     99 %     1.0 %    0.1 %  futex 10.0 ms
      render (4245)  9.87 s     99 %     1.2 %    0.1 %  futex 10.0 ms
      render (4246)  8.99 s     90 %      10 %    0.1 %  futex 10.0 ms
      the hypervisor took 12.0 ms from this host's CPUs

    On CPU                        samples  share  in kernel
      cache_get ← plugin.so+0x34      610   63 %      2.0 %
      … 1 more stack in the JSON
      other processes on this host: backup (pid 77) 5.10 s

    -v adds whole stacks, distributions, run queues and probes; the JSON has every row.
    ");
}

#[test]
fn idle_and_clean() {
    insta::assert_snapshot!(render(&sample::idle(), &PLAIN), @"
    checkout (pid 4242), native, 8 threads
    traced 10.0 s from 2026-01-05T03:00:00.000Z on web-1
    Where the time went: 0.00 of 4 CPUs busy, 80.0 s of thread-time
      running < 0.1 % (4.00 ms), runnable 0 % (0 ns), blocked 100 % (80.0 s): futex 87 %, of it 91 %
      idle; accept 12 %

    Findings: nothing wrong found

    Locks: no contention

    Descriptors: 31 → 31 open, 0 opened, 0 closed, limit 1,024; no leak suspects

    Run queue  p50 46.0 us, p99 89.0 us, max 89.0 us; not throttled; 1,977 woken, 23 preempted
    Losses     complete: nothing lost
    Own cost   0.85 % of one CPU (probes 24.0 ms, user space 61.0 ms), 30.6 MB; 38.2 MB for the report

    Threads without work
      idle: 5 threads in pool_take (cond), 150 waits, 63.7 s

    Asleep at the end  reason  since           in
      5 threads        futex   before tracing  pool_take ← worker_main

    Time by thread      on CPU  running  runnable  blocked  mostly on
      checkout (4242)  3.00 ms  < 0.1 %       0 %    100 %  accept 10.0 s
      7 other threads  1.00 ms  < 0.1 %       0 %    100 %  futex 70.0 s
      the hypervisor took 12.0 ms from this host's CPUs

    -v adds whole stacks, distributions, run queues and probes; the JSON has every row.
    ");
}

#[test]
fn lossy() {
    let options = TextOptions {
        verbose: true,
        ..PLAIN
    };
    insta::assert_snapshot!(render(&sample::lossy(), &options), @"
    checkout (pid 4242), native, 12 threads
    traced 10.0 s from 2026-01-05T03:00:00.000Z on web-1
    Where the time went: not measured

    Findings: nothing wrong found in what was seen, which is not all

    Locks          kind   waits    total      p50           p99 (95 %)      max
      queue_mutex  futex      5  39.0 ms  7.80 ms  8.60 ms (8.20–8.60)  8.60 ms
        waits in (no stack) → woken by ?

    Descriptors: 31 → 31 open, 0 opened, 0 closed, limit 1,024
    Leak suspects  live   growth  kind    call    created by
      unknown        41  +4.10/s  socket  socket  (stack lost)

    Run queue  not traced
    Losses     INCOMPLETE: verdicts are withheld
      1,204 records did not fit into the ring (waits are missing, totals too small)
      3 descriptor records did not fit (births or deaths missed, no leak verdicts)
      12 ends of waits without a beginning (those waits are not counted)
      … 3 more below
    Own cost   user space 61.0 ms, probes unknown, 30.6 MB; 38.2 MB for the report

    Locks, by time waited for them
      queue_mutex: futex at 0x55d0c0fe5040, pid 4242
        5 waits, 39.0 ms blocked: min 7.00 ms, p50 7.80 ms, p90 8.60 ms, p99 8.60 ms (n=5, 8.20–8.60),
        max 8.60 ms
        then for a CPU: min 4.00 us, p50 26.0 us, p90 48.0 us, p99 48.0 us (n=5, 37.0–48.0), max 48.0 us
        ended by: another thread 5
        waited in, 5 waits, 40.0 ms, longest 9.00 ms
            (no stack)

    Descriptors, by the stack that opened them
      unknown (97 % sure): 41 live by socket, 41 opened, 0 closed, 0 at start, +4.10/s, in steps every
      5.30 s
        kinds: 41 socket
        age: min 100 ms, p50 4.88 s, p90 8.71 s, p99 9.66 s (n=41, 9.19–9.66), max 9.66 s
            (stack lost)
          in a goroutine that main.reload made
            (no stack)
        e.g. fd  what            ends                            state                   age
             33  socket:[91033]  10.0.0.5:41872 → 10.0.0.7:5432  CLOSE_WAIT 1 unread  9.90 s
             35  socket:[91035]  10.0.0.5:41872 → 10.0.0.7:5432  CLOSE_WAIT 1 unread  9.65 s
      steady (100 % sure): 31 live, 0 opened, 0 closed, 31 at start, 0/s
        kinds: 9 file, 21 socket, 1 epoll
            (before attach)
        e.g. fd  what                                    age
              5  /var/lib/checkout/orders.db  before tracing

    Losses
      1,204 records did not fit into the ring (waits are missing, totals too small)
      3 descriptor records did not fit (births or deaths missed, no leak verdicts)
      12 ends of waits without a beginning (those waits are not counted)
      77 stacks could not be unwound (shown up to where they broke)
      213 stacks not copied, the ring was too full (counted for the lock, without stack)
      97 stacks of goroutines' parks not copied (counted for the channel, without stack)
      stacks failed by reason: no cfi 70, unreadable page 7

    Probes          attach     hits     time  per hit  missed
      sched_switch  tp_btf  120,345  24.1 ms   200 ns       0
      fd_install    fentry        ?        ?        ?       ?
    ");
}

#[test]
fn hostile_names() {
    let options = TextOptions {
        width: 80,
        verbose: true,
        top: 1,
        ..PLAIN
    };
    insta::assert_snapshot!(render(&sample::hostile(), &options), @r#"
    checkout\x1b…yyyyyyyyyyy (pid 4242), native\\x…x09"\\\\é, 12 threads
    traced 10.0 s from 2026-01-05T03:0…{200b}\x09"\\é on web-1\x1b[2J…0b}\x09"\\é
    Where the time went: 0.21 of 4 CPUs busy, 120 s of thread-time
      running 1.8 % (2.12 s), runnable < 0.1 % (59.0 ms), blocked 98 % (118 s):
      futex 89 %, of it 60 % idle; accept 8.2 %; file io 0.7 %
    DEADLOCK: 4260 cache_get\x1b[2J\x1b…fd}\u{200b}\x09"\\é → 4261
    cache_get\x1b[2J\x1b…fd}\u{200b}\x09"\\é → 4260

    Findings (2, 1 shown here)
      CRITICAL  41 sockets to 10.0.0.7:5432 opened by dial and never closed, +4.1/s…
                in steps every 5.3 s; all in CLOSE_WAIT; the limit of 1024 is reach…
                → Close the connection where retry_once gives it up.\x1b[2J\x1b]0;o…

    Locks (1 of 2)                      kind   waits  total      p50     p99     max
      cache_mutex\x1b[…u{200b}\x09"\\é  mutex  2,000  149 s  12.3 ms  809 ms  813 ms
        waits in cache_get\x1b[2J\x1b…fd}\u{20…"\\é, taken at least 93 % of the time

    Descriptors: 31 → 72 open, 138 opened, 97 closed, limit 1,024 reached in 232 s
    Leak suspects  live   growth  kind    call              created by
      leaking        41  +4.10/s  socket  socket\x…x09"\\é  dial\x1b[2J\…0b}\x09"\\é

    Run queue  p50 46.0 us, p99 89.0 us, max 89.0 us; 1,977 woken, 23 preempted
    Losses     complete: nothing lost
    Own cost   0.85 % of one CPU (probes 24.0 ms, user space 61.0 ms), 30.6 MB

    Findings, and what to do
      CRITICAL  41 sockets to 10.0.0.7:5432 opened by dial and never closed, +4.1/s…
        in steps every 5.3 s; all in CLOSE_WAIT; the limit of 1024 is reached in 3.9
        min\x1b[2J\x1b]0;owned\x07\x0d\x0a\u{2…}txt\u{9b}31m\u{fffd}\u{200b}\x09"\\é
        → Close the connection where retry_once gives it
        up.\x1b[2J\x1b]0;owned\x07\x0d\x0a\u{2…}txt\u{9b}31m\u{fffd}\u{200b}\x09"\\é
        fd.leak\x1b[2J\x1b]0…fd}\u{200b}\x09"\\é, 97 % sure: examples=[33,35]
        live=41
          __socket\x1b[2J\…u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
          dial\x1b[2J\x1…{200b}\x09"\\é  src/db.cc\x1b[2J\x1b…fd}\u{200b}\x09"\\é:17
          Db::connect\x1…{200b}\x09"\\é  src/db.cc\x1b[2J\x1b…fd}\u{200b}\x09"\\é:44
          retry_once\x1b[…{200b}\x09"\\é  src/retry.cc\x1b[2J\…fd}\u{200b}\x09"\\é:9
      HIGH      cache_mutex: 2,000 waits took 151 s in 10 s; 8 % of them around 800…
        waited for in cache_get, released by cache_refill; held 93 % of the time:
        past the
        knee\x1b[2J\x1b]0;owned\x07\x0d\x0a\u{…}txt\u{9b}31m\u{fffd}\u{200b}\x09"\\é
        → Refill outside the lock, or split it: readers of other keys need not wait
        for one
        refill.\x1b[2J\x1b]0;owned\x07\x0d\x0a…}txt\u{9b}31m\u{fffd}\u{200b}\x09"\\é
        lock.contended\x1b[2…fd}\u{200b}\x09"\\é, 95 % sure: utilisation=0.93
        waits=2000
          __futex_abstimed…u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
          __lll_lock_wait\…u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
          pthread_mutex_lo…u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
          std::mut…\x09"\\é  /usr/include/c++/13/…fd}\u{200b}\x09"\\é:113  (inlined)
          cache_get\x1b[…{200b}\x09"\\é  src/cache.cc\x1b[2J\…fd}\u{200b}\x09"\\é:41
          plugin.so\x1b[2J\x1b]0;owned\x07\x0d…9b}31m\u{fffd}\u{200b}\x09"\\é+0x34

    Deadlock for 7.00 s: each waits for what the next holds; 3 more behind
      4260 holds orders\x1b[2J\x1b]0;…fd}\u{2…ock\x1b[2J\x1b]0;o…fd}\u{200b}\x09"\\é
          __futex_abstimed…u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
          __lll_lock_wait\…u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
          pthread_mutex_lo…u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
          std::mut…\x09"\\é  /usr/include/c++/13/…fd}\u{200b}\x09"\\é:113  (inlined)
          cache_get\x1b[…{200b}\x09"\\é  src/cache.cc\x1b[2J\…fd}\u{200b}\x09"\\é:41
          plugin.so\x1b[2J\x1b]0;owned\x07\x0d…9b}31m\u{fffd}\u{200b}\x09"\\é+0x34
      4261 holds stock\x1b[2J\x1b]0;o…fd}\u{2…ders\x1b[2J\x1b]0;…fd}\u{200b}\x09"\\é
          __futex_abstimed…u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
          __lll_lock_wait\…u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
          pthread_mutex_lo…u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
          std::mut…\x09"\\é  /usr/include/c++/13/…fd}\u{200b}\x09"\\é:113  (inlined)
          cache_get\x1b[…{200b}\x09"\\é  src/cache.cc\x1b[2J\…fd}\u{200b}\x09"\\é:41
          plugin.so\x1b[2J\x1b]0;owned\x07\x0d…9b}31m\u{fffd}\u{200b}\x09"\\é+0x34

    Locks, by time waited for them
      cache_mutex\x1b[2J\x…fd}\u{200b}\x09"\\…utex at 0x55d0c0fe…}\x09"\\é, pid 4242
        2,000 waits, 149 s blocked: min 9.00 ms, p50 12.3 ms, p90 14.9 ms,
        p99 809 ms, p99.9 813 ms, max 813 ms
        two populations: 92 % around 12.0 ms, 8.0 % around 796 ms
        then for a CPU: min 4.00 us, p50 31.0 us, p90 54.0 us, p99 59.0 us,
        p99.9 59.0 us, max 59.0 us
        held, 9,100 times that were seen: min 200 us, p50 999 us, p90 1.64 ms,
        p99 1.78 ms, p99.9 1.80 ms, max 1.80 ms
        ended by: another thread 1,990, time-out 7, signal 2, cannot be told 1
        waited in, 1,900 waits, 149 s, longest 813 ms
            __futex_abstime…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            __lll_lock_wait…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            pthread_mutex_l…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            std::mut…x09"\\é  /usr/include/c++/1……fd}\u{200b}\x09"\\é:113  (inlined)
            cache_get\x1b…200b}\x09"\\é  src/cache.cc\x1b[2J\…fd}\u{200b}\x09"\\é:41
            plugin.so\x1b[2J\x1b]0;owned\x07\x0…b}31m\u{fffd}\u{200b}\x09"\\é+0x34
        waited in, 100 waits, 2.00 s, longest 801 ms
            (no stack)
        woken 1,960 times by
            __lll_lock_wake…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            pthread_mutex_u…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            cache_refill\…200b}\x09"\\é  src/cache.cc\x1b[2J\…fd}\u{200b}\x09"\\é:97
            handle_reques…200b}\x09"\\é  src/server.cc\x1b[2J…fd}\u{200b}\x09"\\é:51
            worker_main\x…200b}\x09"\\é  src/server.cc\x1b[2J…fd}\u{200b}\x09"\\é:88
        woken 40 times by
            (no stack)
        held 9.30 s while blocked\…x09"\\é (file io), last by thread 4250, in
            __lll_lock_wake…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            pthread_mutex_u…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            cache_refill\…200b}\x09"\\é  src/cache.cc\x1b[2J\…fd}\u{200b}\x09"\\é:97
            handle_reques…200b}\x09"\\é  src/server.cc\x1b[2J…fd}\u{200b}\x09"\\é:51
            worker_main\x…200b}\x09"\\é  src/server.cc\x1b[2J…fd}\u{200b}\x09"\\é:88
      … 1 more lock in the JSON
    Threads without work
      idle: 5 threads in pool_take\x1b[2J\x1b…00b}\x09"\\é (cond), 150 waits, 63.7 s

    Descriptors, by the stack that opened them
      leaking (97 % sure): 41 live by socket\x…x09"\\é, 41 opened, 0 closed, 0 at
      start, +4.10/s, in steps every 5.30 s
        kinds: 41 socket
        age: min 100 ms, p50 4.88 s, p90 8.71 s, p99 9.66 s (n=41, 9.19–9.66),
        max 9.66 s
            __socket\x1b[2J…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            dial\x1b[2J\x…200b}\x09"\\é  src/db.cc\x1b[2J\x1b…fd}\u{200b}\x09"\\é:17
            Db::connect\x…200b}\x09"\\é  src/db.cc\x1b[2J\x1b…fd}\u{200b}\x09"\\é:44
            retry_once\x1b…200b}\x09"\\é  src/retry.cc\x1b[2J\…fd}\u{200b}\x09"\\é:9
          in a goroutine that
          main.reload\x1b[2J\x1b]0;owned…b}31m\u{fffd}\u{200b}\x09"\\é made
            pthread_cond_wa…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            pool_take\x1b…200b}\x09"\\é  src/pool.cc\x1b[2J\x…fd}\u{200b}\x09"\\é:30
            worker_main\x…200b}\x09"\\é  src/server.cc\x1b[2J…fd}\u{200b}\x09"\\é:88
        e.g. fd  what             ends             state                         age
             33  socket:…x09"\\é  10.0.0.…x09"\\é  CLOSE_WA…x09"\\é 1 unread  9.90 s
      … 1 more stack in the JSON
      2 found open whose birth was not seen; 1 found closed whose death was not
      seen; this kernel shows no stack for: io_uring\x1b…0b}\x09"\\é

    Goroutines of 4242 (go1.24.1\x1b…0b}\x09…\é): 811 alive, 14 running, 797 waiting
             live   growth  doing           oldest  where           created by
      leaking   797  +9.70/s  chan se…09"\\é  2.30 s  dial\x1…09"\\é  main.fa…09"\\é
      … 1 more stack in the JSON
      leaking (71 % sure): 797 in chan send\x1b[…200b}\x09"\\é, 774 came, 0 left, 23
      at start, +9.70/s
        for at least: min 9.00 ms, p50 1.15 s, p90 2.07 s,
        p99 2.28 s (n=797, 2.26–2.29), max 2.30 s
        they wait on 251 different ones, 5 of them on the channel
        0xc00011a…\x09"\\é, without a buffer (255 of 256 asked)
        connections: 97 to
        http…\\é://stock.example:443\x1b[2J\x1b]0;o…{9b}31m\u{fffd}\u{200b}\x09"\\é
        by http://proxy.example:312…u{fffd}\u{200b}\x09"\\é
            __socket\x1b[2J…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            dial\x1b[2J\x…200b}\x09"\\é  src/db.cc\x1b[2J\x1b…fd}\u{200b}\x09"\\é:17
            Db::connect\x…200b}\x09"\\é  src/db.cc\x1b[2J\x1b…fd}\u{200b}\x09"\\é:44
            retry_once\x1b…200b}\x09"\\é  src/retry.cc\x1b[2J\…fd}\u{200b}\x09"\\é:9
            created by main.fanOut\x1b[2J\x1b]0;…go:97\x1b[2…u{fffd}\u{200b}\x09"\\é
          in a goroutine that
          main.reload\x1b[2J\x1b]0;owned…b}31m\u{fffd}\u{200b}\x09"\\é made
            pthread_cond_wa…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            pool_take\x1b…200b}\x09"\\é  src/pool.cc\x1b[2J\x…fd}\u{200b}\x09"\\é:30
            worker_main\x…200b}\x09"\\é  src/server.cc\x1b[2J…fd}\u{200b}\x09"\\é:88
      Time by samples         time  95 %                 samples  where
      chan send…\x09"\\é  13.3 min  11.7 min … 15.0 min   40,100  dial\x1b[…\x09"\\é
      Pool 0xc0000b6…\x09"\\é of 10 connections: 10 open, 0 idle; 1,700 waits
      (18.7 s in all); 1,700 of 8,191 requests waited: p50 405 us, p99 793 us,
      max 800 us; 3 gave up; exhausted 96 % of the time, 11.3 waiting on average
      23 collections, pauses p50 451 us, max 862 us, 0.1 % of the time stopped,
      0.6 % of its CPUs; 41.0 MB of heap alive, the next at 82.0 MB; goroutines
      ready to run wait for p50 100 us, p99 197 us
      101 snapshots, now one every 20.0 ms, 31.0 ms of CPU; 900 stacks walked,
      79,000 found unchanged; 7 moved while they were read, not shown

    What --go-write brought of 4242
      Blocked, by who waited        time  count     mean  where
      __socket\x1b[…00b}\x09"\\é  970 ms     23  42.2 ms  dial\x1b[2J\x…00b}\x09"\\é
      Counted by the runtime: one wait for each 10.0 us blocked, the others made up
      for
      1 collection searched for leaks: 97 goroutines leaked for good
        97 in chan send\x1b[…200b}\x09"\\é: dial\x1b[2J\x1b]0;ow…fd}\u{200b}\x09"\\é
        ← Db::connect\x1b[2J\x…fd}\u{200b}\x09"\\é ←
        retry_once\x1b[2J\x1…fd}\u{200b}\x09"\\é, created by
        main.fanOut\x1b[2J\x…fd}\u{200b}\x09"\\é
      Written: runtime.blockprofilerate…u{fffd}\u{200b}\x09"\\é at
      0xf21260\x…}\x09"\\é, 26000 instead of 0: put back, and read back

    Blocked, by reason
      file io: 97 sleeps, 818 ms, longest 14.9 ms
        97 sleeps, 818 ms: min 2.00 ms, p50 8.44 ms, p90 13.7 ms,
        p99 14.9 ms (n=97, 14.5–14.9), max 14.9 ms
            (no stack)
            kernel:
            io_schedule\x1b[2J\x1b]0;owned\x07\x…xt\u{9b}31m\u{fffd}\u{200b}\x09"\\é
            ←
            folio_wait_bit_common\x1b[2J\x1b]0;o…xt\u{9b}31m\u{fffd}\u{200b}\x09"\\é
            ←
            filemap_fault\x1b[2J\x1b]0;owned\x07…xt\u{9b}31m\u{fffd}\u{200b}\x09"\\é
      socket read: 400 sleeps, 79.8 ms, longest 299 us
        400 sleeps, 79.8 ms for
        10.0.0.7:5432\x1b[2J\x1b]0;own…b}31m\u{fffd}\u{200b}\x09"\\é: min 100 us,
        p50 199 us, p90 279 us, p99 297 us (n=400, 295–299), max 299 us
            __libc_recv\x1b…{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
            Db::query\x1b…200b}\x09"\\é  src/db.cc\x1b[2J\x1b…fd}\u{200b}\x09"\\é:71
            worker_main\x…200b}\x09"\\é  src/server.cc\x1b[2J…fd}\u{200b}\x09"\\é:88

    Asleep at the end  threads  reason  on             since           in
      worker-…51) + 4        5  futex   pool_t…09"\\é  before tracing  pool_t…09"\\é

    Time by thread                 on CPU  running  runnable  blocked  mostly on
      checkout\x1b……09"\\é (4242)  120 ms    1.2 %   < 0.1 %     99 %  accept 9.88 s
      … 11 more threads in the JSON
      the hypervisor took 12.0 ms from this host's CPUs

    Run queue by thread       delays    total      p50           p99 (95 %)      max
      worker-3\x1…\\é (4250)     700  32.2 ms  46.0 us  89.0 us (88.1–89.0)  89.0 us

    On CPU                                                 samples  share  in kernel
      cache_get\x1b[2J\x1b…fd}\u{200b}\x09"\\é ← …             610   63 %      2.0 %
      63 %:
        __futex_abstimed_…\u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
        __lll_lock_wait\x…\u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
        pthread_mutex_loc…\u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
        std::mute…}\x09"\\é  /usr/include/c++/13/…fd}\u{200b}\x09"\\é:113  (inlined)
        cache_get\x1b[2…u{200b}\x09"\\é  src/cache.cc\x1b[2J\…fd}\u{200b}\x09"\\é:41
        plugin.so\x1b[2J\x1b]0;owned\x07\x0d\…{9b}31m\u{fffd}\u{200b}\x09"\\é+0x34
      … 1 more stack in the JSON
      other processes on this host: backup\x…x09"\\é (pid 77) 5.10 s

    Threads by who made them             made  ended  live  asleep
      cache_get\x1…09"\\é+0x34  leaking    97      3    94  90 in dial\x…0b}\x09"\\é

    Memory: 210 MB → 214 MB resident, +400 kB/s
      First touched in                                   still there  share  samples
      dial\x1b[2J\x1b]0;ow…fd}\u{200b}\x09"\\é ← …           3.90 MB   95 %       73
      95 %:
        __socket\x1b[2J\x…\u{200b}\x09"\\é  libc.so.6\x1b[2J\x1b…fd}\u{200b}\x09"\\é
        dial\x1b[2J\x1b…u{200b}\x09"\\é  src/db.cc\x1b[2J\x1b…fd}\u{200b}\x09"\\é:17
        Db::connect\x1b…u{200b}\x09"\\é  src/db.cc\x1b[2J\x1b…fd}\u{200b}\x09"\\é:44
        retry_once\x1b[2…u{200b}\x09"\\é  src/retry.cc\x1b[2J\…fd}\u{200b}\x09"\\é:9

    Probes                       attach               hits     time  per hit  missed
      sched_switch…00b}\x09"\\é  tp_btf\x…x09"\\é  120,345  24.1 ms   200 ns       0
      fd_install\x…00b}\x09"\\é  fentry\x…x09"\\é        ?        ?        ?       ?
    "#);
}

#[test]
fn nothing_of_the_targets_choice_controls_the_terminal() {
    let text = render(
        &sample::hostile(),
        &TextOptions {
            verbose: true,
            ..PLAIN
        },
    );
    let bad: Vec<char> = text
        .chars()
        .filter(|&c| c != '\n' && (c.is_control() || "\u{202e}\u{200b}\u{fffd}".contains(c)))
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn the_first_screen_fits() {
    let mut crowded = sample::contended();
    crowded.losses = sample::lossy().losses;
    crowded.findings.extend(crowded.findings.clone());
    let locks = crowded.locks.get_or_insert_default();
    locks.extend(locks.clone());
    for (name, report) in sample::all().into_iter().chain([("crowded", crowded)]) {
        for (width, verbose) in [(80, false), (80, true), (100, false), (110, true)] {
            let options = TextOptions {
                width,
                verbose,
                ..PLAIN
            };
            let lines = screen(&report, &options);
            assert!(
                lines.len() <= 24,
                "{name} at {width}: {} lines\n{}",
                lines.len(),
                lines.join("\n")
            );
        }
    }
}

#[test]
fn lines_keep_to_the_width() {
    for (name, report) in sample::all() {
        for (width, verbose) in [(60, true), (80, true), (80, false), (110, true), (110, false)] {
            let options = TextOptions {
                width,
                verbose,
                ..PLAIN
            };
            let text = render(&report, &options);
            let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > width).collect();
            // Narrower than a screen, a table may stand out.
            assert!(wide.is_empty() || width < 80, "{name} at {width}: {wide:#?}");
        }
    }
}

#[test]
fn without_verbose_a_crowded_report_stays_short() {
    let mut report = sample::contended();
    // Rare, and worth the lines that it adds.
    report.deadlocks.clear();
    report.go = None;
    let locks = report.locks.as_mut().unwrap();
    let minor = locks[1].clone();
    locks.extend((0..40).map(|_| minor.clone()));
    locks[0].waiters = vec![locks[0].waiters[0].clone(); 7];
    locks[0].wakers = vec![locks[0].wakers[0].clone(); 5];
    let rows = &mut report.fds.as_mut().unwrap().by_stack;
    rows[0].examples[0].target = None;
    let mut churn = rows[0].clone();
    churn.verdict = crate::report::model::Verdict::Churn;
    (churn.opened, churn.closed, churn.live) = (23, 23, 0);
    rows.extend((0..5).map(|_| churn.clone()));
    let blocked = report.blocked.as_mut().unwrap();
    let mut brief = blocked[0].clone();
    brief.total_ns /= 1000;
    let same = blocked[0].clone();
    blocked.extend((0..9).map(|_| brief.clone()));
    blocked.extend((0..4).map(|_| same.clone()));

    let text = render(&report, &PLAIN);
    let lines = text.lines().count();
    assert!(lines <= 124, "{lines} lines\n{text}");
    for said in [
        "… 4 more waiter stacks in the JSON",
        "… 3 more waker stacks in the JSON",
        "… 32 more locks in the JSON",
        "churn   115 opened, 115 closed, 0 live  socket  dial ← Db::connect ← retry_once  5 stacks",
        "14 stacks, 3 shown",
        "socket:[91035]",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
    assert!(!text.contains("10.0.0.5:41872 → 10.0.0.7:5432  CLOSE_WAIT 1 unread  9.90 s"));
    let whole = TextOptions {
        verbose: true,
        ..PLAIN
    };
    assert!(render(&report, &whole).contains("CLOSE_WAIT 1 unread  9.90 s"));
}

#[test]
fn colour_changes_nothing_but_colour() {
    for (name, report) in sample::all() {
        let colored = render(&report, &TextOptions { color: true, ..PLAIN });
        assert!(colored.contains("\u{1b}[1m"), "{name}");
        let mut plain = String::new();
        for (at, piece) in colored.split("\u{1b}[").enumerate() {
            plain.push_str(if at == 0 {
                piece
            } else {
                piece.split_once('m').unwrap().1
            });
        }
        assert_eq!(plain, render(&report, &PLAIN), "{name}");
    }
}

#[test]
fn cpu_bound_is_said_of_what_computes_for_long() {
    let mut report = sample::idle();
    let spinning = sample::cpu_bound().time.unwrap().by_thread[3].clone();
    let by_thread = &mut report.time.as_mut().unwrap().by_thread;
    let mut brief = spinning.clone();
    (brief.running_ns, brief.runnable_ns) = (1_000_000, 0);
    brief.blocked_ns.clear();
    by_thread.push(brief);
    assert!(
        !render(&report, &PLAIN).contains("CPU-BOUND"),
        "one millisecond of life"
    );
    report.time.as_mut().unwrap().by_thread.push(spinning.clone());
    assert!(render(&report, &PLAIN).contains("CPU-BOUND (2 of 10 threads)"));
    let hungry = report.time.as_mut().unwrap().by_thread.last_mut().unwrap();
    (hungry.running_ns, hungry.runnable_ns) = (spinning.running_ns / 2, spinning.running_ns / 2);
    assert!(render(&report, &PLAIN).contains("CPU-BOUND and SHORT OF CPU"));
}

#[test]
fn an_empty_report_renders() {
    let mut report = sample::lossy();
    report.targets.clear();
    report.time = None;
    report.locks = None;
    report.fds = None;
    report.stacks.clear();
    let text = render(
        &report,
        &TextOptions {
            width: 0,
            top: 0,
            ..PLAIN
        },
    );
    assert!(text.contains("no process") && text.contains("not measured") && text.contains("not traced"));
}
