// Threads that wait for one lock through code that is hard to unwind. Each has a name of its own; their functions begin
// with `u_`, so that a test can say exactly which it must see, in which order.
//
//   unwind [LIBRARY]   go: the threads start; done: all are asleep.
#include "workload.h"

#include <alloca.h>
#include <dlfcn.h>
#include <signal.h>
#include <sys/prctl.h>

enum { DEPTH = 600 };

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static const char *library;
static volatile int sink;

NAMED int u_block(void) { int n = pthread_mutex_lock(&held); KEEP_FRAME(); return n; }

NAMED static void u_handler(int number) { sink += number + u_block(); KEEP_FRAME(); }
NAMED static void u_raises(void) { raise(SIGUSR1); KEEP_FRAME(); }

NAMED static int u_faults(volatile int *at) { int n = *at; KEEP_FRAME(); return n; }
NAMED static void u_faults_aside(void) {
    stack_t aside = {.ss_sp = malloc(65536), .ss_size = 65536};
    must(sigaltstack(&aside, NULL) == 0, "sigaltstack");
    sink += u_faults((int *)8);
    KEEP_FRAME();
}

NAMED static int u_variable(int n) {
    char room[n], *more = alloca((size_t)n * 3);
    memset(room, 1, (size_t)n);
    memset(more, 2, (size_t)n * 3);
    int m = u_block();
    KEEP_FRAME();
    return m + room[n / 2] + more[n];
}
NAMED static int u_realigned(int n) {
    _Alignas(64) char room[64];
    char more[n];
    memset(room, 1, 64);
    memset(more, 1, (size_t)n);
    int m = u_variable(n);
    KEEP_FRAME();
    return m + room[n % 64] + more[n / 2];
}
NAMED static void u_varies(void) { sink += u_realigned(97); KEEP_FRAME(); }

NAMED static int u_recurses(int depth) {
    int n = depth == 1 ? u_block() : u_recurses(depth - 1);
    KEEP_FRAME();
    return n + depth;
}
NAMED static void u_deep(void) { sink += u_recurses(DEPTH); KEEP_FRAME(); }

// By hand, without a word about how to unwind it: calls its first argument with rbp set to its second, and returns in a way
// that says nothing either.
__asm__(".text\n.globl u_bare\n.type u_bare,@function\n"
        "u_bare: push %rbp\n push %rbx\n sub $8,%rsp\n mov %rsi,%rbp\n call *%rdi\n"
        " add $8,%rsp\n pop %rbx\n pop %rbp\n pop %rcx\n jmp *%rcx\n.size u_bare,.-u_bare\n"
        // The same, but leaves rbp as it is.
        ".globl u_bare_keeps\n.type u_bare_keeps,@function\n"
        "u_bare_keeps: sub $8,%rsp\n call *%rdi\n add $8,%rsp\n pop %rcx\n jmp *%rcx\n.size u_bare_keeps,.-u_bare_keeps\n"
        // Without rules too, but it returns as code does: that is a rule.
        ".globl u_by_hand\n.type u_by_hand,@function\n"
        "u_by_hand: push %rbp\n push %rbx\n sub $24,%rsp\n mov $1,%ebp\n xor %ebx,%ebx\n call *%rdi\n"
        " test %eax,%eax\n je 1f\n mov $2,%eax\n1: add $24,%rsp\n pop %rbx\n pop %rbp\n ret\n.size u_by_hand,.-u_by_hand\n");
int u_by_hand(int (*callee)(void));
int u_bare(int (*callee)(void), void *rbp);
int u_bare_keeps(int (*callee)(void));

NAMED static void u_never(void) { KEEP_FRAME(); }
NAMED static void u_calls_by_hand(int n) {
    // The caller's frame is found by the register that the code by hand has saved.
    volatile char *room = alloca((size_t)n);
    room[0] = 1;
    sink += u_by_hand(u_block) + room[0];
    KEEP_FRAME();
}
NAMED static void u_writes(void) { u_calls_by_hand((int)own_tid() % 64 + 64); KEEP_FRAME(); }
NAMED static void u_calls_bare(void) { sink += u_bare(u_block, (void *)1); KEEP_FRAME(); }
// What rbp points to looks like a frame, but is an object with a function pointer in it.
NAMED static void u_calls_baited(void) {
    volatile uintptr_t object[4] = {0, (uintptr_t)u_never, 0, 0};
    object[0] = (uintptr_t)&object[2];
    sink += u_bare(u_block, (void *)object);
    KEEP_FRAME();
}
// rbp is the frame pointer of the caller's frame, which is not that of the code without rules.
NAMED static void u_calls_keeping(int n) {
    volatile char *room = alloca((size_t)n);
    room[0] = 1;
    sink += u_bare_keeps(u_block);
    sink += room[0];
    KEEP_FRAME();
}
NAMED static void u_inherits(void) { u_calls_keeping((int)own_tid() % 64 + 64); KEEP_FRAME(); }

NAMED static int u_called_back(void) { int n = u_block(); KEEP_FRAME(); return n; }
NAMED static void u_loads(void) {
    void *handle = library ? dlopen(library, RTLD_NOW) : NULL;
    int (*u_in_library)(int (*)(void)) = handle ? (int (*)(int (*)(void)))dlsym(handle, "u_in_library") : NULL;
    sink += u_in_library ? u_in_library(u_called_back) : u_called_back();
    KEEP_FRAME();
}

static const struct {
    const char *name;
    void (*body)(void);
} threads[] = {
    {"signal", u_raises}, {"aside", u_faults_aside}, {"varies", u_varies}, {"deep", u_deep}, {"byhand", u_writes},
    {"bare", u_calls_bare},
    {"baited", u_calls_baited}, {"inherits", u_inherits}, {"loads", u_loads},
};
enum { THREADS = sizeof threads / sizeof *threads };
static volatile pid_t tids[THREADS];

NAMED static void *u_thread(void *which) {
    intptr_t n = (intptr_t)which;
    prctl(PR_SET_NAME, threads[n].name);
    tids[n] = own_tid();
    threads[n].body();
    KEEP_FRAME();
    return NULL;
}

int main(int argc, char **argv) {
    library = argc > 1 ? argv[1] : NULL;
    struct sigaction plain = {.sa_handler = u_handler}, aside = {.sa_handler = u_handler, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &plain, NULL);
    sigaction(SIGSEGV, &aside, NULL);
    u_never();
    pthread_mutex_lock(&held);
    say_ready();
    expect_line("go");
    for (intptr_t i = 0; i < THREADS; i++) {
        pthread_t thread;
        must(pthread_create(&thread, NULL, u_thread, (void *)i) == 0, "pthread_create");
    }
    for (int i = 0; i < THREADS; i++) {
        while (tids[i] == 0) usleep(200);
        // musl's futex word is not the mutex's first.
#ifdef __GLIBC__
        until_asleep(tids[i], &held);
#else
        until_asleep(tids[i], NULL);
#endif
    }
    say_done();
    _exit(0);
}
