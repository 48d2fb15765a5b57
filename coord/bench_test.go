package coord_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"uac/coord"
	"uac/coord/coordtest"
)

// report replaces the mean of all iterations by their distribution.
func report(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	at := func(p float64) float64 { return float64(took[int(p*float64(len(took)-1))]) / float64(time.Millisecond) }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(at(1), "max-ms")
}

// BenchmarkTakeover compares what a fail-over takes from the death of the Active
// to the first fenced write of its successor: decided on evidence, and with
// nothing but etcd's own election on a lease. The leader of raft is the Active
// or the watch.
func BenchmarkTakeover(b *testing.B) {
	for _, leads := range []string{"active", "watch"} {
		b.Run("decision/raft="+leads, func(b *testing.B) { benchDecision(b, leads == "active") })
	}
	for _, leads := range []string{"active", "watch"} {
		b.Run("election/raft="+leads, func(b *testing.B) { benchElection(b, leads == "active") })
	}
}

func benchDecision(b *testing.B, leads bool) {
	c := start(b, 2, 1)
	var took []time.Duration
	for range b.N {
		active := awaitActive(c, "w1", "c1", "c2")
		passive := other(active)
		epoch := c.Node(active).Session().Epoch()
		c.Node(passive).Session()
		if leads {
			leadRaft(b, c, active)
		} else {
			leadRaft(b, c, "w1")
		}
		was := term(c.Await(passive, "the term", func(s coord.Snapshot) bool { return begun(s) == active }))
		var wg sync.WaitGroup
		began := time.Now()
		wg.Go(func() { c.Kill(active) })
		awaitTerm(c, passive, passive, was)
		took = append(took, time.Since(began))
		wg.Wait()
		c.Run(active).SessionAfter(epoch)
	}
	report(b, took)
}

// benchElection is the recipe of etcd's documentation: whoever wins the election
// leads as long as its lease lives. A trial takes seconds, as the fail-over does.
func benchElection(b *testing.B, leads bool) {
	const ttl = 2 // seconds: etcd grants no less at our raft timing
	c := coordtest.Start(b, coordtest.Options{Controllers: 2, Watches: 1})
	names := []string{"c1", "c2"}
	for _, name := range c.Names() {
		if err := c.Node(name).Member.Sync(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	var took []time.Duration
	for i := range b.N {
		active, passive := names[i%2], names[1-i%2]
		// The context of a session ends with its node: in one process, what is left of
		// a killed one would go on renewing its lease.
		ctx, cancel := context.WithCancel(b.Context())
		activeCtx, dies := context.WithCancel(ctx)
		elected := func(ctx context.Context, name string) chan time.Time {
			won := make(chan time.Time, 1)
			cl := client(b, c.Node(name).Member)
			go func() {
				for ctx.Err() == nil {
					if campaign(ctx, cl, name, ttl) == nil {
						won <- time.Now()
						return
					}
				}
			}()
			return won
		}
		<-elected(activeCtx, active)
		next := elected(ctx, passive)
		waiting := func() bool {
			resp, err := client(b, c.Node("w1").Member).Get(ctx, "election/", clientv3.WithPrefix(), clientv3.WithCountOnly())
			return err == nil && resp.Count == 2
		}
		until(b, "both campaign", waiting)
		if leads {
			leadRaft(b, c, active)
		} else {
			leadRaft(b, c, "w1")
		}
		began := time.Now()
		dies()
		c.Kill(active)
		took = append(took, (<-next).Sub(began))
		cancel()
		if err := c.Run(active).Member.Sync(b.Context()); err != nil {
			b.Fatal(err)
		}
		until(b, "nobody campaigns", func() bool {
			resp, err := client(b, c.Node("w1").Member).Get(b.Context(), "election/", clientv3.WithPrefix(), clientv3.WithCountOnly())
			return err == nil && resp.Count == 0
		})
	}
	report(b, took)
}

// campaign returns when name leads and has written a first time under that
// leadership.
func campaign(ctx context.Context, cl *clientv3.Client, name string, ttl int) (err error) {
	s, err := concurrency.NewSession(cl, concurrency.WithTTL(ttl), concurrency.WithContext(ctx))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = s.Close() // or the next campaign waits for the key of this one
		}
	}()
	e := concurrency.NewElection(s, "election")
	if err := e.Campaign(ctx, name); err != nil {
		return err
	}
	resp, err := cl.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(e.Key()), "=", e.Rev())).
		Then(clientv3.OpPut("first", name)).Commit()
	if err == nil && !resp.Succeeded {
		err = concurrency.ErrElectionNotLeader
	}
	return err
}

// BenchmarkCommit measures group commit: one write at a time, and 64 writers.
func BenchmarkCommit(b *testing.B) {
	for _, members := range []int{1, 3} {
		for _, writers := range []int{1, 64} {
			b.Run(fmt.Sprintf("members=%d/writers=%d", members, writers), func(b *testing.B) {
				watches := 0
				if members == 3 {
					watches = 1
				}
				c := start(b, members-watches, watches)
				active := awaitActive(c, "c1", "c1", "c2")
				s := c.Node(active).Session()
				value := make([]byte, 256)
				var wg sync.WaitGroup
				var mu sync.Mutex
				var took []time.Duration
				b.ResetTimer()
				for w := range writers {
					wg.Go(func() {
						var mine []time.Duration
						for i := w; i < b.N; i += writers {
							began := time.Now()
							mustCommit(b, s, coord.Tx{Then: []coord.Write{coord.Put(fmt.Sprintf("bench/%d/%d", w, i%100), value)}})
							mine = append(mine, time.Since(began))
						}
						mu.Lock()
						defer mu.Unlock()
						took = append(took, mine...)
					})
				}
				wg.Wait()
				b.StopTimer()
				rate := float64(b.N) / b.Elapsed().Seconds()
				report(b, took)
				b.ReportMetric(rate, "writes/s")
			})
		}
	}
}
