// Mutexes with a known number of sleeps: 23 on `cache_lock`, 97 on `session_lock`, 11 time-outs on `timed_lock`,
// 7 interrupted waits on `raw_word`.
//
// One waiter at a time. The holder takes the lock, gives the waiter its turn, sees in /proc that the waiter
// sleeps on that very word, holds on for a while, releases, and takes the lock again only after the waiter had
// it: so one contended acquisition is one sleep, and the number of sleeps is the number of rounds.
//
// `locks clean` takes the same locks as often without contention: nothing may be reported.
#include "workload.h"

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/time.h>

enum { CACHE_WAITS = 23, SESSION_WAITS = 97, TIMEOUTS = 11, INTERRUPTS = 7 };
enum { CACHE_HOLD_MS = 20, SESSION_HOLD_MS = 5, TIMEOUT_MS = 30 };

pthread_mutex_t cache_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t session_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_mutex_t timed_lock = PTHREAD_MUTEX_INITIALIZER;
int raw_word;

static int waiter_turn, holder_turn, start_turn, finished_turn;
static pid_t waiter_tid;
static long cache_sleeps, session_sleeps, timeouts, timeout_sleeps, interrupts, interrupt_sleeps;
static volatile long work;

// ---- the waiter

NAMED static void wait_for_cache(void) {
    must(pthread_mutex_lock(&cache_lock) == 0, "lock");
    work++;
    pthread_mutex_unlock(&cache_lock);
    KEEP_FRAME();
}

NAMED static void wait_for_session(void) {
    must(pthread_mutex_lock(&session_lock) == 0, "lock");
    work++;
    pthread_mutex_unlock(&session_lock);
    KEEP_FRAME();
}

NAMED static void wait_timed(void) {
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_nsec += TIMEOUT_MS * 1000000L;
    if (deadline.tv_nsec >= 1000000000L) {
        deadline.tv_nsec -= 1000000000L;
        deadline.tv_sec++;
    }
    if (pthread_mutex_timedlock(&timed_lock, &deadline) == ETIMEDOUT) timeouts++;
    KEEP_FRAME();
}

NAMED static void wait_raw(void) {
    if (syscall(SYS_futex, &raw_word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) == -1 && errno == EINTR) interrupts++;
    KEEP_FRAME();
}

NAMED static void handle_request(void (*wait)(void)) {
    turn_take(waiter_turn);
    wait();
    turn_give(holder_turn);
    KEEP_FRAME();
}

NAMED static void *worker_main(void *unused) {
    waiter_tid = own_tid();
    turn_give(holder_turn);
    for (int i = 0; i < CACHE_WAITS; i++) handle_request(wait_for_cache);
    for (int i = 0; i < SESSION_WAITS; i++) handle_request(wait_for_session);
    for (int i = 0; i < TIMEOUTS; i++) handle_request(wait_timed);
    for (int i = 0; i < INTERRUPTS; i++) handle_request(wait_raw);
    turn_take(waiter_turn);
    return unused;
}

// ---- the holder

NAMED static void release_cache(void) {
    must(pthread_mutex_unlock(&cache_lock) == 0, "unlock");
    work++;
    KEEP_FRAME();
}

NAMED static void refresh_cache(void) {
    must(pthread_mutex_lock(&cache_lock) == 0, "lock");
    turn_give(waiter_turn);
    until_asleep(waiter_tid, &cache_lock);
    cache_sleeps++;
    sleep_ms(CACHE_HOLD_MS);
    release_cache();
    turn_take(holder_turn);
    KEEP_FRAME();
}

NAMED static void release_session(void) {
    must(pthread_mutex_unlock(&session_lock) == 0, "unlock");
    work++;
    KEEP_FRAME();
}

NAMED static void refresh_session(void) {
    must(pthread_mutex_lock(&session_lock) == 0, "lock");
    turn_give(waiter_turn);
    until_asleep(waiter_tid, &session_lock);
    session_sleeps++;
    sleep_ms(SESSION_HOLD_MS);
    release_session();
    turn_take(holder_turn);
    KEEP_FRAME();
}

NAMED static void outlast_timeout(void) {
    turn_give(waiter_turn);
    until_asleep(waiter_tid, &timed_lock);
    timeout_sleeps++;
    turn_take(holder_turn);
    KEEP_FRAME();
}

NAMED static void interrupt_waiter(void) {
    turn_give(waiter_turn);
    until_asleep(waiter_tid, &raw_word);
    interrupt_sleeps++;
    sleep_ms(5);
    must(syscall(SYS_tgkill, getpid(), waiter_tid, SIGUSR1) == 0, "tgkill");
    turn_take(holder_turn);
    KEEP_FRAME();
}

NAMED static void *holder_main(void *unused) {
    turn_take(start_turn);
    for (int i = 0; i < CACHE_WAITS; i++) refresh_cache();
    for (int i = 0; i < SESSION_WAITS; i++) refresh_session();
    pthread_mutex_lock(&timed_lock);
    for (int i = 0; i < TIMEOUTS; i++) outlast_timeout();
    pthread_mutex_unlock(&timed_lock);
    for (int i = 0; i < INTERRUPTS; i++) interrupt_waiter();
    turn_give(finished_turn);
    turn_take(start_turn);
    return unused;
}

static void on_signal(int signo) { (void)signo; }

static void run_clean(void) {
    for (int i = 0; i < CACHE_WAITS; i++) wait_for_cache();
    for (int i = 0; i < SESSION_WAITS; i++) wait_for_session();
}

int main(int argc, char **argv) {
    int clean = argc > 1 && strcmp(argv[1], "clean") == 0;
    waiter_turn = turn_new();
    holder_turn = turn_new();
    start_turn = turn_new();
    finished_turn = turn_new();
    struct sigaction action = {.sa_handler = on_signal};  // no SA_RESTART: the wait returns EINTR
    sigaction(SIGUSR1, &action, NULL);

    thread_start(worker_main);
    turn_take(holder_turn);
    thread_start(holder_main);
    say_ready();
    expect_line("go");
    if (clean) {
        run_clean();
    } else {
        turn_give(start_turn);
        turn_take(finished_turn);
    }
    truth("cache_lock", cache_sleeps);
    truth("session_lock", session_sleeps);
    truth("timed_lock", timeouts < timeout_sleeps ? timeouts : timeout_sleeps);
    truth("raw_word", interrupts < interrupt_sleeps ? interrupts : interrupt_sleeps);
    say_done();
    return 0;
}
