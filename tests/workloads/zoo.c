// One thread for each usual way to wait in C, after a round of real contention. Its stacks are compared with a debugger's.
//
//   go: four threads take one mutex 2,000 times each; done: every thread sleeps where it began.
#include "workload.h"

#include <arpa/inet.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { HOT = 4, ROUNDS = 2000 };

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER, hot = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t written = PTHREAD_RWLOCK_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t never_lock = PTHREAD_MUTEX_INITIALIZER;
static sem_t empty;
static int silent[2], started, ended;
static volatile int sink;

NAMED static void begin(void) { turn_take(started); KEEP_FRAME(); }

NAMED static int wait_mutex(void) { int n = pthread_mutex_lock(&held); KEEP_FRAME(); return n; }
NAMED static int wait_rwlock(void) { int n = pthread_rwlock_rdlock(&written); KEEP_FRAME(); return n; }
NAMED static int wait_sem(void) { int n = sem_wait(&empty); KEEP_FRAME(); return n; }
NAMED static int wait_pipe(void) { char c; int n = (int)read(silent[0], &c, 1); KEEP_FRAME(); return n; }
NAMED static int wait_sleep(void) { struct timespec ts = {600, 0}; int n = nanosleep(&ts, NULL); KEEP_FRAME(); return n; }
NAMED static int wait_cond(void) {
    pthread_mutex_lock(&never_lock);
    int n = pthread_cond_wait(&never, &never_lock);
    KEEP_FRAME();
    return n;
}
NAMED static int wait_accept(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    must(fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0 && listen(fd, 1) == 0, "listen");
    int n = accept(fd, NULL, NULL);
    KEEP_FRAME();
    return n;
}
NAMED static int wait_poll(void) {
    struct pollfd one = {.fd = silent[0], .events = POLLIN};
    int n = poll(&one, 1, -1);
    KEEP_FRAME();
    return n;
}
NAMED static int wait_epoll(void) {
    struct epoll_event all[64];
    int fd = epoll_create1(0), n = epoll_wait(fd, all, 64, -1);
    KEEP_FRAME();
    return n;
}
NAMED static int wait_child(void) {
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    int status, n = waitpid(child, &status, 0);
    KEEP_FRAME();
    return n;
}
NAMED static int compare(const void *a, const void *b) {
    sink += wait_pipe();
    KEEP_FRAME();
    return *(const int *)a - *(const int *)b;
}
NAMED static int wait_sorting(void) {
    int two[] = {2, 1};
    qsort(two, 2, sizeof *two, compare);
    KEEP_FRAME();
    return two[0];
}
NAMED static int wait_deep(int depth) {
    char room[depth * 7 + 1];
    memset(room, depth, sizeof room);
    int n = depth == 0 ? wait_pipe() : wait_deep(depth - 1);
    KEEP_FRAME();
    return n + room[depth];
}

static int (*const waits[])(void) = {
    wait_mutex, wait_rwlock, wait_sem, wait_pipe, wait_sleep, wait_cond, wait_accept, wait_poll, wait_epoll, wait_child, wait_sorting,
};
static const int WAITS = sizeof waits / sizeof *waits;

NAMED static void *waiter(void *which) {
    int n = (int)(intptr_t)which;
    sink += n < WAITS ? waits[n]() : wait_deep(40);
    KEEP_FRAME();
    return NULL;
}

NAMED static void contend(void) {
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&hot);
        sched_yield();
        pthread_mutex_unlock(&hot);
    }
    KEEP_FRAME();
}

NAMED static void *contender(void *unused) {
    begin();
    contend();
    turn_give(ended);
    begin();
    return unused;
}

int main(void) {
    started = turn_new();
    ended = turn_new();
    must(pipe(silent) == 0 && sem_init(&empty, 0, 0) == 0, "pipe");
    pthread_mutex_lock(&held);
    pthread_rwlock_wrlock(&written);
    for (intptr_t i = 0; i <= WAITS; i++) {
        pthread_t thread;
        must(pthread_create(&thread, NULL, waiter, (void *)i) == 0, "pthread_create");
    }
    for (int i = 0; i < HOT; i++) thread_start(contender);
    say_ready();
    expect_line("go");
    for (int i = 0; i < HOT; i++) turn_give(started);
    for (int i = 0; i < HOT; i++) turn_take(ended);
    say_done();
    return 0;
}
