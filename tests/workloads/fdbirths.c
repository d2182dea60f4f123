// Descriptors whose truth is known: for every call that makes one, a function that leaks and a twin that does not.
//
//   gcc -O2 -g -Wall -Wextra -pthread fdbirths.c -o fdbirths
//   fdbirths MODE [MICROSECONDS]
//
// MODE  a call (see `fdbirths list`)
//       all           every call, one after the other
//       spread        every call in each of 97 rounds, so that each leak grows through the whole run
//       close_range   97 opened, 74 of them ended by one close_range (after one with CLOSE_RANGE_CLOEXEC, which ends none)
//       dup2_over     97 opened, 74 of them ended by a dup2 onto their number, whose copies then live
//       exec          97 + 23 opened, the 97 close-on-exec, then the program replaces itself
// MICROSECONDS  sleep between two rounds
//
// It waits for a line on stdin before it begins, prints one line per call, then `done`, and holds what leaked until
// another line or the end of stdin:
//
//   CALL ok OPENED CLOSED       of leak_CALL: 97 and 74; for pairs, whose other end is closed at once, 194 and 171
//   CALL unsupported ERRNO      the kernel refused the first one; nothing is left open
//   CALL failed ERRNO           it refused a later one: no truth
//
// So leak_CALL always holds 23, and clean_CALL opens and closes 97 (194) and holds none. Everything is closed by
// end_descriptor; what a call needs beside itself is opened by setup_CALL… and closed before `done`. Descriptors above
// stderr are closed at the start.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/landlock.h>
#include <linux/openat2.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

enum { OPENS = 97, CLOSES = 74, FIRST_DUP = 4096 };

// A function of its own in every build: neither inlined, nor merged with its twin, nor left by a tail call.
#define OWN __attribute__((noipa))
#define KEEP(value) __asm__ volatile("" : "+r"(value) : "i"(__COUNTER__) : "memory")
#define NUL "/dev/null"

static int nul = -1;     // what is duplicated
static int aux[3] = {-1, -1, -1};  // what the current call needs
static int second = -1;  // the other end of a pair just made
static int next_dup = FIRST_DUP;

struct call {
    const char *name;
    int (*setup)(int *aux);   // once: opens what the call needs; an errno
    int (*prepare)(int *aux); // before each: an errno
    int (*leak)(void);
    int (*clean)(void);
    int aux[3];
    int failed, opened, closed, supported;
};

#define CALL(name, ...)                                                    \
    static inline __attribute__((always_inline)) int make_##name(void) { __VA_ARGS__ } \
    static OWN int leak_##name(void) {                                     \
        int fd = make_##name();                                            \
        KEEP(fd);                                                          \
        return fd;                                                         \
    }                                                                      \
    static OWN int clean_##name(void) {                                    \
        int fd = make_##name();                                            \
        KEEP(fd);                                                          \
        return fd;                                                         \
    }

static OWN void end_descriptor(int fd) {
    if (fd >= 0 && syscall(SYS_close, fd) != 0) {
        perror("close");
        exit(1);
    }
}

// Files.
CALL(open, return syscall(SYS_open, NUL, O_RDONLY);)
CALL(openat, return syscall(SYS_openat, AT_FDCWD, NUL, O_RDONLY);)
CALL(openat2, struct open_how how = {.flags = O_RDONLY};
     return syscall(SYS_openat2, AT_FDCWD, NUL, &how, sizeof how);)
CALL(creat, return syscall(SYS_creat, NUL, 0600);)
CALL(memfd_create, return syscall(SYS_memfd_create, "fdbirths", 0);)
CALL(memfd_secret, return syscall(SYS_memfd_secret, 0);)
CALL(fsopen, return syscall(SYS_fsopen, "tmpfs", 0);)
CALL(open_tree, return syscall(SYS_open_tree, AT_FDCWD, "/", 0);)

static struct {
    struct file_handle handle;
    unsigned char bytes[MAX_HANDLE_SZ];
} place;

