// A mutex that four threads take turns at all the time, 800 times in all, by default: each hold sleeps 4 ms in `load_page` and computes
// a while in `render`. None ends before the others, so somebody always waits. With `idle`: they take it as often, for next to nothing,
// and sleep outside.
//
// Truths by the program's own clocks: `holds`, `held_ns` in all, of it `slept_ns`; `begun_ns` and `ended_ns`.
#include "workload.h"

enum { THREADS = 4, ROUNDS = 800 };

pthread_mutex_t page_lock = PTHREAD_MUTEX_INITIALIZER;
static long holds, held_ns, slept_ns;
static volatile long work;
static int idle;
static pthread_barrier_t all;

static long now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

NAMED static void load_page(void) {
    sleep_ms(4);
    KEEP_FRAME();
}

NAMED static void render(void) {
    for (int at = 0; at < 200000; at++) work++;
    KEEP_FRAME();
}

// Whether there is more to do.
NAMED static int serve_page(void) {
    pthread_mutex_lock(&page_lock);
    long from = now_ns();
    if (holds >= ROUNDS) {
        pthread_mutex_unlock(&page_lock);
        return 0;
    }
    if (idle) {
        work++;
    } else {
        load_page();
        slept_ns += now_ns() - from;
        render();
    }
    held_ns += now_ns() - from;
    holds++;
    pthread_mutex_unlock(&page_lock);
    if (idle) sleep_ms(1);
    KEEP_FRAME();
    return 1;
}

static void *thread_main(void *unused) {
    pthread_barrier_wait(&all);
    while (serve_page()) {
    }
    pthread_barrier_wait(&all);
    return unused;
}

int main(int argc, char **argv) {
    idle = argc > 1 && strcmp(argv[1], "idle") == 0;
    pthread_barrier_init(&all, NULL, THREADS + 1);
    for (int at = 0; at < THREADS; at++) thread_start(thread_main);
    say_ready();
    expect_line("go");
    long begun = now_ns();
    pthread_barrier_wait(&all);
    pthread_barrier_wait(&all);
    truth("elapsed_ns", now_ns() - begun);
    truth("holds", holds);
    truth("held_ns", held_ns);
    truth("slept_ns", slept_ns);
    say_done();
    return 0;
}
