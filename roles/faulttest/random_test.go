package faulttest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// fault is one thing that goes wrong, and how it ends.
type fault struct {
	name string
	// member faults take a member away: one at a time, or there is no majority.
	member bool
	begin  func(c *Cluster, victim string)
	end    func(c *Cluster, victim string)
}

func faults() []fault {
	kill := func(c *Cluster, v string) { c.kill(v) }
	start := func(c *Cluster, v string) { c.start(v) }
	freeze := func(c *Cluster, v string) { c.freeze(v) }
	thaw := func(c *Cluster, v string) { c.thaw(v) }
	// Orders may be refused: the cluster may be busy with another fault.
	order := func(path string, body any) func(c *Cluster, v string) {
		return func(c *Cluster, v string) {
			for _, at := range c.running("controller") {
				if a, err := c.clients[at].call(c.t.Context(), "POST", fmt.Sprintf(path, v), "", body); err == nil && a.Status < 300 {
					return
				}
			}
		}
	}
	nothing := func(*Cluster, string) {}
	return []fault{
		{"kill", true, kill, start},
		{"kill", true, kill, start},
		{"freeze", true, freeze, thaw},
		{"freeze", true, freeze, thaw},
		{"restart", true, order("/v1/nodes/%s/restart", nil), nothing},
		{"abort", true, order("/v1/nodes/%s/abort", map[string]bool{"restart": true}), nothing},
		{"switchover", false, func(c *Cluster, _ string) { order("/v1/nodes/switchover%s", nil)(c, "") }, nothing},
		{"kill agent", false, func(c *Cluster, _ string) { c.kill("a1") }, func(c *Cluster, _ string) { c.start("a1") }},
		{"freeze agent", false, func(c *Cluster, _ string) { c.freeze("a2") }, func(c *Cluster, _ string) { c.thaw("a2") }},
	}
}

// TestRandomFaults lets one thing after the other go wrong, sometimes two at
// once, without waiting until the cluster has recovered. The seed repeats the
// order of faults, not what the machine makes of them.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("UAC_FAULT_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("UAC_FAULT_SEED=%d", seed)
	chance := rand.New(rand.NewPCG(seed, 1))
	c := startDev(t)
	c.apply(chain("0.1"))
	c.healthy()
	stop := c.load("chain", 6)
	all := faults()
	members := append(c.names("watch"), c.controllers()...)
	began := time.Now()
	for range 6 * trials(t) {
		first := all[chance.IntN(len(all))]
		victim := members[chance.IntN(len(members))]
		events := []struct {
			fault
			hold time.Duration
		}{{first, time.Duration(chance.IntN(3000)) * time.Millisecond}}
		if second := all[chance.IntN(len(all))]; second.name != first.name && !(first.member && second.member) {
			events = append(events, struct {
				fault
				hold time.Duration
			}{second, time.Duration(chance.IntN(1000)) * time.Millisecond})
		}
		for _, e := range events {
			t.Logf("%6.2fs %s %s for %v", time.Since(began).Seconds(), e.name, victim, e.hold)
			e.begin(c, victim)
			time.Sleep(e.hold)
		}
		for _, e := range events {
			e.end(c, victim)
		}
		if chance.IntN(2) == 0 {
			c.healthy()
			continue
		}
		// A member that was away is back before the next one goes, but maybe not
		// for long: more would be too many for a majority.
		c.await("a majority is there", c.unready)
		time.Sleep(time.Duration(chance.IntN(500)) * time.Millisecond)
	}
	c.healthy()
	n := stop()
	t.Logf("%d requests, slowest acknowledgement %v", n, c.slowest.Round(time.Millisecond))
	c.settled().succeeded(t)
}
