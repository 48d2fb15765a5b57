package coord

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// until lets the time of the bubble pass until something has happened.
func until(happened func() bool) {
	for synctest.Wait(); !happened(); synctest.Wait() {
		<-time.After(ms)
	}
}

func TestLifelineTellsFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, _, c2, w1 *testNode) {
		began := time.Now()
		f.die("c1", errRefused)
		synctest.Wait()
		if d := time.Since(began); d != 0 {
			t.Errorf("took %v: something waited for a timer", d)
		}
		for _, n := range []*testNode{c2, w1} {
			s := n.status("c1")
			if s.Evidence != "refused" || s.Dialed || s.Accepted {
				t.Errorf("%s: %+v, want refused and no connections", n.facts.node, s)
			}
			if !n.events.has("agreed c1 10") || !n.events.has("hello") {
				t.Errorf("%s: events are %v", n.facts.node, n.events)
			}
			wantAgreement(t, n, "c1", 10, "c2 w1")
		}
	})
}

// The kernel may still take connections, and reset them, a moment after it has ended
// the lifelines.
func TestPortClosesAfterLifeline(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, _, c2, w1 *testNode) {
		f.die("c1", syscall.ECONNRESET)
		dials := f.dialed("c1")
		until(func() bool { return f.dialed("c1") >= dials+4 })
		for _, n := range []*testNode{c2, w1} {
			if got := n.status("c1").Evidence; got != "" {
				t.Errorf("%s: evidence is %q while it is not known that it listens no more", n.facts.node, got)
			}
		}
		f.die("c1", errRefused)
		until(func() bool { return c2.events.has("agreed c1 10") && w1.events.has("agreed c1 10") })
		for _, n := range []*testNode{c2, w1} {
			wantAgreement(t, n, "c1", 10, "c2 w1")
		}
	})
}

// A lifeline that the network broke says nothing, and another takes its place.
func TestLifelineAloneProvesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, c1, c2, w1 *testNode) {
		for range 3 {
			if n := f.dropLifelines("c1"); n != 4 {
				t.Errorf("c1 has %d ends of lifelines, want one of each kind with both others", n)
			}
			synctest.Wait()
			for _, n := range []*testNode{c2, w1} {
				if s := n.status("c1"); s.Evidence != "" || !s.Dialed || !s.Accepted {
					t.Errorf("%s takes the end of a lifeline for a death: %+v", n.facts.node, s)
				}
			}
			if err := c1.Check(); err != nil {
				t.Error(err)
			}
			<-time.After(2 * refusalPause) // of the bubble: they are opened again
		}
		f.die("c1", errRefused)
		synctest.Wait()
		wantAgreement(t, c2, "c1", 10, "c2 w1")
	})
}

// A firewall may refuse connections to a node and leave those alone that the node opens.
func TestLifelineOfWhoCannotBeDialed(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, c1, c2, w1 *testNode) {
		f.refuse("c1", errRefused)
		f.dropDialed("c1")
		synctest.Wait()
		f.dropLifelines("c1")
		synctest.Wait()
		for _, n := range []*testNode{c2, w1} {
			if s := n.status("c1"); s.Dialed || !s.Accepted {
				t.Errorf("%s: %+v, want what c1 dialed and nothing else", n.facts.node, s)
			}
			if n.events.has("evidence c1 10 refused") || n.events.has("agreed c1 10") {
				t.Errorf("%s takes who cannot be dialed for dead: events are %v", n.facts.node, n.events)
			}
		}
		if err := c1.Check(); err != nil {
			t.Error(err)
		}
	})
}

// Who takes no lifelines, as a member of an older version, is not asked for one all
// the time, but asked again.
func TestNoLifelineIsTriedSeldom(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, _, _, _ *testNode) {
		f.refuse(lifelineOf("c1"), errors.New("no such class"))
		f.dropLifelines("c1")
		before := f.dialed(lifelineOf("c1"))
		<-time.After(5 * time.Minute) // of the bubble
		if n := f.dialed(lifelineOf("c1")) - before; n > 40 {
			t.Errorf("two members dialed %d times in five minutes", n)
		}
		f.refuse(lifelineOf("c1"), nil)
		before = f.dialed(lifelineOf("c1"))
		until(func() bool { return f.dialed(lifelineOf("c1")) == before+2 })
		if n := f.dropLifelines("c1"); n != 4 {
			t.Errorf("c1 has %d ends of lifelines, want one of each kind with both others", n)
		}
	})
}

// A process may have had two lifelines, of which one was broken, and both end.
func TestLifelineTellsOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, _, c2, _ *testNode) {
		f.die("c1", errRefused)
		synctest.Wait()
		c2.events.clear()
		c2.ceased(c2.peers["c1"], "r1", time.Now())
		if c2.events.has("hello") {
			t.Error("c2 took leave of c1 twice")
		}
		wantAgreement(t, c2, "c1", 10, "c2 w1")
	})
}

func TestLifelineRefused(t *testing.T) {
	at := time.Now()
	for name, test := range map[string]struct {
		run     string
		links   int
		started time.Time
		want    evidence
	}{
		"the session's process":                   {"r1", 0, at, evRefused},
		"another process than the session's":      {"r0", 0, at, 0},
		"there is a connection again":             {"r1", 1, at, 0},
		"the dial is older than what is known of": {"r1", 0, at.Add(-time.Second), 0},
	} {
		o := &observed{watcher: &watcher{timing: testTiming, started: at}, writeAge: -1}
		o.session(at, 10, "r1")
		o.linkUp("r1", 10, true)
		o.links = test.links
		o.lifelineRefused(test.run, test.started)
		if got := o.evidence(at, own{}); got != test.want {
			t.Errorf("%s: evidence %q, want %q", name, got, test.want)
		}
	}
}
