// More events than a tiny ring can take: for SECONDS, eight threads fight for one lock and open and close files.
// Every file is closed again, so that a verdict of a leak is false whatever was lost.
#include "workload.h"

#include <fcntl.h>

enum { THREADS = 8 };

pthread_mutex_t heavy_lock = PTHREAD_MUTEX_INITIALIZER;
static int start_turn, rest_turn, finished_turn;
static volatile int stop;
static long opened;

NAMED static void open_and_close(void) {
    int fds[16];
    for (int i = 0; i < 16; i++) must((fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0, "open");
    for (int i = 0; i < 16; i++) close(fds[i]);
    KEEP_FRAME();
}

NAMED static void fight(void) {
    pthread_mutex_lock(&heavy_lock);
    open_and_close();
    opened += 16;
    sched_yield();
    pthread_mutex_unlock(&heavy_lock);
    KEEP_FRAME();
}

NAMED static void *heavy_main(void *unused) {
    turn_take(start_turn);
    while (!stop) {
        fight();
        open_and_close();
    }
    turn_give(finished_turn);
    turn_take(rest_turn);
    return unused;
}

int main(int argc, char **argv) {
    int seconds = argc > 1 ? atoi(argv[1]) : 3;
    start_turn = turn_new();
    rest_turn = turn_new();
    finished_turn = turn_new();
    for (int i = 0; i < THREADS; i++) thread_start(heavy_main);
    say_ready();
    expect_line("go");
    for (int i = 0; i < THREADS; i++) turn_give(start_turn);
    sleep_ms(seconds * 1000L);
    stop = 1;
    for (int i = 0; i < THREADS; i++) turn_take(finished_turn);
    truth("opened_under_lock", opened);
    say_done();
    return 0;
}
