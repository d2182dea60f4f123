// C++ locks with a known number of sleeps: 23 on a std::mutex, 97 writers behind a reader of a std::shared_mutex.
// One waiter at a time, as in locks.c.
#include "workload.h"

#include <mutex>
#include <shared_mutex>

static constexpr int MUTEX_WAITS = 23, WRITER_WAITS = 97;

std::mutex table_mutex;
std::shared_mutex route_lock;

static int waiter_turn, holder_turn, start_turn, finished_turn;
static pid_t waiter_tid;
static long mutex_sleeps, writer_sleeps;
static volatile long work;

NAMED static void wait_for_table() {
    std::lock_guard<std::mutex> guard(table_mutex);
    work = work + 1;
}

NAMED static void wait_for_routes() {
    std::unique_lock<std::shared_mutex> guard(route_lock);
    work = work + 1;
}

NAMED static void handle_request(void (*wait)()) {
    turn_take(waiter_turn);
    wait();
    turn_give(holder_turn);
    KEEP_FRAME();
}

NAMED static void *worker_main(void *unused) {
    waiter_tid = own_tid();
    turn_give(holder_turn);
    for (int i = 0; i < MUTEX_WAITS; i++) handle_request(wait_for_table);
    for (int i = 0; i < WRITER_WAITS; i++) handle_request(wait_for_routes);
    turn_take(waiter_turn);
    return unused;
}

NAMED static void refresh_table() {
    {
        std::lock_guard<std::mutex> guard(table_mutex);
        turn_give(waiter_turn);
        until_asleep(waiter_tid, NULL);
        mutex_sleeps++;
        sleep_ms(20);
    }
    turn_take(holder_turn);
    KEEP_FRAME();
}

NAMED static void read_routes() {
    {
        std::shared_lock<std::shared_mutex> guard(route_lock);
        turn_give(waiter_turn);
        until_asleep(waiter_tid, NULL);
        writer_sleeps++;
        sleep_ms(5);
    }
    turn_take(holder_turn);
    KEEP_FRAME();
}

NAMED static void *holder_main(void *unused) {
    turn_take(start_turn);
    for (int i = 0; i < MUTEX_WAITS; i++) refresh_table();
    for (int i = 0; i < WRITER_WAITS; i++) read_routes();
    turn_give(finished_turn);
    turn_take(start_turn);
    return unused;
}

int main() {
    waiter_turn = turn_new();
    holder_turn = turn_new();
    start_turn = turn_new();
    finished_turn = turn_new();
    thread_start(worker_main);
    turn_take(holder_turn);
    thread_start(holder_main);
    say_ready();
    expect_line("go");
    turn_give(start_turn);
    turn_take(finished_turn);
    truth("std_mutex", mutex_sleeps);
    truth("std_shared_mutex", writer_sleeps);
    say_done();
    return 0;
}
