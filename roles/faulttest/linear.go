package faulttest

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/anishathalye/porcupine"
)

// acceptedOnce looks for an order of the calls about one idempotency key that
// explains all answers: one of the acceptances made the request, the others found
// it, or found that it is another one, and who looked for it afterwards saw it.
func acceptedOnce(h History) (broken []string) {
	byKey := map[string][]porcupine.Operation{}
	for _, c := range h.Calls {
		if c.Key == "" || c.Op == opCancel || c.Op == opLookup && c.Outcome == OutcomeUnknown {
			continue
		}
		op := porcupine.Operation{Input: c, Output: c, Call: int64(c.Began), Return: int64(c.Ended)}
		if c.Outcome == OutcomeUnknown {
			op.Return = math.MaxInt64 // it may happen at any time from then on
		}
		byKey[c.Key] = append(byKey[c.Key], op)
	}
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		if !porcupine.CheckOperations(acceptance, byKey[key]) {
			text := ""
			for _, op := range byKey[key] {
				text += "\n\t" + op.Input.(Call).String()
			}
			broken = append(broken, fmt.Sprintf("no order of these calls explains their answers:%s", text))
		}
	}
	return broken
}

// String tells of a call in one line.
func (c Call) String() string {
	created := ""
	if c.Created {
		created = " created"
	}
	return fmt.Sprintf("%v to %v: %s %s %q at %s: %s%s %s", c.Began, c.Ended, c.Op, c.Key, c.Content, c.Node, c.Outcome, created, c.Request)
}

// accepting is what there is of one idempotency key.
type accepting struct {
	Exists  bool
	Content string
	ID      string // "" if nobody has been told yet
}

// acceptance is what one idempotency key does, one call after the other.
var acceptance = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{accepting{}} },
	Step: func(state, input, _ any) []any {
		s, c := state.(accepting), input.(Call)
		if c.Op == opLookup {
			if s.Exists != (c.Outcome == OutcomeOK) || s.Exists && s.ID != "" && s.ID != c.Request {
				return nil
			}
			return []any{s}
		}
		made := accepting{Exists: true, Content: c.Content, ID: c.Request}
		known := made // what was there, with its id if that was told now
		known.Content = s.Content
		switch c.Outcome {
		case OutcomeUnknown:
			if s.Exists {
				return []any{s}
			}
			return []any{s, accepting{Exists: true, Content: c.Content}}
		case OutcomeOK:
			switch {
			case !s.Exists && c.Created:
				return []any{made}
			case s.Exists && !c.Created && s.Content == c.Content && (s.ID == "" || s.ID == c.Request):
				return []any{known}
			}
		case OutcomeConflict:
			if s.Exists && s.Content != c.Content {
				return []any{s}
			}
		case OutcomeRefused, OutcomeNotFound:
			if !s.Exists {
				return []any{s}
			}
		}
		return nil
	},
}).ToModel()
