package roles

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// maxUnknowns is how many attempts of a repeatable step may end unknown. A step
// that takes its machine down with it must come to rest.
const maxUnknowns = 10

// Errors of Next. Their text says what is wrong.
var (
	// ErrConflict is returned when an operator's order does not fit the state any
	// more. The order is used up.
	ErrConflict = errors.New("conflict")
	// ErrStale is returned for a claim that is lower than the present one.
	ErrStale = errors.New("stale fence")
	// ErrInvalid is returned for an event that no correct caller or agent makes.
	ErrInvalid = errors.New("invalid event")
)

// Next returns the state after an event, and what of it must be stored. It does not
// change s. An event that comes late or twice is no error: it changes nothing, and
// is answered if the agent waits for that. At is the time by the caller's clock,
// and only ever written down.
func Next(s State, event Event, at Stamp) (State, Change, error) {
	if o, ok := event.(order); ok {
		return obey(s, o, at)
	}
	e := edit{State: s, old: s, at: at} // on the stack: this is the path of every report
	if err := e.apply(event); err != nil {
		return s, Change{}, err
	}
	e.settle()
	return e.State, e.finish(), nil
}

// edit is a state that is being changed.
type edit struct {
	State
	old     State
	at      Stamp
	touched []int // steps that differ from old
	ended   []int // steps that became final and whose dependents have not been asked
	replies []Effect
	late    []Report
}

func (e *edit) apply(event Event) error {
	switch ev := event.(type) {
	case Claimed:
		return e.claimed(ev)
	case AgentChosen:
		return e.agentChosen(ev)
	case Expanded:
		return e.expanded(ev)
	case Report:
		return e.report(ev, false)
	case Adopted:
		return e.adopted(ev)
	case JournalChanged:
		e.journalChanged(ev)
	case AgentUnreachable:
		e.reachable(ev.Agent, false)
	case AgentReachable:
		e.reachable(ev.Agent, true)
	case RetryDue:
		i := e.Index(ev.Step)
		if i < 0 {
			return fmt.Errorf("%w: there is no step %s", ErrInvalid, quote(ev.Step))
		}
		if st := e.Steps[i]; st.BackingOff && st.Attempt == ev.Attempt {
			e.step(i).BackingOff = false
		}
	default:
		return fmt.Errorf("%w: %T", ErrInvalid, event)
	}
	return nil
}

// step returns a copy of step i that may be changed and is part of the new state.
func (e *edit) step(i int) *Step {
	if e.touched == nil {
		e.Steps = slices.Clone(e.Steps)
	}
	if e.Steps[i] == e.old.Steps[i] {
		st := *e.Steps[i]
		e.Steps[i] = &st
		e.touched = append(e.touched, i)
	}
	return e.Steps[i]
}

// become gives step i a status that does not follow from other records.
func (e *edit) become(i int, status StepStatus) *Step {
	st := e.step(i)
	st.Status = status
	st.BackingOff, st.Passed = false, false
	st.Frozen = st.Frozen && status.out()
	if status.Final() {
		e.ended = append(e.ended, i)
	}
	return st
}

// due returns the status that step i has by its needs, and its own if it has gone
// beyond that. Runs says that its needs are final and let it run.
func (s *State) due(i int) (status StepStatus, runs bool) {
	st := s.Steps[i]
	if !st.Status.derived() {
		return st.Status, false
	}
	if p := s.plan.of(i); p >= 0 {
		return s.dueInstance(st, s.Steps[p])
	}
	succeeded, failed := 0, 0
	for _, j := range s.plan.needs[i] {
		switch need := s.Steps[j]; {
		case need.Status == StepSucceeded || need.Passed:
			succeeded++
		case need.Status == StepFailed:
			failed++
		case !need.Status.Final():
			return StepWaiting, false
		}
	}
	runs = true
	switch s.Def(i).On {
	case OnSuccess:
		runs = succeeded == len(s.plan.needs[i])
	case OnFailure:
		runs = failed > 0
	}
	switch {
	case !runs || st.Skipped():
		return StepSkipped, runs
	case s.Record.Held || st.Hold != nil:
		return StepHeld, runs
	}
	return StepReady, runs
}

// derive gives step i the status that follows from its needs.
func (e *edit) derive(i int) {
	switch status, runs := e.due(i); {
	case status == StepReady && e.Steps[i].Expansion != nil:
		e.begin(i) // again, on the same agents
	case status == e.Steps[i].Status:
	case status == StepSkipped:
		e.become(i, StepSkipped).Passed = runs
		first, end := e.plan.instances(i) // of an earlier time
		for k := first; k < end; k++ {
			e.become(k, StepSkipped).Passed = runs
		}
	default:
		e.step(i).Status = status
	}
}

