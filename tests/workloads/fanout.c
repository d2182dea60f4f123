// Story 4 in C: each request is asked of three workers, threads of their own, who send what they found into a channel with room for one.
// The first answer is enough for `serve_request`, and it goes: the one whose answer is stored will never know, the third waits for room in
// `send_result` for ever. `fixed`: there is room for all. 80 requests, one in 120 ms. Truth: `kept`, threads that stay.
#include "workload.h"

enum { REQUESTS = 80, WORKERS = 3 };

struct channel {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int room, held;
};

static int room;

NAMED static void send_result(struct channel *to) {
    pthread_mutex_lock(&to->lock);
    while (to->held == to->room) pthread_cond_wait(&to->changed, &to->lock);
    to->held++;
    pthread_cond_broadcast(&to->changed);
    pthread_mutex_unlock(&to->lock);
}

NAMED static void receive_result(struct channel *from) {
    pthread_mutex_lock(&from->lock);
    while (from->held == 0) pthread_cond_wait(&from->changed, &from->lock);
    from->held--;
    pthread_cond_broadcast(&from->changed);
    pthread_mutex_unlock(&from->lock);
}

static void *ask_one(void *channel) {
    send_result(channel);
    KEEP_FRAME();
    return NULL;
}

NAMED static void serve_request(void) {
    struct channel *channel = calloc(1, sizeof *channel);
    must(channel != NULL, "calloc");
    pthread_mutex_init(&channel->lock, NULL);
    pthread_cond_init(&channel->changed, NULL);
    channel->room = room;
    for (int at = 0; at < WORKERS; at++) {
        pthread_t thread;
        must(pthread_create(&thread, NULL, ask_one, channel) == 0, "pthread_create");
        pthread_detach(thread);
    }
    receive_result(channel);
    KEEP_FRAME();
}

int main(int argc, char **argv) {
    int fixed = argc > 1 && !strcmp(argv[1], "fixed");
    room = fixed ? WORKERS : 1;
    say_ready();
    expect_line("go");
    for (int at = 0; at < REQUESTS; at++) {
        serve_request();
        sleep_ms(120);
    }
    truth("kept", fixed ? 0 : REQUESTS);
    say_done();
    return 0;
}
