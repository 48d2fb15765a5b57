package roles

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Limits of what Decode reads.
const (
	MaxDocument  = 1 << 20  // bytes of one document
	MaxDocuments = 1000     // documents of one input
	MaxInput     = 16 << 20 // bytes of one input
	maxDepth     = 16       // levels of nesting; a process needs 6
)

// KindProcess is the kind of document that defines a process.
const KindProcess = "Process"

// Document is one YAML document of an input.
type Document struct {
	Kind string
	Name string
	File string // as given to Decode
	Line int    // where it begins, from 1

	// What it defines: the one of its kind is set.
	Process      *Process
	AgentCluster *AgentCluster
}

// Definition is what documents define.
type Definition interface {
	// Validate returns nil or a Problems that lists all that is wrong.
	Validate() error
	check(addf func(path, format string, args ...any))
	document() *yaml.Node
}

// Definition returns what the document defines.
func (d Document) Definition() Definition {
	if d.AgentCluster != nil {
		return d.AgentCluster
	}
	return d.Process
}

// kinds are the kinds of documents in the order in which they are told.
func kinds() []string { return []string{KindProcess, KindAgentCluster} }

// read reads what a document of a known kind defines.
func (d *decoder) read(doc *Document, n *yaml.Node) Definition {
	if doc.Kind == KindAgentCluster {
		doc.AgentCluster = d.readAgentCluster(n)
		doc.Name = doc.AgentCluster.Name
		return doc.AgentCluster
	}
	doc.Process = d.readProcess(n)
	doc.Name = doc.Process.Name
	return doc.Process
}

