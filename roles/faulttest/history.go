package faulttest

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"uac/codestation/durable"
)

// History is all that was recorded of one run. It can be written to a file and
// checked again later.
type History struct {
	// Calls are what clients asked and what they were told, in the order of their
	// ends.
	Calls []Call
	// Processes are the definitions by name.
	Processes map[string]Process
	// Views are what controllers showed, in the order of each controller.
	Views []View
	// Acting are the moments in which a node said that it was Active.
	Acting []Acting
	Ledger []Entry
	// Final is every request of the cluster after it had been healthy for a while.
	Final map[string]Request
}

// Call is one call of a client. Times are of one monotonic clock.
type Call struct {
	Op   string // accept, lookup or cancel
	Node string // who was asked
	// Key is the idempotency key of an acceptance, and of a lookup the one whose
	// request is looked for.
	Key string
	// Content tells acceptances apart that ask for different things.
	Content string
	// Request is the id that was answered, or was asked for.
	Request      string
	Created      bool // by this very call
	Outcome      Outcome
	Began, Ended time.Duration
}

// The operations of calls.
const (
	opAccept = "accept"
	opLookup = "lookup"
	opCancel = "cancel"
)

// Outcome is what a client knows after a call.
type Outcome string

// The outcomes. A call that was answered with an error of the server, or not at
// all, may have happened or not, or happen later.
const (
	OutcomeOK       Outcome = "ok"
	OutcomeConflict Outcome = "conflict"
	OutcomeNotFound Outcome = "not found"
	OutcomeRefused  Outcome = "refused"
	OutcomeUnknown  Outcome = "unknown"
)

// outcome reads an answer.
func outcome(status int, err error) Outcome {
	switch {
	case err != nil || status >= 500:
		return OutcomeUnknown
	case status < 300:
		return OutcomeOK
	case status == 404:
		return OutcomeNotFound
	case status == 409:
		return OutcomeConflict
	}
	return OutcomeRefused
}

// View is one request as one controller showed it.
type View struct {
	// Source is the controller that answered: what one of them shows never goes
	// back, even if it starts again, while two of them may show the same change one
	// after the other.
	Source  string
	Request Request
}

// Acting is an answer of a node that it is Active: at some moment between the
// two times of one clock.
type Acting struct {
	Node         string
	Term         int64
	Began, Ended time.Duration
}

// accepted lists the requests that were acknowledged to a client, each once.
func (h History) accepted() []string {
	var ids []string
	for _, c := range h.Calls {
		if c.Op == opAccept && c.Outcome == OutcomeOK && !slices.Contains(ids, c.Request) {
			ids = append(ids, c.Request)
		}
	}
	return ids
}

// step returns the definition of the step that an entry is about.
func (h History) step(e Entry) StepDef {
	for _, s := range h.Processes[h.Final[e.Request].Process].Steps {
		if s.Name == e.Step {
			return s
		}
	}
	return StepDef{}
}

// where is the state of all steps in words.
func (r Request) where() string {
	var parts []string
	for _, st := range r.Steps {
		code := ""
		if st.ExitCode != nil {
			code = fmt.Sprintf(" exit %d", *st.ExitCode)
		}
		parts = append(parts, fmt.Sprintf("%s %s #%d%s", st.Name, st.Status, st.Attempt, code))
	}
	return strings.Join(parts, ", ")
}

// save writes the history to a file.
func (h History) save(path string) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, text, 0o600)
}

// loadHistory reads what save wrote.
func loadHistory(path string) (h History, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(text, &h); err != nil {
		return h, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}
