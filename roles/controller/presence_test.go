package controller

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"uac/coord"
)

// TestPace: an agent whose links come and go all the time is written down at times,
// and as it is in the end.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var group tasks
		change, written, writes := 0, 0, 0
		p := newPacer(ctx, &group, func(string) { written = change; writes++ })
		const changes = 1000
		begin := time.Now()
		for range changes {
			change++
			p.changed("a1")
			if change <= presenceBurst && written != change {
				t.Errorf("change %d was not written at once", change)
			}
			time.Sleep(100 * time.Millisecond) // of the bubble's time
			synctest.Wait()
		}
		if most := presenceBurst + 1 + int(time.Since(begin)/presenceEvery); writes > most {
			t.Errorf("%d changes were written %d times, want at most %d", changes, writes, most)
		}
		time.Sleep(presenceEvery)
		synctest.Wait()
		if written != changes {
			t.Errorf("written is change %d, want the last", written)
		}
		time.Sleep(presenceBurst * presenceEvery) // calm
		if change++; written == change {
			t.Error("written too early")
		}
		if p.changed("a1"); written != change {
			t.Error("after a while of calm a change is not written at once")
		}
		// What is to come when the session ends does not.
		for range presenceBurst + 1 {
			p.changed("a1")
		}
		cancel()
		group.wait()
	})
}

// TestLastSeen follows an agent's presence over the controllers.
func TestLastSeen(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1})
	c1, c2 := w.node("c1"), w.node("c2")
	a := w.agent(c1, "a1", nil)
	connected := func(n *node, want bool) (seen time.Time) {
		t.Helper()
		n.settle()
		got, err := n.GetAgent(t.Context(), "a1")
		if err != nil || got.Connected != want || got.LastSeen.IsZero() {
			t.Errorf("%s shows %+v, %v; want connected: %v", n.cfg.Name, got, err, want)
		}
		return got.LastSeen
	}
	connected(c1, true)
	a.disconnect()
	kv := func() linkRecord {
		t.Helper()
		c1.settle()
		kv, _ := c1.member.View().Get(linkKey("a1", "c1"))
		rec, err := decode[linkRecord](kv)
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
	if rec := kv(); rec.Until == "" || rec.held(c1.member.View().Snapshot(), "c1") {
		t.Errorf("the link that ended is recorded as %+v", rec)
	} else if at, err := time.Parse(time.RFC3339, string(rec.Until)); err != nil || !connected(c1, false).Equal(at) {
		t.Errorf("last seen %v, want the end of the link, %s", connected(c1, false), rec.Until)
	}
	// A controller that does not live to see the end: the loss is when it was last
	// seen.
	a.connect(c1)
	connected(c1, true)
	w.kill("c1")
	c2.settle()
	got := connected(c2, false)
	for _, loss := range coord.Losses(c2.member.View().Snapshot()) {
		if loss.Node == "c1" && !got.Equal(loss.At) {
			t.Errorf("last seen %v, want when c1 was lost, %v", got, loss.At)
		}
	}
	a.link, a.at = nil, nil
	a.connect(c2)
	connected(c2, true)
}
