package controller

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// inCluster is a step for a member of a cluster.
func inCluster(name, cluster string, needs ...string) roles.StepDef {
	s := step(name, "", needs...)
	s.Agent = roles.Selector{Cluster: cluster}
	return s
}

// cluster stores an agent cluster.
func (n *node) cluster(c roles.AgentCluster) {
	n.w.t.Helper()
	if c.Distribution == "" {
		c.Distribution = roles.DistributeAny
	}
	if _, err := n.Apply(n.w.t.Context(), operator, api.Documents{AgentClusters: []roles.AgentCluster{c}}, false); err != nil {
		n.w.t.Fatal(err)
	}
	for _, other := range n.w.all() {
		if err := other.Sync(n.w.t.Context()); err != nil {
			n.w.t.Fatal(err)
		}
		other.flush()
	}
}

// reason is what a step says it waits for.
func (n *node) reason(id, step string) string {
	n.w.t.Helper()
	n.settle()
	r, err := n.GetRequest(n.w.t.Context(), id)
	if err != nil {
		n.w.t.Fatal(err)
	}
	if st := stepOf(r, step); st.Status != roles.StepReady {
		n.w.t.Errorf("step %s is %s, want it ready", step, st.Status)
	}
	return stepOf(r, step).Reason
}

// TestLimits sends steps through each kind of limit.
func TestLimits(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	limit := func(t *testing.T, agent string, n int) {
		t.Helper()
		if _, err := c1.LimitAgent(t.Context(), operator, agent, n); err != nil {
			t.Fatal(err)
		}
		c1.settle()
	}
	t.Run("of an agent", func(t *testing.T) {
		a := w.agent(c1, "a1", nil)
		limit(t, "a1", 1)
		c1.apply(process("a1", step("one", "a1"), step("two", "a1", "one")))
		first, second, third := c1.accept("a1"), c1.accept("a1"), c1.accept("a1")
		s := a.start()
		if s.GetRequest() != first.ID {
			t.Fatalf("started %v, want the oldest", s)
		}
		a.quiet(c1)
		for _, r := range []api.Request{second, third} {
			if got, want := c1.reason(r.ID, "one"), "waits: agent a1 has a limit of 1, which "+first.ID+"/one hold"; got != want {
				t.Errorf("reason %q, want %q", got, want)
			}
		}
		if got, err := c1.GetAgent(t.Context(), "a1"); err != nil || got.Running != 1 || got.Limit != 1 {
			t.Errorf("shown as %+v, %v", got, err)
		}
		// The oldest request goes on first, also with its next step.
		a.exited(s, 0)
		a.ack()
		if s = a.start(); s.GetRequest() != first.ID || s.GetStep() != "two" {
			t.Fatalf("started %v, want the next step of the oldest", s)
		}
		a.quiet(c1)
		// What waits can be cancelled, and takes no room.
		if err := c1.Steer(t.Context(), operator, second.ID, api.Order{Verb: "cancel"}); err != nil {
			t.Fatal(err)
		}
		c1.awaitStatus(second.ID, roles.RequestCancelled)
		a.exited(s, 0)
		a.ack()
		if s = a.start(); s.GetRequest() != third.ID {
			t.Fatalf("started %v, want the one that is left", s)
		}
		// Without the limit what waits is sent at once.
		fourth := c1.accept("a1")
		a.quiet(c1)
		limit(t, "a1", 0)
		if s := a.start(); s.GetRequest() != fourth.ID {
			t.Errorf("started %v, want what waited", s)
		}
		// A limit that comes later counts what is out already.
		limit(t, "a1", 2)
		c1.accept("a1")
		a.quiet(c1)
		a.exited(s, 0)
		a.ack()
		if s := a.start(); s.GetRequest() != third.ID {
			t.Errorf("started %v, want the older one", s)
		}
		a.quiet(c1)
	})
	t.Run("of a cluster", func(t *testing.T) {
		labels := map[string]string{"tier": "b"}
		b1, b2 := w.agent(c1, "b1", labels), w.agent(c1, "b2", labels)
		c1.cluster(roles.AgentCluster{Name: "b", Labels: labels, Limit: 2, AgentLimit: 1})
		c1.apply(process("b", inCluster("one", "b"), inCluster("two", "b", "one")))
		first, second, third := c1.accept("b"), c1.accept("b"), c1.accept("b")
		byAgent := map[*agent]*wire.Start{b1: b1.start(), b2: b2.start()} // one at each
		b1.quiet(c1)
		b2.quiet(c1)
		if got := c1.reason(third.ID, "one"); !strings.HasPrefix(got, "waits: agent cluster b has a limit of 2, which ") ||
			!strings.Contains(got, first.ID+"/one") || !strings.Contains(got, second.ID+"/one") {
			t.Errorf("reason %q", got)
		}
		// A request stays at its agent: its next step takes the room there.
		for a, s := range byAgent {
			a.exited(s, 0)
			a.ack()
			next := a.start()
			if next.GetRequest() != s.GetRequest() || next.GetStep() != "two" {
				t.Fatalf("%s got %v", a.name, next)
			}
			byAgent[a] = next
		}
		c1.cluster(roles.AgentCluster{Name: "b", Labels: labels, AgentLimit: 1})
		if got := c1.reason(third.ID, "one"); !strings.HasPrefix(got, "waits: agent cluster b at agent b1 has a limit of 1, which ") {
			t.Errorf("reason %q", got)
		}
		got, err := c1.GetAgentCluster(t.Context(), "b")
		if want := []api.ClusterMember{{Agent: "b1", Connected: true, Running: 1}, {Agent: "b2", Connected: true, Running: 1}}; err != nil ||
			got.Running != 2 || !slices.Equal(got.Members, want) {
			t.Errorf("shown as %+v, %v", got, err)
		}
		b2.exited(byAgent[b2], 0)
		b2.ack()
		if s := b2.start(); s.GetRequest() != third.ID {
			t.Errorf("started %v, want what waited", s)
		}
		// Steps that name the agent themselves do not count for the cluster.
		c1.apply(process("past", step("one", "b1")))
		past := c1.accept("past")
		if s := b1.start(); s.GetRequest() != past.ID {
			t.Errorf("started %v, want the step that is none of the cluster", s)
		}
	})
	t.Run("a retry takes a slot again", func(t *testing.T) {
		a := w.agent(c1, "r1", nil)
		limit(t, "r1", 1)
		p := process("r", step("one", "r1"))
		p.Steps[0].Retry.Attempts = 2
		c1.apply(p)
		first := c1.accept("r")
		c1.accept("r")
		a.exited(a.start(), 1)
		a.ack()
		if s := a.start(); s.GetRequest() != first.ID || s.GetAttempt() != 2 {
			t.Errorf("started %v, want the older one again", s)
		}
		a.quiet(c1)
	})
	t.Run("what happens during a dispatch waits for it", func(t *testing.T) {
		a := w.agent(c1, "d1", nil)
		c1.apply(process("d", step("one", "d1")))
		limit(t, "d1", 1)
		holder := c1.accept("d")
		s := a.start()
		waiting := c1.accept("d")
		c1.settle()
		c1.on(func(d *desk) {
			d.load.forget(coord.KV{Key: stepKey(holder.ID, "one")}) // as if it had ended
			d.waiting.due[dueAgent("d1")] = true
			d.serve()
			o := d.owned[waiting.ID]
			if o.granting == nil {
				t.Error("it is not being dispatched")
				return
			}
			d.apply(o, roles.Cancel{By: "op"})
			if o.state.Record.Cancel != nil {
				t.Error("the cancel did not wait")
			}
		})
		// Dispatched, then cancelled: the agent decides.
		if s := a.start(); s.GetRequest() != waiting.ID {
			t.Errorf("started %v", s)
		}
		same(t, "the kill", &wire.Kill{Request: waiting.ID, Step: "one", Attempt: 1, Fence: c1.fence(waiting.ID)}, a.killed())
		a.report(waiting.ID, "one", 1, wire.State_NEVER_STARTED, &wire.End{})
		a.ack()
		c1.awaitStatus(waiting.ID, roles.RequestCancelled)
		a.exited(s, 0)
	})
}

