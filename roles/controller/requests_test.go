package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// withParams is a process that takes parameters.
func withParams(name, agent string) roles.Process {
	p := process(name, step("one", agent))
	p.Params = []roles.Param{{Name: "must", Required: true}, {Name: "may", Default: "x"}}
	return p
}

// TestAcceptOnce repeats a call with its key: it takes effect once, whatever has
// happened in between.
func TestAcceptOnce(t *testing.T) {
	w := newWorld(t, worldOptions{quota: 24 << 20})
	c1 := w.node("c1")
	w.agent(c1, "a1", nil)
	c1.apply(withParams("p", "a1"), withParams("q", "a1"))
	ask := func(process, must, key string) (api.Request, bool, error) {
		return c1.Accept(t.Context(), operator, api.RunSpec{Process: process, Params: map[string]string{"must": must}}, key)
	}
	first, created, err := ask("p", "1", "key")
	if err != nil || !created {
		t.Fatalf("first call: created %v, %v", created, err)
	}
	same := func(t *testing.T) {
		t.Helper()
		before := c1.everything()
		got, created, err := ask("p", "1", "key")
		if err != nil || created || got.ID != first.ID {
			t.Errorf("got request %s, created %v, %v; want %s again", got.ID, created, err, first.ID)
		}
		if d := diff(before, c1.everything()); d != "" {
			t.Errorf("the repetition changed the store:\n%s", d)
		}
	}
	t.Run("same content", same)
	for _, tt := range []struct{ name, process, must string }{
		{"other parameters", "p", "2"},
		{"other process", "q", "1"},
		{"process that does not exist", "r", "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := c1.everything()
			if _, _, err := ask(tt.process, tt.must, "key"); !errors.Is(err, api.ErrConflict) {
				t.Errorf("got %v, want a conflict", err)
			}
			if d := diff(before, c1.everything()); d != "" {
				t.Errorf("the conflict changed the store:\n%s", d)
			}
		})
	}
	t.Run("other key", func(t *testing.T) {
		if got, created, err := ask("p", "1", "key2"); err != nil || !created || got.ID == first.ID {
			t.Errorf("got request %s, created %v, %v; want a new one", got.ID, created, err)
		}
	})
	t.Run("no key", func(t *testing.T) {
		one, _, err1 := ask("p", "1", "")
		two, _, err2 := ask("p", "1", "")
		if err1 != nil || err2 != nil || one.ID == two.ID {
			t.Errorf("got %s and %s, %v, %v; want two requests", one.ID, two.ID, err1, err2)
		}
	})
	t.Run("process changed", func(t *testing.T) {
		changed := withParams("p", "a1")
		changed.Params[1].Default = "y"
		c1.apply(changed)
		same(t)
	})
	t.Run("paused", func(t *testing.T) {
		c1.pause(true)
		defer c1.pause(false)
		same(t)
	})
	t.Run("process deleted", func(t *testing.T) {
		if err := c1.DeleteProcess(t.Context(), operator, "p"); err != nil {
			t.Fatal(err)
		}
		same(t)
	})
	t.Run("no room", func(t *testing.T) {
		c1.fill(coord.RoomForRequests)
		if _, _, err := ask("q", "1", "key3"); !errors.Is(err, api.ErrNoRoom) {
			t.Fatalf("got %v, want no room", err)
		}
		same(t)
	})
}

// pause pauses or resumes a controller.
func (n *node) pause(paused bool) {
	n.w.t.Helper()
	if _, err := n.SetNode(n.w.t.Context(), operator, n.cfg.Name, &paused, nil); err != nil {
		n.w.t.Fatal(err)
	}
}

