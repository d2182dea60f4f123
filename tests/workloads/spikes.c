// Four threads serve requests for the time of the first argument (ms): each computes for 300 us, then changes a shared table under
// `table_lock` for the second argument (us), then waits 2 ms for the next request.
//
// Truth: `served`, requests.
#include "workload.h"

#define THREADS 4

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static volatile unsigned long table;
static long until_ns, hold_ns, served;

static long now_ns(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

NAMED static void compute(long ns) {
    long end = now_ns(CLOCK_THREAD_CPUTIME_ID) + ns;
    while (now_ns(CLOCK_THREAD_CPUTIME_ID) < end) table += 1;
    KEEP_FRAME();
}

NAMED static void change_table(void) {
    pthread_mutex_lock(&table_lock);
    compute(hold_ns);
    pthread_mutex_unlock(&table_lock);
    KEEP_FRAME();
}

static void *serve(void *arg) {
    struct timespec pause = {0, 2000000};
    while (now_ns(CLOCK_MONOTONIC) < until_ns) {
        compute(300000);
        change_table();
        __atomic_fetch_add(&served, 1, __ATOMIC_RELAXED);
        nanosleep(&pause, NULL);
    }
    return arg;
}

int main(int argc, char **argv) {
    must(argc == 3, "usage: spikes MS US");
    hold_ns = atol(argv[2]) * 1000L;
    say_ready();
    expect_line("go");
    until_ns = now_ns(CLOCK_MONOTONIC) + atol(argv[1]) * 1000000L;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) must(pthread_create(&threads[i], NULL, serve, NULL) == 0, "thread");
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    truth("served", served);
    say_done();
    return 0;
}
