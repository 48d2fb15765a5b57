package roles

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// RequestStatus is how far a request is.
type RequestStatus string

// The statuses of a request. The last three are final.
const (
	RequestQueued     RequestStatus = "queued"     // accepted, not claimed yet
	RequestRunning    RequestStatus = "running"    // claimed; some step can move
	RequestCancelling RequestStatus = "cancelling" // the same, after a cancel
	RequestInDoubt    RequestStatus = "in_doubt"   // rests until an operator resolves a step
	RequestSucceeded  RequestStatus = "succeeded"
	RequestFailed     RequestStatus = "failed"
	RequestCancelled  RequestStatus = "cancelled"
)

// Final reports whether the request never changes again.
func (s RequestStatus) Final() bool {
	return s == RequestSucceeded || s == RequestFailed || s == RequestCancelled
}

func (s RequestStatus) valid() bool {
	switch s {
	case RequestQueued, RequestRunning, RequestCancelling, RequestInDoubt:
		return true
	}
	return s.Final()
}

// StepStatus is how far a step is.
type StepStatus string

// The statuses of a step.
const (
	StepWaiting    StepStatus = "waiting"    // for the steps that it needs
	StepReady      StepStatus = "ready"      // for an agent, or for the delay before a retry
	StepHeld       StepStatus = "held"       // ready, but it or the request is held
	StepDispatched StepStatus = "dispatched" // to an agent, which has not reported it running
	StepRunning    StepStatus = "running"
	StepSucceeded  StepStatus = "succeeded"
	StepFailed     StepStatus = "failed"
	StepSkipped    StepStatus = "skipped"   // its condition did not hold, or an operator said so
	StepCancelled  StepStatus = "cancelled" // by a cancel of the request, or because it was finished
	StepInDoubt    StepStatus = "in_doubt"  // the end cannot be known
)

// Final reports whether the step has ended. Only an operator's rerun, while the
// request is not final, makes it begin anew.
func (s StepStatus) Final() bool {
	return s == StepSucceeded || s == StepFailed || s == StepSkipped || s == StepCancelled
}

// out reports whether an agent may be working on a step with that status.
func (s StepStatus) out() bool { return s == StepDispatched || s == StepRunning }

// derived reports whether the status follows from the other records.
func (s StepStatus) derived() bool { return s == StepWaiting || s == StepReady || s == StepHeld }

func (s StepStatus) valid() bool {
	return s.derived() || s.out() || s.Final() || s == StepInDoubt
}

// Fence says which ownership of a request something comes from. Fences are ordered
// by generation, then revision. The zero fence is no ownership.
type Fence struct {
	Generation uint64 `json:"generation"`
	Revision   int64  `json:"revision"` // of the claim's last change
}

// AtAcceptance stands, as the revision of a fence, for the revision at which the
// request was accepted. A request that is claimed by the transaction that accepts
// it can be dispatched in there too, when its revision is not known yet.
const AtAcceptance int64 = -1

// known returns f with its revision in place of AtAcceptance.
func (f Fence) known(accepted int64) Fence {
	if f.Revision == AtAcceptance {
		f.Revision = accepted
	}
	return f
}

// Compare returns -1, 0 or 1 if f is lower than, equal to or higher than g.
func (f Fence) Compare(g Fence) int {
	return cmp.Or(cmp.Compare(f.Generation, g.Generation), cmp.Compare(f.Revision, g.Revision))
}

// Journal is the memory of an agent at a moment: its random id, and a counter that
// grows with every entry.
type Journal struct {
	ID      string `json:"id"`
	Counter uint64 `json:"counter"`
}

// Dispatch says how the present attempt of a step is known to its agent.
type Dispatch struct {
	// Journal is the one that the attempt was sent to, with the highest counter
	// that was reported with it.
	Journal Journal `json:"journal"`
	// Fence is the claim under which the attempt was dispatched or last adopted. In
	// a record its revision may be AtAcceptance.
	Fence Fence `json:"fence"`
	// Cluster is the agent cluster that the attempt was given to, if the step names
	// one: the attempt counts for its limits, whatever becomes of its definition.
	Cluster string `json:"cluster,omitempty"`
}

