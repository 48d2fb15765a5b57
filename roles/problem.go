package roles

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxProblems is how many problems of one input are told one by one.
const maxProblems = 100

// Problem is one thing that is wrong in an input.
type Problem struct {
	File    string // or what else the input is called
	Line    int    // from 1; 0: not known
	Column  int    // from 1; 0: not known
	Field   string // such as steps[switch].retry.delay; may be empty
	Message string
}

// Error returns "FILE:LINE:COLUMN: FIELD: MESSAGE" without the parts that are not
// known, in one line.
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
		if p.Column > 0 {
			fmt.Fprintf(&b, ":%d", p.Column)
		}
	}
	b.WriteString(": ")
	if p.Field != "" {
		b.WriteString(p.Field)
		b.WriteString(": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems is all that is wrong in an input, in the order of the input.
type Problems []Problem

// Error returns the problems, one a line.
func (p Problems) Error() string {
	var b strings.Builder
	for i, problem := range p {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(problem.Error())
	}
	return b.String()
}

// problemList collects the problems of one input: all are counted, and as many kept as
// somebody will read.
type problemList struct {
	file     string
	problems Problems
	total    int
}

func (l *problemList) addf(line, column int, field, format string, args ...any) {
	if l.total++; l.total <= maxProblems {
		l.problems = append(l.problems, Problem{l.file, line, column, field, fmt.Sprintf(format, args...)})
	}
}

// err returns nil if there are no problems, else a Problems in the order of the
// input.
func (l *problemList) err() error {
	if l.total == 0 {
		return nil
	}
	slices.SortStableFunc(l.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if l.total > maxProblems {
		l.problems = append(l.problems, Problem{File: l.file, Message: fmt.Sprintf("and %d more problems", l.total-maxProblems)})
	}
	return l.problems
}