// play answers everything that is sent to an agent: each step runs and succeeds.
func (a *agent) play() (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	link := a.link
	go func() {
		defer close(ended)
		for {
			select {
			case m := <-link.sent():
				if s := m.GetStart(); s != nil {
					a.fences[s.GetRequest()] = s.GetFence()
					a.running(s)
					a.exited(s, 0)
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

// TestLimitsOfSeveralOwners: two controllers own requests that pass one limit.
func TestLimitsOfSeveralOwners(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1})
	c1, c2 := w.node("c1"), w.node("c2")
	a1, a2 := w.agent(c1, "a1", nil), w.agent(c2, "a2", nil)
	const limit, each = 3, 20
	c1.cluster(roles.AgentCluster{Name: "web", Agents: []string{"a1", "a2"}, Distribution: roles.DistributeLeastLoad, Limit: limit})
	var steps []roles.StepDef
	for i := range 3 {
		steps = append(steps, inCluster(fmt.Sprintf("s%d", i), "web"))
	}
	c1.apply(process("p", steps...))
	if err := c2.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	most := 0
	count := newLoad()
	_, stop := c1.member.View().Follow(func(b coord.Batch) {
		for _, ch := range b.Changes {
			if strings.HasPrefix(ch.Key, prefixRequests) {
				count.note(ch.KV)
			}
		}
		most = max(most, count.of("web", ""))
	})
	for _, a := range []*agent{a1, a2} {
		defer a.play()()
	}
	var ids []string
	for range each {
		ids = append(ids, c1.accept("p").ID, c2.accept("p").ID)
	}
	for _, id := range ids {
		c1.awaitStatus(id, roles.RequestSucceeded)
	}
	stop()
	if most != limit {
		t.Errorf("%d steps were out at a time, want %d", most, limit)
	}
	c1.settle()
	if n := len(c1.dump(prefixSlots)); n != limit {
		t.Errorf("%d slots are known, want %d", n, limit)
	}
}

// TestLimitSurvivesItsOwner: what holds a slot goes on under another owner, and its
// end makes room there.
func TestLimitSurvivesItsOwner(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1})
	c1, c2 := w.node("c1"), w.node("c2")
	a := w.agent(c2, "a1", nil)
	c1.cluster(roles.AgentCluster{Name: "web", Agents: []string{"a1"}, Limit: 1})
	c1.apply(process("p", inCluster("one", "web")))
	held := c1.accept("p")
	s := a.start()
	a.running(s)
	c2.awaitStep(held.ID, "one", roles.StepRunning)
	waits := c2.accept("p")
	if got := c2.reason(waits.ID, "one"); !strings.Contains(got, held.ID+"/one") {
		t.Errorf("reason %q does not say who holds the limit", got)
	}
	w.kill("c1")
	a.adopted(a.adopt(), &wire.Attempt{Step: "one", Attempt: 1, State: wire.State_RUNNING})
	c2.await(held.ID, "it has another owner", func(r api.Request) bool { return r.Owner == "c2" })
	a.quiet(c2)
	a.exited(s, 0)
	a.ack()
	if s := a.start(); s.GetRequest() != waits.ID {
		t.Errorf("started %v, want what waited", s)
	}
}

// TestDistribution gives steps to the members of clusters by each rule.
func TestDistribution(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	all := map[string]*agent{}
	for _, name := range []string{"a1", "a2", "a3"} {
		all[name] = w.agent(c1, name, map[string]string{"tier": "web"})
	}
	spare := w.agent(c1, "spare", nil)
	web := func(rule roles.Distribution) roles.AgentCluster {
		return roles.AgentCluster{Name: string(rule), Labels: map[string]string{"tier": "web"}, Distribution: rule}
	}
	// at says where the next request of a process goes.
	at := func(t *testing.T, p string) string {
		t.Helper()
		id := c1.accept(p).ID
		agent := c1.awaitStep(id, "one", roles.StepDispatched).Agent
		if agent == "spare" {
			spare.start()
		} else {
			all[agent].start()
		}
		return agent
	}
	t.Run("round robin", func(t *testing.T) {
		c1.cluster(web(roles.DistributeRoundRobin))
		c1.apply(process("rr", inCluster("one", "round_robin")))
		var got []string
		for range 4 {
			got = append(got, at(t, "rr"))
		}
		if want := []string{"a1", "a2", "a3", "a1"}; !slices.Equal(got, want) {
			t.Errorf("went to %v, want %v", got, want)
		}
		// The next owner goes on where the last one was.
		c1 = c1.restart()
		for _, a := range all {
			a.connect(c1)
			var adopts []*wire.Adopt
			for range map[string]int{"a1": 2, "a2": 1, "a3": 1}[a.name] {
				adopts = append(adopts, a.adopt())
			}
			for _, ad := range adopts {
				a.adopted(ad)
				a.start()
			}
		}
		spare.connect(c1)
		c1.settle()
		if got := at(t, "rr"); got != "a2" {
			t.Errorf("after a change of owner it went to %s, want a2", got)
		}
		if _, err := c1.SuspendAgentCluster(t.Context(), operator, "round_robin", "a3", true); err != nil {
			t.Fatal(err)
		}
		c1.settle()
		if got := at(t, "rr"); got != "a1" {
			t.Errorf("without a3 it went to %s, want a1", got)
		}
	})
	t.Run("least load", func(t *testing.T) { // a1 has 3, a2 2, a3 1
		c := web(roles.DistributeLeastLoad)
		c.Agents = []string{"spare"}
		c1.cluster(c)
		c1.apply(process("ll", inCluster("one", "least_load")))
		got := map[string]int{}
		for range 6 {
			got[at(t, "ll")]++
		}
		// 3 each: a2 gets 1, a3 2, spare 3.
		if want := map[string]int{"a2": 1, "a3": 2, "spare": 3}; !maps.Equal(got, want) {
			t.Errorf("went to %v, want %v", got, want)
		}
	})
	t.Run("any", func(t *testing.T) {
		c1.cluster(web(roles.DistributeAny))
		c1.apply(process("any", inCluster("one", "any")))
		for range 5 {
			if got := at(t, "any"); all[got] == nil {
				t.Errorf("went to %s, which is no member", got)
			}
		}
	})
	t.Run("all", func(t *testing.T) {
		c1.cluster(web(roles.DistributeAll))
		c1.apply(process("all", inCluster("one", "all")))
		before := c1.everything()
		if _, _, err := c1.Accept(t.Context(), operator, api.RunSpec{Process: "all"}, ""); !isErr(err, api.ErrInvalid) {
			t.Errorf("a step for one agent of all: %v, want it invalid", err)
		}
		c1.apply(process("misspelt", inCluster("one", "aly")))
		if _, _, err := c1.Accept(t.Context(), operator, api.RunSpec{Process: "misspelt"}, ""); !isErr(err, api.ErrInvalid) ||
			!strings.Contains(err.Error(), "did you mean all") {
			t.Errorf("a cluster that does not exist: %v", err)
		}
		if d := diff(before, c1.dump(prefixRequests, prefixClaims)); strings.Contains(d, "+ ") {
			t.Errorf("they changed the store:\n%s", d)
		}
	})
}

// TestSuspendedCluster gives a cluster no new steps.
func TestSuspendedCluster(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.cluster(roles.AgentCluster{Name: "web", Agents: []string{"a1", "never-seen"}})
	c1.apply(process("p", inCluster("one", "web"), inCluster("two", "web", "one")))
	suspend := func(agent string, suspended bool) api.AgentClusterStatus {
		t.Helper()
		got, err := c1.SuspendAgentCluster(t.Context(), operator, "web", agent, suspended)
		if err != nil {
			t.Fatal(err)
		}
		c1.settle()
		return got
	}
	c1.accept("p")
	s := a.start()
	suspend("", true)
	r := c1.accept("p")
	if got := c1.reason(r.ID, "one"); got != "waits: agent cluster web is suspended" {
		t.Errorf("reason %q", got)
	}
	// What has begun goes on.
	a.exited(s, 0)
	a.ack()
	if s = a.start(); s.GetStep() != "two" {
		t.Errorf("started %v", s)
	}
	a.quiet(c1)
	// The definition leaves it alone, unless it says something.
	c1.cluster(roles.AgentCluster{Name: "web", Agents: []string{"a1", "never-seen"}})
	a.quiet(c1)
	if got := suspend("a1", true); !slices.Equal(got.Members, []api.ClusterMember{
		{Agent: "a1", Connected: true, Suspended: true, Running: 1}, {Agent: "never-seen"},
	}) {
		t.Errorf("members %+v", got.Members)
	}
	running := false
	c1.cluster(roles.AgentCluster{Name: "web", Agents: []string{"a1", "never-seen"}, Suspended: &running})
	if got := c1.reason(r.ID, "one"); got != "waits for an agent that matches cluster=web" {
		t.Errorf("reason %q", got)
	}
	suspend("a1", false)
	if s := a.start(); s.GetRequest() != r.ID {
		t.Errorf("started %v, want what waited", s)
	}
	same(t, "the audit", []string{
		"agent_cluster.created", "agent_cluster.suspended", "agent_cluster.suspended", "agent_cluster.changed", "agent_cluster.resumed",
	}, c1.events("web"))

	before := c1.everything()
	for name, err := range map[string]error{
		"suspend a stranger":  errOf(c1.SuspendAgentCluster(t.Context(), operator, "web", "a2", true)),
		"suspend no cluster":  errOf(c1.SuspendAgentCluster(t.Context(), operator, "db", "", true)),
		"show no cluster":     errOf(c1.GetAgentCluster(t.Context(), "db")),
		"delete no cluster":   c1.DeleteAgentCluster(t.Context(), operator, "db", true),
		"remove no agent":     c1.RemoveAgent(t.Context(), operator, "nobody", true),
		"limit no agent":      errOf(c1.LimitAgent(t.Context(), operator, "nobody", 1)),
		"delete what is used": c1.DeleteAgentCluster(t.Context(), operator, "web", false),
		"remove what is here": c1.RemoveAgent(t.Context(), operator, "a1", false),
	} {
		want := api.ErrNotFound
		if strings.Contains(name, "what is") {
			want = api.ErrConflict
		}
		if !isErr(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if d := diff(before, c1.everything()); d != "" {
		t.Errorf("they changed the store:\n%s", d)
	}

	// Deleted by force, it is waited for until there is one again.
	if err := c1.DeleteAgentCluster(t.Context(), operator, "web", true); err != nil {
		t.Fatal(err)
	}
	c1.cluster(roles.AgentCluster{Name: "web", Agents: []string{"a1"}, Limit: 1}) // both requests are out
	r = c1.accept("p")
	a.quiet(c1)
	if err := c1.DeleteAgentCluster(t.Context(), operator, "web", true); err != nil {
		t.Fatal(err)
	}
	if got := c1.reason(r.ID, "one"); got != "waits for agent cluster web, which does not exist any more" {
		t.Errorf("reason %q", got)
	}
	c1.cluster(roles.AgentCluster{Name: "web", Agents: []string{"a1"}})
	if s := a.start(); s.GetRequest() != r.ID {
		t.Errorf("started %v, want what waited", s)
	}
}

func errOf[T any](_ T, err error) error { return err }

// TestRemoveAgent forgets an agent that is away.
func TestRemoveAgent(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	if _, err := c1.LimitAgent(t.Context(), operator, "a1", 1); err != nil {
		t.Fatal(err)
	}
	c1.apply(process("p", step("one", "a1")))
	c1.accept("p")
	s := a.start()
	a.disconnect()
	c1.settle()
	if err := c1.RemoveAgent(t.Context(), operator, "a1", false); !isErr(err, api.ErrConflict) || !strings.Contains(err.Error(), "1 steps are out") {
		t.Errorf("with a step out: %v", err)
	}
	if err := c1.RemoveAgent(t.Context(), operator, "a1", true); err != nil {
		t.Fatal(err)
	}
	if left := c1.dump(prefixAgents, prefixLinks, prefixSlots); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if list, err := c1.ListAgents(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("listed %v, %v", list, err)
	}
	// It may come back, and its step is where it was.
	a.connect(c1)
	same(t, "sent again", s, a.start())
	coordtest.Await(t, c1.member.View(), "it is back", func(coord.Snapshot) bool {
		got, err := c1.GetAgent(t.Context(), "a1")
		return err == nil && got.Connected && got.Limit == 0 && got.Running == 1
	})
}

// TestSlotsKeepTheLimit plays owners whose views lag, a limit that changes, and steps
// that were sent when there was none: no step that passes the limit makes more than
// that.
func TestSlotsKeepTheLimit(t *testing.T) {
	const prefix = "slots/cluster/c/"
	rapid.Check(t, func(t *rapid.T) {
		type owner struct {
			slots *slots
			load  *load
			seen  int // of the history
			limit int
			at    int64 // revision at which the limit was seen
		}
		var history []coord.KV // all that was ever written, in order; a limit's key is "limit"
		store := map[string]coord.KV{}
		revision := int64(0)
		write := func(kvs ...coord.KV) {
			revision++
			for _, kv := range kvs {
				kv.Mod = revision
				store[kv.Key] = kv
				history = append(history, kv)
			}
		}
		truth := newLoad()
		limit, n := 0, 0
		owners := make([]*owner, 3)
		for i := range owners {
			owners[i] = &owner{slots: newSlots(), load: newLoad()}
		}
		out := func(id string) coord.KV {
			return coord.KV{Key: stepKey(id, "s"), Value: encode(roles.Step{Name: "s", Status: roles.StepRunning, Attempt: 1, Agent: "a",
				Dispatch: roles.Dispatch{Cluster: "c"}})}
		}
		// see shows an owner at least everything up to a revision.
		see := func(o *owner, until int64) {
			for ; o.seen < len(history) && history[o.seen].Mod <= until; o.seen++ {
				switch kv := history[o.seen]; {
				case kv.Key == "limit":
					o.limit, o.at = int(kv.Value[0]), kv.Mod
				case strings.HasPrefix(kv.Key, prefixSlots):
					o.slots.note(kv, false)
				default:
					o.load.note(kv)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"set the limit": func(t *rapid.T) {
				limit = rapid.IntRange(0, 6).Draw(t, "limit")
				write(coord.KV{Key: "limit", Value: []byte{byte(limit)}})
			},
			"see": func(t *rapid.T) {
				see(rapid.SampledFrom(owners).Draw(t, "owner"), rapid.Int64Range(0, revision).Draw(t, "until"))
			},
			"end": func(t *rapid.T) {
				ids := truth.holders(gate{})
				if len(ids) == 0 {
					t.Skip("nothing is out")
				}
				id, _, _ := strings.Cut(rapid.SampledFrom(ids).Draw(t, "step"), "/")
				kv := coord.KV{Key: stepKey(id, "s"), Value: encode(roles.Step{Name: "s", Status: roles.StepSucceeded, Attempt: 1})}
				write(kv)
				truth.note(kv)
			},
			"send": func(t *rapid.T) {
				o := rapid.SampledFrom(owners).Draw(t, "owner")
				n++
				id := fmt.Sprintf("R%d", n)
				if o.limit == 0 {
					// Such a step looks at nothing, so the limit begins where it is seen.
					if limit == 0 {
						write(out(id))
						truth.note(out(id))
					}
					return
				}
				g := gate{prefix: prefix, limit: o.limit, cluster: "c"}
				key, mod, ok := o.slots.pick(g, o.load)
				if !ok || store[key].Mod != mod || store["limit"].Mod != o.at {
					return // no room, or the transaction was not applied
				}
				write(coord.KV{Key: key, Value: encode(slotRecord{Request: id, Step: "s", Attempt: 1})}, out(id))
				truth.note(out(id))
				if have := truth.of("c", ""); have > limit {
					t.Fatalf("%d steps are out with a limit of %d", have, limit)
				}
			},
			"": func(t *rapid.T) {
				// Who sees everything finds room exactly if there is.
				o := owners[0]
				see(o, revision)
				if limit == 0 {
					return
				}
				_, _, ok := o.slots.pick(gate{prefix: prefix, limit: limit, cluster: "c"}, o.load)
				if room := truth.of("c", "") < limit; ok != room {
					t.Fatalf("a slot was found: %v, and there is room: %v", ok, room)
				}
			},
		})
	})
}
