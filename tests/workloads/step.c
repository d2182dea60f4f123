// Runs code one instruction at a time: each instruction is interrupted by a signal whose handler sleeps. So a stack is
// taken through every point of a prologue, an epilogue, a linkage stub, the vdso.
//
//   step own|plt|vdso   go; truth steps: different instructions interrupted; truth inner, leaf: those of them in `u_inner`, `u_leaf`.
#include "workload.h"

#include <alloca.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/param.h>
#include <ucontext.h>

enum { SPAN = 0x4000 };

static unsigned char seen[SPAN];
static struct {
    uintptr_t start, end;
} region, inner, leaf;
static volatile int stepping, sink;
static long steps, in_inner, in_leaf;

NAMED static void u_trap(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (!stepping) {
        registers[REG_EFL] &= ~0x100L;
        return;
    }
    registers[REG_EFL] |= 0x100;
    uintptr_t ip = (uintptr_t)registers[REG_RIP];
    if (ip < region.start || ip >= region.end || ip - region.start >= SPAN) return;
    // Once each: the vdso tries again whenever time has passed.
    if (seen[ip - region.start]++ != 0) return;
    steps++;
    in_inner += ip >= inner.start && ip < inner.end;
    in_leaf += ip >= leaf.start && ip < leaf.end;
    struct timespec ts = {0, 200000};
    nanosleep(&ts, NULL);
    KEEP_FRAME();
}

// In sections of their own, whose bounds the linker tells.
#define OWN(name) __attribute__((section("own_" #name))) NAMED
extern char __start_own_leaf[], __stop_own_leaf[], __start_own_inner[], __stop_own_inner[], __start_own_outer[], __stop_own_outer[];
extern char _init[], _start[];
OWN(leaf) int u_leaf(int a, int b) {
    KEEP_FRAME();
    return a * b;
}
OWN(inner) int u_inner(int n, int a, int b, int c, int d, int e, int f, int g) {
    volatile char *room = alloca((size_t)n);
    room[0] = 1;
    int h = u_leaf(a, b) + u_leaf(c, d) + u_leaf(e, f) + u_leaf(a, g) + u_leaf(b, c);
    KEEP_FRAME();
    return h + room[0] + a + b + c + d + e + f + g;
}
OWN(outer) int u_outer(int n) {
    int a = u_inner(n, n, 1, 2, 3, 4, 5, 6);
    KEEP_FRAME();
    return a + u_leaf(n, a);
}

// The linker makes a stub for this call, and the loader finds its target at the first.
NAMED static void u_calls_stub(void) { sink += (int)getppid(); KEEP_FRAME(); }
NAMED static void u_calls_outer(void) { sink += u_outer(64); KEEP_FRAME(); }
NAMED static void u_calls_vdso(void) {
    struct timespec now;
    sink += clock_gettime(CLOCK_MONOTONIC, &now);
    KEEP_FRAME();
}

NAMED static void u_steps(void (*body)(void)) {
    stepping = 1;
    raise(SIGTRAP);
    body();
    stepping = 0;
    KEEP_FRAME();
}

static void find(const char *what) {
    inner.start = (uintptr_t)__start_own_inner, inner.end = (uintptr_t)__stop_own_inner;
    leaf.start = (uintptr_t)__start_own_leaf, leaf.end = (uintptr_t)__stop_own_leaf;
    if (strcmp(what, "own") == 0) {
        // The three lie together, in an order that the linker chose.
        uintptr_t outer[] = {(uintptr_t)__start_own_outer, (uintptr_t)__stop_own_outer};
        region.start = MIN(MIN(inner.start, leaf.start), outer[0]);
        region.end = MAX(MAX(inner.end, leaf.end), outer[1]);
    } else if (strcmp(what, "vdso") == 0) {
        region.start = getauxval(AT_SYSINFO_EHDR);
        region.end = region.start + SPAN;
    } else {
        // The stubs lie between these two functions; nothing else that lies there runs meanwhile.
        region.start = (uintptr_t)_init;
        region.end = (uintptr_t)_start;
    }
}

int main(int argc, char **argv) {
    must(argc == 2, "step own|plt|vdso");
    struct sigaction trap = {.sa_sigaction = u_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &trap, NULL);
    find(argv[1]);
    say_ready();
    expect_line("go");
    u_steps(argv[1][0] == 'o' ? u_calls_outer : argv[1][0] == 'v' ? u_calls_vdso : u_calls_stub);
    truth("steps", steps);
    truth("inner", in_inner);
    truth("leaf", in_leaf);
    say_done();
    return 0;
}
