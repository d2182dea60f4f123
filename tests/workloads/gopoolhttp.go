// gopoolhttp: an HTTP service before a database that it has a pool of connections to (database/sql), and its clients.
//
//	gopoolhttp exhausted   10 connections: mostly enough, but a batch of reports takes all of them for a while
//	gopoolhttp enough      the same with 100
//	gopoolhttp exact       a known number of requests, waits and requests that give up, at a pool of 2
//	gopoolhttp client URL  the clients, in a process of their own
//
// From `go` to `count` and on; `quit` ends it. A count tells the pool's own numbers, and what requests waited by their own clock.
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
	"os/exec"
	"runtime"
	"sort"
	"sync"
	"time"
	"unsafe"
)

type connector struct{}
type connection struct{}
type answer struct{}
type clock struct{}

func (connector) Connect(context.Context) (driver.Conn, error) { return connection{}, nil }
func (connector) Driver() driver.Driver                        { return nil }
func (connection) Prepare(string) (driver.Stmt, error)         { return nil, errors.New("no") }
func (connection) Close() error                                { return nil }
func (connection) Begin() (driver.Tx, error)                   { return nil, errors.New("no") }
func (answer) Columns() []string                               { return []string{"number"} }
func (answer) Close() error                                    { return nil }
func (answer) Next([]driver.Value) error                       { return io.EOF }

// The query has a connection here: it knows when it was asked for.
func (connection) QueryContext(ctx context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	if asked, ok := ctx.Value(clock{}).(time.Time); ok {
		waited := time.Since(asked)
		own.Lock()
		if waited > 200*time.Millisecond {
			long = append(long, waited)
		} else if waited > 4*time.Millisecond {
			short = append(short, waited)
		}
		own.Unlock()
	}
	pause, err := time.ParseDuration(query)
	check(err)
	time.Sleep(pause)
	return answer{}, nil
}

// What requests waited for a connection, without those that got one at once.
var own sync.Mutex
var long, short []time.Duration

// What the clients wait to be closed.
var alive io.Closer

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func asked(ctx context.Context) context.Context { return context.WithValue(ctx, clock{}, time.Now()) }

//go:noinline
func ask(ctx context.Context, db *sql.DB, query string) error {
	rows, err := db.QueryContext(asked(ctx), query)
	if err != nil {
		return err
	}
	return rows.Close()
}

//go:noinline
func serveOrders(db *sql.DB, writer http.ResponseWriter, request *http.Request) {
	rows, err := db.QueryContext(asked(context.Background()), "12ms")
	check(err)
	check(rows.Close())
	fmt.Fprintln(writer, "orders")
}

//go:noinline
func serveReport(db *sql.DB, writer http.ResponseWriter, request *http.Request) {
	rows, err := db.QueryContext(asked(context.Background()), "800ms")
	check(err)
	check(rows.Close())
	fmt.Fprintln(writer, "report")
}

func serve(db *sql.DB) {
	http.HandleFunc("/orders", func(w http.ResponseWriter, r *http.Request) { serveOrders(db, w, r) })
	http.HandleFunc("/report", func(w http.ResponseWriter, r *http.Request) { serveReport(db, w, r) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go http.Serve(listener, nil)
	clients := exec.Command(os.Args[0], "client", "http://"+listener.Addr().String())
	// They end with this process, whose end closes the pipe; dropped, it would be closed by a collection.
	alive, err = clients.StdinPipe()
	check(err)
	check(clients.Start())
}

// One batch of requests at once, until all are answered.
func batch(client *http.Client, url string, number int) *sync.WaitGroup {
	var all sync.WaitGroup
	for i := 0; i < number; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			response, err := client.Get(url)
			check(err)
			_, err = io.Copy(io.Discard, response.Body)
			check(err)
			response.Body.Close()
		}()
	}
	return &all
}

func clients(url string) {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	for {
		for i := 0; i < 20; i++ {
			batch(client, url+"/orders", 12).Wait()
			time.Sleep(60 * time.Millisecond)
		}
		reports := batch(client, url+"/report", 10)
		time.Sleep(20 * time.Millisecond)
		batch(client, url+"/orders", 12).Wait()
		reports.Wait()
		time.Sleep(60 * time.Millisecond)
	}
}

// A stack that has once been large is copied to a smaller one by a collection, also while its goroutine waits.
//
//go:noinline
func deep(depth int) byte {
	var large [1024]byte
	if depth > 0 {
		large[depth%1024] = deep(depth - 1)
	}
	return large[(depth+1)%1024]
}

//go:noinline
func wantConnection(db *sql.DB) { check(ask(context.Background(), db, "1ms")) }

//go:noinline
func giveUp(db *sql.DB) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if ask(ctx, db, "1ms") == nil {
		panic("there was a connection")
	}
}

//go:noinline
func giveBack(conn *sql.Conn) { check(conn.Close()) }

func exact(db *sql.DB) {
	const waiters, vain = 23, 7
	var held []*sql.Conn
	for i := 0; i < 2; i++ {
		conn, err := db.Conn(context.Background())
		check(err)
		held = append(held, conn)
	}
	var all sync.WaitGroup
	spawn := func(number int, call func(*sql.DB)) {
		for i := 0; i < number; i++ {
			all.Add(1)
			go func() {
				defer all.Done()
				deep(64)
				call(db)
			}()
		}
	}
	spawn(vain, giveUp)
	all.Wait()
	spawn(waiters, wantConnection)
	for db.Stats().WaitCount < waiters+vain {
		time.Sleep(time.Millisecond)
	}
	for i := 0; i < 4; i++ {
		runtime.GC()
		time.Sleep(50 * time.Millisecond)
	}
	for _, conn := range held {
		giveBack(conn)
	}
	all.Wait()
	fmt.Printf("truth requests %d\n", waiters+vain+2)
	fmt.Printf("truth vain %d\n", vain)
	counts(db)
}

func median(times []time.Duration) int64 {
	if len(times) == 0 {
		return 0
	}
	sorted := append([]time.Duration(nil), times...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i] < sorted[j] })
	return sorted[len(sorted)/2].Nanoseconds()
}

func counts(db *sql.DB) {
	stats := db.Stats()
	fmt.Printf("truth address %d\n", uint64(uintptr(unsafe.Pointer(db))))
	fmt.Printf("truth waits %d\n", stats.WaitCount)
	fmt.Printf("truth wait_ns %d\n", stats.WaitDuration.Nanoseconds())
	own.Lock()
	fmt.Printf("truth long %d\n", len(long))
	fmt.Printf("truth long_ns %d\n", median(long))
	fmt.Printf("truth short_ns %d\n", median(short))
	own.Unlock()
	fmt.Println("done")
}

func main() {
	if os.Args[1] == "client" {
		clients(os.Args[2])
	}
	in := bufio.NewScanner(os.Stdin)
	fmt.Printf("ready %d\n", os.Getpid())
	in.Scan()
	size := map[string]int{"exhausted": 10, "enough": 100, "exact": 2}[os.Args[1]]
	db := sql.OpenDB(connector{})
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	if os.Args[1] == "exact" {
		exact(db)
	} else {
		serve(db)
	}
	for in.Scan() && in.Text() != "quit" {
		counts(db)
	}
}
