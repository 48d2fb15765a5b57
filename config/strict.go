package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"uac/roles"
)

// maxFile bounds a configuration file in bytes: no real one comes near it, and
// whoever names the wrong file should not wait for it to be parsed.
const maxFile = 1 << 20

// layer is what one source says, checked against the schema.
type layer struct {
	values  map[string]reflect.Value // by key of a field, with the field's type
	origins Origins                  // also of the elements of lists
}

// reader turns the text of a source into a layer and collects what is wrong
// with it.
type reader struct {
	schema
	layer
	problems []Problem
	// suspect holds keys whose value could not be read. Their defaults are not
	// what was meant, so checks that involve them would only mislead.
	suspect map[string]bool
}

func newReader(s schema) *reader {
	return &reader{
		schema:  s,
		layer:   layer{values: map[string]reflect.Value{}, origins: Origins{}},
		suspect: map[string]bool{},
	}
}

func (r *reader) add(key string, at Origin, format string, args ...any) {
	r.problems = append(r.problems, Problem{Key: key, Origin: at, Message: fmt.Sprintf(format, args...)})
	r.suspect[key] = true
}

// misread reports whether the value of key, of what contains it or of the
// whole source could not be read.
func (r *reader) misread(key string) bool {
	for key != "" {
		if r.suspect[key] {
			return true
		}
		key = parent(key)
	}
	return r.suspect[""]
}

// parent returns the key of what contains key, or "".
func parent(key string) string { return key[:max(0, strings.LastIndexAny(key, ".["))] }

// file reads a YAML file. A missing file is a problem unless optional.
func (r *reader) file(name string, optional bool) {
	at := Origin{Source: FromFile, Name: name}
	data, err := readFile(name)
	if optional && errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		r.add("", at, "%v", err)
		return
	}
	r.document(at, data)
}

// readFile reads a whole file, but no more than a configuration can have.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, shortPathError(err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, shortPathError(err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("is larger than %s", formatSize(maxFile))
	}
	return data, nil
}

// shortPathError takes the path out of an error, because the origin names it.
func shortPathError(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("cannot read: %w", pe.Err)
	}
	return err
}

// document reads the YAML text of a file.
func (r *reader) document(at Origin, data []byte) {
	root, ok := r.parse("", at, data)
	if !ok || root == nil {
		return
	}
	r.mapping("", at, root)
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// parse parses one YAML document without aliases. The node is nil if the
// document says nothing.
func (r *reader) parse(key string, at Origin, data []byte) (*yaml.Node, bool) {
	if bad := invalidUTF8(data); bad >= 0 {
		r.add(key, lineOf(at, 1+bytes.Count(data[:bad], []byte("\n"))), "is not UTF-8 text")
		return nil, false
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil, true
	}
	if err != nil {
		m := yamlLine.FindStringSubmatch(err.Error())
		if m != nil && m[1] != "" {
			line, _ := strconv.Atoi(m[1]) // the pattern matched digits
			at = lineOf(at, line)
		}
		r.add(key, at, "is not valid YAML: %s", yamlLine.ReplaceAllString(err.Error(), ""))
		return nil, false
	}
	var second yaml.Node
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		r.add(key, lineOf(at, second.Line), "holds more than one YAML document")
		return nil, false
	}
	root := doc.Content[0]
	if alias := findAlias(root); alias != nil {
		r.add(key, lineOf(at, alias.Line), "YAML anchors, aliases and merge keys are not supported: write the value out")
		return nil, false
	}
	if isNull(root) {
		return nil, true
	}
	return root, true
}

// invalidUTF8 returns the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// findAlias returns the first node that refers, or can be referred to.
func findAlias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode || n.Anchor != "" || n.Tag == "!!merge" {
		return n
	}
	for _, c := range n.Content {
		if found := findAlias(c); found != nil {
			return found
		}
	}
	return nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// lineOf returns the origin with a line, if it is that of a file.
