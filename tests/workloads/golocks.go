// golocks: locks of Go's sync package with known waits.
//
//	golocks           hand-overs in known numbers, each at least HOLD ms long
//	golocks clean     the same work with nobody in the way
//	golocks hard S    contention for S seconds, beside the runtime's own profiles of it
//	golocks hot S     the same as fast as it goes: each of ten goroutines parks for the lock each time
//	golocks burst S   that for 40 ms, then nothing for S seconds
//	golocks bench S N as fast as it goes for S seconds with N goroutines on one lock: operations and CPU time
//
//	truth mutex.waits N     and rwmutex, waitgroup, cond; mutex.address, rwmutex.address, …: where each lies
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
	"syscall"
	"time"
	"unsafe"
)

const hold = 7 * time.Millisecond

var (
	cacheLock  sync.Mutex
	tableLock  sync.RWMutex
	finished   sync.WaitGroup
	readyCond  = sync.NewCond(new(sync.Mutex))
	readyCount int
	results    = make(chan int)
	waiting    int32
)

// Not told by a lock's own waiters, which would be what is tested: the runtime says who waits in semacquire.
func untilWaiting(goroutines int32, where string) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if atomic.LoadInt32(&waiting) == goroutines && blocked(where) >= int(goroutines) {
			return
		}
		time.Sleep(200 * time.Microsecond)
	}
	panic("nobody waits in " + where)
}

var stacks = make([]byte, 1<<20)

func blocked(where string) int {
	n := runtime.Stack(stacks, true)
	count := 0
	for _, goroutine := range strings.Split(string(stacks[:n]), "\n\n") {
		head, _, _ := strings.Cut(goroutine, "\n")
		parked := strings.Contains(head, "[sync.") || strings.Contains(head, "[semacquire")
		if parked && strings.Contains(goroutine, where) {
			count++
		}
	}
	return count
}

//go:noinline
func waitForCache() {
	atomic.AddInt32(&waiting, 1)
	cacheLock.Lock()
	atomic.AddInt32(&waiting, -1)
	cacheLock.Unlock()
}

//go:noinline
func releaseCache() {
	cacheLock.Unlock()
}

//go:noinline
func waitForTable() {
	atomic.AddInt32(&waiting, 1)
	tableLock.RLock()
	atomic.AddInt32(&waiting, -1)
	tableLock.RUnlock()
}

//go:noinline
func releaseTable() {
	tableLock.Unlock()
}

//go:noinline
func changeTable() {
	atomic.AddInt32(&waiting, 1)
	tableLock.Lock()
	atomic.AddInt32(&waiting, -1)
	tableLock.Unlock()
}

//go:noinline
func stopReading() {
	tableLock.RUnlock()
}

//go:noinline
func waitForAll() {
	atomic.AddInt32(&waiting, 1)
	finished.Wait()
	atomic.AddInt32(&waiting, -1)
}

//go:noinline
func oneIsDone() {
	finished.Done()
}

//go:noinline
func waitForSignal() {
	readyCond.L.Lock()
	atomic.AddInt32(&waiting, 1)
	for readyCount == 0 {
		readyCond.Wait()
	}
	atomic.AddInt32(&waiting, -1)
	readyCount--
	readyCond.L.Unlock()
}

//go:noinline
func signalReady() {
	readyCond.L.Lock()
	readyCount++
	readyCond.L.Unlock()
	readyCond.Signal()
}

//go:noinline
func waitForResult() {
	<-results
}

// Starts work, lets it wait, ends the wait; `times` times.
func rounds(times int, where string, before, work, after func(), contended bool) {
	for i := 0; i < times; i++ {
		var done = make(chan bool)
		if contended {
			before()
		}
		go func() {
			work()
			done <- true
		}()
		if contended {
			untilWaiting(1, where)
			time.Sleep(hold)
			after()
		}
		<-done
	}
}

func known(contended bool) {
	count := func(n int) int {
		if contended {
			return n
		}
		return 0
	}
	if !contended {
		readyCount = 7
	}
	rounds(23, "main.waitForCache", cacheLock.Lock, waitForCache, releaseCache, contended)
	rounds(13, "main.waitForTable", tableLock.Lock, waitForTable, releaseTable, contended)
	rounds(11, "main.changeTable", tableLock.RLock, changeTable, stopReading, contended)
	rounds(5, "main.waitForAll", func() { finished.Add(1) }, waitForAll, oneIsDone, contended)
	rounds(7, "main.waitForSignal", func() {}, waitForSignal, signalReady, contended)
	for i := 0; i < 17; i++ {
		go func() { time.Sleep(time.Millisecond); results <- 1 }()
		waitForResult()
	}
	fmt.Println("truth mutex.waits", count(23))
	fmt.Println("truth rwmutex.readers", count(13))
	fmt.Println("truth rwmutex.writers", count(11))
	fmt.Println("truth waitgroup.waits", count(5))
	fmt.Println("truth cond.waits", count(7))
	fmt.Println("truth channel.waits", 17)
	fmt.Println("truth hold_ns", int64(hold))
	fmt.Println("truth mutex.address", uint64(uintptr(unsafe.Pointer(&cacheLock))))
	fmt.Println("truth rwmutex.address", uint64(uintptr(unsafe.Pointer(&tableLock))))
	fmt.Println("truth waitgroup.address", uint64(uintptr(unsafe.Pointer(&finished))))
	fmt.Println("truth cond.address", uint64(uintptr(unsafe.Pointer(readyCond))))
}

var hardLock sync.Mutex
var sink uint64

