package faulttest

import (
	"context"
	"net/http"
	"testing"
	"time"
)

// TestFrozenActive stops the Active's process without its knowing, and lets it
// run on when another one is Active: while the links of agents to it still
// stand, and after the agents gave them up.
func TestFrozenActive(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.3"))
	for trial := range trials(t) {
		for _, nap := range []time.Duration{1500 * time.Millisecond, 4 * time.Second} {
			old := c.healthy()
			begin := c.mark()
			c.submit("chain", 8)
			c.started(begin, 4+trial, "")
			at := c.freeze(old)
			next := c.active()
			c.note("froze %s: %s is Active after %v", old, next, time.Since(at).Round(time.Millisecond))

			// What is sent to it now waits in its kernel, on connections that stood
			// before: it is the first thing that the old Active does when it wakes.
			asked := make(chan answer, 2)
			ask := func(method, path, key string, body any) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				a, err := c.clients[old].callSlow(ctx, method, path, key, body)
				if err != nil {
					a.Body = err.Error()
				}
				asked <- a
			}
			go ask(http.MethodGet, "/uc/is_active_node.do", "", nil)
			c.submit("chain", 3)
			time.Sleep(time.Until(at.Add(nap)))
			c.thaw(old)
			if a := <-asked; a.Body == "ACTIVE" || a.Status == http.StatusOK {
				t.Errorf("%s woke up while %s was Active, and said %v", old, next, a)
			}
			c.await(old+" comes back as Passive", func() string {
				switch mode := c.probe(old); mode {
				case "PASSIVE":
					return ""
				case "ACTIVE":
					t.Fatalf("%s says that it is Active, and so does %s", old, next)
				default:
					return "it says " + mode
				}
				return "unreachable"
			})
			c.settled().succeeded(t)
		}
	}
}

// TestFrozenWriter freezes a controller that has just been asked to write: the
// call waits in it and comes to life after its session is over. The client has
// long gone to another one.
func TestFrozenWriter(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(single("0"))
	for range trials(t) {
		old := c.healthy()
		c.freeze(old)
		c.active()
		// The recorder's client repeats with the same key at the other one.
		type outcome struct {
			a   answer
			err error
		}
		done := make(chan outcome, 1)
		body := map[string]any{"process": "single", "params": map[string]string{"dir": c.ledger.Dir}}
		key := c.nextKey()
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			a, err := c.clients[old].callSlow(ctx, http.MethodPost, "/v1/requests", key, body)
			done <- outcome{a, err}
		}()
		time.Sleep(100 * time.Millisecond) // lets it be sent; earlier is a test as well
		first, err := c.submitWith("single", key)
		if err != nil {
			t.Fatal(err)
		}
		c.thaw(old)
		switch o := <-done; {
		case o.err != nil:
		case o.a.Status == http.StatusServiceUnavailable:
		case o.a.Status == http.StatusOK && decode[Request](t, o.a).ID == first: // after it had joined again
		default:
			t.Errorf("the call to the frozen %s, repeated elsewhere as %s, came to %v", old, first, o.a)
		}
		c.healthy()
		c.settled().succeeded(t)
	}
}

// TestFrozenRaftLeader freezes whoever leads raft while many requests are being
// written, and lets it run on when the others have a new leader: proposals that
// waited in it come late and must not undo what was written meanwhile.
func TestFrozenRaftLeader(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0"))
	for _, place := range []struct {
		name string
		want func(active, leader string) bool
	}{
		{"on the watch", onWatch},
		{"on the Passive", func(active, leader string) bool { return leader != active && leader != "w1" }},
		{"on the Active", onActive},
	} {
		for range trials(t) {
			active, leader := c.place(place.name, place.want)
			begin := c.mark()
			stop := c.load(10)
			c.started(begin, 10, "")
			at := c.freeze(leader)
			c.submit("chain", 1) // waits for the new leader
			took := time.Since(at)
			seen := c.mark()
			c.started(seen, 10, "")
			c.thaw(leader)
			n := stop()
			c.note("froze %s, raft leader %s (Active %s), among %d requests: writes go on after %v, slowest acknowledgement so far %v",
				leader, place.name, active, n, took.Round(time.Millisecond), c.slowest.Round(time.Millisecond))
			c.healthy()
			c.settled().succeeded(t)
		}
	}
}

// TestFrozenCluster stops everything at once, as a host with all its machines
// does that is suspended. Nobody has lost anybody; all just go on.
func TestFrozenCluster(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.2"))
	for range trials(t) {
		c.healthy()
		begin := c.mark()
		c.submit("chain", 6)
		c.started(begin, 4, "")
		for _, n := range c.run.nodes() {
			c.freeze(n.Name)
		}
		time.Sleep(3 * time.Second)
		for _, n := range c.run.nodes() {
			c.thaw(n.Name)
		}
		c.healthy()
		c.submit("chain", 1)
		c.settled().succeeded(t)
	}
}
