package coord

import (
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestKillIsKnownAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, c *cluster, c1, c2, w1 *testNode) {
		began := time.Now()
		c1.kill(t, f)
		c1.gone()
		synctest.Wait()
		if d := time.Since(began); d != 0 {
			t.Errorf("took %v: something waited for a timer", d)
		}
		for _, n := range []*testNode{c2, w1} {
			if got := n.status("c1").Evidence; got != "refused" {
				t.Errorf("%s: evidence is %q, want refused", n.facts.node, got)
			}
			if !n.events.has("evidence c1 10 refused") || !n.events.has("agreed c1 10") {
				t.Errorf("%s: events are %v", n.facts.node, n.events)
			}
			wantAgreement(t, n, "c1", 10, "c2 w1")
			wantAgreement(t, n, "c1", 9, "")
		}
		if !c2.events.has("voted w1 c1 10") || !w1.events.has("voted c2 c1 10") {
			t.Errorf("votes not reported: %v, %v", c2.events, w1.events)
		}
		// It lasts as long as the session does.
		time.Sleep(time.Minute)
		wantAgreement(t, c2, "c1", 10, "c2 w1")
		c.session("c1", 0, "")
		c2.Refresh()
		wantAgreement(t, c2, "c1", 10, "")
		if c2.Suspected("c1", 10) {
			t.Error("suspected without a session")
		}
	})
}

func TestUnpluggedIsSilent(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, c1, c2, w1 *testNode) {
		f.unplug("c1")
		time.Sleep(799 * ms)
		if c2.Suspected("c1", 10) {
			t.Error("suspected too early")
		}
		time.Sleep(2 * ms) // the last pulse may have come just before the cut
		if err := c1.Check(); !errors.Is(err, ErrNoTrust) {
			t.Errorf("c1 still trusts itself: %v", err)
		}
		time.Sleep(200 * ms)
		synctest.Wait()
		for _, n := range []*testNode{c2, w1} {
			if got := n.status("c1").Evidence; got != "silence" {
				t.Errorf("%s: evidence is %q, want silence", n.facts.node, got)
			}
			wantAgreement(t, n, "c1", 10, "c2 w1")
		}
		// It suspects all others, and nobody agrees.
		if !c1.Suspected("c2", 20) || !c1.Suspected("w1", 30) {
			t.Error("c1 hears nobody and suspects nobody")
		}
		wantAgreement(t, c1, "c2", 20, "")
		if err := c2.Check(); err != nil {
			t.Errorf("c2 and w1 are a majority: %v", err)
		}

		f.plug("c1")
		time.Sleep(time.Second)
		synctest.Wait()
		for _, n := range []*testNode{c2, w1} {
			wantAgreement(t, n, "c1", 10, "")
			if got := n.status("c1").Evidence; got != "" {
				t.Errorf("%s: evidence is still %q", n.facts.node, got)
			}
		}
		if err := c1.Check(); err != nil {
			t.Errorf("c1 is back: %v", err)
		}
	})
}

// Whoever is about to commit a loss, and whoever voted for it, gives the suspect
// no reason to trust itself before that attempt has ended.
func TestNoTrustWhileTheLossIsOnItsWay(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, c1, c2, w1 *testNode) {
		f.unplug("c1")
		time.Sleep(1500 * ms)
		synctest.Wait()
		wantAgreement(t, c2, "c1", 10, "c2 w1") // and c2 sends its transaction
		f.plug("c1")
		for began := time.Now(); time.Since(began) < lossAttempt; time.Sleep(ms) {
			if err := c1.Check(); err == nil {
				t.Fatalf("c1 trusts itself %v after the transaction was sent", time.Since(began))
			}
		}
		if !c2.status("c1").Accepted || !w1.status("c1").Accepted {
			t.Error("c1 is not back: nothing was tested")
		}
		time.Sleep(withholdFor)
		synctest.Wait()
		if err := c1.Check(); err != nil {
			t.Errorf("c1 was not declared lost and is back: %v", err)
		}
	})
}

// A member whose writes stand still does not act; that is no silence, and it may
// recover at any time.
func TestNoTrustFromThoseThatAgreedToAStall(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fabric, _ *cluster, c1, c2, w1 *testNode) {
		c1.facts.set(func(f *testFacts) { f.stuck = time.Now() })
		time.Sleep(testTiming.stall + 200*ms)
		synctest.Wait()
		wantAgreement(t, c2, "c1", 10, "c2 w1")
		for name, n := range map[string]*testNode{"c2": c2, "w1": w1} {
			n.lock()
			if p := n.peers["c1"]; !p.seen.withholds(time.Now(), "r1") {
				t.Errorf("%s goes on echoing what it declares lost", name)
			}
			n.unlock()
		}
	})
}

func TestQuickRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, c *cluster, c1, c2, _ *testNode) {
		// Nobody finds the port closed: the new process listens at once.
		l := f.listen("c1")
		defer l.Close()
		c1.end(t)
		c1.gone()
		next := startNode(t, f, c, "c1", "r9")
		synctest.Wait()
		time.Sleep(100 * ms)
		if got := c2.status("c1").Evidence; got != "new run" {
			t.Errorf("evidence is %q, want new run", got)
		}
		wantAgreement(t, c2, "c1", 10, "c2 w1")
		if err := next.Check(); !errors.Is(err, ErrNoTrust) {
			t.Errorf("trust without a session: %v", err)
		}

		// Its session: c2's view shows it, w1's does not yet (same view here, so
		// told to c2 only), and its own trust needs no more than c2.
		time.Sleep(time.Second)
		c.session("c1", 40, "r9")
		c2.Refresh()
		synctest.Wait()
		if err := next.Check(); err != nil {
			t.Errorf("no trust although one voter knows the new session: %v", err)
		}
		if !c2.status("c1").Acting {
			t.Error("the others were not told at once that it acts")
		}
		wantAgreement(t, c2, "c1", 10, "")
		if c2.Suspected("c1", 40) {
			t.Error("the new session is suspected")
		}
		next.end(t)
	})
}

func TestFencedNodeHearsOfItAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fabric, c *cluster, c1, c2, _ *testNode) {
		began := time.Now()
		c1.facts.set(func(f *testFacts) { f.holds = 10 }) // its own view is behind
		c.session("c1", 0, "")
		c2.Refresh()
		synctest.Wait()
		if err := c1.Check(); err == nil || !strings.Contains(err.Error(), "session 10 is over, says ") {
			t.Errorf("c1 says %v", err)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("took %v: something waited for a timer", d)
		}
	})
}

func TestStalledWrites(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fabric, _ *cluster, c1, c2, w1 *testNode) {
		c1.facts.set(func(f *testFacts) { f.stuck = time.Now() })
		time.Sleep(2400 * ms)
		if err := c1.Check(); err == nil {
			t.Error("trust with a write age of 4/5 of the stall timeout")
		}
		time.Sleep(500 * ms)
		if got := c2.status("c1").Evidence; got != "not acting" {
			t.Errorf("evidence is %q, want not acting", got)
		}
		time.Sleep(500 * ms)
		if got := c2.status("c1").Evidence; !strings.Contains(got, "stalled") {
			t.Errorf("evidence is %q, want stalled", got)
		}
		wantAgreement(t, w1, "c1", 10, "c2 w1")
		c1.facts.set(func(f *testFacts) { f.stuck = time.Time{} })
		time.Sleep(withholdFor + testTiming.silence)
		if got := c2.status("c1"); got.Evidence != "" || !got.Acting {
			t.Errorf("after its writes flow again: %+v", got)
		}
		wantAgreement(t, w1, "c1", 10, "")
	})
}

func TestStandstillOfAllIsNoEvidence(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fabric, _ *cluster, c1, c2, w1 *testNode) {
		all := []*testNode{c1, c2, w1}
		for _, n := range all {
			n.facts.set(func(f *testFacts) { f.stuck = time.Now() })
		}
		time.Sleep(10 * time.Second)
		// c2 is first to write again, by more than three pulses.
		c2.facts.set(func(f *testFacts) { f.stuck, f.began = time.Time{}, time.Now() })
		time.Sleep(500 * ms)
		for _, n := range all {
			for _, p := range n.Snapshot() {
				if p.Evidence != "" {
					t.Errorf("%s: evidence against %s: %s", n.facts.node, p.Name, p.Evidence)
				}
			}
		}
	})
}

func TestAliveExpiredNeedsNoVotes(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, _, c2, _ *testNode) {
		// c2 is alone with its evidence: w1 does not answer it.
		f.unplug("w1")
		f.unplug("c1")
		time.Sleep(2 * time.Second)
		wantAgreement(t, c2, "c1", 10, "")
		c2.Alive("c1", 10, true)
		synctest.Wait()
		wantAgreement(t, c2, "c1", 10, "c2")
		if !c2.events.has("agreed c1 10") {
			t.Errorf("events are %v", c2.events)
		}
		c2.events.clear()
		time.Sleep(50 * ms)
		synctest.Wait()
		if !c2.events.has("agreed c1 10") {
			t.Errorf("said only once: events are %v", c2.events)
		}
		c2.Alive("c1", 10, false)
		wantAgreement(t, c2, "c1", 10, "")
	})
}

func TestTrustEndsWithTheConnections(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, c1, c2, _ *testNode) {
		// Echoes of just now do not help once the connections are gone.
		f.unplug("c1")
		f.drop("c1", "")
		synctest.Wait()
		err := c1.Check()
		if err == nil || !strings.Contains(err.Error(), "c2 is not connected; w1 is not connected") {
			t.Errorf("c1 says %v", err)
		}
		if err := c2.Check(); err != nil {
			t.Errorf("c2 still has w1: %v", err)
		}
		f.plug("c1")
		time.Sleep(time.Second)
		if err := c1.Check(); err != nil {
			t.Errorf("c1 is connected again: %v", err)
		}
	})
}

