// Story 3, "the lock nobody knew": eight threads answer 400 requests from a cache behind one mutex, which is held while a price is
// fetched (3 ms). `fixed`: fetched first, and then stored under the lock.
#include "workload.h"

enum { THREADS = 8, REQUESTS = 400 };

pthread_mutex_t price_lock = PTHREAD_MUTEX_INITIALIZER;
static int left = REQUESTS, ended, fixed;
static long prices[64];

NAMED static long fetch_price(void) {
    sleep_ms(3);
    KEEP_FRAME();
    return own_tid();
}

NAMED static void lookup_price(int item) {
    long price = fixed ? fetch_price() : 0;
    pthread_mutex_lock(&price_lock);
    if (!fixed) price = fetch_price();
    prices[item % 64] = price;
    pthread_mutex_unlock(&price_lock);
    KEEP_FRAME();
}

static void *serve(void *unused) {
    for (int item; (item = __atomic_fetch_sub(&left, 1, __ATOMIC_SEQ_CST)) > 0;) lookup_price(item);
    __atomic_fetch_add(&ended, 1, __ATOMIC_SEQ_CST);
    return unused;
}

int main(int argc, char **argv) {
    fixed = argc > 1 && strcmp(argv[1], "fixed") == 0;
    say_ready();
    expect_line("go");
    for (int at = 0; at < THREADS; at++) thread_start(serve);
    while (__atomic_load_n(&ended, __ATOMIC_SEQ_CST) < THREADS) sleep_ms(5);
    truth("requests", REQUESTS);
    say_done();
    return 0;
}
