package faulttest

import (
	"fmt"
	"testing"
	"time"
)

// TestSwitchover moves the term there and back again while clients work.
func TestSwitchover(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0"))
	c.healthy()
	stop := c.load(4)
	active := c.active()
	var slowest time.Duration
	for i := range 50 {
		// Who is asked and whether it is told the name must not matter.
		next := c.other(active)
		begin := c.mark()
		c.started(begin, 3, "") // work goes on between two of them
		var body any
		if i%3 == 0 {
			body = map[string]string{"to": next}
		}
		at := time.Now()
		a := c.order([]string{active, next}[i%2], "/v1/nodes/switchover", body)
		slowest = max(slowest, time.Since(at))
		if got := decode[struct{ Active string }](t, a).Active; got != next {
			t.Fatalf("switchover %d from %s: the answer is %v", i+1, active, a)
		}
		c.await("the new Active says so", func() string {
			if mode := c.probe(next); mode != "ACTIVE" {
				return next + " answers " + mode
			}
			return ""
		})
		if mode := c.probe(active); mode == "ACTIVE" {
			t.Fatalf("switchover %d: both %s and %s are Active", i+1, active, next)
		}
		active = next
	}
	n := stop()
	c.note("50 switchovers among %d requests; slowest answer %v, slowest acknowledgement of a request %v",
		n, slowest.Round(time.Millisecond), c.slowest.Round(time.Millisecond))
	if n < 10 {
		t.Errorf("only %d requests were made meanwhile: this proves little", n)
	}
	c.settled().succeeded(t)
}

// TestStop stops the Active in order: with fail-over its work goes on elsewhere,
// without it waits, until the node is back or an operator gives the term away.
func TestStop(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0"))

	// stopWith stops the Active while steps run that do not end before the ledger is
	// open again.
	stopWith := func(body any) (active, other string, ids []string) {
		active = c.healthy()
		other = c.other(active)
		c.ledger.shut(t)
		begin := c.mark()
		ids = c.submit("chain", 6)
		c.started(begin, 3, "")
		pid := c.node(active).PID
		c.order(active, "/v1/nodes/"+active+"/stop", body)
		c.awaitEnd(active, pid)
		c.exited(active, 0)
		return active, other, ids
	}

	// With fail-over: its goodbye hands everything over.
	active, other, _ := stopWith(nil)
	if now := c.active(); now != other {
		t.Errorf("after the stop of %s %s is Active", active, now)
	}
	c.ledger.open(t)
	c.settled().succeeded(t)
	c.start(active)
	c.healthy()

	// Without, and the node comes back.
	hold := map[string]bool{"failover": false}
	active, other, ids := stopWith(hold)
	owned := c.heldBack(active, other, ids)
	c.ledger.open(t)
	c.start(active)
	c.healthy() // its return ends the hold; who is quicker is Active
	c.settled().succeeded(t)

	// Without, and an operator gives the term to another.
	active, other, ids = stopWith(hold)
	owned += c.heldBack(active, other, ids)
	if owned == 0 {
		t.Error("no request was owned by a node that was stopped: this proves nothing")
	}
	c.ledger.open(t)
	a := c.order(other, "/v1/nodes/switchover", map[string]string{"to": other})
	if got := decode[struct{ Active string }](t, a).Active; got != other {
		t.Errorf("switchover from a held node: %v", a)
	}
	if now := c.active(); now != other {
		t.Errorf("%s was made Active, %s is", other, now)
	}
	c.settled().succeeded(t)
	c.start(active)
	c.healthy()
	c.settled()
}

// heldBack checks that for a while nobody takes over from a node that was
// stopped without fail-over, and returns how many requests it owns.
func (c *Cluster) heldBack(held, other string, ids []string) (owned int) {
	c.t.Helper()
	// It may have to find another raft leader first.
	c.await(other+" is Passive, and shows who is held", func() string {
		if mode := c.probe(other); mode != "PASSIVE" {
			return "it answers " + mode
		}
		if info, err := c.nodeInfo(other, held); err != nil || info.Held == "" || info.Mode != "Offline" {
			return fmt.Sprintf("%s is %+v, %v, want it Offline and held", held, info, err)
		}
		return ""
	})
	waiting := map[string]bool{}
	for until := time.Now().Add(4 * time.Second); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		if mode := c.probe(other); mode == "ACTIVE" {
			c.t.Fatalf("%s is held, and %s is Active", held, other)
		}
		all, err := c.list()
		if err != nil {
			continue // on a busy machine
		}
		for _, id := range ids {
			if waiting[id] && all[id].Owner != held {
				c.t.Fatalf("%s was owned by %s, which is held, and now by %q", id, held, all[id].Owner)
			}
			waiting[id] = waiting[id] || all[id].Owner == held && !all[id].rests()
		}
	}
	for _, id := range ids {
		if waiting[id] {
			owned++
		}
	}
	return owned
}

