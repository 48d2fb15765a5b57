package controller

import (
	"fmt"
	"strings"
	"testing"

	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// TestAdopt lets a new session take over requests whose attempts are out. Each
// case has agents of its own, so that one takeover serves them all.
func TestAdopt(t *testing.T) {
	type scene struct {
		t       *testing.T
		n       *node // the new owner
		r       api.Request
		a, b    *agent
		sent    *wire.Start // step one, at a
		journal *wire.Journal
	}
	attempt := func(state wire.State, code int32) *wire.Attempt {
		return &wire.Attempt{Step: "one", Attempt: 1, State: state, End: &wire.End{Code: code}}
	}
	status := func(s *scene, step string, want roles.StepStatus) {
		s.t.Helper()
		s.n.awaitStep(s.r.ID, step, want)
	}
	// anew expects the attempt that was sent before, under the present fence.
	anew := func(s *scene) {
		s.t.Helper()
		got := s.a.start()
		want := &wire.Start{Request: s.r.ID, Step: "one", Attempt: 1, Script: "true", Fence: s.n.fence(s.r.ID)}
		same(s.t, "sent again", want, got)
	}
	// The process of each case: one at a; other at b; next at a, after one.
	cases := []struct {
		name       string
		dispatched bool // step one was sent and nobody has said that it runs
		cancelled  bool
		repeatable bool
		then       func(s *scene)
	}{
		{name: "no report counts before the answer", then: func(s *scene) {
			s.a.connect(s.n)
			ad := s.a.adopt()
			same(s.t, "adopt", s.n.fence(s.r.ID), ad.GetFence())
			s.a.exited(s.sent, 0)
			s.a.quiet(s.n) // no acknowledgement
			status(s, "one", roles.StepRunning)
			s.a.adopted(ad, attempt(wire.State_EXITED, 0))
			same(s.t, "the acknowledgement", &wire.Ack{Request: s.r.ID, Step: "one", Attempt: 1, Fence: ad.GetFence()}, s.a.ack())
			if next := s.a.start(); next.GetStep() != "next" {
				s.t.Errorf("started %v, want step next", next)
			}
		}},
		{name: "no answer to an earlier owner counts", then: func(s *scene) {
			s.a.connect(s.n)
			ad := s.a.adopt()
			s.a.adopted(&wire.Adopt{Request: ad.GetRequest(), Fence: s.sent.GetFence()}, attempt(wire.State_EXITED, 0))
			s.a.quiet(s.n)
			status(s, "one", roles.StepRunning)
		}},
		{name: "who has not answered holds only its own steps", then: func(s *scene) {
			s.a.connect(s.n)
			s.a.adopt()
			s.b.connect(s.n)
			ad := s.b.adopt()
			s.b.adopted(ad, &wire.Attempt{Step: "other", Attempt: 1, State: wire.State_RUNNING})
			s.b.report(s.r.ID, "other", 1, wire.State_EXITED, &wire.End{})
			same(s.t, "the acknowledgement", &wire.Ack{Request: s.r.ID, Step: "other", Attempt: 1, Fence: ad.GetFence()}, s.b.ack())
			status(s, "other", roles.StepSucceeded)
			status(s, "one", roles.StepRunning)
			s.a.quiet(s.n)
		}},
		{name: "it runs", then: func(s *scene) {
			s.a.connect(s.n)
			s.a.adopted(s.a.adopt(), attempt(wire.State_RUNNING, 0))
			s.a.quiet(s.n)
			status(s, "one", roles.StepRunning)
			s.a.exited(s.sent, 0)
			s.a.ack()
		}},
		{name: "it never arrived", dispatched: true, then: func(s *scene) {
			s.a.connect(s.n)
			s.a.adopted(s.a.adopt())
			anew(s)
			s.a.quiet(s.n)
		}},
		{name: "it arrived and was not begun", dispatched: true, then: func(s *scene) {
			s.a.connect(s.n)
			s.a.adopted(s.a.adopt(), attempt(wire.State_INTENDED, 0))
			anew(s)
		}},
		{name: "an old answer does not count after the start was sent again", dispatched: true, then: func(s *scene) {
			s.a.connect(s.n)
			ad := s.a.adopt()
			s.a.adopted(ad)
			anew(s)
			if err := s.n.Steer(s.t.Context(), operator, s.r.ID, api.Order{Verb: "cancel"}); err != nil {
				s.t.Fatal(err)
			}
			s.a.killed()
			s.a.adopted(ad)
			s.n.settle()
			status(s, "one", roles.StepDispatched)
		}},
		{name: "it ran and is forgotten", then: func(s *scene) {
			s.a.connect(s.n)
			s.a.adopted(s.a.adopt())
			status(s, "one", roles.StepInDoubt)
			s.a.quiet(s.n)
		}},
		{name: "it ran, is forgotten and may be repeated", repeatable: true, then: func(s *scene) {
			s.a.connect(s.n)
			s.a.adopted(s.a.adopt())
			if again := s.a.start(); again.GetAttempt() != 2 {
				s.t.Errorf("attempt %d, want 2", again.GetAttempt())
			}
		}},
		{name: "nothing in another journal", dispatched: true, then: func(s *scene) {
			s.a.connect(s.n)
			ad := s.a.adopt()
			s.a.journal = &wire.Journal{Id: "another", Counter: 100}
			s.a.adopted(ad)
			status(s, "one", roles.StepInDoubt)
			s.a.quiet(s.n)
		}},
		{name: "nothing in a journal that went back", dispatched: true, then: func(s *scene) {
			s.a.connect(s.n)
			ad := s.a.adopt()
			s.a.journal = &wire.Journal{Id: s.journal.GetId(), Counter: 1}
			s.a.adopted(ad)
			status(s, "one", roles.StepInDoubt)
		}},
		{name: "the journal is another one", dispatched: true, then: func(s *scene) {
			s.a.reconnect(s.n, "another", 100)
			status(s, "one", roles.StepInDoubt)
			s.a.quiet(s.n)
		}},
		{name: "the journal is another one, while it ran", then: func(s *scene) {
			s.a.reconnect(s.n, "another", 100)
			status(s, "one", roles.StepInDoubt)
			s.b.connect(s.n)
			s.b.adopted(s.b.adopt(), &wire.Attempt{Step: "other", Attempt: 1, State: wire.State_RUNNING})
			status(s, "other", roles.StepRunning)
		}},
		{name: "the journal went back", dispatched: true, then: func(s *scene) {
			s.a.reconnect(s.n, s.journal.GetId(), 1)
			// It is asked, naming what it had reported before, and must refuse.
			m := s.a.next()
			if m.GetAdopt() == nil || m.GetJournal().GetCounter() < s.journal.GetCounter() {
				s.t.Errorf("got %v, want adopt for counter %d", m, s.journal.GetCounter())
			}
			s.a.say(&wire.AgentMessage{Body: &wire.AgentMessage_Refused{Refused: &wire.Refusal{
				Command: wire.Refusal_ADOPT, Request: s.r.ID, Fence: m.GetAdopt().GetFence(),
				Reason: wire.Refusal_WRONG_JOURNAL, Journal: s.a.journal,
			}}})
			status(s, "one", roles.StepInDoubt)
		}},
		{name: "cancelled and never arrived", dispatched: true, cancelled: true, then: func(s *scene) {
			s.a.connect(s.n)
			s.a.adopted(s.a.adopt())
			status(s, "one", roles.StepCancelled)
			s.a.quiet(s.n)
		}},
		{name: "cancelled and running", cancelled: true, then: func(s *scene) {
			s.a.connect(s.n)
			ad := s.a.adopt()
			s.a.quiet(s.n) // adopt first
			s.a.adopted(ad, attempt(wire.State_RUNNING, 0))
			same(s.t, "the kill", &wire.Kill{Request: s.r.ID, Step: "one", Attempt: 1, Fence: ad.GetFence()}, s.a.killed())
		}},
		{name: "the floor has passed the fence", dispatched: true, then: func(s *scene) {
			s.a.connect(s.n)
			ad := s.a.adopt()
			refusal := &wire.AgentMessage{Body: &wire.AgentMessage_Refused{Refused: &wire.Refusal{
				Command: wire.Refusal_ADOPT, Request: s.r.ID, Fence: ad.GetFence(), Reason: wire.Refusal_STALE_FLOOR, Journal: s.a.journal,
			}}}
			s.a.say(refusal)
			s.a.say(refusal) // once more does no harm
			again := s.a.adopt()
			if again.GetFence().Compare(ad.GetFence()) <= 0 {
				s.t.Errorf("adopt under %v after %v", again.GetFence(), ad.GetFence())
			}
			s.a.adopted(again)
			anew(s)
			s.a.quiet(s.n)
		}},
	}

	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	scenes := make([]*scene, len(cases))
	for i, tc := range cases {
		name := fmt.Sprintf("p%d", i)
		s := &scene{t: t, a: w.agent(c1, "a-"+name, nil), b: w.agent(c1, "b-"+name, nil)}
		p := process(name, step("one", s.a.name), step("other", s.b.name), step("next", s.a.name, "one"))
		p.Steps[0].Repeatable = tc.repeatable
		c1.apply(p)
		s.r = c1.accept(name)
		s.sent = s.a.start()
		s.b.running(s.b.start())
		c1.awaitStep(s.r.ID, "other", roles.StepRunning)
		if !tc.dispatched {
			s.a.running(s.sent)
			c1.awaitStep(s.r.ID, "one", roles.StepRunning)
		}
		if tc.cancelled {
			if err := c1.Steer(t.Context(), operator, s.r.ID, api.Order{Verb: "cancel"}); err != nil {
				t.Fatal(err)
			}
			s.a.killed()
			s.b.killed()
		}
		s.journal = &wire.Journal{Id: s.a.journal.GetId(), Counter: s.a.journal.GetCounter()}
		scenes[i] = s
	}
	c1.settle()
	c1 = c1.restart()
	for i, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			s := scenes[i]
			s.t, s.n = t, c1
			c1.await(s.r.ID, "it is claimed", func(r api.Request) bool { return r.Owner == "c1" })
			if f := c1.fence(s.r.ID); f.Compare(s.sent.GetFence()) <= 0 {
				t.Fatalf("claimed under %v, after %v", f, s.sent.GetFence())
			}
			tc.then(s)
		})
	}
}

