package roles

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Validate returns nil or a Problems that lists all that is wrong with p.
func (p *Process) Validate() error {
	l := problemList{file: "process " + p.Name}
	p.check(func(path, format string, args ...any) {
		l.addf(0, 0, p.display(path), format, args...)
	})
	return l.err()
}

// display returns a path with steps[2] replaced by steps[name].
func (p *Process) display(path string) string {
	var i int
	if n, _ := fmt.Sscanf(path, "steps[%d]", &i); n != 1 || i < 0 || i >= len(p.Steps) || CheckName(p.Steps[i].Name) != nil {
		return path
	}
	return "steps[" + p.Steps[i].Name + path[strings.IndexByte(path, ']'):]
}

// check calls addf for all that is wrong with p except types: what the structure
// alone cannot say. Paths are like steps[2].needs[0].
func (p *Process) check(addf func(path, format string, args ...any)) {
	v := &validator{process: p, addf: addf}
	v.check("name", CheckName(p.Name))
	v.params()
	v.steps()
}

// check calls addf for what is wrong with a step by itself, whatever it needs.
func (s *StepDef) check(addf func(path, format string, args ...any)) {
	alone := *s
	if alone.Needs = nil; alone.On == OnFailure {
		alone.Needs = []string{s.Name} // it may get needs where it is put
	}
	v := &validator{process: &Process{Steps: []StepDef{alone}}, addf: func(path, format string, args ...any) {
		addf(strings.TrimPrefix(strings.TrimPrefix(path, "steps[0]"), "."), format, args...)
	}}
	v.check("name", CheckName(s.Name))
	v.step(0)
}

type validator struct {
	process *Process
	addf    func(path, format string, args ...any)
	hints   int // misspellings looked up
	// variables says which output each variable has, once there is one.
	variables map[string]string
}

func (v *validator) check(path string, err error) {
	if err != nil {
		v.addf(path, "%v", err)
	}
}

func (v *validator) params() {
	params := v.process.Params
	if len(params) > MaxParams {
		v.addf("params", "has %d parameters, at most %d are allowed", len(params), MaxParams)
	}
	first := make(map[string]int)
	for i := range params {
		q, at := &params[i], fmt.Sprintf("params[%d]", i)
		err := CheckParamName(q.Name)
		v.check(at+".name", err)
		if j, dup := first[q.Name]; dup && err == nil {
			v.addf(at+".name", "%s is the name of parameter %d already", quote(q.Name), j+1)
		} else if !dup {
			first[q.Name] = i
		}
		if q.Required && q.Default != "" {
			v.addf(at+".default", "a required parameter has no default")
		}
		v.check(at+".default", checkValue(q.Default))
	}
}

func (v *validator) steps() {
	steps := v.process.Steps
	switch {
	case len(steps) == 0:
		v.addf("steps", "is missing or empty: a process has at least one step")
	case len(steps) > MaxSteps:
		v.addf("steps", "has %d steps, at most %d are allowed", len(steps), MaxSteps)
		return
	}
	index := make(map[string]int, len(steps))
	var names []string
	for i := range steps {
		at := fmt.Sprintf("steps[%d].name", i)
		if err := CheckName(steps[i].Name); err != nil {
			v.check(at, err)
		} else if j, dup := index[steps[i].Name]; dup {
			v.addf(at, "%s is the name of step %d already", quote(steps[i].Name), j+1)
		} else {
			index[steps[i].Name] = i
			names = append(names, steps[i].Name)
		}
	}
	edges := make([][]int, len(steps))
	for i := range steps {
		edges[i] = v.needs(i, index, names)
		v.step(i)
	}
	for _, cycle := range cycles(edges) {
		var around []string
		for _, i := range append(cycle, cycle[0]) {
			around = append(around, steps[i].Name)
		}
		v.addf(fmt.Sprintf("steps[%d].needs", cycle[0]), "is a cycle: %s", strings.Join(shorten(around), " needs "))
	}
}

