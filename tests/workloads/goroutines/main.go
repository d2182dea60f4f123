// goroutines: goroutines that wait in known places, leak at a known rate, or run as hard as they can.
//
//	goroutines MODE [NUMBER]    MODE may be several, joined by commas
//
// Says `ready PID` once all stands still that should; `go` begins what a mode does then. `count` is answered by
// `truth KEY NUMBER` lines and `done`, `dump` by `dumped` when the runtime has told of all goroutines. `exec` puts
// the same program in place of this one, which says `ready` again. `quit` or the end of stdin ends it; so does SIGQUIT, with the runtime's own
// account of all goroutines on stderr, which GOTRACEBACK=system makes complete (runtime.Stack leaves the runtime's
// frames and goroutines out whatever that says).
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What a mode does: at once, and when told to go. Files that are not always built add theirs.
type mode struct {
	prepare func(number int)
	run     func()
}

var modes = map[string]mode{
	"still": {prepare: func(int) { still() }},
	"many":  {prepare: many, run: func() { go spin() }},
	"hard":  {run: hard},
	"pool":  {prepare: func(int) { pool() }, run: func() { go feedPool() }},
	"warm":  {run: func() { go warmUp() }},

	"leak-send":    {run: func() { go paced(50, leakSend) }},
	"clean-send":   {run: func() { go paced(50, cleanSend) }},
	"leak-ticker":  {run: func() { go paced(70, leakReload) }},
	"clean-ticker": {run: func() { go paced(70, cleanReload) }},
}

var counters = map[string]func() int64{}

func main() {
	number := 0
	if len(os.Args) > 2 {
		number, _ = strconv.Atoi(os.Args[2])
	}
	chosen := strings.Split(os.Args[1], ",")
	for _, name := range chosen {
		if prepare := modes[name].prepare; prepare != nil {
			prepare(number)
		}
	}
	if chosen[0] == "still" {
		settle()
	}
	fmt.Printf("ready %d\n", os.Getpid())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() && in.Text() != "quit" {
		switch in.Text() {
		case "go":
			begun = time.Now()
			for _, name := range chosen {
				if run := modes[name].run; run != nil {
					run()
				}
			}
		case "count":
			sayCounts()
		case "dump":
			pprof.Lookup("goroutine").WriteTo(io.Discard, 2)
			fmt.Println("dumped")
		case "exec":
			syscall.Exec("/proc/self/exe", os.Args, os.Environ())
		}
	}
}

// When `go` was said.
var begun time.Time

func sayCounts() {
	keys := []string{}
	for key := range counters {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		fmt.Printf("truth %s %d\n", key, counters[key]())
	}
	fmt.Printf("truth elapsed_ns %d\ndone\n", time.Since(begun).Nanoseconds())
}

// Waits until nothing changes any more. The runtime itself comes to rest only when nothing collects garbage, and when
// all that could be given back to the system is.
func settle() {
	debug.SetGCPercent(-1)
	debug.FreeOSMemory()
	for last, same := "", 0; same < 5; {
		time.Sleep(10 * time.Millisecond)
		// The goroutine that asks comes first.
		_, now, _ := strings.Cut(account(), "\n\n")
		if now == last {
			same++
		} else {
			same = 0
		}
		last = now
	}
}

func account() string {
	for size := 1 << 20; ; size *= 2 {
		text := make([]byte, size)
		if length := runtime.Stack(text, true); length < size {
			return string(text[:length])
		}
	}
}
