package roles

import (
	"encoding/json"
	"fmt"
	"slices"
)

// order is an event that an operator causes. It is refused with ErrConflict when it
// does not fit the request any more.
type order interface {
	Event
	apply(e *edit) error
}

// Cancel is an operator's order that nothing of the request starts any more and
// what runs is killed.
type Cancel struct{ By, Why string }

// Hold is an operator's order that nothing more of the request starts, or that one
// step of it does not. What runs goes on.
type Hold struct {
	Step    string // empty: the request
	By, Why string
}

// Release is an operator's order to let go on what is held: the request or, if it
// is named, the step.
type Release struct{ Step, By string }

// Skip is an operator's order to do without a step of which nothing runs. When its
// turn comes it is skipped, and counts as one that succeeded for those that need it.
type Skip struct{ Step, By, Why string }

// Rerun is an operator's order to run a step again that has ended, or to run one that
// was to be skipped; with From also everything that depends on it and has ended.
type Rerun struct {
	Step    string
	From    bool
	By, Why string
}

// Finish is an operator's order to give the request its final status at once.
// Nothing more of it starts, and what runs is killed.
type Finish struct {
	As      RequestStatus // final
	By, Why string
}

// Insert is an operator's order to add a step. With Before it is one that Before
// needs, and needs in turn what Before did. With After it needs After, and is needed
// by all steps that need After and have not begun. At least one of the two is set.
type Insert struct {
	Def           StepDef
	Before, After string
	By, Why       string
}

// Amend is an operator's order to give a step of which nothing runs another
// definition.
type Amend struct {
	Step    string
	Def     StepDef // its name is that of the step, or empty
	By, Why string
}

// Verdict is what an operator says of a step.
type Verdict string

// The verdicts.
const (
	VerdictSuccess Verdict = "success"
	VerdictFailed  Verdict = "failed"
	VerdictRerun   Verdict = "rerun"
	VerdictSkip    Verdict = "skip"
	// VerdictAbandon is what Finish says of a step that may be running, or may have.
	VerdictAbandon Verdict = "abandon"
)

// Resolve is an operator's word about a step in doubt: success, failed or rerun.
// With Force it also ends a step whose agent is unreachable.
type Resolve struct {
	Step    string
	As      Verdict
	By, Why string
	Force   bool
}

func (Cancel) event()  {}
func (Hold) event()    {}
func (Release) event() {}
func (Skip) event()    {}
func (Rerun) event()   {}
func (Finish) event()  {}
func (Insert) event()  {}
func (Amend) event()   {}
func (Resolve) event() {}

// obey is Next for an order.
func obey(s State, o order, at Stamp) (State, Change, error) {
	if s.Record.Status.Final() {
		return s, Change{}, conflictf("the request is %s already", s.Record.Status)
	}
	e := &edit{State: s, old: s, at: at}
	if err := o.apply(e); err != nil {
		return s, Change{}, err
	}
	e.settle()
	return e.State, e.finish(), nil
}

func conflictf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrConflict, fmt.Sprintf(format, args...))
}

// named returns the index of a step that an order names.
func (e *edit) named(step string) (int, error) {
	i := e.Index(step)
	if i < 0 {
		return i, conflictf("there is no step %s", quote(step))
	}
	return i, nil
}

// idle is named for a step of which nothing may run and that is not over.
func (e *edit) idle(step string) (int, error) {
	i, err := e.named(step)
	if err != nil {
		return i, err
	}
	if st := e.Steps[i]; !st.Status.derived() {
		return i, conflictf("step %s is %s already", step, st.Status)
	}
	return i, nil
}

// defined is named for a step that has a definition of its own.
func (e *edit) defined(step string) (int, error) {
	i, err := e.named(step)
	if err == nil && e.plan.of(i) >= 0 {
		return i, fmt.Errorf("%w: step %s is an instance: name the step that it is of, %s", ErrInvalid, step, e.Steps[e.plan.of(i)].Name)
	}
	return i, err
}

