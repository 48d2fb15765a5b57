package agent

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestWrapperKilledAtEveryLine kills the wrapper before each of its lines, and shows what
// the next look at the traces says: what has begun is never taken for something that has
// not, and no exit is made up.
func TestWrapperKilledAtEveryLine(t *testing.T) {
	const (
		wrapper  = "kill -KILL $$" // also in the subshell: it is the wrapper's number
		subshell = `kill -KILL "$(exec sh -c 'echo "$PPID"')"`
	)
	tests := []struct {
		line string // of the wrapper; empty: after the last
		how  string // what kills before it
		want verdict
		code int32
		ran  bool
	}{
		{"set -C", wrapper, verdictNeverRan, 0, false},
		{"trap : HUP INT QUIT TERM USR1 USR2 PIPE ALRM", wrapper, verdictNeverRan, 0, false},
		{`printf 'started %d\n' "$$" >"$1/status" || exit 125`, wrapper, verdictNeverRan, 0, false},
		{"(", wrapper, verdictUnknown, 0, false},
		{"\tshift", wrapper, verdictUnknown, 0, true},
		{"\tshift", subshell, verdictExited, 137, false},
		{"\texec \"$@\"", wrapper, verdictUnknown, 0, true},
		{"\texec \"$@\"", subshell, verdictExited, 137, false},
		{")", "", verdictExited, 3, true}, // exec does not come back
		{"code=$?", wrapper, verdictUnknown, 0, true},
		{`printf 'exit %d end\n' "$code" >>"$1/status"`, wrapper, verdictUnknown, 0, true},
		{"printf . >&9 2>/dev/null", wrapper, verdictExited, 3, true},
		{"", wrapper, verdictExited, 3, true},
	}
	var lines []string
	for line := range strings.Lines(string(wrapperScript)) {
		if line = strings.TrimSuffix(line, "\n"); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	var covered []string
	for _, tt := range tests {
		if tt.line != "" && !slices.Contains(covered, tt.line) {
			covered = append(covered, tt.line)
		}
	}
	if !slices.Equal(lines, covered) {
		t.Fatalf("the wrapper has the lines\n%q\nand the table\n%q", lines, covered)
	}
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		name := "before " + strings.TrimSpace(tt.line) + ": " + tt.how
		if tt.line == "" {
			name = "after the last"
		}
		text := string(wrapperScript)
		switch {
		case tt.line == "":
			text += tt.how + "\n"
		default:
			text = strings.Replace(text, "\n"+tt.line+"\n", "\n"+tt.how+"\n"+tt.line+"\n", 1)
		}
		if tt.how != "" && text == string(wrapperScript) {
			t.Fatalf("%s: there is no such line", name)
		}
		l, dir := newTestLauncher(t)
		l.wrapper = filepath.Join(t.TempDir(), "wrapper.sh")
		if err := os.WriteFile(l.wrapper, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		ledger := filepath.Join(t.TempDir(), "ledger")
		j := l.job(startOf(k1, 5, "echo ran >>"+ledger+"; exit 3"), dir, nil)
		if err := dir.prepare(j, spare(t, dir)); err != nil {
			t.Fatal(err)
		}
		w := launchPrepared(t, l, dir, j)
		for w.news() { // until nobody holds the pipe
		}
		eventually(t, "an empty session", func() bool { members, err := w.session(); return err == nil && len(members) == 0 })
		e, pipe, err := gather(dir, attempt{Boot: boot}, boot, w.process)
		if err != nil {
			t.Fatal(err)
		}
		pipe.Close()
		if got := judge(e); got != tt.want || e.code != tt.code {
			t.Errorf("%s: verdict %d with code %d, want %d with %d", name, got, e.code, tt.want, tt.code)
		}
		if _, err := os.Stat(ledger); (err == nil) != tt.ran {
			t.Errorf("%s: the command ran: %v", name, err == nil)
		}
		// The same, when the agent had announced that it would kill.
		e.killing = true
		want := map[verdict]verdict{verdictNeverRan: verdictNever, verdictUnknown: verdictKilled, verdictExited: verdictExited}[tt.want]
		if got := judge(e); got != want {
			t.Errorf("%s, by the agent: verdict %d, want %d", name, got, want)
		}
	}
}

// constants returns the values of the constants of a type, by its name, in a file of
// this package.
func constants(t *testing.T, file, typeName string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != typeName {
			return true
		}
		for _, v := range spec.Values {
			text, err := strconv.Unquote(v.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, text)
		}
		return true
	})
	if len(values) == 0 {
		t.Fatalf("%s has no constants of type %s", file, typeName)
	}
	return values
}

// TestKilledAnywhereAnAttemptStartsAtMostOnce goes through Points.
func TestPointsAreAllPoints(t *testing.T) {
	var listed []string
	for _, p := range Points() {
		listed = append(listed, string(p))
	}
	slices.Sort(listed)
	if declared := slices.Sorted(slices.Values(constants(t, "config.go", "Point"))); !slices.Equal(listed, declared) {
		t.Errorf("listed are\n%q\ndeclared\n%q", listed, declared)
	}
}