func TestBrokenConnectionsAloneAreNoEvidence(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, c1, c2, w1 *testNode) {
		for range 20 {
			f.drop("c1", "c2")
			synctest.Wait()
			time.Sleep(70 * ms)
		}
		if c2.events.has("evidence c1 10 refused") || c2.Suspected("c1", 10) {
			t.Errorf("events are %v", c2.events)
		}
		for _, n := range []*testNode{c1, c2, w1} {
			if err := n.Check(); err != nil {
				t.Errorf("%s: %v", n.facts.node, err)
			}
		}
	})
}

// Whatever moments they started at, members come to pulse together, so that they
// wake each other up once, and not more often than they must.
func TestPulsesTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fabric, _ *cluster, c1, c2, w1 *testNode) {
		nodes := []*testNode{c1, c2, w1}
		for _, n := range nodes {
			n.Nudge()
			time.Sleep(37 * ms)
		}
		time.Sleep(testTiming.silence)
		synctest.Wait()
		look := func() (next []time.Time, sent uint64) {
			for _, n := range nodes {
				n.mu.Lock()
				next = append(next, n.nextPulse)
				n.mu.Unlock()
			}
			c2.mu.Lock()
			defer c2.mu.Unlock()
			return next, c2.peers["c1"].in.seq
		}
		next, before := look()
		for i := range next {
			if !next[i].Equal(next[0]) {
				t.Errorf("%s pulses %v after %s", nodes[i].facts.node, next[i].Sub(next[0]), nodes[0].facts.node)
			}
		}
		time.Sleep(testTiming.silence)
		synctest.Wait()
		if _, after := look(); after-before != pulsesPerSilence {
			t.Errorf("%d pulses in a silence timeout, want %d", after-before, pulsesPerSilence)
		}
	})
}

func TestGenerations(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, c *cluster, c1, c2, w1 *testNode) {
		// c2 learns of a newer one: the others' pulses get no echo any more.
		c2.facts.set(func(f *testFacts) { f.generation = 3 })
		time.Sleep(time.Second)
		if !c1.events.has("newer c2 3") {
			t.Errorf("events of c1 are %v", c1.events)
		}
		if err := c2.Check(); err == nil {
			t.Error("c2 trusts echoes of an old generation")
		}
		// In a hello it is refused with the reason.
		f.drop("c1", "c2")
		time.Sleep(time.Second)
		if got := c1.status("c2"); got.Dialed || got.Accepted || !strings.Contains(got.Trouble, "generation 0 is over: this is generation 3") {
			t.Errorf("c1 sees %+v", got)
		}
		// An empty member does not know a generation and is welcome.
		w1.end(t)
		w1.gone()
		empty := startNode(t, f, c, "w1", "r8", func(f *testFacts) { f.generation = -1 })
		time.Sleep(2 * time.Second)
		if got := empty.status("c2"); !got.Dialed || !got.Accepted {
			t.Errorf("the empty member sees %+v", got)
		}
		if got := empty.status("c1"); !got.Dialed || !got.Accepted {
			t.Errorf("the empty member sees %+v", got)
		}
		empty.end(t)
	})
}

func TestHellos(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, c *cluster, c1, c2, _ *testNode) {
		if h := c2.Hellos()["c1"]; h.Incarnation != "i-c1" || h.Node != "c1" || h.Run != "r1" {
			t.Errorf("hello of c1 is %+v", h)
		}
		c1.kill(t, f)
		c1.gone()
		synctest.Wait()
		if _, ok := c2.Hellos()["c1"]; ok || !c2.events.has("hello") {
			t.Errorf("c1 is gone and still among the hellos; events %v", c2.events)
		}
		set := map[string]string{"c1": "x"}
		next := startNode(t, f, c, "c1", "r9", func(f *testFacts) {
			f.origin = origin{Incarnation: "new", Recorded: set, HasData: true}
		})
		time.Sleep(100 * ms)
		if h := c2.Hellos()["c1"]; h.Incarnation != "new" || !h.HasData || h.Recorded["c1"] != "x" {
			t.Errorf("hello of c1 is %+v", h)
		}
		next.end(t)
	})
}

func TestSingleMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{voters: []string{"c1"}, sessions: map[string]holding{"c1": {10, "r1"}}}
		n := startNode(t, newFabric(), c, "c1", "r1")
		synctest.Wait()
		if err := n.Check(); err != nil {
			t.Error(err)
		}
		if len(n.Snapshot()) != 0 || len(n.Hellos()) != 0 {
			t.Error("peers of a single member")
		}
		if _, ok := n.Agreement("c9", 1); ok || n.Suspected("c9", 1) {
			t.Error("a stranger is suspected")
		}
		n.end(t)
	})
}

func TestListenerFailureEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{voters: []string{"c1", "c2"}, sessions: map[string]holding{}}
		f := newFabric()
		n := startNode(t, f, c, "c1", "r1")
		synctest.Wait()
		_ = f.listeners["c1"].Close()
		if err := <-n.done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Run returned %v", err)
		}
		n.stop()
	})
}
