// Computes on one goroutine for so many milliseconds of CPU time: three quarters in priceOne, which has no frame of its own, called by
// priceAll; the last in logOne. Truths: cpu_ns, most_ns.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

//go:noinline
func priceOne(x uint64) uint64 {
	for i := 0; i < 300000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func logOne(x uint64) uint64 {
	for i := 0; i < 100000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

// CPU time of this thread.
func cpuNs() int64 {
	var ts syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, 3, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}

//go:noinline
func priceAll(wanted int64) (most int64, x uint64) {
	begun := cpuNs()
	x = 1
	for {
		from := cpuNs()
		if from-begun >= wanted {
			return most, x
		}
		x = priceOne(x)
		most += cpuNs() - from
		x = logOne(x)
	}
}

func main() {
	runtime.LockOSThread()
	ms, err := strconv.ParseInt(os.Args[1], 10, 64)
	if err != nil {
		panic(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	fmt.Println("ready", os.Getpid())
	lines.Scan()
	most, x := priceAll(ms * 1000000)
	if x == 0 {
		panic("product")
	}
	fmt.Println("truth cpu_ns", ms*1000000)
	fmt.Println("truth most_ns", most)
	fmt.Println("done")
	lines.Scan()
}
