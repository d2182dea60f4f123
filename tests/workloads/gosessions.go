// Story 6: a service that is told to reload its configuration every 150 ms and serves 200 requests a second, for 14 s:
//
//	keep   each reload starts a goroutine with a ticker that nobody stops, each request leaves a session of 16 KB behind
//	fixed  the ticker's goroutine ends with the next reload, and the 201st session makes another one go
//
// Each request also renders a page, which is garbage at once. Truths: `reloads`, and `kept`, bytes of sessions at the end.
package main

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

const session, bound = 16 << 10, 200

var sessions = map[int][]byte{}

//go:noinline
func rememberSession(id int) {
	sessions[id] = make([]byte, session)
	for i := range sessions[id] {
		sessions[id][i] = byte(id)
	}
}

//go:noinline
func renderPage(id int) int {
	page := make([]byte, 20_000)
	for i := range page {
		page[i] = byte(id)
	}
	return int(page[id%len(page)])
}

//go:noinline
func refreshLoop(stop <-chan struct{}) {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
	}
}

//go:noinline
func reloadConfig() chan struct{} {
	stop := make(chan struct{})
	go refreshLoop(stop)
	return stop
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("ready", os.Getpid())
	in.Scan()
	fixed := len(os.Args) > 1 && os.Args[1] == "fixed"
	var stop chan struct{}
	reloads := 0
	sum := 0
	for i := 0; i < 2800; i++ {
		if i%30 == 0 {
			if fixed && stop != nil {
				close(stop)
			}
			stop = reloadConfig()
			reloads++
		}
		sum += renderPage(i)
		rememberSession(i)
		if fixed {
			delete(sessions, i-bound)
		}
		time.Sleep(5 * time.Millisecond)
	}
	fmt.Println("truth reloads", reloads)
	fmt.Println("truth kept", len(sessions)*session)
	fmt.Println("done")
	in.Scan()
}