func lineOf(at Origin, line int) Origin {
	if at.Source == FromFile {
		at.Line = line
	}
	return at
}

// mapping reads a section, or the whole document if prefix is empty.
func (r *reader) mapping(prefix string, at Origin, n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		r.add(strings.TrimSuffix(prefix, "."), lineOf(at, n.Line), "must be a mapping of keys to values, not %s", describe(n))
		return
	}
	r.pairs(prefix, at, n, func(key string, at Origin, value *yaml.Node) {
		if f, ok := r.find(key); ok {
			if v, ok := r.value(key, at, value, f.rules); ok {
				r.values[key], r.origins[key] = v, at
			}
			return
		}
		if r.isSection(key) {
			if !isNull(value) {
				r.mapping(key+".", at, value)
			}
			return
		}
		r.unknown(key, at)
	})
}

// pairs calls do for each key of a mapping. Keys that come twice are problems.
func (r *reader) pairs(prefix string, at Origin, n *yaml.Node, do func(key string, at Origin, value *yaml.Node)) {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, at := n.Content[i], lineOf(at, n.Content[i].Line)
		if k.Kind != yaml.ScalarNode {
			r.add(strings.TrimSuffix(prefix, "."), at, "a key must be a word, not %s", describe(k))
			continue
		}
		key := prefix + k.Value
		if line, twice := first[k.Value]; twice {
			r.add(key, at, "is set twice, first in line %d", line)
			continue
		}
		first[k.Value] = k.Line
		do(key, at, n.Content[i+1])
	}
}

func (r *reader) isSection(key string) bool {
	for _, f := range r.schema {
		if strings.HasPrefix(f.key, key+".") {
			return true
		}
	}
	return false
}

// unknown reports a key that does not exist and suggests one: a similar one at
// the same place, else one of that name elsewhere.
func (r *reader) unknown(key string, at Origin) {
	var siblings, sameName []string
	prefix, name := path.Split(strings.ReplaceAll(key, ".", "/"))
	prefix = strings.ReplaceAll(prefix, "/", ".")
	for _, k := range r.keys() {
		if rest, ok := strings.CutPrefix(k, prefix); ok {
			sibling, _, _ := strings.Cut(rest, ".")
			siblings = append(siblings, prefix+sibling)
		}
		if strings.HasSuffix(k, "."+name) {
			sameName = append(sameName, k)
		}
	}
	near := roles.Nearest(key, siblings)
	if near == "" && len(sameName) > 0 {
		near = sameName[0]
	}
	if near == "" {
		r.add(quoteKey(key), at, "there is no such key")
		return
	}
	r.add(quoteKey(key), at, "there is no such key%s", roles.DidYouMean(near))
	r.suspect[near] = true
}

var plainKey = regexp.MustCompile(`^[\w.\[\]/-]{1,80}$`)

// quoteKey makes an unknown key safe to show.
func quoteKey(key string) string {
	if plainKey.MatchString(key) {
		return key
	}
	return quoted(key)
}

// text reads a value that is not part of a file: that of a variable or a flag.
// Lists and maps may be given as comma-separated words or as YAML.
func (r *reader) text(key string, at Origin, text string) {
	f, ok := r.find(key)
	if !ok {
		r.unknown(key, at)
		return
	}
	node := &yaml.Node{Kind: yaml.ScalarNode, Value: text}
	if structured(f.typ) && (strings.HasPrefix(text, "[") || strings.HasPrefix(text, "{")) {
		if node, ok = r.parse(key, at, []byte(text)); !ok {
			return
		}
	} else if !utf8.ValidString(text) {
		r.add(key, at, "is not UTF-8 text")
		return
	}
	if v, ok := r.value(key, at, node, f.rules); ok {
		r.values[key], r.origins[key] = v, at
	}
}

func structured(t reflect.Type) bool { return t.Kind() == reflect.Slice || t.Kind() == reflect.Map }