// Step is what has become of one step: the record that is stored, and the part of
// it that is shown. Its fields up to DecidedBy describe the present or last
// attempt.
type Step struct {
	Name    string     `json:"name"`
	Status  StepStatus `json:"status"`
	Attempt int        `json:"attempt"` // from 1; 0: none yet
	Agent   string     `json:"agent"`
	// ExitCode is as a shell shows it, 128+n after signal n; nil: did not exit, or
	// not known.
	ExitCode *int `json:"exit_code"`
	Signal   int  `json:"signal,omitempty"`
	TimedOut bool `json:"timed_out,omitempty"`
	// Outputs are the values that the step handed on, as far as the agent found any.
	Outputs *Outputs `json:"outputs,omitempty"`
	// Reason says for people why the status is what it is.
	Reason string `json:"reason,omitempty"`
	// StartedAt and FinishedAt are by the clock of the agent.
	StartedAt  Stamp    `json:"started_at,omitempty"`
	FinishedAt Stamp    `json:"finished_at,omitempty"`
	Dispatch   Dispatch `json:"dispatch,omitzero"`
	// Unreachable says that no controller has a link to the agent. It is not a
	// status: the step goes on.
	Unreachable bool `json:"unreachable,omitempty"`
	// Frozen says that the attempt stands still until its output is collected.
	Frozen bool `json:"frozen,omitempty"`
	// NoOutput says that the attempt has exited and wrote no output, and that nobody is
	// left who could.
	NoOutput bool `json:"no_output,omitempty"`
	// BackingOff says that the delay before the next attempt is not over.
	BackingOff bool `json:"backing_off,omitempty"`
	// Abandoned says that the step was decided while its attempt may be running.
	Abandoned bool `json:"abandoned,omitempty"`

	// Passed says that the step was skipped because an operator wants it so, when it
	// would have run. It counts as one that succeeded, for those that need it.
	Passed bool `json:"passed,omitempty"`

	// Decision is what an operator last said of how the step goes on.
	Decision *Decision `json:"decision,omitempty"`
	// Hold says who holds the step; nil: nobody.
	Hold *Order `json:"hold,omitempty"`
	// Expansion is what a step with for_each has instances for; nil: nothing yet. The
	// status of such a step follows from theirs, and Attempt and Agent are theirs.
	Expansion *Expansion `json:"expansion,omitempty"`
	// Amended is what an operator has made of the definition of the step since the
	// request was accepted; nil: nothing.
	Amended *Amendment `json:"amended,omitempty"`
	// Failures and Unknowns count how attempts ended, failures from the last rerun
	// on.
	Failures int `json:"failures,omitempty"`
	Unknowns int `json:"unknowns,omitempty"`
}

// out reports whether an agent may be working on the step. On one with instances none
// is.
func (s *Step) out() bool { return s.Status.out() && s.Expansion == nil }

// spread reports whether the step runs by its instances.
func (s *Step) spread() bool { return s.Status == StepRunning && s.Expansion != nil }

// Expansion lists the agents that a step with for_each runs on, in order.
type Expansion struct {
	Agents []string `json:"agents"`
	// LeftOut are the agents that match and were suspended, the first of them and how
	// many more; empty if there were none.
	LeftOut string `json:"left_out,omitempty"`
}

// Outputs are values by name.
type Outputs map[string]string

// Decision is an operator's word about a step.
type Decision struct {
	As    Verdict `json:"as"`
	By    string  `json:"by"`
	Why   string  `json:"why,omitempty"`
	At    Stamp   `json:"at"`
	Force bool    `json:"force,omitempty"`
}

// Skipped reports whether an operator wants the step skipped, and nothing of it has
// started since.
func (s *Step) Skipped() bool { return s.Decision != nil && s.Decision.As == VerdictSkip }

// given reports whether an operator has said how the step ended, without the word of
// an agent.
func (s *Step) given() bool {
	if s.Decision == nil {
		return false
	}
	switch s.Decision.As {
	case VerdictSuccess, VerdictFailed, VerdictAbandon:
		return true
	}
	return false
}

// Order says who ordered something, why and when.
type Order struct {
	By  string `json:"by"`
	Why string `json:"why,omitempty"`
	At  Stamp  `json:"at"`
}