// needs checks the needs of step i and returns their indexes.
func (v *validator) needs(i int, index map[string]int, names []string) []int {
	var known []int
	seen := make(map[string]bool)
	for k, need := range v.process.Steps[i].Needs {
		at := fmt.Sprintf("steps[%d].needs[%d]", i, k)
		j, ok := index[need]
		switch {
		case seen[need]:
			v.addf(at, "%s is named twice", quote(need))
		case !ok:
			hint := ""
			if v.hints++; v.hints < maxProblems { // comparing all with all is slow, and nobody reads on
				hint = DidYouMean(Nearest(need, names))
			}
			v.addf(at, "there is no step %s%s", quote(need), hint)
		default:
			known = append(known, j)
		}
		seen[need] = true
	}
	return known
}

func (v *validator) step(i int) {
	s, at := &v.process.Steps[i], fmt.Sprintf("steps[%d]", i)
	switch s.On {
	case OnSuccess, OnAlways:
		if s.Recovers {
			v.addf(at+".recovers", "only a step with on: failure can recover")
		}
	case OnFailure:
		if len(s.Needs) == 0 {
			v.addf(at+".on", "on: failure without needs would never run")
		}
	default:
		v.addf(at+".on", "%s must be success, failure or always%s", quote(string(s.On)),
			DidYouMean(Nearest(string(s.On), []string{string(OnSuccess), string(OnFailure), string(OnAlways)})))
	}
	v.agents(at, s)
	v.command(at, s)
	if len(s.Env) > MaxEnv {
		v.addf(at+".env", "has %d variables, at most %d are allowed", len(s.Env), MaxEnv)
	}
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		if CheckParamName(k) != nil {
			v.addf(at+".env."+k, "%s is not a variable name: use letters, digits and '_', without a digit first", quote(k))
		} else if strings.HasPrefix(k, "UAC_") {
			v.addf(at+".env."+k, "names that begin with UAC_ are reserved")
		}
		v.check(at+".env."+k, checkValue(s.Env[k]))
	}
	if s.Dir != "" {
		if !path.IsAbs(s.Dir) {
			v.addf(at+".dir", "%s must be an absolute path", quote(s.Dir))
		}
		v.check(at+".dir", checkValue(s.Dir))
	}
	if s.RunAs != "" {
		v.check(at+".run_as", checkUser(s.RunAs))
	}
	v.limits(at, s)
	v.outputs(at, s)
	if s.Retry.Attempts < 0 || s.Retry.Attempts > MaxAttempts {
		v.addf(at+".retry.attempts", "%d must be from 1 to %d", s.Retry.Attempts, MaxAttempts)
	}
	switch d := s.Retry.Delay; {
	case d < 0:
		v.addf(at+".retry.delay", "%s must not be negative", d)
	case d > Duration(24*time.Hour):
		v.addf(at+".retry.delay", "%s is longer than 24h", d)
	}
}

// command checks what a step runs.
func (v *validator) command(at string, s *StepDef) {
	switch {
	case s.Run != "" && s.Argv != nil:
		v.addf(at+".argv", "run and argv are both given: give one of them")
	case s.Argv != nil:
		v.argv(at+".argv", s.Argv)
	case strings.TrimSpace(s.Run) == "":
		v.addf(at+".run", "is missing or empty: give run or argv")
	case len(s.Run) > MaxRun:
		v.addf(at+".run", "has %d bytes, at most %d are allowed", len(s.Run), MaxRun)
	default:
		v.check(at+".run", checkText(s.Run))
	}
	if len(s.Stdin) > MaxRun {
		v.addf(at+".stdin", "has %d bytes, at most %d are allowed", len(s.Stdin), MaxRun)
	}
	v.check(at+".stdin", checkText(s.Stdin))
}

func (v *validator) argv(at string, argv []string) {
	switch {
	case len(argv) == 0 || argv[0] == "":
		v.addf(at, "must begin with the name of a program")
	case len(argv) > MaxArgs:
		v.addf(at, "has %d words, at most %d are allowed", len(argv), MaxArgs)
		return
	}
	total := 0
	for k, word := range argv {
		total += len(word)
		v.check(fmt.Sprintf("%s[%d]", at, k), checkValue(word))
	}
	if total > MaxRun {
		v.addf(at, "has %d bytes, at most %d are allowed", total, MaxRun)
	}
}