// settle draws the conclusions of what was changed: for the steps that need a step
// that has become final, and for the request.
func (e *edit) settle() {
	for len(e.ended) > 0 {
		i := e.ended[0]
		e.ended = e.ended[1:]
		if p := e.plan.of(i); p >= 0 {
			e.gather(p)
			continue
		}
		for _, j := range e.plan.dependents[i] {
			e.derive(j)
		}
	}
	status := e.status()
	if status == e.Record.Status {
		return
	}
	e.Record.Status = status
	if status.Final() {
		e.Record.FinishedAt = e.at
	}
}

// status returns the status that the request has by its steps.
func (e *edit) status() RequestStatus {
	if e.Record.Status.Final() {
		return e.Record.Status
	}
	final, moving, failed := true, false, false
	for i, st := range e.Steps {
		switch {
		case st.spread(): // its instances tell
			final = false
		case st.Status == StepFailed:
			failed = failed || e.plan.of(i) < 0 && !e.recovered(i)
		case st.Status == StepWaiting || st.Status == StepInDoubt:
			final = false
		case !st.Status.Final():
			final, moving = false, true
		}
	}
	switch {
	case final && e.Record.Cancel != nil:
		return RequestCancelled
	case final && failed:
		return RequestFailed
	case final:
		return RequestSucceeded
	case !moving:
		return RequestInDoubt
	case e.Record.Cancel != nil:
		return RequestCancelling
	case e.Fence == Fence{}:
		return e.Record.Status
	}
	return RequestRunning
}

// recovered reports whether the failure of step i was made good.
func (e *edit) recovered(i int) bool {
	return slices.ContainsFunc(e.plan.dependents[i], func(j int) bool {
		return e.Def(j).Recovers && e.Steps[j].Status == StepSucceeded
	})
}

// finish returns what must be stored.
func (e *edit) finish() Change {
	c := Change{Record: e.Record != e.old.Record, Replies: e.replies, Late: e.late}
	for _, i := range e.touched {
		// A status that follows from other records need not be stored.
		st, before := *e.Steps[i], *e.old.Steps[i]
		if st.Status.derived() && before.Status.derived() {
			before.Status = st.Status
		}
		if st != before {
			c.Steps = append(c.Steps, st.Name)
		}
	}
	return c
}

func (e *edit) claimed(ev Claimed) error {
	if ev.Fence == (Fence{}) {
		return fmt.Errorf("%w: claimed with the zero fence", ErrInvalid)
	}
	if ev.Fence.Compare(e.Fence) < 0 || ev.Fence.Generation < e.Record.Generation {
		return fmt.Errorf("%w: claim %v is lower than %v in generation %d", ErrStale, ev.Fence, e.Fence, e.Record.Generation)
	}
	e.Fence = ev.Fence
	if e.Record.Status.Final() {
		return nil
	}
	if e.Record.StartedAt == "" {
		e.Record.StartedAt = e.at
	}
	if ev.Fence.Generation > e.Record.Generation {
		e.Record.Generation = ev.Fence.Generation
		e.Record.Held, e.Record.HeldBy = true, nil
		e.deriveAll()
	}
	return nil
}

// deriveAll gives all steps the statuses that follow from others.
func (e *edit) deriveAll() {
	for i := range e.Steps {
		e.derive(i)
	}
}

func (e *edit) agentChosen(ev AgentChosen) error {
	i := e.Index(ev.Step)
	switch {
	case i < 0:
		return fmt.Errorf("%w: there is no step %s", ErrInvalid, quote(ev.Step))
	case e.Steps[i].Status != StepReady || e.Steps[i].BackingOff || !e.free(i):
		return nil // the answer came too late
	case e.Def(i).ForEach != nil:
		return fmt.Errorf("%w: step %s dispatched as a whole", ErrInvalid, ev.Step)
	case e.Fence == Fence{}:
		return fmt.Errorf("%w: step %s dispatched without a claim", ErrInvalid, ev.Step)
	case ev.Agent == "" || ev.Journal.ID == "":
		return fmt.Errorf("%w: step %s dispatched to no agent or journal", ErrInvalid, ev.Step)
	}
	if agent := e.chosen(e.plan.selector[i]); agent != "" && agent != ev.Agent {
		return fmt.Errorf("%w: step %s dispatched to %s, but its selector means %s", ErrInvalid, ev.Step, ev.Agent, agent)
	}
	st := e.become(i, StepDispatched)
	*st = Step{
		Name:     st.Name,
		Status:   st.Status,
		Attempt:  st.Attempt + 1,
		Agent:    ev.Agent,
		Dispatch: Dispatch{Journal: ev.Journal, Fence: e.Fence, Cluster: e.Def(i).Agent.Cluster},
		Decision: st.Decision,
		Failures: st.Failures,
		Unknowns: st.Unknowns,
		Amended:  st.Amended,
	}
	return nil
}