// Record is the part of a request's state that belongs to no single step.
type Record struct {
	Status RequestStatus `json:"status"`
	// Generation is the one in which the request was last accepted or claimed.
	Generation uint64 `json:"generation"`
	// Held says that nothing is started until an operator releases the request.
	Held bool `json:"held,omitempty"`
	// HeldBy is who holds it; nil: nobody has, the cluster itself does.
	HeldBy *Order `json:"held_by,omitempty"`
	Cancel *Order `json:"cancel,omitempty"`
	// Finish says who gave the request its final status; nil: it came to it.
	Finish     *Order `json:"finish,omitempty"`
	StartedAt  Stamp  `json:"started_at,omitempty"`  // first claimed
	FinishedAt Stamp  `json:"finished_at,omitempty"` // became final
}

// State is a request and all that has become of it. Copies share what they point
// to, which nobody may change.
type State struct {
	Request *Request
	Record  Record
	// Steps has one element for each step of the process, in its order, and for each
	// that an operator has inserted, at its place; instances come after the step that
	// they are of. An index is good for this State only.
	Steps []*Step
	// Fence is the present claim; zero: not claimed.
	Fence Fence

	plan *plan
}

// ErrInconsistent is returned for records that do not belong together.
var ErrInconsistent = errors.New("inconsistent records")

// NewState returns the state of a request that is being accepted in a generation
// of the cluster. Only its Request and Record need storing: a step without a record
// has not begun.
func NewState(r *Request, generation uint64) (State, error) {
	return assemble(r, Record{Status: RequestQueued, Generation: generation}, nil, Fence{})
}

// Accepted returns a state that was claimed [AtAcceptance], now that its revision is
// known.
func (s State) Accepted(revision int64) State {
	s.Fence = s.Fence.known(revision)
	s.Steps = slices.Clone(s.Steps)
	for i, st := range s.Steps {
		step := *st
		step.Dispatch.Fence = st.Dispatch.Fence.known(revision)
		s.Steps[i] = &step
	}
	return s
}

// Load returns the state that is stored: the encoded spec and status record, the
// encoded records of steps by name (those that exist), and the fence of the claim,
// all read at one revision; and the revision at which the request was accepted.
func Load(spec, record []byte, steps map[string][]byte, fence Fence, accepted int64) (State, error) {
	var r Request
	if err := json.Unmarshal(spec, &r); err != nil {
		return State{}, fmt.Errorf("spec: %w: %w", ErrInconsistent, err)
	}
	var rec Record
	if err := json.Unmarshal(record, &rec); err != nil {
		return State{}, fmt.Errorf("request %s: status: %w: %w", r.ID, ErrInconsistent, err)
	}
	known := make(map[string]*Step, len(steps))
	for name, text := range steps {
		s := new(Step)
		if err := json.Unmarshal(text, s); err != nil {
			return State{}, fmt.Errorf("request %s: step %s: %w: %w", r.ID, quote(name), ErrInconsistent, err)
		}
		known[name] = s
	}
	return Assemble(&r, rec, known, fence, accepted)
}

// Assemble is Load for records that have been read already. The state shares them:
// nobody may change them afterwards. The map of steps is used up.
func Assemble(r *Request, record Record, steps map[string]*Step, fence Fence, accepted int64) (State, error) {
	if r.Format != format {
		return State{}, fmt.Errorf("request %s: %w: written in format %d, this version knows %d", r.ID, ErrInconsistent, r.Format, format)
	}
	for name, s := range steps {
		if s.Name != name {
			return State{}, fmt.Errorf("request %s: step %s: %w: the record names %s", r.ID, quote(name), ErrInconsistent, quote(s.Name))
		}
		if known := s.Dispatch.Fence.known(accepted); known != s.Dispatch.Fence {
			step := *s
			step.Dispatch.Fence = known
			steps[name] = &step
		}
	}
	return assemble(r, record, steps, fence)
}

