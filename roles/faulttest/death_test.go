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
				t.Logf("killed %s, %d requests in flight, raft led by %s: %s is Active after %v",
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
