package relay_test

import (
	"net"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"uac/roles/relay"
	"uac/roles/wire"
)

// A thousand agents through one relay: each has its own TLS session with the
// controller, and each is answered.
func TestThousandLinks(t *testing.T) {
	links := 1000
	if testing.Short() {
		links = 100
	}
	w := newWorld(t)
	c1 := w.controller("c1")
	r := w.relay("r1", 1, []string{c1.addr}, func(c *relay.Config) { c.MaxPerAgent = links })
	a1 := w.agent("a1")
	all := make([]*link, links)
	var g errgroup.Group
	g.SetLimit(8)
	for i := range all {
		g.Go(func() (err error) {
			// On a busy machine a handshake may take too long, as with real agents.
			for try := 0; try < 5; try++ {
				if all[i], err = w.dial(r.addr, a1); err == nil {
					all[i].number = uint64(i) << 32
					return all[i].echo()
				}
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	w.await("the relay carries all of them", func() bool { return r.Links() == links })
	for _, l := range all {
		g.Go(l.echo)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// BenchmarkIdleLinks measures what an idle link costs in memory: in the relay, and in
// what is on both its sides here, a bare TCP connection each.
func BenchmarkIdleLinks(b *testing.B) {
	const links = 1000
	w := newWorld(b)
	c1 := w.controller("c1")
	r := w.relay("r1", 1, []string{c1.addr}, func(c *relay.Config) { c.MaxPerAgent = links })
	conf := w.agent("a1").Entry
	used := func() uint64 {
		runtime.GC()
		runtime.GC() // stacks shrink, pools forget
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	for b.Loop() {
		before, goroutines := used(), runtime.NumGoroutine()
		var mu sync.Mutex
		var all []net.Conn
		var g errgroup.Group
		g.SetLimit(16)
		for range links {
			g.Go(func() error {
				conn, _, err := wire.DialRelay(b.Context(), r.addr, conf, &wire.RelayAsk{Class: wire.ClassLink})
				mu.Lock()
				defer mu.Unlock()
				all = append(all, conn)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(used()-before)/links, "B/link")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/links, "goroutines/link")
		for _, c := range all {
			_ = c.Close()
		}
		w.await("all are forgotten", func() bool { return r.Links() == 0 })
	}
}
