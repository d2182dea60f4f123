package main

/*
#cgo LDFLAGS: -lpthread
#include <pthread.h>
#include <semaphore.h>
#include <unistd.h>

extern void goCalledFromC(int depth);
extern void goCalledFromThread(void);

static sem_t never;

static void wait_in_c(void) {
	while (sem_wait(&never)) {}
}

static void call_go(int depth) { goCalledFromC(depth); }

static void *thread_main(void *unused) {
	goCalledFromThread();
	return unused;
}

static int start_thread(void) {
	pthread_t thread;
	sem_init(&never, 0, 0);
	return pthread_create(&thread, 0, thread_main, 0);
}
*/
import "C"

func init() {
	stillMore = append(stillMore, stillCgo)
}

func stillCgo() {
	if C.start_thread() != 0 {
		panic("no thread")
	}
	<-threadCalled
	park("waitInC", 5, waitInC)
	park("callC", 3, func() { callC(0) })
	park("callC", 2, func() { callC(1) })
	promise("goCalledFromC", 5)
	promise("goCalledFromThread", 1)
}

//go:noinline
func waitInC() { C.wait_in_c() }

//go:noinline
func callC(depth C.int) { C.call_go(depth) }

//export goCalledFromC
func goCalledFromC(depth C.int) {
	if depth > 0 {
		callC(depth - 1)
	}
	<-fromNobody
}

var threadCalled = make(chan bool)

// Called on a thread that Go did not make.
//
//export goCalledFromThread
func goCalledFromThread() {
	threadCalled <- true
	<-fromNobody
}
