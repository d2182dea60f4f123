#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <unistd.h>

namespace app {
static std::mutex pool;
static volatile int sink;
template <class T> struct Queue {
  __attribute__((noinline, noclone)) T take(T x) {
    std::lock_guard<std::mutex> guard(pool);
    sink = sink + 1;
    return x;
  }
};
}  // namespace app

int main() {
  app::pool.lock();
  std::thread t([] { app::Queue<int> q; app::sink = q.take(3); });
  printf("ready %p %p\n", (void *)&app::pool, (void *)&app::pool);
  fflush(stdout);
  for (;;) pause();
}
