package faulttest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A summary of failures names every reason that tests gave, and nothing else that
// they said.
func TestSummary(t *testing.T) {
	for _, tt := range []struct {
		name, in, want string
	}{
		{"all is well", "ok\nPASS\n", ""},
		{
			"quiet", `--- FAIL: TestStop (4.10s)
    operator_test.go:88: after the stop of c1 c1 is Active
        said over two lines
    report.go:61: the cluster is kept in /tmp/x
    report.go:70: /tmp/x/c1/log:
        time=1 level=INFO
--- FAIL: TestRules (0.10s)
    --- FAIL: TestRules/one (0.00s)
        rules_test.go:1: a
        rules_test.go:2: b
        rules_test.go:3: c
        rules_test.go:4: d
    --- FAIL: TestRules/two (0.00s)
FAIL
`, `4 tests failed:
TestRules/one: rules_test.go:1: a
TestRules/one: rules_test.go:2: b
TestRules/one: rules_test.go:3: c
TestRules/one: and 1 more
TestRules/two: see its own output
TestStop: operator_test.go:88: after the stop of c1 c1 is Active
`,
		},
		{
			"verbose", `=== RUN   TestA
=== PAUSE TestA
=== RUN   TestB
    b_test.go:3: it is slow
--- PASS: TestB (0.00s)
=== CONT  TestA
    record.go:9: BROKEN PROMISE 1. Accepted is kept. x is gone
        BROKEN PROMISE 2. One owner. y has two
--- FAIL: TestA (1.00s)
FAIL
`, `1 tests failed:
TestA: record.go:9: BROKEN PROMISE 1. Accepted is kept. x is gone
TestA: BROKEN PROMISE 2. One owner. y has two
`,
		},
	} {
		var s summary
		var out strings.Builder
		if err := s.copy(&out, strings.NewReader(tt.in)); err != nil {
			t.Fatal(err)
		}
		if out.String() != tt.in {
			t.Errorf("%s: passed on\n%s", tt.name, &out)
		}
		if diff := cmp.Diff(tt.want, s.String()); diff != "" {
			t.Errorf("%s:\n%s", tt.name, diff)
		}
	}
}
