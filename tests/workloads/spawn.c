// A parent that waits in vfork until its child, in the same memory, lets it go, and one that starts programs.
//
//   go: 23 vforks whose child sleeps 2 ms, 23 posix_spawns.
#include "workload.h"

#include <spawn.h>
#include <sys/wait.h>

enum { CHILDREN = 23 };

extern char **environ;

NAMED static void u_child(void) {
    struct timespec ts = {0, 2000000};
    nanosleep(&ts, NULL);
    _exit(7);
}

NAMED static int u_vforks(void) {
    pid_t child = vfork();
    if (child == 0) u_child();
    must(child > 0, "vfork");
    int status;
    waitpid(child, &status, 0);
    KEEP_FRAME();
    return WEXITSTATUS(status) == 7;
}

NAMED static int u_spawns(void) {
    char *arguments[] = {"true", NULL};
    pid_t child;
    must(posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ) == 0, "posix_spawn");
    int status;
    waitpid(child, &status, 0);
    KEEP_FRAME();
    return status == 0;
}

int main(void) {
    say_ready();
    expect_line("go");
    long vforks = 0, spawns = 0;
    for (int i = 0; i < CHILDREN; i++) vforks += u_vforks();
    for (int i = 0; i < CHILDREN; i++) spawns += u_spawns();
    truth("vforks", vforks);
    truth("spawns", spawns);
    say_done();
    return 0;
}
