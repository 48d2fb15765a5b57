package roles

import (
	"cmp"
	"slices"
)

// Amendment is what an operator has made of the definition of one step of a request.
// It is kept in the record of the step; the spec of the request never changes.
type Amendment struct {
	// Def is the definition that counts.
	Def StepDef `json:"def"`
	// Inserted, from 1, orders the steps that the process does not have; 0: it has
	// this one. Such a step is listed before Before or, if that is empty, after
	// After.
	Inserted int    `json:"inserted,omitempty"`
	Before   string `json:"before,omitempty"`
	After    string `json:"after,omitempty"`
}

// layout returns the definitions of all steps of a request in their order, and which
// step each is an instance of, or nil if none is. Both follow from the spec and from
// the records of the steps alone.
func layout(r *Request, records map[string]*Step) (defs []*StepDef, parents []int) {
	defs = definitions(r, records)
	if !slices.ContainsFunc(defs, func(d *StepDef) bool { return d.ForEach != nil }) {
		return defs, nil
	}
	var all []*StepDef
	for _, def := range defs {
		parent := len(all)
		all, parents = append(all, def), append(parents, -1)
		if st := records[def.Name]; st != nil && st.Expansion != nil {
			for _, agent := range st.Expansion.Agents {
				all, parents = append(all, def.instance(agent)), append(parents, parent)
			}
		}
	}
	return all, parents
}

// instance returns the definition of the instance of a step on an agent.
func (s *StepDef) instance(agent string) *StepDef {
	def := *s
	def.Name, def.Agent = s.Name+"@"+agent, Selector{Name: agent, Cluster: s.ForEach.Cluster} // whose limits count
	def.Needs, def.On, def.Recovers = nil, OnSuccess, false
	def.ForEach, def.MaxParallel, def.FailFast = nil, 0, false
	return &def
}

// definitions returns those of the steps that are no instances.
func definitions(r *Request, records map[string]*Step) []*StepDef {
	defs := make([]*StepDef, len(r.Process.Steps), max(len(r.Process.Steps), len(records)))
	for i := range defs {
		defs[i] = &r.Process.Steps[i]
		if st := records[defs[i].Name]; st != nil && st.Amended != nil {
			defs[i] = &st.Amended.Def
		}
	}
	var inserted []*Amendment
	for _, st := range records {
		if st.Amended != nil && st.Amended.Inserted > 0 {
			inserted = append(inserted, st.Amended)
		}
	}
	slices.SortFunc(inserted, func(a, b *Amendment) int {
		return cmp.Or(cmp.Compare(a.Inserted, b.Inserted), cmp.Compare(a.Def.Name, b.Def.Name))
	})
	for _, a := range inserted {
		at := slices.IndexFunc(defs, func(d *StepDef) bool { return d.Name == cmp.Or(a.Before, a.After) })
		if at < 0 {
			at = len(defs)
		} else if a.Before == "" {
			at++
		}
		defs = slices.Insert(defs, at, &a.Def)
	}
	return defs
}

// rebuild takes in that the records say something else of the definitions than
// before. It comes before anything that uses an index.
func (e *edit) rebuild() error {
	now, before := make(map[string]*Step, len(e.Steps)), make(map[string]*Step, len(e.old.Steps))
	for _, st := range e.Steps {
		now[st.Name] = st
	}
	for _, st := range e.old.Steps {
		before[st.Name] = st
	}
	p, err := newPlan(layout(e.Request, now))
	if err != nil {
		return err
	}
	e.plan = p
	e.Steps, e.old.Steps, e.touched = make([]*Step, len(p.defs)), make([]*Step, len(p.defs)), nil
	for i, def := range p.defs {
		blank := &Step{Name: def.Name, Status: StepWaiting}
		e.Steps[i], e.old.Steps[i] = cmp.Or(now[def.Name], blank), cmp.Or(before[def.Name], blank)
		if e.Steps[i] != e.old.Steps[i] {
			e.touched = append(e.touched, i)
		}
	}
	return nil
}
