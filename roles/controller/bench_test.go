package controller

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"uac/roles/controller/api"
)

// BenchmarkRequests completes requests of one step, 64 at a time: the API is called
// in process, and the agent says at once that its step has run and ended. What is
// left is the engine, the store and its disk.
func BenchmarkRequests(b *testing.B) {
	for _, members := range []struct{ controllers, watches int }{{1, 0}, {2, 1}} {
		b.Run(fmt.Sprintf("members=%d", members.controllers+members.watches), func(b *testing.B) {
			w := startWorld(b, worldOptions{controllers: members.controllers, watches: members.watches, quiet: true})
			n := w.node("c1")
			a := w.agent(n, "a1", nil)
			n.apply(process("single", step("one", "a1")))
			stop := make(chan struct{})
			var playing sync.WaitGroup
			playing.Go(func() { a.playEnds(stop) })
			work := make(chan struct{})
			b.ResetTimer()
			var clients sync.WaitGroup
			for range 64 {
				clients.Go(func() {
					for range work {
						if err := n.complete(b.Context(), "single"); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			clients.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
			b.StopTimer()
			close(stop)
			playing.Wait()
		})
	}
}

// complete runs a process and follows the request until it has succeeded.
func (n *node) complete(ctx context.Context, process string) error {
	r, _, err := n.Accept(ctx, operator, api.RunSpec{Process: process}, "")
	if err != nil {
		return err
	}
	last := r
	if err := n.WatchRequest(ctx, r.ID, func(r api.Request) error { last = r; return nil }); err != nil {
		return err
	}
	if last.Status != "succeeded" {
		return fmt.Errorf("%s is %s", last.ID, last.Status)
	}
	return nil
}

// playEnds answers every start as an agent does whose steps end at once.
func (a *agent) playEnds(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case m := <-a.link.sent():
			if s := m.GetStart(); s != nil {
				a.fences[s.GetRequest()] = s.GetFence()
				a.running(s)
				a.exited(s, 0)
				delete(a.fences, s.GetRequest())
			}
		}
	}
}
