// goproof: goroutines blocked for ever on what nobody can reach, or on what somebody can.
//
//	goproof           leaked: 23 senders, 13 receivers, 7 in a select, 5 at a lock, 3 at a group
//	goproof clean     the same, but all that they wait for is kept
//	goproof many N    N more that wait for a channel that is kept
//
// After "ready PID" all of them are blocked; "go" makes garbage until "quit", so that the collector runs.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	kept    []interface{}
	keeps   bool
	begun   int32
	all     int
	garbage []byte
	quit    = make(chan bool)
)

func keep(what interface{}) {
	if keeps {
		kept = append(kept, what)
	}
}

//go:noinline
func abandonSend() {
	results := make(chan int)
	keep(results)
	go func() {
		atomic.AddInt32(&begun, 1)
		results <- 1
	}()
}

//go:noinline
func abandonReceive() {
	requests := make(chan int)
	keep(requests)
	go func() {
		atomic.AddInt32(&begun, 1)
		<-requests
	}()
}

//go:noinline
func abandonSelect() {
	done, tick := make(chan int), make(chan int)
	keep(done)
	go func() {
		atomic.AddInt32(&begun, 1)
		select {
		case <-done:
		case <-tick:
		}
	}()
}

// What is smaller shares its memory with others that may be reachable, and the collector cannot tell them apart.
type table struct {
	sync.Mutex
	rows []int
}

//go:noinline
func abandonLock() {
	lock := new(table)
	lock.Lock()
	keep(lock)
	go func() {
		atomic.AddInt32(&begun, 1)
		lock.Lock()
	}()
}

//go:noinline
func abandonGroup() {
	work := new(struct {
		sync.WaitGroup
		results []int
	})
	work.Add(1)
	keep(work)
	go func() {
		atomic.AddInt32(&begun, 1)
		work.Wait()
	}()
}

//go:noinline
func waitForQuit() {
	atomic.AddInt32(&begun, 1)
	<-quit
}

func repeat(times int, f func()) {
	all += times
	for i := 0; i < times; i++ {
		f()
	}
}

// The runtime itself says that none of them runs any more.
func untilBlocked() {
	stacks := make([]byte, 64<<20)
	for {
		if int(atomic.LoadInt32(&begun)) == all {
			n := runtime.Stack(stacks, true)
			text := string(stacks[:n])
			if strings.Count(text, "[runnable]:") == 0 && strings.Count(text, "[running]:") == 1 {
				return
			}
		}
		time.Sleep(time.Millisecond)
	}
}

func main() {
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	keeps = mode == "clean"
	repeat(23, abandonSend)
	repeat(13, abandonReceive)
	repeat(7, abandonSelect)
	repeat(5, abandonLock)
	repeat(3, abandonGroup)
	leaked := all
	if mode == "many" {
		n, _ := strconv.Atoi(os.Args[2])
		repeat(n, func() { go waitForQuit() })
	}
	if keeps {
		leaked = 0
	}
	untilBlocked()
	fmt.Println("ready", os.Getpid())
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		switch input.Text() {
		case "go":
			go func() {
				for {
					garbage = make([]byte, 1<<20)
					time.Sleep(time.Millisecond)
				}
			}()
			fmt.Println("truth leaked", leaked)
			fmt.Println("done")
		case "quit":
			fmt.Println(len(kept))
			return
		}
	}
}
