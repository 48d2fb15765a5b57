package roles

import (
	"encoding/json"
	"fmt"
)

// plan is a process in the form that the engine reads: indexes for names.
type plan struct {
	defs       []*StepDef
	index      map[string]int
	needs      [][]int
	dependents [][]int
	selector   []int    // of each step; steps with the same number share an agent
	named      []string // the agent that a selector names, by selector
	outputs    bool     // some step has outputs
	parents    []int    // of each step: what it is an instance of, or -1; nil: none is
}

// newPlan returns the plan of steps with these definitions, and parents as above.
func newPlan(defs []*StepDef, parents []int) (*plan, error) {
	n := len(defs)
	q := &plan{
		defs:       defs,
		parents:    parents,
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

// of returns the step that step i is an instance of, or -1.
func (p *plan) of(i int) int {
	if p.parents == nil {
		return -1
	}
	return p.parents[i]
}

// instances returns the instances of step i: the steps from first to before end. They
// follow the step.
func (p *plan) instances(i int) (first, end int) {
	if p.parents == nil {
		return i, i
	}
	for end = i + 1; end < len(p.parents) && p.parents[end] == i; end++ {
	}
	return i + 1, end
}

// Outputs returns the variables that step i finds in its environment: the outputs
// of all steps that it needs, directly or not. So what it gets depends on the
// process and not on which of two independent steps was faster. The value of a step
// with for_each is a JSON object of the values of its instances by agent. An instance
// finds what the step finds that it is of.
func (s State) Outputs(i int) map[string]string {
	if p := s.plan.of(i); p >= 0 {
		i = p
	}
	var found map[string]string
	var seen []bool
	var visit func(i int)
	visit = func(i int) {
		for _, j := range s.plan.needs[i] {
			if seen[j] {
				continue
			}
			seen[j] = true
			for name, value := range s.outputs(j) {
				if found == nil {
					found = make(map[string]string)
				}
				found[OutputVariable(s.Steps[j].Name, name)] = value
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

// outputs returns the outputs of step j.
func (s *State) outputs(j int) Outputs {
	if s.Steps[j].Outputs != nil {
		return *s.Steps[j].Outputs
	}
	first, end := s.plan.instances(j)
	values := make(map[string]map[string]string)
	for k := first; k < end; k++ {
		if s.Steps[k].Outputs == nil {
			continue
		}
		for name, value := range *s.Steps[k].Outputs {
			if values[name] == nil {
				values[name] = make(map[string]string)
			}
			values[name][s.Steps[k].Agent] = value
		}
	}
	all := make(Outputs, len(values))
	for name, by := range values {
		text, _ := json.Marshal(by) // of strings: cannot fail
		all[name] = string(text)
	}
	return all
}
