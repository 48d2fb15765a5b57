package faulttest

import (
	"os"
	"strings"
	"testing"
	"time"
)

// cutOff are all directions between one node and others.
func cutOff(one string, others ...string) (all []direction) {
	for _, other := range others {
		all = append(all, both(one, other)...)
	}
	return all
}

// TestNetworkCuts cuts the network in all the ways in which it matters, each time
// under load, and heals it again.
func TestNetworkCuts(t *testing.T) {
	t.Parallel()
	c, network := startNetwork(t, networkOptions{})
	c.apply(chain("0.2"))
	const (
		moves = iota // another controller becomes Active
		stays        // the Active stays Active
		either
		detour // stays, with raft led by the watch
		later  // nothing can be done before the cut ends
	)
	for _, tt := range []struct {
		name string
		cut  func(active, other string) []direction
		then int
	}{
		{"the Active from all members", func(a, o string) []direction { return cutOff(a, o, "w1") }, moves},
		{"the Active from everything", func(a, o string) []direction { return cutOff(a, o, "w1", "a1", "a2") }, moves},
		{"what the Active sends to members", func(a, o string) []direction { return []direction{{a, o}, {a, "w1"}} }, moves},
		{"what members send to the Active", func(a, o string) []direction { return []direction{{o, a}, {"w1", a}} }, moves},
		{"the controllers from each other", both, either},
		{"what the Active sends to the other", func(a, o string) []direction { return []direction{{a, o}} }, either},
		{"what the other sends to the Active", func(a, o string) []direction { return []direction{{o, a}} }, either},
		{"the Active from the watch", func(a, _ string) []direction { return both(a, "w1") }, either},
		{"the watch from both controllers", func(a, o string) []direction { return cutOff("w1", a, o) }, stays},
		{"the Passive from all members", func(a, o string) []direction { return cutOff(o, a, "w1") }, stays},
		{"agents from the Active", func(a, _ string) []direction { return cutOff(a, "a1", "a2") }, stays},
		{"each agent from another controller", func(a, o string) []direction { return append(both(a, "a1"), both(o, "a2")...) }, stays},
		// Commands go by way of the watch: it leads raft, or the two that are cut off
		// from each other could not both be in the cluster.
		{"the Active from agents and from the other", func(a, o string) []direction { return append(cutOff(a, "a1", "a2"), both(a, o)...) }, detour},
		{"agents from both controllers", func(a, o string) []direction { return append(cutOff(a, "a1", "a2"), cutOff(o, "a1", "a2")...) }, later},
		{"all members from each other", func(a, o string) []direction { return append(cutOff(a, o, "w1"), both(o, "w1")...) }, later},
	} {
		if only := os.Getenv("UAC_FAULT_CUT"); !strings.Contains(tt.name, only) {
			continue
		}
		active := c.healthy()
		if tt.then == detour {
			active, _ = c.place("on the watch", onWatch)
		}
		other := c.other(active)
		begin := c.mark()
		c.submit("chain", 5)
		c.started(begin, 3, "")
		at := time.Now()
		network.cut(t, tt.cut(active, other)...)
		if tt.then == moves {
			c.await(other+" is Active", func() string {
				if mode := c.probe(other); mode != "ACTIVE" {
					return "it answers " + mode
				}
				if mode := c.probe(active); mode != "OFFLINE" && mode != "" { // a busy machine may answer late
					t.Errorf("%s is Active, and %s answers %s", other, active, mode)
				}
				return ""
			})
		}
		moved := time.Since(at)
		if tt.then == later {
			time.Sleep(4 * time.Second)
			network.cut(t)
			c.healthy()
			c.submit("chain", 1)
			c.settled().succeeded(t)
			c.note("cut %s: all work done after %v", tt.name, time.Since(at).Round(time.Millisecond))
			continue
		}
		// The cluster can bear each of the others: what is asked for during the cut is
		// done during the cut.
		c.submit("chain", 2)
		c.settled().succeeded(t)
		took := time.Since(at)
		now := c.active()
		if (tt.then == stays || tt.then == detour) && now != active {
			t.Errorf("cut %s: the term moved from %s to %s", tt.name, active, now)
		}
		network.cut(t)
		healed := time.Now()
		c.healthy()
		c.note("cut %s: Active was %s, is %s (seen after %v), all work done after %v; whole %v after the end of the cut", tt.name,
			active, now, moved.Round(time.Millisecond), took.Round(time.Millisecond), time.Since(healed).Round(time.Millisecond))
		if t.Failed() {
			return // what comes next would say nothing
		}
	}
}
