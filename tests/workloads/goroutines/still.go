package main

import (
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Every way to wait that a program has, each with a known number of goroutines.
func still() {
	stillChannels()
	stillSync()
	stillIO()
	stillCalls()
	stillCreators()
	for _, more := range stillMore {
		more()
	}
}

// Ways that not every build has.
var stillMore []func()

// Starts this many goroutines. All of them, and no others, have the function of this name in their stacks.
func park(name string, count int, wait func()) {
	promise(name, count)
	for i := 0; i < count; i++ {
		go wait()
	}
}

var promised = map[string]int{}

func promise(name string, count int) {
	promised[name] += count
	counters["main."+name] = func() int64 { return int64(promised[name]) }
}

// --- channels: nobody is at the other end

var (
	toNobody     = make(chan int)
	fromNobody   = make(chan int)
	none         chan int
	alsoToNobody = make(chan int)
)

func stillChannels() {
	park("sendNobody", 23, sendNobody)
	park("sendFull", 7, sendFull)
	park("sendNone", 3, sendNone)
	park("receive", 29, receive)
	park("receiveOk", 3, func() { receiveOk() })
	park("rangeNobody", 5, rangeNobody)
	park("receiveNone", 2, receiveNone)
	park("selectCases", 31, selectCases)
	park("selectNone", 5, selectNone)
}

//go:noinline
func sendNobody() { toNobody <- 1 }

//go:noinline
func sendFull() {
	for full := make(chan int, 3); ; {
		full <- 1
	}
}

//go:noinline
func sendNone() { none <- 1 }

//go:noinline
func receive() { <-fromNobody }

// Where others wait as well.
//
//go:noinline
func receiveNobody() { <-fromNobody }

//go:noinline
func receiveOk() bool {
	_, ok := <-fromNobody
	return ok
}

//go:noinline
func rangeNobody() {
	for range fromNobody {
		runtime.Gosched()
	}
}

//go:noinline
func receiveNone() { <-none }

//go:noinline
func selectCases() {
	select {
	case <-fromNobody:
	case alsoToNobody <- 1:
	case <-none:
	}
}

//go:noinline
func selectNone() { select {} }

// --- locks: held for ever

var (
	held       sync.Mutex
	written    sync.RWMutex
	readByMain sync.RWMutex
	undone     sync.WaitGroup
	once       sync.Once
	condLock   sync.Mutex
	cond       = sync.NewCond(&condLock)
)

func stillSync() {
	held.Lock()
	written.Lock()
	readByMain.RLock()
	undone.Add(1)
	park("lockMutex", 37, lockMutex)
	park("readWritten", 7, readWritten)
	park("writeWritten", 11, writeWritten)
	park("writeRead", 1, writeRead)
	park("waitGroup", 13, waitGroup)
	park("waitCond", 17, waitCond)
	park("waitOnce", 5, waitOnce)
	park("sleep", 19, sleep)
	park("receiveAfter", 3, receiveAfter)
}

//go:noinline
func lockMutex() {
	held.Lock()
	held.Unlock()
}

//go:noinline
func readWritten() {
	written.RLock()
	written.RUnlock()
}

//go:noinline
func writeWritten() {
	written.Lock()
	written.Unlock()
}

//go:noinline
func writeRead() {
	readByMain.Lock()
	readByMain.Unlock()
}

//go:noinline
func waitGroup() { undone.Wait() }

//go:noinline
func waitCond() {
	condLock.Lock()
	cond.Wait()
	condLock.Unlock()
}

// One runs the function, the others wait for its end.
//
//go:noinline
func waitOnce() { once.Do(receiveNobody) }

//go:noinline
func sleep() { time.Sleep(97 * time.Hour) }

//go:noinline
func receiveAfter() { <-time.After(97 * time.Hour) }

// --- input and output that never comes

func stillIO() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	// One waits for a connection, the others for their turn.
	park("acceptNobody", 3, func() { acceptNobody(silent) })
	for i := 0; i < 5; i++ {
		go readSocket(connect(listener))
		go writeSocket(connect(listener))
	}
	promise("readSocket", 5)
	promise("writeSocket", 5)

	reader, writer, err := os.Pipe()
	must(err)
	keep(reader, writer)
	park("readPipe", 2, func() { readPipe(reader) })

	var ends [2]int
	must(syscall.Pipe(ends[:]))
	park("readBlocking", 7, func() { readBlocking(ends[0]) })
	// A thread of its own that waits for the goroutine, not in the kernel.
	park("receiveLocked", 5, receiveLocked)
	park("sleepLocked", 2, sleepLocked)
}

// An end of a connection whose other end neither reads nor writes.
func connect(listener net.Listener) net.Conn {
	client, err := net.Dial("tcp", listener.Addr().String())
	must(err)
	server, err := listener.Accept()
	must(err)
	keep(client, server)
	return client
}

//go:noinline
func readSocket(conn net.Conn) {
	buffer := make([]byte, 97)
	conn.Read(buffer)
}

//go:noinline
func writeSocket(conn net.Conn) {
	for buffer := make([]byte, 1<<20); ; {
		conn.Write(buffer)
	}
}

//go:noinline
func acceptNobody(listener net.Listener) { listener.Accept() }

//go:noinline
func readPipe(pipe *os.File) {
	var buffer [1]byte
	pipe.Read(buffer[:])
}

//go:noinline
func readBlocking(fd int) {
	var buffer [1]byte
	syscall.Read(fd, buffer[:])
}

//go:noinline
func receiveLocked() {
	runtime.LockOSThread()
	<-fromNobody
}

//go:noinline
func sleepLocked() {
	runtime.LockOSThread()
	time.Sleep(97 * time.Hour)
}

// What the collector must not close.
var kept []any

func keep(values ...any) { kept = append(kept, values...) }

func must(err error) {
	if err != nil {
		panic(err)
	}
}
