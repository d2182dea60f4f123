// What every C and C++ workload shares: the handshake, and the proof that a thread is asleep.
//
//   workload: ready PID           test: go
//   workload: truth KEY NUMBER…, done          test: quit
//
// A workload ends by itself after ten minutes, so that a test that dies leaves nothing behind.
#ifndef WORKLOAD_H
#define WORKLOAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// Out of line, never cloned or renamed, and with something after its last call: the frame is there to be found.
#define NAMED __attribute__((noinline, noclone, noipa))
#define KEEP_FRAME() __asm__ volatile("" ::: "memory")

static inline void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(3);
    }
}

static inline void expect_line(const char *word) {
    char line[64];
    if (!fgets(line, sizeof line, stdin)) exit(0);
    line[strcspn(line, "\n")] = 0;
    if (strcmp(line, word) != 0) {
        fprintf(stderr, "expected %s, got %s\n", word, line);
        exit(3);
    }
}

static inline void say_ready(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    alarm(600);
    printf("ready %d\n", getpid());
}

static inline void truth(const char *key, long value) { printf("truth %s %ld\n", key, value); }

static inline void say_done(void) {
    printf("done\n");
    fflush(stdout);
    expect_line("quit");
}

static inline pid_t own_tid(void) { return (pid_t)syscall(SYS_gettid); }

static inline void sleep_ms(long ms) {
    struct timespec ts = {ms / 1000, (ms % 1000) * 1000000};
    while (nanosleep(&ts, &ts) != 0) {
    }
}

// Threads hand turns to each other through eventfds: a sleep there is a read, never a futex wait.
static inline int turn_new(void) {
    int fd = eventfd(0, EFD_SEMAPHORE);
    must(fd >= 0, "eventfd");
    return fd;
}

static inline void turn_give_many(int fd, uint64_t turns) {
    must(write(fd, &turns, sizeof turns) == sizeof turns, "write eventfd");
}

static inline void turn_give(int fd) {
    turn_give_many(fd, 1);
}

static inline void turn_take(int fd) {
    uint64_t one;
    must(read(fd, &one, sizeof one) == sizeof one, "read eventfd");
}

// Whether thread `tid` is off the CPU, asleep in futex, on `word` unless that is NULL. The kernel fills in the
// arguments only after it has waited for the thread to be inactive; a running thread reads "running".
static inline int asleep_in_futex(pid_t tid, const void *word) {
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    FILE *f = fopen(path, "r");
    must(f != NULL, path);
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    long nr;
    unsigned long address;
    if (sscanf(text, "%ld %lx", &nr, &address) != 2 || nr != SYS_futex) return 0;
    return word == NULL || address == (unsigned long)word;
}

// Returns once `tid` sleeps on `word`.
static inline void until_asleep(pid_t tid, const void *word) {
    while (!asleep_in_futex(tid, word)) usleep(200);
}

static inline void thread_start(void *(*body)(void *)) {
    pthread_t thread;
    must(pthread_create(&thread, NULL, body, NULL) == 0, "pthread_create");
    pthread_detach(thread);
}

#endif
