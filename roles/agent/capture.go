package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// maxValue bounds one value that a step hands on, and maxValues all of an attempt.
	maxValue  = 32 << 10
	maxValues = 64 << 10
	// maxValuesFile is how much is read of what a step wrote.
	maxValuesFile = 1 << 20
	// maxProblems is how many problems are told.
	maxProblems = 5
)

// values returns what the command has written as outputs, of the names that are wanted,
// and what is wrong with it, for people. It is called after the command has ended.
func (d attemptDir) values(wanted []string) (map[string]string, string) {
	if len(wanted) == 0 {
		return nil, ""
	}
	text, err := d.readValues()
	if err != nil {
		return nil, fmt.Sprintf("outputs: %v", err)
	}
	values, problems := parseValues(text, wanted)
	if len(problems) == 0 {
		return values, ""
	}
	more := ""
	if n := len(problems) - maxProblems; n > 0 {
		problems, more = problems[:maxProblems], fmt.Sprintf("; and %d more", n)
	}
	return values, "outputs: " + strings.Join(problems, "; ") + more
}

// readValues reads the file, one byte more than it may have. If the command runs as the
// agent's own user it may have put anything in its place, which must not hold up the
// agent.
func (d attemptDir) readValues() ([]byte, error) {
	f, err := os.OpenFile(d.file(fileOutputs), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("the file was replaced by something that is none")
	}
	return io.ReadAll(io.LimitReader(f, maxValuesFile+1))
}

// parseValues reads lines name=value. The last line for a name counts; if that one is
// no good the name has no value, because an earlier one was meant to be replaced.
func parseValues(text []byte, wanted []string) (map[string]string, []string) {
	var problems []string
	if len(text) > maxValuesFile {
		text = text[:maxValuesFile]
		text = text[:bytes.LastIndexByte(text, '\n')+1]
		problems = append(problems, fmt.Sprintf("more than %d bytes: what follows is not read", maxValuesFile))
	}
	values := map[string]string{}
	number := 0
	for line := range bytes.SplitSeq(text, []byte{'\n'}) {
		number++
		if len(line) == 0 {
			continue
		}
		bad := func(format string, args ...any) {
			problems = append(problems, fmt.Sprintf("line %d: ", number)+fmt.Sprintf(format, args...))
		}
		before, value, found := bytes.Cut(line, []byte{'='})
		name := string(before)
		switch {
		case !found:
			bad("is not name=value")
			continue
		case !slices.Contains(wanted, name):
			bad("%s is not among the outputs of the step", shortened(name))
			continue
		case !utf8.Valid(value):
			bad("the value of %s is not UTF-8", name)
		case bytes.IndexByte(value, 0) >= 0:
			bad("the value of %s has a zero byte", name)
		case len(value) > maxValue:
			bad("the value of %s has %d bytes, at most %d are allowed", name, len(value), maxValue)
		default:
			values[name] = string(value)
			continue
		}
		delete(values, name)
	}
	size := 0
	for _, name := range wanted {
		value, found := values[name]
		if !found {
			continue
		}
		if size+len(value) > maxValues {
			problems = append(problems, fmt.Sprintf("all values together have at most %d bytes: %s is left out", maxValues, name))
			delete(values, name)
			continue
		}
		size += len(value)
	}
	return values, problems
}

// shortened returns text of a step, fit to be shown.
func shortened(s string) string {
	const most = 40
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// malformedOutputs says what is wrong with the names of values that a start asks for.
func malformedOutputs(names []string) string {
	for i, name := range names {
		switch {
		case name == "" || len(name) > maxNameBytes || strings.ContainsAny(name, "=\n\x00"):
			return fmt.Sprintf("output %s: cannot be written", shortened(name))
		case slices.Contains(names[:i], name):
			return fmt.Sprintf("output %s is named twice", shortened(name))
		}
	}
	return ""
}