// starts refuses what could make something start after a cancel.
func (e *edit) starts() error {
	if e.Record.Cancel != nil {
		return conflictf("the request is cancelled, nothing of it starts")
	}
	return nil
}

func (o Cancel) apply(e *edit) error { //nolint:unparam // as every order
	if e.Record.Cancel != nil {
		return nil
	}
	e.Record.Cancel = &Order{By: o.By, Why: o.Why, At: e.at}
	for i, st := range e.Steps {
		if st.Status.derived() {
			e.become(i, StepCancelled)
		}
	}
	return nil
}

func (o Hold) apply(e *edit) error {
	if err := e.starts(); err != nil {
		return err
	}
	by := &Order{By: o.By, Why: o.Why, At: e.at}
	if o.Step == "" {
		if !e.Record.Held {
			e.Record.Held, e.Record.HeldBy = true, by
			e.deriveAll()
		}
		return nil
	}
	i, err := e.named(o.Step)
	if err == nil && !e.Steps[i].spread() {
		i, err = e.idle(o.Step)
	}
	if err != nil || e.Steps[i].Hold != nil {
		return err
	}
	e.step(i).Hold = by
	e.deriveAll()
	return nil
}

func (o Release) apply(e *edit) error {
	if o.Step == "" {
		if !e.Record.Held {
			return conflictf("the request is not held")
		}
		e.Record.Held, e.Record.HeldBy = false, nil
		e.deriveAll()
		return nil
	}
	i, err := e.named(o.Step)
	switch {
	case err != nil:
		return err
	case e.Steps[i].Hold == nil:
		return conflictf("step %s is not held", o.Step)
	}
	e.step(i).Hold = nil
	e.deriveAll()
	return nil
}

func (o Skip) apply(e *edit) error {
	i, err := e.named(o.Step)
	if err != nil {
		return err
	}
	if st := e.Steps[i]; st.Skipped() && (st.Status.derived() || st.Status == StepSkipped) {
		return nil
	}
	if i, err = e.idle(o.Step); err != nil {
		return err
	}
	st := e.step(i)
	st.Decision = &Decision{As: VerdictSkip, By: o.By, Why: o.Why, At: e.at}
	st.Hold = nil
	e.derive(i)
	return nil
}

func (o Rerun) apply(e *edit) error {
	if err := e.starts(); err != nil {
		return err
	}
	i, err := e.named(o.Step)
	if err != nil {
		return err
	}
	again := e.anew(i, o.From)
	for _, j := range again {
		switch st := e.Steps[j]; {
		case st.Abandoned:
			return conflictf("step %s was given up and may be running on %s", st.Name, st.Agent)
		case st.Status == StepInDoubt:
			return conflictf("step %s is in doubt: resolve it", st.Name)
		case st.Status.out() || j == i && st.Status.derived() && !st.Skipped():
			return conflictf("step %s is %s, it has not ended", st.Name, st.Status)
		case j == i && st.Status == StepSkipped && !st.Passed && e.plan.of(i) < 0:
			return conflictf("step %s was skipped because of what it needs: run that again, with all that follows", st.Name)
		}
	}
	for _, j := range again {
		st := e.Steps[j]
		if !st.Status.Final() && j != i {
			continue
		}
		st = e.become(j, StepWaiting)
		st.Reason = ""
		// What an operator wants skipped stays so, unless it is what this is about.
		if j == i || !st.Skipped() {
			st.Failures = 0
			st.Decision = &Decision{As: VerdictRerun, By: o.By, Why: o.Why, At: e.at}
		}
	}
	if p := e.plan.of(i); p >= 0 && e.Steps[p].Status.Final() {
		e.begin(p)
	}
	e.deriveAll()
	return nil
}

// anew returns the steps that begin anew if step i does, which is the first of them:
// its instances with it and, if from is set, everything that depends on it. Of an
// instance these are what depends on the step that it is of, and the other instances
// that were not to begin after its failure.
func (e *edit) anew(i int, from bool) []int {
	found := []int{i}
	p := e.plan.of(i)
	switch {
	case from && p >= 0:
		first, end := e.plan.instances(p)
		for k := first; k < end; k++ {
			if st := e.Steps[k]; k != i && st.Status == StepSkipped && !st.Passed {
				found = append(found, k)
			}
		}
		found = append(found, e.after(p)[1:]...)
	case from:
		found = e.after(i)
	}
	for _, j := range found {
		first, end := e.plan.instances(j)
		for k := first; k < end; k++ {
			found = append(found, k)
		}
	}
	return found
}

