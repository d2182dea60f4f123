// gosem: goroutines that wait for locks, channels, connections and sockets which are known by address and number. They
// stand still from `done` to `quit`. With the argument `hard` they fight for the same locks instead.
package main

import (
	"bufio"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

var out = bufio.NewWriter(os.Stdout)

func truth(key string, number uint64) { fmt.Fprintf(out, "truth %s %d\n", key, number) }

// CLOCK_MONOTONIC, ns.
func now() uint64 {
	var spec syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&spec)), 0)
	return uint64(spec.Sec)*1e9 + uint64(spec.Nsec)
}

func goid() uint64 {
	var text [64]byte
	words := strings.Fields(string(text[:runtime.Stack(text[:], false)]))
	id, _ := strconv.ParseUint(words[1], 10, 64)
	return id
}

// Until each of these waits in one of these states.
func parked(ids []uint64, states ...string) {
	for text := make([]byte, 4<<20); ; time.Sleep(time.Millisecond) {
		all := string(text[:runtime.Stack(text, true)])
		waiting := 0
		for _, id := range ids {
			for _, state := range states {
				if strings.Contains(all, fmt.Sprintf("goroutine %d [%s", id, state)) {
					waiting++
					break
				}
			}
		}
		if waiting == len(ids) {
			return
		}
	}
}

// Starts one after the other, each when the one before waits; tells when it began at the earliest and the latest.
func start(kind string, count int, wait func(), states ...string) {
	for i := 0; i < count; i++ {
		ids := make(chan uint64)
		var before uint64
		go func() {
			id := goid()
			before = now()
			ids <- id
			wait()
		}()
		id := <-ids
		parked([]uint64{id}, states...)
		truth(fmt.Sprintf("%s.%d.before", kind, id), before)
		truth(fmt.Sprintf("%s.%d.after", kind, id), now())
	}
}

type service struct {
	padding [3]uint64
	a, b    sync.Mutex
	readers sync.RWMutex
	writers sync.RWMutex
	group   sync.WaitGroup
	guard   sync.Mutex
	cond    *sync.Cond
	full    chan int
	empty   chan int
	never   chan struct{}
}

//go:noinline
func waitForA(s *service) { s.a.Lock() }

//go:noinline
func waitForB(s *service) { s.b.Lock() }

//go:noinline
func readConfig(s *service) { s.readers.RLock() }

//go:noinline
func writeConfig(s *service) { s.writers.Lock() }

//go:noinline
func waitForAll(s *service) { s.group.Wait() }

//go:noinline
func waitForNews(s *service) {
	s.guard.Lock()
	s.cond.Wait()
}

//go:noinline
func offer(s *service) { s.full <- 97 }

//go:noinline
func take(s *service) { <-s.empty }

//go:noinline
func either(s *service) {
	select {
	case <-s.empty:
	case s.full <- 1:
	case <-s.never:
	}
}

const mutexes, semacquire = "sync.Mutex.Lock", "semacquire"

func locks(s *service) {
	s.a.Lock()
	s.b.Lock()
	truth("address.mutex_a", uint64(uintptr(unsafe.Pointer(&s.a))))
	truth("address.mutex_b", uint64(uintptr(unsafe.Pointer(&s.b))))
	// In turns, so that both have waiters of all ages.
	for i := 0; i < 23; i++ {
		start("mutex_a", 1, func() { waitForA(s) }, mutexes, semacquire)
		if i < 7 {
			start("mutex_b", 1, func() { waitForB(s) }, mutexes, semacquire)
		}
	}

	// Held for reading: the first writer waits for the readers, the others for the first, new readers behind them.
	s.writers.RLock()
	s.readers.Lock()
	truth("address.rw_read", uint64(uintptr(unsafe.Pointer(&s.readers))))
	truth("address.rw_write", uint64(uintptr(unsafe.Pointer(&s.writers))))
	start("rw_read", 11, func() { readConfig(s) }, "sync.RWMutex.RLock", semacquire)
	start("rw_write", 1, func() { writeConfig(s) }, "sync.RWMutex.Lock", semacquire)
	start("rw_write", 2, func() { writeConfig(s) }, mutexes, semacquire)

	s.group.Add(1)
	truth("address.wait_group", uint64(uintptr(unsafe.Pointer(&s.group))))
	start("wait_group", 13, func() { waitForAll(s) }, "sync.WaitGroup.Wait", semacquire)

	s.cond = sync.NewCond(&s.guard)
	truth("address.cond", uint64(uintptr(unsafe.Pointer(s.cond))))
	start("cond", 3, func() { waitForNews(s) }, "sync.Cond.Wait")
}

func channels(s *service) {
	s.full, s.empty = make(chan int, 19), make(chan int)
	for i := 0; i < 19; i++ {
		s.full <- i
	}
	// An address that reflection or %p would give.
	truth("address.chan_send", uint64(*(*uintptr)(unsafe.Pointer(&s.full))))
	truth("address.chan_receive", uint64(*(*uintptr)(unsafe.Pointer(&s.empty))))
	start("chan_send", 5, func() { offer(s) }, "chan send")
	start("chan_receive", 2, func() { take(s) }, "chan receive")
	start("select", 3, func() { either(s) }, "select")
	start("tick", 2, func() {
		for range time.Tick(time.Hour) {
		}
	}, "chan receive")
	start("chan_nil", 2, func() { <-s.never }, "chan receive (nil chan)")
}

