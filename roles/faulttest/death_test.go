package faulttest

import (
	"testing"
	"time"
)

// TestKillActive kills the Active, idle and with requests in flight, with and
// without raft leadership on it.
func TestKillActive(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.2"))
	for _, raft := range []struct {
		name string
		want func(active, leader string) bool
	}{{"raft leader", onActive}, {"not raft leader", offActive}} {
		for _, load := range []int{0, 12} {
			for trial := range trials(t) {
				active, leader := c.place(raft.name, raft.want)
				begin := c.mark()
				c.submit("chain", load)
				c.started(begin, load/2, "")
				at := c.kill(active)
				next := c.active()
				c.note("killed %s, %d requests in flight, raft led by %s: %s is Active after %v",
					active, load, leader, next, time.Since(at).Round(time.Millisecond))
				if next == active {
					t.Fatalf("%s is Active again though it is dead", active)
				}
				c.submit("chain", 2)
				if trial%2 == 0 { // back while its work is being taken over, or after
					c.start(active)
				}
				c.settled().succeeded(t)
				if trial%2 != 0 {
					c.start(active)
				}
			}
		}
	}
}

// TestCancelAndKill cancels requests and kills the Active at the same moment: a
// cancel that was acknowledged is obeyed by whoever owns the request then, and
// nothing of it starts any more.
func TestCancelAndKill(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("20")) // nobody waits for its end
	for range trials(t) {
		active := c.healthy()
		begin := c.mark()
		ids := c.submit("chain", 6)
		c.started(begin, 6, "first")
		for _, id := range ids[:4] {
			c.order(active, "/v1/requests/"+id+"/cancel", nil)
		}
		c.kill(active)
		for _, id := range ids[4:] {
			c.order(c.active(), "/v1/requests/"+id+"/cancel", nil)
		}
		c.start(active)
		c.healthy()
		h := c.settled()
		for _, id := range ids {
			if r := h.Final[id]; r.Status != "cancelled" || r.step("first").Status != "cancelled" {
				t.Errorf("%s was cancelled while its first step ran, and is %s: %s", id, r.Status, r.where())
			}
		}
		if n := count(h.Ledger[begin:], entryStart, ""); n != len(ids) {
			t.Errorf("%d steps started in %d requests that were cancelled in their first", n, len(ids))
		}
	}
}

// TestFailoverOnConfirmation kills the Active of a cluster that asks before it
// fails over.
func TestFailoverOnConfirmation(t *testing.T) {
	t.Parallel()
	c := startDev(t, "--set", "cluster.failover=confirm")
	c.apply(chain("0.3"))
	active := c.healthy()
	other := c.other(active)
	begin := c.mark()
	c.submit("chain", 6)
	c.started(begin, 3, "")
	c.kill(active)
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if mode := c.probe(other); mode == "ACTIVE" {
			t.Fatalf("%s took over from %s without having been told to", other, active)
		}
	}
	info, err := c.nodeInfo(other, active)
	if err != nil || info.Failover.Ready {
		t.Errorf("the list shows %+v, %v, want it to say that fail-over waits", info, err)
	}
	c.order(other, "/v1/nodes/confirm-lost", map[string]any{"nodes": []string{active}, "statement": "switched off"})
	if now := c.active(); now != other {
		t.Errorf("%s is Active", now)
	}
	c.submit("chain", 1)
	c.settled().succeeded(t)
	c.start(active)
	c.healthy()
}
