// gc: makes garbage until a known number of collections has been made, and says what the runtime itself knows of them.
//
//	go N F      garbage until the collector has run N times by itself, then F forced collections, then the truth
//	truth       the truth
//	lock N      N waits for a sync.Mutex, 5 ms each, then the truth
//	limit N     GOMEMLIMIT is N bytes from now on, and a collection; then the truth
//	quit
//
// Buckets of the runtime's histograms are `truth NAME.INDEX COUNT`, those without samples left out; INDEX is that of
// runtime/metrics, whose first bucket is of negative times.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"time"
)

// What stays alive: so much that a collection takes a while.
const kept = 16 << 20

var live [][]byte
var sink []byte

var names = map[string]string{
	"/gc/heap/live:bytes":                     "heap_live",
	"/gc/heap/goal:bytes":                     "heap_goal",
	"/cpu/classes/gc/total:cpu-seconds":       "cpu_gc",
	"/cpu/classes/gc/mark/idle:cpu-seconds":   "cpu_idle_mark",
	"/cpu/classes/gc/mark/assist:cpu-seconds": "cpu_assist",
	"/cpu/classes/total:cpu-seconds":          "cpu_total",
	"/sync/mutex/wait/total:seconds":          "mutex_wait",
	"/gc/cycles/forced:gc-cycles":             "forced",
	"/gc/cycles/total:gc-cycles":              "cycles",
	"/gc/pauses:seconds":                      "stops",
	"/sched/pauses/stopping/gc:seconds":       "stopping",
	"/sched/pauses/stopping/other:seconds":    "other_stopping",
	"/sched/pauses/total/other:seconds":       "other_stops",
	"/sched/latencies:seconds":                "run_queue",
}

func say(out *bufio.Writer) {
	samples := make([]metrics.Sample, 0, len(names))
	for name := range names {
		samples = append(samples, metrics.Sample{Name: name})
	}
	metrics.Read(samples)
	for _, sample := range samples {
		key := names[sample.Name]
		switch sample.Value.Kind() {
		case metrics.KindUint64:
			fmt.Fprintf(out, "truth %s %d\n", key, sample.Value.Uint64())
		case metrics.KindFloat64:
			fmt.Fprintf(out, "truth %s %.0f\n", key, sample.Value.Float64()*1e9)
		case metrics.KindFloat64Histogram:
			for index, count := range sample.Value.Float64Histogram().Counts {
				if count > 0 {
					fmt.Fprintf(out, "truth %s.%d %d\n", key, index, count)
				}
			}
		}
	}
	var stats debug.GCStats
	debug.ReadGCStats(&stats)
	fmt.Fprintf(out, "truth numgc %d\n", stats.NumGC)
	fmt.Fprintf(out, "truth pause_total %d\n", stats.PauseTotal.Nanoseconds())
	for index, pause := range stats.Pause {
		// The latest first.
		fmt.Fprintf(out, "truth pause.%d %d\n", index, pause.Nanoseconds())
	}
	fmt.Fprintln(out, "done")
	out.Flush()
}

func collections() int64 {
	var stats debug.GCStats
	debug.ReadGCStats(&stats)
	return stats.NumGC
}

func makeGarbage(until int64) {
	for collections() < until {
		for i := 0; i < 97; i++ {
			sink = make([]byte, 32<<10)
		}
		runtime.Gosched()
	}
}

// Says how long was waited.
func waitForLock(out *bufio.Writer, waits int) {
	var lock sync.Mutex
	var waited time.Duration
	for i := 0; i < waits; i++ {
		lock.Lock()
		done := make(chan bool)
		go func() {
			begun := time.Now()
			lock.Lock()
			waited += time.Since(begun)
			lock.Unlock()
			done <- true
		}()
		time.Sleep(5 * time.Millisecond)
		lock.Unlock()
		<-done
	}
	fmt.Fprintf(out, "truth waited %d\n", waited.Nanoseconds())
}

func main() {
	out := bufio.NewWriter(os.Stdout)
	for i := 0; i < kept>>12; i++ {
		live = append(live, make([]byte, 4<<10))
	}
	// Buckets and maps of the metrics are made now.
	metrics.Read([]metrics.Sample{{Name: "/gc/pauses:seconds"}, {Name: "/sched/latencies:seconds"}})
	fmt.Fprintf(out, "ready %d\n", os.Getpid())
	out.Flush()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		word := strings.Fields(in.Text())
		var n, forced int
		if len(word) > 1 {
			fmt.Sscan(word[1], &n)
		}
		if len(word) > 2 {
			fmt.Sscan(word[2], &forced)
		}
		switch word[0] {
		case "go":
			makeGarbage(collections() + int64(n))
			for i := 0; i < forced; i++ {
				runtime.GC()
			}
			say(out)
		case "lock":
			waitForLock(out, n)
			say(out)
		case "limit":
			debug.SetMemoryLimit(int64(n))
			runtime.GC()
			say(out)
		case "truth":
			say(out)
		case "quit":
			runtime.KeepAlive(live)
			return
		}
	}
}
