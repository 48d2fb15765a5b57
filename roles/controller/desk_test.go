package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// fence is that of the present claim, as the store has it.
func (n *node) fence(id string) *wire.Fence {
	n.w.t.Helper()
	if err := n.Sync(n.w.t.Context()); err != nil {
		n.w.t.Fatal(err)
	}
	_, _, f, ok, err := loadRequest(n.member.View().Snapshot(), id)
	if !ok || err != nil {
		n.w.t.Fatalf("request %s: found %v, %v", id, ok, err)
	}
	return &wire.Fence{Generation: f.Generation, Revision: f.Revision}
}

func same(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// TestRun drives a request from its start to its end.
func TestRun(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	p := process("p", step("one", "a1"), step("two", "a1", "one"))
	p.Params = []roles.Param{{Name: "x"}}
	p.Steps[0].Env, p.Steps[0].Dir, p.Steps[0].Timeout = map[string]string{"E": "1"}, "/d", roles.Duration(time.Minute)
	c1.apply(p)
	r, _, err := c1.Accept(t.Context(), operator, api.RunSpec{Process: "p", Params: map[string]string{"x": "y"}}, "")
	if err != nil {
		t.Fatal(err)
	}
	fence := c1.fence(r.ID)
	m := a.next()
	same(t, "the command", &wire.ControllerMessage{
		Journal: a.link.hello.GetJournal(), Link: a.link.hello.GetLink(),
		Body: &wire.ControllerMessage_Start{Start: &wire.Start{
			Request: r.ID, Step: "one", Attempt: 1, Fence: fence, Script: "true", Env: map[string]string{"E": "1"},
			Params: map[string]string{"x": "y"}, Dir: "/d", TimeoutNanos: int64(time.Minute),
		}},
	}, m)
	one := m.GetStart()
	if got := c1.owned("c1"); got != 1 {
		t.Errorf("it owns %d requests, want 1", got)
	}
	a.running(one)
	c1.awaitStep(r.ID, "one", roles.StepRunning)
	a.exited(one, 0)
	same(t, "the answer to the first end", &wire.Ack{Request: r.ID, Step: "one", Attempt: 1, Fence: fence}, a.ack())
	two := a.start()
	// The end of one step and the dispatch of the next are one write, and both
	// were stored before anything was sent. The view may show it a moment later.
	c1.awaitStep(r.ID, "two", roles.StepDispatched)
	snap := c1.member.View().Snapshot()
	first, _ := snap.Get(stepKey(r.ID, "one"))
	second, _ := snap.Get(stepKey(r.ID, "two"))
	if first.Mod != second.Mod || first.Mod == 0 {
		t.Errorf("the end was stored at %d, the dispatch at %d; want the same", first.Mod, second.Mod)
	}
	a.exited(two, 3)
	same(t, "the answer to the last end", &wire.Ack{Request: r.ID, Step: "two", Attempt: 1, Fence: fence, Final: true}, a.ack())
	got := c1.awaitStatus(r.ID, roles.RequestFailed)
	if code := stepOf(got, "two").ExitCode; code == nil || *code != 3 {
		t.Errorf("exit code %v, want 3", code)
	}
	c1.flush()
	if got := c1.owned("c1"); got != 0 {
		t.Errorf("it owns %d requests, want none", got)
	}
	// The acknowledgement was lost: the agent repeats its report, and whoever is
	// asked derives the answer from the store.
	a.exited(two, 3)
	same(t, "the answer to a repetition", &wire.Ack{Request: r.ID, Step: "two", Attempt: 1, Fence: fence, Final: true}, a.ack())
	a.report("01ARZ3NDEKTSV4RRFFQ69G5FAV", "one", 1, wire.State_EXITED, nil) // nobody knows it
	a.quiet(c1)
}

// TestRetry follows a known failure by another attempt.
func TestRetry(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	p := process("p", step("one", "a1"))
	p.Steps[0].Retry = roles.Retry{Attempts: 2, Delay: roles.Duration(time.Millisecond)}
	c1.apply(p)
	r := c1.accept("p")
	for attempt := uint32(1); attempt <= 2; attempt++ {
		s := a.start()
		if s.GetAttempt() != attempt {
			t.Fatalf("attempt %d, want %d", s.GetAttempt(), attempt)
		}
		a.exited(s, 1)
		a.ack()
	}
	c1.awaitStatus(r.ID, roles.RequestFailed)
	a.quiet(c1)
}

// TestRefused is what becomes of a start that the agent does not obey.
func TestRefused(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	for i, tt := range []struct {
		reason wire.Refusal_Reason
		// claims and sends say whether the request is claimed again, and whether the
		// attempt is sent again; acks that the refusal counts as the attempt's end.
		claims, sends, acks bool
		want                roles.StepStatus
	}{
		{reason: wire.Refusal_STALE_FENCE, want: roles.StepDispatched}, // the new owner's claim is on its way to us
		{reason: wire.Refusal_STALE_FLOOR, claims: true, sends: true, want: roles.StepDispatched},
		{reason: wire.Refusal_WRONG_JOURNAL, want: roles.StepInDoubt},
		{reason: wire.Refusal_SUPERSEDED, acks: true, want: roles.StepInDoubt},
		{reason: wire.Refusal_FINAL, acks: true, want: roles.StepInDoubt},
		{reason: wire.Refusal_MALFORMED, acks: true, want: roles.StepInDoubt},
		{reason: wire.Refusal_WRONG_LINK, sends: true, want: roles.StepDispatched},
		{reason: wire.Refusal_OVERLAP, sends: true, want: roles.StepDispatched},
		{reason: wire.Refusal_BUSY, sends: true, want: roles.StepDispatched},
	} {
		t.Run(tt.reason.String(), func(t *testing.T) {
			t.Parallel() // some wait for a second
			name := fmt.Sprintf("a%d", i)
			a := w.agent(c1, name, nil)
			c1.apply(process(name, step("one", name)))
			r := c1.accept(name)
			s := a.start()
			stale := &wire.Start{Request: s.GetRequest(), Step: s.GetStep(), Attempt: s.GetAttempt(),
				Fence: &wire.Fence{Generation: s.GetFence().GetGeneration(), Revision: s.GetFence().GetRevision() - 1}}
			a.refuse(stale, tt.reason)
			c1.flush()
			if got := c1.fence(r.ID); got.Compare(s.GetFence()) != 0 {
				t.Errorf("the refusal of an earlier claim's command led to another claim, %v", got)
			}
			if got := c1.awaitStep(r.ID, "one", roles.StepDispatched); got.Attempt != 1 {
				t.Errorf("attempt %d, want 1", got.Attempt)
			}
			a.refuse(s, tt.reason)
			if tt.claims {
				ad := a.adopt()
				if ad.GetFence().Compare(s.GetFence()) <= 0 {
					t.Errorf("adopt under %v, want more than %v", ad.GetFence(), s.GetFence())
				}
				a.adopted(ad)
			}
			if tt.sends {
				again := a.start()
				want := &wire.Start{Request: r.ID, Step: "one", Attempt: 1, Script: "true", Fence: c1.fence(r.ID)}
				same(t, "sent again", want, again)
			}
			c1.awaitStep(r.ID, "one", tt.want)
			if tt.acks {
				a.ack()
			}
			a.quiet(c1)
		})
	}
}

// TestBusyAgent refuses several starts at once: each is sent again once.
func TestBusyAgent(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1"), step("two", "a1"), step("three", "a1")))
	c1.accept("p")
	var starts []*wire.Start
	for range 3 {
		starts = append(starts, a.start())
	}
	for _, s := range starts {
		a.refuse(s, wire.Refusal_BUSY)
	}
	got := map[string]int{}
	for range 3 {
		got[a.start().GetStep()]++
	}
	same(t, "sent again", map[string]int{"one": 1, "two": 1, "three": 1}, got)
	a.refuse(starts[0], wire.Refusal_BUSY)
	if s := a.start(); s.GetStep() != "one" {
		t.Errorf("step %s was sent again, want the one that was refused", s.GetStep())
	}
	a.quiet(c1)
}

// TestCommands gives orders about a request.
func TestCommands(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	n := 0
	// begin returns a request whose only step runs at an agent of its own.
	begin := func(t *testing.T, change func(*roles.Process)) (*agent, api.Request, *wire.Start) {
		t.Helper()
		n++
		name := fmt.Sprintf("a%d", n)
		a := w.agent(c1, name, nil)
		p := process(name, step("one", name), step("two", name, "one"))
		if change != nil {
			change(&p)
		}
		c1.apply(p)
		r := c1.accept(name)
		return a, r, a.start()
	}
	consumed := func(t *testing.T, id string) {
		t.Helper()
		c1.settle()
		if left := c1.dump(prefixInbox + id); len(left) > 0 {
			t.Errorf("orders were left lying: %v", left)
		}
	}
	t.Run("cancel", func(t *testing.T) {
		a, r, s := begin(t, nil)
		a.running(s)
		c1.awaitStep(r.ID, "one", roles.StepRunning)
		if err := c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "cancel"}); err != nil {
			t.Fatal(err)
		}
		same(t, "the kill", &wire.Kill{Request: r.ID, Step: "one", Attempt: 1, Fence: c1.fence(r.ID)}, a.killed())
		c1.awaitStatus(r.ID, roles.RequestCancelling)
		if err := c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "cancel"}); err != nil {
			t.Errorf("cancelled twice: %v", err)
		}
		a.report(r.ID, "one", 1, wire.State_EXITED, &wire.End{Code: 143, Stopped: wire.Stop_KILLED})
		got := c1.awaitStatus(r.ID, roles.RequestCancelled)
		if two := stepOf(got, "two"); two.Status != roles.StepCancelled || two.Attempt != 0 {
			t.Errorf("step two is %+v, want it cancelled and never tried", two)
		}
		if !strings.Contains(got.Reason, "op: because") {
			t.Errorf("reason %q does not say who and why", got.Reason)
		}
		consumed(t, r.ID)
		same(t, "the audit", []string{"request.accepted", "request.cancel", "request.cancel"}, c1.events(r.ID))
	})
	t.Run("resolve", func(t *testing.T) {
		a, r, _ := begin(t, nil)
		a.report(r.ID, "one", 1, wire.State_UNKNOWN, &wire.End{Reason: "power cut"})
		c1.awaitStatus(r.ID, roles.RequestInDoubt)
		a.ack()
		if err := c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "resolve", Step: "one", As: "rerun"}); err != nil {
			t.Fatal(err)
		}
		if s := a.start(); s.GetAttempt() != 2 {
			t.Errorf("attempt %d, want 2", s.GetAttempt())
		}
		a.report(r.ID, "one", 2, wire.State_UNKNOWN, nil)
		c1.awaitStatus(r.ID, roles.RequestInDoubt)
		a.ack()
		if err := c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "resolve", Step: "one", As: "success"}); err != nil {
			t.Fatal(err)
		}
		if s := a.start(); s.GetStep() != "two" || s.GetAttempt() != 1 {
			t.Errorf("started %v, want step two", s)
		}
		// Nobody saw that success: it says who answers for it.
		got := c1.awaitStep(r.ID, "one", roles.StepSucceeded)
		same(t, "the reason", "resolved as success by op: because (the agent cannot know how it ended)", got.Reason)
		consumed(t, r.ID)
	})
	t.Run("release", func(t *testing.T) {
		a, r, s := begin(t, nil)
		a.exited(s, 0)
		a.ack()
		two := a.start()
		// As after a claim in a later generation, in which the start was lost.
		c1.on(func(d *desk) { d.drop(d.owned[r.ID]) })
		mod := c1.fence(r.ID).GetRevision()
		c1.commit1(coord.Tx{If: []coord.Cond{coord.ModIs(claimKey(r.ID), mod)}, Then: []coord.Write{
			coord.Put(claimKey(r.ID), encode(claimRecord{Node: "c1", Epoch: c1.session.Load().Epoch(), Generation: 2, From: "c0"})),
		}})
		ad := a.adopt()
		if g := ad.GetFence().GetGeneration(); g != 2 {
			t.Errorf("adopt under generation %d, want 2", g)
		}
		a.adopted(ad)
		a.quiet(c1)
		if got, _ := c1.GetRequest(t.Context(), r.ID); !strings.Contains(got.Reason, "held") {
			t.Errorf("reason %q, want that it is held", got.Reason)
		}
		if err := c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "release"}); err != nil {
			t.Fatal(err)
		}
		again := a.start()
		if again.GetStep() != "two" || again.GetAttempt() != two.GetAttempt() || again.GetFence().GetGeneration() != 2 {
			t.Errorf("released, it sent %v; want the same attempt under the new fence", again)
		}
		consumed(t, r.ID)
	})
	t.Run("refused", func(t *testing.T) {
		a, r, s := begin(t, nil)
		a.running(s)
		c1.awaitStep(r.ID, "one", roles.StepRunning)
		list, err := c1.ListRequests(t.Context(), api.RequestFilter{Open: true})
		if err != nil || !slices.ContainsFunc(list.Requests, func(o api.Request) bool { return o.ID == r.ID }) {
			t.Errorf("the open requests are %v, %v; one runs", list.Requests, err)
		}
		if i := slices.IndexFunc(list.Requests, func(o api.Request) bool { return o.Status.Final() }); i >= 0 {
			t.Errorf("%v is called open", list.Requests[i])
		}
		for _, tt := range []struct {
			name string
			give func() error
			want error
		}{
			{"resolve what runs", func() error {
				return c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "resolve", Step: "one", As: "failed"})
			}, api.ErrConflict},
			{"force what is reachable", func() error {
				return c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "resolve", Step: "one", As: "failed", Force: true})
			}, api.ErrConflict},
			{"resolve no step", func() error {
				return c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "resolve", Step: "none", As: "failed"})
			}, api.ErrNotFound},
			{"no verdict", func() error {
				return c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "resolve", Step: "one", As: "perhaps"})
			}, api.ErrInvalid},
			{"release what is not held", func() error { return c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "release"}) }, api.ErrConflict},
			{"cancel no request", func() error { return c1.Steer(t.Context(), operator, "none", api.Order{Verb: "cancel"}) }, api.ErrNotFound},
		} {
			before := c1.everything()
			if err := tt.give(); !isErr(err, tt.want) {
				t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
			} else if word := tt.want.Error() + ": "; strings.HasPrefix(err.Error(), word+word) {
				t.Errorf("%s: says it twice: %v", tt.name, err)
			}
			if d := diff(before, c1.everything()); d != "" {
				t.Errorf("%s changed the store:\n%s", tt.name, d)
			}
		}
		a.quiet(c1)
	})
	t.Run("it does not fit any more", func(t *testing.T) {
		a, r, s := begin(t, nil)
		a.running(s)
		c1.awaitStep(r.ID, "one", roles.StepRunning)
		// It fitted when it was given; meanwhile the agent has reported after all.
		c1.commit1(coord.Tx{Then: []coord.Write{
			coord.Put(inboxKey(r.ID, newID()), encode(command{Kind: "resolve", By: "op", Step: "one", As: "rerun"})),
			coord.Put(inboxKey(r.ID, newID()), []byte("{")),
			coord.Put(inboxKey(r.ID, newID()), encode(command{Kind: "dance"})),
		}})
		consumed(t, r.ID)
		same(t, "the audit", []string{"request.accepted", "request.command_refused"}, c1.events(r.ID))
		c1.awaitStep(r.ID, "one", roles.StepRunning)
	})
	t.Run("seen twice", func(t *testing.T) {
		a, r, s := begin(t, nil)
		a.report(r.ID, "one", 1, wire.State_UNKNOWN, nil)
		c1.awaitStatus(r.ID, roles.RequestInDoubt)
		a.ack()
		// A new owner reads the inbox from the store. What its view told of before,
		// and of which it hears only now, may be done already.
		key := inboxKey(r.ID, newID())
		c1.on(func(d *desk) {
			d.command(coord.KV{Key: key, Value: encode(command{Kind: "resolve", By: "op", Step: "one", As: "rerun"}), Mod: s.GetFence().GetRevision()})
		})
		a.quiet(c1)
		c1.awaitStep(r.ID, "one", roles.StepInDoubt)
	})
	t.Run("too late", func(t *testing.T) {
		a, r, s := begin(t, func(p *roles.Process) { p.Steps = p.Steps[:1] })
		a.exited(s, 0)
		c1.awaitStatus(r.ID, roles.RequestSucceeded)
		c1.settle()
		c1.commit1(coord.Tx{Then: []coord.Write{coord.Put(inboxKey(r.ID, newID()), encode(command{Kind: "cancel", By: "op"}))}})
		consumed(t, r.ID)
		same(t, "the audit", []string{"request.accepted", "request.command_refused"}, c1.events(r.ID))
		if err := c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "cancel"}); !isErr(err, api.ErrConflict) {
			t.Errorf("cancel of what is final: %v, want a conflict", err)
		}
	})
}

