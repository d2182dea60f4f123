// Threads that wait for each other, in the way its first argument says:
//
//   pair    AB-BA on `account_a` and `account_b`, and three threads that wait behind them
//   five    five philosophers, each with its left fork
//   self    a thread takes a mutex that it holds
//   join    a thread joins another one that waits for a mutex which the first holds
//   rwlock  a writer of `table` waits for `journal`, whose holder wants to read `table`
//   gone    a thread ends while it holds `account_a`
//   fork    a child is forked while another thread holds `account_a`, and wants it
//   slow    one thread holds `account_a` while it sleeps; another one waits for it all the time
//   busy    eight threads take both mutexes in order, often, and hold them over sleeps; nothing is wrong
//
// `early` as second argument: all of it before `ready`, so that nothing of it can be seen happening. Truths: `threads` of the cycle,
// `behind` it, `pid` and the ids of the cycle's threads as `tid0`, `tid1`….
#include "workload.h"

#include <sys/prctl.h>
#include <sys/wait.h>

enum { FORKS = 5 };

pthread_mutex_t account_a = PTHREAD_MUTEX_INITIALIZER;
pthread_mutex_t account_b = PTHREAD_MUTEX_INITIALIZER;
pthread_mutex_t forks[FORKS];
pthread_rwlock_t table = PTHREAD_RWLOCK_INITIALIZER;
pthread_mutex_t journal = PTHREAD_MUTEX_INITIALIZER;

static pthread_barrier_t all_hold;
static pid_t tids[64];
static int started;
static volatile long work;
static pthread_t joined;
static volatile int stop;

// Which thread a number means must not depend on who comes first.
static void enlist(int at) {
    tids[at] = own_tid();
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
}

static void until_enlisted(int n) {
    while (__atomic_load_n(&started, __ATOMIC_SEQ_CST) < n) usleep(200);
}

// ---- pair

NAMED static void transfer_a_to_b(void) {
    pthread_mutex_lock(&account_a);
    pthread_barrier_wait(&all_hold);
    pthread_mutex_lock(&account_b);
    work++;
    KEEP_FRAME();
}

NAMED static void transfer_b_to_a(void) {
    pthread_mutex_lock(&account_b);
    pthread_barrier_wait(&all_hold);
    pthread_mutex_lock(&account_a);
    work++;
    KEEP_FRAME();
}

NAMED static void read_balance(void) {
    pthread_mutex_lock(&account_a);
    work++;
    KEEP_FRAME();
}

static void *first_main(void *unused) {
    enlist(0);
    transfer_a_to_b();
    return unused;
}

static void *second_main(void *unused) {
    enlist(1);
    transfer_b_to_a();
    return unused;
}

static void *reader_main(void *at) {
    enlist((int)(long)at);
    read_balance();
    return at;
}

static void reader_start(long at) {
    pthread_t thread;
    must(pthread_create(&thread, NULL, reader_main, (void *)at) == 0, "pthread_create");
    pthread_detach(thread);
}

// ---- five

NAMED static void dine(long seat) {
    pthread_mutex_lock(&forks[seat]);
    pthread_barrier_wait(&all_hold);
    pthread_mutex_lock(&forks[(seat + 1) % FORKS]);
    work++;
    KEEP_FRAME();
}

static void *philosopher_main(void *seat) {
    enlist((int)(long)seat);
    dine((long)seat);
    return NULL;
}

// ---- self

NAMED static void log_again(void) {
    pthread_mutex_lock(&journal);
    work++;
    KEEP_FRAME();
}

NAMED static void log_once(void) {
    pthread_mutex_lock(&journal);
    log_again();
    KEEP_FRAME();
}

static void *logger_main(void *unused) {
    enlist(0);
    log_once();
    return unused;
}

// ---- join

NAMED static void finish_work(void) {
    pthread_mutex_lock(&account_a);
    work++;
    KEEP_FRAME();
}

static void *finisher_main(void *unused) {
    enlist(1);
    finish_work();
    return unused;
}

NAMED static void shut_down(void) {
    pthread_mutex_lock(&account_a);
    must(pthread_create(&joined, NULL, finisher_main, NULL) == 0, "pthread_create");
    pthread_join(joined, NULL);
    KEEP_FRAME();
}

static void *stopper_main(void *unused) {
    enlist(0);
    shut_down();
    return unused;
}

// ---- rwlock

NAMED static void rewrite_table(void) {
    pthread_rwlock_wrlock(&table);
    pthread_barrier_wait(&all_hold);
    pthread_mutex_lock(&journal);
    work++;
    KEEP_FRAME();
}

NAMED static void journal_table(void) {
    pthread_mutex_lock(&journal);
    pthread_barrier_wait(&all_hold);
    pthread_rwlock_rdlock(&table);
    work++;
    KEEP_FRAME();
}