// Decode reads the YAML documents in r. File is what messages call the input. The
// error is a Problems with all that is wrong in all documents, or the error of r;
// with an error no documents are returned.
//
// Decoding is strict. A field that is unknown or given twice, and a value of
// another type, are errors. Where text is wanted, a number or true stands for
// itself as written (1.10 stays 1.10). Anchors and aliases are refused: so every
// value stands where it is used, messages point at it, and no document can grow
// when it is read.
func Decode(file string, r io.Reader) ([]Document, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxInput+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	d := &decoder{problemList: problemList{file: file}}
	switch {
	case len(text) > MaxInput:
		d.addf(0, 0, "", "is larger than %d bytes", MaxInput)
	case !utf8.Valid(text):
		line, column := firstInvalid(text)
		d.addf(line, column, "", "is not valid UTF-8")
	default:
		d.input(text)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return d.documents, nil
}

// DecodeStep reads the definition of one step, as it stands in the steps of a process,
// for a request that runs. What only the request can tell is left to it: whether what
// the step needs exists, and whether it needs anything. The errors are those of
// [Decode].
func DecodeStep(file string, r io.Reader) (*StepDef, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	d := &decoder{problemList: problemList{file: file}}
	s := &StepDef{On: OnSuccess}
	switch {
	case len(text) > MaxDocument:
		d.addf(0, 0, "", "is larger than %d bytes", MaxDocument)
	case !utf8.Valid(text):
		line, column := firstInvalid(text)
		d.addf(line, column, "", "is not valid UTF-8")
	default:
		d.step(text, s)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return s, nil
}

func (d *decoder) step(text []byte, s *StepDef) {
	d.places, d.excused = make(map[string]position), make(map[string]bool)
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var n, more yaml.Node
	switch err := dec.Decode(&n); {
	case errors.Is(err, io.EOF):
		d.addf(0, 0, "", "is empty: it must define a step")
		return
	case err != nil:
		d.syntax(err, text)
		return
	case !errors.Is(dec.Decode(&more), io.EOF):
		d.addf(0, 0, "", "must define one step and nothing else")
		return
	}
	if d.refuse(n.Content[0], 1); d.total > 0 {
		return
	}
	d.readStep(s, n.Content[0], "")
	s.check(func(path, format string, args ...any) {
		if !d.isExcused(path) {
			p := d.place(path)
			d.addf(p.line, p.column, path, format, args...)
		}
	})
}

// firstInvalid returns line and column of the first byte that is not UTF-8.
func firstInvalid(text []byte) (line, column int) {
	line, column = 1, 1
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		if r == utf8.RuneError && n == 1 {
			break
		}
		column++
		if r == '\n' {
			line, column = line+1, 1
		}
		text = text[n:]
	}
	return line, column
}

type position struct{ line, column int }

type decoder struct {
	problemList
	documents []Document

	// Of the document that is being read.
	offset  int                 // lines of the input before it
	places  map[string]position // of each path
	excused map[string]bool     // paths that have been complained of; nothing follows from them
	process *Process
}

// refusef adds a problem of the value n at path. It makes other complaints about
// that value needless.
func (d *decoder) refusef(n *yaml.Node, path, format string, args ...any) {
	d.excused[path] = true
	d.atf(n, path, format, args...)
}

// atf adds a problem of node n, which stands at path.
func (d *decoder) atf(n *yaml.Node, path, format string, args ...any) {
	d.addf(d.offset+n.Line, n.Column, d.display(path), format, args...)
}

// display returns a path as people know it.
func (d *decoder) display(path string) string {
	if d.process == nil {
		return path
	}
	return d.process.display(path)
}

// input splits text at the markers between documents, so that an error of syntax
// in one does not hide the errors of the others. A marker always is one: YAML
// allows no scalar to contain it at the beginning of a line.
func (d *decoder) input(text []byte) {
	start, startLine, line, documents := 0, 0, 0, 0
	for pos := 0; pos < len(text); line++ {
		end := len(text)
		if i := bytes.IndexByte(text[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		starts, ends := isMarker(text[pos:end], "---"), isMarker(text[pos:end], "...")
		if starts || ends {
			if documents++; documents > MaxDocuments {
				d.addf(line+1, 0, "", "more than %d documents", MaxDocuments)
				return
			}
		}
		switch {
		case starts:
			d.chunk(text[start:pos], startLine)
			start, startLine = pos, line
		case ends:
			d.chunk(text[start:end], startLine)
			start, startLine = end, line+1
		}
		pos = end
	}
	d.chunk(text[start:], startLine)

	first := make(map[[2]string]Document)
	for _, doc := range d.documents {
		key := [2]string{doc.Kind, doc.Name}
		if before, dup := first[key]; dup {
			d.addf(doc.Line, 0, "", "%s %s is defined in line %d already", doc.Kind, doc.Name, before.Line)
			continue
		}
		first[key] = doc
	}
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || strings.IndexByte(" \t\r\n", rest[0]) >= 0)
}

// chunk reads a piece of the input that begins after offset lines.
func (d *decoder) chunk(text []byte, offset int) {
	d.offset = offset
	if len(text) > MaxDocument {
		d.addf(offset+1, 0, "", "the document has %d bytes, at most %d are allowed", len(text), MaxDocument)
		return
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			d.syntax(err, text)
			return
		}
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
			d.document(n.Content[0])
		}
	}
}

// syntax adds the error of the YAML parser, which begins with "yaml: line 3: ".
func (d *decoder) syntax(err error, text []byte) {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				// The parser names the line after the last one at the end of the text.
				line, msg = min(n, max(1, bytes.Count(text, []byte("\n"))+1)), what
			}
		}
	}
	if strings.HasPrefix(msg, "unknown anchor") {
		msg = noAnchors
	}
	d.addf(d.offset+line, 0, "", "is not valid YAML: %s", strings.ReplaceAll(msg, "\n", " "))
}

const noAnchors = "anchors and aliases are not supported: write the value where it is used"

