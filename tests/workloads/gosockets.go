// gosockets: connections whose openers are known, and one of them never closes.
//
//	gosockets http    three functions get pages by http.Get: leakBody drops the body, closeBody and closeLater close it
//	gosockets dual    the same, by a client that dials a host with addresses of both kinds, which Go tries at once
//	gosockets dial    goroutines that dial by themselves: dialAndForget keeps the connection, dialAndClose closes it
//	gosockets files   goroutines that open files: openAndForget, openAndClose
//	gosockets spin N  as many goroutines as it can for N seconds, each made by spinOff
//	gosockets clean   as http, but nobody leaks
//	gosockets serve   the other side: answers with the beginning of a page, and waits until the client goes
//
// Every answer takes a connection of its own, as none ends before its client closes it.
//
//	truth leaked N, truth closed N, truth later N
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	leaks  = 97
	closes = 41
	laters = 23
)

var (
	client  = http.DefaultClient
	address string
	// So that nothing of them is ever collected.
	kept []interface{}
	lock sync.Mutex
)

func keep(what interface{}) {
	lock.Lock()
	kept = append(kept, what)
	lock.Unlock()
}

//go:noinline
func get() *http.Response {
	response, err := client.Get("http://" + address + "/")
	if err != nil {
		panic(err)
	}
	return response
}

//go:noinline
func leakBody() {
	keep(get())
}

//go:noinline
func closeBody() {
	response := get()
	response.Body.Close()
}

//go:noinline
func closeLater() {
	response := get()
	defer response.Body.Close()
	var one [1]byte
	if _, err := io.ReadFull(response.Body, one[:]); err != nil {
		panic(err)
	}
}

//go:noinline
func dialAndForget() {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		panic(err)
	}
	keep(connection)
}

//go:noinline
func dialAndClose() {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		panic(err)
	}
	connection.Close()
}

//go:noinline
func openAndForget() {
	file, err := os.Open("/dev/null")
	if err != nil {
		panic(err)
	}
	keep(file)
}

//go:noinline
func openAndClose() {
	file, err := os.Open("/dev/null")
	if err != nil {
		panic(err)
	}
	file.Close()
}

// All jobs at once, each evenly over the same time.
func jobs(seconds float64, work map[*func()]int) {
	var all sync.WaitGroup
	for what, times := range work {
		all.Add(1)
		go job(*what, times, time.Duration(seconds*float64(time.Second))/time.Duration(times), &all)
	}
	all.Wait()
}

func job(work func(), times int, pause time.Duration, all *sync.WaitGroup) {
	defer all.Done()
	for i := 0; i < times; i++ {
		work()
		time.Sleep(pause)
	}
}

// Runs in a goroutine of its own and waits for it.
//
//go:noinline
func apart(work func()) func() {
	return func() {
		done := make(chan bool)
		go func() {
			work()
			done <- true
		}()
		<-done
	}
}

func openDescriptors() int {
	links, _ := filepath.Glob("/proc/self/fd/*")
	return len(links)
}

// A closed body is a closed connection only after a while: Go closes it in a goroutine.
func untilOpen(n int) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if openDescriptors() <= n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	panic(fmt.Sprint(openDescriptors(), " descriptors are open, not ", n))
}

func run(mode string, seconds float64) {
	three := func(leak, quick, late func()) {
		// The first dial makes what the others use again: an epoll instance, a resolver's configuration.
		quick()
		time.Sleep(100 * time.Millisecond)
		before := openDescriptors()
		work := map[*func()]int{&quick: closes - 1}
		leaked := 0
		if leak != nil {
			work[&leak] = leaks
			leaked = leaks
		}
		if late != nil {
			work[&late] = laters
		}
		jobs(seconds, work)
		untilOpen(before + leaked)
		fmt.Println("truth leaked", leaked)
		fmt.Println("truth closed", closes)
		fmt.Println("truth later", laters)
	}
	switch mode {
	case "http":
		three(leakBody, closeBody, closeLater)
	case "dual":
		client = &http.Client{Transport: &http.Transport{DialContext: bothKinds().DialContext}}
		_, port, _ := net.SplitHostPort(address)
		address = "both.test:" + port
		three(leakBody, closeBody, closeLater)
	case "clean":
		three(nil, closeBody, closeLater)
	case "dial":
		three(apart(dialAndForget), apart(dialAndClose), nil)
	case "files":
		three(apart(openAndForget), apart(openAndClose), nil)
	case "spin":
		spin(seconds)
	}
}