// TestTakeover loses the owner of several requests: each gets one new owner.
func TestTakeover(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 3})
	c1 := w.node("c1")
	a := w.agent(w.node("c2"), "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	sent := map[string]*wire.Start{}
	for range 10 {
		c1.accept("p")
		s := a.start()
		sent[s.GetRequest()] = s
	}
	// One is final, and nobody's business any more.
	last := c1.accept("p")
	a.exited(a.start(), 0)
	c1.awaitStatus(last.ID, roles.RequestSucceeded)
	a.ack()
	before := c1.fence(last.ID)
	w.kill("c1")
	c2, c3 := w.node("c2"), w.node("c3")
	owners := map[string]int{}
	var adopts []*wire.Adopt
	for range sent {
		adopts = append(adopts, a.adopt())
	}
	for _, ad := range adopts {
		s := sent[ad.GetRequest()]
		if s == nil || ad.GetFence().Compare(s.GetFence()) <= 0 {
			t.Fatalf("adopt %v; sent before was %v", ad, s)
		}
		c2.await(s.GetRequest(), "it is claimed", func(r api.Request) bool { return r.Owner != "" })
		r, _ := c2.GetRequest(t.Context(), s.GetRequest())
		owners[r.Owner]++
		same(t, "the fence of adopt", c2.fence(r.ID), ad.GetFence())
		a.adopted(ad, &wire.Attempt{Step: "one", Attempt: 1, State: wire.State_EXITED, End: &wire.End{}})
		same(t, "the acknowledgement", &wire.Ack{Request: r.ID, Step: "one", Attempt: 1, Fence: ad.GetFence(), Final: true}, a.ack())
		c2.awaitStatus(r.ID, roles.RequestSucceeded)
	}
	a.quiet(c2)
	a.quiet(c3)
	if owners["c2"]+owners["c3"] != len(sent) {
		t.Errorf("owners are %v", owners)
	}
	same(t, "the claim of what is final", before, c2.fence(last.ID))
}

