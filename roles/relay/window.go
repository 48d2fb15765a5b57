package relay

import (
	"slices"
	"time"
)

// windowLength is how far back round trips count.
const windowLength = 30 * time.Second

// RoundTrip says how long messages to a controller and back took lately.
type RoundTrip struct {
	Min, Median, Max time.Duration
	Samples          int
}

// window holds the round trips of the last windowLength.
type window struct {
	samples []sample // oldest first
}

type sample struct {
	at   time.Time // monotonic
	took time.Duration
}

// add takes in a round trip that has just ended.
func (w *window) add(now time.Time, took time.Duration) {
	w.expire(now)
	w.samples = append(w.samples, sample{now, took})
}

func (w *window) expire(now time.Time) {
	w.samples = slices.DeleteFunc(w.samples, func(s sample) bool { return now.Sub(s.at) >= windowLength })
}

// stats sums up what is in the window. All is zero if that is nothing.
func (w *window) stats(now time.Time) RoundTrip {
	w.expire(now)
	if len(w.samples) == 0 {
		return RoundTrip{}
	}
	took := make([]time.Duration, len(w.samples))
	for i, s := range w.samples {
		took[i] = s.took
	}
	slices.Sort(took)
	return RoundTrip{Min: took[0], Median: took[len(took)/2], Max: took[len(took)-1], Samples: len(took)}
}
