package roles

import (
	"fmt"
	"maps"
	"slices"
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
	MaxRun      = 256 << 10 // bytes of one script
	MaxValue    = 32 << 10  // bytes of one parameter or environment variable
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
	Agent    Selector `json:"agent"`
	// Run is a script. Parameters reach it as environment only; nothing is pasted
	// into it.
	Run string            `json:"run"`
	Env map[string]string `json:"env,omitempty"`
	// Dir is the absolute working directory. Empty: a fresh one of the attempt.
	Dir string `json:"dir,omitempty"`
	// Timeout is counted by the agent from the start of an attempt. 0: none.
	Timeout Duration `json:"timeout,omitempty"`
	Retry   Retry    `json:"retry,omitzero"`
	// Repeatable says that the step may be run again when nobody can know whether
	// or how far it ran.
	Repeatable bool `json:"repeatable,omitempty"`
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

// Selectors returns the different selectors of the steps in order of appearance,
// for asking whether the agents that a process needs exist.
func (p *Process) Selectors() []Selector {
	var found []Selector
	seen := make(map[string]bool)
	for i := range p.Steps {
		if text := p.Steps[i].Agent.String(); !seen[text] {
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