static OWN int setup_open_by_handle_at(int *own) {
    static const char *const tries[] = {"/", "/dev", "/tmp", "/run", "/dev/shm"};
    int error = ENOTSUP;
    for (size_t at = 0; at < sizeof tries / sizeof *tries; at++) {
        int mount;
        place.handle.handle_bytes = MAX_HANDLE_SZ;
        if (name_to_handle_at(AT_FDCWD, tries[at], &place.handle, &mount, 0) != 0) {
            error = errno;
            continue;
        }
        own[0] = syscall(SYS_openat, AT_FDCWD, tries[at], O_RDONLY | O_DIRECTORY);
        int trial = own[0] < 0 ? -1 : (int)syscall(SYS_open_by_handle_at, own[0], &place.handle, O_RDONLY);
        if (trial >= 0) {
            end_descriptor(trial);
            return 0;
        }
        error = errno;
        end_descriptor(own[0]);
        own[0] = -1;
    }
    return error;
}
CALL(open_by_handle_at, return syscall(SYS_open_by_handle_at, aux[0], &place.handle, O_RDONLY);)

static char queue[32];
static OWN int setup_mq_open(int *own) {
    snprintf(queue, sizeof queue, "fdbirths-%d", getpid());
    own[0] = syscall(SYS_mq_open, queue, O_RDWR | O_CREAT, 0600, NULL);
    return own[0] < 0 ? errno : 0;
}
CALL(mq_open, return syscall(SYS_mq_open, queue, O_RDWR, 0, NULL);)

// Sockets and pipes.
CALL(socket, return syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);)
static int pair_of(long result, const int pair[2]) {
    if (result != 0)
        return -1;
    second = pair[1];
    return pair[0];
}
CALL(socketpair, int pair[2]; return pair_of(syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, pair), pair);)
CALL(pipe, int pair[2]; return pair_of(syscall(SYS_pipe, pair), pair);)
CALL(pipe2, int pair[2]; return pair_of(syscall(SYS_pipe2, pair, O_CLOEXEC), pair);)

static struct sockaddr_un where = {.sun_family = AF_UNIX};
static OWN int setup_accept(int *own) {
    // Bound to a name that the kernel chooses, in the abstract name space.
    socklen_t length = sizeof(sa_family_t);
    own[0] = syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
    if (own[0] < 0 || bind(own[0], (struct sockaddr *)&where, length) != 0 || listen(own[0], 8) != 0)
        return errno;
    return 0;
}
static OWN int setup_accept_client(int *own) {
    struct sockaddr_un server;
    socklen_t length = sizeof server;
    own[1] = syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
    if (own[1] < 0 || getsockname(own[0], (struct sockaddr *)&server, &length) != 0 ||
        connect(own[1], (struct sockaddr *)&server, length) != 0)
        return errno;
    return 0;
}
CALL(accept, return syscall(SYS_accept, aux[0], NULL, NULL);)
CALL(accept4, return syscall(SYS_accept4, aux[0], NULL, NULL, SOCK_CLOEXEC);)

static OWN int setup_rights(int *own) {
    if (syscall(SYS_socketpair, AF_UNIX, SOCK_DGRAM, 0, own) != 0) {
        own[0] = own[1] = -1;
        return errno;
    }
    return 0;
}
union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
};
static int send_rights(int *own) {
    char byte = 'x';
    struct iovec data = {&byte, 1};
    union control control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.header), &nul, sizeof nul);
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    return sendmsg(own[0], &message, 0) == 1 ? 0 : errno;
}
static int received(long result, const union control *control) {
    int fd = -1;
    if (result >= 0 && control->header.cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(&control->header), sizeof fd);
    return fd;
}
CALL(recvmsg, char byte; struct iovec data = {&byte, 1}; union control control = {0};
     struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
                              .msg_controllen = sizeof control};
     return received(syscall(SYS_recvmsg, aux[1], &message, 0), &control);)
CALL(recvmmsg, char byte; struct iovec data = {&byte, 1}; union control control = {0};
     struct mmsghdr message = {.msg_hdr = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
                                           .msg_controllen = sizeof control}};
     return received(syscall(SYS_recvmmsg, aux[1], &message, 1, 0, NULL), &control);)

// Copies. The numbers that dup2 and dup3 are given were never in use before.
CALL(dup, return syscall(SYS_dup, nul);)
CALL(dup2, return syscall(SYS_dup2, nul, next_dup++);)
CALL(dup3, return syscall(SYS_dup3, nul, next_dup++, O_CLOEXEC);)
CALL(fcntl_dupfd, return syscall(SYS_fcntl, nul, F_DUPFD, 0);)
CALL(fcntl_dupfd_cloexec, return syscall(SYS_fcntl, nul, F_DUPFD_CLOEXEC, 0);)

