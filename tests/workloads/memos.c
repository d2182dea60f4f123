// One leaf, one call site that reaches it, one place of the stack pointer in its page: and many ways to come there. What told
// one way from another by less than all that decides it would take one for the other.
//
//   memos ROUNDS [PLUGIN_A PLUGIN_B]     `truth WAY opens` for each way; the plugins are loaded in turn, at one address
//
// Each way opens and closes /dev/null a known number of times, in a function of its own name.
#include "workload.h"

#include <alloca.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>

enum { THREADS = 2, WAYS = 8, LOADS = 64, SLOW = 2000 };

static const char *const names[WAYS] = {
    "way_small", "way_page", "way_pages", "way_deep", "way_signal", "way_array", "way_plain", "way_other",
};
static _Atomic long opens[WAYS];
static long rounds;

NAMED static void open_close(void) {
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    must(fd >= 0, "open");
    close(fd);
    KEEP_FRAME();
}

// All ways but the signal's pass through here: the same return addresses, and a frame whose size only rbp knows.
NAMED static void through(long bytes) {
    volatile char *room = alloca(bytes);
    room[0] = 1;
    open_close();
    room[bytes - 1] = 1;
    KEEP_FRAME();
}

// The stack pointer of the leaf is the same in its page for every multiple of a page.
NAMED static void way_small(long unused) {
    (void)unused;
    through(4096);
    KEEP_FRAME();
}

NAMED static void way_page(long unused) {
    volatile char *room = alloca(4096);
    (void)unused;
    room[0] = 1;
    through(4096);
    room[4095] = 1;
    KEEP_FRAME();
}

NAMED static void way_pages(long turn) {
    long bytes = 4096 * (1 + turn % 2);
    volatile char *room = alloca(bytes);
    room[0] = 1;
    through(4096 + bytes);
    room[bytes - 1] = 1;
    KEEP_FRAME();
}

NAMED static void way_deep(long turn) {
    if (turn % 12 > 0)
        way_deep(turn % 12 - 1);
    else
        through(4096);
    KEEP_FRAME();
}

NAMED static void on_signal(int number) {
    (void)number;
    open_close();
    KEEP_FRAME();
}

NAMED static void way_signal(long unused) {
    (void)unused;
    must(pthread_kill(pthread_self(), SIGUSR1) == 0, "pthread_kill");
    KEEP_FRAME();
}

NAMED static void way_array(long turn) {
    volatile char room[16 + 16 * (turn % 5)];
    room[0] = 1;
    open_close();
    room[15] = 1;
    KEEP_FRAME();
}

NAMED static void way_plain(long unused) {
    (void)unused;
    open_close();
    KEEP_FRAME();
}

// Leaves return addresses of other ways in the part of the stack that the next ones use.
NAMED static void way_other(long turn) {
    way_plain(turn);
    opens[6]++;
    through(4096 * (1 + turn % 2));
    KEEP_FRAME();
}

static void (*const ways[WAYS])(long) = {
    way_small, way_page, way_pages, way_deep, way_signal, way_array, way_plain, way_other,
};

static void *memos_main(void *seed) {
    unsigned long state = (unsigned long)(uintptr_t)seed * 2654435761u + 1;
    for (long round = 0; round < rounds; round++) {
        state = state * 6364136223846793005ul + 1442695040888963407ul;
        int way = (int)(state >> 40) % WAYS;
        ways[way]((long)(state >> 50));
        opens[way]++;
        // All ways are seen for the first time at a pace at which no copy of a stack is left out.
        if (round < SLOW) usleep(100);
    }
    return NULL;
}

// The same code under two names, loaded where the other was.
NAMED static void load(const char *path, long times, uintptr_t *at) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    must(library != NULL, path);
    void (*plug)(void (*)(void), long) = (void (*)(void (*)(void), long))(uintptr_t)dlsym(library, "plug");
    must(plug != NULL, "dlsym");
    *at = (uintptr_t)plug;
    // The first is new to a tracer, which then has the time to learn it.
    plug(open_close, 1);
    usleep(30000);
    plug(open_close, times - 1);
    dlclose(library);
    KEEP_FRAME();
}

int main(int argc, char **argv) {
    must(argc > 1, "usage");
    rounds = atol(argv[1]);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    say_ready();
    expect_line("go");
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) must(pthread_create(&threads[i], NULL, memos_main, (void *)(i + 1)) == 0, "pthread_create");
    for (long i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int way = 0; way < WAYS; way++) truth(names[way], opens[way]);
    if (argc > 3) {
        uintptr_t first = 0, at = 0;
        long same = 0, plugged[2] = {0, 0};
        for (long turn = 0; turn < LOADS; turn++) {
            long times = 97 + turn;
            load(argv[2 + turn % 2], times, &at);
            plugged[turn % 2] += times;
            if (turn == 0) first = at;
            same += at == first;
        }
        truth("plug_a", plugged[0]);
        truth("plug_b", plugged[1]);
        truth("same_address", same);
    }
    say_done();
    return 0;
}
