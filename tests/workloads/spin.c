// N threads that do nothing but compute: between `go` and `stop` they take all the CPU they get, before and
// after they sleep. So whoever reads /proc/PID/task/TID/schedstat before `go` and after `done` has exactly what
// the kernel counted in between. Each thread also says how long it was kept from a CPU by its own clocks:
// `truth off_cpu_TID NS`, from `go` until it stops, less its CPU time. It never sleeps in between.
#include "workload.h"

static int start_turn, rest_turn, finished_turn;
static volatile int stop;
static long go_ns;
static struct { pid_t tid; long off_cpu_ns; } kept[1024];
static int keepers;

static long ns_of(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

NAMED static unsigned long spin_here(unsigned long x) {
    for (int i = 0; i < 100000; i++) x = x * 6364136223846793005UL + 1442695040888963407UL;
    KEEP_FRAME();
    return x;
}

NAMED static void *spin_main(void *unused) {
    turn_take(start_turn);
    long cpu = ns_of(CLOCK_THREAD_CPUTIME_ID);
    unsigned long x = 1;
    while (!stop) x = spin_here(x);
    long off_cpu = ns_of(CLOCK_MONOTONIC) - go_ns - (ns_of(CLOCK_THREAD_CPUTIME_ID) - cpu);
    int at = __atomic_fetch_add(&keepers, 1, __ATOMIC_RELAXED);
    kept[at].tid = own_tid();
    kept[at].off_cpu_ns = off_cpu;
    turn_give(finished_turn);
    turn_take(rest_turn);
    return x == 0 ? NULL : unused;
}

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 1;
    start_turn = turn_new();
    rest_turn = turn_new();
    finished_turn = turn_new();
    for (int i = 0; i < n; i++) thread_start(spin_main);
    say_ready();
    must(n > 0 && n <= 1024, "threads");
    expect_line("go");
    go_ns = ns_of(CLOCK_MONOTONIC);
    for (int i = 0; i < n; i++) turn_give(start_turn);
    printf("spinning\n");
    expect_line("stop");
    stop = 1;
    for (int i = 0; i < n; i++) turn_take(finished_turn);
    truth("threads", n + 1);
    for (int i = 0; i < n; i++) {
        char key[32];
        snprintf(key, sizeof key, "off_cpu_%d", kept[i].tid);
        truth(key, kept[i].off_cpu_ns);
    }
    say_done();
    return 0;
}
