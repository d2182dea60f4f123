// Story 4 in Go, as fanout.c: an unbuffered channel, whose receiver returns when its context is done; `fixed`: a channel with room for all.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"
)

const requests, workers = 80, 3

//go:noinline
func sendResult(to chan<- int) { to <- 3 }

//go:noinline
func serveRequest(ctx context.Context, room int) {
	answers := make(chan int, room)
	for i := 0; i < workers; i++ {
		go sendResult(answers)
	}
	for i := 0; i < workers; i++ {
		select {
		case <-answers:
		case <-ctx.Done():
			return
		}
	}
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("ready", os.Getpid())
	in.Scan()
	fixed := len(os.Args) > 1 && os.Args[1] == "fixed"
	kept := 0
	for i := 0; i < requests; i++ {
		ctx, cancel := context.WithCancel(context.Background())
		if fixed {
			serveRequest(ctx, workers)
		} else {
			// Nobody waits for the answers any more.
			cancel()
			serveRequest(ctx, 0)
			kept++
		}
		cancel()
		time.Sleep(120 * time.Millisecond)
	}
	fmt.Println("truth requests", kept)
	fmt.Println("done")
	in.Scan()
}
