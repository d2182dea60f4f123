// Two threads that take two std::mutex in opposite orders, `early` or after `go`; with `ordered` by std::scoped_lock, often.
#include "workload.h"

#include <atomic>
#include <mutex>
#include <thread>

std::mutex orders, stock;
static std::atomic<int> holding{0};
static std::atomic<pid_t> tids[2];
static std::atomic<bool> stop{false};
static volatile long work;

static void both_hold() {
    holding++;
    while (holding < 2) usleep(200);
}

NAMED void place_order() {
    std::lock_guard<std::mutex> first(orders);
    both_hold();
    std::lock_guard<std::mutex> second(stock);
    work = work + 1;
    KEEP_FRAME();
}

NAMED void restock() {
    std::lock_guard<std::mutex> first(stock);
    both_hold();
    std::lock_guard<std::mutex> second(orders);
    work = work + 1;
    KEEP_FRAME();
}

NAMED void in_order() {
    std::scoped_lock both(orders, stock);
    work = work + 1;
    usleep(300);
    KEEP_FRAME();
}

static void begin(bool ordered) {
    for (int side = 0; side < 2; side++) {
        std::thread([side, ordered] {
            tids[side] = own_tid();
            if (ordered) {
                while (!stop) in_order();
            } else if (side == 0) {
                place_order();
            } else {
                restock();
            }
        }).detach();
    }
    for (int side = 0; side < 2; side++) {
        while (tids[side] == 0) usleep(200);
        if (!ordered) until_asleep(tids[side], side == 0 ? (void *)&stock : (void *)&orders);
    }
}

int main(int argc, char **argv) {
    bool ordered = false, early = false;
    for (int at = 1; at < argc; at++) {
        ordered |= strcmp(argv[at], "ordered") == 0;
        early |= strcmp(argv[at], "early") == 0;
    }
    if (early) begin(ordered);
    say_ready();
    expect_line("go");
    if (!early) begin(ordered);
    truth("threads", ordered ? 0 : 2);
    truth("tid0", tids[0]);
    truth("tid1", tids[1]);
    say_done();
    stop = true;
    _exit(0);
}