// document reads one document.
func (d *decoder) document(n *yaml.Node) {
	d.places, d.excused, d.process = make(map[string]position), make(map[string]bool), nil
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	before := d.total
	if d.refuse(n, 1); d.total > before {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.refusef(n, "", "the document must be a mapping with kind and name, not %s", describe(n))
		return
	}
	kind := find(n, "kind")
	if kind == nil {
		d.refusef(n, "kind", "is missing, must be one of %s", strings.Join(kinds(), ", "))
		return
	}
	if kind.Kind != yaml.ScalarNode || !slices.Contains(kinds(), kind.Value) {
		d.refusef(kind, "kind", "must be one of %s, not %s%s", strings.Join(kinds(), ", "), describe(kind), DidYouMean(Nearest(kind.Value, kinds())))
		return
	}
	doc := Document{Kind: kind.Value, File: d.file, Line: d.offset + n.Line}
	d.read(&doc, n).check(func(path, format string, args ...any) {
		if !d.isExcused(path) {
			p := d.place(path)
			d.addf(p.line, p.column, d.display(path), format, args...)
		}
	})
	if d.total == before {
		d.documents = append(d.documents, doc)
	}
}

// place returns where path stands, or what it would stand in.
func (d *decoder) place(path string) position {
	for {
		if p, ok := d.places[path]; ok || path == "" {
			return p
		}
		path = parent(path)
	}
}

// isExcused reports whether path or what it stands in has been complained of.
func (d *decoder) isExcused(path string) bool {
	for ; path != ""; path = parent(path) {
		if d.excused[path] {
			return true
		}
	}
	return false
}

func parent(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

// refuse adds what is wrong with the YAML itself, whatever it says.
func (d *decoder) refuse(n *yaml.Node, depth int) {
	switch {
	case depth > maxDepth:
		d.addf(d.offset+n.Line, n.Column, "", "is nested deeper than %d levels", maxDepth)
		return
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.addf(d.offset+n.Line, n.Column, "", noAnchors)
		return
	case n.Style&yaml.TaggedStyle != 0:
		d.addf(d.offset+n.Line, n.Column, "", "the tag %s is not supported", quote(n.Tag))
		return
	}
	for _, c := range n.Content {
		d.refuse(c, depth+1)
	}
}

// find returns the value of key in a mapping, or nil.
func find(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// describe says what a node is, for messages.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		return "the text " + quote(n.Value)
	}
	return quote(n.Value)
}

// A setter reads the value n of a field that stands at path.
type setter func(n *yaml.Node, path string)

// later stands for a field that documents have and this version cannot obey. A
// document that has it need not have the fields that it stands instead of.
func (d *decoder) later(insteadOf ...string) setter {
	return func(n *yaml.Node, path string) {
		d.refusef(n, path, "is not supported by this version")
		for _, field := range insteadOf {
			d.excused[join(parent(path), field)] = true
		}
	}
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

// object reads a mapping.
func (d *decoder) object(n *yaml.Node, path string, fields map[string]setter) {
	d.pairs(n, path, func(key, value *yaml.Node, at string) {
		set, ok := fields[key.Value]
		if !ok {
			meant := Nearest(key.Value, slices.Sorted(maps.Keys(fields)))
			if meant != "" {
				d.excused[join(path, meant)] = true
			}
			d.atf(key, path, "unknown field %s%s", quote(key.Value), DidYouMean(meant))
			return
		}
		set(value, at)
	})
}

// pairs calls f for every pair of a mapping whose key is new.
func (d *decoder) pairs(n *yaml.Node, path string, f func(key, value *yaml.Node, at string)) {
	d.places[path] = position{d.offset + n.Line, n.Column}
	if n.Kind != yaml.MappingNode {
		d.refusef(n, path, "must be a mapping, not %s", describe(n))
		return
	}
	first := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			d.atf(key, path, "a field name must be text, not %s", describe(key))
			continue
		}
		at := join(path, key.Value)
		if line, dup := first[key.Value]; dup {
			d.refusef(key, at, "is given twice, first in line %d", line)
			continue
		}
		first[key.Value] = d.offset + key.Line
		d.places[at] = position{d.offset + value.Line, value.Column}
		f(key, value, at)
	}
}

