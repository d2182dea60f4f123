// names: one thread that waits 23 times for a word, in functions whose names and order are known.
// One of them is small enough to be inlined into the next.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const rounds = 23

var (
	cacheWord uint32
	waiting   uint32
	finished  = make(chan bool)
)

//go:noinline
func waitForCache(round uint32) {
	atomic.StoreUint32(&waiting, round)
	for atomic.LoadUint32(&cacheWord) != round {
		// FUTEX_WAIT_PRIVATE, as long as the word is what it was.
		syscall.Syscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(&cacheWord)), 128, uintptr(round-1), 0, 0, 0)
	}
}

func lookUp(round uint32) { waitForCache(round) }

//go:noinline
func handleRequest(round uint32) {
	lookUp(round)
}

//go:noinline
func workerMain() {
	runtime.LockOSThread()
	for round := uint32(1); round <= rounds; round++ {
		handleRequest(round)
	}
	finished <- true
}

//go:noinline
func releaseCache(round uint32) {
	atomic.StoreUint32(&cacheWord, round)
	// FUTEX_WAKE_PRIVATE
	syscall.Syscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(&cacheWord)), 129, 1, 0, 0, 0)
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	fmt.Printf("ready %d\n", os.Getpid())
	in.Scan()
	go workerMain()
	for round := uint32(1); round <= rounds; round++ {
		for atomic.LoadUint32(&waiting) != round {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(5 * time.Millisecond)
		releaseCache(round)
	}
	<-finished
	fmt.Printf("truth rounds %d\ndone\n", rounds)
	in.Scan()
}
