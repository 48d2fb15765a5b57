package roles

import (
	"fmt"

	"pgregory.net/rapid"
)

// orderActions are what operators may order of the request that the owner has, on
// any of its steps, whether it fits or not.
func (w *world) orderActions(may func(kind, name string, weight int, do func())) {
	var names []string
	for _, st := range w.owner.Steps {
		names = append(names, st.Name)
	}
	step := func(label string) string { return rapid.SampledFrom(names).Draw(w.t, label) }
	may("hold", " all", 1, func() { w.happens(Hold{By: "ada"}) })
	may("hold", " one", 1, func() { w.happens(Hold{Step: step("held"), By: "ada"}) })
	may("hold", " release all", 2, func() { w.happens(Release{By: "ada"}) })
	may("hold", " release one", 2, func() { w.happens(Release{Step: step("released"), By: "ada"}) })
	may("skip", "", 1, func() { w.happens(Skip{Step: step("skipped"), By: "ada"}) })
	may("rerun", "", 3, func() {
		w.happens(Rerun{Step: step("run again"), From: rapid.Bool().Draw(w.t, "from"), By: "ada"})
	})
	may("finish", "", 1, func() {
		w.happens(Finish{As: rapid.SampledFrom([]RequestStatus{RequestSucceeded, RequestFailed, RequestCancelled}).Draw(w.t, "as"), By: "ada"})
	})
	may("amend", " insert", 1, func() {
		w.inserts++
		o := Insert{Def: genStep(w.t, fmt.Sprintf("x%d", w.inserts), names), By: "ada"}
		if rapid.Bool().Draw(w.t, "before") {
			o.Before = step("before")
		}
		if o.Before == "" || rapid.Bool().Draw(w.t, "after") {
			o.After = step("after")
		}
		w.happens(o)
	})
	may("amend", " change", 2, func() {
		name := step("changed")
		w.happens(Amend{Step: name, Def: genStep(w.t, name, names), By: "ada"})
	})
}

// checkInstance checks that an instance may begin an attempt: the step that it is of
// runs, is not held, and has room.
func (w *world) checkInstance(s State, st Step, ev Event) {
	p := s.plan.of(s.Index(st.Name))
	if p < 0 {
		return
	}
	of, out := w.known[s.Steps[p].Name], 0
	first, end := s.plan.instances(p)
	for k := first; k < end; k++ {
		if s.Steps[k].out() {
			out++
		}
	}
	if most := s.Def(p).MaxParallel; of.Hold != nil || s.Steps[p].Status != StepRunning || most > 0 && out > most {
		w.t.Fatalf("%+v: %s dispatched, of a step that is %s, held %v, with %d out", ev, st.Name, s.Steps[p].Status, of.Hold != nil, out)
	}
}

// checkParent compares the outcome of a step that was spread with those of its
// instances, and reports whether step i is one of these.
func (w *world) checkParent(s State, i int) bool {
	if s.plan.of(i) >= 0 {
		return true
	}
	st := s.Steps[i]
	if st.Expansion == nil || st.Status == StepSkipped {
		return false
	}
	all := true
	first, end := s.plan.instances(i)
	for k := first; k < end; k++ {
		all = all && (s.Steps[k].Status == StepSucceeded || s.Steps[k].Passed)
		if !w.reran && s.Steps[k].Status == StepSkipped && !s.Steps[k].Passed && !s.Def(i).FailFast {
			w.t.Fatalf("%s: %s was skipped without a failure", summary(s), s.Steps[k].Name)
		}
	}
	if all != (st.Status == StepSucceeded) {
		w.t.Fatalf("%s: %s is %s", summary(s), st.Name, st.Status)
	}
	return false
}