// fill writes until more than a part of the storage quota is in use. etcd counts
// what it has flushed to its file, a moment after it was written.
func (n *node) fill(limit float64) {
	n.w.t.Helper()
	for i := 0; n.member.CheckRoom(limit) == nil; i++ {
		var value []byte
		if used, _ := n.member.Room(); used < limit-0.05 {
			value = make([]byte, 32<<10) // etcd counts what was written a tenth of a second later
		}
		n.commit1(coord.Tx{Then: []coord.Write{coord.Put(fmt.Sprintf("test/filling/%d", i), value)}})
	}
}

func TestAcceptRefuses(t *testing.T) {
	w := newWorld(t, worldOptions{quota: 24 << 20})
	c1 := w.node("c1")
	w.agent(c1, "a1", map[string]string{"zone": "north"})
	labelled := process("labelled", step("one", ""))
	labelled.Steps[0].Agent = roles.Selector{Labels: map[string]string{"zone": "south"}}
	large := withParams("large", "a1")
	c1.apply(withParams("p", "a1"), withParams("elsewhere", "a2"), labelled, large)
	params := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	full := false
	for _, tt := range []struct {
		name string
		spec api.RunSpec
		key  string
		full bool
		want error
		says string
	}{
		{name: "unknown process", spec: api.RunSpec{Process: "q"}, want: api.ErrNotFound, says: `"q"`},
		{name: "missing parameter", spec: api.RunSpec{Process: "p"}, want: api.ErrInvalid, says: "must"},
		{name: "empty parameter", spec: api.RunSpec{Process: "p", Params: params("must", "")}, want: api.ErrInvalid, says: "must"},
		{name: "unknown parameter", spec: api.RunSpec{Process: "p", Params: params("must", "1", "mst", "1")}, want: api.ErrInvalid, says: "mst"},
		{name: "too large", spec: api.RunSpec{Process: "p", Params: params("must", strings.Repeat("x", roles.MaxValue+1))}, want: api.ErrInvalid, says: "must"},
		{name: "key too long", spec: api.RunSpec{Process: "p", Params: params("must", "1")}, key: strings.Repeat("k", roles.MaxKey+1), want: api.ErrInvalid, says: "idempotency key"},
		{name: "unknown agent", spec: api.RunSpec{Process: "elsewhere", Params: params("must", "1")}, want: api.ErrInvalid, says: "name=a2"},
		{name: "no agent with these labels", spec: api.RunSpec{Process: "labelled"}, want: api.ErrInvalid, says: "zone=south"},
		{name: "no room", spec: api.RunSpec{Process: "p", Params: params("must", "1")}, full: true, want: api.ErrNoRoom, says: "70 %"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.full && !full {
				full = true
				c1.fill(coord.RoomForRequests)
			}
			before := c1.everything()
			key := tt.key
			if key == "" {
				key = "key"
			}
			_, created, err := c1.Accept(t.Context(), operator, tt.spec, key)
			if !errors.Is(err, tt.want) || created || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("got %v, created %v; want %v that says %q", err, created, tt.want, tt.says)
			}
			if d := diff(before, c1.everything()); d != "" {
				t.Errorf("the refusal changed the store:\n%s", d)
			}
		})
	}
	t.Run("what runs goes on without room", func(t *testing.T) {
		before := c1.everything()
		if _, err := c1.Apply(t.Context(), operator, api.Documents{Processes: []roles.Process{withParams("p", "a1")}}, false); err != nil {
			t.Errorf("at 70 %%, what is no request: %v", err)
		}
		if d := diff(before, c1.everything()); d != "" {
			t.Errorf("an unchanged process changed the store:\n%s", d)
		}
		if err := c1.DeleteProcess(t.Context(), operator, "p"); err != nil {
			t.Errorf("deleting makes room: %v", err)
		}
	})
}

