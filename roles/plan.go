package roles

import "fmt"

// plan is a process in the form that the engine reads: indexes for names.
type plan struct {
	defs       []*StepDef
	index      map[string]int
	needs      [][]int
	dependents [][]int
	selector   []int    // of each step; steps with the same number share an agent
	named      []string // the agent that a selector names, by selector
	outputs    bool     // some step has outputs
}

func newPlan(defs []*StepDef) (*plan, error) {
	n := len(defs)
	q := &plan{
		defs:       defs,
		index:      make(map[string]int, n),
		needs:      make([][]int, n),
		dependents: make([][]int, n),
		selector:   make([]int, n),
	}
	for i, def := range defs {
		if _, dup := q.index[def.Name]; dup {
			return nil, fmt.Errorf("two steps are called %s", quote(def.Name))
		}
		q.index[def.Name] = i
	}
	selectors := make(map[string]int)
	for i, def := range defs {
		switch on := def.On; {
		case on == OnFailure && len(def.Needs) == 0:
			return nil, fmt.Errorf("step %s is on: failure and needs nothing", quote(def.Name))
		case on != OnSuccess && on != OnFailure && on != OnAlways:
			return nil, fmt.Errorf("step %s is on: %s", quote(def.Name), quote(string(on)))
		}
		for _, need := range def.Needs {
			j, ok := q.index[need]
			if !ok {
				return nil, fmt.Errorf("step %s needs %s, which does not exist", quote(def.Name), quote(need))
			}
			q.needs[i] = append(q.needs[i], j)
			q.dependents[j] = append(q.dependents[j], i)
		}
		q.outputs = q.outputs || len(def.Outputs) > 0
		text := def.Agent.String()
		k, ok := selectors[text]
		if !ok {
			k = len(selectors)
			selectors[text] = k
			q.named = append(q.named, def.Agent.Name)
		}
		q.selector[i] = k
	}
	if len(cycles(q.needs)) > 0 {
		return nil, fmt.Errorf("steps need each other in a cycle")
	}
	return q, nil
}

// Outputs returns the variables that step i finds in its environment: the outputs
// of all steps that it needs, directly or not. So what it gets depends on the
// process and not on which of two independent steps was faster.
func (s State) Outputs(i int) map[string]string {
	var found map[string]string
	var seen []bool
	var visit func(i int)
	visit = func(i int) {
		for _, j := range s.plan.needs[i] {
			if seen[j] {
				continue
			}
			seen[j] = true
			if st := s.Steps[j]; st.Outputs != nil {
				if found == nil {
					found = make(map[string]string)
				}
				for name, value := range *st.Outputs {
					found[OutputVariable(st.Name, name)] = value
				}
			}
			visit(j)
		}
	}
	if len(s.plan.needs[i]) > 0 && s.plan.outputs {
		seen = make([]bool, len(s.Steps))
		visit(i)
	}
	return found
}
