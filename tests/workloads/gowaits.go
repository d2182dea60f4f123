// gowaits: goroutines that park in known numbers, for known reasons.
//
//	gowaits           each wait at least HOLD ms long, ended by a named function
//	gowaits clean     idle goroutines only: a ticker, a listener, a queue of work that nobody fills
//	gowaits hard S    channels under load for S seconds, beside the runtime's own profile of blocking
//	gowaits exec S    becomes `gowaits bench S` when told to go, and says so
//	gowaits bench S   a ping-pong on two channels for S seconds: rounds and CPU time
//
//	truth send.waits N      and receive, select, sleep, read; send.address, receive.address: of the channels
package main

import (
	"bufio"
	"fmt"
	"net"
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
	orders  = make(chan int)
	answers = make(chan int)
	first   = make(chan int)
	second  = make(chan int)
	stacks  = make([]byte, 1<<20)
)

// The runtime says who has parked, and why: what ends a wait comes after that.
func untilParked(state, where string) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		n := runtime.Stack(stacks, true)
		for _, goroutine := range strings.Split(string(stacks[:n]), "\n\n") {
			head, _, _ := strings.Cut(goroutine, "\n")
			if strings.Contains(head, "["+state) && strings.Contains(goroutine, where) {
				return
			}
		}
		spin(20000)
		runtime.Gosched()
	}
	panic("nobody waits in " + where)
}

//go:noinline
func sendOrder() { orders <- 1 }

//go:noinline
func takeOrder() { <-orders }

//go:noinline
func awaitAnswer() { <-answers }

//go:noinline
func giveAnswer() { answers <- 1 }

//go:noinline
func awaitEither() {
	select {
	case <-first:
	case <-second:
	}
}

//go:noinline
func giveSecond() { second <- 1 }

//go:noinline
func nap() { time.Sleep(hold) }

//go:noinline
func readByte(from net.Conn) {
	var one [1]byte
	if n, err := from.Read(one[:]); n != 1 {
		panic(err)
	}
}

// Starts what waits, sees it parked, lets it wait, ends the wait; `times` times. The main goroutine ends waits, and is never
// waited for by a channel itself.
func rounds(times int, state, where string, waits, ends func()) {
	for i := 0; i < times; i++ {
		var over int32
		go func() {
			waits()
			atomic.StoreInt32(&over, 1)
		}()
		untilParked(state, where)
		for begun := time.Now(); time.Since(begun) < hold; {
			runtime.Gosched()
		}
		ends()
		for atomic.LoadInt32(&over) == 0 {
			runtime.Gosched()
		}
	}
}

func address(channel chan int) uint64 {
	return uint64(*(*uintptr)(unsafe.Pointer(&channel)))
}

func known() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	dialled, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		panic(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		panic(err)
	}
	rounds(23, "chan send", "main.sendOrder", sendOrder, takeOrder)
	rounds(19, "chan receive", "main.awaitAnswer", awaitAnswer, giveAnswer)
	rounds(13, "select", "main.awaitEither", awaitEither, giveSecond)
	rounds(11, "IO wait", "main.readByte", func() { readByte(accepted) }, func() { dialled.Write([]byte{1}) })
	for i := 0; i < 17; i++ {
		nap()
	}
	dialled.Close()
	accepted.Close()
	listener.Close()
	fmt.Println("truth send.waits", 23)
	fmt.Println("truth receive.waits", 19)
	fmt.Println("truth select.waits", 13)
	fmt.Println("truth read.waits", 11)
	fmt.Println("truth sleep.waits", 17)
	fmt.Println("truth hold_ns", int64(hold))
	fmt.Println("truth send.address", address(orders))
	fmt.Println("truth receive.address", address(answers))
}

//go:noinline
func onTick(ticker *time.Ticker, stop chan bool) int {
	ticks := 0
	for {
		select {
		case <-ticker.C:
			ticks++
		case <-stop:
			return ticks
		}
	}
}

//go:noinline
func onEveryTick(ticker *time.Ticker, stop *int32) int {
	ticks := 0
	for atomic.LoadInt32(stop) == 0 {
		<-ticker.C
		ticks++
	}
	return ticks
}

//go:noinline
func acceptAll(listener net.Listener) {
	for {
		if _, err := listener.Accept(); err != nil {
			return
		}
	}
}

//go:noinline
func work(jobs chan int) {
	for range jobs {
	}
}