// Kernel objects.
CALL(eventfd, return syscall(SYS_eventfd, 0);)
CALL(eventfd2, return syscall(SYS_eventfd2, 0, 0);)
CALL(epoll_create, return syscall(SYS_epoll_create, 1);)
CALL(epoll_create1, return syscall(SYS_epoll_create1, 0);)
CALL(timerfd_create, return syscall(SYS_timerfd_create, CLOCK_MONOTONIC, 0);)
static const uint64_t no_signals;
CALL(signalfd, return syscall(SYS_signalfd, -1, &no_signals, sizeof no_signals);)
CALL(signalfd4, return syscall(SYS_signalfd4, -1, &no_signals, sizeof no_signals, 0);)
CALL(inotify_init, return syscall(SYS_inotify_init);)
CALL(inotify_init1, return syscall(SYS_inotify_init1, 0);)
CALL(fanotify_init, return syscall(SYS_fanotify_init, FAN_CLASS_NOTIF, O_RDONLY);)
CALL(userfaultfd, return syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);)
CALL(perf_event_open, struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr,
                                                     .config = PERF_COUNT_SW_DUMMY, .exclude_kernel = 1};
     return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);)
CALL(bpf, union bpf_attr attr; memset(&attr, 0, sizeof attr); attr.map_type = BPF_MAP_TYPE_ARRAY;
     attr.key_size = 4; attr.value_size = 4; attr.max_entries = 1;
     return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);)
CALL(landlock_create_ruleset, struct landlock_ruleset_attr attr = {.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE};
     return syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0);)

// Processes.
static OWN int setup_pidfd_getfd(int *own) {
    own[0] = syscall(SYS_pidfd_open, getpid(), 0);
    return own[0] < 0 ? errno : 0;
}
static int reaped(long child, int pidfd) {
    if (child < 0)
        return -1;
    while (waitpid((pid_t)child, NULL, 0) < 0 && errno == EINTR)
        ;
    return pidfd;
}
CALL(pidfd_open, return syscall(SYS_pidfd_open, getpid(), 0);)
CALL(pidfd_getfd, return syscall(SYS_pidfd_getfd, aux[0], nul, 0);)
CALL(clone, int pidfd = -1; long child = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, &pidfd, NULL, 0);
     if (child == 0) _exit(0);
     return reaped(child, pidfd);)
CALL(clone3, int pidfd = -1;
     struct clone_args args = {.flags = CLONE_PIDFD, .pidfd = (uintptr_t)&pidfd, .exit_signal = SIGCHLD};
     long child = syscall(SYS_clone3, &args, sizeof args);
     if (child == 0) _exit(0);
     return reaped(child, pidfd);)

// io_uring: a ring, and a descriptor opened through one.
CALL(io_uring_setup, struct io_uring_params params; memset(&params, 0, sizeof params);
     return syscall(SYS_io_uring_setup, 1, &params);)

static struct {
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
} ring;
static OWN int setup_io_uring_openat(int *own) {
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    own[0] = syscall(SYS_io_uring_setup, 1, &params);
    if (own[0] < 0)
        return errno;
    if (!(params.features & IORING_FEAT_SINGLE_MMAP))
        return ENOTSUP;
    size_t sq = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t cq = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    char *both = mmap(NULL, sq > cq ? sq : cq, PROT_READ | PROT_WRITE, MAP_SHARED, own[0], IORING_OFF_SQ_RING);
    ring.sqes = mmap(NULL, params.sq_entries * sizeof *ring.sqes, PROT_READ | PROT_WRITE, MAP_SHARED, own[0],
                     IORING_OFF_SQES);
    if (both == MAP_FAILED || ring.sqes == MAP_FAILED)
        return errno;
    ring.sq_tail = (unsigned *)(both + params.sq_off.tail);
    ring.sq_mask = (unsigned *)(both + params.sq_off.ring_mask);
    ring.sq_array = (unsigned *)(both + params.sq_off.array);
    ring.cq_head = (unsigned *)(both + params.cq_off.head);
    ring.cq_tail = (unsigned *)(both + params.cq_off.tail);
    ring.cq_mask = (unsigned *)(both + params.cq_off.ring_mask);
    ring.cqes = (struct io_uring_cqe *)(both + params.cq_off.cqes);
    return 0;
}
CALL(io_uring_openat, unsigned tail = *ring.sq_tail; unsigned at = tail & *ring.sq_mask;
     ring.sqes[at] = (struct io_uring_sqe){.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uintptr_t)NUL,
                                           .open_flags = O_RDONLY};
     ring.sq_array[at] = at;
     __atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
     if (syscall(SYS_io_uring_enter, aux[0], 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1) return -1;
     unsigned head = *ring.cq_head;
     if (head == __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE)) { errno = EAGAIN; return -1; }
     int fd = ring.cqes[head & *ring.cq_mask].res;
     __atomic_store_n(ring.cq_head, head + 1, __ATOMIC_RELEASE);
     if (fd < 0) { errno = -fd; return -1; }
     return fd;)