// after returns step i and all steps that need it, directly or not.
func (e *edit) after(i int) []int {
	found := []int{i}
	for k := 0; k < len(found); k++ {
		for _, j := range e.plan.dependents[found[k]] {
			if !slices.Contains(found, j) {
				found = append(found, j)
			}
		}
	}
	return found
}

func (o Finish) apply(e *edit) error {
	if !o.As.Final() {
		return fmt.Errorf("%w: a request is finished as succeeded, failed or cancelled, not %s", ErrInvalid, quote(string(o.As)))
	}
	for i, st := range e.Steps {
		out, doubt := st.out(), st.Status == StepInDoubt
		if st.Status.Final() {
			continue
		}
		st = e.become(i, StepCancelled)
		if out || doubt {
			st.Decision = &Decision{As: VerdictAbandon, By: o.By, Why: o.Why, At: e.at, Force: out}
			st.Abandoned = out
			st.Reason = "given up when the request was finished; how it ended is not known"
		}
	}
	e.Record.Status, e.Record.FinishedAt = o.As, e.at
	e.Record.Finish = &Order{By: o.By, Why: o.Why, At: e.at}
	return nil
}

// MaxAmendment is the most bytes of an encoded definition that an operator gives a
// request that runs.
const MaxAmendment = MaxSpec / 2

// fits refuses a definition that the store could not take, and fills in what may be
// left out.
func fits(def StepDef) (StepDef, error) {
	if def.On == "" {
		def.On = OnSuccess
	}
	text, err := json.Marshal(def)
	switch {
	case err != nil:
		return def, fmt.Errorf("%w: definition: %w", ErrInvalid, err)
	case len(text) > MaxAmendment:
		return def, fmt.Errorf("%w: the definition has %d bytes, at most %d are allowed", ErrInvalid, len(text), MaxAmendment)
	}
	return def, nil
}

func (o Insert) apply(e *edit) error {
	if err := e.starts(); err != nil {
		return err
	}
	def, err := fits(o.Def)
	switch {
	case err != nil:
		return err
	case o.Before == "" && o.After == "":
		return fmt.Errorf("%w: a step is inserted before or after another", ErrInvalid)
	case CheckName(def.Name) != nil:
		return fmt.Errorf("%w: name: %w", ErrInvalid, CheckName(def.Name))
	case e.Index(def.Name) >= 0:
		return conflictf("there is a step %s already", quote(def.Name))
	}
	def.Needs = slices.Clone(def.Needs)
	need := func(name string) {
		if !slices.Contains(def.Needs, name) {
			def.Needs = append(def.Needs, name)
		}
	}
	var needed []int // that are to need the new step
	if o.After != "" {
		i, err := e.defined(o.After)
		if err != nil {
			return err
		}
		need(o.After)
		needed = slices.DeleteFunc(slices.Clone(e.plan.dependents[i]), func(j int) bool { return !e.Steps[j].Status.derived() })
	}
	if o.Before != "" {
		i, err := e.defined(o.Before)
		if err == nil {
			i, err = e.idle(o.Before)
		}
		if err != nil {
			return err
		}
		needed = []int{i}
		if o.After == "" {
			for _, name := range e.Def(i).Needs {
				need(name)
			}
		}
	}
	last := 0
	for _, st := range e.Steps {
		if st.Amended != nil {
			last = max(last, st.Amended.Inserted)
		}
	}
	for _, i := range needed {
		other := *e.Def(i)
		other.Needs = append(slices.Clone(other.Needs), def.Name)
		e.amend(i, other)
	}
	if e.touched == nil {
		e.Steps = slices.Clone(e.Steps)
	}
	e.Steps = append(e.Steps, &Step{
		Name: def.Name, Status: StepWaiting,
		Amended: &Amendment{Def: def, Inserted: last + 1, Before: o.Before, After: o.After},
	})
	return e.amended()
}

