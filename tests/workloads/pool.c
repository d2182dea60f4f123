// The false-positive twin of every lock workload: eight workers on one condition variable, idle but for 23 jobs.
//
// The job is signalled after the mutex is released and the next one comes 50 ms later, so nobody ever waits for
// `pool_lock`; that the workers sleep is no fault of anyone.
#include "workload.h"

enum { WORKERS = 8, JOBS = 23 };

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t pool_work = PTHREAD_COND_INITIALIZER;
static int queued, waiting, worked;

NAMED static void wait_for_job(void) {
    pthread_mutex_lock(&pool_lock);
    waiting++;
    while (queued == 0) pthread_cond_wait(&pool_work, &pool_lock);
    waiting--;
    queued--;
    worked++;
    pthread_mutex_unlock(&pool_lock);
    KEEP_FRAME();
}

NAMED static void *pool_worker(void *unused) {
    for (;;) {
        wait_for_job();
        sleep_ms(2);
    }
    return unused;
}

NAMED static void submit_job(void) {
    pthread_mutex_lock(&pool_lock);
    queued++;
    pthread_mutex_unlock(&pool_lock);
    pthread_cond_signal(&pool_work);
    KEEP_FRAME();
}

static int idle_workers(void) {
    pthread_mutex_lock(&pool_lock);
    int n = waiting;
    pthread_mutex_unlock(&pool_lock);
    return n;
}

int main(void) {
    for (int i = 0; i < WORKERS; i++) thread_start(pool_worker);
    while (idle_workers() < WORKERS) sleep_ms(1);
    sleep_ms(20);
    say_ready();
    expect_line("go");
    for (int i = 0; i < JOBS; i++) {
        submit_job();
        sleep_ms(50);
    }
    truth("jobs", worked);
    say_done();
    return 0;
}
