// A bystander: how many getppid calls a second a process gets that ctrace does not trace. Each `go` is one
// second of it, or as many as the argument says; `quit` ends it.
#include "workload.h"

static double now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    char line[64];
    double seconds = argc > 1 ? atof(argv[1]) : 1.0;
    say_ready();
    while (fgets(line, sizeof line, stdin) && strcmp(line, "go\n") == 0) {
        alarm(600);
        double start = now(), end = start;
        long calls = 0;
        while ((end = now()) - start < seconds) {
            for (int i = 0; i < 10000; i++) syscall(SYS_getppid);
            calls += 10000;
        }
        truth("calls_per_second", (long)((double)calls / (end - start)));
        printf("done\n");
    }
    return 0;
}
