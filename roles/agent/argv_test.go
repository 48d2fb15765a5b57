package agent

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"uac/roles/wire"
)

// A command line is no script: nothing in it is split, expanded, or taken for something
// that the shell can do itself.
func TestCommandLines(t *testing.T) {
	for name, tt := range map[string]struct {
		argv   []string
		env    map[string]string
		code   int32
		output string
	}{
		"arguments":          {argv: []string{"/usr/bin/printf", "<%s>", "a b", "", "$HOME", "it's", "*", "-n", "two\nlines"}, output: "<a b><><$HOME><it's><*><-n><two\nlines>"},
		"found in PATH":      {argv: []string{"printf", "%s", "x"}, output: "x"},
		"of the step's PATH": {argv: []string{"printf", "%s", "x"}, env: map[string]string{"PATH": "/nowhere"}, code: 127, output: "not found"},
		"not a builtin":      {argv: []string{"exit", "3"}, code: 127, output: "not found"},
		"nor a function":     {argv: []string{"run", "true"}, code: 127, output: "not found"},
		"nor a special one":  {argv: []string{"set", "+C"}, code: 127, output: "not found"},
		"no such program":    {argv: []string{"/no/such/program"}, code: 127, output: "not found"},
		"not a program":      {argv: []string{"/etc/passwd"}, code: 126, output: "denied"},
		"its exit status":    {argv: []string{"sh", "-c", "exit 42"}, code: 42},
		"death by a signal":  {argv: []string{"sh", "-c", "kill -9 $$"}, code: 137},
		"an assignment":      {argv: []string{"a=b"}, code: 127, output: "not found"},
		"no expansion":       {argv: []string{"sh", "-c", `echo "$1"`, "sh", "$UAC_STEP"}, output: "$UAC_STEP\n"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, as := range []string{"", other} {
				if as != "" && os.Geteuid() != 0 {
					continue
				}
				l, dir := newTestLauncher(t)
				start := &wire.Start{Request: "R", Step: "s", Attempt: 1, Argv: tt.argv, Env: tt.env}
				var user *account
				if as != "" {
					var err error
					if user, err = lookupAccount(t.Context(), as, 0); err != nil {
						t.Fatal(err)
					}
				}
				j := l.job(start, dir, user)
				if err := dir.prepare(j, spare(t, dir)); err != nil {
					t.Fatal(err)
				}
				w := launchPrepared(t, l, dir, j)
				if code := w.code(); code != tt.code || !strings.Contains(w.output(), tt.output) {
					t.Errorf("as %q: exit %d, output %q", as, code, w.output())
				}
			}
		})
	}
}

func TestStandardInput(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	for name, stdin := range map[string][]byte{"bytes": []byte("a\x00b\xffc"), "large": large} {
		s := newStage(t)
		start := startOf(k1, 5, "")
		start.Script, start.Argv, start.Stdin = "", []string{"cat"}, stdin
		s.l.start(start)
		wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{})
		if got := s.outputOf(k1); got != string(stdin) {
			t.Errorf("%s: %d bytes came, want %d", name, len(got), len(stdin))
		}
		if _, err := os.Lstat(s.a.dir(k1).file(fileStdin)); !os.IsNotExist(err) {
			t.Errorf("%s: the file is still there: %v", name, err)
		}
	}
	s := newStage(t)
	start := startOf(k1, 5, "cat /dev/stdin") // opened once more
	start.Stdin = []byte("input")
	s.l.start(start)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{})
	if got := s.outputOf(k1); got != "input" {
		t.Errorf("output: %q", got)
	}
}