func assemble(r *Request, rec Record, known map[string]*Step, fence Fence) (State, error) {
	fail := func(format string, args ...any) (State, error) {
		return State{}, fmt.Errorf("request %s: %w: %s", quote(r.ID), ErrInconsistent, fmt.Sprintf(format, args...))
	}
	p, err := newPlan(layout(r, known))
	if err != nil {
		return fail("%v", err)
	}
	if !rec.Status.valid() {
		return fail("status %s", quote(string(rec.Status)))
	}
	s := State{Request: r, Record: rec, Steps: make([]*Step, len(p.defs)), Fence: fence, plan: p}
	for i := range s.Steps {
		name := p.defs[i].Name
		step, ok := known[name]
		if !ok {
			step = &Step{Name: name, Status: StepWaiting}
		}
		delete(known, name)
		s.Steps[i] = step
		dispatched := step.Attempt > 0 && step.Agent != "" && step.Dispatch.Journal.ID != ""
		switch {
		case !step.Status.valid():
			return fail("step %s: status %s", name, quote(string(step.Status)))
		case step.Attempt < 0 || step.Failures < 0 || step.Unknowns < 0:
			return fail("step %s: negative count", name)
		case step.Expansion != nil && (p.defs[i].ForEach == nil || len(step.Expansion.Agents) == 0 || step.Status == StepReady):
			return fail("step %s: %s with instances that it cannot have", name, step.Status)
		case (step.out() || step.Status == StepDispatched || step.Status == StepInDoubt || step.Abandoned) && !dispatched:
			return fail("step %s: %s without a dispatch", name, step.Status)
		case fence != (Fence{}) && step.Dispatch.Fence.Compare(fence) > 0:
			return fail("step %s: dispatched under a higher fence than the claim's", name)
		case rec.Status.Final() && !step.Status.Final():
			return fail("step %s: %s in a request that has %s", name, step.Status, rec.Status)
		}
	}
	for name := range known {
		return fail("there is no step %s", quote(name))
	}
	if rec.Status.Final() {
		return s, nil
	}
	for i, step := range s.Steps {
		switch status, _ := s.due(i); {
		case status == StepSkipped && step.Status.derived():
			return fail("step %s: %s, but its needs say skipped", step.Name, step.Status)
		case status != step.Status:
			derived := *step
			derived.Status = status
			s.Steps[i] = &derived
		}
	}
	return s, nil
}

// Index returns the index of a step in Steps, or -1.
func (s State) Index(step string) int {
	if i, ok := s.plan.index[step]; ok {
		return i
	}
	return -1
}

// Chosen returns the agent that the selector of step i names or has chosen, "" if
// none is chosen yet.
func (s State) Chosen(i int) string { return s.chosen(s.plan.selector[i]) }

// Def returns the definition of step i, as it is now.
func (s State) Def(i int) *StepDef { return s.plan.defs[i] }

// View is a request as it is shown: by the API, and by commands with -o json.
type View struct {
	ID          string            `json:"id"`
	Process     string            `json:"process"`
	Status      RequestStatus     `json:"status"`
	Held        bool              `json:"held"`
	Params      map[string]string `json:"params"`
	RequestedBy string            `json:"requested_by"`
	RequestedAt Stamp             `json:"requested_at"`
	StartedAt   Stamp             `json:"started_at,omitempty"`
	FinishedAt  Stamp             `json:"finished_at,omitempty"`
	HeldBy      *Order            `json:"held_by,omitempty"`
	Cancel      *Order            `json:"cancel,omitempty"`
	Finish      *Order            `json:"finish,omitempty"`
	Steps       []StepView        `json:"steps"`
}

// StepView is a step as it is shown, with the part of its definition that explains
// when it runs.
type StepView struct {
	*Step
	// Of names the step that it is an instance of.
	Of    string    `json:"of,omitempty"`
	Needs []string  `json:"needs"`
	On    Condition `json:"on"`
}

// View returns the request as it is shown.
func (s State) View() View {
	v := View{
		ID:          s.Request.ID,
		Process:     s.Request.Process.Name,
		Status:      s.Record.Status,
		Held:        s.Record.Held,
		Params:      make(map[string]string, len(s.Request.Params)),
		RequestedBy: s.Request.RequestedBy,
		RequestedAt: s.Request.RequestedAt,
		StartedAt:   s.Record.StartedAt,
		FinishedAt:  s.Record.FinishedAt,
		HeldBy:      s.Record.HeldBy,
		Cancel:      s.Record.Cancel,
		Finish:      s.Record.Finish,
		Steps:       make([]StepView, len(s.Steps)),
	}
	maps.Copy(v.Params, s.Request.Params)
	for i, step := range s.Steps {
		def := s.Def(i)
		v.Steps[i] = StepView{Step: step, Needs: append([]string{}, def.Needs...), On: def.On}
		if of := s.plan.of(i); of >= 0 {
			v.Steps[i].Of = s.Steps[of].Name
		}
	}
	return v
}