var ended int64

//go:noinline
func spinOff(all *sync.WaitGroup) {
	all.Add(1)
	go func() {
		atomic.AddInt64(&ended, 1)
		all.Done()
	}()
}

func spin(seconds float64) {
	var all sync.WaitGroup
	for until := time.Now().Add(time.Duration(seconds * float64(time.Second))); time.Now().Before(until); {
		for i := 0; i < 100; i++ {
			spinOff(&all)
		}
		all.Wait()
	}
	fmt.Println("truth made", atomic.LoadInt64(&ended))
}

// A dialer whose resolver knows one host, at 127.0.0.1 and at ::1.
func bothKinds() *net.Dialer {
	resolver := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go answer(theirs)
		return ours, nil
	}}
	return &net.Dialer{Resolver: resolver}
}

// Answers one question as a server of names does over a stream.
func answer(to net.Conn) {
	defer to.Close()
	var size [2]byte
	if _, err := io.ReadFull(to, size[:]); err != nil {
		return
	}
	question := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(to, question); err != nil || len(question) < 12 {
		return
	}
	// The name ends with an empty label; its type and class follow.
	end := 12
	for end < len(question) && question[end] != 0 {
		end += int(question[end]) + 1
	}
	end += 5
	if end > len(question) {
		return
	}
	address := net.IPv4(127, 0, 0, 1).To4()
	kind := binary.BigEndian.Uint16(question[end-4:])
	if kind == 28 {
		address = net.IPv6loopback
	}
	reply := append([]byte{}, question[:end]...)
	reply[2], reply[3] = 0x81, 0x80
	copy(reply[4:12], []byte{0, 1, 0, 1, 0, 0, 0, 0})
	reply = append(reply, 0xc0, 12, 0, byte(kind), 0, 1, 0, 0, 0, 60, 0, byte(len(address)))
	reply = append(reply, address...)
	binary.BigEndian.PutUint16(size[:], uint16(len(reply)))
	to.Write(append(size[:], reply...))
}

func serve() {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("x"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	// Where there is no other kind of address there is one less to try.
	_, port, _ := net.SplitHostPort(first.Addr().String())
	if second, err := net.Listen("tcp", "[::1]:"+port); err == nil {
		go http.Serve(second, handler)
	}
	fmt.Println("listening", first.Addr())
	http.Serve(first, handler)
}

func started() (*exec.Cmd, io.Closer) {
	server := exec.Command("/proc/self/exe", "serve")
	out, err := server.StdoutPipe()
	if err != nil {
		panic(err)
	}
	if err := server.Start(); err != nil {
		panic(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		panic(err)
	}
	address = strings.TrimSpace(strings.TrimPrefix(line, "listening "))
	return server, out
}

func main() {
	mode, seconds := "http", 8.0
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	if len(os.Args) > 2 {
		seconds, _ = strconv.ParseFloat(os.Args[2], 64)
	}
	if mode == "serve" {
		serve()
		return
	}
	server, _ := started()
	defer server.Wait()
	defer server.Process.Kill()
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("ready", os.Getpid())
	for in.Scan() {
		if in.Text() == "quit" {
			return
		}
		if in.Text() == "go" {
			run(mode, seconds)
			fmt.Println("done")
		}
	}
}
