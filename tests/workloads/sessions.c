// Serves requests, 250 a second for the time of the second argument (ms):
//
//   keep MS    each leaves a session of 12 KB behind, for ever
//   bound MS   the same, and the 201st session makes the first one go
//   fill MS    the same, with as many sessions at once as there will ever be, and then no new one
//   huge MS    each leaves a huge page behind, where the kernel gives one
//
// Each request but those also maps, fills and unmaps a page that it renders, four times as much memory.
// Truths: `kept`, bytes of sessions that are there at the end; `served`, requests.
#include <sys/mman.h>

#include "workload.h"

#define SESSION 12288
#define PAGE_BYTES (4 * SESSION)
#define BOUND 200
#define HUGE (2L << 20)
#define MOST 1000000

static char *sessions[MOST];
static long remembered, forgotten, served, huge;

static long now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

NAMED static void remember_session(long id) {
    must(remembered < MOST, "sessions");
    char *session = malloc(SESSION);
    must(session != NULL, "malloc");
    memset(session, (int)id, SESSION);
    sessions[remembered++] = session;
    KEEP_FRAME();
}

NAMED static void forget_session(void) {
    free(sessions[forgotten]);
    sessions[forgotten++] = NULL;
    KEEP_FRAME();
}

NAMED static void render_page(long id) {
    char *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(page != MAP_FAILED, "mmap");
    memset(page, (int)id, PAGE_BYTES);
    must(munmap(page, PAGE_BYTES) == 0, "munmap");
    KEEP_FRAME();
}

NAMED static void keep_huge_page(void) {
    char *at = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED, "mmap");
    char *page = (char *)(((uintptr_t)at + HUGE - 1) / HUGE * HUGE);
    must(madvise(page, HUGE, MADV_HUGEPAGE) == 0, "madvise");
    page[100] = 1;
    huge++;
    KEEP_FRAME();
}

NAMED static void serve_request(const char *mode) {
    if (strcmp(mode, "huge") == 0) {
        if (served++ % 4 == 0) keep_huge_page();
        return;
    }
    render_page(served);
    if (strcmp(mode, "fill") == 0) {
        while (remembered < 20 * BOUND) remember_session(served);
    } else {
        remember_session(served);
        if (strcmp(mode, "bound") == 0 && remembered - forgotten > BOUND) forget_session();
    }
    served++;
    KEEP_FRAME();
}

int main(int argc, char **argv) {
    must(argc == 3, "usage: sessions MODE MS");
    long wanted_ns = atol(argv[2]) * 1000000L;
    say_ready();
    expect_line("go");
    long from = now_ns();
    while (now_ns() - from < wanted_ns) {
        long due = from + served * 4000000L;
        struct timespec ts = {due / 1000000000L, due % 1000000000L};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
        serve_request(argv[1]);
    }
    truth("kept", (remembered - forgotten) * SESSION + huge * HUGE);
    truth("served", served);
    say_done();
    return 0;
}
