package controller

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// TestLinks opens and ends links in orders that only a busy machine produces.
func TestLinks(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	begin := func(t *testing.T, name string) (*agent, *wire.Start) {
		t.Helper()
		a := w.agent(c1, name, nil)
		c1.apply(process(name, step("one", name)))
		c1.accept(name)
		return a, a.start()
	}
	t.Run("what is pending goes over the new link", func(t *testing.T) {
		a, s := begin(t, "a1")
		a.connect(c1)
		same(t, "sent again", s, a.start())
		a.quiet(c1)
	})
	t.Run("a link is told of after its successor", func(t *testing.T) {
		a, s := begin(t, "a2")
		older, newer := a.newLink(), a.newLink()
		c1.links.put(older)
		c1.links.put(newer)
		c1.linkUp(newer)
		c1.linkUp(older)
		a.link = newer
		same(t, "sent again", s, a.start())
		c1.on(func(d *desk) {
			if got := d.linkTo("a2").nonce(); got != (localRoute{newer}).nonce() {
				t.Errorf("link %s is in use, want the newer one", got)
			}
		})
	})
	t.Run("an older link comes late", func(t *testing.T) {
		a, _ := begin(t, "a3")
		older := a.newLink()
		a.connect(c1)
		if c1.links.put(older) {
			t.Error("an older link took the place of a newer one")
		}
		if a.link.ctx.Err() != nil {
			t.Error("the newer link was dropped")
		}
	})
	t.Run("the end of a link is told of after its successor", func(t *testing.T) {
		a, _ := begin(t, "a4")
		former := a.link
		if !c1.links.remove(former) {
			t.Fatal("the link is not there")
		}
		a.link = nil
		a.connect(c1)
		c1.linkDown(former)
		a.start()
		c1.settle()
		if got, err := c1.GetAgent(t.Context(), "a4"); err != nil || !got.Connected {
			t.Errorf("the agent is shown as %+v, %v; want it connected", got, err)
		}
	})
	t.Run("an agent that does not read loses its link", func(t *testing.T) {
		a, _ := begin(t, "a5")
		for range linkQueue + 1 {
			a.link.send(&wire.ControllerMessage{})
		}
		if a.link.ctx.Err() == nil || a.link.send(&wire.ControllerMessage{}) {
			t.Error("it still has it")
		}
	})
	t.Run("the record follows the hello", func(t *testing.T) {
		a := w.agent(c1, "a6", map[string]string{"zone": "north"})
		first, err := c1.GetAgent(t.Context(), "a6")
		if err != nil || first.Labels["zone"] != "north" || first.FirstSeen.IsZero() {
			t.Fatalf("got %+v, %v", first, err)
		}
		if _, err := c1.SuspendAgent(t.Context(), operator, "a6", true); err != nil {
			t.Fatal(err)
		}
		a.labels = map[string]string{"zone": "south"}
		a.connect(c1)
		c1.settle()
		got, err := c1.GetAgent(t.Context(), "a6")
		if err != nil || got.Labels["zone"] != "south" || !got.FirstSeen.Equal(first.FirstSeen) || !got.Suspended {
			t.Errorf("got %+v, %v; want the new label and the rest as it was", got, err)
		}
		a.disconnect()
		c1.settle()
		if got, _ := c1.GetAgent(t.Context(), "a6"); got.Connected {
			t.Errorf("without a link the agent is shown as %+v", got)
		}
	})
	t.Run("suspend nobody", func(t *testing.T) {
		before := c1.everything()
		if _, err := c1.SuspendAgent(t.Context(), operator, "nobody", true); !errors.Is(err, api.ErrNotFound) {
			t.Errorf("got %v, want not found", err)
		}
		if d := diff(before, c1.everything()); d != "" {
			t.Errorf("it changed the store:\n%s", d)
		}
	})
}