// unreachable lets the desk find at once that an agent is gone for good.
func (n *node) unreachable(id, agent string) {
	n.w.t.Helper()
	n.on(func(d *desk) { d.apply(d.owned[id], roles.AgentUnreachable{Agent: agent}) })
	n.settle()
}

// forced ends the only step of a request by force, whose attempt runs at an agent that
// cannot be reached. It returns what was sent, too.
func forced(t *testing.T, as string) (*node, *agent, api.Request, *wire.Start) {
	t.Helper()
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	r := c1.accept("p")
	s := a.start()
	a.running(s)
	c1.awaitStep(r.ID, "one", roles.StepRunning)
	a.disconnect()
	c1.unreachable(r.ID, "a1")
	if err := c1.Steer(t.Context(), operator, r.ID, api.Order{Verb: "resolve", Step: "one", As: as, Force: true}); err != nil {
		t.Fatal(err)
	}
	return c1, a, r, s
}

// TestForced ends a step by force whose agent is unreachable. What it reports
// later is told and changes nothing, and the attempt is killed.
func TestForced(t *testing.T) {
	c1, a, r, _ := forced(t, "failed")
	c1.awaitStatus(r.ID, roles.RequestFailed)
	a.connect(c1)
	same(t, "the kill", &wire.Kill{Request: r.ID, Step: "one", Attempt: 1, Fence: c1.fence(r.ID)}, a.killed())
	a.report(r.ID, "one", 1, wire.State_EXITED, &wire.End{})
	same(t, "the answer", &wire.Ack{Request: r.ID, Step: "one", Attempt: 1, Fence: c1.fence(r.ID), Final: true}, a.ack())
	a.quiet(c1)
	same(t, "the audit", []string{"request.accepted", "request.resolve", "step.late_report"}, c1.events(r.ID))
	if got := c1.awaitStatus(r.ID, roles.RequestFailed); stepOf(got, "one").Status != roles.StepFailed {
		t.Errorf("the late report changed the step: %+v", got)
	}
}

