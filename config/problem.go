package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Source is the kind of place that set a value.
type Source int

// The sources, weakest first.
const (
	FromDefault Source = iota
	FromFile
	FromEnv
	FromFlag
)

// Origin says where a value was set.
type Origin struct {
	Source Source
	Name   string // of the file, the variable or the flag
	Line   int    // in the file, from 1; 0 if unknown
}

// String returns "default", "FILE:LINE", "env NAME" or "flag NAME".
func (o Origin) String() string {
	switch o.Source {
	case FromFile:
		if o.Line > 0 {
			return o.Name + ":" + strconv.Itoa(o.Line)
		}
		return o.Name
	case FromEnv:
		return "env " + o.Name
	case FromFlag:
		return "flag " + o.Name
	default:
		return "default"
	}
}

// Origins maps each key that some source set to that source. Elements of lists
// have keys of their own, such as members[0].address.
type Origins map[string]Origin

// Of returns where key was set. A key that nobody set has the origin of what
// contains it.
func (o Origins) Of(key string) Origin {
	for key != "" {
		if origin, ok := o[key]; ok {
			return origin
		}
		key = parent(key)
	}
	return Origin{}
}

// Problem is one thing that is wrong with the settings.
type Problem struct {
	Key     string // "" if the source as a whole is wrong
	Message string // one line, names the value
	Origin  Origin
}

// String returns the problem as one line: where, key, message.
func (p Problem) String() string {
	var b strings.Builder
	if p.Origin.Source != FromDefault {
		b.WriteString(p.Origin.String() + ": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Error is returned when settings are wrong; it holds every problem found.
type Error struct {
	Problems []Problem
}

// Error returns one line for one problem, else a headed list.
func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return "configuration: " + e.Problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "configuration: %d problems", len(e.Problems))
	for _, p := range e.Problems {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// errorOf returns nil if there are no problems. Those of one file come in the
// order of its lines.
func errorOf(problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	slices.SortStableFunc(problems, func(a, b Problem) int {
		if a.Origin.Source == FromFile && b.Origin.Source == FromFile {
			return a.Origin.Line - b.Origin.Line
		}
		return 0
	})
	return &Error{Problems: problems}
}

// quoted renders a value for a message: printable, on one line and short.
func quoted(value string) string {
	const limit = 60
	if utf8.RuneCountInString(value) > limit {
		value = string([]rune(value)[:limit]) + "…"
	}
	return strconv.Quote(value)
}
