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

// retries reports whether the instance waits for its next attempt. Until its end it keeps
// the place that it had: what fails here must not begin everywhere meanwhile.
func (s *Step) retries() bool { return s.Status == StepReady && s.Failures > 0 }

// places is how the places are taken that max_parallel gives the instances of a step.
type places struct {
	limit   int // 0: none
	out     int
	retries int
}

// places counts those of the instances of step p, -1 for a step that is no instance.
func (s *State) places(p int) places {
	if p < 0 || s.Def(p).MaxParallel == 0 {
		return places{}
	}
	all := places{limit: s.Def(p).MaxParallel}
	first, end := s.plan.instances(p)
	for k := first; k < end; k++ {
		if s.Steps[k].out() {
			all.out++
		} else if s.Steps[k].retries() {
			all.retries++
		}
	}
	return all
}

// free reports whether an instance may be dispatched. Those that retry come first, in
// their order: before is how many of them stand before it.
func (p places) free(st *Step, before int) bool {
	if !st.retries() {
		before = p.retries
	}
	return p.limit == 0 || p.out+before < p.limit
}

// free reports whether there is a place for step i.
func (s *State) free(i int) bool {
	p := s.plan.of(i)
	before := 0
	for k := p + 1; p >= 0 && k < i; k++ {
		if s.Steps[k].retries() {
			before++
		}
	}
	return s.places(p).free(s.Steps[i], before)
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