// TestForcedAndTakenOver changes the owner of a final request while an attempt
// may run that was given up: the next one kills it all the same.
func TestForcedAndTakenOver(t *testing.T) {
	c1, a, r, s := forced(t, "success")
	c1.awaitStatus(r.ID, roles.RequestSucceeded)
	for range 2 {
		c1 = c1.restart()
		a.connect(c1)
		kill := a.killed()
		same(t, "the kill", &wire.Kill{Request: r.ID, Step: "one", Attempt: 1, Fence: c1.fence(r.ID)}, kill)
		if kill.GetFence().Compare(s.GetFence()) <= 0 {
			t.Errorf("killed under %v, started under %v", kill.GetFence(), s.GetFence())
		}
		if got := c1.owned("c1"); got != 0 {
			t.Errorf("what is final counts: it owns %d requests", got)
		}
	}
	a.exited(s, 143)
	a.ack()
	same(t, "the audit", []string{"request.accepted", "request.resolve", "step.late_report"}, c1.events(r.ID))
	// That was all, and nobody owns it any more.
	fence := c1.fence(r.ID)
	c1.settle()
	c1.on(func(d *desk) {
		d.sweep(true)
		d.sweep(true)
		if d.owned[r.ID] != nil || d.open[r.ID] != nil {
			t.Error("the desk remembers it")
		}
	})
	c1 = c1.restart()
	a.connect(c1)
	a.quiet(c1)
	same(t, "the claim", fence, c1.fence(r.ID))
}

// TestLateRefusal: two commands are refused because the machine was set back, and the
// second refusal comes when the step has been dispatched again.
func TestLateRefusal(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	p := process("p", step("one", "a1"))
	p.Steps[0].Repeatable = true
	c1.apply(p)
	r := c1.accept("p")
	s := a.start()
	a.refuse(s, wire.Refusal_WRONG_JOURNAL)
	again := a.start()
	if again.GetAttempt() != 2 {
		t.Fatalf("attempt %d was sent", again.GetAttempt())
	}
	a.running(again)
	c1.awaitStep(r.ID, "one", roles.StepRunning)
	a.refuse(s, wire.Refusal_WRONG_JOURNAL)
	a.quiet(c1)
	if st := stepOf(c1.awaitStatus(r.ID, roles.RequestRunning), "one"); st.Attempt != 2 || st.Status != roles.StepRunning {
		t.Errorf("step is %s in attempt %d", st.Status, st.Attempt)
	}
}