// Nobody is in anybody's way.
func idle() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	stop, jobs := make(chan bool), make(chan int)
	var ended int32
	var all sync.WaitGroup
	run := func(f func()) {
		all.Add(1)
		go func() { defer all.Done(); f() }()
	}
	for i := 0; i < 8; i++ {
		run(func() { work(jobs) })
	}
	ticker := time.NewTicker(5 * time.Millisecond)
	run(func() { onTick(ticker, stop) })
	every := time.NewTicker(5 * time.Millisecond)
	run(func() { onEveryTick(every, &ended) })
	run(func() { acceptAll(listener) })
	for i := 0; i < 40; i++ {
		time.Sleep(20 * time.Millisecond)
		jobs <- i
	}
	atomic.StoreInt32(&ended, 1)
	close(stop)
	close(jobs)
	listener.Close()
	all.Wait()
	ticker.Stop()
	every.Stop()
}

var sink uint64

func spin(n int) {
	mine := uint64(0)
	for i := 0; i < n; i++ {
		mine += uint64(i)
	}
	atomic.AddUint64(&sink, mine)
}

//go:noinline
func slowPath(jobs chan int) int { return <-jobs }

//go:noinline
func middlePath(results chan int) { results <- 1 }

//go:noinline
func quickPath(a, b chan int) {
	select {
	case <-a:
	case <-b:
	}
}

// Waits of three kinds and lengths, and what the runtime says how long each was.
func hard(seconds int) {
	jobs, results, a, b := make(chan int), make(chan int), make(chan int), make(chan int)
	var stop int32
	var all sync.WaitGroup
	run := func(f func()) {
		all.Add(1)
		go func() {
			defer all.Done()
			for atomic.LoadInt32(&stop) == 0 {
				f()
			}
		}()
	}
	runtime.SetBlockProfileRate(1)
	for i := 0; i < 6; i++ {
		if i < 1 {
			run(func() { slowPath(jobs) })
		}
		if i < 3 {
			run(func() { middlePath(results) })
		}
		run(func() { quickPath(a, b) })
	}
	run(func() { time.Sleep(3 * time.Millisecond); jobs <- 1 })
	run(func() { time.Sleep(2 * time.Millisecond); <-results })
	run(func() { time.Sleep(time.Millisecond); a <- 1 })
	time.Sleep(time.Duration(seconds) * time.Second)
	atomic.StoreInt32(&stop, 1)
	// Whoever still waits is let go; that is no part of what is compared, nor is it long.
	done := make(chan bool)
	go func() { all.Wait(); close(done) }()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		case jobs <- 1:
		case <-results:
		case results <- 1:
		case a <- 1:
		case <-a:
		case <-jobs:
		}
	}
	runtime.SetBlockProfileRate(0)
	records := make([]runtime.BlockProfileRecord, 1000)
	n, _ := runtime.BlockProfile(records)
	for _, path := range []string{"slowPath", "middlePath", "quickPath"} {
		var count, cycles int64
		for _, record := range records[:n] {
			frames := runtime.CallersFrames(record.Stack())
			for {
				frame, more := frames.Next()
				if frame.Function == "main."+path {
					count += record.Count
					cycles += record.Cycles
				}
				if !more {
					break
				}
			}
		}
		fmt.Printf("truth block.%s.count %d\n", path, count)
		fmt.Printf("truth block.%s.cycles %d\n", path, cycles)
	}
}

func cpu() int64 {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return usage.Utime.Nano() + usage.Stime.Nano()
}

//go:noinline
func waitThroughout(end chan bool) { <-end }

func bench(seconds int) {
	ping, pong := make(chan int), make(chan int)
	// One waits from the beginning to the end.
	end, ended := make(chan bool), make(chan bool)
	go func() {
		waitThroughout(end)
		ended <- true
	}()
	untilParked("chan receive", "main.waitThroughout")
	var stop int32
	go func() {
		for n := range ping {
			pong <- n
		}
		close(pong)
	}()
	before, begun, rounds := cpu(), time.Now(), 0
	timer := time.AfterFunc(time.Duration(seconds)*time.Second, func() { atomic.StoreInt32(&stop, 1) })
	for atomic.LoadInt32(&stop) == 0 {
		ping <- rounds
		<-pong
		rounds++
	}
	timer.Stop()
	fmt.Println("truth ops", rounds)
	fmt.Println("truth cpu_ns", cpu()-before)
	fmt.Println("truth wall_ns", int64(time.Since(begun)))
	close(ping)
	end <- true
	<-ended
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	mode, seconds := "", 3
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	if len(os.Args) > 2 {
		if n, err := strconv.Atoi(os.Args[2]); err == nil {
			seconds = n
		}
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
		case "exec":
			panic(syscall.Exec("/proc/self/exe", []string{os.Args[0], "bench", os.Args[2]}, os.Environ()))
		case "clean":
			idle()
		case "hard":
			hard(seconds)
		case "bench":
			bench(seconds)
		default:
			known()
		}
		fmt.Println("done")
	}
}
