package roles

import (
	"fmt"
	"slices"
	"strings"
)

// A step with for_each becomes steps, its instances, when it is ready: one for each
// agent. They are kept, dispatched and answered for like all others. What makes them
// instances is here: they wait for their turn, and the step that they are of has the
// status that follows from theirs.

// expanded takes in which agents a step is to run on.
func (e *edit) expanded(ev Expanded) error {
	i := e.Index(ev.Step)
	switch {
	case i < 0:
		return fmt.Errorf("%w: there is no step %s", ErrInvalid, quote(ev.Step))
	case e.Def(i).ForEach == nil:
		return fmt.Errorf("%w: step %s has no for_each", ErrInvalid, ev.Step)
	case e.Steps[i].Status != StepReady:
		return nil // the answer came too late
	case e.Fence == Fence{}:
		return fmt.Errorf("%w: step %s expanded without a claim", ErrInvalid, ev.Step)
	}
	agents := slices.Compact(slices.Sorted(slices.Values(ev.Agents)))
	if n := len(agents); n == 0 || n > MaxAgents {
		reason := "no agent that is known and not suspended matches " + e.Def(i).ForEach.String()
		if n > 0 {
			reason = fmt.Sprintf("%d agents match %s, at most %d are allowed", n, e.Def(i).ForEach, MaxAgents)
		}
		e.become(i, StepFailed).Reason = reason
		return nil
	}
	e.step(i).Expansion = &Expansion{Agents: agents, LeftOut: some(slices.Compact(slices.Sorted(slices.Values(ev.LeftOut))))}
	if err := e.rebuild(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	e.begin(e.Index(ev.Step))
	return nil
}

// begin makes a step run by its instances.
func (e *edit) begin(i int) {
	st := e.become(i, StepRunning)
	st.StartedAt, st.FinishedAt, st.Reason = e.at, "", ""
	first, end := e.plan.instances(i)
	for k := first; k < end; k++ {
		e.derive(k)
	}
}

// dueInstance returns the status that an instance has by the step that it is of.
func (s *State) dueInstance(st, of *Step) (status StepStatus, runs bool) {
	switch {
	case !of.spread():
		return StepWaiting, false
	case st.Skipped():
		return StepSkipped, true
	case s.Record.Held || st.Hold != nil || of.Hold != nil:
		return StepHeld, true
	}
	return StepReady, true
}

// room returns how many more instances of step p may be dispatched, -1 for any number.
func (s *State) room(p int) int {
	if p < 0 || s.Def(p).MaxParallel == 0 {
		return -1
	}
	out := 0
	first, end := s.plan.instances(p)
	for k := first; k < end; k++ {
		if s.Steps[k].out() {
			out++
		}
	}
	return max(0, s.Def(p).MaxParallel-out)
}

// gather draws the conclusions for step p of the end of an instance.
func (e *edit) gather(p int) {
	if !e.Steps[p].spread() {
		return
	}
	first, end := e.plan.instances(p)
	var bad []string
	for k := first; k < end; k++ {
		if e.Steps[k].Status == StepFailed {
			bad = append(bad, e.Def(k).Agent.Name)
		}
	}
	if e.Def(p).FailFast && len(bad) > 0 {
		for k := first; k < end; k++ {
			if st := e.Steps[k]; st.Status.derived() && st.Attempt == 0 {
				e.become(k, StepSkipped).Reason = "the step had failed on " + some(bad)
			}
		}
	}
	good, cancelled := 0, false
	for k := first; k < end; k++ {
		switch st := e.Steps[k]; {
		case !st.Status.Final():
			return
		case st.Status == StepSucceeded || st.Passed:
			good++
		case st.Status == StepCancelled:
			cancelled = true
		}
	}
	status, reason := StepFailed, "failed on "+some(bad)
	switch {
	case good == end-first:
		status, reason = StepSucceeded, ""
	case cancelled && len(bad) == 0:
		status, reason = StepCancelled, ""
	case len(bad) == 0: // those that failed have run again since
		reason = fmt.Sprintf("skipped on %d of %d agents after a failure", end-first-good, end-first)
	}
	st := e.become(p, status)
	st.FinishedAt, st.Reason = e.at, reason
}

// some lists the first of many names.
func some(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
