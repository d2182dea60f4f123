// godrain: story 2, "the pool that drained": a service of which one error path does not close its Rows, so that each such request keeps a
// connection of the pool for good. `fixed`: it closes them. The database is a process of its own: this program with `serve`.
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
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"
)

var (
	database string
	fixed    bool
	kept     int64
	served   int64
)

// The database answers each line with a line.
func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			lines := bufio.NewScanner(connection)
			for lines.Scan() {
				fmt.Fprintln(connection, "row")
			}
			connection.Close()
		}()
	}
}

type wire struct{}

type conn struct {
	socket net.Conn
	lines  *bufio.Reader
}

type rows struct{ left int }

func (wire) Open(string) (driver.Conn, error) {
	socket, err := net.Dial("tcp", database)
	if err != nil {
		return nil, err
	}
	return &conn{socket, bufio.NewReader(socket)}, nil
}

func (c *conn) Prepare(string) (driver.Stmt, error) { return nil, errors.New("not here") }
func (c *conn) Close() error                        { return c.socket.Close() }
func (c *conn) Begin() (driver.Tx, error)           { return nil, errors.New("not here") }

func (c *conn) QueryContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	if _, err := fmt.Fprintln(c.socket, query); err != nil {
		return nil, err
	}
	if _, err := c.lines.ReadString('\n'); err != nil {
		return nil, err
	}
	return &rows{3}, nil
}

func (*rows) Columns() []string { return []string{"id"} }
func (*rows) Close() error      { return nil }

func (r *rows) Next(into []driver.Value) error {
	if r.left == 0 {
		return io.EOF
	}
	r.left--
	into[0] = int64(r.left)
	return nil
}

//go:noinline
func loadOrder(db *sql.DB, broken bool) error {
	found, err := db.Query("select id from orders")
	if err != nil {
		return err
	}
	if broken {
		if fixed {
			found.Close()
		} else {
			atomic.AddInt64(&kept, 1)
		}
		return errors.New("this order is broken")
	}
	defer found.Close()
	for found.Next() {
		var id int64
		if err := found.Scan(&id); err != nil {
			return err
		}
	}
	return found.Err()
}

//go:noinline
func loadCustomer(db *sql.DB) error {
	found, err := db.Query("select id from customers")
	if err != nil {
		return err
	}
	defer found.Close()
	for found.Next() {
	}
	return found.Err()
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		serve()
		return
	}
	fixed = len(os.Args) > 1 && os.Args[1] == "fixed"
	child := exec.Command(os.Args[0], "serve")
	stdin, err := child.StdinPipe()
	if err != nil {
		panic(err)
	}
	// As long as it is open, the database goes on.
	defer stdin.Close()
	out, err := child.StdoutPipe()
	if err != nil {
		panic(err)
	}
	if err := child.Start(); err != nil {
		panic(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		panic(err)
	}
	database = strings.TrimSpace(line)
	sql.Register("wire", wire{})
	db, err := sql.Open("wire", "")
	if err != nil {
		panic(err)
	}
	db.SetMaxOpenConns(200)
	db.SetMaxIdleConns(4)
	in := bufio.NewReader(os.Stdin)
	fmt.Println("ready", os.Getpid())
	in.ReadString('\n')
	// One in fifty is broken: three a second.
	for client := 0; client < 3; client++ {
		go func(client int) {
			for at := client; ; at += 3 {
				loadOrder(db, at%50 == 0)
				loadCustomer(db)
				atomic.AddInt64(&served, 1)
				time.Sleep(20 * time.Millisecond)
			}
		}(client)
	}
	for {
		word, err := in.ReadString('\n')
		if err != nil || word == "quit\n" {
			return
		}
		fmt.Println("truth kept", atomic.LoadInt64(&kept))
		fmt.Println("truth served", atomic.LoadInt64(&served))
		fmt.Println("done")
	}
}