// list calls f for every element of a list.
func (d *decoder) list(n *yaml.Node, path string, f setter) {
	if n.Kind != yaml.SequenceNode {
		d.refusef(n, path, "must be a list, not %s", describe(n))
		return
	}
	for i, c := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.places[at] = position{d.offset + c.Line, c.Column}
		f(c, at)
	}
}

func (d *decoder) text(to *string) setter {
	return func(n *yaml.Node, path string) {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			d.refusef(n, path, "must be text, not %s", describe(n))
			return
		}
		*to = n.Value
	}
}

// word reads text that must not be empty: left out, it means the default.
func (d *decoder) word(to *string) setter {
	return func(n *yaml.Node, path string) {
		if d.text(to)(n, path); *to == "" && !d.excused[path] {
			d.refusef(n, path, "must not be empty")
		}
	}
}

func (d *decoder) words(to *[]string) setter {
	return func(n *yaml.Node, path string) {
		d.list(n, path, func(n *yaml.Node, path string) {
			*to = append(*to, "")
			d.text(&(*to)[len(*to)-1])(n, path)
		})
	}
}

func (d *decoder) numbers(to *[]int) setter {
	return func(n *yaml.Node, path string) {
		d.list(n, path, func(n *yaml.Node, path string) {
			*to = append(*to, 0)
			d.number(&(*to)[len(*to)-1])(n, path)
		})
		if len(*to) == 0 && !d.excused[path] {
			d.refusef(n, path, "must not be empty: leave it out for 0 alone")
		}
	}
}

func (d *decoder) texts(to *map[string]string) setter {
	return func(n *yaml.Node, path string) {
		values := make(map[string]string)
		d.pairs(n, path, func(key, value *yaml.Node, at string) {
			var s string
			d.text(&s)(value, at)
			values[key.Value] = s
		})
		if len(values) > 0 {
			*to = values
		}
	}
}

func (d *decoder) flag(to *bool) setter {
	return func(n *yaml.Node, path string) {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
			d.refusef(n, path, "must be true or false, not %s", describe(n))
			return
		}
		*to = n.Value[0] == 't' || n.Value[0] == 'T'
	}
}

func (d *decoder) duration(to *Duration) setter {
	return func(n *yaml.Node, path string) {
		if n.Kind != yaml.ScalarNode || to.UnmarshalText([]byte(n.Value)) != nil {
			d.refusef(n, path, "must be a duration like 30s, 5m or 1h30m, not %s", describe(n))
		}
	}
}

func (d *decoder) readProcess(n *yaml.Node) *Process {
	p := &Process{}
	d.process = p
	d.object(n, "", map[string]setter{
		"kind": func(*yaml.Node, string) {},
		"name": d.text(&p.Name),
		"params": func(n *yaml.Node, path string) {
			d.list(n, path, func(n *yaml.Node, path string) {
				p.Params = append(p.Params, Param{})
				q := &p.Params[len(p.Params)-1]
				d.object(n, path, map[string]setter{
					"name":     d.text(&q.Name),
					"required": d.flag(&q.Required),
					"default":  d.text(&q.Default),
				})
			})
		},
		"steps": func(n *yaml.Node, path string) {
			d.list(n, path, func(n *yaml.Node, path string) {
				p.Steps = append(p.Steps, StepDef{On: OnSuccess})
				s := &p.Steps[len(p.Steps)-1]
				if name := find(n, "name"); n.Kind == yaml.MappingNode && name != nil {
					s.Name = name.Value // so that messages can say which step they mean
				}
				d.readStep(s, n, path)
			})
		},
	})
	return p
}

