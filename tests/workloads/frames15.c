// Two threads that hand a turn to each other through futexes: in each hand-over one wakes the other and goes to sleep, both
// from the same stack of exactly 15 frames, by frame pointers and by CFI alike. What a stack costs is measured on it.
//
//   frames15 CPU KIB     both threads on CPU; KIB of memory are written between hand-overs: what a program does to the caches
//
// `go` starts, `stop` ends it: `truth handovers`. To be built with -fno-omit-frame-pointer -mno-omit-leaf-frame-pointer.
#include "workload.h"

#include <linux/futex.h>

enum { ROOM = 48 };

static struct {
    _Alignas(64) uint32_t word;
} turns[2];
static volatile int stopped;
static long kib;
static volatile char *memory[2];
static long handovers[2];

// In the frame of who calls: a wrapper of libc has no frame pointer.
#define FUTEX(word, operation, value)                                                                                  \
    do {                                                                                                               \
        register const void *timeout __asm__("r10") = NULL;                                                            \
        long result;                                                                                                   \
        __asm__ volatile("syscall"                                                                                     \
                         : "=a"(result)                                                                                \
                         : "0"(SYS_futex), "D"(word), "S"(operation | FUTEX_PRIVATE_FLAG), "d"(value), "r"(timeout)    \
                         : "rcx", "r11", "memory");                                                                    \
    } while (0)

// 1
NAMED static void hand_over(int self) {
    volatile char room[ROOM] __attribute__((unused));
    room[0] = 1;
    __atomic_store_n(&turns[!self].word, 1, __ATOMIC_SEQ_CST);
    FUTEX(&turns[!self].word, FUTEX_WAKE, 1);
    while (!__atomic_exchange_n(&turns[self].word, 0, __ATOMIC_SEQ_CST) && !stopped)
        FUTEX(&turns[self].word, FUTEX_WAIT, 0);
    KEEP_FRAME();
}

#define FRAME(number, next)                                                                                            \
    NAMED static void frame_##number(int self) {                                                                       \
        volatile char room[ROOM] __attribute__((unused));                                                              \
        room[0] = 1;                                                                                                   \
        next(self);                                                                                                    \
        KEEP_FRAME();                                                                                                  \
    }
FRAME(2, hand_over)
FRAME(3, frame_2)
FRAME(4, frame_3)
FRAME(5, frame_4)
FRAME(6, frame_5)
FRAME(7, frame_6)
FRAME(8, frame_7)
FRAME(9, frame_8)
FRAME(10, frame_9)
FRAME(11, frame_10)
FRAME(12, frame_11)
FRAME(13, frame_12)

// 14. Called by the assembly below.
__attribute__((used)) NAMED static void frame_14(int self) {
    while (!stopped) {
        for (long at = 0; at < kib * 1024; at += 64) memory[self][at]++;
        frame_13(self);
        handovers[self]++;
    }
    KEEP_FRAME();
}

// 15: the last one for either way of finding frames, by a frame pointer of 0 and a return address that is undefined.
void frame_15(int self);
__asm__(".text\n"
        ".type frame_15, @function\n"
        "frame_15:\n"
        "    .cfi_startproc\n"
        "    .cfi_undefined rip\n"
        "    push %rbp\n"
        "    .cfi_adjust_cfa_offset 8\n"
        "    .cfi_offset rbp, -16\n"
        "    xor %ebp, %ebp\n"
        "    call frame_14\n"
        "    pop %rbp\n"
        "    .cfi_adjust_cfa_offset -8\n"
        "    ret\n"
        "    .cfi_endproc\n"
        "    .size frame_15, . - frame_15\n");

static void *thread_main(void *argument) {
    int self = argument != NULL;
    // A batch thread that is woken does not take the CPU from its waker, who would then not sleep.
    struct sched_param none = {0};
    must(sched_setscheduler(0, SCHED_BATCH, &none) == 0, "SCHED_BATCH");
    if (self) {
        while (!__atomic_exchange_n(&turns[self].word, 0, __ATOMIC_SEQ_CST)) FUTEX(&turns[self].word, FUTEX_WAIT, 0);
    }
    frame_15(self);
    // The other one may sleep.
    __atomic_store_n(&turns[!self].word, 1, __ATOMIC_SEQ_CST);
    FUTEX(&turns[!self].word, FUTEX_WAKE, 1);
    return NULL;
}

int main(int argc, char **argv) {
    must(argc > 2, "usage");
    kib = atol(argv[2]);
    for (int i = 0; i < 2; i++) must((memory[i] = calloc(1, (size_t)kib * 1024 + 64)) != NULL, "calloc");
    say_ready();
    expect_line("go");
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(atoi(argv[1]), &cpus);
    must(sched_setaffinity(0, sizeof cpus, &cpus) == 0, "sched_setaffinity");
    pthread_t threads[2];
    for (long i = 0; i < 2; i++) must(pthread_create(&threads[i], NULL, thread_main, (void *)i) == 0, "pthread_create");
    expect_line("stop");
    stopped = 1;
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    truth("handovers", handovers[0] + handovers[1]);
    say_done();
    return 0;
}
