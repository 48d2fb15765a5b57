package roles

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of a process. They keep a frozen copy well below what one transaction of
// the store may hold, and the engine's work for one event below a millisecond.
const (
	MaxSteps    = 1000
	MaxParams   = 200
	MaxEnv      = 200
	MaxLabels   = 20
	MaxAttempts = 100
	MaxRun      = 256 << 10 // bytes of one script, of one argv, or of one stdin
	MaxValue    = 32 << 10  // bytes of one parameter or environment variable
	// MinAlone is well above the longest pause between two pings of a link.
	MinAlone    = Duration(time.Minute)
	MaxArgs     = 1000
	MaxOutputs  = 20   // of one step
	MaxAgents   = 1000 // that one step runs on
	MaxPriority = 1000 // and its negative
)

// Process is the definition of work: named steps with dependencies.
type Process struct {
	Name   string    `json:"name"`
	Params []Param   `json:"params,omitempty"`
	Steps  []StepDef `json:"steps"`
}

// Param is a parameter of a process. It reaches every step as the environment
// variable UAC_PARAM_<name>. One that is neither required nor given has its
// default, which may be empty.
type Param struct {
	Name     string `json:"name"`
	Required bool   `json:"required,omitempty"`
	Default  string `json:"default,omitempty"`
}

// Condition says which ends of its needs let a step run.
type Condition string

// The conditions. A skipped step has neither succeeded nor failed.
const (
	OnSuccess Condition = "success" // all needs succeeded; the default
	OnFailure Condition = "failure" // at least one need failed
	OnAlways  Condition = "always"  // all needs are final, however they ended
)

// StepDef is the definition of one step.
type StepDef struct {
	Name  string   `json:"name"`
	Needs []string `json:"needs,omitempty"`
	// On is never empty in a process that Decode returned.
	On Condition `json:"on"`
	// Recovers says that the success of this step, which is on: failure, makes good
	// the failures of the steps that it needs.
	Recovers bool     `json:"recovers,omitempty"`
	Agent    Selector `json:"agent,omitzero"`
	// ForEach makes the step run on many agents instead of one: when it is ready it
	// gets an instance for each of them. Exactly one of Agent and ForEach is set.
	ForEach *Targets `json:"for_each,omitempty"`
	// MaxParallel is how many instances may be out at a time. 0: all.
	MaxParallel int `json:"max_parallel,omitempty"`
	// FailFast says that no instance begins after one has failed.
	FailFast bool `json:"fail_fast,omitempty"`
	// Run is a script. Parameters reach it as environment only; nothing is pasted
	// into it. Argv is a command that runs without a shell. Exactly one of the two
	// is set.
	Run  string   `json:"run,omitempty"`
	Argv []string `json:"argv,omitempty"`
	// Stdin is the standard input. Empty: /dev/null.
	Stdin string            `json:"stdin,omitempty"`
	Env   map[string]string `json:"env,omitempty"`
	// Dir is the absolute working directory. Empty: a fresh one of the attempt.
	Dir string `json:"dir,omitempty"`
	// RunAs is the user to run as. Empty: the one of the agent.
	RunAs string `json:"run_as,omitempty"`
	// Timeout is counted by the agent from the start of an attempt. 0: none.
	Timeout Duration `json:"timeout,omitempty"`
	// KillGrace is the time from TERM to KILL. 0: the agent's own.
	KillGrace Duration `json:"kill_grace,omitempty"`
	// OutputLimit is how much output of an attempt is kept. 0: all.
	OutputLimit Size `json:"output_limit,omitempty"`
	// SuccessCodes are the exit codes that mean success. None: 0 alone.
	SuccessCodes []int `json:"success_codes,omitempty"`
	// Outputs names the values that the step hands to the steps after it.
	Outputs []string `json:"outputs,omitempty"`
	// Priority orders the attempts that wait at an agent, higher ones first.
	Priority int   `json:"priority,omitempty"`
	Retry    Retry `json:"retry,omitzero"`
	// Repeatable says that the step may be run again when nobody can know whether
	// or how far it ran.
	Repeatable bool `json:"repeatable,omitempty"`
	// StopWhenAlone is how long an attempt goes on while its agent has no link.
	// Then the agent kills it. 0: for ever.
	StopWhenAlone Duration `json:"stop_when_alone,omitempty"`
}

// success reports whether an exit code means success.
func (s *StepDef) success(code int) bool {
	if len(s.SuccessCodes) == 0 {
		return code == 0
	}
	return slices.Contains(s.SuccessCodes, code)
}

