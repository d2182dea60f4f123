// One table, read by four threads and reloaded by a fifth now and then, behind a mutex or a lock for readers and writers.
//
// `table mutex`: readers wait for each other. `table rwlock`: the same functions, where readers wait for the writer only. What takes
// time in them is a sleep, as of a query, so that the waits do not depend on what else the machine does.
//
// `ready`, `go`, `running`; then `count`, `truth reads N`, `done`.
#include "workload.h"

#include <stdatomic.h>

enum { READERS = 4, READ_US = 1100, BETWEEN_US = 700, RELOAD_US = 1300, RELOAD_EVERY_US = 23000 };

pthread_mutex_t table_mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_rwlock_t table_rwlock = PTHREAD_RWLOCK_INITIALIZER;
static int shared;
static atomic_long reads;
static atomic_int stop;

static void sleep_us(long us) {
    struct timespec time = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&time, NULL);
}

NAMED static void lookup(void) {
    if (shared) {
        must(pthread_rwlock_rdlock(&table_rwlock) == 0, "rdlock");
        sleep_us(READ_US);
        pthread_rwlock_unlock(&table_rwlock);
    } else {
        must(pthread_mutex_lock(&table_mutex) == 0, "lock");
        sleep_us(READ_US);
        pthread_mutex_unlock(&table_mutex);
    }
    atomic_fetch_add(&reads, 1);
    KEEP_FRAME();
}

NAMED static void reload(void) {
    if (shared) {
        must(pthread_rwlock_wrlock(&table_rwlock) == 0, "wrlock");
        sleep_us(RELOAD_US);
        pthread_rwlock_unlock(&table_rwlock);
    } else {
        must(pthread_mutex_lock(&table_mutex) == 0, "lock");
        sleep_us(RELOAD_US);
        pthread_mutex_unlock(&table_mutex);
    }
    KEEP_FRAME();
}

NAMED static void *serve(void *unused) {
    while (!atomic_load(&stop)) {
        lookup();
        sleep_us(BETWEEN_US);
    }
    return unused;
}

NAMED static void *refresh(void *unused) {
    while (!atomic_load(&stop)) {
        reload();
        sleep_us(RELOAD_EVERY_US);
    }
    return unused;
}

int main(int count, char **words) {
    shared = count > 1 && strcmp(words[1], "rwlock") == 0;
    say_ready();
    expect_line("go");
    pthread_t threads[READERS + 1];
    for (int i = 0; i < READERS; i++) must(pthread_create(&threads[i], NULL, serve, NULL) == 0, "thread");
    must(pthread_create(&threads[READERS], NULL, refresh, NULL) == 0, "thread");
    printf("running\n");
    expect_line("count");
    atomic_store(&stop, 1);
    for (int i = 0; i <= READERS; i++) pthread_join(threads[i], NULL);
    truth("reads", atomic_load(&reads));
    say_done();
}
