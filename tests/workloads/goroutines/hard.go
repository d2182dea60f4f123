package main

import (
	"math/rand"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Runs hard. Which function may call which is known: each says above it by whom it is called (`go`: as a goroutine that
// was started there), so that a frame too many, too few or of another goroutine shows. The test reads it there.

const (
	hardPairs   = 23
	hardLockers = 7
	hardDivers  = 23
	hardSpawns  = 3
	hardBatch   = 97
)

var (
	hardSpawned = counted("spawned")
	hardTurns   = counted("turns")
	hardLock    sync.Mutex
	hardSink    atomic.Value
)

//go:noinline
func hard() {
	for i := 0; i < hardPairs; i++ {
		there, back := make(chan int), make(chan int)
		go hardPing(there, back)
		go hardPong(there, back)
	}
	for i := 0; i < hardLockers; i++ {
		go hardLocker()
	}
	for i := 0; i < hardDivers; i++ {
		go hardDiver()
	}
	for i := 0; i < hardSpawns; i++ {
		go hardSpawner()
	}
	go hardChooser()
	go hardCollector()
}

// --- channels

// by: go hard
//
//go:noinline
func hardPing(there, back chan int) {
	for turn := 0; ; turn++ {
		hardGive(there, turn)
		hardTake(back)
		atomic.AddInt64(hardTurns, 1)
		hardRest(turn)
	}
}

// Now and then: two who wake each other would keep a CPU for themselves.
//
// by: hardPing, hardLocker
//
//go:noinline
func hardRest(turn int) {
	if turn%97 == 0 {
		time.Sleep(time.Millisecond)
	}
}

// by: go hard
//
//go:noinline
func hardPong(there, back chan int) {
	for {
		hardGive(back, hardTake(there))
	}
}

// by: hardPing, hardPong, hardShortWork
//
//go:noinline
func hardGive(to chan int, turn int) { to <- turn }

// by: hardPing, hardPong
//
//go:noinline
func hardTake(from chan int) int { return <-from }

// --- a lock

// by: go hard
//
//go:noinline
func hardLocker() {
	for turn := 0; ; turn++ {
		hardEnter()
		hardInside()
		hardLeave()
		hardRest(turn)
	}
}

// by: hardLocker
//
//go:noinline
func hardEnter() { hardLock.Lock() }

// by: hardLocker
//
//go:noinline
func hardInside() {
	// Others come to where they have to wait.
	runtime.Gosched()
}

// by: hardLocker
//
//go:noinline
func hardLeave() { hardLock.Unlock() }

// --- stacks that grow, are moved, and shrink with the next collection

// by: go hard
//
//go:noinline
func hardDiver() {
	for {
		hardDive(rand.Intn(97) + 1)
	}
}

// by: hardDiver, hardDive
//
//go:noinline
func hardDive(depth int) int {
	var ballast [128]int
	if depth == 0 {
		hardBottom()
		return 0
	}
	ballast[depth%128] = hardDive(depth - 1)
	return ballast[(depth+1)%128]
}

// by: hardDive
//
//go:noinline
func hardBottom() {
	hardAllocate(rand.Intn(1 << 12))
	time.Sleep(time.Duration(rand.Intn(50)) * time.Microsecond)
}

// by: hardBottom
//
//go:noinline
func hardAllocate(size int) { hardSink.Store(make([]byte, size)) }

// --- goroutines that do not live long

// by: go hard
//
//go:noinline
func hardSpawner() {
	for {
		hardSpawn()
	}
}

// by: hardSpawner
//
//go:noinline
func hardSpawn() {
	var all sync.WaitGroup
	answers := make(chan int)
	for i := 0; i < hardBatch; i++ {
		all.Add(1)
		go hardShort(&all, answers)
	}
	for i := 0; i < hardBatch; i++ {
		hardCollect(answers)
	}
	hardJoin(&all)
	atomic.AddInt64(hardSpawned, hardBatch)
}

// by: hardSpawn
//
//go:noinline
func hardCollect(answers chan int) { <-answers }

// by: hardSpawn
//
//go:noinline
func hardJoin(all *sync.WaitGroup) { all.Wait() }

// by: go hardSpawn
//
//go:noinline
func hardShort(all *sync.WaitGroup, answers chan int) {
	hardShortWork(answers)
	all.Done()
}

// by: hardShort
//
//go:noinline
func hardShortWork(answers chan int) {
	hardGive(answers, 1)
}

// --- select, and collections of garbage

// by: go hard
//
//go:noinline
func hardChooser() {
	ticker := time.NewTicker(time.Millisecond)
	never := make(chan int)
	for {
		hardChoose(ticker, never)
	}
}

// by: hardChooser
//
//go:noinline
func hardChoose(ticker *time.Ticker, never chan int) {
	select {
	case <-ticker.C:
	case <-never:
	}
}

// by: go hard
//
//go:noinline
func hardCollector() {
	for {
		hardGC()
	}
}

// by: hardCollector
//
//go:noinline
func hardGC() {
	runtime.GC()
	time.Sleep(23 * time.Millisecond)
}