// chosen returns the agent that a selector has chosen in this request, or nothing.
func (s *State) chosen(selector int) string {
	if name := s.plan.named[selector]; name != "" {
		return name
	}
	for i, st := range s.Steps {
		if st.Agent != "" && s.plan.selector[i] == selector {
			return st.Agent
		}
	}
	return ""
}

// report takes in what an agent says of an attempt, in an answer to adopt or by
// itself.
func (e *edit) report(r Report, adopting bool) error {
	i := e.Index(r.Step)
	switch {
	case i < 0:
		return fmt.Errorf("%w: there is no step %s", ErrInvalid, quote(r.Step))
	case !r.State.valid() || r.Attempt < 1:
		return fmt.Errorf("%w: report %s of attempt %d of step %s", ErrInvalid, quote(string(r.State)), r.Attempt, r.Step)
	}
	st := e.Steps[i]
	own := st.Agent == r.Agent && st.Dispatch.Journal.ID == r.Journal.ID
	switch {
	case r.Attempt > st.Attempt:
		// Of a history that the store has lost. What it knows goes on.
	case r.Attempt < st.Attempt || !st.Status.out() && st.Status != StepInDoubt:
		e.superseded(i, r)
	case !own:
		// Another journal cannot know.
	case st.Status == StepInDoubt:
		if r.State == AttemptExited || r.State == AttemptNeverStarted {
			e.end(i, r)
		}
		if r.State.end() {
			e.reply(EffectAck, r)
		}
	case !adopting && st.Dispatch.Fence != e.Fence:
		// Counts when the agent has answered adopt, and is repeated there.
	default:
		e.current(i, r)
	}
	return nil
}

// superseded answers a report of an attempt that decides nothing any more.
func (e *edit) superseded(i int, r Report) {
	st := e.Steps[i]
	if st.Attempt == r.Attempt && st.Status.Final() && st.given() && !r.Acked { // or it was told of already
		e.late = append(e.late, r)
	}
	if r.State.end() {
		if st.Abandoned && st.Attempt == r.Attempt && st.Dispatch.Journal.ID == r.Journal.ID {
			e.step(i).Abandoned = false
		}
		e.reply(EffectAck, r)
		return
	}
	// A message that was only late must not kill what the attempt left behind on
	// purpose. One whose end nobody reported must not go on.
	open := st.Abandoned || st.Status == StepCancelled
	if r.Attempt < st.Attempt {
		open = st.Unknowns > 0
	}
	if open {
		e.reply(EffectKill, r)
	}
}

func (e *edit) reply(kind EffectKind, r Report) {
	effect := Effect{Kind: kind, Agent: r.Agent, Step: r.Step, Attempt: r.Attempt, Fence: e.Fence}
	if kind == EffectKill {
		effect.Journal = r.Journal.ID
	}
	e.replies = append(e.replies, effect)
}

// current takes in a report of the present attempt of a step that is out.
func (e *edit) current(i int, r Report) {
	st := e.Steps[i]
	switch {
	case r.State.end():
		switch {
		case r.State == AttemptUnknown:
			e.unknown(i, cmp.Or(r.Reason, "the agent cannot know how it ended"), r.StartedAt)
		case r.State == AttemptNeverStarted && st.Status == StepRunning:
			e.unknown(i, "the agent has lost its record of the attempt", r.StartedAt)
		default:
			e.end(i, r)
		}
		e.reply(EffectAck, r)
	case r.State == AttemptRunning && st.Status == StepDispatched:
		st = e.step(i)
		st.Status = StepRunning
		st.StartedAt = r.StartedAt
	case r.State == AttemptIntended && st.Status == StepRunning:
		e.step(i).Status = StepDispatched
	}
	if r.State == AttemptRunning && e.Steps[i].Frozen != r.Frozen {
		e.step(i).Frozen = r.Frozen
	}
	if e.Steps[i].Dispatch.Fence != e.Fence {
		e.step(i).Dispatch.Fence = e.Fence
	}
	if e.Steps[i] != e.old.Steps[i] {
		st := e.step(i)
		st.Dispatch.Journal.Counter = max(st.Dispatch.Journal.Counter, r.Journal.Counter)
		st.Unreachable = false
	}
}

