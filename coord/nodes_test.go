package coord_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"uac/coord"
)

func TestNodes(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	active := awaitActive(c, "w1", "c1", "c2")
	passive := other(active)
	m := c.Node("w1").Member
	c.Await("w1", "all registered", func(s coord.Snapshot) bool { return has(s, "nodes/c1") && has(s, "nodes/c2") && has(s, "nodes/w1") })
	node := func(name string) coord.NodeStatus {
		nodes := m.Nodes()
		return nodes[slices.IndexFunc(nodes, func(n coord.NodeStatus) bool { return n.Name == name })]
	}
	until(t, "w1 hears the others", func() bool { return !node("c1").Heard.IsZero() && !node("c2").Heard.IsZero() })

	a, p, w := node(active), node(passive), node("w1")
	if a.Mode != coord.ModeActive || a.Term != term(m.View().Snapshot()) || a.Unready != "" || a.Successor != passive {
		t.Errorf("%+v", a)
	}
	if p.Mode != coord.ModePassive || p.Term != 0 || p.Epoch != c.Node(passive).Session().Epoch() || p.Unready != "" || p.Host != "test" {
		t.Errorf("%+v", p)
	}
	if w.Mode != coord.ModePassive || w.Role != coord.RoleWatch || w.Heard.IsZero() {
		t.Errorf("%+v", w)
	}
	if a := c.Node(active).Session().Mode(); a != coord.ModeActive {
		t.Errorf("mode of %s: %s", active, a)
	}
	snap := m.View().Snapshot()
	want := []coord.ControllerInfo{
		{Name: "c1", Epoch: coord.SessionEpoch(snap, "c1"), Active: active == "c1"},
		{Name: "c2", Epoch: coord.SessionEpoch(snap, "c2"), Active: active == "c2"},
	}
	if diff := cmp.Diff(want, coord.Controllers(snap)); diff != "" {
		t.Error(diff)
	}
	if n := len(coord.Losses(snap)); n != 0 {
		t.Errorf("%d losses", n)
	}

	// Without the watch nobody could take over.
	epoch := node(passive).Epoch
	c.Kill(passive)
	awaitLoss(c, "w1", passive, epoch)
	if a = node(active); !strings.Contains(a.Unready, "majority") || a.Successor != "" {
		t.Errorf("%+v: want to hear that a majority would be missing", a)
	}
	if p = node(passive); p.Mode != coord.ModeOffline || p.Epoch != 0 || !strings.Contains(p.Unready, "offline") {
		t.Errorf("%+v", p)
	}
	snap = m.View().Snapshot()
	if got := coord.Controllers(snap); len(got) != 1 || got[0].Name != active {
		t.Errorf("%+v", got)
	}
	if got := coord.Losses(snap); len(got) != 1 || got[0].Node != passive {
		t.Errorf("%+v", got)
	}
}

// A node that does not answer is shown so before it can be declared lost.
func TestSilentNode(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	active := awaitActive(c, "w1", "c1", "c2")
	m := c.Node(active).Member
	node := func() coord.NodeStatus {
		nodes := m.Nodes()
		return nodes[slices.IndexFunc(nodes, func(n coord.NodeStatus) bool { return n.Name == other(active) })]
	}
	until(t, "it is heard and ready", func() bool { return !node().Heard.IsZero() && node().Unready == "" })
	c.Kill("w1", other(active)) // nobody is left to agree
	until(t, "it is silent", func() bool { return node().Silent })
	if n := node(); n.Mode != coord.ModePassive || !strings.Contains(n.Unready, "last heard") {
		t.Errorf("%+v", n)
	}
}

func TestKeysThatMatterToOthers(t *testing.T) {
	t.Parallel()
	for key, want := range map[string][2]bool{ // session, loss
		"sessions/c1": {true, false}, "hold/c1": {true, false}, "active": {true, false}, "nodes/c1": {true, false},
		"losses/c1": {false, true}, "commit/c1": {}, "sessions/c1/x": {}, "sessions/": {}, "claims/1": {}, "": {},
	} {
		if got := [2]bool{coord.IsSessionKey(key), coord.IsLossKey(key)}; got != want {
			t.Errorf("%q: %v, want %v", key, got, want)
		}
	}
}
