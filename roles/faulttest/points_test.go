package faulttest

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestCrashPoints kills nodes at every point that they can be brought to, while work
// goes on: before and after each thing that is stored or sent. Points that only a
// first start comes to are in TestFirstStart, those of a new generation in
// TestLossOfQuorum. Without UAC_FAULT_POINTS=all every third
// is tried, another third on another day.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	c := startDev(t, "--set", "cluster.silence_timeout="+silence.String())
	c.apply(chain("0.1"))
	for _, agent := range c.names("agent") {
		c.apply(stubborn(agent))
	}
	c.healthy()
	all := c.targets()
	third := time.Now().YearDay() % 3
	tried := 0
	for _, who := range []struct {
		target target
		by     []stimulus // what can bring it anywhere
		not    string     // beginnings of points that it does not come to
	}{
		{all[0], []stimulus{byWork, byStart, byCancel, byVacancy}, ""},
		{all[1], []stimulus{byLoss}, "vote-"}, // it decides, the watch votes
		{all[3], []stimulus{byWork, byStart, byLoss}, "loss-"},
		{all[4], []stimulus{byWork, byCancel, byLoss}, ""},
	} {
		for i, point := range c.points(who.target.pick(c, 0)) {
			if !slices.Contains(who.by, stimulusOf(point)) || who.not != "" && strings.HasPrefix(point, who.not) {
				continue
			}
			if os.Getenv("UAC_FAULT_POINTS") != "all" && i%3 != third {
				continue
			}
			tried++
			// Whether it comes there may depend on who is quicker.
			missed := c.crashAt(who.target, point)
			for again := 0; missed != nil && again < 4; again++ {
				missed = c.crashAt(who.target, point)
			}
			if missed != nil {
				t.Error(missed)
			}
		}
	}
	c.healthy()
	h := c.settled()
	for id, r := range h.Final {
		if want := map[bool]string{true: "cancelled", false: "succeeded"}[strings.HasPrefix(r.Process, "stubborn")]; r.Status != want {
			t.Errorf("%s of %s is %s, want it %s: %s", id, r.Process, r.Status, want, r.where())
		}
	}
	c.note("%d points, %d requests", tried, len(h.Final))
}

// crashAt kills a node at a point while work goes on, and starts it again. An error
// means that the node did not come there.
func (c *Cluster) crashAt(t target, point string) error {
	c.t.Helper()
	c.healthy()
	begin := c.mark()
	f := &crash{what: "crash " + t.name, visit: 1, node: t.pick(c, 0), point: point, patient: true}
	stop := c.load(3)
	missed := f.Inject(c)
	c.note("%s: %v", f.Name(), cmp.Or(missed, errors.New("done")))
	if err := f.Heal(c); err != nil {
		c.t.Fatal(err)
	}
	stop()
	c.started(begin, 3, "")
	return missed
}

// TestFirstStart forms a cluster of which one member comes late and another one dies
// on its way, just when it has written down whom the cluster is made of. Nothing is
// decided without them, and nobody is forgotten.
func TestFirstStart(t *testing.T) {
	t.Parallel()
	c, _ := startNetwork(t, networkOptions{late: []string{"c2", "w1"}})
	c.await("c1 says for whom it waits", func() string {
		a, err := c.clients["c1"].call(t.Context(), http.MethodGet, "/readyz", "", nil)
		if err != nil {
			return err.Error()
		}
		if !strings.Contains(a.Body, "c2") || !strings.Contains(a.Body, "w1") || a.Status != http.StatusServiceUnavailable {
			return a.String()
		}
		return ""
	})
	for _, point := range []string{"origin-writing", "origin-written"} {
		c.arm("c2", point, 1)
		c.start("c2")
		if point == "origin-writing" {
			for until := time.Now().Add(2 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
				if mode := c.probe("c1"); mode != "OFFLINE" && mode != "" { // a busy machine may answer late
					t.Fatalf("the watch is not there yet, and c1 answers %s", mode)
				}
			}
			c.start("w1")
		}
		c.await("c2 has died at "+point, func() string {
			if !c.hit("c2") || c.node("c2").PID != 0 {
				return "it lives"
			}
			return ""
		})
	}
	c.start("c2")
	c.healthy()
	c.apply(chain("0"))
	c.submit("chain", 3)
	c.settled().succeeded(t)
}

// TestRollingRestart restarts one node after the other, as an upgrade does, while
// clients work.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.1"))
	c.healthy()
	stop := c.load(4)
	for _, n := range c.run.nodes() {
		begin := c.mark()
		if err := c.terminate(n.Name); err != nil {
			t.Fatal(err)
		}
		c.start(n.Name)
		c.healthy()
		c.started(begin, 3, "")
	}
	runs := stop()
	if runs < minimum {
		t.Errorf("only %d requests were run meanwhile: this proves little", runs)
	}
	c.settled().succeeded(t)
}

// TestFaultsThatDoNothing: a fault of which nothing is seen does not count.
func TestFaultsThatDoNothing(t *testing.T) {
	t.Parallel()
	c, network := startNetwork(t, networkOptions{})
	table := ""
	for _, f := range []Fault{
		&fault{
			name:   "cut between nodes that have nothing to say to each other",
			inject: func(*Cluster) (err error) { table, err = network.drop(both("a1", "a2"), 0, 100); return err },
			heal:   func(*Cluster) error { return network.undrop(table) },
		},
		killWrappers().Make(nil), // no step runs
		&crash{what: "a point that nobody comes to", node: "a1", point: "nowhere", visit: 1},
	} {
		err := f.Inject(c)
		if err == nil {
			err = f.Heal(c)
		}
		if !errors.Is(err, errNotInjected) {
			t.Errorf("%s: %v, want %v", f.Name(), err, errNotInjected)
		}
	}
	// What is done to a node that another fault has killed already.
	c.kill("a1", "a2")
	for _, k := range processKinds(target{name: "an agent", role: "agent", pick: func(*Cluster, int) string { return "a1" }}) {
		if k.Name == "crash point" {
			continue // it starts what it kills
		}
		f := k.Make(rand.New(rand.NewPCG(1, 1)))
		if err := f.Inject(c); !errors.Is(err, errNotInjected) {
			t.Errorf("%s, which does not run: %v, want %v", f.Name(), err, errNotInjected)
		}
	}
}
