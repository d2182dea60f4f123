// N threads that do nothing but compute: between `go` and `stop` they take all the CPU they get, before and
// after they sleep. So whoever reads /proc/PID/task/TID/schedstat before `go` and after `done` has exactly what
// the kernel counted in between.
#include "workload.h"

static int start_turn, rest_turn, finished_turn;
static volatile int stop;

NAMED static unsigned long spin_here(unsigned long x) {
    for (int i = 0; i < 100000; i++) x = x * 6364136223846793005UL + 1442695040888963407UL;
    KEEP_FRAME();
    return x;
}

NAMED static void *spin_main(void *unused) {
    turn_take(start_turn);
    unsigned long x = 1;
    while (!stop) x = spin_here(x);
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
    expect_line("go");
    for (int i = 0; i < n; i++) turn_give(start_turn);
    printf("spinning\n");
    expect_line("stop");
    stop = 1;
    for (int i = 0; i < n; i++) turn_take(finished_turn);
    truth("threads", n + 1);
    say_done();
    return 0;
}
