// Computes on as many threads as it is told to, until their CPU time by their own clocks reaches the second argument (ms):
//
//   burn  N MS   in `price_all` → `price_one` for three quarters of the time, and → `log_one` for the last; both are the same code
//   read  N MS   in `read_zeros`, which has the kernel clear memory
//   spin  N MS   all but one wait for a spin lock in `take_turn`, which the one has
//   yield N MS   the same, with sched_yield in `give_way`
//   wait  N MS   the same with a mutex: all but one sleep
//
// Truths: `cpu_ns` of all threads, `most_ns` of it by `price_one`.
#include <fcntl.h>

#include "workload.h"

static const char *mode;
static long wanted_ns, cpu_ns, most_ns;
static int start_turn, finished_turn;
static volatile long done_by_one;
static pthread_spinlock_t turn_spin;
static pthread_mutex_t turn_lock = PTHREAD_MUTEX_INITIALIZER;

static long own_cpu_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

#define MULTIPLY(x, times) \
    for (int i = 0; i < (times); i++) x = x * 6364136223846793005UL + 1442695040888963407UL

NAMED static unsigned long price_one(unsigned long x) {
    MULTIPLY(x, 300000);
    return x;
}

NAMED static unsigned long log_one(unsigned long x) {
    MULTIPLY(x, 100000);
    return x;
}

NAMED static void price_all(void) {
    unsigned long x = 1;
    for (;;) {
        long from = own_cpu_ns();
        if (from >= wanted_ns) break;
        x = price_one(x);
        __atomic_fetch_add(&most_ns, own_cpu_ns() - from, __ATOMIC_RELAXED);
        x = log_one(x);
        KEEP_FRAME();
    }
    must(x != 0, "product");
}

NAMED static void read_zeros(void) {
    static char zeros[1 << 20];
    int fd = open("/dev/zero", O_RDONLY);
    must(fd >= 0, "/dev/zero");
    while (own_cpu_ns() < wanted_ns) must(read(fd, zeros, sizeof zeros) > 0, "read");
    close(fd);
}

// The one that has it: computes, then lets go.
NAMED static void keep_turn(void) {
    unsigned long x = 1;
    while (own_cpu_ns() < wanted_ns) x = log_one(x);
    must(x != 0, "product");
    done_by_one = 1;
}

NAMED static void take_turn(void) {
    pthread_spin_lock(&turn_spin);
    KEEP_FRAME();
    pthread_spin_unlock(&turn_spin);
}

NAMED static void give_way(void) {
    while (!done_by_one) sched_yield();
    KEEP_FRAME();
}

NAMED static void wait_turn(void) {
    pthread_mutex_lock(&turn_lock);
    KEEP_FRAME();
    pthread_mutex_unlock(&turn_lock);
}

static void *burn_main(void *unused) {
    turn_take(start_turn);
    if (!strcmp(mode, "burn")) price_all();
    else if (!strcmp(mode, "read")) read_zeros();
    else if (!strcmp(mode, "spin")) take_turn();
    else if (!strcmp(mode, "yield")) give_way();
    else wait_turn();
    __atomic_fetch_add(&cpu_ns, own_cpu_ns(), __ATOMIC_RELAXED);
    turn_give(finished_turn);
    return unused;
}

static void *keep_main(void *unused) {
    if (!strcmp(mode, "spin")) pthread_spin_lock(&turn_spin);
    if (!strcmp(mode, "wait")) pthread_mutex_lock(&turn_lock);
    turn_give(finished_turn);
    turn_take(start_turn);
    keep_turn();
    if (!strcmp(mode, "spin")) pthread_spin_unlock(&turn_spin);
    if (!strcmp(mode, "wait")) pthread_mutex_unlock(&turn_lock);
    turn_give(finished_turn);
    return unused;
}

int main(int argc, char **argv) {
    must(argc == 4, "arguments");
    mode = argv[1];
    int n = atoi(argv[2]);
    wanted_ns = atol(argv[3]) * 1000000;
    start_turn = turn_new();
    finished_turn = turn_new();
    must(pthread_spin_init(&turn_spin, PTHREAD_PROCESS_PRIVATE) == 0, "pthread_spin_init");
    int keeps = strcmp(mode, "burn") != 0 && strcmp(mode, "read") != 0;
    if (keeps) {
        thread_start(keep_main);
        turn_take(finished_turn);
        n--;
    }
    for (int i = 0; i < n; i++) thread_start(burn_main);
    say_ready();
    expect_line("go");
    turn_give_many(start_turn, n + keeps);
    for (int i = 0; i < n + keeps; i++) turn_take(finished_turn);
    truth("cpu_ns", cpu_ns);
    truth("most_ns", most_ns);
    say_done();
    return 0;
}
