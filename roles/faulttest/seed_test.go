package faulttest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// seedsOfCluster is how many seeds share a cluster. More would be slower: all that is
// recorded is looked at after each of them.
const seedsOfCluster = 4

// seeds returns the seeds to be run: SEED=N for one, SEEDS=N for as many, HOURS=H for
// so long.
func seeds(t testing.TB) func(yield func(uint64) bool) {
	t.Helper()
	if text := os.Getenv("SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("SEED: %v", err)
		}
		return func(yield func(uint64) bool) { yield(seed) }
	}
	n := number(t, "SEEDS", 2)
	var until time.Time
	if text := os.Getenv("HOURS"); text != "" {
		hours, err := strconv.ParseFloat(text, 64)
		if err != nil || hours <= 0 {
			t.Fatalf("HOURS=%q is not a number above zero", text)
		}
		until = time.Now().Add(time.Duration(hours * float64(time.Hour)))
	}
	return func(yield func(uint64) bool) {
		for i := 0; ; i++ {
			if until.IsZero() && i >= n || !until.IsZero() && time.Now().After(until) || !yield(rand.Uint64N(1_000_000_000)) {
				return
			}
		}
	}
}

// TestFaults runs seeds: clients work, one fault after the other happens, and all
// promises hold. A seed repeats the order of faults, not what the machine makes of it.
func TestFaults(t *testing.T) {
	sum := &tally{began: time.Now(), injected: map[string]int{}, missed: map[string]int{}}
	defer func() { t.Logf("\n%s", sum) }()
	var batch []uint64
	play := func() {
		for len(batch) > 0 {
			t.Run("cluster", func(t *testing.T) {
				c := startForSeeds(t)
				for ok := true; ok && len(batch) > 0; batch = batch[1:] {
					seed := batch[0]
					ok = t.Run(fmt.Sprintf("SEED=%d", seed), func(t *testing.T) { c.runSeed(t, seed, sum) })
				}
			})
		}
	}
	for seed := range seeds(t) {
		if batch = append(batch, seed); len(batch) == seedsOfCluster {
			play()
		}
	}
	play()
}

// TestCheckAgain holds a history that was kept earlier against the promises.
func TestCheckAgain(t *testing.T) {
	path := os.Getenv("UAC_FAULT_CHECK")
	if path == "" {
		t.Skip("UAC_FAULT_CHECK names no history")
	}
	h, err := loadHistory(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Validate(); err != nil {
		t.Error(err)
	}
}

// A seed always makes the same plan.
func TestPlanIsThatOfTheSeed(t *testing.T) {
	c := &Cluster{run: allRoles{}, has: NeedNetwork | NeedDisk | NeedMount | NeedClock}
	text := func(seed uint64) (s string) {
		for _, r := range plan(rand.New(rand.NewPCG(seed, 0)), c.Kinds()) {
			for _, e := range r.events {
				s += fmt.Sprintln(e.Name(), e.hold, r.rest)
			}
		}
		return s
	}
	kinds := map[string]bool{}
	for seed := range uint64(200) {
		if a, b := text(seed), text(seed); a != b {
			t.Fatalf("seed %d made this:\n%s\nand this:\n%s", seed, a, b)
		}
		for _, r := range plan(rand.New(rand.NewPCG(seed, 0)), c.Kinds()) {
			for i, e := range r.events {
				kinds[e.kind.Name] = true
				if i > 0 && !r.events[0].kind.bears(e.kind) {
					t.Errorf("seed %d: %s and %s at a time", seed, r.events[0].Name(), e.Name())
				}
			}
		}
	}
	for _, k := range c.Kinds() {
		if !kinds[k.Name] {
			t.Errorf("200 seeds had no %s", k.Name)
		}
	}
	if text(1) == text(2) {
		t.Error("seeds 1 and 2 are the same")
	}
}

// allRoles is a cluster of which only the names are asked.
type allRoles struct{ runner }

func (allRoles) nodes() []node {
	return []node{{Name: "c1", Role: "controller"}, {Name: "c2", Role: "controller"}, {Name: "w1", Role: "watch"}, {Name: "r1", Role: "relay"}, {Name: "a1", Role: "agent"}}
}
