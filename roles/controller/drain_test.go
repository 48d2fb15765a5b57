package controller

import (
	"errors"
	"fmt"
	"testing"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// TestDrain hands all requests over. Who gave one away writes nothing of it any
// more, whatever it hears.
func TestDrain(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 3})
	c1, c2, c3 := w.node("c1"), w.node("c2"), w.node("c3")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1"), step("two", "a1", "one")))
	r := c1.accept("p")
	s := a.start()
	a.running(s)
	c1.awaitStep(r.ID, "one", roles.StepRunning)
	c3.pause(true)
	if err := c1.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	answer, err := c2.Order(t.Context(), operator, "c1", verbDrain, nil)
	if err != nil || answer != "paused; 1 requests handed over" {
		t.Fatalf("drain: %q, %v", answer, err)
	}
	c2.await(r.ID, "the other one owns it", func(r api.Request) bool { return r.Owner == "c2" })
	ad := a.adopt()
	if ad.GetFence().Compare(s.GetFence()) <= 0 {
		t.Errorf("adopt under %v, after %v", ad.GetFence(), s.GetFence())
	}
	// It reports to the former owner before it has adopted the new one. Only that
	// one knows what to make of it.
	before := c2.dump(prefixRequests + r.ID)
	a.exited(s, 0)
	c1.settle()
	c2.settle()
	if d := diff(before, c2.dump(prefixRequests+r.ID)); d != "" {
		t.Errorf("a report before adoption changed the store:\n%s", d)
	}
	if c1.owned("c1") != 0 {
		t.Errorf("the drained one owns %d requests", c1.owned("c1"))
	}
	c1.on(func(d *desk) {
		if len(d.owned)+len(d.byAgent["a1"])+len(d.waiting.queues) > 0 {
			t.Error("the desk remembers what it gave away")
		}
	})
	a.adopted(ad, &wire.Attempt{Step: "one", Attempt: 1, State: wire.State_EXITED, End: &wire.End{}})
	same(t, "the acknowledgement", &wire.Ack{Request: r.ID, Step: "one", Attempt: 1, Fence: c2.fence(r.ID)}, a.ack())
	two := a.start()
	same(t, "the fence of what follows", c2.fence(r.ID), two.GetFence())

	// Paused, it claims nothing, also not after the next loss.
	c1.on(func(d *desk) { d.sweep(true) })
	c1.settle()
	if got, _ := c1.GetRequest(t.Context(), r.ID); got.Owner != "c2" {
		t.Errorf("owner is %q, want c2", got.Owner)
	}

	t.Run("nobody is left", func(t *testing.T) {
		before := c2.everything()
		if _, err := c2.drain(t.Context(), c2.session.Load()); err == nil {
			t.Error("drained, although all others are paused")
		}
		if d := diff(before, c2.everything()); d != "" {
			t.Errorf("the refusal changed the store:\n%s", d)
		}
		if c2.Self().Node.Paused {
			t.Error("it is paused")
		}
		if _, err := c1.Order(t.Context(), operator, "c2", verbDrain, nil); !errors.Is(err, api.ErrConflict) {
			t.Errorf("the order's answer is %v, want a conflict", err)
		}
	})
	t.Run("who should take it is gone", func(t *testing.T) {
		fence := c2.fence(r.ID)
		c2.on(func(d *desk) { d.hand(d.owned[r.ID], "c3", 1) })
		c2.settle()
		same(t, "the fence", fence, c2.fence(r.ID))
		same(t, "sent again, from what is stored", two, a.start())
		a.exited(two, 0)
		a.ack()
		c2.awaitStatus(r.ID, roles.RequestSucceeded)
	})
}

// TestOrderlyStop: a goodbye frees the requests at once, a held one keeps them.
func TestOrderlyStop(t *testing.T) {
	for _, hold := range []bool{false, true} {
		t.Run(fmt.Sprintf("hold %v", hold), func(t *testing.T) { testOrderlyStop(t, hold) })
	}
}

func testOrderlyStop(t *testing.T, hold bool) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1, change: func(c *Config) { c.HoldOnStop = hold }})
	c1, c2 := w.node("c1"), w.node("c2")
	a := w.agent(c2, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	r := c1.accept("p")
	s := a.start()
	fence := c1.fence(r.ID)
	c1.stop()
	if hold {
		if err := c2.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		c2.on(func(d *desk) { d.sweep(true) })
		a.quiet(c2)
		same(t, "the fence of what is held", fence, c2.fence(r.ID))
		c1 = w.run("c1", worldOptions{})
		c1.ready()
	}
	ad := a.adopt()
	a.adopted(ad)
	again := a.start()
	if again.GetAttempt() != s.GetAttempt() || again.GetFence().Compare(fence) <= 0 {
		t.Errorf("sent again as %v, after %v", again, s)
	}
}