// value reads one value. It returns false if nothing is set: the value is
// null, or wrong and reported.
func (r *reader) value(key string, at Origin, n *yaml.Node, as rules) (reflect.Value, bool) {
	if isNull(n) {
		return reflect.Value{}, false
	}
	switch {
	case as.typ.Kind() == reflect.Map:
		return r.stringMap(key, at, n, as)
	case as.typ.Kind() == reflect.Slice && as.typ.Elem().Kind() == reflect.Struct:
		return r.structs(key, at, n, as)
	case as.typ.Kind() == reflect.Slice:
		return r.list(key, at, n, as)
	}
	if n.Kind != yaml.ScalarNode {
		r.add(key, at, "must be %s, not %s", expected(as), describe(n))
		return reflect.Value{}, false
	}
	v, err := scalar(n.Value, as)
	if err != nil {
		r.add(key, at, "%v", err)
		return reflect.Value{}, false
	}
	return v, true
}

// list reads a sequence of scalars, or words between commas.
func (r *reader) list(key string, at Origin, n *yaml.Node, as rules) (reflect.Value, bool) {
	element := as
	element.typ = as.typ.Elem()
	items := n.Content
	switch n.Kind {
	case yaml.SequenceNode:
	case yaml.ScalarNode:
		items = words(n)
	default:
		r.add(key, at, "must be a list, not %s", describe(n))
		return reflect.Value{}, false
	}
	out := reflect.MakeSlice(as.typ, 0, len(items))
	ok := true
	for i, item := range items {
		itemKey := fmt.Sprintf("%s[%d]", key, i)
		r.origins[itemKey] = lineOf(at, item.Line)
		if isNull(item) {
			r.add(itemKey, lineOf(at, item.Line), "is empty")
			ok = false
			continue
		}
		v, valid := r.value(itemKey, lineOf(at, item.Line), item, element)
		if ok = ok && valid; ok {
			out = reflect.Append(out, v)
		}
	}
	return out, ok
}

// words splits a scalar at commas.
func words(n *yaml.Node) []*yaml.Node {
	var out []*yaml.Node
	for word := range strings.SplitSeq(n.Value, ",") {
		if word = strings.TrimSpace(word); word != "" {
			out = append(out, &yaml.Node{Kind: yaml.ScalarNode, Value: word, Line: n.Line})
		}
	}
	return out
}

// structs reads a sequence of mappings.
func (r *reader) structs(key string, at Origin, n *yaml.Node, as rules) (reflect.Value, bool) {
	if n.Kind != yaml.SequenceNode {
		r.add(key, at, "must be a list of mappings, not %s", describe(n))
		return reflect.Value{}, false
	}
	inner := newReader(schemaOf(as.typ.Elem()))
	out := reflect.MakeSlice(as.typ, 0, len(n.Content))
	before := len(r.problems)
	for i, item := range n.Content {
		prefix := fmt.Sprintf("%s[%d]", key, i)
		inner.values, inner.origins, inner.problems = map[string]reflect.Value{}, Origins{}, nil
		if item.Kind == yaml.MappingNode {
			inner.mapping("", at, item)
		} else {
			inner.add("", lineOf(at, item.Line), "must be a mapping, not %s", describe(item))
		}
		r.origins[prefix] = lineOf(at, item.Line)
		for k, o := range inner.origins {
			r.origins[prefix+"."+k] = o
		}
		for _, p := range inner.problems {
			r.add(strings.TrimSuffix(prefix+"."+p.Key, "."), p.Origin, "%s", p.Message)
		}
		v := reflect.New(as.typ.Elem()).Elem()
		for _, f := range inner.schema {
			if set, ok := inner.values[f.key]; ok {
				v.FieldByIndex(f.index).Set(set)
			}
		}
		out = reflect.Append(out, v)
	}
	if len(r.problems) > before {
		r.suspect[key] = true
		return out, false
	}
	return out, true
}