// TestChoice finds agents for steps.
func TestChoice(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	suspend := func(t *testing.T, name string, suspended bool) {
		t.Helper()
		if _, err := c1.SuspendAgent(t.Context(), operator, name, suspended); err != nil {
			t.Fatal(err)
		}
		c1.settle()
	}
	t.Run("a suspended agent gets nothing new", func(t *testing.T) {
		a := w.agent(c1, "n1", nil)
		c1.apply(process("named", step("one", "n1"), step("two", "n1", "one")))
		suspend(t, "n1", true)
		r := c1.accept("named")
		a.quiet(c1)
		if got, _ := c1.GetRequest(t.Context(), r.ID); stepOf(got, "one").Status != roles.StepReady || stepOf(got, "one").Reason == "" {
			t.Errorf("the step is %+v, want it ready, with a reason", stepOf(got, "one"))
		}
		suspend(t, "n1", false)
		s := a.start()
		// What it has begun it ends.
		suspend(t, "n1", true)
		a.exited(s, 0)
		a.ack()
		if s := a.start(); s.GetStep() != "two" {
			t.Errorf("started %v, want step two", s)
		}
	})
	t.Run("by labels", func(t *testing.T) {
		north := map[string]string{"zone": "north"}
		all := map[string]*agent{"l1": w.agent(c1, "l1", north), "l2": w.agent(c1, "l2", north)}
		p := process("labelled", step("one", ""), step("two", "", "one"))
		for i := range p.Steps {
			p.Steps[i].Agent = roles.Selector{Labels: north}
		}
		c1.apply(p)
		suspend(t, "l1", true)
		r := c1.accept("labelled")
		s := all["l2"].start()
		if s.GetRequest() != r.ID {
			t.Fatalf("started %v", s)
		}
		suspend(t, "l1", false)
		suspend(t, "l2", true)
		all["l2"].exited(s, 0)
		all["l2"].ack()
		if s := all["l2"].start(); s.GetStep() != "two" {
			t.Errorf("started %v, want step two where step one ran", s)
		}
		all["l1"].quiet(c1)
		suspend(t, "l2", false)
	})
	t.Run("nobody is connected", func(t *testing.T) {
		a := w.agent(c1, "n2", nil)
		a.disconnect()
		c1.apply(process("absent", step("one", "n2")))
		r := c1.accept("absent")
		c1.settle()
		if got, _ := c1.GetRequest(t.Context(), r.ID); stepOf(got, "one").Status != roles.StepReady {
			t.Errorf("the step is %+v, want it ready", stepOf(got, "one"))
		} else if want := "waits for agent n2, which is not connected"; !strings.Contains(stepOf(got, "one").Reason, want) {
			t.Errorf("the reason is %q, want %q", stepOf(got, "one").Reason, want)
		}
		a.connect(c1)
		s := a.start()
		a.report(s.GetRequest(), "one", 1, wire.State_EXITED, &wire.End{Code: 143, Signal: 15, Stopped: wire.Stop_TIMED_OUT})
		if got := stepOf(c1.awaitStatus(r.ID, roles.RequestFailed), "one"); !strings.Contains(got.Reason, "timeout") {
			t.Errorf("a step that took too long says %q", got.Reason)
		}
	})
	t.Run("somebody is connected", func(t *testing.T) {
		w.agent(c1, "n3", nil)
		c1.apply(process("present", step("one", "n3")))
		if got := stepOf(c1.accept("present"), "one"); got.Reason != "" {
			t.Errorf("a step that is about to be sent says %q", got.Reason)
		}
	})
}

