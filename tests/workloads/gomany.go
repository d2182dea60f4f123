// gomany: many functions that get pages by one client. The test puts their text where the two marks are.
//
//	gomany leak S       every function drops the body of four pages, evenly over S seconds; closer closes as many
//	gomany clean S      the same functions, which close
//	gomany alternate S  two callers of one client by turns: finisher closes, and forgetter gets the connection that was
//	                    dialled for finisher, and drops the body
//
//	truth opened N, truth left N, truth reused N
package main

import (
	"bufio"
	"fmt"
	"io"
	"io/ioutil"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"net"
)

var (
	address string
	kept    []interface{}
	leaks   bool
	reused  int
	dialled int
	client  = &http.Client{Transport: &http.Transport{MaxIdleConns: 1, MaxIdleConnsPerHost: 1}}
)

//go:noinline
func get(path string) *http.Response {
	request, err := http.NewRequest("GET", "http://"+address+path, nil)
	if err != nil {
		panic(err)
	}
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if got.Reused {
			reused++
		} else {
			dialled++
		}
	}}
	response, err := client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
	if err != nil {
		panic(err)
	}
	return response
}

// What each of the functions does with its page.
func use(response *http.Response) {
	if leaks {
		kept = append(kept, response)
	} else {
		response.Body.Close()
	}
}

//go:noinline
func closer() {
	response := get("/endless")
	response.Body.Close()
}

//go:noinline
func finisher() {
	response := get("/short")
	io.Copy(ioutil.Discard, response.Body)
	response.Body.Close()
}

//go:noinline
func forgetter() {
	kept = append(kept, get("/endless"))
}

/*FUNCTIONS*/

var callers = []func(){ /*CALLERS*/ }

func openDescriptors() int {
	links, _ := filepath.Glob("/proc/self/fd/*")
	return len(links)
}

// A closed body is a closed connection only after a while: Go closes it in a goroutine.
func untilOpen(n int) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if openDescriptors() <= n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	panic(fmt.Sprint(openDescriptors(), " descriptors are open, not ", n))
}

func run(mode string, seconds float64) {
	// The first dial makes what the others use again.
	closer()
	time.Sleep(100 * time.Millisecond)
	before := openDescriptors()
	dialled, reused = 0, 0
	leaks = mode == "leak"
	const rounds = 4
	left := 0
	if mode == "alternate" {
		for i := 0; i < 97; i++ {
			finisher()
			// The connection is idle only after its goroutine has seen the end.
			time.Sleep(time.Duration(seconds * float64(time.Second) / 97))
			forgetter()
		}
		left = 97
	} else {
		pause := time.Duration(seconds*float64(time.Second)) / time.Duration(rounds*len(callers))
		for i := 0; i < rounds; i++ {
			for _, caller := range callers {
				caller()
				closer()
				time.Sleep(pause)
			}
		}
		if leaks {
			left = rounds * len(callers)
		}
	}
	untilOpen(before + left)
	fmt.Println("truth opened", dialled)
	fmt.Println("truth reused", reused)
	fmt.Println("truth left", left)
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("listening", listener.Addr())
	http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("x"))
		if r.URL.Path == "/endless" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
}

func started() *exec.Cmd {
	server := exec.Command("/proc/self/exe", "serve")
	out, err := server.StdoutPipe()
	if err != nil {
		panic(err)
	}
	if err := server.Start(); err != nil {
		panic(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		panic(err)
	}
	address = strings.TrimSpace(strings.TrimPrefix(line, "listening "))
	return server
}

func main() {
	if os.Args[1] == "serve" {
		serve()
		return
	}
	seconds, _ := strconv.ParseFloat(os.Args[2], 64)
	server := started()
	defer server.Wait()
	defer server.Process.Kill()
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("ready", os.Getpid())
	for in.Scan() {
		if in.Text() == "quit" {
			return
		}
		if in.Text() == "go" {
			run(os.Args[1], seconds)
			fmt.Println("done")
		}
	}
}
