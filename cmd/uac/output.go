package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// format is how a result is written: the value of -o.
type format string

// The formats. JSON and YAML are the bare object or array.
const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

var formats = []string{string(formatTable), string(formatWide), string(formatJSON), string(formatYAML)}

// String implements pflag.Value.
func (f *format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *format) Type() string { return "format" }

// Set implements pflag.Value.
func (f *format) Set(text string) error {
	if !slices.Contains(formats, text) {
		return fmt.Errorf("must be one of %s", strings.Join(formats, ", "))
	}
	*f = format(text)
	return nil
}

// column is one column of a table of Ts.
type column[T any] struct {
	title string
	wide  bool // only with -o wide
	cell  func(T) string
	color func(T) color // optional
}

// printList writes items as the user asked: a table with these columns, or a
// JSON or YAML array.
func printList[T any](a *app, items []T, columns ...column[T]) error {
	if a.output == formatJSON || a.output == formatYAML {
		if items == nil {
			items = []T{} // an empty list is [], not null
		}
		return a.encode(items)
	}
	return printTable(a, items, columns)
}

// printObject writes one object as the user asked; text writes it for people.
func printObject(a *app, object any, text func(w io.Writer, p paint) error) error {
	if a.output == formatJSON || a.output == formatYAML {
		return a.encode(object)
	}
	return text(a.stdout, a.paint(a.stdout))
}

// encode writes JSON or YAML with the field names of the json tags.
func (a *app) encode(v any) error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	if a.output == formatYAML {
		// JSON is YAML already. Only its style is another, and going through
		// the JSON keeps names and order the same in both formats.
		var doc yaml.Node
		if err := yaml.Unmarshal(text.Bytes(), &doc); err != nil {
			return fmt.Errorf("encode the result: %w", err)
		}
		plainStyle(&doc)
		text.Reset()
		enc := yaml.NewEncoder(&text)
		enc.SetIndent(2)
		if err := enc.Encode(&doc); err != nil {
			return fmt.Errorf("encode the result: %w", err)
		}
	}
	_, err := a.stdout.Write(text.Bytes())
	return err
}

// plainWord matches text that every YAML parser reads as text without quotes,
// unless it is one of the words for a boolean or nothing.
var (
	plainWord    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_./-]*$`)
	reservedWord = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null)$`)
)

// plainStyle takes the look of JSON off a document. Older parsers, such as
// Ansible's, take more words and numbers for something else than text than
// newer ones do, so quotes stay wherever they could matter.
func plainStyle(n *yaml.Node) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!str" && strings.Contains(n.Value, "\n"):
		n.Style = yaml.LiteralStyle
	case n.Kind == yaml.ScalarNode && n.Tag == "!!str" && (!plainWord.MatchString(n.Value) || reservedWord.MatchString(n.Value)):
		n.Style = yaml.DoubleQuotedStyle
	case n.Kind != yaml.ScalarNode && len(n.Content) == 0:
		n.Style = yaml.FlowStyle // [] and {}
	default:
		n.Style = 0
	}
	for _, c := range n.Content {
		plainStyle(c)
	}
}

// gap is the space between two columns.
const gap = "  "

func printTable[T any](a *app, items []T, columns []column[T]) error {
	columns = slices.Clone(columns)
	columns = slices.DeleteFunc(columns, func(c column[T]) bool { return c.wide && a.output != formatWide })
	widths := make([]int, len(columns))
	rows := make([][]string, len(items))
	for i, c := range columns {
		widths[i] = utf8.RuneCountInString(c.title)
	}
	for r, item := range items {
		for i, c := range columns {
			text := printable(c.cell(item), false)
			rows[r] = append(rows[r], text)
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}

	p := a.paint(a.stdout)
	var out strings.Builder
	line := func(cells []string, style func(i int) color) {
		var row strings.Builder
		for i, text := range cells {
			row.WriteString(p.apply(style(i), text))
			row.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)) + gap)
		}
		out.WriteString(strings.TrimRight(row.String(), " ") + "\n")
	}
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	line(titles, func(int) color { return bold })
	for r, item := range items {
		line(rows[r], func(i int) color {
			if columns[i].color == nil {
				return plain
			}
			return columns[i].color(item)
		})
	}
	_, err := io.WriteString(a.stdout, out.String())
	return err
}

// printable makes text safe for a terminal: what came from elsewhere must not
// move the cursor or pretend to be another line.
func printable(text string, keepLines bool) string {
	unsafe := func(r rune) bool {
		return r != ' ' && !unicode.IsPrint(r) && (!keepLines || r != '\n')
	}
	if !strings.ContainsFunc(text, unsafe) && utf8.ValidString(text) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if unsafe(r) {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// color is an ANSI style.
type color string

// The styles in use.
const (
	plain  color = ""
	bold   color = "1"
	faint  color = "2"
	red    color = "31"
	green  color = "32"
	yellow color = "33"
	cyan   color = "36"
)

// paint colours text, or does not.
type paint struct{ on bool }

// paint returns how to colour what goes to a stream: on a terminal only, and
// not if NO_COLOR is set (https://no-color.org).
func (a *app) paint(s stream) paint {
	return paint{on: s.terminal && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"}
}

func (p paint) apply(c color, text string) string {
	if !p.on || c == plain || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// getenv returns a variable of the environment, or "".
func (e *env) getenv(name string) string {
	for _, entry := range slices.Backward(e.environ) {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}
