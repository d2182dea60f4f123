// Story 7: four workers serve requests for 8 s, each of which makes a tree of 2,000 nodes and drops it, and counts under a mutex; a million
// nodes are kept all the time. `pressed` sets GOGC=8, so that the collector runs nearly always; `fixed` sets GOGC=800 and makes trees of 20.
//
// Truth: `served`, requests.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

type node struct{ left, right *node }

//go:noinline
func grow(n int) *node {
	if n <= 1 {
		return &node{}
	}
	return &node{grow((n - 1) / 2), grow((n - 1) / 2)}
}

var (
	kept   *node
	served int
	mutex  sync.Mutex
)

//go:noinline
func serveRequest(n int) bool {
	tree := grow(n)
	mutex.Lock()
	served++
	mutex.Unlock()
	return tree.left != nil
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	kept = grow(1_000_000)
	nodes := 2000
	if len(os.Args) > 1 && os.Args[1] == "fixed" {
		debug.SetGCPercent(800)
		nodes = 20
	} else {
		debug.SetGCPercent(8)
	}
	fmt.Println("ready", os.Getpid())
	in.Scan()
	end := time.Now().Add(8 * time.Second)
	var workers sync.WaitGroup
	for i := 0; i < 4; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for time.Now().Before(end) {
				serveRequest(nodes)
				time.Sleep(time.Millisecond)
			}
		}()
	}
	workers.Wait()
	fmt.Println("truth served", served)
	fmt.Println("done")
	in.Scan()
}
