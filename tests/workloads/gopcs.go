// gopcs: says what the Go runtime itself knows of its code: function, file and line of every STEPth address.
// Words of a line are separated by tabs.
//
//	map START OFFSET        the mapping of the program's code
//	at PC LINE NAME FILE    for each address: the innermost function there, and its line
//	outer PC ENTRY NAME     the function that was compiled, where another was inlined into it; ? if not told
//	done
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

type shape interface{ area() int }

type square struct{ side int }

func (s square) area() int { return s.side * s.side }

// Inlined twice over, and generic: what tables of lines are most easily read wrong for.
func largest[T shape](shapes []T) int {
	best := 0
	for _, s := range shapes {
		best = greater(best, s.area())
	}
	return best
}

func greater(a, b int) int {
	if a > b {
		return a
	}
	return b
}

func main() {
	step := uintptr(7)
	if len(os.Args) > 1 {
		n, _ := strconv.Atoi(os.Args[1])
		step = uintptr(n)
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	maps, _ := os.ReadFile("/proc/self/maps")
	exe, _ := os.Readlink("/proc/self/exe")
	var start, end, offset uintptr
	for _, line := range strings.Split(string(maps), "\n") {
		if strings.Contains(line, " r-xp ") && strings.HasSuffix(line, exe) {
			fmt.Sscanf(line, "%x-%x r-xp %x", &start, &end, &offset)
			break
		}
	}
	fmt.Fprintf(out, "map\t%x\t%x\n", start, offset)
	for pc := start; pc < end; pc += step {
		f := runtime.FuncForPC(pc)
		if f == nil {
			continue
		}
		if next := runtime.FuncForPC(pc + 1); next == nil || next.Entry() == pc+1 {
			continue // The call below would tell of that one.
		}
		// The address given is taken as a return address.
		frame, _ := runtime.CallersFrames([]uintptr{pc + 1}).Next()
		fmt.Fprintf(out, "at\t%x\t%d\t%s\t%s\n", pc, frame.Line, frame.Function, frame.File)
		if frame.Func == nil {
			// Inlined. The entry's own name may be that of a function inlined right there.
			outer, _ := runtime.CallersFrames([]uintptr{frame.Entry}).Next()
			name := "?"
			if outer.Func != nil {
				name = outer.Function
			}
			fmt.Fprintf(out, "outer\t%x\t%x\t%s\n", pc, frame.Entry, name)
		}
	}
	fmt.Fprintf(out, "largest %d\n", largest([]square{{2}, {3}}))
	fmt.Fprintln(out, "done")
}
