package coord

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestChooseSuccessor(t *testing.T) {
	c := func(name string, change ...func(*candidate)) candidate {
		cand := candidate{Name: name, Role: RoleController, Epoch: 5}
		for _, f := range change {
			f(&cand)
		}
		return cand
	}
	watch := func(c *candidate) { c.Role = RoleWatch }
	gone := func(c *candidate) { c.Epoch = 0 }
	paused := func(c *candidate) { c.Paused = true }
	preferred := func(c *candidate) { c.Preferred = true }
	suspected := func(c *candidate) { c.Suspected = true }
	tests := []struct {
		name  string
		cands []candidate
		want  string
	}{
		{"nobody", nil, ""},
		{"only a watch", []candidate{c("w1", watch, preferred)}, ""},
		{"without a session", []candidate{c("c2", gone)}, ""},
		{"under evidence", []candidate{c("c2", suspected, preferred)}, ""},
		{"one controller", []candidate{c("w1", watch), c("c2")}, "c2"},
		{"preferred first", []candidate{c("c2"), c("c3", preferred), c("c4")}, "c3"},
		{"preferred under evidence", []candidate{c("c2"), c("c3", preferred, suspected)}, "c2"},
		{"preferred but paused", []candidate{c("c2"), c("c3", preferred, paused)}, "c2"},
		{"paused last", []candidate{c("c2", paused), c("c3")}, "c3"},
		{"only paused", []candidate{c("c2", paused)}, "c2"},
		{"paused, one preferred", []candidate{c("c2", paused), c("c3", paused, preferred), c("c4", paused)}, "c3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := chooseSuccessor(tt.cands, 7)
			if got.Name != tt.want && ok || ok != (tt.want != "") {
				t.Errorf("successor is %q (%v), want %q", got.Name, ok, tt.want)
			}
		})
	}
}

func TestSuccessorIsTheSameForAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var cands []candidate
		for i := range rapid.IntRange(1, 7).Draw(t, "n") {
			cands = append(cands, candidate{
				Name: fmt.Sprintf("c%d", i), Role: RoleController, Epoch: int64(i + 1),
				Paused: rapid.Bool().Draw(t, "paused"), Preferred: rapid.Bool().Draw(t, "preferred"),
			})
		}
		epoch := rapid.Int64Min(1).Draw(t, "epoch")
		want, _ := chooseSuccessor(cands, epoch)
		if got, _ := chooseSuccessor(rapid.Permutation(cands).Draw(t, "order"), epoch); got != want {
			t.Fatalf("%v or %v, depending on the order", got, want)
		}
	})
}

func TestRendezvous(t *testing.T) {
	if got := rendezvous("k", nil); got != "" {
		t.Errorf("no names: %q", got)
	}
	names := []string{"c1", "c2", "c3"}
	counts := map[string]int{}
	for i := range 3000 {
		key := fmt.Sprint(i)
		owner := rendezvous(key, names)
		counts[owner]++
		for _, gone := range names {
			left := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == gone })
			if moved := rendezvous(key, left); gone != owner && moved != owner {
				t.Fatalf("key %s moved from %s to %s when %s went away", key, owner, moved, gone)
			}
		}
	}
	for _, n := range names {
		if counts[n] < 850 || counts[n] > 1150 {
			t.Errorf("%s owns %d of 3000 keys", n, counts[n])
		}
	}
}

// Members of different versions must agree, so the hash may never change.
func TestRendezvousIsFixed(t *testing.T) {
	names := []string{"c1", "c2", "c3", "c4"}
	got := ""
	for i := range 16 {
		got += rendezvous(fmt.Sprint(i), names) + " "
	}
	if want := "c3 c1 c1 c3 c4 c3 c1 c2 c4 c2 c3 c3 c3 c3 c4 c1 "; got != want {
		t.Errorf("owners of keys 0 to 15 are\n%s, want\n%s", got, want)
	}
}