// limits checks the numbers and durations of a step.
func (v *validator) limits(at string, s *StepDef) {
	for _, d := range []struct {
		field string
		value Duration
	}{{"timeout", s.Timeout}, {"kill_grace", s.KillGrace}, {"stop_when_alone", s.StopWhenAlone}} {
		if d.value < 0 {
			v.addf(at+"."+d.field, "%s must not be negative", d.value)
		}
	}
	if s.StopWhenAlone > 0 && s.StopWhenAlone < MinAlone {
		v.addf(at+".stop_when_alone", "%s is less than %s: links of agents without work are silent for longer", s.StopWhenAlone, MinAlone)
	}
	if s.StopWhenAlone != 0 && !s.Repeatable {
		v.addf(at+".stop_when_alone", "wants repeatable: true, because an agent that is alone ends the step in the middle")
	}
	if s.OutputLimit < 0 {
		v.addf(at+".output_limit", "%d must not be negative", int64(s.OutputLimit))
	}
	if s.Priority < -MaxPriority || s.Priority > MaxPriority {
		v.addf(at+".priority", "%d must be from %d to %d", s.Priority, -MaxPriority, MaxPriority)
	}
	for k, code := range s.SuccessCodes {
		field := fmt.Sprintf("%s.success_codes[%d]", at, k)
		switch {
		case code < 0 || code > 255:
			v.addf(field, "%d must be from 0 to 255", code)
		case slices.Contains(s.SuccessCodes[:k], code):
			v.addf(field, "%d is named twice", code)
		}
	}
}

// outputs checks the names of what a step hands on. Two of a process must not come
// to one variable.
func (v *validator) outputs(at string, s *StepDef) {
	if len(s.Outputs) > MaxOutputs {
		v.addf(at+".outputs", "has %d names, at most %d are allowed", len(s.Outputs), MaxOutputs)
		return
	}
	for k, name := range s.Outputs {
		field := fmt.Sprintf("%s.outputs[%d]", at, k)
		if err := CheckName(name); err != nil {
			v.check(field, err)
			continue
		}
		variable := OutputVariable(s.Name, name)
		if v.variables == nil {
			v.variables = make(map[string]string)
		}
		if before, dup := v.variables[variable]; dup {
			v.addf(field, "%s would be the variable %s, as is %s", quote(name), variable, before)
			continue
		}
		v.variables[variable] = fmt.Sprintf("%s of step %s", quote(name), quote(s.Name))
	}
}

// agents checks where a step runs.
func (v *validator) agents(at string, s *StepDef) {
	if s.ForEach == nil {
		v.selector(at+".agent", s.Agent)
		if s.MaxParallel != 0 {
			v.addf(at+".max_parallel", "only a step with for_each runs more than once at a time")
		}
		if s.FailFast {
			v.addf(at+".fail_fast", "only a step with for_each has instances")
		}
		return
	}
	if s.Agent.Name != "" || s.Agent.Labels != nil || s.Agent.Cluster != "" {
		v.addf(at+".for_each", "agent and for_each are both given: give one of them")
	}
	if s.MaxParallel < 0 || s.MaxParallel > MaxAgents {
		v.addf(at+".max_parallel", "%d must be from 1 to %d", s.MaxParallel, MaxAgents)
	}
	switch t, given := s.ForEach, givenOf(
		given{"names", s.ForEach.Names != nil}, given{"labels", s.ForEach.Labels != nil}, given{"cluster", s.ForEach.Cluster != ""},
	); {
	case len(given) > 1:
		v.addf(at+".for_each", "has %s: give one of them", strings.Join(given, " and "))
	case t.Names != nil:
		v.targets(at+".for_each.names", t.Names)
	case t.Cluster != "":
		v.check(at+".for_each.cluster", CheckName(t.Cluster))
	default:
		v.labels(at+".for_each", "names, labels or cluster", t.Labels)
	}
}

// given is a field, and whether it is there.
type given struct {
	name string
	set  bool
}

