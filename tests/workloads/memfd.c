// Copies a program into memory that no path leads to, and becomes it.
//
//   memfd PROGRAM ARGS…
#include "workload.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

extern char **environ;

int main(int argc, char **argv) {
    must(argc > 1, "memfd PROGRAM");
    int from = open(argv[1], O_RDONLY | O_CLOEXEC), to = memfd_create("nameless", MFD_CLOEXEC);
    struct stat stat;
    must(from >= 0 && to >= 0 && fstat(from, &stat) == 0, argv[1]);
    for (off_t at = 0; at < stat.st_size;) must(sendfile(to, from, &at, (size_t)(stat.st_size - at)) > 0, "sendfile");
    fexecve(to, argv + 1, environ);
    must(0, "fexecve");
}
