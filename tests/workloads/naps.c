// One thread that sleeps a known number of times in each of two functions: what a sample must estimate.
#include "workload.h"

enum { OFTEN = 40000, SELDOM = 8000 };

NAMED static void nap(long ns) {
    struct timespec ts = {.tv_nsec = ns};
    must(nanosleep(&ts, NULL) == 0, "nanosleep");
    KEEP_FRAME();
}

NAMED static void nap_often(void) {
    nap(20000);
    KEEP_FRAME();
}

NAMED static void nap_seldom(void) {
    nap(100000);
    KEEP_FRAME();
}

int main(void) {
    say_ready();
    expect_line("go");
    for (int i = 0; i < OFTEN; i++) {
        nap_often();
        if (i % (OFTEN / SELDOM) == 0) nap_seldom();
    }
    truth("often", OFTEN);
    truth("seldom", SELDOM);
    say_done();
    return 0;
}
