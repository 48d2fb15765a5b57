package controller

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// TestForEach runs a step on many agents.
func TestForEach(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	labels := map[string]string{"tier": "web"}
	agents := map[string]*agent{}
	for _, name := range []string{"w1", "w2", "w3", "w4"} {
		agents[name] = w.agent(c1, name, labels)
	}
	w.agent(c1, "db", map[string]string{"tier": "db"})
	if _, err := c1.SuspendAgent(t.Context(), operator, "w4", true); err != nil {
		t.Fatal(err)
	}
	c1.flush()
	each := func(name string, change func(*roles.StepDef)) string {
		s := roles.StepDef{Name: "each", On: roles.OnSuccess, ForEach: &roles.Targets{Labels: labels}, Run: "true"}
		if change != nil {
			change(&s)
		}
		c1.apply(process(name, s, step("after", "db", "each")))
		return c1.accept(name).ID
	}
	// started returns which of the agents have been sent an instance by now.
	started := func(t *testing.T) map[string]*wire.Start {
		t.Helper()
		c1.settle()
		found := map[string]*wire.Start{}
		for name, a := range agents {
			select {
			case m := <-a.link.sent():
				s := m.GetStart()
				if s == nil || s.GetStep() != "each@"+name {
					t.Fatalf("%s was sent %v", name, m)
				}
				a.fences[s.GetRequest()] = s.GetFence()
				found[name] = s
			default:
			}
		}
		return found
	}
	names := func(m map[string]*wire.Start) string { return strings.Join(slices.Sorted(maps.Keys(m)), " ") }
	ends := func(s map[string]*wire.Start, name string, code int32) {
		agents[name].exited(s[name], code)
		agents[name].ack()
	}
	forget := func(t *testing.T) { // that the request is final
		t.Helper()
		c1.settle()
		for _, a := range agents {
			for len(a.link.sent()) > 0 {
				<-a.link.sent()
			}
		}
	}
	t.Run("all of them", func(t *testing.T) {
		id := each("all", nil)
		s := started(t)
		same(t, "started on", "w1 w2 w3", names(s))
		ends(s, "w1", 0)
		ends(s, "w3", 0)
		ends(s, "w2", 3)
		got := c1.awaitStatus(id, roles.RequestFailed)
		var steps []string
		for _, st := range got.Steps {
			steps = append(steps, st.Name+" "+string(st.Status)+" "+st.Of)
		}
		same(t, "the steps", []string{"each failed ", "each@w1 succeeded each", "each@w2 failed each", "each@w3 succeeded each", "after skipped "}, steps)
		same(t, "the reason", "failed on w2; not on w4: suspended", stepOf(got, "each").Reason)
		forget(t)
	})
	t.Run("some at a time, with another owner in between", func(t *testing.T) {
		id := each("some", func(s *roles.StepDef) { s.MaxParallel, s.FailFast = 2, true })
		s := started(t)
		same(t, "started on", "w1 w2", names(s))
		c1 = c1.restart()
		for _, a := range agents {
			a.connect(c1)
		}
		agents["w1"].adopted(agents["w1"].adopt(), &wire.Attempt{Step: "each@w1", Attempt: 1, State: wire.State_EXITED, End: &wire.End{}})
		agents["w1"].ack()
		agents["w2"].adopted(agents["w2"].adopt(), &wire.Attempt{Step: "each@w2", Attempt: 1, State: wire.State_RUNNING})
		more := started(t)
		same(t, "then on", "w3", names(more))
		agents["w2"].exited(s["w2"], 1)
		agents["w2"].ack()
		ends(more, "w3", 0)
		c1.awaitStatus(id, roles.RequestFailed)
		forget(t)
	})
	t.Run("one that is away waits, others do not", func(t *testing.T) {
		agents["w1"].disconnect()
		c1.settle()
		id := each("away", func(s *roles.StepDef) { s.MaxParallel = 1 })
		delete(agents, "w1")
		s := started(t)
		same(t, "started on", "w2", names(s))
		ends(s, "w2", 0)
		s = started(t)
		same(t, "then on", "w3", names(s))
		ends(s, "w3", 0)
		st := c1.awaitStep(id, "each@w1", roles.StepReady)
		same(t, "the reason", "waits for agent w1, which is not connected", st.Reason)
		if err := c1.Steer(t.Context(), operator, id, api.Order{Verb: "skip", Step: "each@w1"}); err != nil {
			t.Fatal(err)
		}
		c1.awaitStep(id, "each", roles.StepSucceeded)
	})
	t.Run("an unknown one", func(t *testing.T) {
		for name, targets := range map[string]roles.Targets{
			"there is no agent w9; did you mean": {Names: []string{"w1", "w9"}},
			"there is no agent cluster web":      {Cluster: "web"},
		} {
			c1.apply(process("typo", roles.StepDef{Name: "each", On: roles.OnSuccess, ForEach: &targets, Run: "true"}))
			_, _, err := c1.Accept(t.Context(), operator, api.RunSpec{Process: "typo"}, "")
			if !errors.Is(err, api.ErrInvalid) || !strings.Contains(err.Error(), name) {
				t.Errorf("%v, want %s", err, name)
			}
		}
	})
	t.Run("none", func(t *testing.T) {
		id := each("none", func(s *roles.StepDef) { s.ForEach = &roles.Targets{Names: []string{"w4"}} })
		got := c1.awaitStatus(id, roles.RequestFailed)
		same(t, "the reason", "no agent that is known and not suspended matches names:w4", stepOf(got, "each").Reason)
	})
}

// The acceptance of a request that is spread at once is one transaction.
func TestForEachAtAcceptance(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", roles.StepDef{Name: "each", On: roles.OnSuccess, ForEach: &roles.Targets{Names: []string{"a1"}}, Run: "true"}))
	r := c1.accept("p")
	a.start()
	for _, name := range []string{"each", "each@a1"} {
		coordtest.Await(t, c1.member.View(), name+" is stored", func(snap coord.Snapshot) bool {
			spec, _ := snap.Get(specKey(r.ID))
			kv, ok := snap.Get(stepKey(r.ID, name))
			return ok && kv.Mod == spec.Mod
		})
	}
}
