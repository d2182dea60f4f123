// gopool: a pool of 10 connections of database/sql, and a driver that answers slowly.
//
//	gopool queries   40 callers ask all the time: the queries hold the connections
//	gopool work      20 callers keep a transaction open while they do something else
//	gopool rows      20 callers keep rows open while they do something else
//	gopool outside   the same, with rows that nothing watches over
//	gopool kept      10 connections are taken and never given back; 20 callers wait in vain
//	gopool connect   20 callers; connections take long to open, and are closed after use
//	gopool several   the queries of `kept`, beside a pool without a limit that is busy
//	gopool many      20 functions ask, each its own
//	gopool enough    9 callers, who never have to wait
//	gopool opening   9 callers, all but two of whose connections are closed after use; they waited once, before
//	gopool bursts    as `enough`, with 20 more callers at once now and then
//
// From `go` to `count` and on; `quit` ends it. A count tells the pool's own numbers.
package main

import (
	"bufio"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"
)

const connections = 10

type connector struct{}
type connection struct{}
type answer struct{ left int }

func (connector) Connect(context.Context) (driver.Conn, error) {
	time.Sleep(time.Duration(dial) * time.Millisecond)
	return connection{}, nil
}
func (connector) Driver() driver.Driver                         { return nil }
func (connection) Prepare(string) (driver.Stmt, error)          { return nil, errors.New("no") }
func (connection) Close() error                                 { return nil }
func (connection) Begin() (driver.Tx, error)                    { return connection{}, nil }
func (connection) Commit() error                                { return nil }
func (connection) Rollback() error                              { return nil }
func (connection) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	time.Sleep(time.Duration(pause) * time.Millisecond)
	return &answer{left: 2}, nil
}
func (*answer) Columns() []string { return []string{"number"} }
func (*answer) Close() error      { return nil }
func (a *answer) Next(row []driver.Value) error {
	if a.left == 0 {
		return io.EOF
	}
	a.left--
	row[0] = int64(a.left)
	return nil
}

// How long the driver takes, and the program itself, in milliseconds.
var pause, other, dial int

func check(err error) {
	if err != nil {
		panic(err)
	}
}

//go:noinline
func listOrders(db *sql.DB) {
	rows, err := db.QueryContext(context.Background(), "orders")
	check(err)
	for rows.Next() {
	}
	check(rows.Close())
}

//go:noinline
func bookSeat(db *sql.DB) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tx, err := db.BeginTx(ctx, nil)
	check(err)
	callPayment()
	check(tx.Commit())
}

//go:noinline
func exportAll(db *sql.DB, ctx context.Context) {
	rows, err := db.QueryContext(ctx, "all")
	check(err)
	for rows.Next() {
		callPayment()
	}
	check(rows.Close())
}

//go:noinline
func callPayment() { time.Sleep(time.Duration(other) * time.Millisecond) }

//go:noinline
func askReplica(db *sql.DB) { listOrders(db) }

// Each literal is a function of its own, whose calls are stacks of their own.
var manyCalls = []func(*sql.DB){
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
	func(db *sql.DB) { listOrders(db) },
}

var kept []*sql.Conn

//go:noinline
func keepConnection(db *sql.DB) {
	conn, err := db.Conn(context.Background())
	check(err)
	kept = append(kept, conn)
}

func forever(callers int, call func()) {
	for i := 0; i < callers; i++ {
		go func() {
			for {
				call()
			}
		}()
	}
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	fmt.Printf("ready %d\n", os.Getpid())
	in.Scan()
	db := sql.OpenDB(connector{})
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	switch os.Args[1] {
	case "queries":
		pause = 19
		forever(40, func() { listOrders(db) })
	case "work":
		other = 23
		forever(20, func() { bookSeat(db) })
	case "rows":
		other = 11
		forever(20, func() {
			ctx, cancel := context.WithCancel(context.Background())
			exportAll(db, ctx)
			cancel()
		})
	case "outside":
		other = 11
		forever(20, func() { exportAll(db, context.Background()) })
	case "kept":
		for i := 0; i < connections; i++ {
			keepConnection(db)
		}
		forever(20, func() { listOrders(db) })
	case "several":
		for i := 0; i < connections; i++ {
			keepConnection(db)
		}
		forever(20, func() { listOrders(db) })
		pause = 19
		replica := sql.OpenDB(connector{})
		forever(15, func() { askReplica(replica) })
	case "many":
		pause = 19
		for _, call := range manyCalls {
			call := call
			forever(1, func() { call(db) })
		}
	case "connect", "opening":
		dial, pause = 41, 3
		db.SetMaxIdleConns(2)
		if os.Args[1] == "connect" {
			dial = 7
			db.SetConnMaxLifetime(time.Millisecond)
			forever(20, func() { listOrders(db) })
			break
		}
		once := make(chan bool)
		for i := 0; i < 2*connections; i++ {
			go func() { listOrders(db); once <- true }()
		}
		for i := 0; i < 2*connections; i++ {
			<-once
		}
		forever(connections-1, func() { listOrders(db) })
	case "bursts":
		pause = 5
		forever(connections-1, func() { listOrders(db) })
		forever(1, func() {
			for i := 0; i < 20; i++ {
				go listOrders(db)
			}
			time.Sleep(3 * time.Second)
		})
	case "enough":
		pause = 5
		forever(connections-1, func() { listOrders(db) })
	}
	for in.Scan() && in.Text() != "quit" {
		stats := db.Stats()
		fmt.Printf("truth address %d\n", uint64(uintptr(unsafe.Pointer(db))))
		fmt.Printf("truth waits %d\n", stats.WaitCount)
		fmt.Printf("truth wait_ns %d\n", stats.WaitDuration.Nanoseconds())
		fmt.Printf("truth open %d\n", stats.OpenConnections)
		fmt.Println("done")
	}
}