// stringMap reads a mapping of free keys to scalars, or k=v words between
// commas.
func (r *reader) stringMap(key string, at Origin, n *yaml.Node, as rules) (reflect.Value, bool) {
	out := reflect.MakeMap(as.typ)
	before := len(r.problems)
	switch n.Kind {
	case yaml.MappingNode:
		r.pairs("", at, n, func(name string, at Origin, value *yaml.Node) {
			itemKey := key + "." + quoteKey(name)
			if value.Kind != yaml.ScalarNode || isNull(value) {
				r.add(itemKey, at, "must be text, not %s", describe(value))
				return
			}
			r.origins[itemKey] = at
			out.SetMapIndex(reflect.ValueOf(name), reflect.ValueOf(value.Value))
		})
	case yaml.ScalarNode:
		for _, word := range words(n) {
			name, value, ok := strings.Cut(word.Value, "=")
			if !ok || name == "" {
				r.add(key, at, "%s is not of the form name=value", quoted(word.Value))
				continue
			}
			out.SetMapIndex(reflect.ValueOf(name), reflect.ValueOf(value))
		}
	default:
		r.add(key, at, "must be a mapping of names to values, not %s", describe(n))
	}
	return out, len(r.problems) == before
}

// describe names a node's kind in a message, with its value if it has one.
func describe(n *yaml.Node) string {
	switch {
	case isNull(n):
		return "nothing"
	case n.Kind == yaml.ScalarNode:
		return quoted(n.Value)
	case n.Kind == yaml.SequenceNode:
		return "a list"
	default:
		return "a mapping"
	}
}

var durationType = reflect.TypeFor[time.Duration]()

// expected names the kind of value a field has.
func expected(as rules) string {
	switch {
	case as.typ == durationType:
		return "a duration such as 500ms or 5s"
	case as.bytes:
		return "a size such as 512MiB or 4GiB"
	case as.typ.Kind() == reflect.Bool:
		return "true or false"
	case as.typ.Kind() == reflect.String:
		return "text"
	default:
		return "a whole number"
	}
}

// scalar parses the text of one value.
func scalar(text string, as rules) (reflect.Value, error) {
	v := reflect.New(as.typ).Elem()
	wrong := func() (reflect.Value, error) {
		return v, fmt.Errorf("%s is not %s", quoted(text), expected(as))
	}
	switch {
	case as.typ == durationType:
		d, err := time.ParseDuration(text)
		if err != nil {
			return wrong()
		}
		v.SetInt(int64(d))
	case as.bytes:
		size, ok := parseSize(text)
		if !ok || v.OverflowInt(size) {
			return wrong()
		}
		v.SetInt(size)
	case as.typ.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return wrong()
		}
		v.SetBool(text == "true")
	case v.CanInt():
		i, err := strconv.ParseInt(text, 10, as.typ.Bits())
		if err != nil {
			return wrong()
		}
		v.SetInt(i)
	case as.typ.Kind() == reflect.String:
		if len(as.oneof) > 0 && !slices.Contains(as.oneof, text) {
			return v, fmt.Errorf("%s is not one of %s%s", quoted(text), strings.Join(as.oneof, ", "), roles.DidYouMean(roles.Nearest(text, as.oneof)))
		}
		v.SetString(text)
	default:
		return v, fmt.Errorf("values of type %s cannot be configured", as.typ)
	}
	return v, nil
}

var sizeUnits = []struct {
	name string
	size int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}, {"", 1}}

// parseSize parses a whole number of bytes with an optional binary unit.
func parseSize(text string) (int64, bool) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 63)
		if err != nil || int64(n) > math.MaxInt64/u.size {
			return 0, false
		}
		return int64(n) * u.size, true
	}
	return 0, false
}

// formatSize renders bytes in the largest unit that divides them.
func formatSize(n int64) string {
	for _, u := range sizeUnits {
		if n != 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}
