package roles

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// Encode writes definitions as YAML documents that [Decode] reads back as they are.
// Fields that have their default are left out.
func Encode(w io.Writer, definitions ...Definition) error {
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	for i, d := range definitions {
		if err := enc.Encode(d.document()); err != nil {
			return fmt.Errorf("encode document %d: %w", i+1, err)
		}
	}
	if err := enc.Close(); err != nil {
		return fmt.Errorf("encode documents: %w", err)
	}
	return nil
}

// object is a YAML mapping that keeps the order in which fields are added.
type object struct{ node *yaml.Node }

func newObject(style yaml.Style) object {
	return object{&yaml.Node{Kind: yaml.MappingNode, Style: style}}
}

func (o object) add(key string, value *yaml.Node) {
	o.node.Content = append(o.node.Content, textNode(key), value)
}

func (o object) text(key, value string) {
	if value != "" {
		o.add(key, textNode(value))
	}
}

func (o object) flag(key string, value bool) {
	if value {
		o.add(key, flagNode(value))
	}
}

func flagNode(value bool) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(value)}
}

func (o object) list(key string, values []string) {
	if len(values) > 0 {
		o.add(key, textList(values))
	}
}

// textList returns a list of texts in one line.
func textList(values []string) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, v := range values {
		list.Content = append(list.Content, textNode(v))
	}
	return list
}

func (o object) duration(key string, value Duration) {
	if value != 0 {
		o.text(key, value.String())
	}
}

// number adds a number that is not 0.
func (o object) number(key string, value int) {
	if value != 0 {
		o.add(key, numberNode(value))
	}
}

func numberNode(n int) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(n)}
}

func (o object) texts(key string, values map[string]string, style yaml.Style) {
	if len(values) == 0 {
		return
	}
	inner := newObject(style)
	for _, k := range slices.Sorted(maps.Keys(values)) {
		inner.add(k, textNode(values[k]))
	}
	o.add(key, inner.node)
}

// textNode returns a scalar that is quoted where it would be read as something
// other than text. Scripts are written as they are, unless a block of lines could
// not hold them unharmed.
func textNode(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if strings.Contains(s, "\n") && !fitsBlock(s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// fitsBlock reports whether s can be written as a literal block: its first line
// sets the indentation, so it must begin with something else, and lines of nothing
// but spaces would be taken for empty ones.
func fitsBlock(s string) bool {
	if s[0] == ' ' || s[0] == '\t' || s[0] == '\n' {
		return false
	}
	for line := range strings.SplitSeq(s, "\n") {
		if line != "" && strings.Trim(line, " \t") == "" {
			return false
		}
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r != '\n' && r != '\t' && !unicode.IsPrint(r)
	})
}

func (p *Process) document() *yaml.Node {
	o := newObject(0)
	o.text("kind", KindProcess)
	o.text("name", p.Name)
	if len(p.Params) > 0 {
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for _, q := range p.Params {
			param := newObject(yaml.FlowStyle)
			param.text("name", q.Name)
			param.flag("required", q.Required)
			param.text("default", q.Default)
			list.Content = append(list.Content, param.node)
		}
		o.add("params", list)
	}
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for i := range p.Steps {
		list.Content = append(list.Content, stepNode(&p.Steps[i]))
	}
	o.add("steps", list)
	return o.node
}

func stepNode(s *StepDef) *yaml.Node {
	o := newObject(0)
	o.text("name", s.Name)
	o.list("needs", s.Needs)
	if s.On != OnSuccess {
		o.text("on", string(s.On))
	}
	o.flag("recovers", s.Recovers)
	if s.ForEach != nil {
		each := newObject(yaml.FlowStyle)
		each.list("names", s.ForEach.Names)
		each.texts("labels", s.ForEach.Labels, yaml.FlowStyle)
		each.text("cluster", s.ForEach.Cluster)
		o.add("for_each", each.node)
		o.number("max_parallel", s.MaxParallel)
		o.flag("fail_fast", s.FailFast)
	} else {
		agent := newObject(yaml.FlowStyle)
		agent.text("name", s.Agent.Name)
		agent.texts("labels", s.Agent.Labels, yaml.FlowStyle)
		agent.text("cluster", s.Agent.Cluster)
		o.add("agent", agent.node)
	}
	o.text("run_as", s.RunAs)
	o.text("dir", s.Dir)
	o.texts("env", s.Env, 0)
	o.text("run", s.Run)
	o.list("argv", s.Argv)
	o.text("stdin", s.Stdin)
	o.duration("timeout", s.Timeout)
	o.duration("kill_grace", s.KillGrace)
	if s.OutputLimit != 0 {
		o.text("output_limit", s.OutputLimit.String())
	}
	if len(s.SuccessCodes) > 0 {
		codes := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, code := range s.SuccessCodes {
			codes.Content = append(codes.Content, numberNode(code))
		}
		o.add("success_codes", codes)
	}
	o.list("outputs", s.Outputs)
	o.number("priority", s.Priority)
	if s.Retry != (Retry{}) {
		retry := newObject(yaml.FlowStyle)
		retry.number("attempts", s.Retry.Attempts)
		retry.duration("delay", s.Retry.Delay)
		o.add("retry", retry.node)
	}
	o.flag("repeatable", s.Repeatable)
	o.duration("stop_when_alone", s.StopWhenAlone)
	return o.node
}
