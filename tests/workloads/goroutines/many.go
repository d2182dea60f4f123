package main

import "sync/atomic"

var spins = counted("spins")

// So many goroutines that wait in a few places at different depths.
func many(number int) {
	for i := 0; i < number; i++ {
		go manyWait(i % 7)
	}
}

//go:noinline
func manyWait(depth int) int {
	if depth == 0 {
		<-fromNobody
		return 0
	}
	return manyWait(depth-1) + 1
}

// What a snapshot costs the program shows in how often this goes round.
//
//go:noinline
func spin() {
	for {
		atomic.AddInt64(spins, 1)
	}
}
