package controller

import (
	"container/heap"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"uac/roles"
)

// TestWaiting compares the queues with a list: whatever comes and goes, what is due
// is served by priority and then by age, and what is not due is left alone.
func TestWaiting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newWaiting()
		var model []wanted
		agents := []string{"", "a1", "a2"}
		draw := func(t *rapid.T) wanted {
			agent := rapid.SampledFrom(agents).Draw(t, "agent")
			cluster := rapid.SampledFrom([]string{"", "web"}).Draw(t, "cluster")
			return wanted{
				want: want{selector: "cluster=" + cluster, agent: agent}, cluster: cluster,
				waiter: waiter{
					priority: rapid.IntRange(-1, 1).Draw(t, "priority"),
					id:       fmt.Sprintf("R%d", rapid.IntRange(1, 4).Draw(t, "request")),
					index:    rapid.IntRange(0, 1).Draw(t, "step"),
				},
			}
		}
		same := func(a wanted) func(wanted) bool {
			return func(b wanted) bool { return a.want == b.want && a.waiter == b.waiter }
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				w := draw(t)
				if q.add(w); !slices.ContainsFunc(model, same(w)) {
					model = append(model, w)
				}
			},
			"remove": func(t *rapid.T) {
				w := draw(t)
				q.remove(w)
				model = slices.DeleteFunc(model, same(w))
			},
			"serve": func(t *rapid.T) {
				topic := rapid.SampledFrom([]string{dueAll, dueAgent("a1"), dueAgent("a2"), dueAgent("a3"), dueCluster("web"), dueOpen}).Draw(t, "due")
				q.due[topic] = true
				var expect []waiter
				for _, w := range model {
					if w.agent == "" || slices.Contains(w.topics(), topic) {
						expect = append(expect, w.waiter)
					}
				}
				slices.SortFunc(expect, waiter.compare)
				// Nothing is fulfilled: of each want only the foremost is looked at.
				var got, heads []waiter
				for h := q.concerned(); h.Len() > 0; {
					top := heap.Pop(h).(headed) //nolint:forcetypeassert // only headed is pushed
					heads = append(heads, top.head)
					got = append(got, q.queues[top.want]...)
				}
				if !slices.IsSortedFunc(heads, waiter.compare) {
					t.Fatalf("served in the order %v", heads)
				}
				slices.SortFunc(got, waiter.compare)
				if d := cmp.Diff(expect, got, cmp.AllowUnexported(waiter{})); d != "" {
					t.Fatalf("due (-want +got):\n%s", d)
				}
				if len(q.due) > 0 {
					t.Fatal("it is due for ever")
				}
			},
			"": func(t *rapid.T) {
				if len(model) == 0 && len(q.queues)+len(q.about) > 0 {
					t.Fatalf("left behind: %v %v", q.queues, q.about)
				}
			},
		})
	})
	if a, b := (waiter{priority: 1, id: "R2"}), (waiter{id: "R1"}); a.compare(b) >= 0 {
		t.Error("the older one goes before the one with the higher priority")
	}
}

// A step between two attempts says so.
func TestWaitsForItsRetry(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 1})
	c1 := w.node("c1")
	a1 := w.agent(c1, "a1", nil)
	one := step("one", "a1")
	one.Retry = roles.Retry{Attempts: 2, Delay: roles.Duration(time.Hour)}
	c1.apply(process("p", one))
	r := c1.accept("p")
	a1.exited(a1.start(), 1)
	got := c1.awaitStep(r.ID, "one", roles.StepReady)
	if want := "attempt 1 has failed; the next one follows 1h0m0s after it"; got.Reason != want {
		t.Errorf("the step says %q, want %q", got.Reason, want)
	}
}
