package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"uac/codestation/mount"
	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// BenchmarkRequests completes requests of one step, 64 at a time: the API is called
// in process, and the agent says at once that its step has run and ended. What is
// left is the engine, the store and its disk.
func BenchmarkRequests(b *testing.B) {
	for _, members := range []struct{ controllers, watches int }{{1, 0}, {2, 1}} {
		b.Run(fmt.Sprintf("members=%d", members.controllers+members.watches), func(b *testing.B) {
			w := startWorld(b, worldOptions{controllers: members.controllers, watches: members.watches, quiet: true})
			benchRequests(b, w)
		})
	}
}

// BenchmarkRequestsWithHistory is BenchmarkRequests while finished requests move to a
// history that is empty or holds a million. Output is collected, too.
func BenchmarkRequestsWithHistory(b *testing.B) {
	for _, archived := range []int{0, 1_000_000} {
		b.Run(fmt.Sprintf("archived=%d", archived), func(b *testing.B) {
			dir := b.TempDir()
			if _, err := mount.Init(dir, "test"); err != nil {
				b.Fatal(err)
			}
			w := startWorld(b, worldOptions{controllers: 1, mount: dir, quiet: true, quota: 2 << 30, change: func(c *Config) {
				c.History = HistoryConfig{Hot: time.Second, HotCount: 1000}
			}})
			w.node("c1").awaitMount(mount.OK)
			fillHistory(b, w.node("c1"), dir, archived)
			benchRequests(b, w)
		})
	}
}

// fillHistory gives the cluster a history of so many requests, as it grows by itself.
func fillHistory(b *testing.B, n *node, dir string, count int) {
	b.Helper()
	p := process("p", step("one", "a1"))
	files := 0
	file := func(e *entry, lines [][]byte) {
		data, err := encodeFile(e.Level, lines)
		if err != nil {
			b.Fatal(err)
		}
		e.seal(fmt.Sprintf("%s/2026010100/0-0-%d", historyDir, files), data)
		files++
		path := filepath.Join(dir, e.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	var levels [][]entry // entries that no file has yet
	var put func(e entry, lines [][]byte)
	put = func(e entry, lines [][]byte) {
		file(&e, lines)
		if e.Level == len(levels) {
			levels = append(levels, nil)
		}
		levels[e.Level] = append(levels[e.Level], e)
		if all := levels[e.Level]; len(all) == 2*fanout {
			up := entry{Level: e.Level + 1}
			var below [][]byte
			for _, e := range all[:fanout] {
				up.add(e)
				below = append(below, encode(e))
			}
			levels[e.Level] = slices.Clone(all[fanout:])
			put(up, below)
		}
	}
	for done := 0; done < count; {
		var e entry
		var lines [][]byte
		for ; len(lines) < maxMoved && done < count; done++ {
			at := now()
			req, err := roles.NewRequest(&p, roles.RequestOptions{ID: newID(), RequestedBy: "op", RequestedAt: at})
			if err != nil {
				b.Fatal(err)
			}
			spec, err := req.Encode()
			if err != nil {
				b.Fatal(err)
			}
			e.add(entry{Count: 1, First: req.ID, Last: req.ID, From: at, To: at, Ended: at,
				Statuses: names{"succeeded"}, Processes: names{"p"}, By: names{"op"}, Agents: names{"a1"}})
			lines = append(lines, encode(archived{
				ID: req.ID, Spec: spec, Accepted: 1,
				Status: encode(roles.Record{Status: roles.RequestSucceeded, StartedAt: at, FinishedAt: at}),
				Steps:  map[string]json.RawMessage{"one": encode(roles.Step{Name: "one", Status: roles.StepSucceeded, Agent: "a1", Attempt: 1})},
			}))
		}
		put(e, lines)
	}
	total := 0
	for _, level := range levels {
		for _, e := range level {
			n.commit1(coord.Tx{Then: []coord.Write{coord.Put(registryKey(prefixHistory, e.Name), encode(e))}})
			total += e.Count
		}
	}
	if total != count {
		b.Fatalf("%d requests are in the history, not %d", total, count)
	}
}

// benchRequests completes requests at c1, 64 at a time.
func benchRequests(b *testing.B, w *world) {
	b.Helper()
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
			if q := m.GetReadOutput(); q != nil { // it has written nothing
				a.say(&wire.AgentMessage{Body: &wire.AgentMessage_Output{Output: &wire.OutputChunk{Id: q.GetId(), Eof: true, Complete: true}}})
			}
			if s := m.GetStart(); s != nil {
				a.fences[s.GetRequest()] = s.GetFence()
				a.running(s)
				a.exited(s, 0)
				delete(a.fences, s.GetRequest())
			}
		}
	}
}