// TestAcceptUnknown gives up waiting for the outcome: the request may exist, and
// the repetition finds out.
func TestAcceptUnknown(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, _, err := c1.Accept(gone, operator, api.RunSpec{Process: "p"}, "key"); !errors.Is(err, api.ErrUnavailable) {
		t.Fatalf("got %v, want an unknown outcome", err)
	}
	// Nobody waits for it, and it runs all the same, once.
	s := a.start()
	r, created, err := c1.Accept(t.Context(), operator, api.RunSpec{Process: "p"}, "key")
	if err != nil || created || r.ID != s.GetRequest() {
		t.Errorf("the repetition returned %s, created %v, %v; want %s", r.ID, created, err, s.GetRequest())
	}
	a.exited(s, 0)
	c1.awaitStatus(r.ID, roles.RequestSucceeded)
	if list, err := c1.ListRequests(t.Context(), api.RequestFilter{}); err != nil || len(list.Requests) != 1 {
		t.Errorf("there are %d requests, %v; want one", len(list.Requests), err)
	}
}

// TestAcceptWithoutSession asks a controller that has none.
func TestAcceptWithoutSession(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	c1.stop()
	_, _, err := c1.Accept(t.Context(), operator, api.RunSpec{Process: "p"}, "key")
	if !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
	for name, f := range map[string]func() error{
		"cancel": func() error { return c1.Steer(t.Context(), operator, "x", api.Order{Verb: "cancel"}) },
		"resolve": func() error {
			return c1.Steer(t.Context(), operator, "x", api.Order{Verb: "resolve", Step: "s", As: "failed"})
		},
		"release": func() error { return c1.Steer(t.Context(), operator, "x", api.Order{Verb: "release"}) },
	} {
		if err := f(); !errors.Is(err, api.ErrUnavailable) {
			t.Errorf("%s: got %v, want unavailable", name, err)
		}
	}
}

// TestAcceptAtTwo gives one key to two controllers. However far one is behind
// the other, there is one request, and no repetition is refused.
func TestAcceptAtTwo(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 3})
	c1, c2 := w.node("c1"), w.node("c2")
	w.agent(c1, "a1", nil)
	t.Run("at the same time", func(t *testing.T) {
		c1.apply(process("p", step("one", "a1")))
		if err := c2.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			type answer struct {
				id      string
				created bool
				err     error
			}
			got := make([]answer, 2)
			var wg sync.WaitGroup
			for j, n := range []*node{c1, c2} {
				wg.Go(func() {
					r, created, err := n.Accept(t.Context(), operator, api.RunSpec{Process: "p"}, fmt.Sprint("key", i))
					got[j] = answer{r.ID, created, err}
				})
			}
			wg.Wait()
			if got[0].err != nil || got[1].err != nil || got[0].id != got[1].id || got[0].created == got[1].created {
				t.Fatalf("got %+v: want one request that one of them made", got)
			}
		}
	})
	t.Run("one after the other", func(t *testing.T) {
		for i := range 20 {
			c1.apply(process("q", step("one", "a1")))
			r, _, err := c1.Accept(t.Context(), operator, api.RunSpec{Process: "q"}, fmt.Sprint("later", i))
			if err != nil {
				t.Fatal(err)
			}
			if err := c1.DeleteProcess(t.Context(), operator, "q"); err != nil {
				t.Fatal(err)
			}
			again, created, err := c2.Accept(t.Context(), operator, api.RunSpec{Process: "q"}, fmt.Sprint("later", i))
			if err != nil || created || again.ID != r.ID {
				t.Fatalf("the other one answered %s, created %v, %v; want %s again", again.ID, created, err, r.ID)
			}
		}
	})
}

// TestPausedAccepts: a paused controller accepts and owns nothing new.
func TestPausedAccepts(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	c1.pause(true)
	r := c1.accept("p")
	c1.on(func(d *desk) { d.sweep(true) })
	a.quiet(c1)
	if got, _ := c1.GetRequest(t.Context(), r.ID); got.Status != roles.RequestQueued || got.Owner != "" || c1.owned("c1") != 0 {
		t.Errorf("paused, got %+v; want it queued", got)
	}
	c1.pause(false)
	c1.on(func(d *desk) { d.sweep(true) })
	if s := a.start(); s.GetRequest() != r.ID {
		t.Errorf("resumed, it starts %v", s)
	}
}

