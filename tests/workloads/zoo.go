// Go: goroutines that wait in the runtime, in system calls and in callbacks, after a round of contention.
//
// go: four goroutines take one mutex 2,000 times each; done: everything sleeps.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

var hot sync.Mutex
var count int

//go:noinline
func readPipe(fd int) {
	runtime.LockOSThread()
	var one [1]byte
	syscall.Read(fd, one[:])
	runtime.KeepAlive(one)
}

//go:noinline
func deep(depth, fd int) int {
	if depth == 0 {
		readPipe(fd)
		return 1
	}
	return deep(depth-1, fd) + 1
}

//go:noinline
func contend(done *sync.WaitGroup) {
	for i := 0; i < 2000; i++ {
		hot.Lock()
		count++
		runtime.Gosched()
		hot.Unlock()
	}
	done.Done()
}

func main() {
	time.AfterFunc(600*time.Second, func() { os.Exit(3) })
	var pipe [2]int
	syscall.Pipe(pipe[:])
	go readPipe(pipe[0])
	go deep(30, pipe[0])
	go func() {
		defer readPipe(pipe[0])
		_ = net.ParseIP("127.0.0.1")
	}()
	go func() {
		listener, _ := net.Listen("tcp", "127.0.0.1:0")
		listener.Accept()
	}()
	fmt.Println("ready", os.Getpid())
	lines := bufio.NewScanner(os.Stdin)
	if !lines.Scan() {
		return
	}
	var done sync.WaitGroup
	done.Add(4)
	for i := 0; i < 4; i++ {
		go contend(&done)
	}
	done.Wait()
	fmt.Println("done")
	lines.Scan()
}
