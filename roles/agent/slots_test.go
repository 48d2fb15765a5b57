package agent

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func (w *slot) had() bool {
	select {
	case <-w.ready:
		return true
	default:
		return false
	}
}

// Never more than allowed at a time, never a free slot while somebody waits, and always
// the first of those who wait.
func TestSlots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 3).Draw(t, "slots")
		s := newSlots(n)
		var all []*slot
		before := func(a, b *slot) bool {
			return a.priority > b.priority || a.priority == b.priority && a.order < b.order
		}
		for i := range rapid.IntRange(0, 30).Draw(t, "actions") {
			if len(all) > 0 && rapid.Bool().Draw(t, "leave") {
				j := rapid.IntRange(0, len(all)-1).Draw(t, "who")
				had := all[j].had()
				var waiting []*slot
				for _, w := range all {
					if !w.had() && w != all[j] {
						waiting = append(waiting, w)
					}
				}
				s.leave(all[j])
				all = slices.Delete(all, j, j+1)
				for _, w := range waiting {
					if w.had() && (!had || slices.ContainsFunc(waiting, func(o *slot) bool { return before(o, w) })) {
						t.Fatalf("%+v came out of turn", w)
					}
				}
			} else {
				priority := rapid.SampledFrom([]int32{math.MinInt32, -1, 0, 1, math.MaxInt32}).Draw(t, "priority")
				all = append(all, s.enter(priority, uint64(i)))
			}
			have := 0
			for _, w := range all {
				if w.had() {
					have++
				}
			}
			if have != min(n, len(all)) {
				t.Fatalf("%d of %d have one of %d slots", have, len(all), n)
			}
		}
	})
}