func (o Amend) apply(e *edit) error {
	if err := e.starts(); err != nil {
		return err
	}
	def, err := fits(o.Def)
	if err != nil {
		return err
	}
	i, err := e.defined(o.Step)
	if err == nil {
		i, err = e.idle(o.Step)
	}
	switch {
	case err != nil:
		return err
	case def.Name != "" && def.Name != o.Step:
		return fmt.Errorf("%w: name: %s is not the step that is to change, %s", ErrInvalid, quote(def.Name), quote(o.Step))
	case e.Steps[i].Attempt > 0 && def.Agent.String() != e.Def(i).Agent.String():
		// Its agent would be taken for the choice of another selector.
		return conflictf("step %s has run on %s already: its agent cannot change", o.Step, e.Steps[i].Agent)
	}
	if x := e.Steps[i].Expansion; x != nil && (def.ForEach == nil || def.ForEach.String() != e.Def(i).ForEach.String()) {
		return conflictf("step %s has instances on %s already: its agents cannot change", o.Step, some(x.Agents))
	}
	def.Name = o.Step
	e.amend(i, def)
	return e.amended()
}

// amend gives step i another definition; amended takes it in.
func (e *edit) amend(i int, def StepDef) {
	st := e.step(i)
	next := Amendment{Def: def}
	if st.Amended != nil {
		next.Inserted, next.Before, next.After = st.Amended.Inserted, st.Amended.Before, st.Amended.After
	}
	st.Amended = &next
}

// amended takes in new definitions, if the process is still one with them.
func (e *edit) amended() error {
	now := make(map[string]*Step, len(e.Steps))
	for _, st := range e.Steps {
		now[st.Name] = st
	}
	p := e.Request.Process
	p.Steps = nil
	for _, def := range definitions(e.Request, now) {
		p.Steps = append(p.Steps, *def)
	}
	if err := p.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := e.rebuild(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	e.deriveAll()
	return nil
}

func (o Resolve) apply(e *edit) error {
	i, err := e.named(o.Step)
	if err != nil {
		return err
	}
	status, ok := map[Verdict]StepStatus{
		VerdictSuccess: StepSucceeded,
		VerdictFailed:  StepFailed,
		VerdictRerun:   StepReady,
	}[o.As]
	if !ok {
		return fmt.Errorf("%w: verdict %s", ErrInvalid, quote(string(o.As)))
	}
	st := e.Steps[i]
	abandon := st.out() && o.Force && st.Unreachable
	switch {
	case st.spread():
		return conflictf("step %s runs on several agents: name one of its instances, such as %s@%s", st.Name, st.Name, st.Expansion.Agents[0])
	case st.Status.Final() || st.Status.derived():
		return conflictf("step %s is %s, not in doubt", st.Name, st.Status)
	case st.Status.out() && !o.Force && st.Unreachable:
		return conflictf("step %s is %s, not in doubt, and its agent %s is unreachable: it may be running there still. It can be decided all the same, as success or failed, with --force (API: \"force\")",
			st.Name, st.Status, st.Agent)
	case st.Status.out() && !o.Force:
		return conflictf("step %s is %s, not in doubt", st.Name, st.Status)
	case st.Status.out() && !abandon:
		return conflictf("step %s is %s and its agent %s is reachable", st.Name, st.Status, st.Agent)
	case abandon && o.As == VerdictRerun:
		return conflictf("step %s may be running on %s; it can be forced to success or failed, not to run twice", st.Name, st.Agent)
	}
	if o.As == VerdictRerun {
		if err := e.starts(); err != nil {
			return err
		}
	}
	st = e.become(i, status)
	st.Decision = &Decision{As: o.As, By: o.By, Why: o.Why, At: e.at, Force: abandon}
	st.Abandoned = abandon
	if o.As == VerdictRerun {
		st.Failures = 0
		e.derive(i)
	}
	return nil
}