#define PLAIN(name) {#name, NULL, NULL, leak_##name, clean_##name, {-1, -1, -1}, 0, 0, 0, 0}
#define WITH(name, setup, prepare) {#name, setup, prepare, leak_##name, clean_##name, {-1, -1, -1}, 0, 0, 0, 0}
static struct call calls[] = {
    PLAIN(open), PLAIN(openat), PLAIN(openat2), PLAIN(creat),
    WITH(open_by_handle_at, setup_open_by_handle_at, NULL), PLAIN(memfd_create), PLAIN(memfd_secret),
    PLAIN(fsopen), PLAIN(open_tree), WITH(mq_open, setup_mq_open, NULL), PLAIN(socket), PLAIN(socketpair),
    WITH(accept, setup_accept, setup_accept_client), WITH(accept4, setup_accept, setup_accept_client),
    PLAIN(pipe), PLAIN(pipe2), WITH(recvmsg, setup_rights, send_rights),
    WITH(recvmmsg, setup_rights, send_rights), PLAIN(dup), PLAIN(dup2), PLAIN(dup3), PLAIN(fcntl_dupfd),
    PLAIN(fcntl_dupfd_cloexec), PLAIN(eventfd), PLAIN(eventfd2), PLAIN(epoll_create), PLAIN(epoll_create1),
    PLAIN(timerfd_create), PLAIN(signalfd), PLAIN(signalfd4), PLAIN(inotify_init), PLAIN(inotify_init1),
    PLAIN(fanotify_init), PLAIN(userfaultfd), PLAIN(perf_event_open), PLAIN(bpf),
    PLAIN(landlock_create_ruleset), PLAIN(pidfd_open), WITH(pidfd_getfd, setup_pidfd_getfd, NULL),
    PLAIN(clone), PLAIN(clone3), PLAIN(io_uring_setup), WITH(io_uring_openat, setup_io_uring_openat, NULL),
};
enum { CALLS = sizeof calls / sizeof *calls };

static unsigned pause_us;

static void rest(void) {
    if (pause_us > 0)
        usleep(pause_us);
}

static void end_aux(struct call *call) {
    for (int at = 0; at < 3; at++) {
        end_descriptor(call->aux[at]);
        call->aux[at] = -1;
    }
}

static void begin(struct call *call) {
    call->supported = 1;
    if (call->setup != NULL && (call->failed = call->setup(call->aux)) != 0)
        call->supported = 0;
}

// One birth by `make`; the descriptor, or -1.
static int one(struct call *call, int (*make)(void)) {
    if (call->failed || (call->prepare != NULL && (call->failed = call->prepare(call->aux)) != 0))
        return -1;
    memcpy(aux, call->aux, sizeof aux);
    second = -1;
    errno = 0;
    int fd = make();
    if (fd < 0)
        call->failed = errno ? errno : EIO;
    if (call->prepare == setup_accept_client) {
        end_descriptor(call->aux[1]);
        call->aux[1] = -1;
    }
    if (second >= 0)
        end_descriptor(second);
    return fd;
}

// One birth of each twin. 74 of the leak's 97 are closed, evenly spread: 74 and 97 have no common divisor.
static void round_of(struct call *call, int round) {
    int fd = one(call, call->leak);
    if (fd >= 0) {
        call->opened += second >= 0 ? 2 : 1;
        call->closed += second >= 0;
        if (round * CLOSES % OPENS < CLOSES) {
            end_descriptor(fd);
            call->closed++;
        }
    } else if (round == 0) {
        call->supported = 0;
    }
    fd = one(call, call->clean);
    if (fd >= 0)
        end_descriptor(fd);
}

static void finish(struct call *call) {
    end_aux(call);
    if (call->failed)
        printf("%s %s %d\n", call->name, call->supported ? "failed" : "unsupported", call->failed);
    else
        printf("%s ok %d %d\n", call->name, call->opened, call->closed);
    fflush(stdout);
}