// TestPausedTakeover: a paused controller takes over what runs if nobody else can,
// and nothing new.
func TestPausedTakeover(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1})
	c1, c2 := w.node("c1"), w.node("c2")
	a := w.agent(c2, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	c2.pause(true)
	if err := c1.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	running := c1.accept("p")
	s := a.start()
	c1.pause(true)
	queued := c1.accept("p")
	for _, n := range []*node{c1, c2} {
		if err := n.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.on(func(d *desk) { d.sweep(true) })
		n.settle()
		if got, _ := n.GetRequest(t.Context(), running.ID); got.Owner != "c1" {
			t.Errorf("%s shows owner %q, want c1", n.cfg.Name, got.Owner)
		}
	}
	w.kill("c1")
	ad := a.adopt()
	if ad.GetRequest() != running.ID || ad.GetFence().Compare(s.GetFence()) <= 0 {
		t.Errorf("got %v, want to be adopted for what runs", ad)
	}
	a.adopted(ad, &wire.Attempt{Step: "one", Attempt: 1, State: wire.State_RUNNING})
	c2.awaitStep(running.ID, "one", roles.StepRunning)
	c2.on(func(d *desk) { d.sweep(true) })
	a.quiet(c2)
	if got, _ := c2.GetRequest(t.Context(), queued.ID); got.Owner != "" || got.Status != roles.RequestQueued || !strings.Contains(got.Reason, "paused") {
		t.Errorf("what nobody had begun is %+v, want it queued, and why", got)
	}
	c2.pause(false)
	c2.on(func(d *desk) { d.sweep(true) })
	if s := a.start(); s.GetRequest() != queued.ID {
		t.Errorf("resumed, it started %v, want what was queued", s)
	}
	if got := c2.awaitStatus(queued.ID, roles.RequestRunning); got.Reason != "" {
		t.Errorf("it runs, and is said to be %q", got.Reason)
	}
}

