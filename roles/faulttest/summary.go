package faulttest

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// summary reads what the testing package prints and keeps why tests failed. A log of
// CI may be cut anywhere, so all reasons stand together at the very end of it.
type summary struct {
	reasons map[string][]string // by test, those that did not fail included
	failed  []string
}

// What says more than this of one test is in its own output.
const reasonsOfTest = 3

var (
	// The control character is how go test -json marks such lines.
	testLine   = regexp.MustCompile(`^\x16?(?:=== [A-Z]+ +| *--- ([A-Z]+): )(\S+)`)
	reasonLine = regexp.MustCompile(`^ +(\w+\.go:\d+: .*|BROKEN PROMISE .*)`)
)

// copy passes everything on to out until in ends.
func (s *summary) copy(out io.Writer, in io.Reader) error {
	s.reasons = map[string][]string{}
	test := ""
	for r := bufio.NewReader(in); ; {
		line, err := r.ReadString('\n')
		if _, err := io.WriteString(out, line); err != nil {
			_, _ = io.Copy(io.Discard, r) // who writes must not wait for ever
			return err
		}
		if m := testLine.FindStringSubmatch(line); m != nil {
			if test = m[2]; m[1] == "FAIL" {
				s.failed = append(s.failed, test)
			}
		}
		if m := reasonLine.FindStringSubmatch(line); m != nil && !strings.HasPrefix(m[1], "report.go:") {
			s.reasons[test] = append(s.reasons[test], shorten(m[1]))
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// String is a line for each reason, "" if nothing failed.
func (s *summary) String() string {
	if len(s.failed) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d tests failed:\n", len(s.failed))
	for _, test := range slices.Compact(slices.Sorted(slices.Values(s.failed))) {
		all := s.reasons[test]
		parent := slices.ContainsFunc(s.failed, func(other string) bool { return strings.HasPrefix(other, test+"/") })
		if len(all) == 0 && !parent {
			fmt.Fprintf(&b, "%s: see its own output\n", test)
		}
		for _, reason := range all[:min(len(all), reasonsOfTest)] {
			fmt.Fprintf(&b, "%s: %s\n", test, reason)
		}
		if more := len(all) - reasonsOfTest; more > 0 {
			fmt.Fprintf(&b, "%s: and %d more\n", test, more)
		}
	}
	return b.String()
}
