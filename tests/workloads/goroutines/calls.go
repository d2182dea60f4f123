package main

import (
	"reflect"
	"runtime"
	"sort"
	"strings"
)

// --- ways in which functions come to call each other: all of them end in a wait for nobody

func stillCalls() {
	park("dive97", 2, func() { dive97() })
	park("dive197", 2, func() { dive197() })
	park("bigFrame", 3, func() { bigFrame(1) })
	park("inlinedOuter", 11, inlinedOuter)
	park("closures", 5, closures)
	park("(*station).wait-fm", 3, (&station{}).wait)
	park("stayAt", 3, func() { stayAt(place{1}) })
	park("stayAt", 2, func() { stayAt(&place{1}) })
	park("stayAt", 2, func() { stayAt(&town{place: place{1}}) })
	park("stayAt", 2, func() { stayAt(hotel{place{1}}) })
	park("receiveAny[...]", 3, func() { receiveAny[int](make(chan int)) })
	park("receiveAny[...]", 2, func() { receiveAny[string](make(chan string)) })
	park("(*box[...]).open", 3, (&box[place]{}).open)
	park("deferred", 5, deferred)
	park("deferredOften", 2, deferredOften)
	park("deferredGoexit", 2, deferredGoexit)
	park("panicking", 3, panicking)
	park("recovered", 2, recovered)
	park("sorting", 3, sorting)
	park("mapping", 2, mapping)
	park("reflectCall", 3, reflectCall)
	park("reflectMethod", 2, reflectMethod)
	park("reflectMade", 2, reflectMade)
	park("reflectSelect", 2, reflectSelect)
	park("variadic", 2, func() { variadic("a", 1, 2, 3) })
}

// So much on each frame that the stack was moved several times.
//
//go:noinline
func dive(depth int) int {
	var ballast [64]int
	if depth == 1 {
		<-fromNobody
		return 0
	}
	ballast[depth%64] = dive(depth - 1)
	return ballast[(depth+1)%64]
}

//go:noinline
func dive97() int { return dive(97) + 1 }

//go:noinline
func dive197() int { return dive(197) + 1 }

//go:noinline
func bigFrame(n int) int {
	var ballast [1 << 13]int
	for i := range ballast {
		ballast[i] = n * i
	}
	<-fromNobody
	return ballast[n]
}

// Three functions in one frame, all but the outermost inlined.
func inlinedLeaf() { <-fromNobody }

func inlinedMiddle() { inlinedLeaf() }

//go:noinline
func inlinedOuter() {
	inlinedMiddle()
}

//go:noinline
func closures() {
	depth := 0
	call(func() {
		depth++
		call(func() {
			depth++
			<-fromNobody
		})
	})
}

//go:noinline
func call(f func()) { f() }

// --- methods: by value, by pointer, through wrappers that the compiler makes

type station struct{ trains int }

//go:noinline
func (s *station) wait() {
	<-fromNobody
	s.trains++
}

type stayer interface{ Stay() int }

type place struct{ beds int }

//go:noinline
func (p place) Stay() int {
	<-fromNobody
	return p.beds
}

type town struct {
	name string
	place
}

type hotel struct{ stayer }

//go:noinline
func stayAt(s stayer) int { return s.Stay() }

//go:noinline
func receiveAny[T any](from chan T) T { return <-from }

type box[T any] struct{ content T }

//go:noinline
func (b *box[T]) open() {
	<-fromNobody
	var nothing T
	b.content = nothing
}

// --- deferred calls, panics

//go:noinline
func deferred() {
	defer receiveNobody()
	runtime.Gosched()
}

// In a loop they are kept in a list, not in the code.
//
//go:noinline
func deferredOften() {
	for i := 0; i < 3; i++ {
		defer receiveNobody()
	}
}

//go:noinline
func deferredGoexit() {
	defer receiveNobody()
	runtime.Goexit()
}

//go:noinline
func panicking() {
	defer receiveNobody()
	panic("waits")
}

//go:noinline
func recovered() {
	recovering()
	receiveNobody()
}

//go:noinline
func recovering() {
	defer func() { recover() }()
	dereference(nil)
}

//go:noinline
func dereference(p *int) int { return *p }

// --- called back by the library

//go:noinline
func sorting() {
	numbers := []int{3, 2}
	sort.Slice(numbers, func(i, j int) bool { return receiveLess() })
}

//go:noinline
func mapping() {
	strings.Map(func(r rune) rune {
		receiveNobody()
		return r
	}, "x")
}

//go:noinline
func receiveLess() bool { return <-fromNobody == 0 }

//go:noinline
func reflectCall() {
	reflect.ValueOf(receiveNobody).Call(nil)
}

// Through a function that the library makes of a method and its receiver.
//
//go:noinline
func reflectMethod() {
	reflect.ValueOf(place{1}).Method(0).Interface().(func() int)()
}

// Through a function that the library makes of one that takes all arguments as values.
//
//go:noinline
func reflectMade() {
	made := reflect.MakeFunc(reflect.TypeOf(receiveNobody), func([]reflect.Value) []reflect.Value {
		receiveNobody()
		return nil
	})
	made.Interface().(func())()
}

//go:noinline
func reflectSelect() {
	receive := reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(fromNobody)}
	reflect.Select([]reflect.SelectCase{receive, receive})
}

//go:noinline
func variadic(text string, numbers ...any) string {
	<-fromNobody
	return text + numbers[0].(string)
}
