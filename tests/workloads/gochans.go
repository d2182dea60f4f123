// gochans: a contended mutex beside a hundred thousand channels, each made for one request, in forty places.
//
//	truth mutex.waits N, mutex.address A, channels N
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
	"unsafe"
)

const (
	rounds   = 23
	hold     = 7 * time.Millisecond
	channels = 100_000
	servers  = 4
)

var (
	lock   sync.Mutex
	stacks = make([]byte, 1<<20)
)

//go:noinline
func waitForLock() {
	lock.Lock()
	lock.Unlock()
}

// Not told by the lock itself, which would be what is tested: the runtime says who waits.
func untilWaiting() {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		n := runtime.Stack(stacks, true)
		for _, goroutine := range strings.Split(string(stacks[:n]), "\n\n") {
			head, _, _ := strings.Cut(goroutine, "\n")
			parked := strings.Contains(head, "[sync.") || strings.Contains(head, "[semacquire")
			if parked && strings.Contains(goroutine, "main.waitForLock") {
				return
			}
		}
		time.Sleep(200 * time.Microsecond)
	}
	panic("nobody waits")
}

//go:noinline
func request(value int) int {
	answer := make(chan int)
	go func() {
		// So that it is asked for before it is there.
		runtime.Gosched()
		answer <- value
	}()
	return <-answer
}

func serve(value int) {
	switch value % 40 {
	case 0:
		request(value)
	case 1:
		request(value)
	case 2:
		request(value)
	case 3:
		request(value)
	case 4:
		request(value)
	case 5:
		request(value)
	case 6:
		request(value)
	case 7:
		request(value)
	case 8:
		request(value)
	case 9:
		request(value)
	case 10:
		request(value)
	case 11:
		request(value)
	case 12:
		request(value)
	case 13:
		request(value)
	case 14:
		request(value)
	case 15:
		request(value)
	case 16:
		request(value)
	case 17:
		request(value)
	case 18:
		request(value)
	case 19:
		request(value)
	case 20:
		request(value)
	case 21:
		request(value)
	case 22:
		request(value)
	case 23:
		request(value)
	case 24:
		request(value)
	case 25:
		request(value)
	case 26:
		request(value)
	case 27:
		request(value)
	case 28:
		request(value)
	case 29:
		request(value)
	case 30:
		request(value)
	case 31:
		request(value)
	case 32:
		request(value)
	case 33:
		request(value)
	case 34:
		request(value)
	case 35:
		request(value)
	case 36:
		request(value)
	case 37:
		request(value)
	case 38:
		request(value)
	case 39:
		request(value)
	}
}

func run() {
	var all sync.WaitGroup
	for i := 0; i < servers; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for i := 0; i < channels/servers; i++ {
				serve(i)
			}
		}()
	}
	for i := 0; i < rounds; i++ {
		done := make(chan bool)
		lock.Lock()
		go func() {
			waitForLock()
			done <- true
		}()
		untilWaiting()
		time.Sleep(hold)
		lock.Unlock()
		<-done
	}
	all.Wait()
	fmt.Println("truth mutex.waits", rounds)
	fmt.Println("truth mutex.address", uint64(uintptr(unsafe.Pointer(&lock))))
	fmt.Println("truth hold_ns", int64(hold))
	fmt.Println("truth channels", channels)
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("ready", os.Getpid())
	for in.Scan() {
		if in.Text() == "quit" {
			return
		}
		if in.Text() == "go" {
			run()
			fmt.Println("done")
		}
	}
}
