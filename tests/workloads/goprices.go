// goprices: story 3 in Go, as prices.c: a sync.Mutex held while a price is fetched, by eight goroutines, 400 times; `fixed`: not held.
package main

import (
	"bufio"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const requests = 400

var (
	priceLock sync.Mutex
	prices    = map[int64]int64{}
	next      int64
	fixed     bool
)

//go:noinline
func fetchPrice(item int64) int64 {
	time.Sleep(3 * time.Millisecond)
	return item * 3
}

//go:noinline
func lookupPrice(item int64) {
	var price int64
	if fixed {
		price = fetchPrice(item)
	}
	priceLock.Lock()
	if !fixed {
		price = fetchPrice(item)
	}
	prices[item%64] = price
	priceLock.Unlock()
}

func main() {
	fixed = len(os.Args) > 1 && os.Args[1] == "fixed"
	in := bufio.NewReader(os.Stdin)
	fmt.Println("ready", os.Getpid())
	in.ReadString('\n')
	var served sync.WaitGroup
	for i := 0; i < 8; i++ {
		served.Add(1)
		go func() {
			defer served.Done()
			for {
				item := atomic.AddInt64(&next, 1) - 1
				if item >= requests {
					return
				}
				lookupPrice(item)
			}
		}()
	}
	served.Wait()
	fmt.Println("truth requests", requests)
	fmt.Println("done")
	in.ReadString('\n')
}