func (d *decoder) readStep(s *StepDef, n *yaml.Node, path string) {
	d.object(n, path, map[string]setter{
		"name":  d.text(&s.Name),
		"needs": d.words(&s.Needs),
		"on": func(n *yaml.Node, path string) {
			on := string(s.On)
			d.text(&on)(n, path)
			s.On = Condition(on)
		},
		"recovers": d.flag(&s.Recovers),
		"agent": func(n *yaml.Node, path string) {
			before := d.total
			d.object(n, path, map[string]setter{
				"name":    d.text(&s.Agent.Name),
				"labels":  d.texts(&s.Agent.Labels),
				"cluster": d.text(&s.Agent.Cluster),
			})
			if d.total > before {
				d.excused[path] = true
			}
		},
		"run": d.text(&s.Run),
		"argv": func(n *yaml.Node, path string) {
			s.Argv = []string{}
			d.words(&s.Argv)(n, path)
			d.excused[join(parent(path), "run")] = true
		},
		"stdin":         d.text(&s.Stdin),
		"env":           d.texts(&s.Env),
		"dir":           d.text(&s.Dir),
		"run_as":        d.word(&s.RunAs),
		"timeout":       d.limit(&s.Timeout),
		"kill_grace":    d.limit(&s.KillGrace),
		"output_limit":  d.size(&s.OutputLimit),
		"success_codes": d.numbers(&s.SuccessCodes),
		"outputs":       d.words(&s.Outputs),
		"priority":      d.number(&s.Priority),
		"retry": func(n *yaml.Node, path string) {
			d.object(n, path, map[string]setter{
				"attempts": d.count(&s.Retry.Attempts, MaxAttempts),
				"delay":    d.duration(&s.Retry.Delay),
			})
		},
		"repeatable": d.flag(&s.Repeatable),
		"artifact":   d.later("run"),
		"for_each": func(n *yaml.Node, path string) {
			s.ForEach = &Targets{}
			d.excused[join(parent(path), "agent")] = s.Agent.Name == "" && s.Agent.Labels == nil && s.Agent.Cluster == ""
			before := d.total
			d.object(n, path, map[string]setter{
				"names": func(n *yaml.Node, path string) {
					s.ForEach.Names = []string{}
					d.words(&s.ForEach.Names)(n, path)
				},
				"labels":  d.texts(&s.ForEach.Labels),
				"cluster": d.text(&s.ForEach.Cluster),
			})
			if d.total > before {
				d.excused[path] = true
			}
		},
		"max_parallel":    d.count(&s.MaxParallel, MaxAgents),
		"fail_fast":       d.flag(&s.FailFast),
		"stop_when_alone": d.limit(&s.StopWhenAlone),
	})
}

// limit reads a duration that must not be 0: left out, it means none already.
func (d *decoder) limit(to *Duration) setter {
	return func(n *yaml.Node, path string) {
		d.duration(to)(n, path)
		if *to == 0 && !d.excused[path] {
			d.refusef(n, path, "must be more than 0: leave it out for no limit")
		}
	}
}

// size reads a number of bytes that must not be 0.
func (d *decoder) size(to *Size) setter {
	return func(n *yaml.Node, path string) {
		switch {
		case n.Kind != yaml.ScalarNode || to.UnmarshalText([]byte(n.Value)) != nil:
			d.refusef(n, path, "must be a size like 64KiB, 10MiB or 1GiB, or a number of bytes, not %s", describe(n))
		case *to == 0:
			d.refusef(n, path, "must be more than 0: leave it out for no limit")
		}
	}
}

func (d *decoder) number(to *int) setter {
	return func(n *yaml.Node, path string) {
		v, err := strconv.Atoi(n.Value)
		if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || err != nil {
			d.refusef(n, path, "must be a whole number, not %s", describe(n))
			return
		}
		*to = v
	}
}

// count reads a whole number that must not be 0.
func (d *decoder) count(to *int, most int) setter {
	return func(n *yaml.Node, path string) {
		if d.number(to)(n, path); *to == 0 && !d.excused[path] {
			d.refusef(n, path, "0 must be from 1 to %d", most)
		}
	}
}