// missing lists the outputs of the step of which no value was found.
func (s *StepDef) missing(found *Outputs) []string {
	return slices.DeleteFunc(slices.Clone(s.Outputs), func(name string) bool {
		if found == nil {
			return false
		}
		_, ok := (*found)[name]
		return ok
	})
}

// outputs returns those of the values that the step is to hand on and may, nil for
// none. An agent is asked for these only, but it is another machine.
func (s *StepDef) outputs(values Outputs) *Outputs {
	if len(values) == 0 {
		return nil
	}
	wanted := make(Outputs, len(values))
	for name, value := range values {
		if slices.Contains(s.Outputs, name) && checkValue(value) == nil {
			wanted[name] = value
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	return &wanted
}

// Retry says how often a step is tried and how long to wait in between. It follows
// failures only.
type Retry struct {
	// Attempts is how many times the step may run at most, the first included.
	// 0 means 1.
	Attempts int      `json:"attempts,omitempty"`
	Delay    Duration `json:"delay,omitempty"`
}

// Selector names the agent of a step: by its name, by labels that it must all have,
// or by a cluster that it must be a member of. Exactly one of the three is set.
type Selector struct {
	Name    string            `json:"name,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Cluster string            `json:"cluster,omitempty"`
}

// String returns the selector as text. Steps whose selectors have the same text
// run on the same agent.
func (s Selector) String() string {
	if s.Name != "" {
		return "name=" + s.Name
	}
	if s.Cluster != "" {
		return "cluster=" + s.Cluster
	}
	var b strings.Builder
	b.WriteString("labels:")
	for i, k := range slices.Sorted(maps.Keys(s.Labels)) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k)
		b.WriteByte('=')
		b.WriteString(s.Labels[k])
	}
	return b.String()
}

// Matches reports whether an agent of that name with those labels fits. Who is a
// member of a cluster only its definition says: a selector by cluster matches
// nobody here.
func (s Selector) Matches(name string, labels map[string]string) bool {
	if s.Name != "" {
		return s.Name == name
	}
	return hasAll(labels, s.Labels)
}

// Targets says on which agents a step with for_each runs: on those of the names, on
// all that have all of the labels, or on all members of an agent cluster. Exactly one
// of the three is set.
type Targets struct {
	Names   []string          `json:"names,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Cluster string            `json:"cluster,omitempty"`
}

// String returns the targets as text.
func (t Targets) String() string {
	if t.Names != nil {
		return "names:" + strings.Join(t.Names, ",")
	}
	return t.selector().String()
}

func (t Targets) selector() Selector { return Selector{Labels: t.Labels, Cluster: t.Cluster} }

// Selectors returns one selector for each of the names, or one for all agents.
func (t Targets) Selectors() []Selector {
	if t.Names == nil {
		return []Selector{t.selector()}
	}
	all := make([]Selector, len(t.Names))
	for i, name := range t.Names {
		all[i].Name = name
	}
	return all
}

// Selectors returns the different selectors of the steps in order of appearance,
// for asking whether the agents that a process needs exist. Steps with for_each have
// none: they ask when they are ready.
func (p *Process) Selectors() []Selector {
	var found []Selector
	seen := make(map[string]bool)
	for i := range p.Steps {
		if text := p.Steps[i].Agent.String(); p.Steps[i].ForEach == nil && !seen[text] {
			seen[text] = true
			found = append(found, p.Steps[i].Agent)
		}
	}
	return found
}

// Duration is a time.Duration that is text such as "1m30s" in documents and JSON.
type Duration time.Duration

// String returns the duration as text.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("duration %s: must be like 30s, 5m or 1h30m", quote(string(text)))
	}
	*d = Duration(v)
	return nil
}

// Size is a number of bytes that is text such as "10MiB" in documents and JSON. Without
// a unit it is bytes, as in settings.
type Size int64

type sizeUnit struct {
	name  string
	bytes Size
}

func sizeUnits() []sizeUnit {
	return []sizeUnit{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"", 1}, {"B", 1}}
}

// String returns the size as text, in the largest unit that leaves no rest.
func (s Size) String() string {
	for _, u := range sizeUnits() {
		if s != 0 && s%u.bytes == 0 {
			return fmt.Sprintf("%d%s", s/u.bytes, u.name)
		}
	}
	return "0"
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range sizeUnits() {
		digits, ok := strings.CutSuffix(string(text), u.name)
		if !ok || digits == "" || !all(digits, isDigit) {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || Size(n) > math.MaxInt64/u.bytes {
			break
		}
		*s = Size(n) * u.bytes
		return nil
	}
	return fmt.Errorf("size %s: must be like 64KiB, 10MiB or 1GiB, or a number of bytes", quote(string(text)))
}
