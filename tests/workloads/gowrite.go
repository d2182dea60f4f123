// gowrite: waits in known numbers for a channel, a select, a lock and a group, and the runtime's own account of them.
//
//	gowrite           its profiles are off
//	gowrite own       the program has them switched on itself: every wait, one lock in 5
//
// After "ready PID":
//
//	go      the waits; then truth chan.waits N, chan.hold_ns N …, and own.NAME.count and own.NAME.cycles of BlockProfile
//	rate    truth fraction N, what the program itself takes its rate for
//	exec    becomes the same program anew, which says "ready PID" again
//	quit    ends
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

var (
	messages  = make(chan int)
	either    = make(chan int)
	never     = make(chan int)
	cacheLock sync.Mutex
)

//go:noinline
func waitForMessage() {
	<-messages
}

//go:noinline
func waitForEither() {
	select {
	case <-either:
	case <-never:
	}
}

//go:noinline
func waitForCache() {
	cacheLock.Lock()
	cacheLock.Unlock()
}

//go:noinline
func releaseCache() {
	cacheLock.Unlock()
}

//go:noinline
func waitForAll(group *sync.WaitGroup) {
	group.Wait()
}

type wait struct {
	name, function string
	times          int
	hold           time.Duration
}

var waits = []wait{
	{"chan", "main.waitForMessage", 23, 11 * time.Millisecond},
	{"select", "main.waitForEither", 17, 9 * time.Millisecond},
	{"mutex", "main.waitForCache", 13, 13 * time.Millisecond},
	{"group", "main.waitForAll", 7, 17 * time.Millisecond},
}

var stacks = make([]byte, 1<<20)

// One goroutine waits there, and it has been told so by the runtime.
func untilBlocked(where string) {
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); {
		n := runtime.Stack(stacks, true)
		for _, goroutine := range strings.Split(string(stacks[:n]), "\n\n") {
			head := strings.SplitN(goroutine, "\n", 2)[0]
			parked := strings.Contains(head, "[sync.") || strings.Contains(head, "[semacquire") ||
				strings.Contains(head, "[chan receive") || strings.Contains(head, "[select")
			if parked && strings.Contains(goroutine, where) {
				return
			}
		}
		time.Sleep(200 * time.Microsecond)
	}
	panic("nobody waits in " + where)
}

// A goroutine waits at least for the time that it is let.
func once(one wait) {
	var group sync.WaitGroup
	ended := make(chan bool, 1)
	begin := func(f func()) {
		go func() {
			f()
			ended <- true
		}()
		untilBlocked(one.function)
		time.Sleep(one.hold)
	}
	switch one.name {
	case "chan":
		begin(waitForMessage)
		messages <- 1
	case "select":
		begin(waitForEither)
		either <- 1
	case "mutex":
		cacheLock.Lock()
		begin(waitForCache)
		releaseCache()
	case "group":
		group.Add(1)
		begin(func() { waitForAll(&group) })
		group.Done()
	}
	// Not waited for: that would be a wait, too.
	for len(ended) == 0 {
		time.Sleep(100 * time.Microsecond)
	}
	<-ended
}

func own(name string, profile func([]runtime.BlockProfileRecord) (int, bool)) {
	records := make([]runtime.BlockProfileRecord, 1000)
	n, _ := profile(records)
	sums := map[string][2]int64{}
	for _, record := range records[:n] {
		frames := runtime.CallersFrames(record.Stack())
		for {
			frame, more := frames.Next()
			if strings.HasPrefix(frame.Function, "main.") {
				sum := sums[frame.Function]
				sums[frame.Function] = [2]int64{sum[0] + record.Count, sum[1] + record.Cycles}
				break
			}
			if !more {
				break
			}
		}
	}
	for function, sum := range sums {
		fmt.Printf("truth %s.%s.count %d\n", name, function, sum[0])
		fmt.Printf("truth %s.%s.cycles %d\n", name, function, sum[1])
	}
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "own" {
		runtime.SetBlockProfileRate(1)
		runtime.SetMutexProfileFraction(5)
	}
	fmt.Println("ready", os.Getpid())
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		switch input.Text() {
		case "go":
			for _, one := range waits {
				for i := 0; i < one.times; i++ {
					once(one)
				}
				fmt.Printf("truth %s.waits %d\n", one.name, one.times)
				fmt.Printf("truth %s.hold_ns %d\n", one.name, one.hold.Nanoseconds())
			}
			own("block", runtime.BlockProfile)
			own("mutex", runtime.MutexProfile)
			fmt.Println("done")
		case "rate":
			fmt.Println("truth fraction", runtime.SetMutexProfileFraction(-1))
			fmt.Println("done")
		case "exec":
			fmt.Println(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
		case "quit":
			return
		}
	}
}
