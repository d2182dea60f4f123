package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"
)

// --- ways in which goroutines come to be

func stillCreators() {
	startFromEnded()
	startWithArguments(7)
	startInClosure()
	startLabelled()
	time.AfterFunc(time.Nanosecond, receiveNobody)
	startFinalizer()
	parent, cancel := context.WithCancel(foreign{})
	child, _ := context.WithTimeout(parent, 97*time.Hour)
	keep(cancel)
	promise("(*station).wait", 1) // by the finalizer, besides those by method value
	promise("(*station).wait", promised["(*station).wait-fm"])
	signals := make(chan os.Signal)
	signal.Notify(signals, syscall.SIGUSR1)
	park("waitDone", 3, func() { waitDone(child) })
}

//go:noinline
func waitDone(ctx context.Context) { <-ctx.Done() }

// Before main is.
func init() {
	if os.Args[1] == "still" {
		go receiveNobody()
	}
}

func init() {
	if os.Args[1] == "still" {
		go func() { receiveNobody() }()
	}
}

// Each is started by one that ends at once: nobody is left who could be its creator.
//
//go:noinline
func startFromEnded() {
	ended := make(chan bool)
	promise("receiveEnded", 13)
	for i := 0; i < 13; i++ {
		go startAndEnd(ended)
		<-ended
	}
}

//go:noinline
func startAndEnd(ended chan bool) {
	go receiveEnded()
	ended <- true
}

//go:noinline
func receiveEnded() { <-fromNobody }

// The compiler makes a function for the call, from Go 1.22 on one with a name of its own.
//
//go:noinline
func startWithArguments(count int) {
	promise("receiveMany", count)
	for i := 0; i < count; i++ {
		go receiveMany(fromNobody, i)
	}
}

//go:noinline
func receiveMany(from chan int, count int) {
	for ; count >= 0; count-- {
		<-from
	}
}

//go:noinline
func startInClosure() {
	promise("startInClosure.func1.1", 3)
	call(func() {
		for i := 0; i < 3; i++ {
			go func() {
				call(func() { <-fromNobody })
			}()
		}
	})
}

//go:noinline
func startLabelled() {
	promise("receiveLabelled", 3)
	pprof.Do(context.Background(), pprof.Labels("job", "wait: {a}", "zone", "b"), func(context.Context) {
		for i := 0; i < 3; i++ {
			go receiveLabelled()
		}
	})
}

//go:noinline
func receiveLabelled() { <-fromNobody }

// The runtime's own goroutine for finalizers becomes one of the program.
//
//go:noinline
func startFinalizer() {
	finalizing := make(chan bool)
	dropFinalized(finalizing)
	for {
		runtime.GC()
		select {
		case <-finalizing:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

//go:noinline
func dropFinalized(finalizing chan bool) {
	// With a pointer inside: small values without one share their memory, and live as long as their neighbours.
	finalized := &box[*station]{content: &station{}}
	runtime.SetFinalizer(finalized, func(b *box[*station]) {
		finalizing <- true
		b.content.wait()
	})
}

// A context that is none of the package's own, which is watched by a goroutine for each child.
type foreign struct{ context.Context }

func (foreign) Deadline() (deadline time.Time, ok bool) { return }
func (foreign) Done() <-chan struct{}                   { return neverDone }
func (foreign) Err() error                              { return nil }
func (foreign) Value(any) any                           { return nil }

var neverDone = make(chan struct{})