// end takes in the known end of the present attempt.
func (e *edit) end(i int, r Report) {
	st := e.step(i)
	st.Reason = r.Reason
	st.Unreachable = false
	st.Signal, st.TimedOut, st.NoOutput = r.Signal, r.TimedOut, r.NoOutput
	if r.StartedAt != "" {
		st.StartedAt = r.StartedAt
	}
	st.FinishedAt = r.FinishedAt
	if r.State == AttemptExited {
		code := r.ExitCode
		st.ExitCode = &code
	}
	st.Outputs = e.Def(i).outputs(r.Outputs)
	exited := r.State == AttemptExited
	switch {
	case exited && e.Def(i).success(r.ExitCode) && r.Signal == 0 && !r.TimedOut && !r.Killed:
		if missing := e.Def(i).missing(st.Outputs); len(missing) > 0 && st.Reason == "" {
			st.Reason = "no value was written for output " + some(missing)
		}
		e.become(i, StepSucceeded)
	case e.Record.Cancel != nil && (!exited || r.Killed):
		e.become(i, StepCancelled)
	default:
		st.Failures++
		if e.Record.Cancel == nil && st.Failures < e.Def(i).Retry.Attempts {
			e.again(i)
		} else {
			e.become(i, StepFailed)
		}
	}
}

// unknown takes in that the end of the present attempt cannot be known.
func (e *edit) unknown(i int, reason string, started Stamp) {
	st := e.step(i)
	st.Reason = reason
	st.Unreachable = false
	if started != "" {
		st.StartedAt = started
	}
	st.Unknowns++
	if e.Def(i).Repeatable && e.Record.Cancel == nil && st.Unknowns < maxUnknowns {
		e.again(i)
	} else {
		e.become(i, StepInDoubt)
	}
}

// again makes a step whose attempt is over ready for the next.
func (e *edit) again(i int) {
	e.become(i, StepReady).BackingOff = e.Def(i).Retry.Delay > 0
	e.derive(i)
}

func (e *edit) adopted(ev Adopted) error {
	if ev.Fence != e.Fence {
		return nil // an answer to an earlier claim
	}
	for _, r := range ev.Attempts {
		r.Agent, r.Journal = ev.Agent, ev.Journal
		if err := e.report(r, true); err != nil {
			return err
		}
	}
	for i, st := range e.Steps {
		// A step that carries the fence has been told of above, or may have been
		// sent under it since this answer was given.
		if !st.Status.out() || st.Agent != ev.Agent || st.Dispatch.Fence == e.Fence {
			continue
		}
		later := slices.ContainsFunc(ev.Attempts, func(r Report) bool {
			return r.Step == st.Name && r.Attempt > st.Attempt
		})
		switch sent := st.Dispatch.Journal; {
		case sent.ID != ev.Journal.ID:
			e.unknown(i, "the agent has another journal", "")
		case ev.Journal.Counter < sent.Counter:
			e.unknown(i, "the agent's journal went back", "")
		case later:
			e.unknown(i, "the agent knows a later attempt", "")
		case st.Status == StepRunning:
			e.unknown(i, "the agent has lost its record of the attempt", "")
		case e.Record.Cancel != nil:
			e.become(i, StepCancelled).Reason = "it never reached the agent"
		default:
			st := e.step(i)
			st.Dispatch.Fence = e.Fence
			st.Unreachable = false
		}
	}
	return nil
}

func (e *edit) journalChanged(ev JournalChanged) {
	for i, st := range e.Steps {
		if st.Agent != ev.Agent || st.Dispatch.Journal.ID == ev.Journal && !ev.WentBack {
			continue
		}
		switch {
		case st.Abandoned:
			e.step(i).Abandoned = false
		case !st.Status.out():
		case ev.WentBack:
			e.unknown(i, "the agent's journal went back", "")
		default:
			e.unknown(i, "the agent has another journal", "")
		}
	}
}

func (e *edit) reachable(agent string, reachable bool) {
	for i, st := range e.Steps {
		if st.Agent == agent && st.Status.out() && st.Unreachable == reachable {
			e.step(i).Unreachable = !reachable
		}
	}
}
