//go:build http

package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

func init() {
	modes["serve"] = mode{run: serve}
	modes["leak-body"] = mode{run: func() { go paced(90, leakBody) }}
	modes["clean-body"] = mode{run: func() { go paced(90, cleanBody) }}
}

// Says where it listens.
func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	fmt.Printf("listening http://%s/\n", listener.Addr())
	body := make([]byte, 97<<10)
	answer := func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }
	go http.Serve(listener, http.HandlerFunc(answer))
}

var (
	bodiesLeaked = counted("leak-body")
	bodiesClean  = counted("clean-body")
	client       = &http.Client{Transport: &http.Transport{}, Timeout: time.Hour}
)

// The body stays open: the connection with its two goroutines is never used again.
//
//go:noinline
func leakBody() {
	response, err := client.Get(os.Getenv("SERVER"))
	must(err)
	if response.StatusCode == http.StatusOK {
		atomic.AddInt64(bodiesLeaked, 1)
	}
}

//go:noinline
func cleanBody() {
	response, err := client.Get(os.Getenv("SERVER"))
	must(err)
	_, err = io.Copy(io.Discard, response.Body)
	must(err)
	must(response.Body.Close())
	atomic.AddInt64(bodiesClean, 1)
}