// TestOnlyTheActiveOwns confines requests to the Active.
func TestOnlyTheActiveOwns(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1, change: func(c *Config) { c.Execution = ExecutionActive }})
	coordtest.Await(t, w.node("c1").member.View(), "somebody is Active", func(snap coord.Snapshot) bool {
		for _, c := range coord.Controllers(snap) {
			if c.Active {
				return true
			}
		}
		return false
	})
	active, passive := w.node("c1"), w.node("c2")
	if active.session.Load().Mode() != coord.ModeActive {
		active, passive = passive, active
	}
	a := w.agent(passive, "a1", nil)
	active.apply(process("p", step("one", "a1")))
	if err := passive.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := passive.accept("p")
	s := a.start() // over the link that the other one holds
	if got := passive.awaitStatus(r.ID, roles.RequestRunning); got.Owner != active.cfg.Name {
		t.Errorf("owner is %q, want the Active, %s", got.Owner, active.cfg.Name)
	}
	if to, err := passive.Switchover(t.Context(), operator, passive.cfg.Name); err != nil || to != passive.cfg.Name {
		t.Fatalf("switchover to %q: %v", to, err)
	}
	passive.await(r.ID, "the request follows the term", func(r api.Request) bool { return r.Owner == passive.cfg.Name })
	ad := a.adopt()
	a.adopted(ad)
	again := a.start()
	if diff := cmp.Diff(s.GetAttempt(), again.GetAttempt()); diff != "" || again.GetFence().Compare(s.GetFence()) <= 0 {
		t.Errorf("sent again as %v after %v: want the same attempt with a higher fence", again, s)
	}
}

// TestAcceptanceDispatches: what can start at once is dispatched in the transaction
// that accepts the request, under the claim that the same transaction makes.
func TestAcceptanceDispatches(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	w.agent(c1, "a2", nil).disconnect()
	c1.apply(process("p", step("one", "a1"), step("two", "a1", "one"), step("away", "a2")))
	r := c1.accept("p")
	s := a.start()
	snap := c1.member.View().Snapshot()
	accepted, _ := snap.Get(specKey(r.ID))
	stored, ok := snap.Get(stepKey(r.ID, "one"))
	if !ok || stored.Mod != accepted.Mod {
		t.Errorf("accepted at %d, step dispatched at %d", accepted.Mod, stored.Mod)
	}
	for _, later := range []string{"two", "away"} {
		if kv, ok := snap.Get(stepKey(r.ID, later)); ok {
			t.Errorf("step %s is stored: %s", later, kv.Value)
		}
	}
	want := roles.Fence{Generation: s.GetFence().GetGeneration(), Revision: accepted.Mod}
	same(t, "the fence that was sent", want, fenceOf(s.GetFence()))
	state, _, fence, _, err := loadRequest(snap, r.ID)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the fence", want, fence)
	same(t, "the fence of the dispatch", want, state.Steps[0].Dispatch.Fence)
}

// TestJournalChangesDuringAcceptance: an agent comes back with another journal while
// the transaction that dispatches to it is under way. Nobody will ever take the step.
func TestJournalChangesDuringAcceptance(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	answered := make(chan error, 1)
	var id string
	c1.on(func(d *desk) {
		adm, err := c1.admit(t.Context(), operator, api.RunSpec{Process: "p"}, "")
		if err != nil {
			t.Error(err)
			return
		}
		id = adm.state.Request.ID
		d.accept(adm, func(_ coord.Result, err error) { answered <- err })
		// The desk hears of the commit when this is over.
		a.journal = &wire.Journal{Id: "journal-of-another", Counter: 1}
		a.link = a.newLink()
		if !c1.links.put(a.link) {
			t.Error("link refused")
		}
		d.linkUp(localRoute{a.link})
	})
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	c1.awaitStep(id, "one", roles.StepInDoubt)
}
