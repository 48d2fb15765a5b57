package coord_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/coord"
	"uac/coord/coordtest"
)

func soonAlone(c *coord.Config) { c.AloneAfter = 1100 * time.Millisecond }

func awaitQuorumLost(t *testing.T, m *coord.Member, least time.Duration) {
	t.Helper()
	until(t, "loss of quorum", func() bool { return m.QuorumLost() >= least })
}

var order = coord.AloneOrder{Lost: []string{"w1", "c2"}, By: "me", Why: "fire"}

func TestContinueAlone(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1, soonAlone)
	m := c.Node("c1").Member
	s := c.Node("c1").Session()
	mustCommit(t, s, put("x", "1"))
	prefer(t, s, "c1")
	if err := m.ContinueAlone(order); !errors.Is(err, coord.ErrHasQuorum) {
		t.Errorf("with a majority: %v", err)
	}
	if err := c.Node("w1").Member.ContinueAlone(order); err == nil {
		t.Error("a watch continues alone")
	}
	c.Kill("c2", "w1")
	late := make(chan error, 1)
	go func() {
		_, err := s.Commit(context.WithoutCancel(t.Context()), put("late", ""))
		late <- err
	}()
	until(t, "loss of quorum is noticed", func() bool { return m.QuorumLost() > 0 })
	if err := m.ContinueAlone(order); !errors.Is(err, coord.ErrHasQuorum) || !strings.Contains(err.Error(), "1.1s") {
		t.Errorf("too early: %v", err)
	}
	awaitQuorumLost(t, m, 1100*time.Millisecond)
	for _, lost := range [][]string{{"c2", "w1", "c3"}, {"c2", "c3"}, {"c3"}} {
		err := m.ContinueAlone(coord.AloneOrder{Lost: lost})
		if !errors.Is(err, coord.ErrNoSuchNode) || !strings.HasSuffix(err.Error(), ": c3; the other members are c2 w1") {
			t.Errorf("%v named: %v", lost, err)
		}
	}
	for _, lost := range [][]string{nil, {"c2"}, {"c2", "w1", "c1"}, {"c2", "c2"}} {
		if err := m.ContinueAlone(coord.AloneOrder{Lost: lost}); !errors.Is(err, coord.ErrNotAllNamed) || !strings.Contains(err.Error(), "c2 w1") {
			t.Errorf("%v named: %v", lost, err)
		}
	}
	if n, id := m.Generation(); n != 1 || id != "" {
		t.Errorf("generation %d %q before", n, id)
	}

	// Two operators at once: one of them begins one generation.
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() { errs[i] = m.ContinueAlone(order) })
	}
	wg.Wait()
	accepted := 0
	for _, err := range errs {
		if err == nil {
			accepted++
		}
	}
	if accepted != 1 {
		t.Errorf("%d of %v accepted", accepted, errs)
	}
	if err := <-late; !errors.Is(err, coord.ErrFenced) {
		t.Errorf("commit of the old generation: %v", err)
	}
	next := c.Node("c1").SessionAfter(s.Epoch())
	awaitActive(c, "c1", "c1")
	snap := m.View().Snapshot()
	n, id := m.Generation()
	if n != 2 || id == "" {
		t.Errorf("generation %d %q after", n, id)
	}
	rec := value[coord.NodeRecord](snap, "nodes/c1")
	if !rec.Paused || !rec.Preferred || has(snap, "sessions/c2") || has(snap, "sessions/w1") || !has(snap, "generation") || !has(snap, "x") {
		t.Errorf("%+v; sessions, generation or data are not as they should be", rec)
	}
	if got := value[coord.LossRecord](snap, "losses/c2"); !strings.Contains(got.Evidence, "fire") {
		t.Errorf("%+v", got)
	}
	if diff := cmp.Diff([]string{"c1"}, m.Voters()); diff != "" {
		t.Error(diff)
	}
	if err := m.ContinueAlone(order); !errors.Is(err, coord.ErrHasQuorum) {
		t.Errorf("and once again: %v", err)
	}

	// It stays so after a restart, and the old generation is over for the others.
	c.Kill("c1")
	c.Run("c1").SessionAfter(next.Epoch())
	if n, again := c.Node("c1").Member.Generation(); n != 2 || again != id {
		t.Errorf("generation %d %q after a restart, want 2 %q", n, again, id)
	}
	for _, name := range []string{"c2", "w1"} {
		wantReplace(t, c.Run(name), "generation 2", "leave it stopped")
	}
}

// The survivor itself was restarted while there was no majority, and again just
// after the order.
func TestContinueAloneAfterRestart(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1, soonAlone)
	s := c.Node("c1").Session()
	mustCommit(t, s, put("x", "1"))
	c.Kill(c.Names()...)
	n := c.Run("c1")
	awaitQuorumLost(t, n.Member, 1100*time.Millisecond)
	if err := n.Member.ContinueAlone(order); err != nil {
		t.Fatal(err)
	}
	c.Kill("c1")
	n = c.Run("c1")
	n.SessionAfter(s.Epoch())
	awaitActive(c, "c1", "c1")
	snap := n.Member.View().Snapshot()
	if g, _ := n.Member.Generation(); g != 2 || !has(snap, "x") || has(snap, "sessions/c2") || !value[coord.NodeRecord](snap, "nodes/c1").Paused {
		t.Error("the generation did not begin as ordered")
	}
}

func TestContinueAloneInPlace(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1, soonAlone)
	s := c.Node("c1").Session()
	c.Kill(c.Names()...)
	n := c.Run("c1") // has no session when the order comes
	awaitQuorumLost(t, n.Member, 1100*time.Millisecond)
	if err := n.Member.ContinueAlone(order); err != nil {
		t.Fatal(err)
	}
	n.SessionAfter(s.Epoch())
	awaitActive(c, "c1", "c1")
}

func TestNotAloneWhileOthersAnswer(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1, soonAlone)
	m := c.Node("c1").Member
	cutRaft(c, "c1", true) // raft is broken, the nodes are not
	awaitQuorumLost(t, m, 1100*time.Millisecond)
	if err := m.ContinueAlone(order); !errors.Is(err, coord.ErrNotAllNamed) || !strings.Contains(err.Error(), "answers this node") {
		t.Errorf("got %v", err)
	}
	cutRaft(c, "c1", false)
	until(t, "quorum", func() bool { return m.QuorumLost() == 0 })
}

// A member of the old generation that meets the new one stops, also while it
// runs.
func TestOldGenerationStops(t *testing.T) {
	t.Parallel()
	c := coordtest.New(t, coordtest.Options{Controllers: 2, Watches: 1, Sessions: true, Change: func(c *coord.Config) {
		quick(c)
		soonAlone(c)
	}})
	for _, name := range c.Names() {
		c.Run(name)
	}
	s := c.Node("c1").Session()
	c.Node("c2").Session()
	c.Node("w1").Session()
	isolate(c, "c1", true) // it is c1 that is cut off: the others go on
	awaitActive(c, "w1", "c2")
	m := c.Node("c1").Member
	awaitQuorumLost(t, m, 1100*time.Millisecond)
	until(t, "c1 hears of nobody", func() bool { return !errors.Is(m.ContinueAlone(order), coord.ErrNotAllNamed) })
	c.Node("c1").SessionAfter(s.Epoch())
	c2, w1 := c.Node("c2"), c.Node("w1")
	c.Heal("c1", "c2")
	c.Heal("c1", "w1")
	wantReplace(t, c2, "generation", "leave it stopped")
	wantReplace(t, w1, "generation", "leave it stopped")
}
