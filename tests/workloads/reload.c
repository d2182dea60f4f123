// Two libraries that take turns at one address, each calling back into a sleep: of the first in nanosleep, of the second in poll.
//
//   reload FIRST SECOND   go: 97 turns of each; truth same_address: how often the second lay where the first had lain.
#include "workload.h"

#include <dlfcn.h>

enum { TURNS = 97 };

typedef int callback(void);
typedef int entry(callback *);

// Which call it sleeps in, from the same place on the same stack: what is seen of it tells the turns apart.
static long call;

NAMED static int u_naps(void) {
    struct timespec ts = {0, 200000};
    // nanosleep of the first, poll of nothing for 1 ms of the second.
    int n = (int)syscall(call, call == SYS_poll ? NULL : &ts, NULL, 1L);
    KEEP_FRAME();
    return n;
}

NAMED static void *u_turn(const char *path, const char *name) {
    void *handle = dlopen(path, RTLD_NOW);
    must(handle != NULL, path);
    entry *in_library = (entry *)dlsym(handle, name);
    must(in_library != NULL, name);
    in_library(u_naps);
    dlclose(handle);
    KEEP_FRAME();
    return (void *)in_library;
}

int main(int argc, char **argv) {
    must(argc == 3, "reload FIRST SECOND");
    say_ready();
    expect_line("go");
    long same = 0;
    for (int i = 0; i < TURNS; i++) {
        call = SYS_nanosleep;
        void *first = u_turn(argv[1], "u_in_first");
        call = SYS_poll;
        same += first == u_turn(argv[2], "u_in_second");
    }
    truth("turns", TURNS);
    truth("same_address", same);
    say_done();
    return 0;
}