func spin(n int) {
	for i := 0; i < n; i++ {
		sink += uint64(i)
	}
}

//go:noinline
func slowPath() {
	hardLock.Lock()
	time.Sleep(400 * time.Microsecond)
	hardLock.Unlock()
}

//go:noinline
func middlePath() {
	hardLock.Lock()
	time.Sleep(200 * time.Microsecond)
	hardLock.Unlock()
}

//go:noinline
func quickPath() {
	hardLock.Lock()
	spin(2000)
	hardLock.Unlock()
}

//go:noinline
func oftenPath() { handOver() }

//go:noinline
func sometimesPath() { handOver() }

//go:noinline
func seldomPath() { handOver() }

// Holds the lock while all others come for it.
func handOver() {
	hardLock.Lock()
	spin(100)
	runtime.Gosched()
	hardLock.Unlock()
}

// Ten goroutines, six, three and one on each path, on one lock.
func hot(d time.Duration) {
	var stop int32
	var all sync.WaitGroup
	for i := 0; i < 10; i++ {
		path := oftenPath
		if i >= 9 {
			path = seldomPath
		} else if i >= 6 {
			path = sometimesPath
		}
		all.Add(1)
		go func() {
			defer all.Done()
			for atomic.LoadInt32(&stop) == 0 {
				path()
			}
		}()
	}
	time.Sleep(d)
	atomic.StoreInt32(&stop, 1)
	all.Wait()
}

func hotWithProfile(seconds int) {
	runtime.SetBlockProfileRate(1)
	runtime.SetMutexProfileFraction(1)
	hot(time.Duration(seconds) * time.Second)
	runtime.SetBlockProfileRate(0)
	runtime.SetMutexProfileFraction(0)
	paths := []string{"oftenPath", "sometimesPath", "seldomPath"}
	told("block", paths, func(p []runtime.BlockProfileRecord) (int, bool) { return runtime.BlockProfile(p) })
	told("mutex", paths, func(p []runtime.BlockProfileRecord) (int, bool) { return runtime.MutexProfile(p) })
}

// Many goroutines of three kinds on one lock, and what the runtime says how long each kind waited.
func hard(seconds int) {
	runtime.SetBlockProfileRate(1)
	runtime.SetMutexProfileFraction(1)
	var stop int32
	var all sync.WaitGroup
	for _, path := range []func(){slowPath, middlePath, quickPath} {
		for i := 0; i < 3; i++ {
			path := path
			all.Add(1)
			go func() {
				defer all.Done()
				for atomic.LoadInt32(&stop) == 0 {
					path()
					time.Sleep(100 * time.Microsecond)
				}
			}()
		}
	}
	time.Sleep(time.Duration(seconds) * time.Second)
	atomic.StoreInt32(&stop, 1)
	all.Wait()
	runtime.SetBlockProfileRate(0)
	runtime.SetMutexProfileFraction(0)
	paths := []string{"slowPath", "middlePath", "quickPath"}
	told("block", paths, func(p []runtime.BlockProfileRecord) (int, bool) { return runtime.BlockProfile(p) })
	told("mutex", paths, func(p []runtime.BlockProfileRecord) (int, bool) { return runtime.MutexProfile(p) })
}

// Waits and cycles by kind: block has the waiters' stacks, mutex the holders'.
func told(name string, paths []string, read func([]runtime.BlockProfileRecord) (int, bool)) {
	records := make([]runtime.BlockProfileRecord, 1000)
	n, _ := read(records)
	for _, path := range paths {
		var count, cycles int64
		for _, record := range records[:n] {
			frames := runtime.CallersFrames(record.Stack())
			under, lock := false, false
			for {
				frame, more := frames.Next()
				under = under || frame.Function == "main."+path
				lock = lock || strings.Contains(frame.Function, "sync.(*Mutex)")
				if !more {
					break
				}
			}
			if under && lock {
				count += record.Count
				cycles += record.Cycles
			}
		}
		fmt.Printf("truth %s.%s.count %d\n", name, path, count)
		fmt.Printf("truth %s.%s.cycles %d\n", name, path, cycles)
	}
}

func cpu() int64 {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func bench(seconds, goroutines int) {
	var stop int32
	var ops int64
	var all sync.WaitGroup
	before, begun := cpu(), time.Now()
	for i := 0; i < goroutines; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			mine := int64(0)
			for atomic.LoadInt32(&stop) == 0 {
				quickPath()
				mine++
			}
			atomic.AddInt64(&ops, mine)
		}()
	}
	time.Sleep(time.Duration(seconds) * time.Second)
	atomic.StoreInt32(&stop, 1)
	all.Wait()
	fmt.Println("truth ops", ops)
	fmt.Println("truth cpu_ns", cpu()-before)
	fmt.Println("truth wall_ns", int64(time.Since(begun)))
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	number := func(at, otherwise int) int {
		if len(os.Args) > at {
			if n, err := strconv.Atoi(os.Args[at]); err == nil {
				return n
			}
		}
		return otherwise
	}
	fmt.Println("ready", os.Getpid())
	for in.Scan() {
		if in.Text() == "quit" {
			return
		}
		if in.Text() != "go" {
			continue
		}
		switch mode {
		case "hard":
			hard(number(2, 3))
		case "hot":
			hotWithProfile(number(2, 3))
		case "burst":
			hot(40 * time.Millisecond)
			time.Sleep(time.Duration(number(2, 3)) * time.Second)
		case "bench":
			bench(number(2, 3), number(3, 8))
		default:
			known(mode != "clean")
		}
		fmt.Println("done")
	}
}
