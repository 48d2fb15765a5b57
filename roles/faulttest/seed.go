package faulttest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// roundsOfSeed is how often something goes wrong in a seed.
const roundsOfSeed = 8

// event is a fault with the time for which it lasts.
type event struct {
	Fault
	kind Kind
	hold time.Duration
}

// round is what goes wrong together, and whether the cluster may recover from it
// before the next round.
type round struct {
	events []event
	rest   bool
}

// plan draws what a seed does. It depends on the seed and on the kinds of faults that
// there are, and on nothing that happens.
func plan(chance *rand.Rand, kinds []Kind) (all []round) {
	for range roundsOfSeed {
		first := draw(chance, kinds)
		r := round{events: []event{first}, rest: chance.IntN(2) == 0}
		if second := draw(chance, kinds); chance.IntN(3) == 0 && first.kind.bears(second.kind) {
			r.events = append(r.events, second)
		}
		all = append(all, r)
	}
	return all
}

// draw draws one fault: each kind by name is as likely as any other, however many
// variants it has.
func draw(chance *rand.Rand, kinds []Kind) event {
	names := slices.Sorted(maps.Keys(byName(kinds)))
	variants := byName(kinds)[names[chance.IntN(len(names))]]
	k := variants[chance.IntN(len(variants))]
	return event{Fault: k.Make(chance), kind: k, hold: k.Holds[chance.IntN(len(k.Holds))]}
}

func byName(kinds []Kind) map[string][]Kind {
	all := map[string][]Kind{}
	for _, k := range kinds {
		all[k.Name] = append(all[k.Name], k)
	}
	return all
}

// bears reports whether the cluster bears this fault and another at a time.
func (k Kind) bears(other Kind) bool {
	return k.Name != other.Name && !(k.Takes && other.Takes) && !k.Alone && !other.Alone
}

// seedRun is one seed on a cluster that may have seen others before.
type seedRun struct {
	*Cluster
	seed uint64
	sum  *tally
	// injected are the faults that really happened, by kind.
	injected map[string]int
}

// minimum is how much work must be done beside the faults of a seed for the seed to
// prove anything.
const minimum = 10

// runSeed lets clients work while one thing after the other goes wrong, and then holds
// all that was recorded against the promises. What is wrong with the run itself is
// told apart: it proves nothing.
func (c *Cluster) runSeed(t *testing.T, seed uint64, sum *tally) {
	c.t = t // the seeds of a cluster follow each other
	r := &seedRun{Cluster: c, seed: seed, sum: sum, injected: map[string]int{}}
	violations := 0
	sum.seeds++
	defer func() {
		sum.violations += violations
		if t.Failed() && violations == 0 {
			sum.invalid++
			t.Error("INVALID: this run proves nothing")
		}
		for kind, n := range r.injected {
			sum.injected[kind] += n
		}
	}()
	c.note("SEED=%d", seed)
	c.healthy()
	before := c.history()
	begin := c.mark()
	stop := c.load(6)
	c.started(begin, 3, "") // work flows before anything goes wrong
	for _, round := range plan(rand.New(rand.NewPCG(seed, 0)), c.Kinds()) {
		r.play(round)
	}
	c.healthy()
	runs := stop()
	last := c.submit("chain", 1)[0] // the cluster works at the end
	h := c.collect()
	sum.requests += len(h.Final) - len(before.Final)
	sum.calls += len(h.Calls) - len(before.Calls)
	for _, call := range h.Calls[len(before.Calls):] {
		if call.Outcome == OutcomeUnknown {
			sum.unknownCalls++
		}
	}
	if err := h.Validate(); err != nil {
		violations = len(strings.Split(err.Error(), "BROKEN PROMISE")) - 1
		t.Error(err)
		return
	}
	violations = r.wentWell(before, h)
	switch {
	case runs < minimum:
		t.Errorf("INVALID: only %d requests were run", runs)
	case len(r.injected) == 0:
		t.Error("INVALID: no fault was seen to happen")
	case h.Final[last].Status != "succeeded":
		t.Errorf("INVALID: the last request is %s", h.Final[last].Status)
	}
}

// play lets the faults of one round happen and ends them.
func (r *seedRun) play(round round) {
	var wrong []event
	happened := map[string]bool{} // by kind; those of a round differ
	missed := func(e event, err error) bool {
		if err == nil {
			return false
		}
		if !errors.Is(err, errNotInjected) {
			r.t.Fatalf("%s: %v", e.Name(), err)
		}
		r.note("not met: %s: %v", e.Name(), err)
		r.sum.missed[e.kind.Name]++
		return true
	}
	for _, e := range round.events {
		if !missed(e, e.Inject(r.Cluster)) {
			happened[e.kind.Name] = true
			r.note("%s for %v", e.Name(), e.hold)
			time.Sleep(e.hold)
		}
		if happened[e.kind.Name] || e.kind.HealAlways {
			wrong = append(wrong, e)
		}
	}
	for _, e := range wrong {
		if !missed(e, e.Heal(r.Cluster)) && happened[e.kind.Name] {
			r.injected[e.kind.Name]++
		}
	}
	r.note("healed")
	if round.rest {
		r.healthy()
	} else {
		// A member that was away is back before the next one goes, but maybe not for
		// long: more would be too many for a majority.
		r.await("a majority is there", r.unready)
	}
}

// wentWell looks at the requests of this seed. If nothing was done to steps or disks,
// no fault may show in the end: those that were to be cancelled are, and all others
// have succeeded.
func (r *seedRun) wentWell(before, h History) (wrong int) {
	if r.injected["kill wrapper"]+r.injected["disk full"] > 0 {
		return 0
	}
	for id, req := range h.Final {
		if _, old := before.Final[id]; old {
			continue
		}
		want := "succeeded"
		if strings.HasPrefix(req.Process, "stubborn") {
			want = "cancelled"
		}
		if req.Status != want {
			r.t.Errorf("no step and no disk was touched, and %s of %s is %s, want it %s: %s", id, req.Process, req.Status, want, req.where())
			wrong++
		}
	}
	return wrong
}

// sortedKeys returns the keys of maps in order, each once.
func sortedKeys(maps1 ...map[string]int) (keys []string) {
	for _, m := range maps1 {
		for k := range m {
			if !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// startForSeeds starts a cluster with all that faults can need here: in namespaces
// with disks of their own as root, else on the loopback network.
func startForSeeds(t testing.TB) *Cluster {
	t.Helper()
	var c *Cluster
	if why := noNetwork(t); why == "" {
		opts := networkOptions{relays: true, set: []string{fmt.Sprintf("silence_timeout: %v", silence)}}
		if why := noDisks(t); why == "" {
			opts.disks, opts.share = []string{"c2", "a1"}, true
		} else {
			fmt.Fprintf(os.Stderr, "SKIPPED: %s: faults of disks and mounts: %s\n", t.Name(), why)
		}
		c, _ = startNetwork(t, opts)
	} else {
		fmt.Fprintf(os.Stderr, "SKIPPED: %s: faults of networks, disks and mounts: %s\n", t.Name(), why)
		c = startDev(t, "--relays", "2", "--set", fmt.Sprintf("cluster.silence_timeout=%v", silence))
	}
	c.apply(chain("0.1"))
	c.apply(single("0"))
	for _, agent := range c.names("agent") {
		c.apply(stubborn(agent))
	}
	return c
}
