package main

import (
	"context"
	"sync/atomic"
	"time"
)

// Calls `once` every so many milliseconds, for ever.
func paced(milliseconds int, once func()) {
	for range time.NewTicker(time.Duration(milliseconds) * time.Millisecond).C {
		once()
	}
}

func counted(key string) *int64 {
	var count int64
	counters[key] = func() int64 { return atomic.LoadInt64(&count) }
	return &count
}

// --- a parent that does not wait for its worker's answer

var (
	sendLeaked = counted("leak-send")
	sendClean  = counted("clean-send")
)

// The answer has nowhere to go: each call leaves one goroutine.
//
//go:noinline
func leakSend() {
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan struct{})
	answer := make(chan int)
	go leakedAnswer(gone, answer)
	handleRequest(ctx, cancel, answer)
	close(gone)
	atomic.AddInt64(sendLeaked, 1)
}

//go:noinline
func leakedAnswer(gone chan struct{}, answer chan int) {
	<-gone
	answer <- 1
}

// The answer has a place to lie.
//
//go:noinline
func cleanSend() {
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan struct{})
	answer := make(chan int, 1)
	go cleanAnswer(gone, answer)
	handleRequest(ctx, cancel, answer)
	close(gone)
	atomic.AddInt64(sendClean, 1)
}

//go:noinline
func cleanAnswer(gone chan struct{}, answer chan int) {
	<-gone
	answer <- 1
}

// Gives up before there is an answer.
func handleRequest(ctx context.Context, cancel func(), answer chan int) {
	cancel()
	select {
	case <-answer:
	case <-ctx.Done():
	}
}

// --- a ticker for each configuration that was loaded

var (
	tickersLeaked = counted("leak-ticker")
	tickersClean  = counted("clean-ticker")
	ticks         = counted("ticks")
	stopTicker    = make(chan struct{})
)

// The ticker of the configuration before goes on.
//
//go:noinline
func leakReload() {
	go tickLeaked()
	atomic.AddInt64(tickersLeaked, 1)
}

//go:noinline
func tickLeaked() { tick(nil) }

// The ticker of the configuration before is told to end.
//
//go:noinline
func cleanReload() {
	close(stopTicker)
	stopTicker = make(chan struct{})
	go tickClean(stopTicker)
	atomic.AddInt64(tickersClean, 1)
}

//go:noinline
func tickClean(stop chan struct{}) { tick(stop) }

func tick(stop chan struct{}) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			atomic.AddInt64(ticks, 1)
		case <-stop:
			return
		}
	}
}

// --- many, but no more than there are meant to be

const (
	poolWorkers = 499
	warmWorkers = 97
)

var (
	jobs     = make(chan int)
	jobsDone = counted("jobs")
	warmed   = counted("warmed")
)

// Starts all workers before the program is ready.
func pool() {
	for i := 0; i < poolWorkers; i++ {
		go poolWorker()
	}
}

//go:noinline
func poolWorker() {
	for job := range jobs {
		poolJob(job)
	}
}

//go:noinline
func poolJob(job int) {
	time.Sleep(time.Duration(job%97) * time.Millisecond)
	atomic.AddInt64(jobsDone, 1)
}

// Keeps about half of the workers busy.
func feedPool() {
	for job := 0; ; job += 23 {
		for burst := 0; burst < 5; burst++ {
			jobs <- job + burst
		}
		time.Sleep(time.Millisecond)
	}
}

// A pool that is filled as it is needed, over a few seconds: growth that ends.
func warmUp() {
	for i := 0; i < warmWorkers; i++ {
		go warmWorker()
		atomic.AddInt64(warmed, 1)
		time.Sleep(23 * time.Millisecond)
	}
}

//go:noinline
func warmWorker() { receiveNobody() }
