package controller

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire/pki"
)

// watcher is what the Active runs, with a clock of the test's.
type watcher struct {
	*absences
	n     *node
	clock time.Time
}

func newWatcher(n *node) *watcher {
	n.w.t.Helper()
	n.awaitLead()
	w := &watcher{n: n, clock: time.Now()}
	w.absences = newAbsences(n.Controller, n.session.Load(), n.session.Load().Term(), func() time.Time { return w.clock })
	w.clock = w.first
	return w
}

// after lets time pass, and looks at everybody.
func (w *watcher) after(d time.Duration) {
	w.n.w.t.Helper()
	w.clock = w.clock.Add(d)
	w.n.settle()
	w.all = true
	w.round()
	w.n.settle()
}

// about is what events about somebody say, without what every event has.
func (n *node) about(subject string, role roles.Role) []api.Event {
	n.w.t.Helper()
	list, err := n.ListEvents(n.w.t.Context(), api.EventFilter{})
	if err != nil {
		n.w.t.Fatal(err)
	}
	var out []api.Event
	for _, e := range slices.Backward(list.Events) {
		if e.Subject == subject && (e.Kind == string(role)+".unreachable" || e.Kind == string(role)+".back") {
			out = append(out, api.Event{Kind: e.Kind, Detail: e.Detail})
		}
	}
	return out
}

// activeFirst returns the two controllers of a world, the Active first.
func (w *world) activeFirst() (active, other *node) {
	w.t.Helper()
	active, other = w.node("c1"), w.node("c2")
	coordtest.Await(w.t, active.member.View(), "somebody leads", func(coord.Snapshot) bool {
		if other.leads() {
			active, other = other, active
		}
		return active.leads()
	})
	return active, other
}

// TestAbsentAgent: that an agent is out of reach, and back, is told once each, whoever
// is Active, and not of one that comes back soon.
func TestAbsentAgent(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1})
	c1, c2 := w.activeFirst()
	a := w.agent(c1, "a1", nil)
	a.link.hello.Via = []string{"r1"}
	c1.presenceChanged("a1")
	coordtest.Await(t, c1.member.View(), "the way is known", func(snap coord.Snapshot) bool {
		l, _, ok := newestLink(snap, "a1")
		return ok && len(l.Via) == 1
	})
	active := newWatcher(c1)
	active.after(0)
	a.disconnect()
	active.after(0)
	active.after(unreachableAfter - 1)
	if got := c1.about("a1", roles.RoleAgent); len(got) != 0 {
		t.Errorf("told too early: %+v", got)
	}
	a.connect(c2)
	c2.settle()
	active.after(0)
	a.disconnect()
	c2.settle()
	active.after(1)
	if got := c1.about("a1", roles.RoleAgent); len(got) != 0 {
		t.Errorf("told of one that had come back: %+v", got)
	}
	active.after(unreachableAfter)
	seen, err := c1.GetAgent(t.Context(), "a1")
	if err != nil {
		t.Fatal(err)
	}
	since := seen.LastSeen.UTC().Format(time.RFC3339)
	want := []api.Event{{Kind: "agent.unreachable", Detail: map[string]string{"host": "host-a1", "link": c2.cfg.Name, "since": since}}}
	if d := cmp.Diff(want, c1.about("a1", roles.RoleAgent)); d != "" {
		t.Errorf("events of an agent that is away (-want +got):\n%s", d)
	}
	// It is told already, also to who comes later.
	active.after(unreachableAfter)
	later := newWatcher(c1)
	later.after(0)
	later.after(time.Hour)
	a.connect(c1)
	later.after(0)
	active.after(0)
	want = append(want, api.Event{Kind: "agent.back", Detail: map[string]string{"links": c1.cfg.Name, "away_since": since}})
	if d := cmp.Diff(want, c1.about("a1", roles.RoleAgent)); d != "" {
		t.Errorf("events of an agent that is back (-want +got):\n%s", d)
	}
	// One that is forgotten while it is away does not come back.
	a.disconnect()
	active.after(0)
	active.after(unreachableAfter)
	if err := c1.RemoveAgent(t.Context(), operator, "a1", false); err != nil {
		t.Fatal(err)
	}
	active.after(0)
	if _, left := c1.member.View().Get(awayKey(absentee{roles.RoleAgent, "a1"})); left {
		t.Error("a forgotten agent is still known to be away")
	}
	a.connect(c1)
	active.after(0)
	if got := c1.about("a1", roles.RoleAgent); len(got) != 3 || got[2].Kind != "agent.unreachable" {
		t.Errorf("after it was forgotten: %+v", got)
	}
}

func TestAbsentRelay(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	p := c1.listen()
	client, hello := p.client(p.store(pki.Relay, "r1")), helloOfRelay("r1")
	s, _, err := greet(t, client, hello)
	if err != nil {
		t.Fatal(err)
	}
	linked := func(n api.Node) bool { return n.Mode == roles.ModePassive }
	c1.seen("r1", "linked", linked)
	active := newWatcher(c1)
	active.after(0)
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	gone := c1.seen("r1", "Offline, and when it was seen last", func(n api.Node) bool { return n.Mode == roles.ModeOffline && !n.LastSeen.IsZero() })
	active.after(0)
	active.after(unreachableAfter)
	if _, _, err = greet(t, client, hello); err != nil {
		t.Fatal(err)
	}
	c1.seen("r1", "linked again", linked)
	active.after(0)
	since := gone.LastSeen.UTC().Format(time.RFC3339)
	want := []api.Event{
		{Kind: "relay.unreachable", Detail: map[string]string{"host": "host-r1", "since": since}},
		{Kind: "relay.back", Detail: map[string]string{"links": c1.cfg.Name, "away_since": since}},
	}
	if d := cmp.Diff(want, c1.about("r1", roles.RoleRelay)); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

// At the beginning of a term agents have time to come back, and what happens wakes who
// tells of it.
func TestAbsenceIsNoticed(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	a.disconnect()
	active := newWatcher(c1)
	c1.settle()
	begin := active.clock.Add(-absentAtFirst)
	active.clock = begin
	active.after(0) // sessions change
	if len(active.missing) != 0 || !active.next().Equal(begin.Add(absentAtFirst)) {
		t.Errorf("at the beginning: missing %v, the next look is at %v", active.missing, active.next())
	}
	active.after(absentAtFirst)
	if want := begin.Add(absentAtFirst + unreachableAfter); !active.next().Equal(want) {
		t.Errorf("told at %v, want %v", active.next(), want)
	}
	_, stop := c1.member.View().Follow(active.note)
	defer stop()
	a.connect(c1)
	c1.settle()
	<-active.wake
	active.round()
	if !active.next().IsZero() {
		t.Errorf("one that is back is told to be away at %v", active.next())
	}
}
