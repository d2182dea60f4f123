// What ctrace costs its target. Each `go` is one window of SECONDS; between windows every thread sleeps in a read, so
// that ctrace attaches to and leaves a quiet process. `quit` ends it.
//
//   contend SECONDS        8 threads, 4 mutexes: about 3 us of work and a sched_yield under a random one, 20 us outside
//   contend SECONDS fds    1 thread that opens and closes /dev/null
//
// An operation is one time under a lock, or one open with its close. The amount of work is measured once, at the start,
// and is the same in every window: CPU time per operation can be compared.
#include "workload.h"

#include <fcntl.h>
#include <sys/resource.h>

enum { THREADS = 8, MUTEXES = 4 };

static pthread_mutex_t mutexes[MUTEXES] = {
    PTHREAD_MUTEX_INITIALIZER,
    PTHREAD_MUTEX_INITIALIZER,
    PTHREAD_MUTEX_INITIALIZER,
    PTHREAD_MUTEX_INITIALIZER,
};
static int start_turn, finished_turn;
static volatile int stop;
static long rounds_per_us, operations;

static long clock_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

static long cpu_ns(void) {
    struct rusage used;
    must(getrusage(RUSAGE_SELF, &used) == 0, "getrusage");
    return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000L +
           (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000L;
}

NAMED static void work(long rounds) {
    for (long i = 0; i < rounds; i++) __asm__ volatile("" : "+r"(i));
    KEEP_FRAME();
}

// The fastest of many short tries: the others were interrupted.
static void calibrate(void) {
    const long rounds = 100000;
    long best = 0;
    for (int try = 0; try < 200; try++) {
        long start = clock_ns();
        work(rounds);
        long took = clock_ns() - start;
        if (best == 0 || took < best) best = took;
    }
    rounds_per_us = rounds * 1000 / best;
}

NAMED static void under_lock(pthread_mutex_t *mutex) {
    pthread_mutex_lock(mutex);
    work(3 * rounds_per_us);
    sched_yield();
    pthread_mutex_unlock(mutex);
    KEEP_FRAME();
}

NAMED static void open_and_close(void) {
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    must(fd >= 0, "open");
    close(fd);
    KEEP_FRAME();
}

static void *contend_main(void *unused) {
    uint32_t random = (uint32_t)own_tid() * 2654435761u | 1;
    for (;;) {
        long done = 0;
        turn_take(start_turn);
        for (; !stop; done++) {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            under_lock(&mutexes[random % MUTEXES]);
            work(20 * rounds_per_us);
        }
        __atomic_fetch_add(&operations, done, __ATOMIC_SEQ_CST);
        turn_give(finished_turn);
    }
    return unused;
}

static void *fds_main(void *unused) {
    for (;;) {
        long done = 0;
        turn_take(start_turn);
        for (; !stop; done++) open_and_close();
        __atomic_fetch_add(&operations, done, __ATOMIC_SEQ_CST);
        turn_give(finished_turn);
    }
    return unused;
}

int main(int argc, char **argv) {
    char line[64];
    long milliseconds = argc > 1 ? (long)(atof(argv[1]) * 1000) : 1000;
    int fds = argc > 2 && strcmp(argv[2], "fds") == 0, threads = fds ? 1 : THREADS;
    start_turn = turn_new();
    finished_turn = turn_new();
    calibrate();
    for (int i = 0; i < threads; i++) thread_start(fds ? fds_main : contend_main);
    say_ready();
    while (fgets(line, sizeof line, stdin) && strcmp(line, "go\n") == 0) {
        alarm(600);
        operations = 0;
        stop = 0;
        long start = clock_ns(), used = cpu_ns();
        for (int i = 0; i < threads; i++) turn_give(start_turn);
        sleep_ms(milliseconds);
        stop = 1;
        for (int i = 0; i < threads; i++) turn_take(finished_turn);
        long wall = clock_ns() - start;
        truth("operations", operations);
        truth("wall_ns", wall);
        truth("cpu_ns", cpu_ns() - used);
        printf("done\n");
    }
    return 0;
}
