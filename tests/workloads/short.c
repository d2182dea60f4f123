// What a traced command does from its first instruction on, and nothing else.
//
//   short run N        opens N files, ends with status 7: `ctrace -- short run 23` must see every one of them
//   short exec FILE    at `go` opens 23 files, then becomes FILE with the arguments `stay 97`
//   short stay N       opens N files, says `done`, holds them until `quit`
//   short die          at `go` opens 23 files and ends with status 0
#include "workload.h"

#include <fcntl.h>

NAMED static void open_first(long n) {
    for (long i = 0; i < n; i++) must(open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0, "open");
    KEEP_FRAME();
}

int main(int argc, char **argv) {
    must(argc >= 2, "short run N | short exec FILE | short die");
    if (strcmp(argv[1], "run") == 0) {
        open_first(atol(argv[2]));
        return 7;
    }
    if (strcmp(argv[1], "stay") == 0) {
        open_first(atol(argv[2]));
        say_done();
        return 0;
    }
    say_ready();
    expect_line("go");
    open_first(23);
    if (strcmp(argv[1], "exec") == 0) {
        execl(argv[2], argv[2], "stay", "97", (char *)NULL);
        must(0, "execl");
    }
    return 0;
}
