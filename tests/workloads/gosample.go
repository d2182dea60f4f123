// gosample: goroutines that wait in three places for as long as others let them, and measure it.
//
// From `go` on. `count` tells for each place `truth PLACE.ns N` and `truth PLACE.waits N`; `quit` ends it.
package main

import (
	"bufio"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// CLOCK_MONOTONIC, ns.
func now() int64 {
	var spec syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&spec)), 0)
	return spec.Sec*1e9 + spec.Nsec
}

type place struct{ ns, waits int64 }

// A wait is over when the other side ends it, however late the one who waited runs again.
func (p *place) add(began, ended int64) {
	if ended > began {
		atomic.AddInt64(&p.ns, ended-began)
		atomic.AddInt64(&p.waits, 1)
	}
}

var receiver, chooser, locker place

//go:noinline
func receiveAnswer(from chan int64) {
	began := now()
	receiver.add(began, <-from)
}

//go:noinline
func chooseAnswer(from, never chan int64) {
	began := now()
	select {
	case ended := <-from:
		chooser.add(began, ended)
	case <-never:
	}
}

//go:noinline
func lockTable(lock *sync.Mutex, unlocked *int64) {
	began := now()
	lock.Lock()
	locker.add(began, atomic.LoadInt64(unlocked))
	time.Sleep(3 * time.Millisecond)
	atomic.StoreInt64(unlocked, now())
	lock.Unlock()
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	fmt.Printf("ready %d\n", os.Getpid())
	in.Scan()
	for i := 0; i < 5; i++ {
		answers := make(chan int64)
		go func() {
			for {
				receiveAnswer(answers)
			}
		}()
		go func() {
			for {
				time.Sleep(7 * time.Millisecond)
				answers <- now()
			}
		}()
	}
	for i := 0; i < 3; i++ {
		answers, never := make(chan int64), make(chan int64)
		go func() {
			for {
				chooseAnswer(answers, never)
				time.Sleep(11 * time.Millisecond)
			}
		}()
		go func() {
			for {
				time.Sleep(23 * time.Millisecond)
				answers <- now()
			}
		}()
	}
	var lock sync.Mutex
	var unlocked int64
	for i := 0; i < 7; i++ {
		go func() {
			for {
				lockTable(&lock, &unlocked)
				time.Sleep(5 * time.Millisecond)
			}
		}()
	}
	for in.Scan() && in.Text() != "quit" {
		for name, place := range map[string]*place{"receive": &receiver, "choose": &chooser, "lock": &locker} {
			fmt.Printf("truth %s.ns %d\n", name, atomic.LoadInt64(&place.ns))
			fmt.Printf("truth %s.waits %d\n", name, atomic.LoadInt64(&place.waits))
		}
		fmt.Println("done")
	}
}
