// C++: threads that wait while an exception is in flight, in each of its phases, beside one that throws all the time.
//
//   go: the thrower throws 2,000 times; done: every thread sleeps where it began.
#include "workload.h"

#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

namespace zoo {

static std::mutex held, never_lock;
static std::condition_variable never;
static int started, ended;

NAMED static void wait_held() {
    held.lock();
    KEEP_FRAME();
}

/// Its destructor waits, so a thread sleeps in the clean-up of a frame that an exception leaves.
struct Guard {
    NAMED ~Guard() {
        wait_held();
        KEEP_FRAME();
    }
};

NAMED static void fails(int depth) {
    if (depth > 0) {
        std::string local(40, 'x');
        fails(depth - 1);
        KEEP_FRAME();
        return;
    }
    throw std::runtime_error("in flight");
}

NAMED static void guarded() {
    Guard guard;
    fails(5);
    KEEP_FRAME();
}

NAMED static void *cleaning(void *unused) {
    try {
        guarded();
    } catch (const std::exception &) {
    }
    return unused;
}

NAMED static void *catching(void *unused) {
    try {
        fails(3);
    } catch (const std::exception &) {
        wait_held();
        KEEP_FRAME();
    }
    return unused;
}

/// The exception's own copy is made before it flies, in the thrower's frame.
struct Slow {
    Slow() = default;
    NAMED Slow(const Slow &) {
        wait_held();
        KEEP_FRAME();
    }
};

NAMED static void throws_a_copy(const Slow &slow) {
    throw slow;
}

NAMED static void *copying(void *unused) {
    static Slow slow;
    try {
        throws_a_copy(slow);
    } catch (const Slow &) {
    }
    return unused;
}

/// An exception that nobody may let through: the handler runs on top of the unwinder.
NAMED static void refuses() noexcept {
    fails(2);
    KEEP_FRAME();
}

NAMED static void *terminating(void *unused) {
    refuses();
    KEEP_FRAME();
    return unused;
}

NAMED [[noreturn]] static void on_terminate() {
    for (;;) wait_held();
}

NAMED static void *waiting(void *unused) {
    std::unique_lock<std::mutex> lock(never_lock);
    never.wait(lock, [] { return false; });
    KEEP_FRAME();
    return unused;
}

template <class T> struct Cache {
    std::map<std::string, T> entries;
    template <class F> NAMED T &get(const std::string &key, F &&make) {
        auto found = entries.find(key);
        if (found == entries.end()) found = entries.emplace(key, make()).first;
        KEEP_FRAME();
        return found->second;
    }
};

NAMED static void *filling(void *unused) {
    Cache<int> cache;
    cache.get("key", [] {
        wait_held();
        return 1;
    });
    KEEP_FRAME();
    return unused;
}

NAMED static void *throwing(void *unused) {
    for (;;) {
        turn_take(started);
        for (int i = 0; i < 2000; i++) {
            try {
                fails(i % 7);
            } catch (const std::exception &) {
                if (i % 100 == 0) sleep_ms(1);
            }
        }
        turn_give(ended);
    }
    return unused;
}

}  // namespace zoo

int main() {
    using namespace zoo;
    std::set_terminate(on_terminate);
    started = turn_new();
    ended = turn_new();
    held.lock();
    for (auto body : {cleaning, catching, copying, terminating, waiting, filling, throwing}) thread_start(body);
    say_ready();
    expect_line("go");
    turn_give(started);
    turn_take(ended);
    say_done();
    return 0;
}