// TestPause pauses controllers: they claim nothing new, but neither do they lose
// what they have. A paused controller that is the last one adopts what ran.
func TestPause(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.3"))
	active := c.healthy()
	other := c.other(active)
	before, err := c.nodeInfo(active, active)
	if err != nil {
		t.Fatal(err)
	}
	c.submit("chain", 6)
	c.order(active, "/v1/nodes/"+active+"/pause", nil)
	for _, id := range c.submit("chain", 4) {
		c.await("the other one claims what is new", func() string {
			all, err := c.list()
			if err != nil {
				return err.Error()
			}
			if r := all[id]; r.Owner != other && !r.rests() {
				return id + " belongs to " + r.Owner
			}
			return ""
		})
	}
	c.settled().succeeded(t)

	c.order(other, "/v1/nodes/"+other+"/pause", nil)
	ids := c.submit("chain", 2)
	for until := time.Now().Add(4 * time.Second); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		all, err := c.list()
		if err != nil {
			continue // on a busy machine
		}
		for _, id := range ids {
			if r := all[id]; r.Status != "queued" || r.Owner != "" {
				t.Fatalf("all controllers are paused, and %s is %s of %q", id, r.Status, r.Owner)
			}
		}
	}
	now, err := c.nodeInfo(active, active)
	if err != nil || now.Term != before.Term || !now.Paused {
		t.Errorf("pausing changed the Active from %+v to %+v, %v", before, now, err)
	}
	c.order(active, "/v1/nodes/"+active+"/resume", nil)
	c.settled().succeeded(t)

	// The Active dies, and who is left is paused.
	c.place("anywhere", func(string, string) bool { return true })
	if active = c.active(); active == other {
		t.Fatalf("%s became Active though it is paused", other)
	}
	begin := c.mark()
	ids = c.submit("chain", 6)
	c.started(begin, 6, "first") // one that has not begun would wait for the resume
	c.kill(active)
	if got := c.active(); got != other {
		t.Errorf("%s is Active", got)
	}
	fresh := c.submit("chain", 1)
	c.await("the paused survivor ends what ran", func() string {
		all, err := c.list()
		if err != nil {
			return err.Error()
		}
		for _, id := range ids {
			if r := all[id]; !r.rests() {
				return id + " is " + r.Status + ": " + r.where()
			}
		}
		if r := all[fresh[0]]; r.Status != "queued" {
			t.Errorf("it is paused, and %s is %s of %q", r.ID, r.Status, r.Owner)
		}
		return ""
	})
	if info, err := c.nodeInfo(other, other); err != nil || !info.Paused || info.Mode != "Active" {
		t.Errorf("the survivor is %+v, %v, want it Active and paused", info, err)
	}
	c.order(other, "/v1/nodes/"+other+"/resume", nil)
	c.settled().succeeded(t)
	c.start(active)
	c.healthy()
}

// TestDrain empties a controller of its requests without ending it.
func TestDrain(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.3"))
	for range trials(t) {
		active := c.healthy()
		other := c.other(active)
		begin := c.mark()
		c.submit("chain", 10)
		c.started(begin, 5, "")
		a := c.order(other, "/v1/nodes/"+active+"/drain", nil)
		c.note("%s says: %s", active, decode[struct{ Message string }](t, a).Message)
		c.await(active+" owns nothing", func() string {
			all, err := c.list()
			if err != nil {
				return err.Error()
			}
			for _, r := range all {
				if r.Owner == active && !r.rests() {
					return r.ID + " is " + r.Status
				}
			}
			return ""
		})
		if now := c.active(); now != active {
			t.Errorf("draining %s made %s Active", active, now)
		}
		c.submit("chain", 2)
		c.settled().succeeded(t)
		c.order(other, "/v1/nodes/"+active+"/resume", nil)
	}
}
