package lifeline_test

import (
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"uac/roles/wire/lifeline"
)

// BenchmarkKilled kills a process of 45 MiB and reports, from the kill on, the medians
// of when its lifeline and when its ordinary connection have ended, in milliseconds.
func BenchmarkKilled(b *testing.B) {
	var held, ordinary []time.Duration
	for b.Loop() {
		h, o := killLarge(b)
		held, ordinary = append(held, h), append(ordinary, o)
	}
	for name, all := range map[string][]time.Duration{"held-p50-ms": held, "ordinary-p50-ms": ordinary} {
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2].Seconds()*1000, name)
	}
	b.ReportMetric(0, "ns/op")
}

func killLarge(b *testing.B) (held, ordinary time.Duration) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	cmd := exec.CommandContext(b.Context(), os.Args[0], l.Addr().String())
	cmd.Env = append(os.Environ(), sizeVariable+"=45")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }() // it was killed
	conns := make([]net.Conn, 2)
	for i := range conns {
		if conns[i], err = l.Accept(); err != nil {
			b.Fatal(err)
		}
		defer conns[i].Close()
	}
	one := make([]byte, 1)
	if _, err := conns[1].Read(one); err != nil {
		b.Fatal(err)
	}
	ends := make([]chan time.Time, len(conns))
	for i, c := range conns {
		ends[i] = make(chan time.Time, 1)
		go func() {
			_, _ = c.Read(make([]byte, 1))
			ends[i] <- time.Now()
		}()
	}
	began := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		b.Fatal(err)
	}
	return (<-ends[0]).Sub(began), (<-ends[1]).Sub(began)
}

// large is a process with memory, a connection that it holds, and an ordinary one.
func large(mib string) {
	addr := os.Args[1]
	size, err := strconv.Atoi(mib)
	memory := make([]byte, size<<20)
	for i := 0; i < len(memory); i += os.Getpagesize() {
		memory[i] = 1
	}
	var conns []net.Conn
	for range 2 {
		var c net.Conn
		if err == nil {
			c, err = net.Dial("tcp", addr)
		}
		conns = append(conns, c)
	}
	if err == nil {
		_, err = lifeline.Hold(conns[0])
	}
	if err == nil {
		_, err = conns[1].Write(memory[:1])
	}
	if err != nil {
		os.Exit(1)
	}
	select {}
}
