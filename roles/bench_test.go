package roles

import (
	"fmt"
	"testing"
)

// One request of one step, from acceptance to its end: four events, with what is
// pending after each.
func BenchmarkSingleStep(b *testing.B) {
	p := define(b, "a")
	r, err := NewRequest(p, RequestOptions{ID: testID})
	if err != nil {
		b.Fatal(err)
	}
	journal := Journal{ID: "j", Counter: 1}
	events := []Event{
		Claimed{Fence{1, 5}},
		AgentChosen{Step: "a", Agent: "a1", Journal: journal},
		Report{Agent: "a1", Step: "a", Attempt: 1, Journal: journal, State: AttemptRunning},
		Report{Agent: "a1", Step: "a", Attempt: 1, Journal: journal, State: AttemptExited},
	}
	accepted, err := NewState(r, 1)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s := accepted
		for _, ev := range events {
			if s, _, err = Next(s, ev, "now"); err != nil {
				b.Fatal(err)
			}
			Pending(s)
		}
		if s.Record.Status != RequestSucceeded {
			b.Fatal(summary(s))
		}
	}
}

// One event in the middle of a large request: the end of one of many steps.
func BenchmarkNextOfManySteps(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			lines := make([]string, n)
			for i := range lines {
				lines[i] = fmt.Sprintf("s%d", i)
				if i > 0 {
					lines[i] += fmt.Sprintf(" needs s%d", (i-1)/2)
				}
			}
			s := newState(b, define(b, lines...))
			next := func(s State, ev Event) State {
				s, _, err := Next(s, ev, "now")
				if err != nil {
					b.Fatal(err)
				}
				Pending(s)
				return s
			}
			journal := Journal{ID: "j", Counter: 1}
			s = next(s, Claimed{Fence{1, 5}})
			s = next(s, AgentChosen{Step: "s0", Agent: "a1", Journal: journal})
			b.ReportAllocs()
			for b.Loop() {
				next(s, Report{Agent: "a1", Step: "s0", Attempt: 1, Journal: journal, State: AttemptExited})
			}
		})
	}
}

func BenchmarkNewState(b *testing.B) {
	p := define(b, "a")
	b.ReportAllocs()
	for b.Loop() {
		r, err := NewRequest(p, RequestOptions{ID: testID})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := NewState(r, 1); err != nil {
			b.Fatal(err)
		}
	}
}