type hasDescriptor interface {
	SyscallConn() (syscall.RawConn, error)
}

func descriptor(of hasDescriptor) (fd uint64) {
	raw, _ := of.SyscallConn()
	raw.Control(func(number uintptr) { fd = uint64(number) })
	return fd
}

func sockets() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	for i := 0; i < 17; i++ {
		client, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			panic(err)
		}
		server, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		known := client
		if i%2 == 1 {
			known = server
		}
		read := func() { known.Read(make([]byte, 97)) }
		if i == 16 {
			// More than any buffer takes.
			read = func() { known.Write(make([]byte, 64<<20)) }
		}
		start(fmt.Sprintf("socket.%d", descriptor(known.(hasDescriptor))), 1, read, "IO wait")
		keep = append(keep, client, server)
	}
	accept := func() { listener.Accept() }
	start(fmt.Sprintf("socket.%d", descriptor(listener.(*net.TCPListener))), 1, accept, "IO wait")
	// Neither end is pollable: a thread sleeps in the call.
	var ends [2]int
	syscall.Pipe(ends[:])
	file := os.NewFile(uintptr(ends[0]), "pipe")
	keep = append(keep, file)
	start(fmt.Sprintf("socket.%d", ends[0]), 1, func() { file.Read(make([]byte, 1)) }, "syscall")
}

var keep []interface{}

type connector struct{}
type connection struct{}

func (connector) Connect(context.Context) (driver.Conn, error) { return connection{}, nil }
func (connector) Driver() driver.Driver                         { return nil }
func (connection) Prepare(string) (driver.Stmt, error)          { return nil, errors.New("no") }
func (connection) Close() error                                 { return nil }
func (connection) Begin() (driver.Tx, error)                    { return connection{}, nil }
func (connection) Commit() error                                { return nil }
func (connection) Rollback() error                              { return nil }

//go:noinline
func ask(db *sql.DB) { db.Conn(context.Background()) }

func databases() {
	db := sql.OpenDB(connector{})
	db.SetMaxOpenConns(10)
	for i := 0; i < 10; i++ {
		connection, err := db.Conn(context.Background())
		if err != nil {
			panic(err)
		}
		keep = append(keep, connection)
	}
	truth("address.pool", uint64(uintptr(unsafe.Pointer(db))))
	start("pool", 30, func() { ask(db) }, "select")
	stats := db.Stats()
	truth("pool.max_open", uint64(stats.MaxOpenConnections))
	truth("pool.open", uint64(stats.OpenConnections))
	truth("pool.idle", uint64(stats.Idle))
	truth("pool.wait_count", uint64(stats.WaitCount))
}

func bodies() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go http.Serve(listener, http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		answer.Write(make([]byte, 64<<10))
	}))
	truth("http.port", uint64(listener.Addr().(*net.TCPAddr).Port))
	url := "http://" + listener.Addr().String()
	drained, err := http.Get(url)
	if err != nil {
		panic(err)
	}
	var unread []*http.Response
	for i := 0; i < 7; i++ {
		response, err := http.Get(url)
		if err != nil {
			panic(err)
		}
		unread = append(unread, response)
	}
	io.Copy(io.Discard, drained.Body)
	drained.Body.Close()
	keep = append(keep, unread)
}

// Every lock always has somebody in it and somebody who wants it.
func hard(s *service) {
	truth("address.mutex_a", uint64(uintptr(unsafe.Pointer(&s.a))))
	truth("address.mutex_b", uint64(uintptr(unsafe.Pointer(&s.b))))
	truth("address.rw_read", uint64(uintptr(unsafe.Pointer(&s.readers))))
	truth("address.rw_write", uint64(uintptr(unsafe.Pointer(&s.readers))))
	s.full, s.empty = make(chan int, 2), make(chan int)
	truth("address.chan_send", uint64(*(*uintptr)(unsafe.Pointer(&s.full))))
	truth("address.chan_receive", uint64(*(*uintptr)(unsafe.Pointer(&s.empty))))
	forever := func(count int, work func()) {
		for i := 0; i < count; i++ {
			go func() {
				for {
					work()
				}
			}()
		}
	}
	linger := func() {
		for until := now() + 20_000; now() < until; {
			runtime.Gosched()
		}
	}
	forever(23, func() { waitForA(s); linger(); s.a.Unlock() })
	forever(7, func() { waitForB(s); s.b.Unlock(); runtime.Gosched() })
	forever(11, func() { readConfig(s); linger(); s.readers.RUnlock() })
	forever(3, func() { s.readers.Lock(); linger(); s.readers.Unlock() })
	forever(5, func() { offer(s) })
	forever(2, func() { take(s) })
	forever(2, func() { <-s.full; s.empty <- 1 })
	// Goroutines that end, and whose places others take.
	forever(1, func() {
		ended := make(chan bool)
		go func() { waitForB(s); s.b.Unlock(); ended <- true }()
		<-ended
	})
	forever(1, func() { runtime.GC(); time.Sleep(10 * time.Millisecond) })
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	fmt.Printf("ready %d\n", os.Getpid())
	in.Scan()
	s := new(service)
	keep = append(keep, s)
	if len(os.Args) > 1 && os.Args[1] == "hard" {
		hard(s)
	} else {
		locks(s)
		channels(s)
		sockets()
		databases()
		bodies()
	}
	fmt.Fprintln(out, "done")
	out.Flush()
	in.Scan()
	// What waited must not be collected before.
	runtime.KeepAlive(keep)
}
