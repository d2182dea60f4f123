// gojobs: story 5, "the body never closed": four jobs with periods of their own ask an HTTP service through one shared client; one of them,
// syncPrices, drops the body of what it gets. `fixed`: it closes it, too. A busy front end asks the same service all the time.
//
// The service is a process of its own: this program with `serve`.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"
)

// Long enough not to be read ahead whole: a body that was is done with.
var page = strings.Repeat("price 1234\n", 40_000)

var (
	client  = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	service string
	fixed   bool
	leaked  int64
	runs    int64
)

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
	http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, page)
	}))
}

func get(path string) *http.Response {
	response, err := client.Get("http://" + service + path)
	if err != nil {
		panic(err)
	}
	return response
}

func readAll(response *http.Response) {
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
}

//go:noinline
func syncPrices() {
	for i := 0; i < 4; i++ {
		response := get("/prices")
		if fixed {
			readAll(response)
			continue
		}
		line := make([]byte, 10)
		io.ReadFull(response.Body, line)
		atomic.AddInt64(&leaked, 1)
	}
	atomic.AddInt64(&runs, 1)
}

//go:noinline
func syncStock() {
	for i := 0; i < 4; i++ {
		readAll(get("/stock"))
	}
}

//go:noinline
func sendReport() {
	readAll(get("/report"))
}

//go:noinline
func expireSessions() {
	readAll(get("/sessions"))
}

func every(period time.Duration, job func()) {
	for range time.Tick(period) {
		job()
	}
}

//go:noinline
func handleRequest() {
	readAll(get("/front"))
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
	// As long as it is open, the service goes on.
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
	service = strings.TrimSpace(line)
	in := bufio.NewReader(os.Stdin)
	fmt.Println("ready", os.Getpid())
	in.ReadString('\n')
	go every(2300*time.Millisecond, syncPrices)
	go every(1700*time.Millisecond, syncStock)
	go every(3100*time.Millisecond, sendReport)
	go every(1300*time.Millisecond, expireSessions)
	go func() {
		for {
			handleRequest()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	for {
		word, err := in.ReadString('\n')
		if err != nil || word == "quit\n" {
			return
		}
		fmt.Println("truth leaked", atomic.LoadInt64(&leaked))
		fmt.Println("truth runs", atomic.LoadInt64(&runs))
		fmt.Println("done")
	}
}
