package controller

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// TestOrders steers requests that run, with an agent that obeys.
func TestOrders(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	n := 0
	// begin returns a request of the steps one, two and three, in a row, the first of
	// which has been sent to an agent of its own.
	begin := func(t *testing.T) (*agent, string, *wire.Start) {
		t.Helper()
		n++
		name := fmt.Sprintf("a%d", n)
		a := w.agent(c1, name, nil)
		c1.apply(process(name, step("one", name), step("two", name, "one"), step("three", name, "two")))
		return a, c1.accept(name).ID, a.start()
	}
	steer := func(t *testing.T, id string, o api.Order) {
		t.Helper()
		if err := c1.Steer(t.Context(), operator, id, o); err != nil {
			t.Fatal(err)
		}
		c1.settle()
		if left := c1.dump(prefixInbox + id); len(left) > 0 {
			t.Fatalf("the order was left lying: %v", left)
		}
	}
	next := func(t *testing.T, a *agent, want string, attempt uint32) *wire.Start {
		t.Helper()
		s := a.start()
		if s.GetStep() != want || s.GetAttempt() != attempt {
			t.Fatalf("started attempt %d of %s, want %d of %s", s.GetAttempt(), s.GetStep(), attempt, want)
		}
		return s
	}
	ends := func(a *agent, s *wire.Start, code int32) {
		a.t.Helper()
		a.exited(s, code)
		a.ack()
	}
	reason := func(t *testing.T, id, step string) string {
		t.Helper()
		r, err := c1.GetRequest(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if step == "" {
			return r.Reason
		}
		return stepOf(r, step).Reason
	}
	t.Run("hold and release", func(t *testing.T) {
		a, id, one := begin(t)
		steer(t, id, api.Order{Verb: "hold"})
		ends(a, one, 0)
		a.quiet(c1)
		same(t, "the reason", "held by op: because", reason(t, id, ""))
		steer(t, id, api.Order{Verb: "release"})
		next(t, a, "two", 1)
		steer(t, id, api.Order{Verb: "hold", Step: "three"})
		a.quiet(c1)
		same(t, "the audit", []string{"request.accepted", "request.hold", "request.release", "request.hold"}, c1.events(id))
	})
	t.Run("cancel of what is held", func(t *testing.T) {
		a, id, one := begin(t)
		a.running(one)
		steer(t, id, api.Order{Verb: "hold"})
		steer(t, id, api.Order{Verb: "cancel"})
		a.killed()
		same(t, "the reason", "cancelled by op: because", reason(t, id, ""))
		a.report(id, "one", 1, wire.State_EXITED, &wire.End{Code: 143, Stopped: wire.Stop_KILLED})
		same(t, "the reason at the end", "cancelled by op: because", c1.awaitStatus(id, roles.RequestCancelled).Reason)
	})
	t.Run("hold and release a step", func(t *testing.T) {
		a, id, one := begin(t)
		steer(t, id, api.Order{Verb: "hold", Step: "two"})
		a.quiet(c1)
		same(t, "the reason before its turn", "to be held by op: because", reason(t, id, "two"))
		ends(a, one, 0)
		a.quiet(c1)
		c1.awaitStep(id, "two", roles.StepHeld)
		same(t, "the reason", "held by op: because", reason(t, id, "two"))
		steer(t, id, api.Order{Verb: "release", Step: "two"})
		next(t, a, "two", 1)
	})
	t.Run("skip", func(t *testing.T) {
		a, id, one := begin(t)
		steer(t, id, api.Order{Verb: "skip", Step: "two"})
		a.quiet(c1)
		same(t, "the reason", "skipped by op: because", reason(t, id, "two"))
		ends(a, one, 0)
		next(t, a, "three", 1)
		c1.awaitStep(id, "two", roles.StepSkipped)
	})
	t.Run("rerun", func(t *testing.T) {
		a, id, one := begin(t)
		steer(t, id, api.Order{Verb: "hold", Step: "two"})
		ends(a, one, 0)
		steer(t, id, api.Order{Verb: "rerun", Step: "one"})
		again := next(t, a, "one", 2)
		steer(t, id, api.Order{Verb: "release", Step: "two"})
		ends(a, again, 0)
		next(t, a, "two", 1)
	})
	t.Run("finish", func(t *testing.T) {
		a, id, one := begin(t)
		a.running(one)
		steer(t, id, api.Order{Verb: "finish", As: "failed"})
		if k := a.killed(); k.GetStep() != "one" || k.GetAttempt() != 1 {
			t.Errorf("killed %v", k)
		}
		got := c1.awaitStatus(id, roles.RequestFailed)
		same(t, "the reason", "finished by op: because", got.Reason)
		a.report(id, "one", 1, wire.State_EXITED, &wire.End{Code: 143, Stopped: wire.Stop_KILLED})
		if ack := a.ack(); !ack.GetFinal() || ack.GetStep() != "one" {
			t.Errorf("told %v, want that the end is stored and the request final", ack)
		}
		same(t, "the audit", []string{"request.accepted", "request.finish", "step.late_report"}, c1.events(id))
		if err := c1.Steer(t.Context(), operator, id, api.Order{Verb: "rerun", Step: "one"}); !errors.Is(err, api.ErrConflict) {
			t.Errorf("rerun of a final request: %v", err)
		}
	})
	t.Run("insert and change, and another session", func(t *testing.T) {
		a, id, one := begin(t)
		def := step("between", a.name)
		def.Run = "echo between"
		steer(t, id, api.Order{Verb: "insert", Before: "two", Definition: &def})
		changed := step("two", a.name, "between")
		changed.Run = "echo changed"
		steer(t, id, api.Order{Verb: "change", Step: "two", Definition: &changed})
		again := c1.restart()
		c1 = again
		a.connect(c1)
		ad := a.adopt()
		a.adopted(ad, &wire.Attempt{Step: "one", Attempt: 1, State: wire.State_EXITED, End: &wire.End{}})
		a.ack()
		s := next(t, a, "between", 1)
		same(t, "the script", "echo between", s.GetScript())
		ends(a, s, 0)
		same(t, "the script", "echo changed", next(t, a, "two", 1).GetScript())
		r, err := c1.GetRequest(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, st := range r.Steps {
			names = append(names, st.Name)
		}
		same(t, "the steps", "one between two three", strings.Join(names, " "))
		_ = one
	})
	t.Run("refused", func(t *testing.T) {
		a, id, one := begin(t)
		a.running(one)
		c1.awaitStep(id, "one", roles.StepRunning)
		def := func(name, agent string, needs ...string) *roles.StepDef {
			d := step(name, agent, needs...)
			return &d
		}
		for name, tt := range map[string]struct {
			order api.Order
			want  error
			text  string
		}{
			"hold what runs":            {api.Order{Verb: "hold", Step: "one"}, api.ErrConflict, "conflict: step one is running already"},
			"skip what runs":            {api.Order{Verb: "skip", Step: "one"}, api.ErrConflict, "conflict: step one is running already"},
			"rerun what runs":           {api.Order{Verb: "rerun", Step: "one"}, api.ErrConflict, "conflict: step one is running, it has not ended"},
			"rerun what waits":          {api.Order{Verb: "rerun", Step: "two", From: true}, api.ErrConflict, "conflict: step two is waiting, it has not ended"},
			"release what is not held":  {api.Order{Verb: "release", Step: "two"}, api.ErrConflict, "conflict: step two is not held"},
			"finish as in doubt":        {api.Order{Verb: "finish", As: "in_doubt"}, api.ErrInvalid, `invalid: a request is finished as succeeded, failed or cancelled, not "in_doubt"`},
			"insert nowhere":            {api.Order{Verb: "insert", Definition: def("x", a.name)}, api.ErrInvalid, "invalid: a step is inserted before or after another"},
			"insert before what runs":   {api.Order{Verb: "insert", Before: "one", Definition: def("x", a.name)}, api.ErrConflict, "conflict: step one is running already"},
			"insert on an unknown node": {api.Order{Verb: "insert", Before: "two", Definition: def("x", "nosuch")}, api.ErrInvalid, "invalid: no agent matches name=nosuch"},
			"insert in a circle":        {api.Order{Verb: "insert", Before: "two", After: "three", Definition: def("x", a.name)}, api.ErrInvalid, "is a cycle"},
			"insert nothing":            {api.Order{Verb: "insert", Before: "two"}, api.ErrInvalid, `invalid: order "insert"`},
			"change what runs":          {api.Order{Verb: "change", Step: "one", Definition: def("one", a.name)}, api.ErrConflict, "conflict: step one is running already"},
			"change no step":            {api.Order{Verb: "change", Step: "none", Definition: def("none", a.name)}, api.ErrNotFound, `has no step "none"`},
			"dance":                     {api.Order{Verb: "dance"}, api.ErrInvalid, `invalid: order "dance"`},
		} {
			before := c1.everything()
			if err := c1.Steer(t.Context(), operator, id, tt.order); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%s: got %v, want %s", name, err, tt.text)
			}
			if d := diff(before, c1.everything()); d != "" {
				t.Errorf("%s changed the store:\n%s", name, d)
			}
		}
		a.quiet(c1)
	})
}

// An order that names a step that there is not says so, or which one is meant.
func TestOrdersNameSteps(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	w.agent(c1, "a1", nil)
	each := roles.StepDef{Name: "each", Needs: []string{"one"}, On: roles.OnSuccess, ForEach: &roles.Targets{Names: []string{"a1"}}, Run: "true"}
	c1.apply(process("p", step("one", "a1"), each))
	id := c1.accept("p").ID
	def := step("new", "a1")
	for _, tt := range []struct {
		order api.Order
		want  error
		text  string
	}{
		{api.Order{Verb: "hold", Step: "ones"}, api.ErrNotFound, "did you mean one?"},
		{api.Order{Verb: "insert", After: "nosuch", Definition: &def}, api.ErrNotFound, `has no step "nosuch"`},
		{api.Order{Verb: "insert", Before: "eac", Definition: &def}, api.ErrNotFound, "did you mean each?"},
		{api.Order{Verb: "insert", After: "each@a1", Definition: &def}, api.ErrInvalid, "step each@a1 is an instance: name the step that it is of, each"},
		{api.Order{Verb: "insert", After: "one@a1", Definition: &def}, api.ErrNotFound, `has no step "one@a1"`},
	} {
		if err := c1.Steer(t.Context(), operator, id, tt.order); !isErr(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%+v: %v; want %v: %s", tt.order, err, tt.want, tt.text)
		}
	}
}