// givenOf returns the names of the fields that are there.
func givenOf(fields ...given) []string {
	var names []string
	for _, f := range fields {
		if f.set {
			names = append(names, f.name)
		}
	}
	return names
}

func (v *validator) targets(at string, names []string) {
	switch {
	case len(names) == 0:
		v.addf(at, "is empty")
	case len(names) > MaxAgents:
		v.addf(at, "has %d names, at most %d are allowed", len(names), MaxAgents)
		return
	}
	seen := make(map[string]bool, len(names))
	for k, name := range names {
		field := fmt.Sprintf("%s[%d]", at, k)
		v.check(field, CheckNodeName(name))
		if seen[name] {
			v.addf(field, "%s is named twice", quote(name))
		}
		seen[name] = true
	}
}

func (v *validator) selector(at string, s Selector) {
	switch given := givenOf(
		given{"name", s.Name != ""}, given{"labels", s.Labels != nil}, given{"cluster", s.Cluster != ""},
	); {
	case len(given) > 1:
		v.addf(at, "has %s: give one of them", strings.Join(given, " and "))
	case s.Name != "":
		v.check(at+".name", CheckNodeName(s.Name))
	case s.Cluster != "":
		v.check(at+".cluster", CheckName(s.Cluster))
	default:
		v.labels(at, "name, labels or cluster", s.Labels)
	}
}

// labels checks the labels that agents must have, or that something instead of them
// is given.
func (v *validator) labels(at, either string, labels map[string]string) {
	switch {
	case len(labels) == 0:
		v.addf(at, "is missing or empty: give %s", either)
	case len(labels) > MaxLabels:
		v.addf(at+".labels", "has %d labels, at most %d are allowed", len(labels), MaxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		v.check(at+".labels."+k, CheckLabel(k, labels[k]))
	}
}

// checkValue says what is wrong with s as the value of an environment variable.
func checkValue(s string) error {
	if len(s) > MaxValue {
		return fmt.Errorf("has %d bytes, at most %d are allowed", len(s), MaxValue)
	}
	return checkText(s)
}

// checkUser says what is wrong with s as the name of a user. Whether there is such a
// user only the agent knows.
func checkUser(s string) error {
	if len(s) > MaxName || s[0] == '-' || s[0] == '.' || !all(s, func(c byte) bool { return isNameByte(c) || c == '@' || c == '$' }) {
		return fmt.Errorf("%s is not the name of a user", quote(s))
	}
	return nil
}

// checkText refuses what neither an environment nor JSON can carry.
func checkText(s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("is not valid UTF-8")
	}
	if strings.IndexByte(s, 0) >= 0 {
		return fmt.Errorf("contains a NUL character")
	}
	return nil
}

// shorten cuts the middle out of a long list of names.
func shorten(names []string) []string {
	const most = 12
	if len(names) <= most {
		return names
	}
	return append(append(slices.Clone(names[:most/2]), "..."), names[len(names)-most/2:]...)
}

// cycles returns cycles of steps that need each other, at least one of each set
// of entangled steps; edges[i] are the needs of step i. The first step of a cycle
// is its lowest.
func cycles(edges [][]int) [][]int {
	const (
		unseen = iota
		open
		done
	)
	state := make([]int, len(edges))
	told := make([]bool, len(edges)) // part of a cycle found before
	var trail []int
	var found [][]int
	var visit func(i int)
	visit = func(i int) {
		state[i] = open
		trail = append(trail, i)
		for _, j := range edges[i] {
			switch {
			case state[j] == unseen:
				visit(j)
			case state[j] == open && !told[i] && !told[j]:
				cycle := slices.Clone(trail[slices.Index(trail, j):])
				for _, k := range cycle {
					told[k] = true
				}
				low := slices.Index(cycle, slices.Min(cycle))
				found = append(found, slices.Concat(cycle[low:], cycle[:low]))
			}
		}
		trail = trail[:len(trail)-1]
		state[i] = done
	}
	for i := range edges {
		if state[i] == unseen {
			visit(i)
		}
	}
	return found
}