static void *rewriter_main(void *unused) {
    enlist(0);
    rewrite_table();
    return unused;
}

static void *journaler_main(void *unused) {
    enlist(1);
    journal_table();
    return unused;
}

// ---- gone, fork

NAMED static void forget_to_unlock(void) {
    pthread_mutex_lock(&account_a);
    KEEP_FRAME();
}

static void *forgetful_main(void *unused) {
    forget_to_unlock();
    return unused;
}

static int child_turn;

static void *holder_main(void *unused) {
    pthread_mutex_lock(&account_a);
    turn_give(child_turn);
    pause();
    return unused;
}

// ---- slow, busy

static void *slow_main(void *unused) {
    pthread_mutex_lock(&account_a);
    enlist(0);
    sleep(600);
    return unused;
}

NAMED static void both(void) {
    pthread_mutex_lock(&account_a);
    pthread_mutex_lock(&account_b);
    work++;
    usleep(300);
    pthread_mutex_unlock(&account_b);
    pthread_mutex_unlock(&account_a);
    KEEP_FRAME();
}

static void *busy_main(void *unused) {
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
    while (!stop) both();
    return unused;
}

// ---- the rest

static void until_stuck(int n) {
    for (int at = 0; at < n; at++) until_asleep(tids[at], NULL);
}

// Returns how many threads make the cycle, and how many wait behind it.
static int begin(const char *kind, int *behind) {
    pthread_barrier_init(&all_hold, NULL, 2);
    if (strcmp(kind, "pair") == 0) {
        thread_start(first_main);
        thread_start(second_main);
        until_enlisted(2);
        until_asleep(tids[0], &account_b);
        until_asleep(tids[1], &account_a);
        for (int at = 2; at < 5; at++) reader_start(at);
        until_enlisted(5);
        until_stuck(5);
        *behind = 3;
        return 2;
    }
    if (strcmp(kind, "five") == 0) {
        pthread_barrier_destroy(&all_hold);
        pthread_barrier_init(&all_hold, NULL, FORKS);
        for (long seat = 0; seat < FORKS; seat++) {
            pthread_mutex_init(&forks[seat], NULL);
            pthread_t thread;
            must(pthread_create(&thread, NULL, philosopher_main, (void *)seat) == 0, "pthread_create");
        }
        until_enlisted(FORKS);
        until_stuck(FORKS);
        return FORKS;
    }
    if (strcmp(kind, "self") == 0) {
        thread_start(logger_main);
        until_enlisted(1);
        until_stuck(1);
        return 1;
    }
    if (strcmp(kind, "join") == 0) {
        thread_start(stopper_main);
        until_enlisted(2);
        until_stuck(2);
        return 2;
    }
    if (strcmp(kind, "rwlock") == 0) {
        thread_start(rewriter_main);
        thread_start(journaler_main);
        until_enlisted(2);
        until_asleep(tids[0], NULL);
        until_asleep(tids[1], NULL);
        return 2;
    }
    if (strcmp(kind, "gone") == 0) {
        pthread_t thread;
        must(pthread_create(&thread, NULL, forgetful_main, NULL) == 0, "pthread_create");
        pthread_join(thread, NULL);
        reader_start(0);
        until_enlisted(1);
        until_stuck(1);
        return 1;
    }
    if (strcmp(kind, "slow") == 0) {
        thread_start(slow_main);
        until_enlisted(1);
        reader_start(1);
        until_enlisted(2);
        until_asleep(tids[1], &account_a);
        return 0;
    }
    must(strcmp(kind, "busy") == 0, "an unknown kind");
    for (int at = 0; at < 8; at++) thread_start(busy_main);
    until_enlisted(8);
    return 0;
}

// The child speaks for itself: it is the process to trace.
static void fork_holding(void) {
    child_turn = turn_new();
    thread_start(holder_main);
    turn_take(child_turn);
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child > 0) {
        int status;
        waitpid(child, &status, 0);
        _exit(0);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    reader_start(0);
    until_enlisted(1);
    until_stuck(1);
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "pair";
    int early = argc > 2 && strcmp(argv[2], "early") == 0;
    int behind = 0, threads = 1;
    if (strcmp(kind, "fork") == 0) {
        fork_holding();
        early = 1;
    } else if (early) {
        threads = begin(kind, &behind);
    }
    say_ready();
    expect_line("go");
    if (!early) threads = begin(kind, &behind);
    truth("threads", threads);
    truth("behind", behind);
    for (int at = 0; at < threads; at++) {
        char key[16];
        snprintf(key, sizeof key, "tid%d", at);
        truth(key, tids[at]);
    }
    say_done();
    stop = 1;
    _exit(0);
}
