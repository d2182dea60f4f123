// Threads blocked in known call chains; prints "ready" when all are about to block.
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KEEP __attribute__((noinline, noclone))
static int blocked[2];
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
pthread_mutex_t big[3000];
static volatile int sink;

KEEP static int block(void) {
  char c;
  int n = read(blocked[0], &c, 1);
  sink += n;
  return n;
}

KEEP static int lock_inner(void) { int n = pthread_mutex_lock(&held); sink += n; return n; }
KEEP static int lock_outer(void) { int n = lock_inner(); sink += n; return n; }
static void *t_mutex(void *p) { sink += lock_outer(); return p; }

KEEP static int recurse(int n) { int m = n ? recurse(n - 1) : block(); sink += m; return m; }
static void *t_read(void *p) { sink += recurse(23); return p; }

KEEP static int vla(int n) {
  char room[n], *more = alloca(n * 3);
  memset(room, 1, n);
  memset(more, 2, n * 3);
  int m = block();
  sink += m + room[n / 2] + more[n];
  return m;
}
static void *t_vla(void *p) { sink += vla(970); return p; }

KEEP static int realigned(int n) {
  _Alignas(64) char room[64];
  char more[n];
  memset(room, 1, 64);
  memset(more, 1, n);
  int m = block();
  sink += m + room[n % 64] + more[n / 2];
  return m;
}
static void *t_realigned(void *p) { sink += realigned(97); return p; }

KEEP static int handler_inner(void) { int m = block(); sink += m; return m; }
static void handler(int s) { sink += s + handler_inner(); }
KEEP static int interrupted(void) { int m = raise(SIGUSR1); sink += m; return m; }
static void *t_signal(void *p) { sink += interrupted(); return p; }

static void fault_handler(int s) { sink += s + handler_inner(); }
KEEP static int faults(volatile int *p) { int m = *p; sink += m; return m; }
static void *t_fault(void *p) {
  stack_t s = {.ss_sp = malloc(65536), .ss_size = 65536};
  sigaltstack(&s, 0);
  sink += faults((int *)8);
  return p;
}

KEEP static int compare(const void *a, const void *b) { int m = block(); sink += m; return a < b; }
KEEP static int sorts(void) { int a[] = {2, 1}; qsort(a, 2, 4, compare); sink += a[0]; return a[1]; }
static void *t_sort(void *p) { sink += sorts(); return p; }

KEEP static int main_outer(void) { int m = pause(); sink += m; return m; }

int main(void) {
  struct sigaction a = {.sa_handler = handler}, f = {.sa_handler = fault_handler, .sa_flags = SA_ONSTACK};
  sigaction(SIGUSR1, &a, 0);
  sigaction(SIGSEGV, &f, 0);
  sink = pipe(blocked);
  pthread_mutex_lock(&held);
  void *(*all[])(void *) = {t_mutex, t_read, t_vla, t_realigned, t_signal, t_fault, t_sort};
  for (int i = 0; i < 7; i++) {
    pthread_t t;
    pthread_create(&t, 0, all[i], 0);
  }
  printf("ready %p %p\n", (void *)&held, (void *)&big[2999]);
  fflush(stdout);
  for (;;) sink += main_outer();
}
