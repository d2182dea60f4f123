// Threads by the thousand.
//
//   storm hold N            N threads exist before `ready`; at `go` each wakes, sleeps, wakes once more and sleeps on:
//                           one sleep of each begins and ends after `go`
//   storm churn N SECONDS   at `go`, N threads are made and end, spread over SECONDS
#include "workload.h"

#include <dirent.h>

static int wake_turn, second_turn, back_turn;
static long ended;

NAMED static void *storm_holder(void *unused) {
    turn_give(back_turn);
    turn_take(wake_turn);
    turn_give(back_turn);
    turn_take(second_turn);
    turn_give(back_turn);
    sleep_ms(600 * 1000);
    return unused;
}

NAMED static void *storm_once(void *unused) {
    __atomic_add_fetch(&ended, 1, __ATOMIC_RELAXED);
    return unused;
}

static void start_small(void *(*body)(void *)) {
    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 64 * 1024);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    while (pthread_create(&thread, &attr, body, NULL) != 0) sleep_ms(1);
    pthread_attr_destroy(&attr);
}

// How many threads of this process sleep.
static long asleep(void) {
    long count = 0;
    DIR *tasks = opendir("/proc/self/task");
    must(tasks != NULL, "/proc/self/task");
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
        char path[300], text[256];
        snprintf(path, sizeof path, "/proc/self/task/%s/stat", entry->d_name);
        FILE *f = fopen(path, "r");
        if (f == NULL) continue;  // . and ..
        size_t n = fread(text, 1, sizeof text - 1, f);
        fclose(f);
        text[n] = 0;
        char *state = strrchr(text, ')');
        count += state != NULL && state[1] == ' ' && state[2] == 'S';
    }
    closedir(tasks);
    return count;
}

// Wakes all that wait for `turn`, by one write: each write wakes every one of them, so n writes would make n * n / 2
// wake-ups.
static void wake_all(int turn, long n) {
    turn_give_many(turn, n);
    for (long i = 0; i < n; i++) turn_take(back_turn);
}

int main(int argc, char **argv) {
    must(argc >= 3, "storm hold N | storm churn N SECONDS");
    int hold = strcmp(argv[1], "hold") == 0;
    long n = atol(argv[2]);
    wake_turn = turn_new();
    second_turn = turn_new();
    back_turn = turn_new();
    if (hold) {
        for (long i = 0; i < n; i++) start_small(storm_holder);
        for (long i = 0; i < n; i++) turn_take(back_turn);
    }
    say_ready();
    expect_line("go");
    if (hold) {
        wake_all(wake_turn, n);
        while (asleep() < n) sleep_ms(1);
        wake_all(second_turn, n);
        truth("threads", n + 1);
    } else {
        long ticks = atol(argv[3]) * 100, made = 0;
        for (long tick = 1; tick <= ticks; tick++) {
            for (; made < n * tick / ticks; made++) start_small(storm_once);
            sleep_ms(9);
        }
        while (__atomic_load_n(&ended, __ATOMIC_RELAXED) < n) sleep_ms(1);
        truth("created", made);
    }
    say_done();
    return 0;
}