static void run(struct call *first, int number) {
    for (int at = 0; at < number; at++)
        begin(&first[at]);
    for (int round = 0; round < OPENS; round++) {
        for (int at = 0; at < number; at++)
            round_of(&first[at], round);
        rest();
    }
    for (int at = 0; at < number; at++)
        finish(&first[at]);
    if (queue[0] != 0) {
        syscall(SYS_mq_unlink, queue);
        queue[0] = 0;
    }
}

// Deaths other than close.
CALL(close_range, return syscall(SYS_openat, AT_FDCWD, NUL, O_RDONLY);)
CALL(dup2_over, return syscall(SYS_openat, AT_FDCWD, NUL, O_RDONLY);)
CALL(exec, return syscall(SYS_openat, AT_FDCWD, NUL, O_RDONLY | O_CLOEXEC);)
static OWN int keep_exec(void) {
    int fd = syscall(SYS_openat, AT_FDCWD, NUL, O_RDONLY);
    KEEP(fd);
    return fd;
}
static OWN void over_dup2_over(int fd) {
    int copy = syscall(SYS_dup2, nul, fd);
    KEEP(copy);
}

static int deaths(const char *mode, const char *pause) {
    int fds[OPENS], error = 0;
    int over = strcmp(mode, "dup2_over") == 0, exec = strcmp(mode, "exec") == 0;
    for (int at = 0; at < OPENS; at++) {
        fds[at] = exec ? leak_exec() : over ? leak_dup2_over() : leak_close_range();
        if (fds[at] < 0)
            return errno;
        end_descriptor(exec ? clean_exec() : over ? clean_dup2_over() : clean_close_range());
        rest();
    }
    if (exec) {
        for (int at = 0; at < OPENS - CLOSES; at++)
            if (keep_exec() < 0)
                return errno;
        end_descriptor(nul);
        execl("/proc/self/exe", "fdbirths", "held", pause, NULL);
        return errno;
    }
    if (over) {
        for (int at = 0; at < CLOSES; at++)
            over_dup2_over(fds[at]);
    } else {
        // Contiguous: nothing above stderr was open but `nul`.
        if (syscall(SYS_close_range, fds[0], fds[OPENS - 1], 4 /* CLOSE_RANGE_CLOEXEC */) != 0 ||
            syscall(SYS_close_range, fds[0], fds[CLOSES - 1], 0) != 0)
            error = errno;
    }
    if (error == 0)
        printf("%s ok %d %d\n", mode, OPENS, CLOSES);
    return error;
}

// Until a newline; unbuffered, for what follows may be for the program after exec. 0 at the end of input.
static int line(void) {
    char byte = 0;
    ssize_t got;
    while ((got = read(0, &byte, 1)) == 1 && byte != '\n')
        ;
    return got == 1;
}

static int hold(void) {
    if (nul >= 0)
        end_descriptor(nul);
    printf("done\n");
    fflush(stdout);
    line();
    return 0;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    const char *pause = argc > 2 ? argv[2] : "0";
    struct rlimit limit;
    pause_us = (unsigned)strtoul(pause, NULL, 10);
    if (strcmp(mode, "held") == 0) {
        printf("exec ok %d %d\n", OPENS + OPENS - CLOSES, OPENS);
        return hold();
    }
    if (strcmp(mode, "list") == 0) {
        for (int at = 0; at < CALLS; at++)
            printf("%s\n", calls[at].name);
        return 0;
    }
    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < 16384) {
        limit.rlim_cur = limit.rlim_max < 16384 ? limit.rlim_max : 16384;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    syscall(SYS_close_range, 3, ~0U, 0);
    if (!line())
        return 0;
    nul = syscall(SYS_openat, AT_FDCWD, NUL, O_RDONLY | O_CLOEXEC);
    if (strcmp(mode, "close_range") == 0 || strcmp(mode, "dup2_over") == 0 || strcmp(mode, "exec") == 0) {
        int error = deaths(mode, pause);
        if (error != 0)
            printf("%s unsupported %d\n", mode, error);
        return hold();
    }
    if (strcmp(mode, "spread") == 0) {
        run(calls, CALLS);
        return hold();
    }
    int found = 0;
    for (int at = 0; at < CALLS; at++) {
        if (strcmp(mode, "all") == 0 || strcmp(mode, calls[at].name) == 0) {
            run(&calls[at], 1);
            found = 1;
        }
    }
    if (!found) {
        fprintf(stderr, "usage: fdbirths list | CALL | all | spread | close_range | dup2_over | exec [MICROSECONDS]\n");
        return 2;
    }
    return hold();
}
