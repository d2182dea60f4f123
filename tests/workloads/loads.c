// What the bench measures ctrace and its peers on. Each `go` is one window of SECONDS; between windows every thread sleeps
// in a read, so that a tracer attaches to and leaves a quiet process. `quit` ends it.
//
//   loads hot SECONDS       8 threads, 4 mutexes: 2 us of work and a sched_yield under a random one, 8 us outside
//   loads svc SECONDS       16 threads, 1 mutex: a request every 3 ms, 60 us of sleep and 20 us of work under the mutex
//   loads fds SECONDS       1 thread that opens and closes /dev/null
//   loads accept SECONDS    1 thread that connects to itself, accepts, and closes both ends
//   loads syscall SECONDS   1 thread that calls getppid
//   loads switch SECONDS    2 threads on one CPU that hand a byte to and fro through pipes
//
// An operation is one time round. The amount of work is measured once, at the start, and is the same in every window:
// CPU time per operation can be compared.
#include "workload.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum { MUTEXES = 4 };

static pthread_mutex_t mutexes[MUTEXES] = {
    PTHREAD_MUTEX_INITIALIZER,
    PTHREAD_MUTEX_INITIALIZER,
    PTHREAD_MUTEX_INITIALIZER,
    PTHREAD_MUTEX_INITIALIZER,
};
static __thread uint32_t chance;
static __thread long contended;
static int start_turn, finished_turn, listener, ping[2], pong[2];
static volatile int stop;
static long rounds_per_us, operations, contended_in_all;
static struct sockaddr_in address = {.sin_family = AF_INET};

static long clock_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

static struct rusage usage(void) {
    struct rusage used;
    must(getrusage(RUSAGE_SELF, &used) == 0, "getrusage");
    return used;
}

