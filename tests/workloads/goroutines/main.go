// goroutines: goroutines that wait in known places, leak at a known rate, or run as hard as they can.
//
//	goroutines DUMP MODE [NUMBER]    MODE may be several, joined by commas
//
// Says `ready PID` once all stands still that should; `go` begins what a mode does then. `count` is answered by
// `truth KEY NUMBER` lines and `done`. SIGUSR1 writes the runtime's own account of all goroutines into the file DUMP
// and says `dumped`. `quit` or the end of stdin ends it.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/signal"
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
	if len(os.Args) > 3 {
		number, _ = strconv.Atoi(os.Args[3])
	}
	chosen := strings.Split(os.Args[2], ",")
	for _, name := range chosen {
		if prepare := modes[name].prepare; prepare != nil {
			prepare(number)
		}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go dumpOnSignal(signals, os.Args[1])
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

// Waits until nothing changes any more. The runtime itself comes to rest only when nothing collects garbage.
func settle() {
	runtime.GC()
	debug.SetGCPercent(-1)
	runtime.GC()
	for last, same := "", 0; same < 5; {
		time.Sleep(10 * time.Millisecond)
		now := others(account())
		if now == last {
			same++
		} else {
			same = 0
		}
		last = now
	}
}

func account() []byte {
	var text bytes.Buffer
	pprof.Lookup("goroutine").WriteTo(&text, 2)
	return text.Bytes()
}

// All but the goroutine that asks, which comes first.
func others(account []byte) string {
	_, rest, _ := strings.Cut(string(account), "\n\n")
	return rest
}

func dumpOnSignal(signals chan os.Signal, path string) {
	for range signals {
		// Whoever passed the signal on is to be back where it waits.
		for last := ""; ; time.Sleep(time.Millisecond) {
			text := account()
			if now := others(text); now != last {
				last = now
				continue
			}
			if err := os.WriteFile(path, text, 0o600); err != nil {
				panic(err)
			}
			fmt.Println("dumped")
			break
		}
	}
}
