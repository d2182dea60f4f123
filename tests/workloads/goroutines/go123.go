//go:build go1.23

package main

import "iter"

func init() {
	stillMore = append(stillMore, startPulled)
}

// Coroutines: half of a pair waits for the other without a channel.
//
//go:noinline
func startPulled() {
	for i := 0; i < 3; i++ {
		next, stop := iter.Pull(yields)
		next()
		keep(next, stop)
	}
	promise("yields", 3)
	park("pulls", 2, pulls)
}

func yields(yield func(int) bool) {
	for yield(1) {
	}
}

// The puller waits for the pulled, which waits for nobody.
//
//go:noinline
func pulls() {
	next, _ := iter.Pull(func(yield func(int) bool) {
		receiveNobody()
	})
	next()
}