// TestThroughOthers owns a request at one controller while the agent is linked
// to another one.
func TestThroughOthers(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 3})
	c1, c2 := w.node("c1"), w.node("c2")
	n := 0
	begin := func(t *testing.T) (*agent, api.Request) {
		t.Helper()
		n++
		name := fmt.Sprintf("a%d", n)
		a := w.agent(c2, name, nil)
		c1.apply(process(name, step("one", name)))
		return a, c1.accept(name)
	}
	failing := func(call string, times int32, err error) func(from, to, call string) error {
		var left atomic.Int32
		left.Store(times)
		return func(_, _, c string) error {
			if c == call && left.Add(-1) >= 0 {
				return err
			}
			return nil
		}
	}
	t.Run("there and back", func(t *testing.T) {
		a, r := begin(t)
		s := a.start()
		a.refuse(s, wire.Refusal_BUSY)
		s = a.start()
		a.running(s)
		c1.awaitStep(r.ID, "one", roles.StepRunning)
		a.exited(s, 0)
		same(t, "the answer", &wire.Ack{Request: r.ID, Step: "one", Attempt: 1, Fence: c1.fence(r.ID), Final: true}, a.ack())
		c1.awaitStatus(r.ID, roles.RequestSucceeded)
		// Final: also the controller that never owned it knows the answer.
		if err := c2.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.exited(s, 0)
		same(t, "the answer to a repetition", &wire.Ack{Request: r.ID, Step: "one", Attempt: 1, Fence: c1.fence(r.ID), Final: true}, a.ack())
	})
	t.Run("our own link is the shorter way", func(t *testing.T) {
		a, _ := begin(t)
		s := a.start()
		far := a.link
		near := a.newLink()
		c1.links.put(near)
		c1.linkUp(near)
		a.link = near
		same(t, "sent again", s, a.start())
		a.link = far
		a.quiet(c1)
	})
	t.Run("a command is lost on the way", func(t *testing.T) {
		w.breakCalls(failing("deliver", 9, status.Error(codes.Unavailable, "cut")))
		defer w.breakCalls(nil)
		a, r := begin(t)
		if s := a.start(); s.GetRequest() != r.ID {
			t.Errorf("started %v", s)
		}
	})
	t.Run("nobody answers for a while", func(t *testing.T) {
		var cut atomic.Bool
		cut.Store(true)
		asked := make(chan struct{}, 100)
		w.breakCalls(func(_, _, call string) error {
			if call == "peek" && cut.Load() {
				asked <- struct{}{}
				return status.Error(codes.Unavailable, "cut")
			}
			return nil
		})
		defer w.breakCalls(nil)
		a, r := begin(t)
		<-asked
		c1.settle()
		if got, _ := c1.GetRequest(t.Context(), r.ID); stepOf(got, "one").Status != roles.StepReady {
			t.Errorf("the step is %+v, want it ready", stepOf(got, "one"))
		}
		cut.Store(false)
		a.start()
	})
	t.Run("the link moved on", func(t *testing.T) {
		a, r := begin(t)
		s := a.start()
		a.running(s)
		c1.awaitStep(r.ID, "one", roles.StepRunning)
		a.connect(c2)
		if err := c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "cancel"}); err != nil {
			t.Fatal(err)
		}
		same(t, "the kill", &wire.Kill{Request: r.ID, Step: "one", Attempt: 1, Fence: c1.fence(r.ID)}, a.killed())
	})
	t.Run("not over this link", func(t *testing.T) {
		a, _ := begin(t)
		a.start()
		s := &memberServer{c: c2.Controller}
		other := &wire.LinkID{Number: a.link.hello.GetLink().GetNumber(), Nonce: 1}
		for _, r := range []*wire.DeliverRequest{
			{To: "c2", Agent: a.name, Message: &wire.ControllerMessage{Link: other}},
			{To: "c2", Agent: "nobody", Message: &wire.ControllerMessage{Link: a.link.hello.GetLink()}},
			{To: "c3", Agent: a.name, Message: &wire.ControllerMessage{Link: a.link.hello.GetLink()}},
		} {
			if _, err := s.Deliver(t.Context(), r); status.Code(err) != codes.NotFound {
				t.Errorf("delivery of %v: %v, want not found", r, err)
			}
		}
		if _, err := s.Peek(t.Context(), &wire.PeekRequest{To: "c3", Agent: a.name}); status.Code(err) != codes.NotFound {
			t.Errorf("peek for another controller: %v, want not found", err)
		}
		if _, err := s.Report(t.Context(), &wire.ReportRequest{To: "c3"}); status.Code(err) != codes.NotFound {
			t.Errorf("report for another controller: %v, want not found", err)
		}
		a.quiet(c1)
	})
}

// TestUnreachable marks what runs at an agent that nobody has a link to. It stays
// running, and the mark goes when the agent is back.
func TestUnreachable(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	dispatched, running := w.agent(c1, "a1", nil), w.agent(c1, "a2", nil)
	c1.apply(process("p", step("one", "a1"), step("two", "a2")))
	r := c1.accept("p")
	dispatched.start()
	running.running(running.start())
	c1.awaitStep(r.ID, "two", roles.StepRunning)
	dispatched.disconnect()
	running.disconnect()
	got := c1.await(r.ID, "both are marked", func(r api.Request) bool {
		return stepOf(r, "one").Unreachable && stepOf(r, "two").Unreachable
	})
	if stepOf(got, "one").Status != roles.StepDispatched || stepOf(got, "two").Status != roles.StepRunning || got.Status != roles.RequestRunning {
		t.Errorf("unreachable is not dead: got %+v", got)
	}
	dispatched.connect(c1)
	running.connect(c1)
	c1.await(r.ID, "the marks are gone", func(r api.Request) bool {
		return !stepOf(r, "one").Unreachable && !stepOf(r, "two").Unreachable
	})
	dispatched.start()
	running.quiet(c1)
}

// TestLosses tells of every loss once.
func TestLosses(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1})
	c1, c2 := w.node("c1"), w.node("c2")
	epoch := c1.session.Load().Epoch()
	w.kill("c1")
	lost := func(coord.Snapshot) bool {
		n := 0
		for _, kind := range c2.events("c1") {
			if kind == "node.lost" {
				n++
			}
		}
		return n == 1
	}
	coordtest.Await(t, c2.member.View(), "an event tells of the loss", lost)
	id := lossEvent(coord.LossRecord{Node: "c1", Epoch: epoch})
	if len(id) != 26 {
		t.Errorf("id %q of the event is no ULID", id)
	}
	// Whoever is Active next finds it done.
	c2 = c2.restart()
	c2.settle()
	if !lost(coord.Snapshot{}) {
		t.Errorf("the events of c1 are %v, want one of its loss", c2.events("c1"))
	}
}