// TestClaimRace lets two controllers claim one request: one of them owns it.
func TestClaimRace(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 3})
	c1, c2 := w.node("c1"), w.node("c2")
	w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	for _, n := range w.all() {
		n.pause(true)
	}
	for _, n := range w.all() {
		if err := n.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		r := c1.accept("p")
		if r.Owner != "" {
			t.Fatalf("%s owns it", r.Owner)
		}
		coordtest.Await(t, c2.member.View(), "the other shows it", func(snap coord.Snapshot) bool {
			_, ok := snap.Get(statusKey(r.ID))
			return ok
		})
		for _, n := range []*node{c1, c2} {
			d := n.desk.Load()
			d.mail.post(func() { d.claim(r.ID, d.openRequest(r.ID)) })
		}
		own := 0
		for _, n := range []*node{c1, c2} {
			n.settle()
			n.on(func(d *desk) {
				if d.owned[r.ID] != nil {
					own++
				}
			})
		}
		if own != 1 {
			t.Errorf("%d of them own it, want one", own)
		}
		if claim, _ := c1.member.View().Get(claimKey(r.ID)); claim.Create != claim.Mod {
			t.Errorf("claimed at %d over the claim of %d", claim.Mod, claim.Create)
		}
	}
}

// TestForgotten loses a request from the desk while its claim stands, as when the
// store refused a change: a sweep starts again from the store.
func TestForgotten(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	r := c1.accept("p")
	s := a.start()
	c1.on(func(d *desk) {
		o := d.owned[r.ID]
		d.store(o, []coord.Write{coord.Put("", nil)}) // etcd takes no empty key
	})
	c1.settle()
	c1.on(func(d *desk) {
		if d.owned[r.ID] != nil {
			t.Error("it is still owned")
		}
		d.sweep(true) // the acceptance might be on its way
		if d.open[r.ID].claiming {
			t.Error("it is claimed at once")
		}
		d.sweep(true)
	})
	ad := a.adopt()
	if ad.GetFence().Compare(s.GetFence()) <= 0 {
		t.Errorf("adopt under %v, after %v", ad.GetFence(), s.GetFence())
	}
}

// TestUnreadable leaves a request alone that cannot be read, and only that one.
func TestUnreadable(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	broken, sound := c1.accept("p"), c1.accept("p")
	a.start()
	a.start()
	c1.commit1(coord.Tx{Then: []coord.Write{coord.Put(specKey(broken.ID), []byte("{"))}})
	c1 = c1.restart()
	a.connect(c1)
	if ad := a.adopt(); ad.GetRequest() != sound.ID {
		t.Errorf("adopted for %s, want %s", ad.GetRequest(), sound.ID)
	}
	c1.on(func(d *desk) { d.sweep(true) })
	a.quiet(c1)
}

// That an agent's journal is not what it was is told once, however many requests had
// steps there, and not if nothing was out.
func TestChangedJournalIsTold(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	var ids []string
	for range 2 {
		ids = append(ids, c1.accept("p").ID)
		a.running(a.start())
	}
	c1.settle()
	a.reconnect(c1, "another", 100)
	for _, id := range ids {
		c1.awaitStep(id, "one", roles.StepInDoubt)
	}
	a.reconnect(c1, "a third", 100)
	c1.settle()
	same(t, "events", []string{"agent.journal"}, c1.events("a1"))
}