static long cpu_ns(struct rusage used) {
    return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000L +
           (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000L;
}

NAMED static void work(long rounds) {
    for (long i = 0; i < rounds; i++) __asm__ volatile("" : "+r"(i));
    KEEP_FRAME();
}

// The fastest of many short tries: the others were interrupted.
static void calibrate(void) {
    const long rounds = 100000;
    long best = 0;
    for (int try = 0; try < 200; try++) {
        long start = clock_ns();
        work(rounds);
        long took = clock_ns() - start;
        if (best == 0 || took < best) best = took;
    }
    rounds_per_us = rounds * 1000 / best;
}

NAMED static void take(pthread_mutex_t *mutex) {
    if (pthread_mutex_trylock(mutex) != 0) {
        contended++;
        pthread_mutex_lock(mutex);
    }
    KEEP_FRAME();
}

// The yield keeps the mutexes contended: without it a thread mostly finds its mutex free for a whole time slice.
NAMED static void hot(void) {
    chance ^= chance << 13;
    chance ^= chance >> 17;
    chance ^= chance << 5;
    pthread_mutex_t *mutex = &mutexes[chance % MUTEXES];
    take(mutex);
    work(2 * rounds_per_us);
    sched_yield();
    pthread_mutex_unlock(mutex);
    work(8 * rounds_per_us);
}

NAMED static void svc(void) {
    usleep(3000);
    work(20 * rounds_per_us);
    take(mutexes);
    work(20 * rounds_per_us);
    usleep(60);
    pthread_mutex_unlock(mutexes);
}

NAMED static void fds(void) {
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    must(fd >= 0, "open");
    close(fd);
    KEEP_FRAME();
}

// The end that accepts closes first and, by the listener's SO_LINGER, without TIME_WAIT: ports would run out.
NAMED static void accept_and_close(void) {
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(client >= 0, "socket");
    must(connect(client, (struct sockaddr *)&address, sizeof address) == 0, "connect");
    int server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    must(server >= 0, "accept");
    close(server);
    close(client);
    KEEP_FRAME();
}

static void listen_here(void) {
    struct linger none = {1, 0};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(listener >= 0, "socket");
    must(setsockopt(listener, SOL_SOCKET, SO_LINGER, &none, sizeof none) == 0, "SO_LINGER");
    must(bind(listener, (struct sockaddr *)&address, length) == 0, "bind");
    must(getsockname(listener, (struct sockaddr *)&address, &length) == 0, "getsockname");
    must(listen(listener, 16) == 0, "listen");
}

NAMED static void getppids(void) {
    syscall(SYS_getppid);
    KEEP_FRAME();
}

NAMED static void hand_over(void) {
    char byte = 0;
    must(write(ping[1], &byte, 1) == 1 && read(pong[0], &byte, 1) == 1, "pipe");
    KEEP_FRAME();
}

static void *answer(void *unused) {
    char byte;
    while (read(ping[0], &byte, 1) == 1) must(write(pong[1], &byte, 1) == 1, "pipe");
    return unused;
}

// All threads of the process, from now on, on the last CPU that it may use.
static void two_on_one_cpu(void) {
    cpu_set_t may, one;
    int cpu = CPU_SETSIZE - 1;
    must(sched_getaffinity(0, sizeof may, &may) == 0, "sched_getaffinity");
    while (!CPU_ISSET(cpu, &may)) cpu--;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    must(sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity");
    must(pipe2(ping, O_CLOEXEC) == 0 && pipe2(pong, O_CLOEXEC) == 0, "pipe2");
    thread_start(answer);
}

static const struct load {
    const char *name;
    int threads;
    void (*once)(void), (*prepare)(void);
} loads[] = {
    {"hot", 8, hot, NULL},
    {"svc", 16, svc, NULL},
    {"fds", 1, fds, NULL},
    {"accept", 1, accept_and_close, listen_here},
    {"syscall", 1, getppids, NULL},
    {"switch", 1, hand_over, two_on_one_cpu},
}, *load;

// Stacks of a handful of frames, as a small service has.
NAMED static void handle(void) {
    load->once();
    KEEP_FRAME();
}

NAMED static void serve(void) {
    handle();
    KEEP_FRAME();
}

static void *worker(void *unused) {
    chance = (uint32_t)own_tid() * 2654435761u | 1;
    for (;;) {
        long done = 0;
        turn_take(start_turn);
        contended = 0;
        for (; !stop; done++) serve();
        __atomic_fetch_add(&operations, done, __ATOMIC_SEQ_CST);
        __atomic_fetch_add(&contended_in_all, contended, __ATOMIC_SEQ_CST);
        turn_give(finished_turn);
    }
    return unused;
}

static void window(long milliseconds) {
    operations = contended_in_all = stop = 0;
    struct rusage before = usage();
    long start = clock_ns();
    for (int i = 0; i < load->threads; i++) turn_give(start_turn);
    sleep_ms(milliseconds);
    stop = 1;
    for (int i = 0; i < load->threads; i++) turn_take(finished_turn);
    long wall = clock_ns() - start;
    struct rusage after = usage();
    truth("operations", operations);
    truth("wall_ns", wall);
    truth("cpu_ns", cpu_ns(after) - cpu_ns(before));
    truth("contended", contended_in_all);
    truth("sleeps", after.ru_nvcsw - before.ru_nvcsw);
    printf("done\n");
}

int main(int argc, char **argv) {
    char line[64];
    load = NULL;
    for (size_t i = 0; argc > 1 && i < sizeof loads / sizeof *loads; i++) {
        if (strcmp(argv[1], loads[i].name) == 0) load = &loads[i];
    }
    if (load == NULL) {
        fprintf(stderr, "no such load\n");
        return 3;
    }
    long milliseconds = argc > 2 ? (long)(atof(argv[2]) * 1000) : 1000;
    start_turn = turn_new();
    finished_turn = turn_new();
    calibrate();
    if (load->prepare != NULL) load->prepare();
    for (int i = 0; i < load->threads; i++) thread_start(worker);
    say_ready();
    while (fgets(line, sizeof line, stdin) && strcmp(line, "go\n") == 0) {
        alarm(600);
        window(milliseconds);
    }
    return 0;
}
