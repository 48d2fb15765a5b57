package coord_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"uac/coord"
)

func TestRoom(t *testing.T) {
	t.Parallel()
	const quota = 16 << 20
	c := start(t, 1, 0, quick, func(c *coord.Config) { c.QuotaBytes = quota })
	m, s := c.Node("c1").Member, c.Node("c1").Session()
	awaitActive(c, "c1", "c1")
	if err := m.CheckRoom(coord.RoomForRequests); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, put("small", "1"))
	big := strings.Repeat("x", 1<<16)
	fill := func(limit float64) {
		t.Helper()
		for range 400 {
			if err := m.CheckRoom(limit); err != nil {
				if !errors.Is(err, coord.ErrNoRoom) || !strings.Contains(err.Error(), "%") {
					t.Errorf("got %v", err)
				}
				return
			}
			mustCommit(t, s, put("big", big))
			coord.EtcdServer(m).Backend().ForceCommit() // counts what was written
		}
		t.Fatalf("never more than %v in use", limit)
	}
	fill(coord.RoomForRequests)
	if err := m.CheckRoom(coord.RoomForGrowth); err != nil {
		t.Errorf("no room for growth as soon as there is none for requests: %v", err)
	}
	fill(coord.RoomForGrowth)

	// Whoever writes on runs into etcd's own alarm. Then nothing can be written,
	// the errors say so, and all can be read.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			_, _ = s.Commit(ctx, put("big", big))
		}
	}()
	until(t, "the alarm", func() bool {
		err := m.CheckRoom(1)
		return errors.Is(err, coord.ErrNoRoom) && strings.Contains(err.Error(), "restart c1")
	})
	until(t, "the end of trust", func() bool { return errors.Is(s.Check(), coord.ErrNoTrust) })
	if got := m.Status().Reason; !strings.Contains(got, "Raise etcd.quota") {
		t.Errorf("the status does not say why there is no trust: %q", got)
	}
	if err := m.Sync(t.Context()); err != nil {
		t.Errorf("nothing can be read: %v", err)
	}
	if snap := m.View().Snapshot(); string(value1(snap, "small")) != "1" {
		t.Error("the view lost a key")
	}
	if s.Context().Err() != nil {
		t.Error("the session is over")
	}
	// History goes first, then a start makes the file small.
	if err := coord.Compact(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	cancel()
	until(t, "history is gone", func() bool {
		coord.EtcdServer(m).Backend().ForceCommit()
		used, _ := m.Room()
		return used < coord.RoomForRequests
	})
	c.Kill("c1")
	s = c.Run("c1").SessionAfter(s.Epoch())
	mustCommit(t, s, put("small", "2"))
	if err := c.Node("c1").Member.CheckRoom(coord.RoomForRequests); err != nil {
		t.Error(err)
	}
}

func value1(s coord.Snapshot, key string) []byte { kv, _ := s.Get(key); return kv.Value }

func TestCompactionKeepsHistory(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 0, func(c *coord.Config) { c.KeepRevisions = 20 })
	s := c.Node("c1").Session()
	cl := client(t, c.Node("c1").Member)
	var last int64
	for range 30 {
		last = mustCommit(t, s, put("x", "")).Revision
	}
	if err := c.Node("c1").Member.View().Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	for range 2 { // there may be nothing to do
		if err := coord.Compact(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	old := <-cl.Watch(ctx, "x", withRev(last-25)...)
	if old.CompactRevision == 0 {
		t.Error("nothing was compacted")
	}
	kept := <-cl.Watch(ctx, "x", withRev(last-10)...)
	if kept.Err() != nil || len(kept.Events) == 0 {
		t.Errorf("recent history is gone: %v", kept.Err())
	}
}
